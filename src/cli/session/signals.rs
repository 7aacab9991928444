//! Signals to the caller of a session, taken as they come instead of acting on the process.

use crate::base::{Failure, Kind};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd, BorrowedFd};

/// The signals taken: those a user, a shell or a service manager sends.
const TAKEN: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// They, from the moment of making on.
pub struct Signals(SignalFd);

impl Signals {
    /// Takes them from now on.
    pub fn take() -> Result<Signals, Failure> {
        let failed = |e: Errno| Failure::new(Kind::Failed, "signals", e.desc().to_lowercase());
        let mut set = SigSet::empty();
        TAKEN.into_iter().for_each(|s| set.add(s));
        set.thread_block().map_err(failed)?;
        SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map(Signals)
            .map_err(failed)
    }

    /// To poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next one that came.
    pub fn next(&self) -> Option<i32> {
        self.0.read_signal().ok().flatten().and_then(|info| i32::try_from(info.ssi_signo).ok())
    }
}
