//! kcmp(2): whether two tasks share a kernel object.

use nix::errno::Errno;
use std::cmp::Ordering;

/// What is compared (`linux/kcmp.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Open file descriptions of two descriptors.
    File,
    /// Address spaces.
    Vm,
    /// Descriptor tables.
    Files,
    /// Root, working directory, umask.
    Fs,
    /// Signal handlers.
    Sighand,
    /// I/O contexts.
    Io,
    /// System V semaphore undo lists.
    Sysvsem,
}

impl Kind {
    fn number(self) -> libc::c_int {
        match self {
            Kind::File => 0,
            Kind::Vm => 1,
            Kind::Files => 2,
            Kind::Fs => 3,
            Kind::Sighand => 4,
            Kind::Io => 5,
            Kind::Sysvsem => 6,
        }
    }
}

/// Compares objects of two tasks (host pids); `idx1`, `idx2` are descriptors for [`Kind::File`], else ignored.
/// `Equal` = the same object; the order of unequal ones is the kernel's, stable until boot, so that a list can
/// be sorted by it. Errors: ESRCH (a task is gone), EPERM, EBADF, ENOSYS (kernel without kcmp).
pub fn kcmp(pid1: i32, pid2: i32, kind: Kind, idx1: i32, idx2: i32) -> Result<Ordering, Errno> {
    // SAFETY: takes numbers only and touches no memory of ours.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            libc::c_long::from(pid1),
            libc::c_long::from(pid2),
            libc::c_long::from(kind.number()),
            libc::c_long::from(idx1),
            libc::c_long::from(idx2),
        )
    };
    match Errno::result(ret)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        // 3: not equal, and no order: kernels that do not tell (never seen on x86-64).
        _ => Err(Errno::ENOSYS),
    }
}

/// [`EpollSlot`] as the kernel takes it (`struct kcmp_epoll_slot`).
#[repr(C)]
struct RawSlot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

/// Whether descriptor `fd` of `pid1` is the file that epoll descriptor `efd` of `pid2` watches under number `tfd`
/// (KCMP_EPOLL_TFD; `skip` earlier entries of the same number are passed over). ENOENT: no such entry.
pub fn epoll_target(pid1: i32, fd: i32, pid2: i32, efd: i32, tfd: i32, skip: u32) -> Result<Ordering, Errno> {
    let slot = RawSlot { efd: efd.cast_unsigned(), tfd: tfd.cast_unsigned(), toff: skip };
    // SAFETY: `slot` lives over the call, and has the layout of `struct kcmp_epoll_slot` (three u32).
    let ret = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            libc::c_long::from(pid1),
            libc::c_long::from(pid2),
            7 as libc::c_long,
            libc::c_long::from(fd),
            &raw const slot,
        )
    };
    match Errno::result(ret)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        _ => Ok(Ordering::Greater),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_dup_is_the_same_file_and_a_second_open_is_not() {
        let me = std::process::id().cast_signed();
        let a = std::fs::File::open("/dev/null").unwrap();
        let dup = a.try_clone().unwrap();
        let b = std::fs::File::open("/dev/null").unwrap();
        let cmp =
            |x: &std::fs::File, y: &std::fs::File| kcmp(me, me, Kind::File, x.as_raw_fd(), y.as_raw_fd());
        assert_eq!(cmp(&a, &dup), Ok(Ordering::Equal));
        assert_ne!(cmp(&a, &b), Ok(Ordering::Equal));
        assert_eq!(cmp(&a, &b).unwrap(), cmp(&b, &a).unwrap().reverse());
        assert_eq!(kcmp(me, me, Kind::File, 0, 99_999), Err(Errno::EBADF));
    }

    #[test]
    fn a_child_shares_nothing_with_us() {
        let me = std::process::id().cast_signed();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        for kind in [Kind::Vm, Kind::Files, Kind::Fs, Kind::Sighand] {
            assert_eq!(kcmp(me, me, kind, 0, 0), Ok(Ordering::Equal), "{kind:?}");
            assert_ne!(kcmp(me, pid, kind, 0, 0).unwrap(), Ordering::Equal, "{kind:?}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(kcmp(me, pid, Kind::Vm, 0, 0), Err(Errno::ESRCH));
    }

    #[test]
    fn an_epoll_entry_is_traced_to_its_file() {
        let me = std::process::id().cast_signed();
        let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let (a, b) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        let event = nix::sys::epoll::EpollEvent::new(nix::sys::epoll::EpollFlags::EPOLLIN, 1);
        epoll.add(&a.0, event).unwrap();
        let (efd, tfd) = (epoll.0.as_raw_fd(), a.0.as_raw_fd());
        assert_eq!(epoll_target(me, tfd, me, efd, tfd, 0), Ok(Ordering::Equal));
        assert_ne!(epoll_target(me, b.0.as_raw_fd(), me, efd, tfd, 0), Ok(Ordering::Equal));
        assert_eq!(epoll_target(me, tfd, me, efd, b.0.as_raw_fd(), 0), Err(Errno::ENOENT));
    }
}
