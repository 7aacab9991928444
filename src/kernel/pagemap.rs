//! `/proc/P/pagemap`: which pages of a process are populated, written, swapped, backed by a file
//! (Documentation/admin-guide/mm/pagemap.rst). The `PAGEMAP_SCAN` ioctl (Linux 6.7) where the kernel has it,
//! plain 8-byte entries elsewhere.

use crate::base::AddrRange;
use crate::base::addr::PAGE;
use bitflags::bitflags;
use linux_raw_sys::general as raw;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

bitflags! {
    /// Categories of a page, as `PAGEMAP_SCAN` names them.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct PageIs: u64 {
        /// Its mapping is registered for asynchronous write protection.
        const WPALLOWED = raw::PAGE_IS_WPALLOWED as u64;
        /// Not write-protected: written since it last was (true for every page of an unregistered mapping).
        const WRITTEN = raw::PAGE_IS_WRITTEN as u64;
        /// A page of a file or of shared memory, so not copied on write.
        const FILE = raw::PAGE_IS_FILE as u64;
        /// In memory.
        const PRESENT = raw::PAGE_IS_PRESENT as u64;
        /// Swapped out, or any other non-present entry (markers, guards).
        const SWAPPED = raw::PAGE_IS_SWAPPED as u64;
        /// The shared page of zeros.
        const PFNZERO = raw::PAGE_IS_PFNZERO as u64;
        /// Part of a huge page.
        const HUGE = raw::PAGE_IS_HUGE as u64;
        /// Soft-dirty bit set (kernels with CONFIG_MEM_SOFT_DIRTY).
        const SOFT_DIRTY = raw::PAGE_IS_SOFT_DIRTY as u64;
        /// A guard page (Linux 6.15 tells; 6.13 and 6.14 have them and do not).
        const GUARD = raw::PAGE_IS_GUARD as u64;
    }
}

// `struct pm_scan_arg` is twelve u64 and `struct page_region` three: the request number holds the size.
const _: () = assert!(size_of::<raw::pm_scan_arg>() == 96 && size_of::<raw::page_region>() == 24);

mod request {
    use linux_raw_sys::general::pm_scan_arg;
    nix::ioctl_readwrite!(pagemap_scan, b'f', 16, pm_scan_arg);
}

/// What to look for: a page is reported when (categories XOR `invert`) has all of `mask` and, unless `anyof` is
/// empty, one of `anyof`. The result holds the categories in `ret`, and neighbours that agree in them are one region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Query {
    /// Categories whose sense is inverted.
    pub invert: PageIs,
    /// Categories that must all be set (after inversion).
    pub mask: PageIs,
    /// Categories of which one must be set (after inversion).
    pub anyof: PageIs,
    /// Categories to report.
    pub ret: PageIs,
    /// Write-protect the reported pages in the same step, atomically page by page; fails with EPERM where a
    /// mapping in the range is not registered (`PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC`).
    pub protect: bool,
}

/// Pages in a row with the same categories.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Where.
    pub range: AddrRange,
    /// What they are, as far as asked for.
    pub is: PageIs,
}

/// An open `/proc/P/pagemap`: bound to the address space the process had when it was opened (after exec or
/// exit every call fails with ESRCH).
#[derive(Debug)]
pub struct Pagemap {
    file: File,
}

/// Regions fetched by one ioctl. Not more than the kernel's own buffer of 512: beyond it, `walk_end` is left behind
/// when the walk ends after its buffer was emptied once, and the last regions come twice (seen on 6.18).
const REGIONS: usize = 512;

impl Pagemap {
    /// Opens the page map of a process by its pid here. Errors: ENOENT (no such process), EACCES.
    pub fn open(pid: i32) -> std::io::Result<Self> {
        Ok(Self { file: File::open(format!("/proc/{pid}/pagemap"))? })
    }

    /// Walks `range` and hands every matching region, in rising order, to `each`; adjacent regions may have equal
    /// categories (the walk is cut where the buffer is full). Gaps between mappings are skipped.
    /// Errors: EPERM (see [`Query::protect`]; part of the range may have been protected), ESRCH (address space
    /// gone), EINVAL (category unknown to this kernel), ENOTTY (no `PAGEMAP_SCAN`).
    pub fn scan(&self, range: AddrRange, query: &Query, mut each: impl FnMut(Region)) -> Result<(), Errno> {
        let mut out = [raw::page_region { start: 0, end: 0, categories: 0 }; REGIONS];
        let mut from = range.start;
        while from < range.end {
            let mut arg = raw::pm_scan_arg {
                size: size_of::<raw::pm_scan_arg>() as u64,
                flags: if query.protect {
                    u64::from(raw::PM_SCAN_WP_MATCHING | raw::PM_SCAN_CHECK_WPASYNC)
                } else {
                    0
                },
                start: from,
                end: range.end,
                walk_end: 0,
                vec: out.as_mut_ptr() as u64,
                vec_len: REGIONS as u64,
                max_pages: 0,
                category_inverted: query.invert.bits(),
                category_mask: query.mask.bits(),
                category_anyof_mask: query.anyof.bits(),
                return_mask: query.ret.bits(),
            };
            // SAFETY: `arg` and the array it points to outlive the call, `vec_len` is the array's length, and the
            // kernel writes nothing else.
            let found = match unsafe { request::pagemap_scan(self.file.as_raw_fd(), &raw mut arg) } {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            for r in out.iter().take(usize::try_from(found).unwrap_or(0)) {
                if r.start < r.end {
                    each(Region {
                        range: AddrRange::new(r.start, r.end),
                        is: PageIs::from_bits_retain(r.categories),
                    });
                }
            }
            if arg.walk_end <= from {
                return Err(Errno::EIO); // a kernel that does not get on must not hang us
            }
            from = arg.walk_end;
        }
        Ok(())
    }

    /// The same picture from the plain 8-byte entries, for kernels without the ioctl: reports runs of pages that are
    /// present or swapped with PRESENT, SWAPPED, FILE, SOFT_DIRTY and GUARD as far as the entry tells, WRITTEN where
    /// the write-protect bit is clear, PFNZERO where we may see frame numbers (CAP_SYS_ADMIN). HUGE is not known here;
    /// a huge page of zeros shows as FILE. Pages that are neither, of a mapping made since soft-dirty bits were cleared,
    /// come with SOFT_DIRTY alone. Costs 8 bytes read per page of `range`. Errors: ESRCH (address space gone).
    pub fn entries(&self, range: AddrRange, mut each: impl FnMut(Region)) -> Result<(), Errno> {
        let mut buf = vec![0u8; 64 * 1024];
        let mut run = None::<Region>;
        let mut at = range.start;
        let zero = zero_frame();
        while at < range.end {
            let want = (((range.end - at) / PAGE) as usize * 8).min(buf.len());
            let got = match self.file.read_at(&mut buf[..want], at / PAGE * 8) {
                Ok(n) => n / 8 * 8,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))),
            };
            if got == 0 {
                return Err(Errno::ESRCH); // the address space is gone (or `range` lies beyond any)
            }
            for word in buf[..got].as_chunks::<8>().0 {
                let is = entry_categories(u64::from_le_bytes(*word), zero);
                match (&mut run, is) {
                    (Some(r), Some(is)) if r.is == is && r.range.end == at => r.range.end += PAGE,
                    (_, Some(is)) => {
                        if let Some(done) = run.replace(Region { range: AddrRange::new(at, at + PAGE), is }) {
                            each(done);
                        }
                    }
                    (_, None) => {}
                }
                at += PAGE;
            }
        }
        if let Some(done) = run {
            each(done);
        }
        Ok(())
    }
}

/// Bits of an entry that hold the frame number of a page that is present.
const FRAME: u64 = (1 << 55) - 1;

/// Frame number of the page of zeros, 0 where it cannot be seen; asked once.
fn zero_frame() -> u64 {
    static ZERO: OnceLock<u64> = OnceLock::new();
    *ZERO.get_or_init(|| {
        let (prot, flags) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping wherever the kernel likes.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE as usize, prot, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return 0;
        }
        // SAFETY: inside our own mapping. A page that was only read is the page of zeros.
        unsafe { page.cast::<u8>().read_volatile() };
        let mut word = [0; 8];
        let entry = File::open("/proc/self/pagemap")
            .and_then(|map| map.read_exact_at(&mut word, page as u64 / PAGE * 8));
        // SAFETY: our own mapping, not used any more.
        unsafe { libc::munmap(page, PAGE as usize) };
        if entry.is_ok() { u64::from_le_bytes(word) & FRAME } else { 0 }
    })
}

/// Categories of one pagemap entry; `None` when there is nothing to tell. `zero`: the frame of the page
/// of zeros, if known.
fn entry_categories(entry: u64, zero: u64) -> Option<PageIs> {
    let bit = |n: u32, is: PageIs| if entry & (1 << n) != 0 { is } else { PageIs::empty() };
    if entry & (3 << 62) == 0 {
        return (entry & (1 << 55) != 0).then_some(PageIs::SOFT_DIRTY);
    }
    let mut is = bit(63, PageIs::PRESENT) | bit(62, PageIs::SWAPPED) | bit(61, PageIs::FILE);
    is |= bit(58, PageIs::GUARD) | bit(55, PageIs::SOFT_DIRTY);
    if entry & (1 << 57) == 0 {
        is |= PageIs::WRITTEN;
    }
    if zero != 0 && is.contains(PageIs::PRESENT) && entry & FRAME == zero {
        is |= PageIs::PFNZERO;
    }
    Some(is)
}

fn probe(query: Query) -> bool {
    let on_stack = 0u8;
    let here = (&raw const on_stack as u64) / PAGE * PAGE;
    Pagemap::open(std::process::id() as i32)
        .is_ok_and(|map| map.scan(AddrRange::new(here, here + PAGE), &query, |_| {}).is_ok())
}

/// Whether this kernel has `PAGEMAP_SCAN` (6.7); asked once.
pub fn has_scan() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| probe(Query { anyof: PageIs::PRESENT, ret: PageIs::PRESENT, ..Query::default() }))
}

/// Whether `PAGEMAP_SCAN` knows guard pages (6.15); asked once.
pub fn has_guard() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| probe(Query { anyof: PageIs::GUARD, ret: PageIs::GUARD, ..Query::default() }))
}

/// Whether the kernel keeps soft-dirty bits (CONFIG_MEM_SOFT_DIRTY): a page just written has the bit set. Asked once.
pub fn has_soft_dirty() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let page = vec![1u8; 3 * PAGE as usize];
        let inside = (page.as_ptr() as u64).next_multiple_of(PAGE);
        let mut dirty = false;
        let seen = Pagemap::open(std::process::id() as i32).and_then(|map| {
            map.entries(AddrRange::new(inside, inside + PAGE), |r| dirty |= r.is.contains(PageIs::SOFT_DIRTY))
                .map_err(Into::into)
        });
        std::hint::black_box(&page);
        seen.is_ok() && dirty
    })
}

/// Clears the soft-dirty bits of a process (`4` into `/proc/P/clear_refs`); everything written from now on is dirty.
pub fn clear_soft_dirty(pid: i32) -> std::io::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "4")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fresh private mapping: nothing populated (an allocator might hand out used memory).
    struct Fresh {
        base: *mut u8,
        range: AddrRange,
    }

    impl Fresh {
        fn new(len: usize) -> (Pagemap, Self) {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: a new mapping wherever the kernel likes.
            let base = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
            assert_ne!(base, libc::MAP_FAILED);
            // SAFETY: our own mapping. Pages are counted, so none may be huge (EINVAL where there are none).
            unsafe { libc::madvise(base, len, libc::MADV_NOHUGEPAGE) };
            let range = AddrRange::new(base as u64, base as u64 + len as u64);
            (Pagemap::open(std::process::id() as i32).unwrap(), Self { base: base.cast(), range })
        }
        fn touch(&self, page: u64) {
            assert!(page * PAGE < self.range.len());
            // SAFETY: inside our own mapping.
            unsafe { self.base.add((page * PAGE) as usize).write_volatile(1) };
        }
        fn read(&self, page: u64) {
            assert!(page * PAGE < self.range.len());
            // SAFETY: inside our own mapping.
            unsafe { self.base.add((page * PAGE) as usize).read_volatile() };
        }
    }

    impl Drop for Fresh {
        fn drop(&mut self) {
            // SAFETY: our own mapping, not used any more.
            unsafe { libc::munmap(self.base.cast(), self.range.len() as usize) };
        }
    }

    #[test]
    fn scan_and_entries_agree_on_populated_pages() {
        let (map, fresh) = Fresh::new(3 << 20);
        let range = fresh.range;
        for page in [1, 2, 3, 100, 511, 512, 600] {
            fresh.touch(page);
        }
        fresh.read(700);
        let query = Query {
            invert: PageIs::PFNZERO,
            mask: PageIs::PFNZERO,
            anyof: PageIs::PRESENT | PageIs::SWAPPED,
            ret: PageIs::PRESENT,
            ..Query::default()
        };
        let (mut read, mut zero) = (Vec::new(), Vec::new());
        map.entries(range, |r| match r.is {
            is if is.contains(PageIs::PFNZERO) => zero.push(r.range),
            is if is.contains(PageIs::PRESENT) => read.push(r.range),
            _ => {}
        })
        .unwrap();
        let mut scanned = Vec::new();
        if has_scan() {
            map.scan(range, &query, |r| scanned.push(r.range)).unwrap();
        } else {
            scanned.clone_from(&read);
        }
        let pages = |v: &[AddrRange]| -> Vec<u64> {
            v.iter()
                .flat_map(|r| (r.start..r.end).step_by(PAGE as usize))
                .map(|a| (a - range.start) / PAGE)
                .collect()
        };
        assert_eq!(pages(&scanned), pages(&read));
        assert_eq!(pages(&scanned), [1, 2, 3, 100, 511, 512, 600]);
        assert_eq!(pages(&zero), [700]);
    }

    #[test]
    fn more_regions_than_the_buffer_holds() {
        if !has_scan() {
            return; // a kernel before 6.7: nothing to try
        }
        let (map, fresh) = Fresh::new(32 << 20);
        let range = fresh.range;
        let count = (range.len() / PAGE / 2) as usize;
        assert!(count > 3 * REGIONS);
        for i in 0..count as u64 {
            fresh.touch(i * 2);
        }
        let query = Query { anyof: PageIs::PRESENT, ret: PageIs::PRESENT, ..Query::default() };
        let mut seen = 0;
        map.scan(range, &query, |r| seen += r.range.len() / PAGE).unwrap();
        assert_eq!(seen as usize, count);
    }

    #[test]
    fn protecting_unregistered_memory_is_eperm() {
        if !has_scan() {
            return; // a kernel before 6.7: nothing to try
        }
        let (map, fresh) = Fresh::new(4 << 20);
        let range = fresh.range;
        fresh.touch(3);
        let query = Query {
            mask: PageIs::WRITTEN,
            anyof: PageIs::PRESENT,
            ret: PageIs::WRITTEN,
            protect: true,
            ..Query::default()
        };
        assert_eq!(map.scan(range, &query, |_| {}), Err(Errno::EPERM));
    }

    #[test]
    fn soft_dirty_bits_of_an_entry() {
        assert_eq!(entry_categories(0, 0), None);
        assert_eq!(entry_categories(1 << 55, 0), Some(PageIs::SOFT_DIRTY));
        let is = entry_categories(1 << 63 | 1 << 55 | 1 << 57, 0).unwrap();
        assert_eq!(is, PageIs::PRESENT | PageIs::SOFT_DIRTY);
        let is = entry_categories(1 << 63 | 1 << 57 | 77, 77).unwrap();
        assert_eq!(is, PageIs::PRESENT | PageIs::PFNZERO);
        let is = entry_categories(1 << 62 | 1 << 58, 77).unwrap();
        assert_eq!(is, PageIs::SWAPPED | PageIs::GUARD | PageIs::WRITTEN);
    }
}
