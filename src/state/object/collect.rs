//! Which content belongs to the pod: one table gives out object ids, and holds a handle to each object.
//!
//! Descriptors and mappings of many processes reach the same file; the table knows it by (`st_dev`, `st_ino`)
//! and gives one id however it was met. An id stays the same for the life of the table, so the tree, the
//! descriptors and the memory reader agree.

use super::{Object, ObjectId, ObjectKind};
use crate::base::Blocker;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, stat};
use nix::sys::statfs::fstatfs;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// `statfs.f_type` of hugetlbfs (`linux/magic.h`).
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
/// `statfs.f_type` of `memfd_secret(2)` (`linux/magic.h`).
const SECRETMEM_MAGIC: i64 = 0x5345_434d;
/// What the kernel appends to the path of a file without a name.
const DELETED: &[u8] = b" (deleted)";

/// Why a file could not be taken into the table.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call on the file failed.
    #[error("{call} of {}", path.display())]
    Call {
        /// Which call.
        call: &'static str,
        /// The link in `/proc` through which the file was reached.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// Content that cannot be carried.
    #[error("{name}: {message}")]
    Refused {
        /// Stable word for it (`hugetlb`, `sysv-shm`, …).
        kind: &'static str,
        /// Name the kernel shows.
        name: String,
        /// What is met and why it cannot be carried.
        message: &'static str,
        /// What the user can do.
        remedy: &'static str,
    },
}

impl Error {
    /// The file is not there (any more).
    pub fn is_missing(&self) -> bool {
        matches!(self, Error::Call { source: Errno::ENOENT, .. })
    }

    /// The refusal as a blocker of `pid` (as the pod sees it) and, if through a descriptor, `fd`; `None` for other errors.
    pub fn blocker(&self, pid: i32, fd: Option<i32>) -> Option<Blocker> {
        match self {
            Error::Call { .. } => None,
            Error::Refused { kind, name, message, remedy } => Some(Blocker {
                kind: (*kind).to_owned(),
                pid: Some(pid),
                fd,
                path: Some(name.clone()),
                message: (*message).to_owned(),
                remedy: (*remedy).to_owned(),
            }),
        }
    }
}

struct Entry {
    object: Object,
    handle: OwnedFd,
    /// Met since [`ObjectTable::new_pass`].
    used: bool,
}

/// Every object met so far. Make one per attempt to move, keep it until the memory is sent.
pub struct ObjectTable {
    ids: HashMap<(u64, u64), ObjectId>,
    entries: Vec<Entry>,
    /// `st_dev` of the kernel's own shmem mount (memfd, anonymous shared memory, SysV).
    shmem: u64,
    /// `st_dev` of file systems that only the pod sees.
    private: HashSet<u64>,
}

impl ObjectTable {
    /// An empty table. `private` holds the `st_dev` of the file systems that only the pod sees (its `/dev/shm`,
    /// `--tmpfs`): named files there are objects, too.
    pub fn new(private: HashSet<u64>) -> Result<Self, Error> {
        let own = |call, source| Error::Call { call, path: PathBuf::from("memfd:podmig"), source };
        let probe = memfd_create(c"podmig", MFdFlags::MFD_CLOEXEC).map_err(|e| own("memfd_create(2)", e))?;
        let shmem = fstat(&probe).map_err(|e| own("fstat(2)", e))?.st_dev;
        Ok(Self { ids: HashMap::new(), entries: Vec::new(), shmem, private })
    }

    /// Takes the file behind a magic link (`/proc/P/fd/N`, `/proc/P/map_files/LO-HI`) into the table if its content
    /// belongs to the pod: memfd, anonymous shared memory, a regular file without a name, a regular file on a
    /// private file system. `None`: not a regular file, or one with a name on a file system of the host.
    pub fn claim(&mut self, link: &Path) -> Result<Option<ObjectId>, Error> {
        let st =
            stat(link).map_err(|source| Error::Call { call: "stat(2)", path: link.to_owned(), source })?;
        self.claim_stat(link, &st)
    }

    /// [`claim`](Self::claim) for a caller that has the `stat` of the file already.
    pub fn claim_stat(&mut self, link: &Path, st: &FileStat) -> Result<Option<ObjectId>, Error> {
        if let Some(id) = self.lookup(st.st_dev, st.st_ino) {
            self.entries[id.0 as usize].used = true;
            return Ok(Some(id));
        }
        if !self.is_object(st) {
            return Ok(None);
        }
        let call = |source| Error::Call { call: "readlink(2)", path: link.to_owned(), source };
        let name = std::fs::read_link(link)
            .map_err(|e| call(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?
            .into_os_string()
            .into_vec();
        self.take(link, &name, st).map(Some)
    }

    /// [`claim`](Self::claim) for a file found under its name: `at` is where we reach it, `name` its path in the pod.
    pub fn claim_named(&mut self, at: &Path, name: &[u8], st: &FileStat) -> Result<Option<ObjectId>, Error> {
        if let Some(id) = self.lookup(st.st_dev, st.st_ino) {
            let entry = &mut self.entries[id.0 as usize];
            entry.used = true;
            if let ObjectKind::Private { path } = &mut entry.object.kind
                && path != name
            {
                // Renamed since.
                *path = name.to_vec();
            }
            return Ok(Some(id));
        }
        if self.is_object(st) { self.take(at, name, st).map(Some) } else { Ok(None) }
    }

    fn take(&mut self, link: &Path, name: &[u8], st: &FileStat) -> Result<ObjectId, Error> {
        let call = |call, source| Error::Call { call, path: link.to_owned(), source };
        let handle = open(link, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())
            .map_err(|e| call("open(2)", e))?;
        let kind = self.kind(&handle, st, name, link)?;
        let object = Object {
            kind,
            size: st.st_size.max(0).unsigned_abs(),
            mode: st.st_mode & 0o7777,
            uid: st.st_uid,
            gid: st.st_gid,
        };
        let id = ObjectId(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        self.entries.push(Entry { object, handle, used: true });
        self.ids.insert((st.st_dev, st.st_ino), id);
        Ok(id)
    }

    /// Whether content with this `stat` belongs to the pod; changes nothing.
    pub fn is_object(&self, st: &FileStat) -> bool {
        st.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()
            && (st.st_nlink == 0 || st.st_dev == self.shmem || self.private.contains(&st.st_dev))
    }

    /// The id of a file already in the table.
    pub fn lookup(&self, dev: u64, ino: u64) -> Option<ObjectId> {
        self.ids.get(&(dev, ino)).copied()
    }

    /// What is known of an object; `None` for an id this table did not give out.
    pub fn get(&self, id: ObjectId) -> Option<&Object> {
        self.entries.get(id.0 as usize).map(|e| &e.object)
    }

    /// Whether an object was met since [`ObjectTable::new_pass`].
    pub fn is_used(&self, id: ObjectId) -> bool {
        self.entries.get(id.0 as usize).is_some_and(|e| e.used)
    }

    /// The read-only handle of an object (own position: use `pread`, `lseek` with SEEK_DATA).
    pub fn handle(&self, id: ObjectId) -> Option<BorrowedFd<'_>> {
        self.entries.get(id.0 as usize).map(|e| e.handle.as_fd())
    }

    /// Number of objects; their ids are `0..len`.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Begins a pass over everything that reaches objects; one that is not claimed again is gone from the pod.
    pub fn new_pass(&mut self) {
        self.entries.iter_mut().for_each(|e| e.used = false);
    }

    /// All objects by rising id, sizes, modes, owners and seals as they are now. One that is gone from the pod keeps
    /// its id and becomes an empty memfd without a name.
    pub fn objects(&mut self) -> Result<Vec<Object>, Error> {
        for entry in &mut self.entries {
            let path = || PathBuf::from(String::from_utf8_lossy(entry.object.kind.name()).into_owned());
            let st = fstat(&entry.handle).map_err(|source| Error::Call {
                call: "fstat(2)",
                path: path(),
                source,
            })?;
            entry.object.size = st.st_size.max(0).unsigned_abs();
            entry.object.mode = st.st_mode & 0o7777;
            entry.object.uid = st.st_uid;
            entry.object.gid = st.st_gid;
            match &mut entry.object.kind {
                ObjectKind::Memfd { seals, .. } => {
                    if let Ok(now) = fcntl(&entry.handle, FcntlArg::F_GET_SEALS) {
                        *seals = now.unsigned_abs();
                    }
                }
                ObjectKind::Private { path } if st.st_nlink == 0 => {
                    entry.object.kind = ObjectKind::Deleted { path: std::mem::take(path) };
                }
                _ => {}
            }
        }
        let gone = Object {
            kind: ObjectKind::Memfd { name: Vec::new(), seals: 0 },
            size: 0,
            mode: 0o600,
            uid: 0,
            gid: 0,
        };
        Ok(self.entries.iter().map(|e| if e.used { e.object.clone() } else { gone.clone() }).collect())
    }

    /// The kind of an object, by the file system it is on and the name the kernel shows.
    fn kind(&self, handle: &OwnedFd, st: &FileStat, name: &[u8], link: &Path) -> Result<ObjectKind, Error> {
        let call = |call, source| Error::Call { call, path: link.to_owned(), source };
        let refuse = |kind, message, remedy| {
            Err(Error::Refused { kind, name: String::from_utf8_lossy(name).into_owned(), message, remedy })
        };
        match fstatfs(handle).map_err(|e| call("fstatfs(2)", e))?.filesystem_type().0 {
            HUGETLBFS_MAGIC => {
                return refuse(
                    "hugetlb",
                    "huge page memory cannot be carried yet",
                    "turn huge pages off in the program",
                );
            }
            SECRETMEM_MAGIC => {
                return refuse(
                    "secretmem",
                    "memfd_secret(2) memory cannot be read",
                    "turn secret memory off in the program",
                );
            }
            _ => {}
        }
        if st.st_nlink > 0 {
            // A file of this name, or another name's file: the kernel shows both alike.
            if name.ends_with(DELETED) {
                return refuse(
                    "hard-link",
                    "its name is gone but another name is left",
                    "delete or restore it",
                );
            }
            return Ok(ObjectKind::Private { path: name.to_vec() });
        }
        let path = name.strip_suffix(DELETED).unwrap_or(name).to_vec();
        if st.st_dev != self.shmem {
            return Ok(ObjectKind::Deleted { path });
        }
        if let Some(memfd) = path.strip_prefix(b"/memfd:") {
            let seals = fcntl(handle, FcntlArg::F_GET_SEALS).map_err(|e| call("fcntl(2) F_GET_SEALS", e))?;
            let seals = seals.unsigned_abs();
            return Ok(ObjectKind::Memfd { name: memfd.to_vec(), seals });
        }
        match path.as_slice() {
            b"/dev/zero" => Ok(ObjectKind::AnonShared),
            p if p.starts_with(b"/SYSV") => refuse(
                "sysv-shm",
                "System V shared memory cannot be carried yet",
                "use POSIX shared memory instead",
            ),
            _ => refuse(
                "kernel-memory",
                "memory of a kernel driver cannot be carried",
                "close it in the program",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::SealFlag;
    use nix::unistd::ftruncate;
    use std::os::fd::AsRawFd;

    fn link(fd: &impl AsRawFd) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
    }

    fn table() -> ObjectTable {
        ObjectTable::new(HashSet::new()).unwrap()
    }

    #[test]
    fn a_memfd_is_one_object_however_often_it_is_met() {
        let mut t = table();
        let fd = memfd_create(c"na me", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        ftruncate(&fd, 12345).unwrap();
        let dup = fd.try_clone().unwrap();
        let id = t.claim(&link(&fd)).unwrap().unwrap();
        assert_eq!(t.claim(&link(&dup)).unwrap(), Some(id));
        let other = memfd_create(c"na me", MFdFlags::MFD_CLOEXEC).unwrap();
        let other_id = t.claim(&link(&other)).unwrap().unwrap();
        assert_ne!(other_id, id);
        assert_eq!(t.get(id).unwrap().kind, ObjectKind::Memfd { name: b"na me".to_vec(), seals: 0 });
        // Without MFD_ALLOW_SEALING the kernel seals the seals (memfd_create(2)).
        let sealed = libc::F_SEAL_SEAL.unsigned_abs();
        assert_eq!(
            t.get(other_id).unwrap().kind,
            ObjectKind::Memfd { name: b"na me".to_vec(), seals: sealed }
        );
        ftruncate(&fd, 99).unwrap();
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
        let now = t.objects().unwrap();
        assert_eq!(now[id.0 as usize].size, 99);
        let grow = libc::F_SEAL_GROW.unsigned_abs();
        assert_eq!(now[id.0 as usize].kind, ObjectKind::Memfd { name: b"na me".to_vec(), seals: grow });
    }

    #[test]
    fn what_is_not_met_again_becomes_empty() {
        let mut t = table();
        let [a, b] = [c"a", c"b"].map(|name| memfd_create(name, MFdFlags::MFD_CLOEXEC).unwrap());
        ftruncate(&a, 100).unwrap();
        ftruncate(&b, 200).unwrap();
        let ids = [&a, &b].map(|fd| t.claim(&link(fd)).unwrap().unwrap());
        t.new_pass();
        assert_eq!(t.claim(&link(&b)).unwrap(), Some(ids[1]));
        let sizes: Vec<_> = t.objects().unwrap().iter().map(|o| o.size).collect();
        assert_eq!((sizes, t.is_used(ids[0]), t.is_used(ids[1])), (vec![0, 200], false, true));
    }

    #[test]
    fn a_file_is_an_object_once_its_name_is_gone() {
        let mut t = table();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a (deleted)");
        std::fs::write(&path, b"content").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        assert_eq!(t.claim(&link(&file)).unwrap(), None, "a file with a name stays the host's");
        std::fs::remove_file(&path).unwrap();
        let id = t.claim(&link(&file)).unwrap().unwrap();
        let object = t.get(id).unwrap();
        let want = path.canonicalize().unwrap_or(path).into_os_string().into_vec();
        assert_eq!(object.kind, ObjectKind::Deleted { path: want });
        assert_eq!(object.size, 7);
        drop(file);
        let mut buf = [0u8; 16];
        let n = nix::sys::uio::pread(t.handle(id).unwrap(), &mut buf, 0).unwrap();
        assert_eq!(&buf[..n], b"content", "the handle keeps the content alive");
    }

    #[test]
    fn a_named_file_on_a_private_file_system_is_an_object() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"1").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let mut t = ObjectTable::new([fstat(&file).unwrap().st_dev].into()).unwrap();
        let id = t.claim(&link(&file)).unwrap().unwrap();
        let want = path.into_os_string().into_vec();
        assert_eq!(t.get(id).unwrap().kind, ObjectKind::Private { path: want });
        let dir = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(t.claim(&link(&dir)).unwrap(), None, "a directory is no content");
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let mut t = table();
        if let Ok(fd) = memfd_create(c"big", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB) {
            let error = t.claim(&link(&fd)).unwrap_err();
            let blocker = error.blocker(7, Some(3)).expect("a refusal");
            assert_eq!((blocker.kind.as_str(), blocker.pid, blocker.fd), ("hugetlb", Some(7), Some(3)));
            assert!(!blocker.remedy.is_empty());
        }
        let gone = t.claim(Path::new("/proc/self/fd/999999")).unwrap_err();
        assert!(gone.to_string().contains("/proc/self/fd/999999"), "{gone}");
        assert!(gone.blocker(7, None).is_none());
        let pipe = std::io::pipe().unwrap();
        assert_eq!(t.claim(&link(&pipe.0)).unwrap(), None);
    }
}
