//! `pidfd_open(2)` and `pidfd_getfd(2)`: a handle to a process, and descriptors borrowed from it.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A handle to one process, proof against reuse of its pid.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
}

impl PidFd {
    /// Opens process `pid` (a thread group leader, as our pid namespace numbers it). Errors: ESRCH, EINVAL, EMFILE.
    pub fn open(pid: i32) -> Result<Self, Errno> {
        // SAFETY: no pointers; the result is a new descriptor owned by us.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        // SAFETY: just made (O_CLOEXEC by the kernel), nobody else has it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd as RawFd) } })
    }

    /// A duplicate of the process's descriptor number `fd`: the same open file description, so position, flags and
    /// locks are shared. O_PATH descriptors too. Errors: EBADF, EPERM, ESRCH, EMFILE (ours are used up).
    pub fn get_fd(&self, fd: RawFd) -> Result<OwnedFd, Errno> {
        // SAFETY: no pointers; the result is a new descriptor owned by us.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.fd.as_raw_fd(), fd, 0) })?;
        // SAFETY: just made (O_CLOEXEC by the kernel), nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }
}

impl From<PidFd> for OwnedFd {
    fn from(p: PidFd) -> OwnedFd {
        p.fd
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One descriptor of one process. Errors: as [`PidFd::open`] and [`PidFd::get_fd`].
pub fn borrow(pid: i32, fd: RawFd) -> Result<OwnedFd, Errno> {
    PidFd::open(pid)?.get_fd(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_borrowed_descriptor_is_the_same_description() {
        let me = PidFd::open(std::process::id() as i32).unwrap();
        let (r, w) = nix::unistd::pipe().unwrap();
        let w2 = me.get_fd(w.as_raw_fd()).unwrap();
        nix::unistd::write(&w2, b"x").unwrap();
        let mut buf = [0];
        assert_eq!(nix::unistd::read(&r, &mut buf), Ok(1));
        assert_eq!(me.get_fd(1_000_000).unwrap_err(), Errno::EBADF);
        assert_eq!(PidFd::open(i32::MAX).unwrap_err(), Errno::ESRCH);
    }
}
