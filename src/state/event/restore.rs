//! eventfd, signalfd, timerfd and epoll made again.

use super::{Epoll, EpollItem, EventFd, SignalFd, TimerFd};
use crate::kernel::descr;
use crate::kernel::thread::PrivateTable;
use crate::state::fd::FileId;
use crate::state::fd::error::Error;
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

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

/// Descriptors we need, by number, in a private table where entries ask for numbers of their own.
struct Arranged<'t> {
    table: &'t PrivateTable,
    /// Where each needed one is.
    place: HashMap<RawFd, RawFd>,
    /// Which needed one is at a number.
    holder: HashMap<RawFd, RawFd>,
}

impl Arranged<'_> {
    /// Brings a needed descriptor (called by the number it had at first) to `to`; what was needed there moves aside.
    fn bring(&mut self, which: RawFd, to: RawFd) -> Result<(), Errno> {
        let from = *self.place.get(&which).ok_or(Errno::EBADF)?;
        if from == to {
            return Ok(());
        }
        if let Some(other) = self.holder.get(&to).copied() {
            let aside = self.table.aside(to)?;
            self.put(other, aside);
        }
        self.table.place(from, to)?;
        self.holder.remove(&from);
        self.put(which, to);
        Ok(())
    }

    fn put(&mut self, which: RawFd, at: RawFd) {
        self.place.insert(which, at);
        self.holder.insert(at, which);
    }

    fn at(&self, which: RawFd) -> Result<BorrowedFd<'_>, Errno> {
        self.place.get(&which).map(|n| self.table.at(*n)).ok_or(Errno::EBADF)
    }
}

/// Fills epoll sets: `sets` are instances with their entries, `files` gives each watched description (`None`: not
/// to be added here). All happens in a descriptor table of a thread of its own, where every number is free to be
/// what an entry calls it.
pub(crate) fn fill<'a>(
    sets: &[(BorrowedFd, &Epoll)],
    files: impl Fn(FileId) -> Option<BorrowedFd<'a>>,
) -> Result<(), Error> {
    let mut work: Vec<(RawFd, RawFd, &EpollItem)> = Vec::new();
    for (fd, epoll) in sets {
        // Spent entries first, while nothing else in the set can be ready.
        let (spent, live): (Vec<&EpollItem>, Vec<_>) = epoll.items.iter().partition(|i| is_spent(i));
        for item in spent.into_iter().chain(live) {
            work.extend(files(item.file).map(|file| (fd.as_raw_fd(), file.as_raw_fd(), item)));
        }
    }
    let Some(highest) = work.iter().map(|w| w.2.tfd).max() else { return Ok(()) };
    descr::want_descriptors(highest.unsigned_abs() as u64 + 64);
    let what = || format!("an epoll set with entries up to number {highest}");
    PrivateTable::run(|table| {
        let mut arranged = Arranged { table, place: HashMap::new(), holder: HashMap::new() };
        for (set, file, _) in &work {
            arranged.put(*set, *set);
            arranged.put(*file, *file);
        }
        for (set, file, item) in work {
            arranged.bring(file, item.tfd)?;
            let set = arranged.at(set)?;
            if is_spent(item) {
                spend(set, item)?;
            } else {
                descr::epoll_add(set, item.tfd, item.events, item.data)?;
            }
        }
        Ok(())
    })
    .map_err(Error::restore("epoll_ctl(2)", what))
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
