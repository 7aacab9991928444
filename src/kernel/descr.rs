//! Calls on descriptors of every sort: fcntl(2), pipe(7), eventfd(2), signalfd(2), timerfd_create(2), epoll(7), flock(2).

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const F_GETOWN_EX: i32 = 16;
const F_GETSIG: i32 = 11;
const TFD_IOC_SET_TICKS: libc::Ioctl = 0x4008_5400;

fn fcntl(fd: BorrowedFd, cmd: i32, arg: libc::c_long) -> Result<i32, Errno> {
    // SAFETY: only commands whose argument is a number are passed here.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), cmd, arg) })
}

fn own(fd: i32) -> OwnedFd {
    // SAFETY: the caller passes a descriptor the kernel just made for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Status flags and access mode (`F_GETFL`).
pub fn flags(fd: impl AsFd) -> Result<i32, Errno> {
    fcntl(fd.as_fd(), libc::F_GETFL, 0)
}

/// Sets O_APPEND, O_ASYNC, O_DIRECT, O_NOATIME, O_NONBLOCK (`F_SETFL`); others are passed over.
pub fn set_flags(fd: impl AsFd, flags: i32) -> Result<(), Errno> {
    fcntl(fd.as_fd(), libc::F_SETFL, libc::c_long::from(flags)).map(drop)
}

/// Who gets SIGIO: (F_OWNER_TID 0, F_OWNER_PID 1 or F_OWNER_PGRP 2; id, 0 = nobody), and the signal (0 = SIGIO).
pub fn owner(fd: impl AsFd) -> Result<(i32, i32, i32), Errno> {
    let mut owner = [0i32; 2];
    let fd = fd.as_fd();
    // SAFETY: F_GETOWN_EX writes a struct of two ints.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr()) })?;
    Ok((owner[0], owner[1], fcntl(fd, F_GETSIG, 0)?))
}

/// Capacity of a pipe in bytes.
pub fn pipe_size(fd: impl AsFd) -> Result<u32, Errno> {
    fcntl(fd.as_fd(), libc::F_GETPIPE_SZ, 0).map(i32::unsigned_abs)
}

/// Sets the capacity of a pipe. Errors: EPERM (over /proc/sys/fs/pipe-max-size), EBUSY (holds more).
pub fn set_pipe_size(fd: impl AsFd, bytes: u32) -> Result<(), Errno> {
    fcntl(fd.as_fd(), libc::F_SETPIPE_SZ, libc::c_long::from(bytes)).map(drop)
}

/// `tee(2)` without waiting: copies at most `len` bytes from one pipe to another and leaves them in the first; how
/// many. Errors: EAGAIN (nothing there, or no room).
pub fn tee(from: impl AsFd, to: impl AsFd, len: usize) -> Result<usize, Errno> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::tee(from, to, len, libc::SPLICE_F_NONBLOCK) }).map(|n| n.unsigned_abs())
}

/// A duplicate, close-on-exec, with the lowest free number not below `min`. Errors: EINVAL (`min` over the limit), EMFILE.
pub fn dup_from(fd: impl AsFd, min: RawFd) -> Result<OwnedFd, Errno> {
    fcntl(fd.as_fd(), libc::F_DUPFD_CLOEXEC, libc::c_long::from(min)).map(own)
}

/// What `poll(2)` says at once of POLLIN, POLLOUT, POLLERR, POLLHUP.
pub fn poll_now(fd: impl AsFd) -> Result<i16, Errno> {
    poll_for(fd, libc::POLLIN | libc::POLLOUT, 0)
}

/// Waits for one of `events`, an error or a hang-up, at most `ms` milliseconds; what came (0: nothing).
pub fn poll_for(fd: impl AsFd, events: i16, ms: i32) -> Result<i16, Errno> {
    let mut p = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events, revents: 0 };
    // SAFETY: one live pollfd.
    Errno::result(unsafe { libc::poll(&raw mut p, 1, ms) })?;
    Ok(p.revents)
}

/// `eventfd(2)` holding `count`. Errors: EINVAL (all ones).
pub fn eventfd(count: u64, semaphore: bool) -> Result<OwnedFd, Errno> {
    let flags = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK | if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    // SAFETY: no pointers; the result is a new descriptor.
    let fd = own(Errno::result(unsafe { libc::eventfd(0, flags) })?);
    if count > 0 {
        nix::unistd::write(&fd, &count.to_ne_bytes())?;
    }
    Ok(fd)
}

/// Whether an eventfd that holds `count` is a semaphore, by a read and writes that leave its count as it was: for kernels
/// whose fdinfo does not say (before 6.5). Nobody else may use it meanwhile.
/// Errors: of read(2) and write(2).
pub fn is_semaphore(fd: &OwnedFd, count: u64) -> Result<bool, Errno> {
    if count > u64::MAX / 2 {
        return Ok(false); // nobody counts that far by ones
    }
    let read = || {
        let mut value = [0; 8];
        nix::unistd::read(fd, &mut value).map(|_| u64::from_ne_bytes(value))
    };
    let write = |n: u64| nix::unistd::write(fd, &n.to_ne_bytes()).map(drop);
    if count < 2 {
        write(2)?;
    }
    let semaphore = read()? == 1;
    match (semaphore, count) {
        (true, 0 | 1) => drop(read()?),
        (true, _) => write(1)?,
        (false, 0) => {}
        (false, n) => write(n)?,
    }
    Ok(semaphore)
}

/// `signalfd(2)` with a kernel mask (bit n = signal n + 1).
pub fn signalfd(mask: u64) -> Result<OwnedFd, Errno> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the mask is 8 bytes, which is what the kernel takes; the result is a new descriptor.
    Errno::result(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, flags) })
        .map(|fd| own(fd as i32))
}

/// `timerfd_create(2)`. Errors: EINVAL (no such clock), EPERM (alarm clocks).
pub fn timerfd(clock: i32) -> Result<OwnedFd, Errno> {
    let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
    // SAFETY: no pointers; the result is a new descriptor.
    Errno::result(unsafe { libc::timerfd_create(clock, flags) }).map(own)
}

/// `timerfd_settime(2)` in nanoseconds; forgets expirations. Errors: EINVAL.
pub fn set_timer(fd: impl AsFd, flags: i32, value_ns: u64, interval_ns: u64) -> Result<(), Errno> {
    let time = |ns: u64| libc::timespec {
        tv_sec: (ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (ns % 1_000_000_000) as libc::c_long,
    };
    let new = libc::itimerspec { it_interval: time(interval_ns), it_value: time(value_ns) };
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: `new` is live, the old value is not asked for.
    Errno::result(unsafe { libc::timerfd_settime(fd, flags, &raw const new, std::ptr::null_mut()) }).map(drop)
}

/// Sets the expirations not yet read, more than 0. Errors: ENOTTY (no CONFIG_CHECKPOINT_RESTORE).
pub fn set_timer_ticks(fd: impl AsFd, ticks: u64) -> Result<(), Errno> {
    // SAFETY: the request reads eight bytes.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) })
        .map(drop)
}

/// A clock in nanoseconds.
pub fn clock_ns(clock: i32) -> Result<i64, Errno> {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is writable.
    Errno::result(unsafe { libc::clock_gettime(clock, &raw mut t) })?;
    Ok(t.tv_sec.saturating_mul(1_000_000_000).saturating_add(t.tv_nsec))
}

/// `epoll_create1(2)`.
pub fn epoll() -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers; the result is a new descriptor.
    Errno::result(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(own)
}

/// `epoll_ctl(2)` EPOLL_CTL_ADD of descriptor *number* `tfd`, which the entry keeps. Errors: EBADF, EEXIST, EPERM,
/// ELOOP, EINVAL.
pub fn epoll_add(epoll: impl AsFd, tfd: RawFd, events: u32, data: u64) -> Result<(), Errno> {
    epoll_ctl(epoll.as_fd(), libc::EPOLL_CTL_ADD, tfd, events, data)
}

/// `epoll_ctl(2)` EPOLL_CTL_MOD. Errors: EBADF, ENOENT, EINVAL.
pub fn epoll_change(epoll: impl AsFd, tfd: RawFd, events: u32, data: u64) -> Result<(), Errno> {
    epoll_ctl(epoll.as_fd(), libc::EPOLL_CTL_MOD, tfd, events, data)
}

fn epoll_ctl(epoll: BorrowedFd, op: i32, tfd: RawFd, events: u32, data: u64) -> Result<(), Errno> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: `event` is live.
    Errno::result(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), op, tfd, &raw mut event) }).map(drop)
}

/// Takes at most `max` waiting events off an instance without waiting; how many.
pub fn epoll_take(epoll: impl AsFd, max: usize) -> Result<usize, Errno> {
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; max.clamp(1, 4096)];
    let (fd, n) = (epoll.as_fd().as_raw_fd(), events.len() as i32);
    // SAFETY: `events` has room for `n`.
    Errno::result(unsafe { libc::epoll_wait(fd, events.as_mut_ptr(), n, 0) }).map(|n| n as usize)
}

/// `flock(2)` without waiting. Errors: EWOULDBLOCK (somebody else holds it).
pub fn flock(fd: impl AsFd, exclusive: bool) -> Result<(), Errno> {
    let op = libc::LOCK_NB | if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::flock(fd.as_fd().as_raw_fd(), op) }).map(drop)
}

/// `struct flock` for a lock of `len` bytes (0 = to the end) from `start`, as `F_SETLK` and `F_OFD_SETLK` take it.
pub fn flock_struct(exclusive: bool, start: u64, len: u64) -> Vec<u8> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK } as i16;
    // l_type, l_whence, 4 bytes of padding, l_start, l_len, l_pid, 4 bytes of padding.
    let mut b = vec![0u8; size_of::<libc::flock>()];
    b[..2].copy_from_slice(&kind.to_ne_bytes());
    b[8..16].copy_from_slice(&start.to_ne_bytes());
    b[16..24].copy_from_slice(&len.to_ne_bytes());
    b
}

const _: () = assert!(
    size_of::<libc::flock>() == 32
        && std::mem::offset_of!(libc::flock, l_start) == 8
        && std::mem::offset_of!(libc::flock, l_len) == 16
);

/// A lock that belongs to the description (`F_OFD_SETLK`), without waiting. Errors: EAGAIN (somebody else holds it).
pub fn lock_ofd(fd: impl AsFd, exclusive: bool, start: u64, len: u64) -> Result<(), Errno> {
    let lock = flock_struct(exclusive, start, len);
    // SAFETY: `lock` is a whole struct flock; the kernel copies it, alignment does not matter to it.
    Errno::result(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_SETLK, lock.as_ptr()) }).map(drop)
}

/// Whether a lock could be taken through another description of the same file now (`F_OFD_GETLK`): no description or
/// process holds one in its way.
pub fn lock_is_free(fd: impl AsFd, exclusive: bool, start: u64, len: u64) -> Result<bool, Errno> {
    let mut lock = flock_struct(exclusive, start, len);
    // SAFETY: `lock` is a whole struct flock; the kernel copies it in and out, alignment does not matter to it.
    Errno::result(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_GETLK, lock.as_mut_ptr()) })?;
    Ok(lock[..2] == (libc::F_UNLCK as i16).to_ne_bytes())
}

/// Raises our own limit on descriptors towards `n`, as far as we may: the hard limit only with CAP_SYS_RESOURCE. What
/// does not fit then fails with EMFILE.
pub fn want_descriptors(n: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if soft < n && setrlimit(Resource::RLIMIT_NOFILE, n, hard.max(n)).is_err() {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(n.max(soft)), hard);
    }
}

/// As [`want_descriptors`], and makes the table of descriptors that large now (as far as the limit lets it): in a process of
/// several threads each doubling waits for an RCU grace period, some 10 ms (expand_fdtable in fs/file.c).
pub fn make_room(n: u64) {
    use nix::sys::resource::{Resource, getrlimit};
    want_descriptors(n);
    let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let Ok(file) = std::fs::File::open("/dev/null") else { return };
    let last = i32::try_from(soft.min(n)).unwrap_or(i32::MAX) - 1;
    // Nothing is lost when it fails but time.
    drop(dup_from(&file, last));
}

/// `fcntl(F_SETOWN_EX)` with a process, `F_SETSIG` and O_ASYNC, to have something to carry.
#[cfg(test)]
pub fn set_owner(fd: impl AsFd, pid: i32, signal: i32) -> Result<(), Errno> {
    const F_SETOWN_EX: i32 = 15;
    const F_SETSIG: i32 = 10;
    let owner = [1i32, pid];
    // SAFETY: F_SETOWN_EX reads a struct of two ints.
    Errno::result(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), F_SETOWN_EX, owner.as_ptr()) })?;
    fcntl(fd.as_fd(), F_SETSIG, signal.into())?;
    let flags = flags(fd.as_fd())?;
    set_flags(fd, flags | libc::O_ASYNC)
}

/// `inotify_init1(2)`, to have something to refuse.
#[cfg(test)]
pub fn inotify() -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers; the result is a new descriptor.
    Errno::result(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) }).map(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_ticks() {
        let e = eventfd(u64::from(u32::MAX) + 5, false).unwrap();
        let mut b = [0u8; 8];
        nix::unistd::read(&e, &mut b).unwrap();
        assert_eq!(u64::from_ne_bytes(b), u64::from(u32::MAX) + 5);
        assert!(eventfd(u64::MAX, false).is_err());
        for count in [0, 1, 2, 3, 77] {
            for semaphore in [false, true] {
                let e = eventfd(count, semaphore).unwrap();
                assert_eq!(is_semaphore(&e, count), Ok(semaphore), "{count}");
                let mut sum = 0;
                let mut value = [0; 8];
                while nix::unistd::read(&e, &mut value).is_ok() {
                    sum += u64::from_ne_bytes(value);
                }
                assert_eq!(sum, count);
            }
        }
        let t = timerfd(libc::CLOCK_MONOTONIC).unwrap();
        set_timer(&t, 0, 3_600_000_000_000, 0).unwrap();
        set_timer_ticks(&t, 9).unwrap();
        nix::unistd::read(&t, &mut b).unwrap();
        assert_eq!(u64::from_ne_bytes(b), 9);
    }

    #[test]
    fn owner_and_locks() {
        let (r, _w) = nix::unistd::pipe().unwrap();
        assert_eq!(owner(&r).map(|o| o.1), Ok(0));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let a = std::fs::File::create(&path).unwrap();
        let b = std::fs::File::create(&path).unwrap();
        lock_ofd(&a, true, 5, 10).unwrap();
        assert_eq!(lock_ofd(&b, true, 14, 1), Err(Errno::EAGAIN));
        lock_ofd(&b, true, 15, 0).unwrap();
        flock(&a, false).unwrap();
        assert_eq!(flock(&b, true), Err(Errno::EWOULDBLOCK));
    }
}
