//! Descriptor tables as met: every descriptor of every process, and which of them share one description.
//!
//! Cheap facts (device, inode, position, flags) sort descriptions into groups; inside a group `kcmp(2)` keeps a
//! sorted list, so n descriptors cost n·log n comparisons at worst.

use super::ProcView;
use super::check::Class;
use crate::kernel::descr;
use crate::kernel::fdinfo::{FdDir, FdInfo, Lock, LockType};
use crate::kernel::kcmp;
use crate::kernel::pidfd::PidFd;
use crate::state::fd::error::Error;
use crate::state::fd::shares::in_shares;
use crate::state::fd::{FdEntry, FileId};
use crate::state::inet::collect::Known;
use nix::errno::Errno;
use nix::sys::stat::FileStat;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering as Memory};
use std::sync::{Arc, OnceLock};

/// A descriptor somewhere: (host pid, number). Ours, too, for what is in flight.
pub(crate) type At = (i32, RawFd);

/// What `/proc` tells of a descriptor.
type Facts = Result<(FdInfo, Vec<u8>, FileStat), Errno>;

/// One open file description.
#[derive(Debug)]
pub(crate) struct Desc {
    /// The first descriptor met that refers to it.
    pub at: At,
    /// Pid of that process as the pod sees it; `None` for one met in flight only.
    pub pod_pid: Option<i32>,
    /// Every descriptor that refers to it: (index of the process, number).
    pub holders: Vec<(usize, RawFd)>,
    /// fdinfo of the first.
    pub info: FdInfo,
    /// What the kernel calls the file.
    pub link: Vec<u8>,
    /// `stat` of the file; of a socket only device, inode and type.
    pub st: FileStat,
    /// Locks with the holder's pid as the pod sees it (POSIX), else 0.
    pub locks: Vec<(Lock, i32)>,
    /// What it is, once asked.
    pub class: OnceLock<Class>,
    /// Our duplicate: of one that was met in flight, or of a socket, which is asked many things.
    held: OnceLock<Arc<OwnedFd>>,
}

impl Desc {
    /// (`st_dev`, `st_ino`).
    pub fn inode(&self) -> (u64, u64) {
        (self.st.st_dev, self.st.st_ino)
    }
    /// Type bits of `st_mode`.
    pub fn file_type(&self) -> u32 {
        self.st.st_mode & libc::S_IFMT
    }
    /// Opened with O_PATH.
    pub fn is_path(&self) -> bool {
        self.info.flags & libc::O_PATH != 0
    }
    /// The link as text for people.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.link).into_owned()
    }
    /// The magic link through which the file is reached.
    pub fn magic_link(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", self.at.0, self.at.1))
    }
    /// Whether it can be read from.
    pub fn readable(&self) -> bool {
        self.info.flags & libc::O_ACCMODE != libc::O_WRONLY
    }
    /// Whether it can be written to.
    pub fn writable(&self) -> bool {
        self.info.flags & libc::O_ACCMODE != libc::O_RDONLY
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    inode: (u64, u64),
    pos: u64,
    flags: i32,
}

/// All descriptors of a set of processes.
#[derive(Debug)]
pub(crate) struct Table {
    /// The processes.
    pub procs: Vec<ProcView>,
    /// Descriptors of each process, rising.
    pub entries: Vec<Vec<FdEntry>>,
    /// Descriptions, by [`FileId`].
    pub descs: Vec<Desc>,
    /// The processes run while they are looked at.
    pub running: bool,
    /// Ids by inode.
    pub by_inode: HashMap<(u64, u64), Vec<FileId>>,
    /// Connections looked at before the stop, by inode number, all still so.
    ahead: Option<Arc<HashMap<u64, Known>>>,
    groups: HashMap<Key, Vec<FileId>>,
    pids: HashMap<i32, PidFd>,
    own: Option<FdDir>,
    /// How many more duplicates may be kept.
    room: AtomicUsize,
}

/// Most duplicates of sockets kept at a time; what comes after is borrowed anew for each question.
const KEEP: usize = 16 << 10;

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}@{}", self.inode, self.pos)
    }
}

impl Table {
    /// Reads the tables of `procs`, which are stopped (or, `gone_is_fine`, run: a descriptor closed meanwhile is
    /// passed over, as is a process that ended).
    pub fn read(procs: &[ProcView], gone_is_fine: bool) -> Result<Self, Error> {
        Self::read_with(procs, gone_is_fine, None)
    }

    /// The same with what is known of connections.
    pub fn read_with(
        procs: &[ProcView],
        gone_is_fine: bool,
        ahead: Option<Arc<HashMap<u64, Known>>>,
    ) -> Result<Self, Error> {
        let mut table = Self {
            procs: procs.to_vec(),
            entries: Vec::with_capacity(procs.len()),
            descs: Vec::new(),
            running: gone_is_fine,
            by_inode: HashMap::new(),
            ahead,
            groups: HashMap::new(),
            pids: HashMap::new(),
            own: None,
            // A running pod's descriptors are kept no longer than a call lasts.
            room: AtomicUsize::new(if gone_is_fine { 0 } else { KEEP }),
        };
        for (index, proc) in procs.iter().enumerate() {
            let row = match table.read_process(index, *proc, gone_is_fine) {
                Ok(row) => row,
                Err(Error::Process { source: Errno::ENOENT | Errno::ESRCH, .. }) if gone_is_fine => vec![],
                Err(e) => return Err(e),
            };
            table.entries.push(row);
        }
        let sockets = table.descs.iter().filter(|d| d.file_type() == libc::S_IFSOCK).count();
        if !gone_is_fine {
            descr::want_descriptors(sockets.min(KEEP) as u64 + 1024);
        }
        Ok(table)
    }

    fn read_process(
        &mut self,
        index: usize,
        proc: ProcView,
        gone_is_fine: bool,
    ) -> Result<Vec<FdEntry>, Error> {
        let pid = proc.host_pid;
        let dir = FdDir::open(pid).map_err(Error::process("open(2) of /proc/PID/fd", pid))?;
        let handle = PidFd::open(pid).map_err(Error::process("pidfd_open(2)", pid))?;
        self.pids.insert(pid, handle);
        let numbers = dir.numbers().map_err(Error::process("getdents(2) of /proc/PID/fd", pid))?;
        let mut row = Vec::with_capacity(numbers.len());
        let read = |fd: &RawFd| {
            let (link, st) = dir.link_and_stat(*fd)?;
            Ok((dir.info(*fd)?, link, st))
        };
        let facts = in_shares(&numbers, |share| Ok::<Vec<Facts>, Error>(share.iter().map(read).collect()))?;
        for (fd, facts) in numbers.into_iter().zip(facts.into_iter().flatten()) {
            let (info, link, st) = match facts {
                Ok(facts) => facts,
                Err(Errno::ENOENT | Errno::ESRCH) if gone_is_fine => continue,
                Err(e) => return Err(Error::fd("reading fdinfo", (pid, fd))(e)),
            };
            let cloexec = info.cloexec;
            let found = self.intern((pid, fd), info, link, st, Some((index, proc.pod_pid)));
            match found {
                Ok(file) => row.push(FdEntry { fd, file, cloexec }),
                Err(Error::Fd { source: Errno::EBADF | Errno::ESRCH, .. }) if gone_is_fine => {}
                Err(e) => return Err(e),
            }
        }
        Ok(row)
    }

    /// Finds the description behind a descriptor, or adds it.
    fn intern(
        &mut self,
        at: At,
        info: FdInfo,
        link: Vec<u8>,
        st: FileStat,
        holder: Option<(usize, i32)>,
    ) -> Result<FileId, Error> {
        // A socket has one description only: its flags may change, its inode does not.
        let socket = st.st_mode & libc::S_IFMT == libc::S_IFSOCK && info.flags & libc::O_PATH == 0;
        let key = Key { inode: (st.st_dev, st.st_ino), pos: info.pos, flags: info.flags };
        let group = self.groups.entry(key).or_default();
        let mut failed = None;
        let place = group.binary_search_by(|id| {
            if socket {
                return Ordering::Equal;
            }
            let other = self.descs[id.0 as usize].at;
            kcmp::file(other, at).unwrap_or_else(|e| {
                failed.get_or_insert(e);
                Ordering::Equal
            })
        });
        if let Some(e) = failed {
            return Err(Error::fd("kcmp(2)", at)(e));
        }
        let id = match place {
            Ok(n) => group[n],
            Err(n) => {
                let id = FileId(self.descs.len() as u32);
                group.insert(n, id);
                self.by_inode.entry((st.st_dev, st.st_ino)).or_default().push(id);
                let pod_pid = holder.map(|h| h.1);
                let desc = Desc {
                    at,
                    pod_pid,
                    holders: vec![],
                    info: info.clone(),
                    link,
                    st,
                    locks: vec![],
                    class: OnceLock::new(),
                    held: OnceLock::new(),
                };
                self.descs.push(desc);
                id
            }
        };
        let desc = &mut self.descs[id.0 as usize];
        if let Some((index, pod_pid)) = holder {
            desc.holders.push((index, at.1));
            for lock in info.locks {
                let pid = if lock.kind == LockType::Posix { pod_pid } else { 0 };
                if !desc.locks.contains(&(lock, pid)) {
                    desc.locks.push((lock, pid));
                }
            }
        }
        Ok(id)
    }

    /// The description behind a descriptor of our own that was met in flight (in a socket's queue); kept open if
    /// it is new.
    pub fn intern_in_flight(&mut self, fd: OwnedFd) -> Result<FileId, Error> {
        let at = (std::process::id() as i32, fd.as_raw_fd());
        if self.own.is_none() {
            self.own = Some(FdDir::open(at.0).map_err(Error::process("open(2) of /proc/PID/fd", at.0))?);
        }
        let facts = match &self.own {
            Some(dir) => (|| {
                let (link, st) = dir.link_and_stat(at.1)?;
                Ok((dir.info(at.1)?, link, st))
            })(),
            None => Err(Errno::EBADF),
        };
        let (info, link, st) = facts.map_err(Error::fd("reading fdinfo", at))?;
        let before = self.descs.len();
        let id = self.intern(at, info, link, st, None)?;
        if self.descs.len() > before {
            let _ = self.descs[id.0 as usize].held.set(Arc::new(fd));
        }
        Ok(id)
    }

    /// One description.
    pub fn desc(&self, id: FileId) -> &Desc {
        &self.descs[id.0 as usize]
    }

    /// What is known of a connection from before the stop.
    pub fn known(&self, id: FileId) -> Option<&Known> {
        let desc = self.desc(id);
        let socket = desc.file_type() == libc::S_IFSOCK && !desc.is_path();
        self.ahead.as_ref().filter(|_| socket)?.get(&desc.st.st_ino)
    }

    /// Borrows a description as a descriptor of our own.
    pub fn borrow(&self, id: FileId) -> Result<Arc<OwnedFd>, Error> {
        let desc = self.desc(id);
        if let Some(held) = desc.held.get() {
            return Ok(held.clone());
        }
        let got = self.pids.get(&desc.at.0).ok_or(Errno::ESRCH).and_then(|pid| pid.get_fd(desc.at.1));
        let got = Arc::new(got.map_err(Error::fd("pidfd_getfd(2)", desc.at))?);
        let keep = |n: usize| n.checked_sub(1);
        if desc.file_type() == libc::S_IFSOCK
            && self.room.fetch_update(Memory::Relaxed, Memory::Relaxed, keep).is_ok()
        {
            let _ = desc.held.set(got.clone());
        }
        Ok(got)
    }

    /// Pid as the pod sees it.
    pub fn pod_pid(&self, host_pid: i32) -> Option<i32> {
        self.procs.iter().find(|p| p.host_pid == host_pid).map(|p| p.pod_pid)
    }

    /// All ids.
    pub fn ids(&self) -> impl Iterator<Item = FileId> + use<> {
        (0..self.descs.len() as u32).map(FileId)
    }
}
