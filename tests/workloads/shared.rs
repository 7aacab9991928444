//! Shared memory between parent and child: anonymous, memfd (mapped, and written by write(2)), /dev/shm.

use crate::{pattern, wait};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, ftruncate, unlink, write};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

const LEN: usize = 64 * 4096;

fn map(fd: Option<&dyn Fd>) -> &'static mut [u8] {
    let (len, prot) = (NonZeroUsize::new(LEN).expect("length"), ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
    // SAFETY: fresh shared mappings where the kernel likes, kept for the life of the process.
    unsafe {
        let at = match fd {
            None => mmap_anonymous(None, len, prot, MapFlags::MAP_SHARED),
            Some(fd) => mmap(None, len, prot, MapFlags::MAP_SHARED, fd.fd(), 0),
        };
        std::slice::from_raw_parts_mut(at.expect("mmap").as_ptr().cast(), LEN)
    }
}

trait Fd {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_>;
}
impl<T: AsFd> Fd for T {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}

fn word(map: &[u8]) -> &AtomicU32 {
    // SAFETY: the map is page-aligned, shared on purpose, and only used through atomics at this place.
    unsafe { &*map.as_ptr().cast() }
}

fn futex(word: &AtomicU32, op: i32, value: u32) {
    // SAFETY: the word lives for the life of the process.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, value, 0, 0, 0) };
}

/// Waits until the word has the value; the waiter sleeps in the kernel, across a migration too.
fn await_value(word: &AtomicU32, value: u32) {
    loop {
        let now = word.load(Ordering::SeqCst);
        if now == value {
            return;
        }
        futex(word, libc::FUTEX_WAIT, now);
    }
}

fn set(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::SeqCst);
    futex(word, libc::FUTEX_WAKE, i32::MAX as u32);
}

pub fn run() {
    let anon = map(None);
    anon[4096..].copy_from_slice(&pattern(1, LEN - 4096));
    let memfd = memfd_create(c"workload", MFdFlags::MFD_ALLOW_SEALING).expect("memfd");
    ftruncate(&memfd, LEN as i64).expect("ftruncate");
    let twice = [map(Some(&memfd)), map(Some(&memfd))];
    twice[0][..100].copy_from_slice(&pattern(2, 100));
    write(&memfd, &pattern(3, 50)).expect("write");
    let path = format!("/dev/shm/workload.{}", std::process::id());
    let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("shm");
    file.set_len(LEN as u64).expect("length");
    let shm = map(Some(&file));
    shm[8192..8292].copy_from_slice(&pattern(4, 100));

    // SAFETY: this program has one thread here.
    let child = match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            await_value(word(anon), 1);
            let whole = anon[4096..] == pattern(1, LEN - 4096)[..] && shm[8192..8292] == pattern(4, 100)[..];
            twice[1][5000] = 77;
            set(word(anon), 2);
            std::process::exit(if whole { 7 } else { 8 });
        }
        ForkResult::Parent { child } => child,
    };
    wait();
    set(word(anon), 1);
    await_value(word(anon), 2);
    assert_eq!(twice[0][5000], 77, "the child's write through another map of the memfd");
    assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 7)), "the child's view");
    assert_eq!(twice[1][..50], pattern(3, 50)[..], "write(2) to the memfd");
    assert_eq!(twice[1][50..100], pattern(2, 100)[50..], "memfd through its other map");
    shm[0] = 9;
    assert_eq!(std::fs::read(&path).expect("shm by name")[0], 9, "/dev/shm file and its map are one");
    unlink(path.as_str()).expect("unlink");
}
