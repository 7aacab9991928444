//! Anonymous descriptors: eventfd, epoll, signalfd, timerfd.

pub mod collect;
pub mod restore;

use super::fd::FileId;
use super::timer::Itimer;
use serde::{Deserialize, Serialize};

/// eventfd(2).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventFd {
    /// Counter.
    pub count: u64,
    /// EFD_SEMAPHORE.
    pub semaphore: bool,
}

/// One entry of an epoll set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EpollItem {
    /// Descriptor number under which it was added.
    pub tfd: i32,
    /// The file watched (by `kcmp`, since the number may have been closed or used again).
    pub file: FileId,
    /// Event mask with flags; a disarmed EPOLLONESHOT entry shows none.
    pub events: u32,
    /// User data.
    pub data: u64,
}

/// An epoll set. Entries are added in a process that holds it, under the same numbers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Epoll {
    /// Entries.
    pub items: Vec<EpollItem>,
}

/// signalfd(2).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignalFd {
    /// Mask.
    pub mask: u64,
}

/// timerfd_create(2).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TimerFd {
    /// Clock.
    pub clock: i32,
    /// Expirations not yet read.
    pub ticks: u64,
    /// Flags of the last settime.
    pub settime_flags: i32,
    /// Time left (always relative, as fdinfo gives it) and interval.
    pub time: Itimer,
}
