//! The caller's terminal in raw mode, and its signals as something to read.

use crate::base::{Failure, Kind};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::{IsTerminal, Stdin, stdin};
use std::os::fd::{AsFd, BorrowedFd};

/// The caller's standard input as a raw terminal; as it was before once dropped.
pub(super) struct Raw {
    input: Stdin,
    before: Termios,
}

impl Raw {
    /// Raw mode, if standard input is a terminal.
    pub(super) fn enter() -> Option<Raw> {
        let input = stdin();
        if !input.is_terminal() {
            return None;
        }
        let before = tcgetattr(&input).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&input, SetArg::TCSADRAIN, &raw).ok()?;
        Some(Raw { input, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.input, SetArg::TCSADRAIN, &self.before);
    }
}

/// The signals a caller in the foreground passes on, blocked and readable.
pub(super) struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Blocks them in the calling thread, which must be the only one to be asked for signals.
    pub(super) fn take() -> Result<Signals, Failure> {
        let failed =
            |e: Errno| Failure::new(Kind::Failed, "signals", format!("cannot be taken: {}", e.desc()));
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGWINCH,
        ] {
            set.add(signal);
        }
        let before = SigSet::thread_get_mask().map_err(failed)?;
        set.thread_block().map_err(failed)?;
        let fd =
            SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map_err(failed)?;
        Ok(Signals { fd, before })
    }

    /// To poll.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next one that came.
    pub(super) fn next(&self) -> Option<i32> {
        self.fd.read_signal().ok().flatten().map(|s| s.ssi_signo.cast_signed())
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // What came too late for the command is nobody's: it must not end us instead.
        while self.next().is_some() {}
        let _ = self.before.thread_set_mask();
    }
}
