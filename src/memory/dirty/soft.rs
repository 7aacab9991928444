//! Soft-dirty bits: `4` into `/proc/P/clear_refs` clears them all, the kernel sets a page's again at the first write.
//! Looking and clearing are two steps, so the whole pod is stopped for a round; a look reads every populated page's
//! entry, so it costs by the memory resident.

use super::shared::{Mapping, Touch};
use super::{MakeUserfaultfd, MmLook, Objects, Watch};
use crate::base::AddrRange;
use crate::kernel::pagemap::{self, PageIs, Pagemap, Query, Region};
use crate::memory::content::{self, Class, class};
use crate::memory::{Error, PageSet};
use crate::state::mm::{Backing, MmId, MmLayout, Vma, VmaFlags};
use nix::errno::Errno;
use std::collections::HashMap;
use std::path::PathBuf;

/// What makes a mapping the same as in the last round; the kernel's own mark on new mappings is lost when it joins
/// one to an older neighbour (kernels before 6.19), so this list decides.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    range: AddrRange,
    flags: u32,
    backing: Option<(u32, u64)>,
}

impl Key {
    fn of(vma: &Vma) -> Self {
        let backing = match &vma.backing {
            Backing::File { file, offset } => Some((file.0, *offset)),
            Backing::Object { object, offset } => Some((object.0, *offset)),
            _ => None,
        };
        Self { range: vma.range, flags: vma.flags.bits(), backing }
    }
}

struct Watched {
    pid: i32,
    generation: u64,
    map: Pagemap,
    /// Mappings of the last round; `None` before the first.
    known: std::collections::HashSet<Key>,
}

/// The way.
#[derive(Default)]
pub(super) struct SoftDirty {
    watched: HashMap<MmId, Watched>,
    generation: u64,
}

impl Watch for SoftDirty {
    fn watch(&mut self, mm: MmId, host_pid: i32, _: &mut dyn MakeUserfaultfd) -> Result<(), Error> {
        self.generation += 1;
        let watched = Watched {
            pid: host_pid,
            generation: self.generation,
            map: content::open_pagemap(host_pid)?,
            known: Default::default(),
        };
        self.watched.insert(mm, watched);
        Ok(())
    }

    fn look(
        &mut self,
        layout: &MmLayout,
        _: &PageSet,
        objects: &Objects,
        _: bool,
    ) -> Result<Option<MmLook>, Error> {
        let Some(watched) = self.watched.get_mut(&layout.mm) else { return Ok(None) };
        let found = match watched.look(layout, objects) {
            Ok(found) => found,
            Err((_, Errno::ESRCH)) => {
                self.watched.remove(&layout.mm);
                return Ok(None);
            }
            Err((range, e)) => return Err(content::scan_error(watched.pid, range, e)),
        };
        let clear = pagemap::clear_soft_dirty(watched.pid);
        clear.map_err(|source| Error::Open {
            path: PathBuf::from(format!("/proc/{}/clear_refs", watched.pid)),
            source,
        })?;
        watched.known = layout.vmas.iter().map(Key::of).collect();
        Ok(Some(found))
    }

    fn retain(&mut self, keep: &dyn Fn(MmId) -> bool) {
        self.watched.retain(|mm, _| keep(*mm));
    }
}

impl Watched {
    fn look(&self, layout: &MmLayout, objects: &Objects) -> Result<MmLook, (AddrRange, Errno)> {
        let mut out = MmLook::default();
        out.look.mapped = content::private_ranges(layout);
        out.look.filed = content::cow_ranges(layout);
        for vma in &layout.vmas {
            let class = class(vma);
            let fresh = !self.known.contains(&Key::of(vma));
            let fail = |e| (vma.range, e);
            match class {
                Class::Nothing => {}
                Class::Anon | Class::Cow => {
                    let mut there = PageSet::new();
                    self.each(class, vma.range, |r| sort(class, fresh, r, &mut there, &mut out))
                        .map_err(fail)?;
                    out.look.absent.add(&PageSet::from_iter([vma.range]).subtract(&there));
                }
                Class::Object { object, offset } => {
                    let mut clean = PageSet::new();
                    let unwritten = |r: Region| {
                        if r.is.contains(PageIs::PRESENT) && !r.is.contains(PageIs::SOFT_DIRTY) {
                            let start = r.range.start - vma.range.start + offset;
                            clean.insert(AddrRange::new(start, start + r.range.len()));
                        }
                    };
                    self.each(class, vma.range, unwritten).map_err(fail)?;
                    let window = AddrRange::new(offset, offset + vma.range.len());
                    let data = objects.get(&object).map(|o| o.data.within(window)).unwrap_or_default();
                    let dirty = data.subtract(&clean);
                    let writable = vma.flags.contains(VmaFlags::WRITE);
                    let (mm, generation) = (layout.mm, self.generation);
                    let mapping = Mapping { mm, generation, range: vma.range, offset, writable };
                    out.touches.push((object, Touch { mapping, dirty, stale: fresh }));
                }
            }
        }
        Ok(out)
    }

    /// Hands out the populated pages of a mapping, with SOFT_DIRTY, PFNZERO and GUARD as far as they are known.
    fn each(&self, class: Class, range: AddrRange, mut each: impl FnMut(Region)) -> Result<(), Errno> {
        if pagemap::has_scan() {
            let file = if class == Class::Cow { PageIs::FILE } else { PageIs::empty() };
            let guard = if pagemap::has_guard() { PageIs::GUARD } else { PageIs::empty() };
            let query = Query {
                invert: file,
                mask: file,
                anyof: PageIs::PRESENT | PageIs::SWAPPED,
                ret: PageIs::PRESENT | PageIs::SOFT_DIRTY | PageIs::PFNZERO | guard,
                protect: false,
            };
            return self.map.scan(range, &query, each);
        }
        self.map.entries(range, |mut r| {
            // What is a file's in private anonymous memory is a huge page of zeros.
            if class == Class::Anon && r.is.contains(PageIs::FILE) {
                r.is |= PageIs::PFNZERO;
            }
            let populated = r.is.intersects(PageIs::PRESENT | PageIs::SWAPPED);
            if populated && (class != Class::Cow || !r.is.contains(PageIs::FILE)) {
                each(r);
            }
        })
    }
}

/// Puts one region of a private mapping where it belongs.
fn sort(class: Class, fresh: bool, r: Region, there: &mut PageSet, out: &mut MmLook) {
    if r.is.contains(PageIs::GUARD) {
        return; // reads as nothing: absent
    }
    there.insert(r.range);
    let set = match () {
        () if r.is.contains(PageIs::PFNZERO) && class == Class::Anon => &mut out.look.zeroed,
        () if fresh || r.is.contains(PageIs::SOFT_DIRTY) => &mut out.look.dirty,
        () => &mut out.look.clean,
    };
    set.insert(r.range);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::addr::PAGE;

    fn at(page: u64, is: PageIs) -> Region {
        Region { range: AddrRange::new(page * PAGE, (page + 1) * PAGE), is }
    }

    #[test]
    fn pages_are_sorted_by_their_bits() {
        let (mut there, mut out) = (PageSet::new(), MmLook::default());
        for (page, is) in [
            (0, PageIs::SOFT_DIRTY),
            (1, PageIs::empty()),
            (2, PageIs::PFNZERO | PageIs::SOFT_DIRTY),
            (3, PageIs::GUARD | PageIs::SOFT_DIRTY),
        ] {
            sort(Class::Anon, false, at(page, is), &mut there, &mut out);
        }
        let one = |page| PageSet::from_iter([at(page, PageIs::empty()).range]);
        assert_eq!((&out.look.dirty, &out.look.clean, &out.look.zeroed), (&one(0), &one(1), &one(2)));
        assert_eq!(there.pages(), 3);
        // A mapping not seen before is wholly dirty; the page of zeros over a file is content.
        let (mut there, mut out) = (PageSet::new(), MmLook::default());
        sort(Class::Cow, true, at(1, PageIs::empty()), &mut there, &mut out);
        sort(Class::Cow, true, at(2, PageIs::PFNZERO), &mut there, &mut out);
        assert_eq!(out.look.dirty.pages(), 2);
    }

    #[test]
    fn a_mapping_is_known_by_place_kind_and_file() {
        let vma = |start: u64, flags, backing| Vma {
            range: AddrRange::new(start, start + PAGE),
            flags,
            backing,
            name: None,
        };
        let file = |offset| Backing::File { file: crate::state::mm::MapFileId(3), offset };
        let base = Key::of(&vma(PAGE, VmaFlags::READ, file(0)));
        assert_eq!(base, Key::of(&vma(PAGE, VmaFlags::READ, file(0))));
        for other in [
            vma(2 * PAGE, VmaFlags::READ, file(0)),
            vma(PAGE, VmaFlags::WRITE, file(0)),
            vma(PAGE, VmaFlags::READ, file(PAGE)),
            vma(PAGE, VmaFlags::READ, Backing::Anon),
        ] {
            assert_ne!(base, Key::of(&other));
        }
    }
}
