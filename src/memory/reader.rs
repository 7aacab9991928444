//! The reader at the source: takes sets of pages and yields chunks. One reader serves many threads: each calls
//! [`Reader::fill`] with a chunk of its own, so memory held is one chunk (1 MiB) per thread; [`super::feed`] puts
//! bounded queues in between where reading and sending shall overlap.

use super::chunk::{Chunk, MAX_DATA, MAX_RUNS, Run};
use super::content::{self, Work};
use super::{Error, PageSet, Space};
use crate::base::AddrRange;
use crate::base::addr::PAGE;
use crate::kernel::vmio::{self, ProcMem};
use crate::state::mm::{MmId, MmLayout};
use crate::state::object::ObjectId;
use nix::errno::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Where the bytes of a space come from.
enum Origin {
    Process { pid: i32, mem: OnceLock<ProcMem> },
    Object { object: ObjectId, file: File },
}

/// How far the work has been handed out.
#[derive(Default)]
struct Cursor {
    work: usize,
    range: usize,
    offset: u64,
    zero: usize,
}

/// Pages in a row of one item of work, to be read.
struct Piece {
    work: usize,
    range: AddrRange,
}

/// Reads sets of pages, each page once, in chunks of at most 1 MiB of data.
pub struct Reader {
    origins: Vec<Origin>,
    work: Vec<Work>,
    cursor: Mutex<Cursor>,
    skipped: Mutex<HashMap<Space, PageSet>>,
    /// Processes may end while they are read.
    running: bool,
}

const PAGE_LEN: usize = PAGE as usize;
static ZEROS: [u8; PAGE_LEN] = [0; PAGE_LEN];

/// Whether a page holds nothing but zeros: one `memcmp`, which ends at the first byte that differs.
pub(super) fn is_zero(page: &[u8]) -> bool {
    ZEROS.get(..page.len()) == Some(page)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All content of the given address spaces (pid on this host by id) and objects: what a first round or a warm move
/// sends. Each object comes once, however many map it.
/// Errors: `UnknownSpace` (a layout without a pid), `Gone`, `Open`, `Scan`, `Object`.
pub fn all_content(
    layouts: &[MmLayout],
    pids: &HashMap<MmId, i32>,
    objects: &HashMap<ObjectId, OwnedFd>,
) -> Result<Vec<Work>, Error> {
    let mut work = Vec::with_capacity(layouts.len() + objects.len());
    for layout in layouts {
        let space = Space::Mm(layout.mm);
        let pid = *pids.get(&layout.mm).ok_or(Error::UnknownSpace(space))?;
        work.push(Work { space, pages: content::content_pages(pid, layout)?, zero: PageSet::new() });
    }
    for (object, fd) in objects {
        let file = content::reopen(*object, fd, false)?;
        let pages = content::object_pages(*object, &file)?;
        work.push(Work { space: Space::Object(*object), pages, zero: PageSet::new() });
    }
    work.sort_by_key(|w| w.space);
    Ok(work)
}

impl Reader {
    /// A reader for the given work. Errors: `UnknownSpace` (neither pid nor handle), `Object` (handle cannot be opened
    /// again for reading).
    pub fn new(
        pids: &HashMap<MmId, i32>,
        objects: &HashMap<ObjectId, OwnedFd>,
        work: Vec<Work>,
    ) -> Result<Self, Error> {
        let origin = |space| match space {
            Space::Mm(mm) => {
                let pid = *pids.get(&mm).ok_or(Error::UnknownSpace(space))?;
                Ok(Origin::Process { pid, mem: OnceLock::new() })
            }
            Space::Object(object) => {
                let fd = objects.get(&object).ok_or(Error::UnknownSpace(space))?;
                Ok(Origin::Object { object, file: content::reopen(object, fd, false)? })
            }
        };
        let origins = work.iter().map(|w| origin(w.space)).collect::<Result<_, Error>>()?;
        Ok(Self { origins, work, cursor: Mutex::default(), skipped: Mutex::default(), running: false })
    }

    /// For a pod that runs: a process that ends meanwhile counts among the [`Reader::skipped`] and is no error.
    #[must_use]
    pub fn while_running(mut self) -> Self {
        self.running = true;
        self
    }

    /// Bytes of memory that will be looked at, all work together.
    pub fn total_bytes(&self) -> u64 {
        self.work.iter().map(|w| w.pages.bytes()).sum()
    }

    /// Pages that could not be read, by space: unmapped since they were found, or guards on kernels that do not tell.
    /// While the pod runs the next round finds them gone; at the freeze they have no content.
    pub fn skipped(&self) -> HashMap<Space, PageSet> {
        lock(&self.skipped).clone()
    }

    /// Fills `chunk` (emptied first) with the next pages; false when nothing is left. Safe to call from many threads,
    /// each with its own chunk: no page comes twice. Pages of zeros become zero runs. A chunk may come out empty
    /// although more follow (nothing in it could be read).
    /// Errors: `Gone`, `Read`, `Object`, `Open`.
    pub fn fill(&self, chunk: &mut Chunk) -> Result<bool, Error> {
        chunk.clear();
        let pieces = self.take(chunk);
        if pieces.is_empty() {
            return Ok(!chunk.is_empty());
        }
        let total: u64 = pieces.iter().map(|p| p.range.len()).sum();
        chunk.data_mut(total as usize)?;
        let mut kept = 0;
        for group in pieces.chunk_by(|a, b| a.work == b.work) {
            let ranges: Vec<AddrRange> = group.iter().map(|p| p.range).collect();
            let space = self.work[group[0].work].space;
            match &self.origins[group[0].work] {
                Origin::Process { pid, mem } => {
                    self.read_process(space, *pid, mem, &ranges, chunk, &mut kept)?
                }
                Origin::Object { object, file } => read_object(*object, file, &ranges, chunk, &mut kept)?,
            }
        }
        chunk.data_mut(kept)?;
        Ok(true)
    }

    /// Hands out the next pieces to read, and puts zero runs into the chunk directly.
    fn take(&self, chunk: &mut Chunk) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut room = MAX_DATA as u64;
        let mut cursor = lock(&self.cursor);
        while let Some(work) = self.work.get(cursor.work) {
            // Each page read may become a run of its own.
            let full = |chunk: &Chunk, room: u64| {
                room == 0 || chunk.runs.len() + ((MAX_DATA as u64 - room) / PAGE) as usize >= MAX_RUNS
            };
            while let Some(range) = work.pages.ranges().get(cursor.range) {
                if full(chunk, room) {
                    return pieces;
                }
                let start = range.start + cursor.offset;
                let len = room.min(range.end - start);
                pieces.push(Piece { work: cursor.work, range: AddrRange::new(start, start + len) });
                room -= len;
                cursor.offset += len;
                if start + len == range.end {
                    cursor.range += 1;
                    cursor.offset = 0;
                }
            }
            while let Some(range) = work.zero.ranges().get(cursor.zero) {
                if full(chunk, room) {
                    return pieces;
                }
                chunk.push_zero(work.space, *range);
                cursor.zero += 1;
            }
            *cursor = Cursor { work: cursor.work + 1, ..Cursor::default() };
        }
        pieces
    }

    /// Reads ranges of a process behind the `kept` bytes already in the chunk's data and moves that mark on.
    fn read_process(
        &self,
        space: Space,
        pid: i32,
        mem: &OnceLock<ProcMem>,
        ranges: &[AddrRange],
        chunk: &mut Chunk,
        kept: &mut usize,
    ) -> Result<(), Error> {
        let total: u64 = ranges.iter().map(AddrRange::len).sum();
        let buf = &mut chunk.buffer()[*kept..*kept + total as usize];
        let fail = |source| match source {
            Errno::ESRCH => Error::Gone { pid },
            _ => Error::Read { pid, addr: ranges[0].start, source },
        };
        let mut missing = PageSet::new();
        let read = vmio::read(pid, ranges, buf).map_err(fail).and_then(|got| {
            if got < buf.len() { read_hard(pid, mem, ranges, buf, got, &mut missing) } else { Ok(()) }
        });
        match read {
            Err(Error::Gone { .. }) if self.running => missing = ranges.iter().copied().collect(),
            other => other?,
        }
        if missing.is_empty() {
            keep(space, ranges, chunk, kept);
        } else {
            // Rare: close the gaps that pages without content left, then go on as if they had not been asked for.
            let mut at = *kept;
            let mut end = at;
            for page in ranges.iter().flat_map(|r| (r.start..r.end).step_by(PAGE_LEN)) {
                if !missing.contains(page) {
                    chunk.buffer().copy_within(at..at + PAGE_LEN, end);
                    end += PAGE_LEN;
                }
                at += PAGE_LEN;
            }
            let wanted: PageSet = ranges.iter().copied().collect();
            keep(space, wanted.subtract(&missing).ranges(), chunk, kept);
            lock(&self.skipped).entry(space).or_default().add(&missing);
        }
        Ok(())
    }
}

/// Reads on, from byte `done` of `buf`, what `process_vm_readv` refused: through `/proc/P/mem`, page after page where
/// that fails too; pages that nothing can read go to `missing`.
fn read_hard(
    pid: i32,
    mem: &OnceLock<ProcMem>,
    ranges: &[AddrRange],
    buf: &mut [u8],
    mut done: usize,
    missing: &mut PageSet,
) -> Result<(), Error> {
    let mem = match mem.get() {
        Some(mem) => mem,
        None => {
            let path = PathBuf::from(format!("/proc/{pid}/mem"));
            let opened = ProcMem::open(pid, false).map_err(|source| match source.raw_os_error() {
                Some(libc::ENOENT | libc::ESRCH) => Error::Gone { pid },
                _ => Error::Open { path, source },
            })?;
            mem.get_or_init(|| opened)
        }
    };
    let mut start = 0; // of this range, in `buf`
    for range in ranges {
        let end = start + range.len() as usize;
        done = done.max(start);
        while done < end {
            let addr = range.start + (done - start) as u64;
            match mem.read(addr, &mut buf[done..end]) {
                Ok(n) => done += n,
                Err(Errno::ESRCH) => return Err(Error::Gone { pid }),
                Err(Errno::EIO | Errno::EFAULT) => {
                    let page = addr / PAGE * PAGE;
                    missing.insert(AddrRange::new(page, page + PAGE));
                    done = start + (page + PAGE - range.start) as usize;
                }
                Err(source) => return Err(Error::Read { pid, addr, source }),
            }
        }
        start = end;
    }
    Ok(())
}

/// Reads ranges of an object; what lies beyond its end is zero.
fn read_object(
    object: ObjectId,
    file: &File,
    ranges: &[AddrRange],
    chunk: &mut Chunk,
    kept: &mut usize,
) -> Result<(), Error> {
    let mut at = *kept;
    for range in ranges {
        let buf = &mut chunk.buffer()[at..at + range.len() as usize];
        let mut done = 0;
        while done < buf.len() {
            let offset = range.start + done as u64;
            match file.read_at(&mut buf[done..], offset) {
                Ok(0) => {
                    buf[done..].fill(0);
                    break;
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Object { act: "read", object, offset, source }),
            }
        }
        at += range.len() as usize;
    }
    keep(Space::Object(object), ranges, chunk, kept);
    Ok(())
}

/// Turns the pages just read behind `kept` into runs: zero pages are taken out of the data.
fn keep(space: Space, ranges: &[AddrRange], chunk: &mut Chunk, kept: &mut usize) {
    let mut at = *kept;
    for range in ranges {
        let mut addr = range.start;
        while addr < range.end {
            // The longest row of pages of the same kind.
            let zero = is_zero(&chunk.buffer()[at..at + PAGE_LEN]);
            let mut len = PAGE_LEN;
            while addr + (len as u64) < range.end
                && is_zero(&chunk.buffer()[at + len..at + len + PAGE_LEN]) == zero
            {
                len += PAGE_LEN;
            }
            if !zero {
                if *kept != at {
                    chunk.buffer().copy_within(at..at + len, *kept);
                }
                *kept += len;
            }
            chunk.push_run(Run { space, addr, len: len as u64, zero });
            at += len;
            addr += len as u64;
        }
    }
}
