//! Shared objects between rounds. Dirty bits live in the page tables of each process that maps the object and die with
//! them, and `write(2)` leaves none. So an object is wholly dirty in a round in which
//! - it is seen for the first time,
//! - a mapping of it came, went, moved or was replaced (unmapping, exec, exit),
//! - a process able to write it may have forked: the child may have written and ended,
//! - a descriptor exists through which it can be written,
//! - it has a name, so that it can be opened, written and closed in between, and its times or size have changed. (For
//!   the others times say nothing new: the first write to a page of a mapping changes them too.)
//!
//! Else the dirty offsets are those of all its mappings together. A page written through a mapping and then dropped from
//! it (MADV_DONTNEED, reclaim) leaves no bit there; so a page with data is clean only where every mapping says so.
//!
//! Not seen: MADV_REMOVE through a mapping, when the page is read again (as zeros) before the next look.

use super::sent::{Look, Plan, SentSet};
use super::{Access, ObjectView, View};
use crate::base::AddrRange;
use crate::memory::{Error, PageSet, content};
use crate::state::mm::{MmId, Vma, VmaFlags};
use crate::state::object::ObjectId;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One mapping of an object, as a round finds it.
#[derive(Clone, Debug)]
pub struct Touch {
    /// Which mapping.
    pub mapping: Mapping,
    /// Offsets in the object written through it since the last round.
    pub dirty: PageSet,
    /// It was not watched all the time since the last round.
    pub stale: bool,
}

/// What makes a mapping the same one as last time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mapping {
    /// Whose.
    pub mm: MmId,
    /// Counts the address spaces watched, so that one after exec is another one.
    pub generation: u64,
    /// Where.
    pub range: AddrRange,
    /// Offset in the object.
    pub offset: u64,
    /// Written through now (its protection may change).
    pub writable: bool,
}

impl Touch {
    /// A mapping in an address space that nobody watches.
    pub fn unwatched(mm: MmId, vma: &Vma, offset: u64) -> Self {
        let writable = vma.flags.contains(VmaFlags::WRITE);
        let mapping = Mapping { mm, generation: 0, range: vma.range, offset, writable };
        Self { mapping, dirty: PageSet::new(), stale: true }
    }
}

/// Time stamps are as coarse as a timer tick on kernels before 6.13: one younger than this may hide a second write.
const TICK: Duration = Duration::from_millis(50);

/// What the file system says of the last change by `write(2)` and the like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    ctime: (i64, i64),
    mtime: (i64, i64),
    size: u64,
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            ctime: (meta.ctime(), meta.ctime_nsec()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: meta.size(),
        }
    }

    /// Whether a write after `now` is sure to change it.
    fn settled(&self, now: SystemTime) -> bool {
        let nanos = i128::from(self.ctime.0) * 1_000_000_000 + i128::from(self.ctime.1);
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().cast_signed();
        nanos + TICK.as_nanos().cast_signed() < now
    }
}

/// An object as it was just before the mappings were looked at.
#[derive(Debug)]
pub struct Seen {
    now: SystemTime,
    stamp: Stamp,
    /// Offsets that hold data.
    pub data: PageSet,
}

impl Seen {
    /// Looks. The time stamps come first: a write after them shows in the next ones.
    pub fn of(id: ObjectId, view: &ObjectView<'_>) -> Result<Self, Error> {
        let now = SystemTime::now();
        let file = content::reopen(id, view.handle, false)?;
        let failed = |source| Error::Object { act: "stat", object: id, offset: 0, source };
        let stamp = Stamp::of(&file.metadata().map_err(failed)?);
        Ok(Self { now, stamp, data: content::object_pages(id, &file)? })
    }
}

/// What is known of one object.
#[derive(Default, Debug)]
pub struct Book {
    /// `None` before the first round.
    mappings: Option<Vec<Mapping>>,
    /// Time stamps of the last round, if a later write was sure to show.
    stamp: Option<Stamp>,
    sent: SentSet,
}

impl Book {
    /// Plans the round of this object from what its mappings say; also whether it is taken as wholly dirty.
    pub fn round(&mut self, id: ObjectId, view: &View<'_>, seen: &Seen, touches: Vec<Touch>) -> (Plan, bool) {
        let Some(ObjectView { access, .. }) = view.objects.get(&id) else {
            return (Plan::default(), false);
        };
        let Seen { now, stamp, data } = seen;
        let mut mappings: Vec<Mapping> = touches.iter().map(|t| t.mapping).collect();
        mappings.sort_unstable();
        let same = |m: &[Mapping]| {
            let key = |m: &Mapping| (m.mm, m.generation, m.range, m.offset);
            m.iter().map(key).eq(mappings.iter().map(key))
        };
        let whole = !self.mappings.as_deref().is_some_and(same)
            || touches.iter().any(|t| t.stale)
            || *access == Access::Descriptor
            || *access == Access::Name && self.stamp != Some(*stamp)
            || view.forked && mappings.iter().any(|m| m.writable);
        self.mappings = Some(mappings);
        self.stamp = Some(*stamp).filter(|s| s.settled(*now));

        let mapped = PageSet::from_iter([AddrRange::new(0, stamp.size)]);
        let mut written = PageSet::new();
        touches.iter().for_each(|t| written.add(&t.dirty));
        let look = Look {
            dirty: if whole { data.clone() } else { data.intersect(&written) },
            absent: mapped.subtract(data),
            mapped,
            ..Look::default()
        };
        (self.sent.plan(&look), whole)
    }

    /// As [`SentSet::give_back`].
    pub fn give_back(&mut self, plan: &Plan) {
        self.sent.give_back(plan);
    }

    /// As [`SentSet::sent`].
    pub fn sent(&self) -> &PageSet {
        self.sent.sent()
    }
}
