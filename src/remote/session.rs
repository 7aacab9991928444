//! A session: batches in a program we do not own, which goes on as if nothing had been should we be killed at any instruction.
//!
//! How each moment survives our death (the tasks of a dead tracer run on at once):
//! 1. *First mmap.* A signal frame with the program's registers (rewound) is written below the red zone of a stack, then the registers
//!    are set to a borrowed `syscall; ret` with the stack pointer at that frame: whatever happens, `ret` leads to `rt_sigreturn`, found in
//!    the mappings too. Registers are set before the mask is, and the mask put back before the registers are.
//! 2. *Between batches* the thread stands with its own registers; what is left behind is a scratch mapping, which the next session
//!    recognises (by its place and mark) and removes.
//! 3. *In a batch* the stub ends in `rt_sigreturn` from a frame in the scratch area.
//! 4. *Last munmap*: as the first mmap.
//!
//! The first word of a frame is where `ret` goes; a stack may lie in a Go heap, so the main `[stack]` is preferred for 1. and 4., and the
//! bytes under the frame are put back.

use super::batch::{Batch, MARK, Results};
use super::gadget::{self, Gadgets, Mapping};
use super::run::{self, Ids, Site};
use super::seccomp::Filters;
use super::task::{Saved, Stopped};
use super::{Error, Result, frame, restart, stub};
use crate::base::AddrRange;
use crate::base::addr::PAGE;
use crate::kernel::ptrace::{self as kernel, Regs};
use crate::kernel::status::{self, TaskStatus, sigbit};
use nix::errno::Errno;

/// Where scratch areas are put in programs: an address nobody maps by itself, so that the program's own layout does not change
/// and an orphan is known by its place.
pub const WINDOW: AddrRange = AddrRange { start: 0x2f70_6d60_0000, end: 0x2f70_ad60_0000 };
/// Bytes below the stack pointer that belong to a leaf function (System V ABI).
const RED_ZONE: u64 = 128;
/// Room below the frame for a signal handler, should one run in the instant between two of our writes.
const HEADROOM: u64 = 64 << 10;
/// Largest frame: AMX has 11 KiB of extended state.
const FRAME_ROOM: u64 = 16 << 10;
/// Area of a new scratch; a larger batch gets a mapping of its own.
const AREA: u64 = 64 << 10;

/// Whether a mapping is (or can only be) a scratch area of ours: to be left out when a program's memory is listed.
pub fn is_scratch(range: AddrRange) -> bool {
    WINDOW.start <= range.start && range.end <= WINDOW.end
}

/// Batches in one process, through one of its threads (and others by [`Session::run_on`]). Dropping it closes it.
#[derive(Debug)]
pub struct Session<'a> {
    task: &'a mut Stopped,
    home: Home,
    closed: bool,
}

/// What all threads of the process share in a session.
#[derive(Debug)]
struct Home {
    pid: i32,
    /// The thread it was opened with, whose filters these are.
    opener: i32,
    gadgets: Gadgets,
    maps: Vec<Mapping>,
    scratch: AddrRange,
    /// A larger area, when a batch needed one.
    extra: Option<AddrRange>,
    filters: Filters,
}

/// A thread as it was found.
#[derive(Debug)]
struct Found {
    saved: Saved,
    regs: Regs,
    mask: u64,
    crash: Regs,
    fpstate: Vec<u8>,
    ids: Ids,
}

impl<'a> Session<'a> {
    /// Opens a session in the process of `task`, all of whose other threads, `siblings` (host tids), are stopped by us as well.
    pub fn open(task: &'a mut Stopped, siblings: &[i32]) -> Result<Self> {
        let status = task.status()?;
        let pid = status.tgid;
        for tid in status::threads(pid).map_err(Error::proc(pid, "task"))? {
            // A dead leader cannot run.
            let ours = tid == task.tid() || siblings.contains(&tid);
            if !ours && !status::of(tid).is_ok_and(|s| matches!(s.state, 'Z' | 'X')) {
                return Err(Error::SiblingRuns { pid, tid });
            }
        }
        let filters = Filters::of(task, &status)?;
        let found = Found::read(task, &status)?;
        let maps = gadget::mappings(task.tid())?;
        let gadgets = gadget::find(pid, task.mem()?, &maps)?;
        let len = PAGE + HEADROOM + FRAME_ROOM + AREA;
        let scratch =
            free_range(&maps, len).ok_or(Error::Bootstrap { pid, call: "mmap", source: Errno::ENOMEM })?;
        let mut home = Home { pid, opener: task.tid(), gadgets, maps, scratch, extra: None, filters };
        home.map(task, &found)?;
        let mut session = Self { task, home, closed: false };
        session.settle()?;
        Ok(session)
    }

    /// The thread it goes through.
    pub fn task(&self) -> &Stopped {
        self.task
    }

    /// Runs a batch in the session's own thread. Afterwards the thread stands as it was found.
    pub fn run(&mut self, batch: &Batch) -> Result<Results> {
        if batch.size() as u64 > self.home.area().len() {
            self.grow(batch.size() as u64)?;
        }
        self.home.run(self.task, batch)
    }

    /// Runs a batch in another stopped thread of the same process (what belongs to a thread: `sigaltstack`, `prctl` …).
    pub fn run_on(&mut self, other: &mut Stopped, batch: &Batch) -> Result<Results> {
        if batch.size() as u64 > self.home.area().len() {
            self.grow(batch.size() as u64)?;
        }
        self.home.run(other, batch)
    }

    /// Takes the scratch away. The process is as it was.
    pub fn close(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        self.closed = true;
        if let Some(extra) = self.home.extra.take() {
            let mut b = Batch::new();
            b.call(libc::SYS_munmap, &[extra.start.into(), extra.len().into()]);
            self.home.run(self.task, &b)?;
        }
        let found = Found::read(self.task, &self.task.status()?)?;
        self.home.unmap(self.task, &found)
    }

    /// Stub in place, orphans of sessions that died removed.
    fn settle(&mut self) -> Result<()> {
        let mem = self.task.mem()?;
        let mut code = MARK.to_vec();
        code.extend_from_slice(stub::code());
        mem.write(self.home.scratch.start, &code)?;
        let mut b = Batch::new();
        for map in &self.home.maps {
            if is_orphan(mem, map) {
                b.call(libc::SYS_munmap, &[map.range.start.into(), map.range.len().into()]);
            }
        }
        if !b.is_empty() {
            self.home.run(self.task, &b)?;
        }
        Ok(())
    }

    fn grow(&mut self, need: u64) -> Result<()> {
        let pid = self.home.pid;
        let none = || Error::Bootstrap { pid, call: "mmap", source: Errno::ENOMEM };
        let maps = gadget::mappings(self.task.tid())?;
        let range = free_range(&maps, need.next_multiple_of(PAGE)).ok_or_else(none)?;
        let mut b = Batch::new();
        if let Some(old) = self.home.extra {
            b.call(libc::SYS_munmap, &[old.start.into(), old.len().into()]);
        }
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let map = b.call(libc::SYS_mmap, &mmap_args(range, prot).map(Into::into));
        self.home.extra = None;
        let ret = self.home.run(self.task, &b)?.ret(map);
        ret.map_err(|source| Error::Bootstrap { pid, call: "mmap", source })?;
        self.home.extra = Some(range);
        Ok(())
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.closed {
            // A process that died meanwhile needs nothing; anything else leaves an orphan that the next session removes.
            let _ = self.finish();
        }
    }
}

impl Found {
    fn read(task: &Stopped, status: &TaskStatus) -> Result<Self> {
        let saved = task.save()?;
        let mut regs = task.regs()?;
        if !kernel::is_64bit(&regs) || (regs.orig_rax as i64 > 0 && regs.orig_rax & 0x4000_0000 != 0) {
            return Err(Error::Compat { pid: status.tgid });
        }
        if kernel::syscall_user_dispatch(task.tid())
            .map_err(Error::sys(task.tid(), "syscall user dispatch"))?
        {
            return Err(Error::UserDispatch { tid: task.tid() });
        }
        // Once our code ran, the kernel no longer knows of a critical section: it is aborted now, as after any preemption.
        let aborted = task.rseq_aborted(regs.rip)?;
        if aborted != regs.rip {
            regs.rip = aborted;
            regs.orig_rax = u64::MAX;
        }
        let saved = Saved { regs, ..saved };
        let marker = marker(status)?;
        Ok(Self {
            saved,
            regs,
            mask: saved.mask,
            crash: restart::rewound(&regs),
            fpstate: frame::fpstate(&task.xstate()?),
            ids: Ids { tgid: status.pod_tgid(), tid: status.pod_tid(), marker },
        })
    }
}

impl Home {
    fn area(&self) -> AddrRange {
        let own = AddrRange::new(self.scratch.end - AREA, self.scratch.end);
        self.extra.unwrap_or(own)
    }

    /// A batch in `task`, with a frame of its own; it stands as found afterwards.
    fn run(&mut self, task: &mut Stopped, batch: &Batch) -> Result<Results> {
        let area = self.area();
        let status = task.status()?;
        let other = if task.tid() == self.opener { None } else { Some(Filters::of(task, &status)?) };
        for (nr, args) in batch.planned(area.start) {
            other.as_ref().unwrap_or(&self.filters).check(self.pid, nr, args, self.scratch.start)?;
        }
        let found = Found::read(task, &status)?;
        let at = frame::place(self.scratch.end - AREA, &found.fpstate);
        let bytes = frame::build(at, 0, &found.crash, found.mask, &found.fpstate);
        task.mem()?.write(at, &bytes)?;
        let site = Site {
            code: self.scratch.start + MARK.len() as u64,
            area: area.start,
            len: area.len() as usize,
            rsp: at + 8,
        };
        let results = run::batch(task, &site, found.ids, &found.regs, batch);
        // Also after a failure that left it stopped; of the two errors the batch's tells more.
        let restored = task.restore(&found.saved);
        results.and_then(|results| restored.map(|()| results))
    }

    fn map(&mut self, task: &mut Stopped, found: &Found) -> Result<()> {
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let args = mmap_args(self.scratch, all);
        match self.borrowed_call(task, found, libc::SYS_mmap, args)? {
            Ok(at) if at as u64 == self.scratch.start => Ok(()),
            // A kernel before 4.17 takes the address as a hint; ours are newer, but nothing is lost by looking.
            Ok(_) => Err(self.failed("mmap", Errno::EEXIST)),
            Err(Errno::EACCES | Errno::EPERM) => self.map_split(task, found),
            Err(e) => Err(self.failed("mmap", e)),
        }
    }

    /// Where nothing may be writable and executable at once (PR_SET_MDWE, SELinux execmem): executable first, then all but the code made
    /// writable instead. The code itself is written from outside.
    fn map_split(&mut self, task: &mut Stopped, found: &Found) -> Result<()> {
        let args = mmap_args(self.scratch, libc::PROT_READ | libc::PROT_EXEC);
        self.borrowed_call(task, found, libc::SYS_mmap, args)?.map_err(|e| self.failed("mmap", e))?;
        let (start, len) = (self.scratch.start + PAGE, self.scratch.len() - PAGE);
        let args = [start, len, (libc::PROT_READ | libc::PROT_WRITE) as u64, 0, 0, 0];
        self.borrowed_call(task, found, libc::SYS_mprotect, args)?.map_err(|e| self.failed("mprotect", e))?;
        Ok(())
    }

    fn unmap(&mut self, task: &mut Stopped, found: &Found) -> Result<()> {
        let args = [self.scratch.start, self.scratch.len(), 0, 0, 0, 0];
        self.borrowed_call(task, found, libc::SYS_munmap, args)?
            .map_err(|e| self.failed("munmap", e))
            .map(drop)
    }

    fn failed(&self, call: &'static str, source: Errno) -> Error {
        Error::Bootstrap { pid: self.pid, call, source }
    }

    /// One call at the borrowed `syscall; ret`, with a frame on a stack that leads back to the program.
    fn borrowed_call(
        &self,
        task: &mut Stopped,
        found: &Found,
        nr: i64,
        args: [u64; 6],
    ) -> Result<std::result::Result<i64, Errno>> {
        self.filters.check(self.pid, nr, args, self.gadgets.syscall_ret)?;
        let at = self.stack_place(task, found)?;
        let bytes = frame::build(at, self.gadgets.sigreturn, &found.crash, found.mask, &found.fpstate);
        let mut under = vec![0; bytes.len()];
        task.mem()?.read(at, &mut under)?;
        task.mem()?.write(at, &bytes)?;
        let mut regs = run::call_regs(&found.regs, self.gadgets.syscall_ret, nr, args);
        regs.rsp = at;
        let made = run::single(task, &regs, false);
        let restored = task.restore(&found.saved);
        let made = made?;
        restored?;
        task.mem()?.write(at, &under)?;
        Ok(made)
    }

    /// A place for the frame that nobody's data lies in: below the red zone of the thread on `[stack]` if this is the one (the leader, as a
    /// rule), else at the bottom of `[stack]`, else below the thread's own red zone.
    fn stack_place(&self, task: &Stopped, found: &Found) -> Result<u64> {
        let room = frame::room(&found.fpstate) as u64;
        let stack = self.maps.iter().find(|m| m.name == "[stack]").map(|m| m.range);
        let below = |sp: u64| frame::place(sp - RED_ZONE, &found.fpstate);
        let Some(stack) = stack else { return Ok(below(found.regs.rsp)) };
        let mut sp = found.regs.rsp;
        if !stack.contains(sp) && task.tid() != self.pid {
            // The leader, stopped as well, is the one that lives on [stack].
            sp = kernel::regs(self.pid).map_or(0, |r| r.rsp);
        }
        if stack.contains(sp) {
            return Ok(if sp - stack.start > room + RED_ZONE { below(sp) } else { below(found.regs.rsp) });
        }
        Ok(if stack.len() > room {
            frame::place(stack.start + room, &found.fpstate)
        } else {
            below(found.regs.rsp)
        })
    }
}

fn mmap_args(range: AddrRange, prot: i32) -> [u64; 6] {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    [range.start, range.len(), prot as u64, flags as u64, u64::MAX, 0]
}

/// A free range of `len` bytes: in the window if there is one, else in any gap, high up first.
fn free_range(maps: &[Mapping], len: u64) -> Option<AddrRange> {
    /// Lowest address tried: well above what programs are linked at.
    const FLOOR: u64 = 1 << 32;
    /// Distance kept from a mapping above, which may be a stack that grows down.
    const GAP: u64 = 16 << 20;
    let mut at = WINDOW.start;
    for map in maps.iter().filter(|m| m.range.overlaps(&WINDOW)) {
        if map.range.start >= at + len {
            break;
        }
        at = map.range.end;
    }
    if at + len <= WINDOW.end {
        return Some(AddrRange::new(at, at + len));
    }
    maps.windows(2).rev().find_map(|pair| {
        let (low, high) = (pair[0].range.end.max(FLOOR), pair[1].range.start.checked_sub(GAP)?);
        (high >= low + len).then(|| AddrRange::new(high - len, high))
    })
}

/// What a session that died left: at our place and marked or still empty, or elsewhere, executable and marked.
fn is_orphan(mem: &super::Mem, map: &Mapping) -> bool {
    if map.file.1 != 0 || !map.private || !map.readable || !map.name.is_empty() {
        return false;
    }
    let inside = is_scratch(map.range);
    if !inside && !map.executable {
        return false;
    }
    let mut head = [0; MARK.len()];
    mem.read(map.range.start, &mut head).is_ok() && (head == MARK || (inside && head == [0; MARK.len()]))
}

/// The signal to end batches with: neither caught nor pending, best not blocked either (somebody may wait for it by sigwait or
/// signalfd), its default action being to be ignored.
fn marker(status: &TaskStatus) -> Result<i32> {
    let free = |not: u64| run::MARKERS.into_iter().find(|&signal| sigbit(signal) & not == 0);
    let used = status.sig_caught | status.sig_pending | status.shd_pending;
    free(used | status.sig_blocked).or_else(|| free(used)).ok_or(Error::NoMarker { pid: status.tgid })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anonymous(start: u64, end: u64) -> Mapping {
        Mapping {
            range: AddrRange::new(start, end),
            readable: true,
            executable: false,
            private: true,
            offset: 0,
            file: ("00:00".to_owned(), 0),
            name: String::new(),
        }
    }

    #[test]
    fn scratch_goes_to_the_window_or_a_gap() {
        let len = 0x10000;
        assert_eq!(free_range(&[], len), Some(AddrRange::new(WINDOW.start, WINDOW.start + len)));
        let taken = [anonymous(WINDOW.start, WINDOW.start + 0x1000)];
        assert_eq!(free_range(&taken, len).map(|r| r.start), Some(WINDOW.start + 0x1000));
        let full = [
            anonymous(WINDOW.start - 0x1000, WINDOW.end + 0x1000),
            anonymous(0x7000_0000_0000, 0x7000_0000_1000),
        ];
        let found = free_range(&full, len).expect("a gap");
        assert!(full.iter().all(|m| !m.range.overlaps(&found)));
    }

    #[test]
    fn markers_are_free_signals() {
        let status = |caught: i32, pending: i32, blocked: i32| TaskStatus {
            sig_caught: sigbit(caught),
            shd_pending: sigbit(pending),
            sig_blocked: sigbit(blocked),
            ..TaskStatus::default()
        };
        let (urg, winch, chld, usr) = (libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD, libc::SIGUSR1);
        assert_eq!(marker(&status(usr, usr, usr)).expect("one"), urg);
        assert_eq!(marker(&status(urg, usr, winch)).expect("one"), chld);
        assert_eq!(marker(&status(urg, chld, winch)).expect("one"), winch);
        assert!(marker(&status(urg, winch, chld)).is_ok());
        let mut none = status(urg, winch, usr);
        none.sig_pending = sigbit(chld);
        assert!(matches!(marker(&none), Err(Error::NoMarker { .. })));
    }
}
