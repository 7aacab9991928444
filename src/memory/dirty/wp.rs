//! Asynchronous write protection: a userfaultfd per address space, everything but its making from outside. A scan
//! reports the pages written since the last one and protects them again, page by page in one step.

use super::sent::Look;
use super::shared::{Mapping, Touch};
use super::{MakeUserfaultfd, MmLook, Objects, Watch};
use crate::base::AddrRange;
use crate::kernel::maps;
use crate::kernel::pagemap::{self, PageIs, Pagemap, Query, Region};
use crate::kernel::uffd::Uffd;
use crate::memory::content::{self, Class, class};
use crate::memory::{Error, PageSet};
use crate::state::mm::{MmId, MmLayout, Vma, VmaFlags};
use nix::errno::Errno;
use std::collections::HashMap;
use std::path::PathBuf;

/// Small mappings are scanned together up to this many bytes: when one of them turns out to be unregistered, what the
/// scan had done to the others is not told, and all are wholly dirty.
const GROUP: u64 = 2 << 20;

/// One address space being watched.
struct Watched {
    pid: i32,
    /// Counts up with every address space watched.
    generation: u64,
    /// Closing it ends every registration.
    uffd: Uffd,
    map: Pagemap,
    /// What we registered; the kernel may have dropped some of it since (then a scan says EPERM).
    registered: PageSet,
}

/// The way.
#[derive(Default)]
pub(super) struct WpAsync {
    watched: HashMap<MmId, Watched>,
    generation: u64,
}

/// Why a look at one range ended.
enum Stop {
    /// A mapping in it is not registered; what was protected before is not told.
    Unregistered,
    /// The address space is gone.
    NewMm,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

impl Watch for WpAsync {
    fn watch(&mut self, mm: MmId, host_pid: i32, make: &mut dyn MakeUserfaultfd) -> Result<(), Error> {
        let map = content::open_pagemap(host_pid)?;
        let uffd = Uffd::adopt(make.userfaultfd(host_pid)?).map_err(|source| Error::Track {
            pid: host_pid,
            what: "its userfaultfd cannot be set up",
            source,
        })?;
        self.generation += 1;
        let generation = self.generation;
        self.watched.insert(mm, Watched { pid: host_pid, generation, uffd, map, registered: PageSet::new() });
        Ok(())
    }

    fn look(
        &mut self,
        layout: &MmLayout,
        anew: &PageSet,
        objects: &Objects,
        last: bool,
    ) -> Result<Option<MmLook>, Error> {
        let Some(watched) = self.watched.get_mut(&layout.mm) else { return Ok(None) };
        match watched.look(layout, anew, objects, last) {
            Ok(found) => Ok(Some(found)),
            Err(Stop::NewMm) => {
                self.watched.remove(&layout.mm);
                Ok(None)
            }
            Err(Stop::Failed(e)) => Err(e),
            // `look` settles these itself; one that is left over is a mapping that cannot be held still.
            Err(Stop::Unregistered) => Err(Error::Track {
                pid: watched.pid,
                what: "a mapping loses its registration",
                source: Errno::EPERM,
            }),
        }
    }

    fn retain(&mut self, keep: &dyn Fn(MmId) -> bool) {
        self.watched.retain(|mm, _| keep(*mm));
    }
}

/// Pages written since the last scan; protects them again.
fn written_query(class: Class) -> Query {
    let mut not = if pagemap::has_guard() { PageIs::GUARD } else { PageIs::empty() };
    if class == Class::Cow {
        not |= PageIs::FILE; // the file's own pages are neither content nor worth protecting
    }
    Query {
        invert: not,
        mask: not | PageIs::WRITTEN,
        anyof: PageIs::PRESENT | PageIs::SWAPPED,
        ret: PageIs::PFNZERO | PageIs::PRESENT,
        protect: true,
    }
}

/// Pages protected and not written since, whether they are present or only marked.
fn clean_query() -> Query {
    Query {
        invert: PageIs::WRITTEN,
        mask: PageIs::WRITTEN,
        anyof: PageIs::PRESENT | PageIs::SWAPPED,
        ret: PageIs::PRESENT,
        protect: false,
    }
}

/// Offsets of an object as addresses in one mapping of it.
fn at_addresses(data: &PageSet, vma: &Vma, offset: u64) -> PageSet {
    let window = AddrRange::new(offset, offset + vma.range.len());
    let shift = |a: u64| a - offset + vma.range.start;
    data.within(window).ranges().iter().map(|r| AddrRange::new(shift(r.start), shift(r.end))).collect()
}

/// Pages that are not present; those swapped out are told apart, except guards.
fn absent_query() -> Query {
    let guard = if pagemap::has_guard() { PageIs::GUARD } else { PageIs::empty() };
    Query { invert: PageIs::PRESENT, mask: PageIs::PRESENT, ret: PageIs::SWAPPED | guard, ..Query::default() }
}

/// Ranges from this size on are walked by several threads: a walk costs by the populated memory (about 1 ms per GiB),
/// and the last round of all stands in the time the program does.
const WIDE: u64 = 1 << 30;
/// Threads at most.
const WALKERS: u64 = 4;

/// [`Pagemap::scan`], by several threads where it pays.
fn scan(map: &Pagemap, range: AddrRange, query: &Query, mut each: impl FnMut(Region)) -> Result<(), Errno> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(WALKERS);
    let walkers = cores.min(range.len() / (WIDE / 2));
    if range.len() < WIDE || walkers < 2 {
        return map.scan(range, query, each);
    }
    let step = (range.len() / walkers).next_multiple_of(GROUP);
    let part = |n: u64| {
        let start = (range.start + n * step).min(range.end);
        AddrRange::new(start, if n + 1 == walkers { range.end } else { (start + step).min(range.end) })
    };
    let walk = |part: AddrRange| {
        let mut found = Vec::new();
        map.scan(part, query, |r| found.push(r)).map(|()| found)
    };
    let parts: Vec<_> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..walkers).map(|n| scope.spawn(move || walk(part(n)))).collect();
        let own = walk(part(0));
        let joined = others.into_iter().map(|t| t.join().unwrap_or(Err(Errno::EIO)));
        std::iter::once(own).chain(joined).collect()
    });
    for part in parts {
        part?.into_iter().for_each(&mut each);
    }
    Ok(())
}

/// Where a process's mappings are now, by rising address.
fn mappings(pid: i32) -> Result<Vec<AddrRange>, Stop> {
    let path = PathBuf::from(format!("/proc/{pid}/maps"));
    match std::fs::read(&path) {
        Ok(text) => Ok(maps::parse(&text).unwrap_or_default().iter().map(|l| l.range).collect()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Err(Stop::NewMm),
        Err(source) => Err(Error::Open { path, source }.into()),
    }
}

/// Whether a range begins or ends inside a mapping.
fn splits(mappings: &[AddrRange], range: AddrRange) -> bool {
    let inside = |at: u64| {
        let n = mappings.partition_point(|m| m.end <= at);
        mappings.get(n).is_some_and(|m| m.start < at)
    };
    inside(range.start) || inside(range.end)
}

fn tracked(vma: &Vma) -> bool {
    class(vma) != Class::Nothing
}

impl Watched {
    fn look(
        &mut self,
        layout: &MmLayout,
        anew: &PageSet,
        objects: &Objects,
        last: bool,
    ) -> Result<MmLook, Stop> {
        let mut out = MmLook {
            look: Look {
                mapped: content::private_ranges(layout),
                filed: content::cow_ranges(layout),
                ..Look::default()
            },
            touches: Vec::new(),
        };
        // Mappings whose state is not known this time, and mappings that are wholly dirty.
        let mut unseen = PageSet::new();
        let mut fresh = self.register_new(layout, last, &mut unseen)?;
        fresh.add(anew);
        for (class, range) in content::scan_groups(layout, GROUP) {
            if !matches!(class, Class::Anon | Class::Cow) {
                continue;
            }
            match self.written(class, range, &mut out.look) {
                Err(Stop::Unregistered) => {
                    let inside = |v: &&Vma| v.range.start >= range.start && v.range.end <= range.end;
                    for vma in layout.vmas.iter().filter(inside) {
                        self.written_or_stale(vma, last, &mut unseen, &mut out.look)?;
                        fresh.insert(vma.range);
                    }
                }
                other => other?,
            }
            self.absent(class, range, &mut out.look)?;
        }
        self.look_fresh(layout, &fresh, &mut out.look)?;
        for vma in layout.vmas.iter() {
            if let Class::Object { object, offset } = class(vma) {
                let data = objects.get(&object).map(|o| &o.data);
                let here = data.map(|d| at_addresses(d, vma, offset)).unwrap_or_default();
                let touch = self.touch((layout.mm, vma, offset), &here, last, &fresh, &mut unseen)?;
                out.touches.push((object, touch));
            }
        }
        out.look.mapped = out.look.mapped.subtract(&unseen);
        Ok(out)
    }

    /// Registers what is not registered yet, as few calls as can be, and returns those ranges.
    fn register_new(&mut self, layout: &MmLayout, last: bool, unseen: &mut PageSet) -> Result<PageSet, Stop> {
        let wanted: PageSet = layout.vmas.iter().filter(|v| tracked(v)).map(|v| v.range).collect();
        let fresh = wanted.subtract(&self.registered);
        // What is gone from the layout lost its registration with its mapping.
        self.registered = self.registered.intersect(&wanted);
        if fresh.is_empty() {
            return Ok(fresh);
        }
        // What changed since the layout was read must not be registered in part: that splits a mapping in two, and the
        // program's next mremap(2) of it would fail.
        let now = if last { Vec::new() } else { mappings(self.pid)? };
        for group in layout.vmas.chunk_by(|a, b| tracked(a) == tracked(b)).filter(|g| tracked(&g[0])) {
            let range = AddrRange::new(group[0].range.start, group[group.len() - 1].range.end);
            if fresh.within(range).is_empty() {
                continue;
            }
            if !splits(&now, range) && self.uffd.register(range).is_ok() {
                group.iter().for_each(|v| self.registered.insert(v.range));
                continue;
            }
            for vma in group {
                match self.registered.covers(vma.range) {
                    true => {}
                    false if splits(&now, vma.range) => unseen.insert(vma.range),
                    false => self.register(vma, last, unseen)?,
                }
            }
        }
        Ok(fresh)
    }

    /// Registers a mapping that had lost it, unless that would split another.
    fn register_again(&mut self, vma: &Vma, last: bool, unseen: &mut PageSet) -> Result<(), Stop> {
        if !last && splits(&mappings(self.pid)?, vma.range) {
            unseen.insert(vma.range);
            return Ok(());
        }
        self.register(vma, last, unseen)
    }

    /// Registers one mapping, or notes that it cannot be seen this time.
    fn register(&mut self, vma: &Vma, last: bool, unseen: &mut PageSet) -> Result<(), Stop> {
        match self.uffd.register(vma.range) {
            Ok(()) => self.registered.insert(vma.range),
            Err(Errno::ENOMEM) => return Err(Stop::NewMm),
            // A shared mapping of something opened for reading only: nobody can write through it.
            Err(Errno::EPERM) if !vma.flags.contains(VmaFlags::WRITE) => {}
            Err(Errno::EBUSY) => {
                let what = "a mapping is already registered with a userfaultfd of the program";
                return Err(Error::Track { pid: self.pid, what, source: Errno::EBUSY }.into());
            }
            Err(source) if last => {
                let what = "a mapping cannot be registered";
                return Err(Error::Track { pid: self.pid, what, source }.into());
            }
            Err(_) => unseen.insert(vma.range), // gone since the layout was read
        }
        Ok(())
    }

    fn stop(&self, range: AddrRange, e: Errno) -> Stop {
        match e {
            Errno::EPERM => Stop::Unregistered,
            Errno::ESRCH => Stop::NewMm,
            e => Stop::Failed(content::scan_error(self.pid, range, e)),
        }
    }

    /// Adds the pages of a private range written since the last look, and protects them. Nothing is added on error.
    fn written(&self, class: Class, range: AddrRange, look: &mut Look) -> Result<(), Stop> {
        let (mut dirty, mut zeroed) = (PageSet::new(), PageSet::new());
        let walk = scan(&self.map, range, &written_query(class), |r| {
            // Over a file the page of zeros is content like any other.
            let zero = r.is.contains(PageIs::PFNZERO) && class == Class::Anon;
            if zero { zeroed.insert(r.range) } else { dirty.insert(r.range) }
        });
        walk.map_err(|e| self.stop(range, e))?;
        look.dirty.add(&dirty);
        look.zeroed.add(&zeroed);
        Ok(())
    }

    /// The same for one mapping; a lost registration is made anew (the caller takes the mapping as wholly dirty).
    fn written_or_stale(
        &mut self,
        vma: &Vma,
        last: bool,
        unseen: &mut PageSet,
        look: &mut Look,
    ) -> Result<(), Stop> {
        let range = PageSet::from_iter([vma.range]);
        match self.written(class(vma), vma.range, look) {
            Err(Stop::Unregistered) => {}
            other => return other,
        }
        self.registered = self.registered.subtract(&range);
        self.register_again(vma, last, unseen)?;
        if self.registered.covers(vma.range) {
            match self.written(class(vma), vma.range, look) {
                Err(Stop::Unregistered) if !last => {
                    // Replaced again under our hands: new for the next round.
                    self.registered = self.registered.subtract(&range);
                    unseen.insert(vma.range);
                }
                other => return other,
            }
        }
        Ok(())
    }

    /// Adds the pages of a private range that are not there.
    fn absent(&self, class: Class, range: AddrRange, look: &mut Look) -> Result<(), Stop> {
        if class == Class::Anon {
            let walk = scan(&self.map, range, &absent_query(), |r| {
                if !r.is.contains(PageIs::SWAPPED) || r.is.contains(PageIs::GUARD) {
                    look.absent.insert(r.range);
                }
            });
            return walk.map_err(|e| self.stop(range, e));
        }
        // Over a file "present" may be the file's page, so the copied ones are listed. A marker left by MADV_DONTNEED
        // cannot be told from a page swapped out: these are sent again each time (reading a marker gives the file's page).
        let mut copied = PageSet::new();
        let scan = content::populated(&self.map, class, range, |r| {
            copied.insert(r.range);
            if !r.is.contains(PageIs::PRESENT) {
                look.dirty.insert(r.range);
            }
        });
        scan.map_err(|e| self.stop(range, e))?;
        look.absent.add(&look.filed.within(range).subtract(&copied));
        Ok(())
    }

    /// Adds all content of mappings that are new, whatever their bits say.
    fn look_fresh(&self, layout: &MmLayout, fresh: &PageSet, look: &mut Look) -> Result<(), Stop> {
        if fresh.is_empty() {
            return Ok(());
        }
        let mut content = PageSet::new();
        for (class, range) in content::scan_groups(layout, GROUP) {
            let part = fresh.within(range);
            if !matches!(class, Class::Anon | Class::Cow) {
                continue;
            }
            for r in part.ranges() {
                content::populated(&self.map, class, *r, |r| content.insert(r.range))
                    .map_err(|e| self.stop(*r, e))?;
            }
        }
        look.dirty.add(&content);
        Ok(())
    }

    /// What was written through one mapping of a shared object; `data` is where the object has any.
    fn touch(
        &mut self,
        (mm, vma, offset): (MmId, &Vma, u64),
        data: &PageSet,
        last: bool,
        fresh: &PageSet,
        unseen: &mut PageSet,
    ) -> Result<Touch, Stop> {
        let writable = vma.flags.contains(VmaFlags::WRITE);
        let mapping = Mapping { mm, generation: self.generation, range: vma.range, offset, writable };
        let mut touch = Touch { mapping, dirty: PageSet::new(), stale: !fresh.within(vma.range).is_empty() };
        let range = PageSet::from_iter([vma.range]);
        if !self.registered.covers(vma.range) {
            touch.stale = writable || !unseen.within(vma.range).is_empty();
            return Ok(touch);
        }
        let walk = |me: &Self, dirty: &mut PageSet| {
            let mut clean = PageSet::new();
            scan(&me.map, vma.range, &clean_query(), |r| clean.insert(r.range))?;
            let written = data.subtract(&clean);
            for range in written.ranges() {
                scan(&me.map, *range, &Query { protect: true, ..Query::default() }, |_| {})?;
            }
            let shift = |a: u64| a - vma.range.start + offset;
            written.ranges().iter().for_each(|r| dirty.insert(AddrRange::new(shift(r.start), shift(r.end))));
            Ok(())
        };
        match walk(self, &mut touch.dirty) {
            Ok(()) => return Ok(touch),
            Err(Errno::EPERM) => touch.stale = true,
            Err(e) => return Err(self.stop(vma.range, e)),
        }
        self.registered = self.registered.subtract(&range);
        self.register_again(vma, last, unseen)?;
        if self.registered.covers(vma.range) && walk(self, &mut touch.dirty).is_err() {
            self.registered = self.registered.subtract(&range); // new for the next round
        }
        Ok(touch)
    }
}
