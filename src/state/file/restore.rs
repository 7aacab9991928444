//! Files with a name opened again: looked at first (O_PATH), so that nothing unexpected is ever opened.

use super::{DEVICES, FileLock, Inode, LockKind, PathFile};
use crate::kernel::descr;
use crate::state::fd::error::Error;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{Whence, lseek};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Flags of open(2) that may be given when a file is opened again; the rest are of no effect later, or harmful.
const OPEN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_DIRECT
    | libc::O_LARGEFILE
    | libc::O_NOATIME
    | libc::O_PATH;

/// Opens what `fd` refers to a second time, as a description of its own. `proc`: the host's `/proc`.
pub(crate) fn reopen(proc: BorrowedFd, fd: impl AsFd, flags: i32) -> Result<OwnedFd, Errno> {
    let path = format!("thread-self/fd/{}", fd.as_fd().as_raw_fd());
    let flags = OFlag::from_bits_retain((flags & OPEN_FLAGS) | libc::O_CLOEXEC | libc::O_NOCTTY);
    openat(proc, path.as_str(), flags, Mode::empty())
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// A file by its path in the caller's mount namespace, held by O_PATH. No magic link is followed.
pub(crate) fn find(path: &[u8]) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(nix::fcntl::AT_FDCWD, OsStr::from_bytes(path), how)
}

/// Whether what lies at a path can stand for the file; the reason if not.
pub(crate) fn differs(file: &PathFile, flags: i32, st: &FileStat) -> Option<String> {
    let kind = st.st_mode & libc::S_IFMT;
    match file.inode {
        Inode::Regular if kind != libc::S_IFREG => Some("it is not a regular file here".into()),
        Inode::Dir if kind != libc::S_IFDIR => Some("it is not a directory here".into()),
        Inode::Char(major, minor) => {
            let same =
                kind == libc::S_IFCHR && (libc::major(st.st_rdev), libc::minor(st.st_rdev)) == (major, minor);
            (!same).then(|| format!("it is not character device {major}:{minor} here"))
        }
        // What is appended to may have any length; of the rest the program knows what is where. `/proc` and its
        // like say 0 always.
        Inode::Regular if flags & (libc::O_APPEND | libc::O_PATH) == 0 => {
            let size = st.st_size.max(0).unsigned_abs();
            (size != file.size).then(|| format!("it has {size} bytes here and {} there", file.size))
        }
        _ => None,
    }
}

/// Opens a file with the flags it had and goes to its position.
pub(crate) fn open(
    proc: BorrowedFd,
    file: &PathFile,
    flags: i32,
    warnings: &mut Vec<String>,
) -> Result<OwnedFd, Error> {
    let call = |name: &'static str| Error::restore(name, || shown(&file.path));
    let handle = match find(&file.path) {
        Ok(handle) => handle,
        Err(Errno::ENOENT) if is_log(file, flags) => {
            warnings.push(format!("{}: was missing, made anew", shown(&file.path)));
            make_log(file).map_err(call("open(2) with O_CREAT"))?
        }
        Err(Errno::ENOENT | Errno::ENOTDIR) => {
            let reason = "it does not exist here".to_owned();
            return Err(Error::Differs { path: shown(&file.path), reason });
        }
        Err(e) => return Err(call("openat2(2)")(e)),
    };
    let st = fstat(&handle).map_err(call("fstat(2)"))?;
    if let Some(reason) = differs(file, flags, &st) {
        return Err(Error::Differs { path: shown(&file.path), reason });
    }
    if let Inode::Char(major, minor) = file.inode
        && !DEVICES.iter().any(|d| (d.0, d.1) == (major, minor))
    {
        let reason = format!("character device {major}:{minor} is not one that is carried");
        return Err(Error::Differs { path: shown(&file.path), reason });
    }
    if file.inode == Inode::Handle && flags & libc::O_PATH == 0 {
        let reason = "only O_PATH handles have no type".to_owned();
        return Err(Error::Differs { path: shown(&file.path), reason });
    }
    if flags & libc::O_PATH != 0 {
        return Ok(handle);
    }
    let fd = reopen(proc, &handle, flags).map_err(call("open(2)"))?;
    seek(&fd, file.pos).map_err(call("lseek(2)"))?;
    Ok(fd)
}

/// Goes to a position, if it is not where a fresh descriptor is anyway.
pub(crate) fn seek(fd: impl AsFd, pos: u64) -> Result<(), Errno> {
    if pos == 0 {
        return Ok(());
    }
    lseek(fd, i64::try_from(pos).map_err(|_| Errno::EOVERFLOW)?, Whence::SeekSet).map(drop)
}

/// A file that is only added to: a missing one can be made anew.
fn is_log(file: &PathFile, flags: i32) -> bool {
    file.inode == Inode::Regular
        && flags & libc::O_APPEND != 0
        && flags & libc::O_ACCMODE == libc::O_WRONLY
        && flags & libc::O_PATH == 0
}

fn make_log(file: &PathFile) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .mode(Mode::from_bits_truncate(file.mode & 0o777))
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(nix::fcntl::AT_FDCWD, OsStr::from_bytes(&file.path), how)
}

/// Takes the locks that belong to a description; those somebody else still holds are returned.
pub(crate) fn lock(fd: impl AsFd, locks: &[FileLock]) -> Result<Vec<FileLock>, Errno> {
    let mut late = Vec::new();
    for l in locks {
        let taken = match l.kind {
            LockKind::Flock => descr::flock(fd.as_fd(), l.exclusive),
            LockKind::Ofd => descr::lock_ofd(fd.as_fd(), l.exclusive, l.start, l.len),
            LockKind::Posix => continue, // belongs to a process: taken there
        };
        match taken {
            Ok(()) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => late.push(*l),
            Err(e) => return Err(e),
        }
    }
    Ok(late)
}
