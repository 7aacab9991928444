//! Interval timers and POSIX timers. (timerfd is a descriptor: see `event`.)

pub mod collect;
pub mod restore;

use serde::{Deserialize, Serialize};

/// An `itimerval` in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct Itimer {
    /// Time left, 0 = disarmed.
    pub value_ns: u64,
    /// Interval, 0 = once.
    pub interval_ns: u64,
}

/// A timer of `timer_create(2)`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PosixTimer {
    /// Kernel id, kept.
    pub id: i32,
    /// Clock id as given.
    pub clock: i32,
    /// `sigev_notify`.
    pub notify: i32,
    /// Signal number.
    pub signo: i32,
    /// `sigev_value`.
    pub sigval: u64,
    /// Thread for SIGEV_THREAD_ID, else 0.
    pub tid: i32,
    /// Time left and interval.
    pub time: Itimer,
    /// Overruns counted so far.
    pub overrun: i32,
}

/// All timers of a process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct Timers {
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    pub itimers: [Itimer; 3],
    /// POSIX timers by rising id.
    pub posix: Vec<PosixTimer>,
}
