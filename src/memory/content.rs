//! Which pages have content that must travel (table in the room's `mod.rs`), for address spaces and objects.

use super::{Error, PageSet, Space};
use crate::base::AddrRange;
use crate::kernel::pagemap::{self, PageIs, Pagemap, Query, Region};
use crate::state::mm::{Backing, MmLayout, Vma, VmaFlags};
use crate::state::object::ObjectId;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

/// How the content of a mapping is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Private anonymous: every populated page.
    Anon,
    /// Private, of a file or object: pages copied on write.
    Cow,
    /// Shared, of an object, which has the content.
    Object {
        /// Which.
        object: ObjectId,
        /// Offset of the mapping's first byte in it.
        offset: u64,
    },
    /// None that travels: the file is the truth, or the kernel's own.
    Nothing,
}

/// The class of a mapping.
pub fn class(vma: &Vma) -> Class {
    let shared = vma.flags.contains(VmaFlags::SHARED);
    match &vma.backing {
        _ if vma.flags.contains(VmaFlags::DROPPABLE) => Class::Nothing,
        Backing::Anon if !shared => Class::Anon,
        Backing::File { .. } if !shared => Class::Cow,
        Backing::Object { .. } if !shared => Class::Cow,
        Backing::Object { object, offset } => Class::Object { object: *object, offset: *offset },
        Backing::Anon | Backing::File { .. } | Backing::Vdso | Backing::Vvar | Backing::VvarVclock => {
            Class::Nothing
        }
    }
}

/// What is to be read of one space.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Work {
    /// Whose.
    pub space: Space,
    /// Pages whose bytes are sent.
    pub pages: PageSet,
    /// Pages that are sent as zeros without a look (content that is gone).
    pub zero: PageSet,
}

/// Opens the page map of a process.
pub(super) fn open_pagemap(pid: i32) -> Result<Pagemap, Error> {
    Pagemap::open(pid).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::Gone { pid },
        _ => Error::Open { path: PathBuf::from(format!("/proc/{pid}/pagemap")), source },
    })
}

/// A failed scan as an error of this room.
pub(super) fn scan_error(pid: i32, range: AddrRange, source: Errno) -> Error {
    if source == Errno::ESRCH { Error::Gone { pid } } else { Error::Scan { pid, range, source } }
}

/// The query for populated pages of a private class; guards and the page of zeros have no content.
pub(super) fn populated_query(class: Class) -> Query {
    let mut not = PageIs::PFNZERO;
    if pagemap::has_guard() {
        not |= PageIs::GUARD;
    }
    if class == Class::Cow {
        not |= PageIs::FILE; // costs a look at the page itself, so only where such pages can be
    }
    Query {
        invert: not,
        mask: not,
        anyof: PageIs::PRESENT | PageIs::SWAPPED,
        ret: PageIs::PRESENT,
        protect: false,
    }
}

/// Mappings of the layout as scan ranges: neighbours of one private class become one range of at most `limit` bytes
/// (or one mapping), gaps included, so that thousands of mappings cost few calls. Those of objects stay alone.
pub(super) fn scan_groups(layout: &MmLayout, limit: u64) -> Vec<(Class, AddrRange)> {
    let mut groups: Vec<(Class, AddrRange)> = Vec::new();
    let mut joined = false; // whether the last mapping seen is the end of the last group
    for vma in &layout.vmas {
        let class = class(vma);
        match groups.last_mut() {
            Some((c, range))
                if joined
                    && *c == class
                    && matches!(class, Class::Anon | Class::Cow)
                    && vma.range.end - range.start <= limit =>
            {
                range.end = vma.range.end;
            }
            _ if class != Class::Nothing => groups.push((class, vma.range)),
            _ => {}
        }
        joined = class != Class::Nothing;
    }
    groups
}

/// The private mappings of a layout that can have content.
pub fn private_ranges(layout: &MmLayout) -> PageSet {
    layout.vmas.iter().filter(|v| matches!(class(v), Class::Anon | Class::Cow)).map(|v| v.range).collect()
}

/// The mappings of a layout under which a file (or object) lies that fills what is not copied.
pub fn cow_ranges(layout: &MmLayout) -> PageSet {
    layout.vmas.iter().filter(|v| class(v) == Class::Cow).map(|v| v.range).collect()
}

/// Hands the populated pages of one scan range to `each`, with or without the scan ioctl.
pub(super) fn populated(
    map: &Pagemap,
    class: Class,
    range: AddrRange,
    mut each: impl FnMut(Region),
) -> Result<(), Errno> {
    if pagemap::has_scan() {
        return map.scan(range, &populated_query(class), each);
    }
    map.entries(range, |r| {
        if !r.is.contains(PageIs::GUARD) && !(class == Class::Cow && r.is.contains(PageIs::FILE)) {
            each(r);
        }
    })
}

/// Pages of the process's private mappings that have content. On kernels without `PAGEMAP_SCAN` the page of zeros
/// counts (the reader finds it to be zero).
/// Errors: `Gone`, `Open`, `Scan`.
pub fn content_pages(host_pid: i32, layout: &MmLayout) -> Result<PageSet, Error> {
    let map = open_pagemap(host_pid)?;
    let mut found = PageSet::new();
    for (class, range) in scan_groups(layout, u64::MAX) {
        if matches!(class, Class::Anon | Class::Cow) {
            populated(&map, class, range, |r| found.insert(r.range))
                .map_err(|e| scan_error(host_pid, range, e))?;
        }
    }
    // A mapping that appeared in a gap since the layout was read is not ours to judge.
    Ok(found.intersect(&private_ranges(layout)))
}

/// [`content_pages`] as plain ranges.
pub fn content_runs(host_pid: i32, layout: &MmLayout) -> Result<Vec<AddrRange>, Error> {
    Ok(content_pages(host_pid, layout)?.ranges().to_vec())
}

/// A handle of our own on an object: own offset, so that looking does not move the program's.
/// `write` opens it for writing too.
pub(super) fn reopen(object: ObjectId, fd: &OwnedFd, write: bool) -> Result<File, Error> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let open = std::fs::OpenOptions::new().read(true).write(write).open(path);
    open.map_err(|source| Error::Object { act: "open", object, offset: 0, source })
}

/// Pages of an object that have content (`SEEK_DATA`, `SEEK_HOLE`; lseek(2)). `file` is a handle of our own: its
/// offset is moved.
pub fn object_pages(object: ObjectId, file: &File) -> Result<PageSet, Error> {
    let fail = |offset: i64, e: Errno| Error::Object {
        act: "scan",
        object,
        offset: offset.cast_unsigned(),
        source: e.into(),
    };
    let mut found = PageSet::new();
    let mut at = 0i64;
    loop {
        let start = match lseek(file, at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(found), // nothing but hole until the end
            Err(e) => return Err(fail(at, e)),
        };
        let end = match lseek(file, start, Whence::SeekHole) {
            Ok(end) => end,
            Err(Errno::ENXIO) => return Ok(found), // shrunk in between
            Err(e) => return Err(fail(start, e)),
        };
        if end <= start {
            return Ok(found);
        }
        found.insert(AddrRange::new(start.cast_unsigned(), end.cast_unsigned()));
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::addr::PAGE;
    use std::os::unix::fs::FileExt;

    #[test]
    fn an_objects_content_is_its_data() {
        let fd = nix::sys::memfd::memfd_create("pm-test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let file = reopen(ObjectId(0), &fd, true).unwrap();
        file.set_len(100 * PAGE + 5).unwrap();
        assert!(object_pages(ObjectId(0), &file).unwrap().is_empty());
        for page in [0, 7, 8, 100] {
            file.write_at(b"x", page * PAGE).unwrap();
        }
        let pages: Vec<_> = object_pages(ObjectId(0), &file)
            .unwrap()
            .ranges()
            .iter()
            .map(|r| (r.start / PAGE, r.end / PAGE))
            .collect();
        assert_eq!(pages, [(0, 1), (7, 9), (100, 101)]);
        // The program's own offset stays where it was.
        assert_eq!(lseek(&fd, 0, Whence::SeekCur), Ok(0));
    }
}
