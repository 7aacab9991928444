//! Connections looked at while the pod still runs, so that little is left to ask while it stands still.
//!
//! A connection has some fifty options, each a call. They are read ahead, and a BPF program counts the calls of
//! setsockopt(2) in the pod's network namespace meanwhile: if none came, what was read still holds. Where that cannot be
//! known (no BPF, the host's own namespace, a thread that never stood still), everything is read at the freeze.

use super::is_linked;
use crate::kernel::bpf::SetsockoptWatch;
use crate::kernel::cgroup::Hierarchies;
use crate::kernel::tcp_repair;
use crate::kernel::{procfs, sock};
use crate::state::fd::FileId;
use crate::state::fd::collect::table::Table;
use crate::state::fd::collect::{Class, FdContext, ProcView, Sockets, class, not_in_way};
use crate::state::fd::error::Error;
use crate::state::fd::shares::in_shares;
use crate::state::inet::{SockOpt, options};
use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a thread may take to be seen outside setsockopt(2).
const PATIENCE: Duration = Duration::from_millis(20);

/// What was learnt of one connection.
#[derive(Debug)]
pub(crate) struct Known {
    /// IPv6 socket.
    pub v6: bool,
    /// Options, those that the kernel changes by itself left out.
    pub options: Vec<SockOpt>,
    /// SO_REUSEADDR.
    pub reuseaddr: bool,
    /// Its receive queue was empty.
    empty: bool,
    /// When it was looked at.
    at: Instant,
}

impl Known {
    /// Nothing has come in since it was looked at and nothing is on its way out: the peer knows all there is to know, and
    /// no window that was shut can have been opened behind the hold.
    pub fn is_quiet(&self, now: &tcp_repair::Info) -> bool {
        // The kernel's clock ticks in up to 10 ms.
        let since = self.at.elapsed() + Duration::from_millis(10);
        self.empty && now.all_acknowledged && u128::from(now.received_ms) > since.as_millis()
    }
}

/// Connections of a running pod by inode number.
#[derive(Debug)]
pub struct Ahead {
    watch: SetsockoptWatch,
    count: u64,
    known: Arc<HashMap<u64, Known>>,
}

impl Ahead {
    /// Looks at the connections of a running pod. `None`: it cannot be known whether they stay as they are.
    pub fn look(procs: &[ProcView], ctx: &FdContext) -> Result<Option<Self>, Error> {
        let table = Table::read(procs, true)?;
        let sockets = Sockets::look(ctx, &table)?;
        let Some(watch) = (!sockets.are_the_hosts()).then(|| watch(sockets.cookie())).flatten() else {
            return Ok(None);
        };
        let Ok(count) = watch.count() else { return Ok(None) };
        // A call that was counted before may not have done its work yet.
        if !procs.iter().all(|p| outside(p.host_pid)) {
            return Ok(None);
        }
        let ids: Vec<_> = table.ids().filter(|id| matches!(class(&table, *id), Ok(Class::Tcp))).collect();
        let shares = in_shares(&ids, |share| {
            let one = |id: &FileId| {
                let fd = table.borrow(*id).ok()?;
                let linked = tcp_repair::info(&fd).is_ok_and(|i| is_linked(i.state));
                let plain = not_in_way(&table, *id, ctx, &sockets);
                (linked && plain).then(|| Some((table.desc(*id).st.st_ino, known(&fd)?))).flatten()
            };
            Ok::<Vec<_>, Error>(share.iter().filter_map(one).collect())
        })?;
        Ok(Some(Self { watch, count, known: Arc::new(shares.into_iter().flatten().collect()) }))
    }

    /// What is known, if it still holds.
    pub(crate) fn still(&self) -> Option<Arc<HashMap<u64, Known>>> {
        (self.watch.count() == Ok(self.count)).then(|| self.known.clone())
    }
}

fn watch(cookie: u64) -> Option<SetsockoptWatch> {
    // The root: a connection that came by a move belongs to the group of who made it again.
    let root = File::open(Hierarchies::detect().ok()?.v2?).ok()?;
    match SetsockoptWatch::on(&root, cookie) {
        Ok(watch) => Some(watch),
        Err(e) => {
            tracing::debug!("changes of socket options cannot be watched: {e}");
            None
        }
    }
}

/// Whether every thread of a process was seen outside setsockopt(2) (`/proc/P/task/T/syscall`, proc(5)).
fn outside(pid: i32) -> bool {
    let until = Instant::now() + PATIENCE;
    let Ok(tasks) = procfs::Proc::open(pid).and_then(|p| p.numbers("task")) else { return true };
    tasks.into_iter().all(|tid| {
        let path = format!("/proc/{pid}/task/{tid}/syscall");
        loop {
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(e) => {
                    return e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH);
                }
            };
            let number = text.split_whitespace().next().and_then(|n| n.parse::<i64>().ok());
            // `running` is no number.
            if number.is_some_and(|n| n != libc::SYS_setsockopt) {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::yield_now();
        }
    })
}

fn known(fd: &std::os::fd::OwnedFd) -> Option<Known> {
    let at = Instant::now();
    let v6 = sock::parse_inet(&sock::name(fd, false).ok()?)?.is_ipv6();
    let mut warnings = Vec::new();
    let mut all = options::read(fd, options::Family::Tcp(v6), true, (0, 0), &mut warnings);
    all.retain(|o| !options::VOLATILE.contains(&(o.level, o.name)));
    let reuseaddr = sock::get_i32(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR).ok()? != 0;
    let empty = sock::inq(fd).ok()? == 0;
    warnings.is_empty().then_some(Known { v6, options: all, reuseaddr, empty, at })
}
