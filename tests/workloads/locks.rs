//! Locks: flock, OFD and POSIX locks on files (at a move the source's copy holds them until it is gone, where both hosts see
//! one file system), and mlockall for mappings to come.

use crate::wait;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn open(path: &PathBuf) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("open")
}

fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

fn fcntl(file: &File, command: i32, lock: &mut libc::flock) {
    // SAFETY: the kernel reads and writes one struct flock.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    assert_eq!(done, 0, "fcntl {command}: {}", std::io::Error::last_os_error());
}

/// Who is in the way of a write lock of `other` on one byte: (kind, pid).
fn holder(other: &File, at: i64) -> (i32, i32) {
    let mut lock = range(libc::F_WRLCK, at, 1);
    fcntl(other, libc::F_OFD_GETLK, &mut lock);
    (lock.l_type.into(), lock.l_pid)
}

fn is_flocked(other: &File) -> bool {
    // SAFETY: plain numbers.
    unsafe { libc::flock(other.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) != 0 }
}

/// Whether a new mapping is locked: what is locked cannot be zapped.
fn new_mappings_are_locked() -> bool {
    // SAFETY: a mapping of our own, made and removed here.
    unsafe {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let page = libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0);
        assert_ne!(page, libc::MAP_FAILED, "mmap");
        let zapped = libc::madvise(page, 4096, libc::MADV_DONTNEED) == 0;
        libc::munmap(page, 4096);
        !zapped
    }
}

pub fn run() {
    let path = PathBuf::from(crate::own_path("locks"));
    let (whole, part, own) = (open(&path), open(&path), open(&path));
    // SAFETY: plain numbers.
    unsafe {
        assert_eq!(libc::flock(whole.as_raw_fd(), libc::LOCK_EX), 0);
        assert_eq!(libc::mlockall(libc::MCL_FUTURE), 0);
    }
    fcntl(&part, libc::F_OFD_SETLK, &mut range(libc::F_RDLCK, 10, 20));
    fcntl(&own, libc::F_SETLK, &mut range(libc::F_WRLCK, 100, 0));
    assert!(new_mappings_are_locked(), "mlockall");
    wait();
    assert!(new_mappings_are_locked(), "mlockall(MCL_FUTURE) is forgotten");
    // Never closed before the end: that would end the POSIX locks.
    let other = open(&path);
    let me = std::process::id().cast_signed();
    let wanted = (true, (libc::F_RDLCK, -1), (libc::F_WRLCK, me), (libc::F_UNLCK, 0), (libc::F_UNLCK, 0));
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        let at = |byte| holder(&other, byte);
        let found = (is_flocked(&other), at(15), at(1000), (at(30).0, 0), (at(99).0, 0));
        if found == wanted {
            break;
        }
        assert!(Instant::now() < limit, "locks: {found:?}, not {wanted:?}");
        std::thread::yield_now();
    }
    std::fs::remove_file(&path).expect("clean");
}
