//! Every open file description of an image made again, by a thread that is in the pod's namespaces; descriptors are
//! then given to the processes. What must be done inside a process (`inside`) is handed over as calls.

mod inside;
mod validate;

pub use crate::state::inet::restore::{Repaired, Waking, activate, activate_all};
pub use crate::state::unix::restore::{SocketFile, discard, place};
pub use inside::{Inside, LateInside, Pending, ProcessFds};
pub use validate::validate;

use super::error::Error;
use super::{FileId, FileKind, OpenFile, Port};
use crate::base::Blocker;
use crate::kernel::descr;
use crate::kernel::rawip::Injector;
use crate::remote::Batch;
use crate::state::event::TimerFd;
use crate::state::file::FileLock;
use crate::state::inet::{TcpSocket, TcpState};
use crate::state::object::ObjectId;
use crate::state::unix::UnixSocket;
use crate::state::{event, file, inet, pipe, unix};
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What the makers of descriptions are given.
#[derive(Debug)]
pub struct HandsContext<'a> {
    /// `/proc` of the host, opened before the pod's mount namespace was entered.
    pub proc: BorrowedFd<'a>,
    /// Handles of the image's objects.
    pub objects: &'a HashMap<ObjectId, OwnedFd>,
    /// Channels to the target's monitor; each description of a port is opened anew from these.
    pub ports: &'a HashMap<Port, OwnedFd>,
    /// Host pid of each process, by pid in the pod.
    pub pids: &'a HashMap<i32, i32>,
}

/// A lock that somebody else holds still: the source's own copy, where both hosts see one file system.
#[derive(Debug)]
pub struct LateLock {
    /// The description.
    pub fd: OwnedFd,
    /// The locks to take as soon as they are free.
    pub locks: Vec<FileLock>,
    /// POSIX locks are a process's, and taken in it: its pid in the pod, the descriptor's number there.
    pub of: Option<(i32, i32)>,
}

impl LateLock {
    /// Whether nobody is in the way of the POSIX locks any more.
    pub fn is_free(&self) -> bool {
        self.locks.iter().all(|l| descr::lock_is_free(&self.fd, l.exclusive, l.start, l.len).unwrap_or(false))
    }

    /// Appends the calls that take the POSIX locks to a batch that runs in their process.
    pub fn take_inside(&self, batch: &mut Batch) {
        let Some((_, number)) = self.of else { return };
        for l in &self.locks {
            let data = batch.data(&descr::flock_struct(l.exclusive, l.start, l.len));
            batch.call(libc::SYS_fcntl, &[number.into(), libc::F_SETLK.into(), data.into()]);
        }
    }

    /// Tries those of the description again; true when all are held.
    pub fn retry(&mut self) -> Result<bool, Error> {
        self.locks = file::restore::lock(&self.fd, &self.locks)
            .map_err(Error::restore("taking a file lock", || "a file of the pod".into()))?;
        Ok(self.locks.is_empty())
    }
}

/// Descriptions made.
#[derive(Debug, Default)]
pub struct Made {
    /// By [`FileId`], all of them.
    pub files: HashMap<FileId, OwnedFd>,
    /// Connections in repair, for [`activate`].
    pub repaired: Vec<Repaired>,
    /// Files of sockets, for [`place`] at activation or [`discard`].
    pub socket_files: Vec<SocketFile>,
    /// Locks still to be taken.
    pub late_locks: Vec<LateLock>,
    /// What is different now, in words.
    pub warnings: Vec<String>,
    timers: Vec<(FileId, TimerFd)>,
}

impl Made {
    /// Starts the timers: the last thing before the pod goes on. `realtime_ns`: CLOCK_REALTIME when they were read.
    pub fn arm_timers(&self, realtime_ns: i64) -> Result<(), Error> {
        for (id, timer) in &self.timers {
            if let Some(fd) = self.files.get(id) {
                event::restore::arm(fd, timer, realtime_ns)?;
            }
        }
        Ok(())
    }
}

/// Makes descriptions. The calling thread is in the pod's mount, network, ipc and uts namespaces.
#[derive(Debug)]
pub struct Hands<'a> {
    ctx: &'a HandsContext<'a>,
    injector: Injector,
    made: Made,
}

impl<'a> Hands<'a> {
    /// Checks the list and makes all of it; nothing is left behind after an error but what the kernel closes.
    pub fn make(files: &'a [OpenFile], ctx: &'a HandsContext<'a>) -> Result<Made, Error> {
        validate(files)?;
        // Descriptions, duplicates of connections, pipes held for a while, and what this process has anyway.
        descr::want_descriptors(files.len() as u64 * 3 + 1024);
        let mut hands = Self { ctx, injector: Injector::default(), made: Made::default() };
        match hands.all(files) {
            Ok(()) => Ok(hands.made),
            Err(e) => {
                let root = nix::fcntl::open("/", nix::fcntl::OFlag::O_PATH, nix::sys::stat::Mode::empty());
                if let Ok(root) = root {
                    discard(&root, &hands.made.socket_files);
                }
                Err(e)
            }
        }
    }

    fn all(&mut self, files: &'a [OpenFile]) -> Result<(), Error> {
        let ids = || (0..).map(FileId).zip(files);
        let mut pipes = pipe::restore::Pipes::default();
        for (id, f) in ids() {
            if let Some(fd) = self.one(id, f, &mut pipes)? {
                self.made.files.insert(id, fd);
            }
        }
        drop(pipes);
        self.tcp_sockets(files)?;
        self.unix_sockets(files)?;
        self.epoll_sets(files)?;
        for (id, f) in ids() {
            if f.flags & libc::O_PATH == 0 {
                self.settle(id, f)?;
            }
        }
        Ok(())
    }

    /// A description that depends on no other.
    fn one(
        &mut self,
        id: FileId,
        f: &OpenFile,
        pipes: &mut pipe::restore::Pipes,
    ) -> Result<Option<OwnedFd>, Error> {
        let (proc, warnings) = (self.ctx.proc, &mut self.made.warnings);
        Ok(Some(match &f.kind {
            FileKind::Path(p) => file::restore::open(proc, p, f.flags, warnings)?,
            FileKind::Object { object, pos, .. } => {
                let what = || format!("object {}", object.0);
                let handle = self.ctx.objects.get(object);
                let handle = handle.ok_or_else(|| Error::image(id, format!("{} is unknown", what())))?;
                let fd = file::restore::reopen(proc, handle, f.flags);
                let fd = fd.map_err(Error::restore("open(2)", what))?;
                if f.flags & libc::O_PATH == 0 {
                    file::restore::seek(&fd, *pos).map_err(Error::restore("lseek(2)", what))?;
                }
                fd
            }
            FileKind::Pipe(end) => pipes.end(proc, end, f.flags, warnings)?,
            FileKind::Event(e) => event::restore::eventfd(e)?,
            FileKind::Signal(s) => event::restore::signalfd(s)?,
            FileKind::Timer(t) => {
                self.made.timers.push((id, t.clone()));
                event::restore::timerfd(t)?
            }
            FileKind::Epoll(_) => {
                descr::epoll().map_err(Error::restore("epoll_create1(2)", || "an epoll set".into()))?
            }
            // Whoever it was joined to is not here: as if he had gone.
            FileKind::Port(Port::Session(_)) => {
                let (r, w) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
                    .map_err(Error::restore("pipe2(2)", || "a session's stream".into()))?;
                if f.flags & libc::O_ACCMODE == libc::O_RDONLY { r } else { w }
            }
            FileKind::Port(port) => {
                let fd = self.ctx.ports.get(port);
                let fd = fd.ok_or_else(|| Error::image(id, format!("port {port:?} is not given")))?;
                // O_NONBLOCK: opening waits for nobody; the true flags come at the end.
                file::restore::reopen(proc, fd, f.flags | libc::O_NONBLOCK)
                    .map_err(Error::restore("open(2)", || format!("port {port:?}")))?
            }
            FileKind::Udp(u) => inet::restore::udp(u, &mut self.injector, warnings)?,
            FileKind::Tcp(_) | FileKind::Unix(_) => return Ok(None),
        }))
    }

    /// TCP: what is only bound, then listeners, then connections, as bind(2) allows.
    fn tcp_sockets(&mut self, files: &[OpenFile]) -> Result<(), Error> {
        let rank = |t: &TcpSocket| match t.state {
            TcpState::Closed => 0,
            TcpState::Listen(_) => 1,
            TcpState::SynSent | TcpState::Over { .. } | TcpState::Linked { .. } => 2,
        };
        let all: Vec<(FileId, &TcpSocket)> = (0..)
            .map(FileId)
            .zip(files)
            .filter_map(|(id, f)| if let FileKind::Tcp(t) = &f.kind { Some((id, t)) } else { None })
            .collect();
        for now in 0..=2 {
            let these: Vec<(FileId, &TcpSocket)> = all.iter().filter(|s| rank(s.1) == now).copied().collect();
            let made = inet::restore::tcp_all(&these)?;
            self.made.warnings.extend(made.warnings);
            self.made.files.extend(made.sockets);
            self.made.repaired.extend(made.repaired);
        }
        Ok(())
    }

    fn unix_sockets(&mut self, files: &'a [OpenFile]) -> Result<(), Error> {
        let all: Vec<(FileId, &UnixSocket)> = (0..)
            .map(FileId)
            .zip(files)
            .filter_map(|(id, f)| if let FileKind::Unix(u) = &f.kind { Some((id, u)) } else { None })
            .collect();
        let made = &self.made.files;
        let file = |id: FileId| made.get(&id).and_then(|fd| fd.try_clone().ok());
        let ctx = unix::restore::Context { file: &file, pids: self.ctx.pids };
        let restored = unix::restore::all(&all, &ctx)?;
        self.made.files.extend(restored.sockets);
        self.made.socket_files = restored.files;
        self.made.warnings.extend(restored.warnings);
        Ok(())
    }

    /// Entries that watch a signalfd are left to [`Inside`]: they are tied to the process that adds them.
    fn epoll_sets(&mut self, files: &[OpenFile]) -> Result<(), Error> {
        let made = &self.made.files;
        let mut sets = Vec::new();
        for (id, f) in (0..).map(FileId).zip(files) {
            if let (FileKind::Epoll(epoll), Some(fd)) = (&f.kind, made.get(&id)) {
                sets.push((fd.as_fd(), epoll));
            }
        }
        let signal =
            |id: FileId| matches!(files.get(id.0 as usize), Some(f) if matches!(f.kind, FileKind::Signal(_)));
        event::restore::fill(&sets, |id| made.get(&id).filter(|_| !signal(id)).map(AsFd::as_fd))
    }

    /// Status flags, locks and SO_REUSEADDR.
    fn settle(&mut self, id: FileId, f: &OpenFile) -> Result<(), Error> {
        let what = || format!("descriptor {} of the image", id.0);
        let Some(fd) = self.made.files.get(&id) else {
            return Err(Error::restore("making", what)(Errno::EBADF));
        };
        let locks = match &f.kind {
            FileKind::Path(p) => p.locks.as_slice(),
            FileKind::Object { locks, .. } => locks.as_slice(),
            FileKind::Tcp(t) if !matches!(t.state, TcpState::Linked { .. }) => {
                inet::restore::settle(fd.as_fd(), &t.options)
                    .map_err(Error::restore("setsockopt(2) SO_REUSEADDR", what))?;
                &[]
            }
            FileKind::Udp(u) => {
                inet::restore::settle(fd.as_fd(), &u.options)
                    .map_err(Error::restore("setsockopt(2) SO_REUSEADDR", what))?;
                &[]
            }
            _ => &[],
        };
        // Files were opened with their flags; what was made otherwise gets them now. O_ASYNC waits for its owner.
        let opened = match &f.kind {
            FileKind::Path(_) | FileKind::Object { .. } => f.flags & libc::O_ASYNC == 0,
            // Sockets are made so, and most programs want them so.
            FileKind::Tcp(_) => f.flags == libc::O_RDWR | libc::O_NONBLOCK,
            _ => false,
        };
        if !opened {
            descr::set_flags(fd, f.flags & !libc::O_ASYNC)
                .map_err(Error::restore("fcntl(2) F_SETFL", what))?;
        }
        if !locks.is_empty() {
            let late = file::restore::lock(fd, locks).map_err(Error::restore("taking a file lock", what))?;
            if !late.is_empty() {
                let fd = fd.try_clone().map_err(|_| Error::restore("dup(2)", what)(Errno::EMFILE))?;
                self.made.late_locks.push(LateLock { fd, locks: late, of: None });
            }
        }
        Ok(())
    }
}

/// Whether the files an image has open are there and the same, as the caller's mount namespace shows them: for the
/// target, before anything freezes.
pub fn check_files(files: &[OpenFile]) -> Vec<Blocker> {
    let one = |f: &OpenFile| {
        let FileKind::Path(p) = &f.kind else { return None };
        let missing = |e: Errno| match e {
            Errno::ENOENT if f.flags & libc::O_APPEND != 0 => None,
            Errno::ENOENT | Errno::ENOTDIR => Some(("missing-file", "it does not exist here".to_owned())),
            e => Some(("file", format!("it cannot be looked at: {e}"))),
        };
        let found = match file::restore::find(&p.path) {
            Ok(handle) => match nix::sys::stat::fstat(&handle) {
                // Its size may change until the freeze.
                Ok(st) => file::restore::differs(p, f.flags | libc::O_APPEND, &st)
                    .map(|reason| ("different-file", reason)),
                Err(e) => missing(e),
            },
            Err(e) => missing(e),
        };
        found.map(|(kind, message)| Blocker {
            kind: kind.to_owned(),
            pid: None,
            fd: None,
            path: Some(String::from_utf8_lossy(&p.path).into_owned()),
            message,
            remedy: "put it there, or carry it (-v DIR:carry)".to_owned(),
        })
    };
    files.iter().filter_map(one).collect()
}
