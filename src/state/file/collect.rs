//! Files with a name: whether the path still leads to them from the pod's root, and the locks on them.

use super::{DEVICES, FileLock, Inode, LockKind, PathFile};
use crate::base::Blocker;
use crate::kernel::fdinfo::LockType;
use crate::state::fd::collect::table::Desc;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, fstat};
use nix::sys::statfs::statfs;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

/// Major numbers of terminals: tty and console, ptmx, pseudo-terminals.
fn is_terminal(major: u32) -> bool {
    matches!(major, 4 | 5 | 128..=143)
}

fn rdev(desc: &Desc) -> (u32, u32) {
    (libc::major(desc.st.st_rdev), libc::minor(desc.st.st_rdev))
}

/// `stat` of a path as the pod resolves it, the last component not followed.
pub(crate) fn look(root: BorrowedFd, path: &[u8]) -> Result<FileStat, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    fstat(openat2(root, OsStr::from_bytes(path), how)?)
}

fn blocker(desc: &Desc, kind: &str, message: String, remedy: &str) -> Option<Blocker> {
    Some(Blocker {
        kind: kind.to_owned(),
        pid: desc.pod_pid,
        fd: desc.pod_pid.map(|_| desc.at.1),
        path: Some(desc.shown()),
        message,
        remedy: remedy.to_owned(),
    })
}

/// Why a file cannot be carried, if so. Content without a name is the object table's to judge.
pub(crate) fn check(desc: &Desc, root: BorrowedFd) -> Option<Blocker> {
    match desc.file_type() {
        libc::S_IFCHR if !desc.is_path() => return device(desc),
        libc::S_IFBLK if !desc.is_path() => {
            return blocker(desc, "device", "a block device belongs to this host".into(), "close it");
        }
        libc::S_IFREG if desc.st.st_nlink == 0 => return None,
        libc::S_IFDIR if desc.st.st_nlink == 0 => {
            let remedy = "let the program leave it, or make it again";
            return blocker(desc, "deleted-directory", "this directory was deleted".into(), remedy);
        }
        _ => {}
    }
    match look(root, &desc.link) {
        Ok(st) if (st.st_dev, st.st_ino) == desc.inode() => None,
        _ if is_queue(desc) => {
            let remedy = "use a unix socket instead";
            blocker(desc, "mqueue", "POSIX message queues cannot be carried yet".into(), remedy)
        }
        Ok(_) => blocker(
            desc,
            "replaced-file",
            "another file has this name now".into(),
            "let the program open it again (many do on SIGHUP)",
        ),
        Err(Errno::ENOENT | Errno::ENOTDIR) => blocker(
            desc,
            "hard-link",
            "the name it was opened under is gone or another file's now, and another name of it is left"
                .into(),
            "give it the name back, or let the program open it again",
        ),
        Err(e) => blocker(desc, "file", format!("the pod's path to it does not resolve: {e}"), "close it"),
    }
}

/// Whether it is a POSIX message queue: they have no path outside their own file system (`linux/magic.h`).
fn is_queue(desc: &Desc) -> bool {
    const MQUEUE_MAGIC: i64 = 0x1980_0202;
    statfs(&desc.magic_link()).is_ok_and(|fs| fs.filesystem_type().0 == MQUEUE_MAGIC)
}

fn device(desc: &Desc) -> Option<Blocker> {
    let (major, minor) = rdev(desc);
    if DEVICES.iter().any(|d| (d.0, d.1) == (major, minor)) {
        return None;
    }
    if is_terminal(major) {
        let remedy = "start it without -t, its input and output redirected";
        return blocker(desc, "tty", "terminals cannot be carried yet".into(), remedy);
    }
    let text = format!("device {major}:{minor} belongs to this host");
    blocker(desc, "device", text, "stop the use of this device")
}

/// A file with a name as data.
pub(crate) fn path_file(desc: &Desc) -> PathFile {
    let (inode, path) = match desc.file_type() {
        libc::S_IFREG => (Inode::Regular, desc.link.clone()),
        libc::S_IFDIR => (Inode::Dir, desc.link.clone()),
        libc::S_IFCHR if !desc.is_path() => {
            let (major, minor) = rdev(desc);
            // A null device opened outside the pod is the pod's null device all the same.
            let device = DEVICES.iter().find(|d| (d.0, d.1) == (major, minor));
            let path = device.map_or_else(|| desc.link.clone(), |d| d.2.as_bytes().to_vec());
            (Inode::Char(major, minor), path)
        }
        _ => (Inode::Handle, desc.link.clone()),
    };
    PathFile {
        path,
        inode,
        pos: desc.info.pos,
        size: desc.st.st_size.max(0).unsigned_abs(),
        mode: desc.st.st_mode & 0o7777,
        locks: locks(desc),
    }
}

/// The locks held through a description.
pub(crate) fn locks(desc: &Desc) -> Vec<FileLock> {
    let one = |(lock, pid): &(crate::kernel::fdinfo::Lock, i32)| {
        let kind = match lock.kind {
            LockType::Flock => LockKind::Flock,
            LockType::Posix => LockKind::Posix,
            LockType::Ofd => LockKind::Ofd,
            LockType::Other => return None,
        };
        let len = lock.end.map_or(0, |end| end.saturating_sub(lock.start).saturating_add(1));
        Some(FileLock { kind, exclusive: lock.exclusive, start: lock.start, len, pid: *pid })
    };
    desc.locks.iter().filter_map(one).collect()
}
