//! Which pages were written between two looks, while the program runs on: one [`Tracker`], two ways of the kernel.
//!
//! - [`wp`], asynchronous write protection (Linux 6.7): looking and protecting again is one atomic step per page, so a
//!   round needs no stop; only the start of each address space does (a userfaultfd is made inside it).
//! - [`soft`], soft-dirty bits (CONFIG_MEM_SOFT_DIRTY): the pod must be stopped while a round looks, and a look costs by
//!   the memory resident, not by the memory written.
//!
//! A round yields [`Work`] for the reader. What the rounds promise: if the target applies each round's layout (mapping
//! anew what [`content::mapped_anew`] says, and only that), then its work, then after the last round (looked at and read while everything stands still) the program finds its memory as
//! it left it. A page is sent when dirty or never sent ([`sent`]); a mapping that is new, moved or was replaced is wholly
//! dirty; a new address space is wholly unsent; shared objects have a rule of their own ([`shared`]).
//!
//! Where the target lost pages otherwise (a failed round), [`Tracker::give_back`] has them sent again.
//!
//! # Tried and dropped
//! - Asking for WRITTEN alone when protecting: on a sparse 64 GiB mapping the kernel fills 128 MiB of page tables with
//!   markers. Hence PRESENT or SWAPPED as well.
//! - Finding pages that are gone as "WRITTEN without PRESENT": kernels that free empty page tables on MADV_DONTNEED
//!   (6.14) no longer report them. Hence a scan for what is not present, which is as fast as there is little of it.
//! - Keeping the populated set: five times the cost of the other two scans, since every page matches.
//! - Trusting our own list of registered ranges: a mapping replaced by an equal one looks the same from outside. The scan
//!   refuses it (EPERM), and what it had done until then is lost, so such a mapping is wholly dirty.

pub mod inject;
pub mod sent;
pub mod shared;
pub mod soft;
pub mod wp;

use super::content;
use super::{Error, PageSet, Space, Work};
use crate::kernel::{pagemap, uffd};
use crate::state::mm::{MmId, MmLayout, Vma};
use crate::state::object::ObjectId;
use sent::{Look, Plan, SentSet};
use shared::{Book, Seen, Touch};
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// How writes are noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Asynchronous write protection.
    WpAsync,
    /// Soft-dirty bits.
    SoftDirty,
}

impl Way {
    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Way::WpAsync => "wp-async",
            Way::SoftDirty => "soft-dirty",
        }
    }

    /// The ways this kernel has, the better one first.
    pub fn available() -> Vec<Way> {
        let have = [(Way::WpAsync, uffd::has_wp_async()), (Way::SoftDirty, pagemap::has_soft_dirty())];
        have.into_iter().filter(|(_, has)| *has).map(|(way, _)| way).collect()
    }

    /// Whether the whole pod must be stopped during a round.
    pub fn needs_stop(self) -> bool {
        self == Way::SoftDirty
    }
}

/// Makes a userfaultfd *inside* a process of the pod, hands it over and leaves none there.
pub trait MakeUserfaultfd {
    /// A new descriptor made by process `host_pid`, which is stopped, with the flags of [`uffd::FLAGS`]; open nowhere
    /// but here.
    fn userfaultfd(&mut self, host_pid: i32) -> Result<OwnedFd, Error>;
}

/// A shared object as a round needs it.
pub struct ObjectView<'a> {
    /// Handle on the content.
    pub handle: &'a OwnedFd,
    /// How it can be written other than through mappings.
    pub access: Access,
}

/// Ways to write to a shared object other than through a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// None: neither a writable descriptor nor a name.
    Mappings,
    /// It has a name in the pod, no writable descriptor exists now.
    Name,
    /// A writable descriptor exists in the pod, or that is not known.
    Descriptor,
}

/// The pod as a round finds it.
pub struct View<'a> {
    /// Address spaces as they are now (read before the round; in the last round while everything is stopped). Ids of
    /// files must mean the same file in every round.
    pub layouts: &'a [MmLayout],
    /// Shared objects by id. Ids must mean the same object in every round.
    pub objects: &'a HashMap<ObjectId, ObjectView<'a>>,
    /// Whether a process may have been made, by fork or exec, since the last round (true where that is not known): one
    /// that wrote to shared memory and ended in between leaves no trace but this.
    pub forked: bool,
    /// Everything is stopped and this is the last round: what cannot be tracked is sent whole.
    pub last: bool,
}

/// What a round found.
#[derive(Debug, Default)]
pub struct Round {
    /// What to read and send.
    pub work: Vec<Work>,
    /// Address spaces nobody watches (new by fork or exec): nothing of theirs is in `work` unless the round was the
    /// last one. [`Tracker::watch`] them in a stop.
    pub unwatched: Vec<MmId>,
    /// Objects that had to be taken as wholly dirty, for the report.
    pub whole: Vec<ObjectId>,
}

impl Round {
    /// Bytes of pages to read and send.
    pub fn bytes(&self) -> u64 {
        self.work.iter().map(|w| w.pages.bytes()).sum()
    }
}

/// What a way finds in one address space.
#[derive(Debug, Default)]
struct MmLook {
    look: Look,
    touches: Vec<(ObjectId, Touch)>,
}

/// Objects as they were when a round began.
type Objects = HashMap<ObjectId, Seen>;

/// One way of looking.
trait Watch {
    /// Starts watching; the process is stopped.
    fn watch(&mut self, mm: MmId, host_pid: i32, make: &mut dyn MakeUserfaultfd) -> Result<(), Error>;
    /// Looks at one address space and starts the next interval. `None`: not watched, or no longer the same one. `anew`:
    /// where other mappings lie than in the last look, which are wholly dirty whatever is found: while they took their
    /// places the last look may have taken them for what had been there. `objects`: as they were just before.
    fn look(
        &mut self,
        layout: &MmLayout,
        anew: &PageSet,
        objects: &Objects,
        last: bool,
    ) -> Result<Option<MmLook>, Error>;
    /// Stops watching all but these.
    fn retain(&mut self, keep: &dyn Fn(MmId) -> bool);
}

/// Tracks the writes of a pod. Dropping it ends the tracking (that takes a moment per GiB watched; count it in the
/// time it takes to give a pod back).
pub struct Tracker {
    way: Way,
    watch: Box<dyn Watch + Send>,
    pids: HashMap<MmId, i32>,
    layouts: HashMap<MmId, Vec<Vma>>,
    sent: HashMap<MmId, SentSet>,
    objects: HashMap<ObjectId, Book>,
}

impl Tracker {
    /// A tracker by the best way this kernel has. Errors: `NoTracker`.
    pub fn new() -> Result<Self, Error> {
        let way = Way::available().first().copied().ok_or(Error::NoTracker(
            "it has neither asynchronous write protection (Linux 6.7) nor soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)",
        ))?;
        Ok(Self::by(way))
    }

    /// A tracker by the given way, which the kernel must have.
    pub fn by(way: Way) -> Self {
        let watch: Box<dyn Watch + Send> = match way {
            Way::WpAsync => Box::new(wp::WpAsync::default()),
            Way::SoftDirty => Box::new(soft::SoftDirty::default()),
        };
        Self {
            way,
            watch,
            pids: HashMap::new(),
            layouts: HashMap::new(),
            sent: HashMap::new(),
            objects: HashMap::new(),
        }
    }

    /// Its way.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Starts watching an address space that was not watched yet or that [`Round::unwatched`] names. The process (for
    /// soft-dirty the whole pod) is stopped. Errors: `Gone`, `Open`, `Track`, and what `make` says.
    pub fn watch(&mut self, mm: MmId, host_pid: i32, make: &mut dyn MakeUserfaultfd) -> Result<(), Error> {
        self.watch.watch(mm, host_pid, make)?;
        self.pids.insert(mm, host_pid);
        Ok(())
    }

    /// Looks at the whole pod: what was written since the last round (in the first: all content), and what is gone. The
    /// work counts as sent from here on.
    /// Errors: `Scan`, `Track`, `Object`, `Open`; `Gone` only in the last round.
    pub fn round(&mut self, view: &View<'_>) -> Result<Round, Error> {
        self.watch.retain(&|mm| view.layouts.iter().any(|l| l.mm == mm));
        let mut round = Round::default();
        let mut touches: HashMap<ObjectId, Vec<Touch>> = HashMap::new();
        let seen = |(id, object): (&ObjectId, &ObjectView<'_>)| Ok((*id, Seen::of(*id, object)?));
        let objects = view.objects.iter().map(seen).collect::<Result<Objects, Error>>()?;
        for layout in view.layouts {
            let before = self.layouts.get(&layout.mm).map(Vec::as_slice).unwrap_or_default();
            let anew = content::mapped_anew(before, layout);
            let found = match self.watch.look(layout, &anew, &objects, view.last)? {
                Some(found) => found,
                None => {
                    round.unwatched.push(layout.mm);
                    touch_all(layout, &mut touches);
                    let Some(look) = self.whole(layout, view.last)? else { continue };
                    MmLook { look, touches: Vec::new() }
                }
            };
            found.touches.into_iter().for_each(|(id, touch)| touches.entry(id).or_default().push(touch));
            let sent = self.sent.entry(layout.mm).or_default();
            self.layouts.insert(layout.mm, layout.vmas.clone());
            sent.lost(&anew);
            let plan = sent.plan(&found.look);
            push(&mut round.work, Space::Mm(layout.mm), plan);
        }
        let mut objects: Vec<_> = objects.into_iter().collect();
        objects.sort_unstable_by_key(|(id, _)| *id);
        for (id, seen) in objects {
            let book = self.objects.entry(id).or_default();
            let (plan, whole) = book.round(id, view, &seen, touches.remove(&id).unwrap_or_default());
            if whole {
                round.whole.push(id);
            }
            push(&mut round.work, Space::Object(id), plan);
        }
        Ok(round)
    }

    /// A look without tracking, for the last round only.
    fn whole(&self, layout: &MmLayout, last: bool) -> Result<Option<Look>, Error> {
        let Some(pid) = self.pids.get(&layout.mm).filter(|_| last) else { return Ok(None) };
        let mapped = content::private_ranges(layout);
        let dirty = content::content_pages(*pid, layout)?;
        let absent = mapped.subtract(&dirty);
        let filed = content::cow_ranges(layout);
        Ok(Some(Look { mapped, dirty, absent, filed, ..Look::default() }))
    }

    /// Says where an address space that is not watched is found, so that the last round can send it whole.
    pub fn locate(&mut self, mm: MmId, host_pid: i32) {
        self.pids.insert(mm, host_pid);
    }

    /// Work that was perhaps not applied, or that the target lost: it comes again in the next round, as it is then.
    pub fn give_back(&mut self, work: &[Work]) {
        for w in work {
            let plan = Plan { send: w.pages.clone(), zero: w.zero.clone() };
            match w.space {
                Space::Mm(mm) => self.sent.entry(mm).or_default().give_back(&plan),
                Space::Object(id) => self.objects.entry(id).or_default().give_back(&plan),
            }
        }
    }

    /// The target has nothing any more where it had something.
    pub fn lost(&mut self, mm: MmId, pages: &PageSet) {
        self.sent.entry(mm).or_default().lost(pages);
    }

    /// Pages of a space that the target may hold.
    pub fn sent(&self, space: Space) -> PageSet {
        match space {
            Space::Mm(mm) => self.sent.get(&mm).map(|s| s.sent().clone()).unwrap_or_default(),
            Space::Object(id) => self.objects.get(&id).map(|b| b.sent().clone()).unwrap_or_default(),
        }
    }
}

fn push(work: &mut Vec<Work>, space: Space, plan: Plan) {
    if !plan.send.is_empty() || !plan.zero.is_empty() {
        work.push(Work { space, pages: plan.send, zero: plan.zero });
    }
}

/// Objects mapped by an address space nobody watches may have been written there.
fn touch_all(layout: &MmLayout, touches: &mut HashMap<ObjectId, Vec<Touch>>) {
    for vma in &layout.vmas {
        if let content::Class::Object { object, offset } = content::class(vma) {
            touches.entry(object).or_default().push(Touch::unwatched(layout.mm, vma, offset));
        }
    }
}

#[cfg(test)]
mod tests;
