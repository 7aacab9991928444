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

/// Whether two mappings show the same thing at the addresses they share, so that one can stay where the other was.
fn same_below(a: &Vma, b: &Vma) -> bool {
    let key = |v: &Vma| match &v.backing {
        Backing::File { file, offset } => (0, file.0, offset.wrapping_sub(v.range.start)),
        Backing::Object { object, offset } => (1, object.0, offset.wrapping_sub(v.range.start)),
        Backing::Anon => (2, 0, 0),
        Backing::Vdso => (3, 0, 0),
        Backing::Vvar => (4, 0, 0),
        Backing::VvarVclock => (5, 0, 0),
    };
    key(a) == key(b) && a.flags.contains(VmaFlags::SHARED) == b.flags.contains(VmaFlags::SHARED)
}

/// Parts of `new`'s private mappings where `old` had nothing, or something of another kind, file or offset. A target
/// that goes from one layout to the other maps these anew (and nothing else; protections change in place).
pub fn mapped_anew(old: &[Vma], new: &MmLayout) -> PageSet {
    let mut kept = PageSet::new();
    let mut from = 0;
    for vma in &new.vmas {
        while old.get(from).is_some_and(|o| o.range.end <= vma.range.start) {
            from += 1;
        }
        for before in old[from..].iter().take_while(|o| o.range.start < vma.range.end) {
            if same_below(before, vma) {
                let start = before.range.start.max(vma.range.start);
                kept.insert(AddrRange::new(start, before.range.end.min(vma.range.end).max(start)));
            }
        }
    }
    private_ranges(new).subtract(&kept)
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
        let content = r.is.intersects(PageIs::PRESENT | PageIs::SWAPPED);
        if content && !r.is.intersects(PageIs::GUARD | PageIs::PFNZERO | PageIs::FILE) {
            each(r);
        }
    })
}

/// Pages of the process's private mappings that have content.
/// Errors: `Gone`, `Open`, `Scan`.
pub fn content_pages(host_pid: i32, layout: &MmLayout) -> Result<PageSet, Error> {
    let map = open_pagemap(host_pid)?;
    let mut found = PageSet::new();
    // Without the ioctl a gap costs as much as memory does.
    let limit = if pagemap::has_scan() { u64::MAX } else { 0 };
    for (class, range) in scan_groups(layout, limit) {
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
    use crate::state::mm::{Borders, MapFileId, MmId};
    use std::os::unix::fs::FileExt;

    fn layout(vmas: &[(u64, u64, VmaFlags, Backing)]) -> MmLayout {
        let vma = |(start, end, flags, backing): &(u64, u64, VmaFlags, Backing)| Vma {
            range: AddrRange::new(start * PAGE, end * PAGE),
            flags: *flags,
            backing: backing.clone(),
            name: None,
        };
        let vmas = vmas.iter().map(vma).collect();
        MmLayout { mm: MmId(2), vmas, borders: Borders::default(), exe: MapFileId(0) }
    }

    #[test]
    fn only_what_shows_something_else_is_mapped_anew() {
        let file = |file, offset| Backing::File { file: MapFileId(file), offset: offset * PAGE };
        let (rw, r, shared) = (VmaFlags::READ | VmaFlags::WRITE, VmaFlags::READ, VmaFlags::SHARED);
        let old = layout(&[
            (1, 10, rw, Backing::Anon),
            (20, 30, rw, file(1, 0)),
            (40, 50, rw, file(1, 0)),
            (60, 70, rw | shared, file(1, 0)),
        ]);
        let new = layout(&[
            (1, 4, r, Backing::Anon),   // protection and size only
            (4, 12, rw, Backing::Anon), // two pages more
            (22, 26, rw, file(1, 2)),   // cut at the front: the same pages of the file
            (40, 45, rw, file(1, 1)),   // moved in the file
            (45, 50, rw, file(2, 5)),   // another file
            (60, 70, rw, file(1, 0)),   // private now
        ]);
        let pages = |set: PageSet| -> Vec<_> {
            set.ranges().iter().map(|r| (r.start / PAGE, r.end / PAGE)).collect()
        };
        assert_eq!(pages(mapped_anew(&old.vmas, &new)), [(10, 12), (40, 50), (60, 70)]);
        assert_eq!(pages(mapped_anew(&[], &new)), [(1, 12), (22, 26), (40, 50), (60, 70)]);
        assert!(mapped_anew(&new.vmas, &new).is_empty());
    }

    #[test]
    fn neighbours_are_scanned_together_within_the_limit() {
        let file = Backing::File { file: MapFileId(0), offset: 0 };
        let (rw, shared) = (VmaFlags::READ | VmaFlags::WRITE, VmaFlags::SHARED);
        let all = layout(&[
            (1, 2, rw, Backing::Anon),
            (2, 3, rw, Backing::Anon),
            (5, 9, rw, Backing::Anon),
            (9, 10, rw, file.clone()),
            (10, 11, rw | shared, file.clone()), // nothing of ours, and cuts
            (12, 13, rw, file),
        ]);
        let groups = |limit: u64| -> Vec<_> {
            let groups = scan_groups(&all, limit).into_iter();
            groups.map(|(_, r)| (r.start / PAGE, r.end / PAGE)).collect()
        };
        assert_eq!(groups(u64::MAX), [(1, 9), (9, 10), (12, 13)]);
        assert_eq!(groups(4 * PAGE), [(1, 3), (5, 9), (9, 10), (12, 13)]);
        assert_eq!(groups(0), [(1, 2), (2, 3), (5, 9), (9, 10), (12, 13)]);
    }

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
