//! Batches in a task we own: a skeleton (killed with us) or the pod's own init at the target. No frame is kept.

use super::batch::{Batch, Results};
use super::run::{self, Ids, Site};
use super::task::{Fate, Running, Stopped};
use super::{Error, Result, stub};
use crate::base::AddrRange;
use crate::base::addr::PAGE;
use crate::kernel::status::{self, sigbit};
use nix::errno::Errno;
use std::time::Duration;

/// Bytes at the start of a first slot that hold the stub.
const CODE: u64 = PAGE;
/// Signals that can end a batch in a task of ours, in order of choice: with a tracer they are reported, whatever their action.
const MARKERS: [i32; 6] =
    [libc::SIGURG, libc::SIGWINCH, libc::SIGPWR, libc::SIGSTKFLT, libc::SIGXCPU, libc::SIGIO];

/// A piece of a process's memory in which batches run: stub code, and an area for calls and data.
///
/// It is an address, not a handle: a forked child has the same slot at the same place, threads share the code.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    code: u64,
    area: AddrRange,
    marker: i32,
}

impl Slot {
    /// Maps `range` (page-aligned, at least three pages, free) in `task`'s process by an mmap made at the `syscall` instruction at
    /// `syscall_at`, and puts the stub there. The task's registers and mask are as before.
    pub fn map(task: &mut Stopped, syscall_at: u64, range: AddrRange) -> Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let args = [range.start, range.len(), prot as u64, flags as u64, u64::MAX, 0];
        let pid = task.tid();
        let made = task.syscall_at(syscall_at, libc::SYS_mmap, args)?;
        let at = made.map_err(|source| Error::Bootstrap { pid, call: "mmap", source })?;
        if at as u64 != range.start {
            return Err(Error::Bootstrap { pid, call: "mmap", source: Errno::EEXIST });
        }
        Self::settle(task, range)
    }

    /// Puts the stub into `range`, which is mapped readable, writable and executable already.
    pub fn settle(task: &Stopped, range: AddrRange) -> Result<Self> {
        task.mem()?.write(range.start, stub::code())?;
        let area = AddrRange::new(range.start + CODE, range.end);
        Ok(Self { code: range.start, area, marker: MARKERS[0] })
    }

    /// A second slot for another thread of the process: the same code, its own `area` (mapped readable and writable, 16-aligned).
    #[must_use]
    pub fn share(&self, area: AddrRange) -> Self {
        Self { area, ..*self }
    }

    /// The same slot, ending its batches by a signal that is not in `pending` (which the process or thread has queued by then; a
    /// queued one would be taken for the end).
    #[must_use]
    pub fn avoiding(&self, pending: u64) -> Self {
        let marker = MARKERS.into_iter().find(|&m| pending & sigbit(m) == 0).unwrap_or(self.marker);
        Self { marker, ..*self }
    }

    /// Where it lies: code and area.
    pub fn code(&self) -> u64 {
        self.code
    }

    /// Its area.
    pub fn area(&self) -> AddrRange {
        self.area
    }

    /// Address of a `syscall` instruction followed by nothing to return to, for [`Stopped::syscall_at`].
    pub fn syscall_at(&self) -> u64 {
        let code = stub::code();
        let at = code.windows(2).position(|w| w == [0x0f, 0x05]).unwrap_or(0);
        self.code + at as u64
    }

    /// Runs `batch` in `task`, a thread of a process that has this slot. Its registers and mask are the stub's afterwards
    /// (save and restore them, or set final ones).
    pub fn run(&self, task: &mut Stopped, batch: &Batch) -> Result<Results> {
        let base = task.regs()?;
        let status = task.status()?;
        let ids = Ids { tgid: status.pod_tgid(), tid: status.pod_tid(), marker: self.marker };
        let site = Site {
            code: self.code,
            area: self.area.start,
            len: self.area.len() as usize,
            rsp: self.area.end,
        };
        run::batch(task, &site, ids, &base, batch)
    }

    /// Takes the first slot's mapping away again, by a munmap made at `syscall_at` (outside the slot). Registers are as before.
    pub fn unmap(self, task: &mut Stopped, syscall_at: u64) -> Result<()> {
        let range = AddrRange::new(self.code, self.area.end);
        let pid = task.tid();
        task.syscall_at(syscall_at, libc::SYS_munmap, [range.start, range.len(), 0, 0, 0, 0])?
            .map_err(|source| Error::Bootstrap { pid, call: "munmap", source })
            .map(drop)
    }
}

impl Stopped {
    /// Makes one call at the `syscall` instruction at `at`, by PTRACE_SYSCALL, and puts registers and mask back. Slow (two or three
    /// stops); for what no batch can do: the first mmap and the last munmap, or calls under SUSPEND_SECCOMP.
    pub fn syscall_at(
        &mut self,
        at: u64,
        nr: libc::c_long,
        args: [u64; 6],
    ) -> Result<std::result::Result<i64, Errno>> {
        let saved = self.save()?;
        let quick = [libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mprotect, libc::SYS_mremap].contains(&nr);
        let made = run::single(self, &run::call_regs(&self.regs()?, at, nr, args), !quick);
        self.restore(&saved)?;
        made
    }
}

/// Takes over a task that a batch made by clone3 with CLONE_PTRACE: waits for the stop in which it begins life. `host_tid` is its id
/// here (see [`child_pids`], [`thread_tids`]); `fate` what dropping it does. Its options are those of its maker.
pub fn new_child(host_tid: i32, fate: Fate) -> Result<Stopped> {
    const LIMIT: Duration = Duration::from_secs(5);
    Running::adopt(host_tid, fate).wait(LIMIT)
}

/// Host tids of the threads of process `host_pid`, by their id in the pod: for finding what a batch of clone3 calls made.
pub fn thread_tids(host_pid: i32) -> Result<std::collections::HashMap<i32, i32>> {
    let tids = status::threads(host_pid).map_err(Error::proc(host_pid, "task"))?;
    tids_of(&tids)
}

/// Host pids of the children (and of those it adopted) of thread `host_tid`, by their pid in the pod.
pub fn child_pids(host_tid: i32) -> Result<std::collections::HashMap<i32, i32>> {
    tids_of(&status::children(host_tid).map_err(Error::proc(host_tid, "children"))?)
}

fn tids_of(tids: &[i32]) -> Result<std::collections::HashMap<i32, i32>> {
    let mut found = std::collections::HashMap::with_capacity(tids.len());
    for &tid in tids {
        match status::of(tid) {
            Ok(status) => drop(found.insert(status.pod_tid(), tid)),
            Err(e) => match Error::proc(tid, "status")(e) {
                Error::Gone(_) => {}
                e => return Err(e),
            },
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::{Arg, gadget, option};
    use std::process::{Child, Command};

    /// A sleeping child, killed at the end.
    struct Sleeper(Child);
    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    const PLACE: AddrRange = AddrRange { start: 0x2000_0000_0000, end: 0x2000_0008_0000 };

    fn slotted() -> (Sleeper, Stopped, Slot, u64) {
        let child = Sleeper(Command::new("sleep").arg("1000").spawn().expect("sleep"));
        let tid = child.0.id() as i32;
        let mut task =
            Running::seize(tid, option::EXITKILL).and_then(|r| r.stop(Duration::from_secs(5))).expect("stop");
        task.set_fate(Fate::Kill);
        let maps = gadget::mappings(tid).expect("maps");
        let found = gadget::find(tid, task.mem().expect("mem"), &maps).expect("gadgets");
        let slot = Slot::map(&mut task, found.syscall_ret, PLACE).expect("map");
        (child, task, slot, found.syscall_ret)
    }

    #[test]
    fn a_batch_passes_results_on_and_stops_at_errors() {
        let (_child, mut task, slot, at) = slotted();
        let mut b = Batch::new();
        let text = b.data(b"through a pipe");
        let (ends, got, far) = (b.out(8), b.out(14), b.out(300_000));
        let pid = b.call(libc::SYS_getpid, &[]);
        let pipe = b.must(libc::SYS_pipe2, &[ends.into(), libc::O_CLOEXEC.into()]);
        b.must(libc::SYS_write, &[Arg::Int(ends, 4), text.into(), 14.into()]);
        let dup = b.must(libc::SYS_dup, &[Arg::Int(ends, 0)]);
        let read = b.must(libc::SYS_read, &[dup.into(), got.into(), 14.into()]);
        let random = b.must(libc::SYS_getrandom, &[far.into(), 300_000.into(), 0.into()]);
        let bad = b.must(libc::SYS_close, &[9999.into()]);
        let never = b.call(libc::SYS_getpid, &[]);
        let r = slot.run(&mut task, &b).expect("run");
        assert_eq!(r.ret(pid), Ok(i64::from(task.tid())));
        assert_eq!((r.ret(pipe), r.ret(read), r.ret(random)), (Ok(0), Ok(14), Ok(300_000)));
        assert_eq!(r.bytes(got), b"through a pipe");
        assert!(r.bytes(far)[299_000..].iter().any(|&b| b != 0));
        assert_eq!(
            (r.ret(bad), r.done(never), r.ret(never)),
            (Err(Errno::EBADF), false, Err(Errno::ECANCELED))
        );
        assert_eq!(r.first_error().map(|e| e.1), Some(libc::SYS_close));
        slot.unmap(&mut task, at).expect("unmap");
        assert!(gadget::mappings(task.tid()).expect("maps").iter().all(|m| !m.range.overlaps(&PLACE)));
    }

    #[test]
    fn a_batch_that_does_not_fit_is_refused() {
        let (_child, mut task, slot, _) = slotted();
        let mut b = Batch::new();
        b.out(1 << 20);
        assert!(matches!(slot.run(&mut task, &b), Err(Error::TooBig { .. })));
    }

    #[test]
    fn clone3_gives_stopped_children_and_threads() {
        let (_child, mut task, slot, _) = slotted();
        let set_tid = 0u64;
        let mut b = Batch::new();
        let clone = |b: &mut Batch, flags: u64| {
            let mut args = [0u64; 11];
            args[0] = flags;
            args[4] = if flags & libc::CLONE_THREAD as u64 == 0 { libc::SIGCHLD as u64 } else { 0 };
            args[8] = set_tid;
            let bytes: Vec<u8> = args.iter().flat_map(|a| a.to_le_bytes()).collect();
            let data = b.data(&bytes);
            b.must(libc::SYS_clone3, &[data.into(), 88.into()])
        };
        let trace = libc::CLONE_PTRACE as u64;
        let thread_flags =
            libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
        let child = clone(&mut b, trace);
        let thread = clone(&mut b, trace | thread_flags as u64);
        let r = slot.run(&mut task, &b).expect("run");
        let (child, thread) = (r.ret(child).expect("child") as i32, r.ret(thread).expect("thread") as i32);
        let mut child_task =
            new_child(child_pids(task.tid()).expect("children")[&child], Fate::Kill).expect("child");
        let mut thread_task =
            new_child(thread_tids(task.tid()).expect("threads")[&thread], Fate::Kill).expect("thread");
        assert_eq!(child_task.regs().expect("regs").rax, 0);
        // Both run batches of their own: the child in its copy of the slot, the thread in a piece of the area.
        let mut b = Batch::new();
        let (pid, tid) = (b.call(libc::SYS_getpid, &[]), b.call(libc::SYS_gettid, &[]));
        let r = slot.run(&mut child_task, &b).expect("child's batch");
        assert_eq!((r.ret(pid), r.ret(tid)), (Ok(child.into()), Ok(child.into())));
        let own = slot.share(AddrRange::new(slot.area().end - 4096, slot.area().end));
        let r = own.run(&mut thread_task, &b).expect("thread's batch");
        assert_eq!((r.ret(pid), r.ret(tid)), (Ok(task.tid().into()), Ok(thread.into())));
    }
}
