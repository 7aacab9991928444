//! What only the process itself can do about its descriptors: POSIX locks (they belong to it), who gets SIGIO (as it
//! counts pids), and epoll entries on a signalfd (they wake the process that added them). As calls for a batch, run
//! when every descriptor has its final number.

use crate::kernel::descr::flock_struct;
use crate::remote::{Batch, CallIx, Results};
use crate::state::event::EpollItem;
use crate::state::fd::error::Error;
use crate::state::fd::{FdEntry, FileId, FileKind, OpenFile};
use crate::state::file::{FileLock, LockKind};
use nix::errno::Errno;
use std::collections::{HashMap, HashSet};

const F_SETOWN_EX: u64 = 15;
const F_SETSIG: u64 = 10;

/// One process and its descriptor table, as they will be.
#[derive(Clone, Copy, Debug)]
pub struct ProcessFds<'a> {
    /// Pid in the pod.
    pub pid: i32,
    /// Its table.
    pub fds: &'a [FdEntry],
}

enum Act {
    /// (number, lock)
    Lock(i32, FileLock),
    /// (number, owner type, owner, signal, flags)
    Owner(i32, (i32, i32, i32), i32),
    /// (number of the set, number of the signalfd, entry)
    Watch(i32, i32, EpollItem),
}

/// What each process has to do.
#[derive(Default)]
pub struct Inside {
    acts: HashMap<i32, Vec<Act>>,
    warnings: Vec<String>,
}

/// Calls that were put in a batch; look at their results with [`check`](Self::check).
#[derive(Debug, Default)]
pub struct Pending {
    calls: Vec<(CallIx, String, Option<LateInside>)>,
}

/// A POSIX lock that somebody else holds still: (pid in the pod, descriptor, lock).
pub type LateInside = (i32, i32, FileLock);

impl Inside {
    /// Plans it for all processes of an image: each description's owner is set once, by the first that has it.
    pub fn plan(procs: &[ProcessFds], files: &[OpenFile]) -> Self {
        let mut plan = Self::default();
        let mut owned = HashSet::new();
        let mut watched: HashSet<FileId> = HashSet::new();
        for p in procs {
            let mut locked = HashSet::new();
            for e in p.fds {
                let Some(f) = files.get(e.file.0 as usize) else { continue };
                let acts = plan.acts.entry(p.pid).or_default();
                if (f.owner.1 != 0 || f.owner.2 != 0 || f.flags & libc::O_ASYNC != 0) && owned.insert(e.file)
                {
                    acts.push(Act::Owner(e.fd, f.owner, f.flags));
                }
                let locks = match &f.kind {
                    FileKind::Path(p) => p.locks.as_slice(),
                    FileKind::Object { locks, .. } => locks.as_slice(),
                    _ => &[],
                };
                if locks.iter().any(|l| l.kind == LockKind::Posix && l.pid == p.pid) && locked.insert(e.file)
                {
                    let own = locks.iter().filter(|l| l.kind == LockKind::Posix && l.pid == p.pid);
                    acts.extend(own.map(|l| Act::Lock(e.fd, *l)));
                }
                if let FileKind::Epoll(epoll) = &f.kind
                    && !watched.contains(&e.file)
                {
                    let signals: Vec<_> = epoll.items.iter().filter(|i| is_signalfd(files, i.file)).collect();
                    let (found, missing) = plan_watch(p, e.fd, &signals);
                    if !signals.is_empty() && missing == 0 {
                        plan.acts.entry(p.pid).or_default().extend(found);
                        watched.insert(e.file);
                    }
                }
            }
        }
        plan.warn_unwatched(files, &watched);
        plan
    }

    fn warn_unwatched(&mut self, files: &[OpenFile], watched: &HashSet<FileId>) {
        for (id, f) in (0..).map(FileId).zip(files) {
            if let FileKind::Epoll(epoll) = &f.kind
                && !watched.contains(&id)
                && epoll.items.iter().any(|i| is_signalfd(files, i.file))
            {
                self.warnings.push(
                    "an epoll set watches a signalfd that no process has under its number any more".into(),
                );
            }
        }
    }

    /// What cannot be done, in words.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Appends the calls of one process to a batch that will run in it.
    pub fn calls(&self, pid: i32, batch: &mut Batch) -> Pending {
        let mut pending = Pending::default();
        for act in self.acts.get(&pid).into_iter().flatten() {
            match act {
                Act::Lock(fd, lock) => {
                    let data = batch.data(&flock_struct(lock.exclusive, lock.start, lock.len));
                    let call =
                        batch.call(libc::SYS_fcntl, &[(*fd).into(), libc::F_SETLK.into(), data.into()]);
                    let what = format!("POSIX lock on fd {fd} of pid {pid}");
                    pending.calls.push((call, what, Some((pid, *fd, *lock))));
                }
                Act::Owner(fd, (kind, owner, signal), flags) => {
                    let mut add = |cmd: u64, arg, what: &str| {
                        let call = batch.call(libc::SYS_fcntl, &[(*fd).into(), cmd.into(), arg]);
                        pending.calls.push((call, format!("{what} of fd {fd} of pid {pid}"), None));
                    };
                    if *signal != 0 {
                        add(F_SETSIG, (*signal).into(), "signal");
                    }
                    if *owner != 0 {
                        let bytes = [kind.to_ne_bytes(), owner.to_ne_bytes()].concat();
                        let data = batch.data(&bytes);
                        let call =
                            batch.call(libc::SYS_fcntl, &[(*fd).into(), F_SETOWN_EX.into(), data.into()]);
                        pending.calls.push((call, format!("SIGIO owner of fd {fd} of pid {pid}"), None));
                    }
                    if flags & libc::O_ASYNC != 0 {
                        let keep =
                            flags & (libc::O_ASYNC | libc::O_NONBLOCK | libc::O_APPEND | libc::O_DIRECT);
                        let call =
                            batch.call(libc::SYS_fcntl, &[(*fd).into(), libc::F_SETFL.into(), keep.into()]);
                        pending.calls.push((call, format!("O_ASYNC of fd {fd} of pid {pid}"), None));
                    }
                }
                Act::Watch(epoll, fd, item) => {
                    // struct epoll_event is packed: 4 bytes of events, 8 of data.
                    let mut event = item.events.to_ne_bytes().to_vec();
                    event.extend_from_slice(&item.data.to_ne_bytes());
                    let data = batch.data(&event);
                    let args = [(*epoll).into(), libc::EPOLL_CTL_ADD.into(), (*fd).into(), data.into()];
                    let call = batch.call(libc::SYS_epoll_ctl, &args);
                    pending.calls.push((call, format!("epoll entry {fd} of pid {pid}"), None));
                }
            }
        }
        pending
    }
}

fn is_signalfd(files: &[OpenFile], id: FileId) -> bool {
    files.get(id.0 as usize).is_some_and(|f| matches!(f.kind, FileKind::Signal(_)))
}

fn plan_watch(p: &ProcessFds, epoll: i32, signals: &[&EpollItem]) -> (Vec<Act>, usize) {
    let has = |i: &&&EpollItem| p.fds.iter().any(|e| e.fd == i.tfd && e.file == i.file);
    let found: Vec<Act> =
        signals.iter().filter(has).map(|i| Act::Watch(epoll, i.tfd, (**i).clone())).collect();
    let missing = signals.len() - found.len();
    (found, missing)
}

impl Pending {
    /// Whether there is anything to run.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Looks at the results. POSIX locks that the source still holds are returned.
    pub fn check(&self, results: &Results) -> Result<Vec<LateInside>, Error> {
        let mut late = Vec::new();
        for (call, what, lock) in &self.calls {
            match results.ret(*call) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EACCES) if lock.is_some() => late.extend(*lock),
                Err(e) => {
                    return Err(Error::restore("fcntl(2) or epoll_ctl(2) in the process", || what.clone())(
                        e,
                    ));
                }
            }
        }
        Ok(late)
    }
}
