//! eventfd, signalfd, timerfd and epoll made again.

use super::{Epoll, EpollItem, EventFd, SignalFd, TimerFd};
use crate::kernel::descr;
use crate::kernel::thread::PrivateTable;
use crate::state::fd::FileId;
use crate::state::fd::error::Error;
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bits of an entry that stay when EPOLLONESHOT has fired (`EP_PRIVATE_BITS`).
const PRIVATE: u32 = (libc::EPOLLONESHOT | libc::EPOLLET | libc::EPOLLWAKEUP | libc::EPOLLEXCLUSIVE) as u32;
/// Anything that could be ready.
const ANYTHING: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDHUP) as u32;

/// An eventfd with its counter.
pub(crate) fn eventfd(e: &EventFd) -> Result<OwnedFd, Error> {
    descr::eventfd(e.count, e.semaphore)
        .map_err(Error::restore("eventfd(2)", || format!("count {}", e.count)))
}

/// A signalfd. It reads the signals of whoever reads it: nothing else to carry.
pub(crate) fn signalfd(s: &SignalFd) -> Result<OwnedFd, Error> {
    descr::signalfd(s.mask).map_err(Error::restore("signalfd(2)", || format!("mask {:#x}", s.mask)))
}

/// A timerfd, not running yet.
pub(crate) fn timerfd(t: &TimerFd) -> Result<OwnedFd, Error> {
    descr::timerfd(t.clock).map_err(Error::restore("timerfd_create(2)", || format!("clock {}", t.clock)))
}

/// Starts a timer with the time it had left. One set to a point of CLOCK_REALTIME keeps its point: `realtime_ns` is
/// that clock when the time left was read.
pub(crate) fn arm(fd: impl AsFd, t: &TimerFd, realtime_ns: i64) -> Result<(), Error> {
    let call = |name: &'static str| Error::restore(name, || format!("timer on clock {}", t.clock));
    let fd = fd.as_fd();
    let wall = matches!(t.clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM);
    // An expired periodic timer shows no time left until it is read; it is due again within its interval.
    let left = match t.time.value_ns {
        0 if t.ticks > 0 => t.time.interval_ns,
        left => left,
    };
    if left > 0 {
        let absolute = wall && t.settime_flags & libc::TFD_TIMER_ABSTIME != 0;
        let (flags, value) = if absolute {
            (t.settime_flags, u64::try_from(realtime_ns).unwrap_or(0).saturating_add(left))
        } else {
            (0, left)
        };
        descr::set_timer(fd, flags, value, t.time.interval_ns).map_err(call("timerfd_settime(2)"))?;
    }
    if t.ticks > 0 {
        descr::set_timer_ticks(fd, t.ticks).map_err(call("ioctl(2) TFD_IOC_SET_TICKS"))?;
    }
    Ok(())
}

/// Whether EPOLLONESHOT has fired and the entry waits to be armed again.
fn is_spent(item: &EpollItem) -> bool {
    let kept = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
    item.events & libc::EPOLLONESHOT as u32 != 0 && item.events & !(PRIVATE | kept) == 0
}

/// Fills epoll sets: `sets` are instances with their entries, `files` gives each watched description. All happens in
/// a descriptor table of a thread of its own, in which every number is free to be what an entry calls it.
pub(crate) fn fill(
    sets: &[(BorrowedFd, &Epoll)],
    files: impl Fn(FileId) -> Option<OwnedFd> + Sync,
    skip: impl Fn(FileId) -> bool + Sync,
) -> Result<(), Error> {
    let items = || sets.iter().flat_map(|s| &s.1.items).filter(|i| !skip(i.file));
    let Some(highest) = items().map(|i| i.tfd).max() else { return Ok(()) };
    let call = Error::restore("epoll_ctl(2)", || "an epoll set".into());
    descr::want_descriptors(highest.unsigned_abs() as u64 + 1 + 2 * items().count() as u64 + 4096)
        .map_err(Error::restore("setrlimit(2) RLIMIT_NOFILE", || format!("epoll entry {highest}")))?;
    PrivateTable::run(highest + 1, |table| {
        let mut lifted: HashMap<FileId, OwnedFd> = HashMap::new();
        let mut instances = Vec::with_capacity(sets.len());
        for (fd, epoll) in sets {
            instances.push((table.lift(fd)?, *epoll));
        }
        for item in items() {
            if let std::collections::hash_map::Entry::Vacant(v) = lifted.entry(item.file) {
                v.insert(table.lift(files(item.file).ok_or(Errno::EBADF)?)?);
            }
        }
        for (fd, epoll) in &instances {
            let of = |spent: bool| {
                epoll.items.iter().filter(move |i| is_spent(i) == spent).filter(|i| !skip(i.file))
            };
            // Spent entries first, while nothing else in the set can be ready.
            for item in of(true) {
                table.place(lifted.get(&item.file).ok_or(Errno::EBADF)?, item.tfd)?;
                spend(fd, item)?;
            }
            for item in of(false) {
                table.place(lifted.get(&item.file).ok_or(Errno::EBADF)?, item.tfd)?;
                let events = item.events;
                descr::epoll_add(fd, item.tfd, events, item.data)?;
            }
        }
        Ok(())
    })
    .map_err(call)
}

/// Adds an entry whose EPOLLONESHOT has fired: lets it fire. What is not ready for anything stays armed for errors
/// and hang-ups, which the kernel does not let one turn off.
fn spend(epoll: impl AsFd, item: &EpollItem) -> Result<(), Errno> {
    let epoll = epoll.as_fd();
    descr::epoll_add(epoll, item.tfd, item.events | ANYTHING, item.data)?;
    if descr::epoll_take(epoll, 1)? == 0 {
        descr::epoll_change(epoll, item.tfd, item.events, item.data)?;
    }
    Ok(())
}
