//! The filler at the target: puts chunks into the skeleton's processes and objects. What it is given comes from a
//! peer and is hostile until checked: nothing is written unless the whole chunk lies inside the layouts.

use super::chunk::{Run, check_run};
use super::content::{self, Class, class};
use super::{Error, PageSet, Space};
use crate::base::AddrRange;
use crate::base::addr::PAGE;
use crate::kernel::vmio::{self, ProcMem};
use crate::state::Tree;
use crate::state::mm::{MmId, MmLayout, VmaFlags};
use crate::state::object::ObjectId;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Part of an address space that may be filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Area {
    range: AddrRange,
    /// Copied-on-write pages over a file: a zero page must be written, absent is not zero.
    cow: bool,
    /// `process_vm_writev` may write it; else `/proc/P/mem`.
    writable: bool,
}

struct Process {
    pid: i32,
    areas: Vec<Area>,
    mem: OnceLock<ProcMem>,
    filled: Mutex<PageSet>,
}

struct Content {
    file: File,
    size: u64,
    filled: Mutex<PageSet>,
}

/// Writes page data into place. Safe to use from many threads at once; two chunks that hold the same page must be
/// applied in their order by the caller.
pub struct Filler {
    processes: HashMap<MmId, Process>,
    objects: HashMap<ObjectId, Content>,
}

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

fn lock(set: &Mutex<PageSet>) -> MutexGuard<'_, PageSet> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fillable parts of a layout, neighbours of one kind joined.
fn areas(layout: &MmLayout) -> Vec<Area> {
    let mut out: Vec<Area> = Vec::new();
    for vma in &layout.vmas {
        let cow = match class(vma) {
            Class::Anon => false,
            Class::Cow => true,
            Class::Object { .. } | Class::Nothing => continue,
        };
        let writable = vma.flags.contains(VmaFlags::WRITE);
        match out.last_mut() {
            Some(a) if a.range.end == vma.range.start && a.cow == cow && a.writable == writable => {
                a.range.end = vma.range.end;
            }
            _ => out.push(Area { range: vma.range, cow, writable }),
        }
    }
    out
}

/// Ranges worth populating ahead by `MADV_POPULATE_WRITE` *inside* the process (a fresh page costs ten times a
/// present one): those of the first scan that are private anonymous and writable, never whole mappings.
pub fn populate_plan(content: &PageSet, layout: &MmLayout) -> PageSet {
    let writable = areas(layout).into_iter().filter(|a| a.writable && !a.cow).map(|a| a.range).collect();
    content.intersect(&writable)
}

impl Filler {
    /// A filler for the skeleton of `tree`: processes by host pid, objects by handle.
    /// Errors: `UnknownSpace` (an id of the tree without pid or handle), `Object` (handle not writable).
    pub fn new(
        tree: &Tree,
        pids: &HashMap<MmId, i32>,
        objects: &HashMap<ObjectId, OwnedFd>,
    ) -> Result<Self, Error> {
        let mut filler = Self { processes: HashMap::new(), objects: HashMap::new() };
        filler.update(tree, pids, objects)?;
        Ok(filler)
    }

    /// Takes a changed tree: what was filled in a process that is still there (same id and pid) or an object that is
    /// still there is remembered. Errors: as `new`; the filler is then as before.
    pub fn update(
        &mut self,
        tree: &Tree,
        pids: &HashMap<MmId, i32>,
        objects: &HashMap<ObjectId, OwnedFd>,
    ) -> Result<(), Error> {
        let mut new = Self { processes: HashMap::new(), objects: HashMap::new() };
        for layout in &tree.mms {
            let pid = *pids.get(&layout.mm).ok_or(Error::UnknownSpace(Space::Mm(layout.mm)))?;
            let filled =
                self.processes.get(&layout.mm).filter(|p| p.pid == pid).map(|p| lock(&p.filled).clone());
            let process = Process {
                pid,
                areas: areas(layout),
                mem: OnceLock::new(),
                filled: Mutex::new(filled.unwrap_or_default()),
            };
            new.processes.insert(layout.mm, process);
        }
        for (n, object) in tree.objects.iter().enumerate() {
            let id = ObjectId(n as u32);
            let fd = objects.get(&id).ok_or(Error::UnknownSpace(Space::Object(id)))?;
            let filled = self.objects.get(&id).map(|o| lock(&o.filled).clone()).unwrap_or_default();
            let file = content::reopen(id, fd, true)?;
            new.objects.insert(id, Content { file, size: object.size, filled: Mutex::new(filled) });
        }
        *self = new;
        Ok(())
    }

    /// Says that `child`'s skeleton was forked from `parent`'s after that was filled, so that its pages are there too.
    pub fn inherit(&self, child: MmId, parent: MmId) {
        if let (Some(c), Some(p)) = (self.processes.get(&child), self.processes.get(&parent)) {
            let pages = lock(&p.filled).clone();
            lock(&c.filled).add(&pages);
        }
    }

    /// Applies one run with its bytes (none for a zero run).
    /// Errors: `Malformed`, `UnknownSpace`, `Refused` (nothing was written), `Write`, `Object`, `Open`, `Killed`.
    pub fn apply(&self, run: &Run, data: &[u8]) -> Result<(), Error> {
        self.apply_chunk(std::slice::from_ref(run), data)
    }

    /// Applies the runs of a chunk; `data` holds the bytes of those that are not zero, one after the other. Everything
    /// is checked before anything is written. Errors: as [`Filler::apply`].
    pub fn apply_chunk(&self, runs: &[Run], data: &[u8]) -> Result<(), Error> {
        let mut total = 0usize;
        for run in runs {
            check_run(run)?;
            self.check_place(run)?;
            total = total.saturating_add(run.data_len());
        }
        if total != data.len() {
            return Err(Error::Malformed("the data is not as long as its runs say"));
        }
        let mut rest = data;
        for group in runs.chunk_by(|a, b| a.space == b.space && !a.zero && !b.zero) {
            let len = group.iter().map(Run::data_len).sum();
            let (bytes, after) = rest.split_at(len);
            rest = after;
            match (group[0].space, group[0].zero) {
                (Space::Mm(mm), zero) => {
                    let process = self.processes.get(&mm).ok_or(Error::UnknownSpace(Space::Mm(mm)))?;
                    if zero { process.zero(&group[0]) } else { process.fill(group, bytes) }?;
                }
                (Space::Object(id), zero) => {
                    let object = self.objects.get(&id).ok_or(Error::UnknownSpace(Space::Object(id)))?;
                    if zero { object.zero(id, &group[0]) } else { object.fill(id, group, bytes) }?;
                }
            }
        }
        Ok(())
    }

    /// Whether a run lies wholly where its space may be filled.
    fn check_place(&self, run: &Run) -> Result<(), Error> {
        let unknown = Error::UnknownSpace(run.space);
        let inside = match run.space {
            Space::Mm(mm) => self.processes.get(&mm).ok_or(unknown)?.covers(run.range()),
            Space::Object(id) => {
                let object = self.objects.get(&id).ok_or(unknown)?;
                run.addr + run.len <= object.size.checked_next_multiple_of(PAGE).unwrap_or(0)
            }
        };
        let refused = Error::Refused {
            space: run.space,
            addr: run.addr,
            len: run.len,
            why: "outside of the memory that may be filled",
        };
        if inside { Ok(()) } else { Err(refused) }
    }
}

impl Process {
    fn covers(&self, range: AddrRange) -> bool {
        let mut at = range.start;
        let from = self.areas.partition_point(|a| a.range.end <= at);
        for area in &self.areas[from..] {
            if area.range.start > at {
                return false;
            }
            at = area.range.end;
            if at >= range.end {
                return true;
            }
        }
        false
    }

    /// The parts of a covered range, area by area.
    fn split(&self, range: AddrRange) -> impl Iterator<Item = (Area, AddrRange)> {
        let from = self.areas.partition_point(|a| a.range.end <= range.start);
        self.areas[from..]
            .iter()
            .take_while(move |a| a.range.start < range.end)
            .map(move |a| (*a, AddrRange::new(range.start.max(a.range.start), range.end.min(a.range.end))))
    }

    /// Writes runs with data; `bytes` is theirs.
    fn fill(&self, runs: &[Run], bytes: &[u8]) -> Result<(), Error> {
        // All the writable parts in one go, as long as no other part lies between them in the data.
        let mut batch: Vec<AddrRange> = Vec::new();
        let (mut from, mut at) = (0usize, 0usize);
        for (area, part) in runs.iter().flat_map(|r| self.split(r.range())) {
            let len = part.len() as usize;
            if area.writable {
                batch.push(part);
            } else {
                self.write(&batch, &bytes[from..at])?;
                batch.clear();
                self.write_hard(part.start, &bytes[at..at + len])?;
                from = at + len;
            }
            at += len;
        }
        self.write(&batch, &bytes[from..at])?;
        let mut filled = lock(&self.filled);
        runs.iter().for_each(|r| filled.insert(r.range()));
        Ok(())
    }

    /// Makes a range read as zeros: parts never filled are so already, unless a file lies below.
    fn zero(&self, run: &Run) -> Result<(), Error> {
        for (area, part) in self.split(run.range()) {
            let stale = lock(&self.filled).within(part);
            let parts = if area.cow { std::slice::from_ref(&part) } else { stale.ranges() };
            for r in parts {
                let mut at = r.start;
                while at < r.end {
                    let len = (r.end - at).min(ZEROS.len() as u64);
                    self.write(&[AddrRange::new(at, at + len)], &ZEROS[..len as usize])?;
                    at += len;
                }
            }
            if area.cow {
                lock(&self.filled).insert(part);
            }
        }
        Ok(())
    }

    fn write(&self, ranges: &[AddrRange], bytes: &[u8]) -> Result<(), Error> {
        let fail = |source| match source {
            Errno::ESRCH => Error::Killed { pid: self.pid },
            _ => Error::Write { pid: self.pid, addr: ranges.first().map_or(0, |r| r.start), source },
        };
        let mut done = vmio::write(self.pid, ranges, bytes).map_err(fail)?;
        let mut start = 0; // of this range, in `bytes`
        for range in ranges {
            let end = start + range.len() as usize;
            if done < end {
                let skip = done.max(start) - start;
                self.write_hard(range.start + skip as u64, &bytes[start + skip..end])?;
                done = end;
            }
            start = end;
        }
        Ok(())
    }

    /// Writes whatever the protection is.
    fn write_hard(&self, addr: u64, bytes: &[u8]) -> Result<(), Error> {
        let mem = match self.mem.get() {
            Some(mem) => mem,
            None => {
                let path = PathBuf::from(format!("/proc/{}/mem", self.pid));
                let opened = ProcMem::open(self.pid, true).map_err(|source| match source.raw_os_error() {
                    Some(libc::ENOENT | libc::ESRCH) => Error::Killed { pid: self.pid },
                    _ => Error::Open { path, source },
                })?;
                self.mem.get_or_init(|| opened)
            }
        };
        let mut done = 0;
        while done < bytes.len() {
            let at = addr + done as u64;
            match mem.write(at, &bytes[done..]) {
                Ok(n) => done += n,
                Err(Errno::ESRCH) => return Err(Error::Killed { pid: self.pid }),
                Err(source) => return Err(Error::Write { pid: self.pid, addr: at, source }),
            }
        }
        Ok(())
    }
}

impl Content {
    fn write(&self, object: ObjectId, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        // The last page may reach beyond the end; the object keeps its size.
        let len = self.size.saturating_sub(offset).min(bytes.len() as u64) as usize;
        self.file.write_all_at(&bytes[..len], offset).map_err(|source| Error::Object {
            act: "write",
            object,
            offset,
            source,
        })
    }

    fn fill(&self, object: ObjectId, runs: &[Run], bytes: &[u8]) -> Result<(), Error> {
        let mut rest = bytes;
        for run in runs {
            let (now, after) = rest.split_at(run.data_len());
            self.write(object, run.addr, now)?;
            rest = after;
        }
        let mut filled = lock(&self.filled);
        runs.iter().for_each(|r| filled.insert(r.range()));
        Ok(())
    }

    fn zero(&self, object: ObjectId, run: &Run) -> Result<(), Error> {
        let stale = lock(&self.filled).within(run.range());
        for r in stale.ranges() {
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            if fallocate(&self.file, punch, r.start.cast_signed(), r.len().cast_signed()).is_ok() {
                continue;
            }
            let mut at = r.start; // a file system without holes
            while at < r.end {
                let len = (r.end - at).min(ZEROS.len() as u64);
                self.write(object, at, &ZEROS[..len as usize])?;
                at += len;
            }
        }
        let mut filled = lock(&self.filled);
        let left = filled.subtract(&stale);
        *filled = left;
        Ok(())
    }
}
