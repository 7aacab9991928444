//! Private memory: heap, anonymous maps of every protection, a sparse map, a copied-on-write file page, a deep stack.

use crate::{pattern, wait};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};
use std::num::NonZeroUsize;
use std::ptr::NonNull;

const PAGE: usize = 4096;

fn map(len: usize, flags: MapFlags) -> NonNull<libc::c_void> {
    let len = NonZeroUsize::new(len).expect("length");
    // SAFETY: a fresh mapping where the kernel likes.
    unsafe { mmap_anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }.expect("mmap")
}

fn bytes(at: NonNull<libc::c_void>, len: usize) -> &'static mut [u8] {
    // SAFETY: the caller mapped `len` bytes there, for the life of the process, and uses them from one thread.
    unsafe { std::slice::from_raw_parts_mut(at.as_ptr().cast(), len) }
}

fn protect(at: NonNull<libc::c_void>, len: usize, prot: ProtFlags) {
    // SAFETY: the range was mapped by us; it is not touched against its protection.
    unsafe { mprotect(at, len, prot) }.expect("mprotect");
}

#[inline(never)]
fn deep(depth: usize, seed: u64) -> u64 {
    let mut frame = [0u8; 1000];
    frame.copy_from_slice(&pattern(seed + depth as u64, 1000));
    let below = if depth == 0 {
        wait();
        0
    } else {
        deep(depth - 1, seed)
    };
    assert_eq!(frame[..], pattern(seed + depth as u64, 1000)[..], "stack frame {depth}");
    below + 1
}

pub fn run() {
    let heap: Vec<Vec<u8>> = (0..200).map(|n| pattern(n, 40_000)).collect();
    let read_only = map(64 * PAGE, MapFlags::MAP_PRIVATE);
    bytes(read_only, 64 * PAGE).copy_from_slice(&pattern(1000, 64 * PAGE));
    protect(read_only, 64 * PAGE, ProtFlags::PROT_READ);
    let hidden = map(8 * PAGE, MapFlags::MAP_PRIVATE);
    bytes(hidden, 8 * PAGE).copy_from_slice(&pattern(1001, 8 * PAGE));
    protect(hidden, 8 * PAGE, ProtFlags::PROT_NONE);
    let sparse_len = 16 << 30;
    let sparse = bytes(map(sparse_len, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE), sparse_len);
    for n in 0..64 {
        sparse[n * (sparse_len / 64) + n] = n as u8 + 1;
    }
    let zeros = bytes(map(16 * PAGE, MapFlags::MAP_PRIVATE), 16 * PAGE);
    assert!(zeros.iter().all(|b| *b == 0));
    let program = std::fs::File::open("/proc/self/exe").expect("exe");
    let size = NonZeroUsize::new(16 * PAGE).expect("length");
    // SAFETY: a private file mapping where the kernel likes.
    let cow = unsafe {
        nix::sys::mman::mmap(
            None,
            size,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_PRIVATE,
            &program,
            0,
        )
    }
    .expect("mmap");
    let cow = bytes(cow, 16 * PAGE);
    let original = cow.to_vec();
    cow[5 * PAGE + 7] ^= 0xff;

    assert_eq!(deep(300, 5000), 301);

    for (n, block) in heap.iter().enumerate() {
        assert_eq!(*block, pattern(n as u64, 40_000), "heap block {n}");
    }
    assert_eq!(bytes(read_only, 64 * PAGE)[..], pattern(1000, 64 * PAGE)[..], "read-only map");
    protect(hidden, 8 * PAGE, ProtFlags::PROT_READ);
    assert_eq!(bytes(hidden, 8 * PAGE)[..], pattern(1001, 8 * PAGE)[..], "PROT_NONE map");
    for n in 0..64 {
        let at = n * (sparse_len / 64);
        assert_eq!(sparse[at + n], n as u8 + 1, "sparse page {n}");
        assert_eq!(sparse[at + 2 * PAGE], 0, "hole after sparse page {n}");
    }
    assert!(zeros.iter().all(|b| *b == 0), "zero pages");
    for (at, (now, then)) in cow.iter().zip(&original).enumerate() {
        assert_eq!(*now, if at == 5 * PAGE + 7 { then ^ 0xff } else { *then }, "file map at {at:#x}");
    }
}
