<<<<<<< HEAD
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
=======
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
>>>>>>> collect
    efd: u32,
    tfd: u32,
    toff: u32,
}

<<<<<<< HEAD
const _: () = assert!(size_of::<EpollSlot>() == 12);

fn call(pid1: i32, pid2: i32, kind: i32, a: u64, b: u64) -> Result<Ordering, Errno> {
    // SAFETY: plain numbers, except for KCMP_EPOLL_TFD, whose caller passes a live slot in `b`.
    match Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, pid1, pid2, kind, a, b) })? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        // "Not equal, order unknown": cannot happen for objects of one kind; taken as greater.
=======
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
>>>>>>> collect
        _ => Ok(Ordering::Greater),
    }
}

<<<<<<< HEAD
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
=======
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
>>>>>>> collect
    }
}
