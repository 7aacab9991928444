//! File systems that only the pod sees: its `/dev/shm` and `--tmpfs` directories, with what lies in them.
//!
//! Regular files there are objects, open or not. Directories, links, FIFOs and devices in them cannot be carried
//! yet and are told; sockets are made again by whoever is bound to them. What the launcher itself mounts (`/dev`,
//! masks over `/proc` and `/sys`) is made by it at the target, too. POSIX message queues are told as well.

use crate::base::Blocker;
use crate::kernel::procfs::Proc;
use crate::state::error::Error;
use crate::state::object::collect::ObjectTable;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use procfs::process::MountInfo;
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;

/// More entries than this in one directory are not held open.
const LIMIT: usize = 4096;

/// The file systems only the pod sees.
#[derive(Debug)]
pub struct Private {
    devices: HashSet<u64>,
    /// Where their content is looked for.
    points: Vec<Vec<u8>>,
    /// Where POSIX message queues are.
    queues: Vec<Vec<u8>>,
}

/// A mount as `mountinfo` tells it.
struct Mount {
    dev: u64,
    kind: String,
    point: Vec<u8>,
}

impl Private {
    /// Finds the tmpfs file systems that are mounted in the pod and not where we are.
    pub fn find(init: &Proc) -> Result<Self, Error> {
        let own = std::process::id().cast_signed();
        let host = mounts(&Proc::open(own).map_err(Error::read(own, "/proc"))?)?;
        let host: HashSet<u64> = host.iter().map(|m| m.dev).collect();
        let mut found = Self { devices: HashSet::new(), points: Vec::new(), queues: Vec::new() };
        for mount in mounts(init)?.into_iter().filter(|m| !host.contains(&m.dev)) {
            match mount.kind.as_str() {
                "tmpfs" => {
                    found.devices.insert(mount.dev);
                    if !is_launchers(&mount.point) {
                        found.points.push(mount.point);
                    }
                }
                "mqueue" => found.queues.push(mount.point),
                _ => {}
            }
        }
        Ok(found)
    }

    /// `st_dev` of each.
    pub fn devices(&self) -> &HashSet<u64> {
        &self.devices
    }

    /// Takes their files into the table; what cannot be carried is told in `found`.
    pub fn content(
        &self,
        init: &Proc,
        objects: &mut ObjectTable,
        found: &mut Vec<Blocker>,
    ) -> Result<(), Error> {
        for point in &self.points {
            let dir = Listed { init, point };
            for (name, st) in dir.entries()? {
                // Another file system is mounted there.
                if !self.devices.contains(&st.st_dev) {
                    continue;
                }
                dir.claim(&name, &st, objects, found)?;
            }
        }
        for point in &self.queues {
            for (name, _) in (Listed { init, point }).entries()? {
                let message = "a POSIX message queue cannot be carried yet";
                found.push(blocker(
                    "mqueue",
                    &[point, &b"/"[..], &name].concat(),
                    message,
                    "remove it in the pod",
                ));
            }
        }
        Ok(())
    }
}

/// Mounted by the launcher for every pod.
fn is_launchers(point: &[u8]) -> bool {
    point == b"/dev"
        || [&b"/proc"[..], b"/sys"].iter().any(|p| point == *p || point.starts_with(&[p, &b"/"[..]].concat()))
}

fn blocker(kind: &str, path: &[u8], message: &str, remedy: &str) -> Blocker {
    Blocker {
        kind: kind.to_owned(),
        pid: None,
        fd: None,
        path: Some(String::from_utf8_lossy(path).into_owned()),
        message: message.to_owned(),
        remedy: remedy.to_owned(),
    }
}

/// A directory of the pod.
struct Listed<'a> {
    init: &'a Proc,
    point: &'a [u8],
}

impl Listed<'_> {
    /// Its entries with their own `stat` (links not followed). One that vanishes meanwhile is passed over.
    fn entries(&self) -> Result<Vec<(Vec<u8>, FileStat)>, Error> {
        let path = [b"root", self.point].concat();
        let shown = String::from_utf8_lossy(self.point).into_owned();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = match Dir::openat(self.init.dir(), path.as_slice(), flags, Mode::empty()) {
            Ok(dir) => dir,
            // Mounted over since, or below a directory that is.
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Vec::new()),
            Err(source) => return Err(Error::Read { what: shown, pid: self.init.pid(), source }),
        };
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry =
                entry.map_err(|source| Error::Read { what: shown.clone(), pid: self.init.pid(), source })?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        let stat = |name: Vec<u8>| match fstatat(&dir, name.as_slice(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(st) => Some(Ok((name, st))),
            Err(Errno::ENOENT) => None,
            Err(source) => Some(Err(Error::Read { what: shown.clone(), pid: self.init.pid(), source })),
        };
        names.into_iter().filter_map(stat).collect()
    }

    fn claim(
        &self,
        name: &[u8],
        st: &FileStat,
        objects: &mut ObjectTable,
        found: &mut Vec<Blocker>,
    ) -> Result<(), Error> {
        let path = [self.point, b"/", name].concat();
        let kind = SFlag::from_bits_truncate(st.st_mode & SFlag::S_IFMT.bits());
        let remedy = "remove it, or keep it on a directory of the host";
        if kind == SFlag::S_IFSOCK {
            return Ok(());
        }
        if kind != SFlag::S_IFREG {
            let what = match kind {
                SFlag::S_IFDIR => "a directory",
                SFlag::S_IFLNK => "a symbolic link",
                SFlag::S_IFIFO => "a FIFO",
                _ => "a device",
            };
            let message = format!("{what} on a file system of the pod's own cannot be carried yet");
            found.push(blocker("tmpfs", &path, &message, remedy));
            return Ok(());
        }
        if st.st_nlink > 1 {
            let message = "a file with several names on a file system of the pod's own cannot be carried yet";
            found.push(blocker("tmpfs", &path, message, remedy));
            return Ok(());
        }
        if objects.len() >= LIMIT && objects.lookup(st.st_dev, st.st_ino).is_none() {
            found.push(blocker(
                "tmpfs",
                self.point,
                "too many files on a file system of the pod's own",
                remedy,
            ));
            return Ok(());
        }
        let link = format!("/proc/{}/root", self.init.pid()).into_bytes();
        match objects.claim_named(
            std::ffi::OsStr::from_bytes(&[&link, &path[..]].concat()).as_ref(),
            &path,
            st,
        ) {
            Ok(_) => Ok(()),
            // Removed meanwhile: the pod runs, or its init does.
            Err(e) if e.is_missing() => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// `mountinfo` of a process.
fn mounts(proc: &Proc) -> Result<Vec<Mount>, Error> {
    let odd = || Error::odd(proc.pid(), "mountinfo")();
    let text = proc.read("mountinfo").map_err(Error::read(proc.pid(), "mountinfo"))?;
    let mut all = Vec::new();
    for line in text.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
        // Names may be no text; device and type always are.
        let lossy = String::from_utf8_lossy(line);
        let mount = MountInfo::from_line(&lossy).map_err(|_| odd())?;
        let (major, minor) = mount.majmin.split_once(':').ok_or_else(odd)?;
        let number = |s: &str| s.parse().map_err(|_| odd());
        let point = line.split(|&b| b == b' ').nth(4).ok_or_else(odd)?;
        all.push(Mount {
            dev: libc::makedev(number(major)?, number(minor)?),
            kind: mount.fs_type,
            point: unescaped(point),
        });
    }
    Ok(all)
}

/// Blank, tab, newline and backslash stand as `\` and three octal digits.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) if first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_mount_points() {
        assert_eq!(unescaped(b"/a\\040b\\134040\\\xff"), b"/a b\\040\\\xff");
        assert!(is_launchers(b"/dev") && is_launchers(b"/proc/acpi") && is_launchers(b"/sys"));
        assert!(!is_launchers(b"/dev/shm") && !is_launchers(b"/process"));
    }
}
