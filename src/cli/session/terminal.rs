//! The caller's terminal in raw mode, and back.

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::os::fd::{AsFd, OwnedFd};

/// A terminal in raw mode: every key goes to the pod. Dropped, it is as before.
pub struct Raw {
    fd: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Puts the terminal in raw mode; `None` if it is none.
    pub fn of(fd: &OwnedFd) -> Option<Raw> {
        let before = tcgetattr(fd.as_fd()).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        let fd = fd.try_clone().ok()?;
        tcsetattr(&fd, SetArg::TCSADRAIN, &raw).ok()?;
        Some(Raw { fd, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(&self.fd, SetArg::TCSADRAIN, &self.before);
    }
}
