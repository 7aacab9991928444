//! Objects made again, empty: each is a handle the memory room fills and skeletons map or hold.

use super::{Object, ObjectKind};
use crate::kernel::anon;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown, ftruncate, unlink};
use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longest name of a memfd (`MFD_NAME_MAX_LEN`).
const MEMFD_NAME: usize = 249;

/// Why an object could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{}: {call}", path.display())]
pub struct Error {
    /// Which call.
    pub call: &'static str,
    /// The object's name.
    pub path: PathBuf,
    /// Why.
    pub source: Errno,
}

fn failed(call: &'static str, path: &[u8]) -> impl Fn(Errno) -> Error {
    let path = PathBuf::from(OsStr::from_bytes(path));
    move |source| Error { call, path: path.clone(), source }
}

/// True when making the object needs the pod's own view of the file system ([`named`]); else [`nameless`].
pub fn has_name(o: &Object) -> bool {
    matches!(o.kind, ObjectKind::Deleted { .. } | ObjectKind::Private { .. })
}

/// Makes shared anonymous memory or a memfd: a handle open for reading and writing. To be called where `/proc` shows
/// the calling process (not inside the pod).
pub fn nameless(o: &Object) -> Result<OwnedFd, Error> {
    let ObjectKind::Memfd { name, .. } = &o.kind else {
        return anon::shared(o.size).map_err(failed("making shared anonymous memory", b"/dev/zero"));
    };
    let failed = |call| failed(call, name);
    let text = CString::new(&name[..name.len().min(MEMFD_NAME)])
        .map_err(|_| failed("memfd_create")(Errno::EINVAL))?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(text.as_c_str(), flags).map_err(failed("memfd_create"))?;
    settle(&fd, o, name)?;
    Ok(fd)
}

/// Makes a file without a name, or one on a file system of the pod's own; to be called inside the pod's mount
/// namespace. `foreign` holds the `st_dev` of the file systems that are not the pod's own: an image must not be
/// able to name a file there as content it owns.
pub fn named(o: &Object, foreign: &HashSet<u64>) -> Result<OwnedFd, Error> {
    match &o.kind {
        ObjectKind::Deleted { path } => deleted(o, path),
        ObjectKind::Private { path } => private(o, path, foreign),
        _ => nameless(o),
    }
}

/// The file under its old name if that is free, else under one beside it; then the name is taken away.
fn deleted(o: &Object, path: &[u8]) -> Result<OwnedFd, Error> {
    let old = PathBuf::from(OsStr::from_bytes(path));
    let failed = |call| failed(call, path);
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    for n in 0..100u32 {
        let mut beside = old.clone().into_os_string();
        if n > 0 {
            beside.push(format!(".podmig-{}-{n}", std::process::id()));
        }
        match open(beside.as_os_str(), flags, Mode::from_bits_truncate(0o600)) {
            Err(Errno::EEXIST) => {}
            Err(e) => return Err(failed("making a file without a name beside it (open)")(e)),
            Ok(fd) => {
                let settled = settle(&fd, o, path);
                unlink(beside.as_os_str()).map_err(failed("unlink"))?;
                return settled.map(|()| fd);
            }
        }
    }
    Err(failed("making a file without a name beside it (open)")(Errno::EEXIST))
}

fn private(o: &Object, path: &[u8], foreign: &HashSet<u64>) -> Result<OwnedFd, Error> {
    let failed = |call| failed(call, path);
    let dir = Path::new(OsStr::from_bytes(path)).parent().unwrap_or(Path::new("/"));
    let at = nix::sys::stat::stat(dir).map_err(failed("its directory (stat)"))?;
    if foreign.contains(&at.st_dev) {
        return Err(failed("it is not on a file system of the pod's own")(Errno::EXDEV));
    }
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let fd = open(OsStr::from_bytes(path), flags, Mode::from_bits_truncate(0o600)).map_err(failed("open"))?;
    let st = fstat(&fd).map_err(failed("fstat"))?;
    if SFlag::from_bits_truncate(st.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(failed("it is there already and no regular file")(Errno::EEXIST));
    }
    ftruncate(&fd, 0).map_err(failed("ftruncate"))?;
    settle(&fd, o, path)?;
    Ok(fd)
}

/// Size, owner, mode (in this order: a change of owner takes set-id bits away).
fn settle(fd: &OwnedFd, o: &Object, name: &[u8]) -> Result<(), Error> {
    let failed = |call| failed(call, name);
    let size = i64::try_from(o.size).map_err(|_| failed("ftruncate")(Errno::EFBIG))?;
    ftruncate(fd, size).map_err(failed("ftruncate"))?;
    fchown(fd, Some(Uid::from_raw(o.uid)), Some(Gid::from_raw(o.gid))).map_err(failed("fchown"))?;
    fchmod(fd, Mode::from_bits_truncate(o.mode & 0o7777)).map_err(failed("fchmod"))?;
    Ok(())
}

/// Seals of a memfd; after its content and mappings are in place.
pub fn seal(fd: impl AsFd, o: &Object) -> Result<(), Error> {
    let ObjectKind::Memfd { name, seals } = &o.kind else { return Ok(()) };
    let missing = *seals & !(current(&fd, name)?);
    if missing == 0 {
        return Ok(());
    }
    let flag = SealFlag::from_bits_retain(missing as i32);
    fcntl(&fd, FcntlArg::F_ADD_SEALS(flag)).map(drop).map_err(failed("fcntl(F_ADD_SEALS)", name))
}

fn current(fd: impl AsFd, name: &[u8]) -> Result<u32, Error> {
    fcntl(fd, FcntlArg::F_GET_SEALS).map(|s| s as u32).map_err(failed("fcntl(F_GET_SEALS)", name))
}

/// Whether mappings must be made through a handle that cannot write: a memfd sealed against writing has no mapping
/// that could become writable, else the seal is refused.
pub fn maps_read_only(o: &Object) -> bool {
    matches!(o.kind, ObjectKind::Memfd { seals, .. } if seals & libc::F_SEAL_WRITE as u32 != 0)
}

/// A second handle to the same file that can only read; where `/proc` shows the calling process.
pub fn read_only(fd: impl AsFd) -> Result<OwnedFd, Error> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    open(link.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(failed("open", link.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn object(kind: ObjectKind) -> Object {
        Object { kind, size: 8192, mode: 0o640, uid: 7, gid: 8 }
    }

    #[test]
    fn a_memfd_gets_name_owner_and_at_last_its_seals() {
        let seals = (libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SEAL) as u32;
        let o = object(ObjectKind::Memfd { name: b"x y".to_vec(), seals });
        let file = File::from(nameless(&o).unwrap());
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o7777, meta.uid(), meta.gid()), (8192, 0o640, 7, 8));
        file.write_all_at(b"abc", 0).unwrap();
        assert!(maps_read_only(&o));
        let reader = File::from(read_only(&file).unwrap());
        assert!(reader.write_at(b"x", 0).is_err());
        seal(&file, &o).unwrap();
        seal(&file, &o).unwrap();
        assert_eq!(file.write_at(b"x", 0).unwrap_err().raw_os_error(), Some(libc::EPERM));
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert_eq!(link.to_str(), Some("/memfd:x y (deleted)"));
    }

    #[test]
    fn a_deleted_file_leaves_no_name_and_takes_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let o = object(ObjectKind::Deleted { path: path.as_os_str().as_bytes().to_vec() });
        let first = named(&o, &HashSet::new()).unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", first.as_raw_fd())).unwrap();
        assert_eq!(link.to_str().unwrap(), format!("{} (deleted)", path.display()));
        std::fs::write(&path, "the new log").unwrap();
        let second = File::from(named(&o, &HashSet::new()).unwrap());
        assert_eq!((second.metadata().unwrap().nlink(), second.metadata().unwrap().len()), (0, 8192));
        assert_eq!(std::fs::read(&path).unwrap(), b"the new log");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_private_file_must_be_on_the_pods_own_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shm");
        let o = object(ObjectKind::Private { path: path.as_os_str().as_bytes().to_vec() });
        let dev = std::fs::metadata(dir.path()).unwrap().dev();
        assert_eq!(named(&o, &HashSet::from([dev])).unwrap_err().source, Errno::EXDEV);
        assert!(!path.exists());
        let file = File::from(named(&o, &HashSet::new()).unwrap());
        assert_eq!(file.metadata().unwrap().uid(), 7);
        let gone = object(ObjectKind::Private { path: b"/no/such/dir/x".to_vec() });
        assert_eq!(named(&gone, &HashSet::new()).unwrap_err().source, Errno::ENOENT);
    }
}
