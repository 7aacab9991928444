//! Mapped files as the pod's mount namespace names them: found once, hashed once, looked at again at the freeze.
//!
//! A mapping of a file that has a name travels as that name. What the target finds under it must be the same
//! content, or pages that were never copied on write would differ: so the file's hash goes along. Hashing
//! reads the whole file and is done while the program runs; at the freeze only `stat(2)` is called, once a file.

use super::{MapFileId, MappedFile};
use crate::base::{AddrRange, Blocker};
use crate::kernel::procfs::Proc;
use crate::state::error::{Error, blocker};
use crate::state::object::ObjectId;
use crate::state::object::collect::ObjectTable;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag};
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

/// A shared mapping of a larger file than this (bytes) is not hashed: such a file is data, and the truth itself.
const SHARED_HASH_LIMIT: u64 = 64 << 20;

/// What lies behind a mapping with a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behind {
    /// A file with a name.
    File(MapFileId),
    /// Content that belongs to the pod.
    Object(ObjectId),
    /// `/dev/zero`, mapped privately: anonymous memory.
    Zero,
}

/// A file as one mapping needs it: the same inode mapped otherwise is another entry.
#[derive(PartialEq, Eq, Hash, Clone, Debug)]
struct Key {
    dev: u64,
    ino: u64,
    path: Vec<u8>,
    writable: bool,
}

struct Entry {
    file: MappedFile,
    /// A mapping is private, so content that differs would show.
    private: bool,
}

/// A mapping as `maps` shows it, so that the same line is resolved once.
#[derive(PartialEq, Eq, Hash, Clone, Debug)]
struct Shown {
    dev: (u32, u32),
    inode: u64,
    name: Vec<u8>,
    writable: bool,
    shared: bool,
}

/// A content: identity and what changes when it does.
#[derive(PartialEq, Eq, Hash, Clone, Copy, Debug)]
struct Content {
    dev: u64,
    ino: u64,
    size: i64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Content {
    fn of(st: &FileStat) -> Self {
        Self {
            dev: st.st_dev,
            ino: st.st_ino,
            size: st.st_size,
            mtime: (st.st_mtime, st.st_mtime_nsec),
            ctime: (st.st_ctime, st.st_ctime_nsec),
        }
    }
}

/// The question: which mapping of whom.
pub struct Asked<'a> {
    /// The process.
    pub proc: &'a Proc,
    /// Its pid in the pod.
    pub pid: i32,
    /// Where it is mapped.
    pub range: AddrRange,
    /// Device as `maps` shows it.
    pub dev: (u32, u32),
    /// Inode as `maps` shows it.
    pub inode: u64,
    /// Name as `maps` shows it.
    pub name: &'a [u8],
    /// MAP_SHARED.
    pub shared: bool,
    /// MAP_SHARED of a file open for writing.
    pub writable: bool,
}

/// Every file with a name that was met; ids stay the same for the life of the table.
pub struct FileTable {
    /// The pod's init: the pod's names are looked up below its `root`.
    init: Arc<Proc>,
    entries: Vec<Entry>,
    ids: HashMap<Key, MapFileId>,
    shown: HashMap<Shown, Behind>,
    hashes: HashMap<Content, u64>,
}

impl FileTable {
    /// An empty table; `init` is the pod's pid 1.
    pub fn new(init: Arc<Proc>) -> Self {
        Self { init, entries: Vec::new(), ids: HashMap::new(), shown: HashMap::new(), hashes: HashMap::new() }
    }

    /// All files by rising id.
    pub fn files(&self) -> Vec<MappedFile> {
        self.entries.iter().map(|e| e.file.clone()).collect()
    }

    /// Forgets what lines of `maps` meant: names may have gone since. Call before each pass over the processes.
    pub fn new_pass(&mut self) {
        self.shown.clear();
    }

    /// What lies behind a mapping. `Ok(None)`: it cannot be carried, and `found` says why.
    pub fn behind(
        &mut self,
        asked: &Asked<'_>,
        objects: &mut ObjectTable,
        found: &mut Vec<Blocker>,
    ) -> Result<Option<Behind>, Error> {
        let shown = Shown {
            dev: asked.dev,
            inode: asked.inode,
            name: asked.name.to_vec(),
            writable: asked.writable,
            shared: asked.shared,
        };
        if let Some(&known) = self.shown.get(&shown) {
            return Ok(Some(known));
        }
        let behind = self.resolve(asked, objects, found)?;
        if let Some(behind) = behind {
            self.shown.insert(shown, behind);
        }
        Ok(behind)
    }

    fn resolve(
        &mut self,
        asked: &Asked<'_>,
        objects: &mut ObjectTable,
        found: &mut Vec<Blocker>,
    ) -> Result<Option<Behind>, Error> {
        let link = format!("map_files/{:x}-{:x}", asked.range.start, asked.range.end);
        let name = String::from_utf8_lossy(asked.name).into_owned();
        let mut refuse = |kind: &str, message: String, remedy: &str| {
            let b = blocker(kind, asked.pid, message, remedy);
            found.push(Blocker { path: Some(name.clone()), ..b });
            Ok(None)
        };
        let st = match asked.proc.stat(link.as_str()) {
            Ok(st) => st,
            // The file cannot be opened again: a socket's or an AIO context's own memory.
            Err(Errno::ENXIO) => {
                return refuse(
                    "kernel-memory",
                    format!("memory {:?} is shared with the kernel", asked.range),
                    "close it in the program",
                );
            }
            Err(e) => return Err(Error::read(asked.proc.pid(), link)(e)),
        };
        let kind = st.st_mode & SFlag::S_IFMT.bits();
        if kind == SFlag::S_IFCHR.bits() && st.st_rdev == libc::makedev(1, 5) && !asked.shared {
            return Ok(Some(Behind::Zero));
        }
        if kind != SFlag::S_IFREG.bits() {
            let message = format!("memory {:?} maps a device or another kernel object", asked.range);
            return refuse("device-memory", message, "close it in the program");
        }
        let path = format!("/proc/{}/{link}", asked.proc.pid());
        match objects.claim_stat(path.as_ref(), &st) {
            Ok(Some(object)) => return Ok(Some(Behind::Object(object))),
            Ok(None) => {}
            Err(e) => match e.blocker(asked.pid, None) {
                Some(blocker) => {
                    found.push(blocker);
                    return Ok(None);
                }
                None => return Err(e.into()),
            },
        }
        // `maps` cannot tell a newline in a name from the four characters it writes for it.
        let path = if asked.name.contains(&b'\\') {
            asked.proc.link(link.as_str()).map_err(Error::read(asked.proc.pid(), link.as_str()))?
        } else {
            asked.name.to_vec()
        };
        self.named(asked, &path, &link, &st, found).map(|id| id.map(Behind::File))
    }

    /// The executable of a process.
    pub fn executable(
        &mut self,
        proc: &Proc,
        pid: i32,
        found: &mut Vec<Blocker>,
    ) -> Result<Option<MapFileId>, Error> {
        let path = proc.link("exe").map_err(Error::read(proc.pid(), "exe"))?;
        let st = proc.stat("exe").map_err(Error::read(proc.pid(), "exe"))?;
        let refuse = |message: &str, remedy: &str| Blocker {
            path: Some(String::from_utf8_lossy(&path).into_owned()),
            ..blocker("executable", pid, message, remedy)
        };
        if st.st_nlink == 0 {
            found.push(refuse(
                "the program's file was deleted or replaced since it was started",
                "start it again",
            ));
            return Ok(None);
        }
        let range = AddrRange::new(0, 0);
        let asked =
            Asked { proc, pid, range, dev: (0, 0), inode: 0, name: &path, shared: false, writable: false };
        self.named(&asked, &path, "exe", &st, found)
    }

    /// Takes a file with a name into the table, or brings its entry up to date. The name must lead to it in the
    /// pod's mount namespace.
    fn named(
        &mut self,
        asked: &Asked<'_>,
        path: &[u8],
        link: &str,
        st: &FileStat,
        found: &mut Vec<Blocker>,
    ) -> Result<Option<MapFileId>, Error> {
        if !matches!(self.look(path), Ok(at) if (at.st_dev, at.st_ino) == (st.st_dev, st.st_ino)) {
            let message = "the file it maps is no longer found under its name";
            let b = blocker("mapped-file", asked.pid, message, "start the program again");
            found.push(Blocker { path: Some(String::from_utf8_lossy(path).into_owned()), ..b });
            return Ok(None);
        }
        let key = Key { dev: st.st_dev, ino: st.st_ino, path: path.to_vec(), writable: asked.writable };
        let now = MappedFile {
            path: path.to_vec(),
            size: st.st_size.max(0).unsigned_abs(),
            mtime_ns: st.st_mtime.saturating_mul(1_000_000_000).saturating_add(st.st_mtime_nsec),
            writable: asked.writable,
            hash: None,
        };
        let Some(&id) = self.ids.get(&key) else {
            let mut entry = Entry { file: now, private: !asked.shared };
            if entry.wants_hash() {
                entry.file.hash = Some(self.hash(asked.proc, link, st)?);
            }
            let id = MapFileId(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
            self.entries.push(entry);
            self.ids.insert(key, id);
            return Ok(Some(id));
        };
        let entry = &mut self.entries[id.0 as usize];
        let changed = (entry.file.size, entry.file.mtime_ns) != (now.size, now.mtime_ns);
        entry.private |= !asked.shared;
        // A shared file that changes is data, and its own truth: it is not read again while the pod stands still.
        let hash = if entry.private && (changed || entry.file.hash.is_none()) {
            Some(self.hash(asked.proc, link, st)?)
        } else {
            entry.file.hash.filter(|_| !changed)
        };
        self.entries[id.0 as usize].file = MappedFile { hash, ..now };
        Ok(Some(id))
    }

    /// `stat(2)` of a name of the pod.
    fn look(&self, path: &[u8]) -> Result<FileStat, Errno> {
        self.init.stat(below_root(path).as_slice())
    }

    /// xxh3-64 over a whole file, once for each content.
    fn hash<P: nix::NixPath + ?Sized>(&mut self, proc: &Proc, link: &P, st: &FileStat) -> Result<u64, Error> {
        let content = Content::of(st);
        if let Some(&known) = self.hashes.get(&content) {
            return Ok(known);
        }
        let fail = |e: std::io::Error| {
            let source = Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
            Error::Read { what: "a mapped file".to_owned(), pid: proc.pid(), source }
        };
        let fd = proc.open_at(link).map_err(|e| fail(e.into()))?;
        let mut file = std::fs::File::from(fd);
        let mut state = xxhash_rust::xxh3::Xxh3::new();
        let mut buf = vec![0u8; 1 << 20];
        loop {
            match file.read(&mut buf) {
                Ok(0) => break,
                Ok(n) => state.update(&buf[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(fail(e)),
            }
        }
        let hash = state.digest();
        self.hashes.insert(content, hash);
        Ok(hash)
    }
}

impl Entry {
    fn wants_hash(&self) -> bool {
        self.private || (!self.file.writable && self.file.size <= SHARED_HASH_LIMIT)
    }
}

/// A path of the pod, below the `root` link of its init.
fn below_root(path: &[u8]) -> Vec<u8> {
    [b"root/", path.strip_prefix(b"/").unwrap_or(path)].concat()
}
