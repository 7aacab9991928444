//! Probes of memory: reading it, tracking it, placing it.

use super::{Idle, in_child, why, why_io};
use crate::base::AddrRange;
use crate::base::addr::PAGE;
use crate::kernel::pagemap::{self, PageIs, Pagemap, Query};
use crate::kernel::uffd::Uffd;
use crate::kernel::vmio;
use linux_raw_sys::prctl::prctl_mm_map;
use nix::errno::Errno;

/// Some bytes of ours, and the whole pages inside of them.
fn pages(n: u64) -> (Vec<u8>, AddrRange) {
    let bytes = vec![1u8; ((n + 1) * PAGE) as usize];
    let start = (bytes.as_ptr() as u64).next_multiple_of(PAGE);
    (bytes, AddrRange::new(start, start + n * PAGE))
}

fn own_pagemap() -> Result<Pagemap, String> {
    Pagemap::open(std::process::id().cast_signed()).map_err(why_io("open /proc/self/pagemap"))
}

/// Memory of another process is read and written.
pub fn process_vm() -> Result<String, String> {
    let child = Idle::start()?;
    let (bytes, range) = pages(1);
    // The child is a copy of us: the page is at the same address, with our content.
    let pid = child.pid().as_raw();
    let mut got = [0u8; 8];
    let part = [AddrRange::new(range.start, range.start + 8)];
    vmio::write(pid, &part, b"podmig!!").map_err(why("process_vm_writev"))?;
    vmio::read(pid, &part, &mut got).map_err(why("process_vm_readv"))?;
    let ours = bytes.iter().all(|b| *b == 1);
    if &got == b"podmig!!" && ours {
        Ok("read and written".to_owned())
    } else {
        Err("what was written was not read".to_owned())
    }
}

/// A mapped file is opened by its mapping, also when it has no name any more.
pub fn map_files() -> Result<String, String> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(why_io("read /proc/self/maps"))?;
    let exe = std::fs::read_link("/proc/self/exe").map_err(why_io("read /proc/self/exe"))?;
    let line = maps.lines().find(|l| l.ends_with(&*exe.to_string_lossy()));
    let range = line.and_then(|l| l.split(' ').next()).ok_or("our program is not in /proc/self/maps")?;
    std::fs::File::open(format!("/proc/self/map_files/{range}"))
        .map_err(why_io("open a file of /proc/self/map_files"))?;
    Ok("opened".to_owned())
}

/// Which pages are there is told page by page.
pub fn pagemap() -> Result<String, String> {
    let (bytes, range) = pages(2);
    let mut seen = 0;
    let each = |r: pagemap::Region| {
        if r.is.contains(PageIs::PRESENT) {
            seen += r.range.len() / PAGE;
        }
    };
    own_pagemap()?.entries(range, each).map_err(why("read /proc/self/pagemap"))?;
    std::hint::black_box(&bytes);
    if seen == 2 { Ok("read".to_owned()) } else { Err(format!("it shows {seen} of 2 pages")) }
}

/// PAGEMAP_SCAN finds exactly the pages present (6.7).
pub fn pagemap_scan() -> Result<String, String> {
    let (bytes, range) = pages(2);
    let mut seen = 0;
    let query = Query { mask: PageIs::PRESENT, ret: PageIs::PRESENT, ..Query::default() };
    own_pagemap()?
        .scan(range, &query, |r| seen += r.range.len() / PAGE)
        .map_err(why("PAGEMAP_SCAN (plain entries are read instead)"))?;
    std::hint::black_box(&bytes);
    match seen {
        2 => Ok(if pagemap::has_guard() { "with guard pages" } else { "without guard pages" }.to_owned()),
        n => Err(format!("it shows {n} of 2 pages")),
    }
}

/// Asynchronous write protection tells which page was written (6.7).
pub fn wp_async() -> Result<String, String> {
    in_child(0, || {
        let (mut bytes, range) = pages(4);
        let uffd = Uffd::create().map_err(why("userfaultfd with WP_ASYNC"))?;
        uffd.register(range).map_err(why("UFFDIO_REGISTER"))?;
        let map = own_pagemap()?;
        let query = Query {
            mask: PageIs::WRITTEN,
            anyof: PageIs::PRESENT | PageIs::SWAPPED,
            ret: PageIs::WRITTEN,
            protect: true,
            ..Query::default()
        };
        map.scan(range, &query, |_| {}).map_err(why("PAGEMAP_SCAN with WP_MATCHING"))?;
        let at = (range.start - bytes.as_ptr() as u64 + 2 * PAGE) as usize;
        bytes[at] = 2;
        std::hint::black_box(&bytes);
        let mut written = Vec::new();
        map.scan(range, &query, |r| written.push(r.range)).map_err(why("PAGEMAP_SCAN with WP_MATCHING"))?;
        let expected = AddrRange::new(range.start + 2 * PAGE, range.start + 3 * PAGE);
        if written == [expected] {
            Ok("tracks single pages".to_owned())
        } else {
            Err(format!("it shows {written:?} for {expected:?}"))
        }
    })
}

/// Soft-dirty bits tell which page was written since they were cleared.
pub fn soft_dirty() -> Result<String, String> {
    in_child(0, || {
        if !pagemap::has_soft_dirty() {
            return Err("the kernel was built without CONFIG_MEM_SOFT_DIRTY".to_owned());
        }
        let (mut bytes, range) = pages(3);
        let pid = std::process::id().cast_signed();
        pagemap::clear_soft_dirty(pid).map_err(why_io("write /proc/self/clear_refs"))?;
        let at = (range.start - bytes.as_ptr() as u64 + PAGE) as usize;
        bytes[at] = 2;
        std::hint::black_box(&bytes);
        let mut dirty = Vec::new();
        let each = |r: pagemap::Region| {
            if r.is.contains(PageIs::PRESENT | PageIs::SOFT_DIRTY) {
                dirty.push(r.range.start);
            }
        };
        own_pagemap()?.entries(range, each).map_err(why("read /proc/self/pagemap"))?;
        if dirty == [range.start + PAGE] {
            Ok("tracks single pages".to_owned())
        } else {
            Err("it does not tell single pages".to_owned())
        }
    })
}

/// The kernel's record of where code, heap, stack and arguments lie is set as a whole.
pub fn set_mm_map() -> Result<String, String> {
    in_child(0, || {
        let stat = std::fs::read_to_string("/proc/self/stat").map_err(why_io("read /proc/self/stat"))?;
        let after = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
        // Fields are numbered from 1 (proc_pid_stat(5)); what follows the name starts with number 3.
        let fields: Vec<&str> = after.split(' ').collect();
        let field = |n: usize| fields.get(n - 3).and_then(|f| f.trim().parse::<u64>().ok()).unwrap_or(0);
        // SAFETY: sbrk(0) only tells where the heap ends.
        let brk = unsafe { libc::sbrk(0) } as u64;
        let map = prctl_mm_map {
            start_code: field(26),
            end_code: field(27),
            start_data: field(45),
            end_data: field(46),
            start_brk: field(47),
            brk,
            start_stack: field(28),
            arg_start: field(48),
            arg_end: field(49),
            env_start: field(50),
            env_end: field(51),
            auxv: std::ptr::null_mut(),
            auxv_size: 0,
            exe_fd: u32::MAX,
        };
        let (at, size) = (std::ptr::from_ref(&map), size_of::<prctl_mm_map>());
        // SAFETY: the kernel reads one prctl_mm_map of the size told; the values are those it has already.
        let ret = unsafe { libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, at, size, 0) };
        Errno::result(ret).map_err(why("PR_SET_MM_MAP"))?;
        Ok("set".to_owned())
    })
}
