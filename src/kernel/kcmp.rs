//! `kcmp(2)`: whether two tasks share a kernel object, and a total order of objects, so that sharing among many
//! is found by sorting.

use nix::errno::Errno;
use std::cmp::Ordering;
use std::os::fd::RawFd;

/// What can be compared of two tasks (`linux/kcmp.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum What {
    /// Address space.
    Vm = 1,
    /// Descriptor table.
    Files = 2,
    /// Current directory, root, umask.
    Fs = 3,
    /// Signal handlers.
    Sighand = 4,
    /// System V semaphore undo list.
    SysvSem = 6,
}

const KCMP_FILE: i32 = 0;
const KCMP_EPOLL_TFD: i32 = 7;

/// `struct kcmp_epoll_slot`.
#[repr(C)]
struct EpollSlot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

const _: () = assert!(size_of::<EpollSlot>() == 12);

fn call(pid1: i32, pid2: i32, kind: i32, a: u64, b: u64) -> Result<Ordering, Errno> {
    // SAFETY: plain numbers, except for KCMP_EPOLL_TFD, whose caller passes a live slot in `b`.
    match Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, pid1, pid2, kind, a, b) })? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        // "Not equal, order unknown": cannot happen for objects of one kind; taken as greater.
        _ => Ok(Ordering::Greater),
    }
}

/// Compares an object of two tasks (as our pid namespace numbers them). Errors: EPERM, ESRCH.
pub fn compare(pid1: i32, pid2: i32, what: What) -> Result<Ordering, Errno> {
    call(pid1, pid2, what as i32, 0, 0)
}

/// Compares the open file descriptions behind two descriptors `(pid, fd)`. The order is total and stays the same
/// until reboot. Errors: EPERM, ESRCH, EBADF.
pub fn file(a: (i32, RawFd), b: (i32, RawFd)) -> Result<Ordering, Errno> {
    call(a.0, b.0, KCMP_FILE, u64::from(a.1 as u32), u64::from(b.1 as u32))
}

/// Whether the entry added to epoll instance `(pid, epfd)` under number `tfd`, the `nth` of that number (counted
/// from 0), watches the description behind `of`. Errors: EPERM, ESRCH, EBADF, ENOENT (no such entry).
pub fn epoll_watches(of: (i32, RawFd), epoll: (i32, RawFd), tfd: RawFd, nth: u32) -> Result<bool, Errno> {
    let slot = EpollSlot { efd: epoll.1 as u32, tfd: tfd as u32, toff: nth };
    let at = (&raw const slot) as u64;
    call(of.0, epoll.0, KCMP_EPOLL_TFD, u64::from(of.1 as u32), at).map(|o| o == Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    use std::os::fd::AsRawFd;

    #[test]
    fn descriptions_are_told_apart_and_ordered() {
        let me = std::process::id() as i32;
        let a = std::fs::File::open("/dev/null").unwrap();
        let b = std::fs::File::open("/dev/null").unwrap();
        let a2 = a.try_clone().unwrap();
        let at = |f: &std::fs::File| (me, f.as_raw_fd());
        assert_eq!(file(at(&a), at(&a2)), Ok(Ordering::Equal));
        let order = file(at(&a), at(&b)).unwrap();
        assert_ne!(order, Ordering::Equal);
        assert_eq!(file(at(&b), at(&a2)), Ok(order.reverse()));
        assert_eq!(compare(me, me, What::Files), Ok(Ordering::Equal));
        assert_ne!(compare(me, 1, What::Vm), Ok(Ordering::Equal));
        assert_eq!(file((me, 1_000_000), at(&a)), Err(Errno::EBADF));
    }

    #[test]
    fn an_epoll_entry_is_found_after_its_number_was_closed() {
        let me = std::process::id() as i32;
        let (r, _w) = nix::unistd::pipe().unwrap();
        let ep = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let number = r.as_raw_fd();
        ep.add(&r, EpollEvent::new(EpollFlags::EPOLLIN, 7)).unwrap();
        let kept = r.try_clone().unwrap();
        drop(r);
        let epoll = (me, ep.0.as_raw_fd());
        assert_eq!(epoll_watches((me, kept.as_raw_fd()), epoll, number, 0), Ok(true));
        assert_eq!(epoll_watches((me, epoll.1), epoll, number, 0), Ok(false));
        assert_eq!(epoll_watches((me, kept.as_raw_fd()), epoll, number, 1), Err(Errno::ENOENT));
    }
}
