//! Where a socket's file is made: in a directory of its own, entered by chroot(2) so that the name given to bind(2)
//! is the old one to the letter. It comes to its place by rename(2), which nobody sees before the pod is ours; a name
//! that led nowhere any more is unlinked there instead.

use super::super::BoundFile;
use crate::state::fd::error::Error;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, chdir, chroot, fchdir, fchownat, unlinkat};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// A socket's file made beside its place, paths in the pod's mount namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SocketFile {
    /// Where it is to be.
    pub place: Vec<u8>,
    /// Directory made for it, in the same directory.
    pub scratch: Vec<u8>,
    /// Its path below that directory.
    pub below: Vec<u8>,
}

/// A directory that is some socket's root.
#[derive(Debug)]
pub(super) struct Jail {
    root: OwnedFd,
    path: Vec<u8>,
}

/// The thread's own view of the file system; the thread must not share it (unshare(CLONE_FS)).
#[derive(Debug)]
pub(super) struct Places {
    root: OwnedFd,
}

fn dir_flags() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC
}

/// The components of a name as seen from a root that `..` cannot leave.
fn components(name: &[u8]) -> Vec<&[u8]> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|c| *c == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}

fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|c| *c == b'/') {
        Some(0) | None => b"/",
        Some(n) => &path[..n],
    }
}

impl Places {
    /// For a thread that has left its process's file system view already.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self { root: open("/", dir_flags(), Mode::empty())? })
    }

    fn enter(&self, dir: BorrowedFd) -> Result<(), Errno> {
        fchdir(dir)?;
        chroot(".")
    }

    /// Makes a directory whose name nobody has, in `base`.
    pub fn jail(&self, base: &[u8]) -> Result<Jail, Errno> {
        self.enter(self.root.as_fd())?;
        for _ in 0..16 {
            let random = std::hash::RandomState::new().build_hasher().finish();
            let mut path = base.to_vec();
            path.extend_from_slice(format!("/.podmig-{random:016x}").as_bytes());
            match mkdirat(AT_FDCWD, OsStr::from_bytes(&path), Mode::from_bits_truncate(0o711)) {
                Ok(()) => {
                    let root = open(OsStr::from_bytes(&path), dir_flags(), Mode::empty())?;
                    return Ok(Jail { root, path });
                }
                Err(Errno::EEXIST) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::EEXIST)
    }

    /// The directory for a file that will be at `file`, made if it is missing (and said).
    pub fn jail_beside(&self, file: &BoundFile, warnings: &mut Vec<String>) -> Result<Jail, Errno> {
        let dir = parent(&file.path);
        match self.jail(dir) {
            Err(Errno::ENOENT) => {
                self.enter(self.root.as_fd())?;
                make_dirs(components(dir).iter().copied())?;
                warnings.push(format!("{}: directory was missing, made anew", String::from_utf8_lossy(dir)));
                self.jail(dir)
            }
            other => other,
        }
    }

    /// A directory for names that lead nowhere, on whatever can be written to.
    pub fn jail_anywhere(&self) -> Result<Jail, Errno> {
        let mut last = Errno::EROFS;
        for base in ["/dev/shm", "/run", "/tmp", "/var/tmp", ""] {
            match self.jail(base.as_bytes()) {
                Ok(jail) => return Ok(jail),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Runs `body` with the jail as root and current directory, where `name`'s directories exist.
    pub fn within<T>(
        &self,
        jail: &Jail,
        name: &[u8],
        body: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.enter(jail.root.as_fd())?;
        let parts = components(name);
        let dirs = make_dirs(parts[..parts.len().saturating_sub(1)].iter().copied());
        let result = dirs.and_then(|()| chdir("/")).and_then(|()| body());
        self.enter(self.root.as_fd())?;
        result
    }

    /// Runs `body` with the pod's own root.
    pub fn outside<T>(&self, body: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        self.enter(self.root.as_fd())?;
        body()
    }

    /// Gives a bound file its mode and owner; what will bring it to its place.
    pub fn finish(&self, jail: &Jail, name: &[u8], file: &BoundFile) -> Result<SocketFile, Errno> {
        let below = components(name).join(&b'/');
        let at = OsStr::from_bytes(&below);
        let (uid, gid) = (Uid::from_raw(file.uid), Gid::from_raw(file.gid));
        fchownat(&jail.root, at, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_bits_truncate(file.mode & 0o7777);
        fchmodat(&jail.root, at, mode, FchmodatFlags::FollowSymlink)?;
        Ok(SocketFile { place: file.path.clone(), scratch: jail.path.clone(), below })
    }

    /// Takes a jail away with everything in it; sockets bound there live on without a name.
    pub fn remove(&self, jail: &Jail) {
        let _ = self.enter(self.root.as_fd());
        let _ = remove_tree(self.root.as_fd(), &jail.path);
    }
}

fn make_dirs<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<(), Errno> {
    let mut path = Vec::new();
    for part in parts {
        path.push(b'/');
        path.extend_from_slice(part);
        match mkdirat(AT_FDCWD, OsStr::from_bytes(&path), Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Opens a directory of the pod by its path; symbolic links stay inside its root.
fn dir_in(root: BorrowedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    openat2(root, OsStr::from_bytes(path), how)
}

/// Removes a scratch directory: directories and socket files only, a few levels deep at most.
fn remove_tree(root: BorrowedFd, path: &[u8]) -> Result<(), Errno> {
    let up = dir_in(root, parent(path))?;
    let name = path.rsplit(|c| *c == b'/').next().unwrap_or(b"");
    remove_in(&up, name, 0)
}

fn remove_in(up: &OwnedFd, name: &[u8], depth: u32) -> Result<(), Errno> {
    let at = OsStr::from_bytes(name);
    if unlinkat(up, at, UnlinkatFlags::RemoveDir).is_ok() {
        return Ok(());
    }
    if depth > 64 {
        return Err(Errno::ELOOP);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = nix::fcntl::openat(up, at, flags, Mode::empty())?;
    let list = nix::dir::Dir::from_fd(dir.try_clone().map_err(|_| Errno::EMFILE)?)?;
    for entry in list {
        let entry = entry?;
        let child = entry.file_name().to_bytes();
        if child == b"." || child == b".." {
            continue;
        }
        if unlinkat(&dir, OsStr::from_bytes(child), UnlinkatFlags::NoRemoveDir).is_err() {
            remove_in(&dir, child, depth + 1)?;
        }
    }
    unlinkat(up, at, UnlinkatFlags::RemoveDir)
}

/// Brings sockets' files to their places: part of activation. `root` is the pod's root directory (`/proc/P/root`).
/// What is there already is replaced if it is a socket. All are tried; the first error is returned. Twice is harmless.
pub fn place(root: impl AsFd, files: &[SocketFile]) -> Result<(), Error> {
    let root = root.as_fd();
    let mut result = Ok(());
    for f in files {
        let one = || {
            let scratch = match dir_in(root, &f.scratch) {
                Err(Errno::ENOENT) => return Ok(()), // done before
                other => other?,
            };
            let up = dir_in(root, parent(&f.place))?;
            let name = OsStr::from_bytes(f.place.rsplit(|c| *c == b'/').next().unwrap_or(b""));
            match fstatat(&up, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(st) if st.st_mode & libc::S_IFMT != libc::S_IFSOCK => return Err(Errno::EEXIST),
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
            renameat(&scratch, OsStr::from_bytes(&f.below), &up, name)?;
            remove_tree(root, &f.scratch)
        };
        let what = || String::from_utf8_lossy(&f.place).into_owned();
        let one = one().map_err(Error::restore("rename(2) of a socket's file", what));
        result = result.and(one);
    }
    result
}

/// Takes away what [`place`] would have placed: the undo of making it.
pub fn discard(root: impl AsFd, files: &[SocketFile]) {
    for f in files {
        let _ = remove_tree(root.as_fd(), &f.scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_their_root() {
        let c = |n: &str| {
            components(n.as_bytes())
                .iter()
                .map(|p| String::from_utf8_lossy(p).into_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(c("/run//a/./b.sock"), ["run", "a", "b.sock"]);
        assert_eq!(c("../../x"), ["x"]);
        assert_eq!(c("a/../../b/x"), ["b", "x"]);
        assert_eq!(parent(b"/x"), b"/");
        assert_eq!(parent(b"/a/b"), b"/a");
    }
}
