//! Running code of ours in a stopped task: one call at a `syscall` instruction, or a whole batch through the stub.

use super::batch::{Batch, Results};
use super::task::{Stopped, Why, next_event, slow};
use super::{Error, Result, batch, stub};
use crate::base::RemoteAddr;
use crate::kernel::ptrace::{self as kernel, Regs, Wait};
use crate::kernel::status::sigbit;
use nix::errno::Errno;
use std::time::{Duration, Instant};

/// How long one call or batch may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Signals that end batches, in order of choice: their default action is to be ignored, and not SIGCONT, which undoes stops.
pub(super) const MARKERS: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];
const SI_TKILL: i32 = -6;
/// Direction and trap flags, cleared for our code.
const EFLAGS_DF_TF: u64 = 0x500;

/// Where the stub and its area lie in a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    /// First instruction of the stub.
    pub code: u64,
    /// Header of the area.
    pub area: u64,
    /// Bytes of the area.
    pub len: usize,
    /// Stack pointer for the stub: 8 past the signal frame, if one is kept.
    pub rsp: u64,
}

/// The task's own view of itself and the signal that ends its batches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids {
    /// Process id in its own pid namespace.
    pub tgid: i32,
    /// Thread id there.
    pub tid: i32,
    /// End signal.
    pub marker: i32,
}

/// Everything blocked but `but` (0 = everything).
fn all_but(but: i32) -> u64 {
    if but == 0 { u64::MAX } else { !sigbit(but) }
}

/// Runs `batch` in `task`, which comes back in the stop of the marker with the stub's registers (and, of the mask, all blocked but the
/// marker). `base` gives the segment registers and bases. The order of writes is such that dying between any two of them leaves a
/// task that goes on correctly where a frame is kept: registers first, then the mask.
pub(super) fn batch(
    task: &mut Stopped,
    site: &Site,
    ids: Ids,
    base: &Regs,
    batch: &Batch,
) -> Result<Results> {
    let need = batch.size();
    if need > site.len {
        return Err(Error::TooBig { tid: task.tid(), need, have: site.len });
    }
    task.mem()?.write(site.area, &batch.encode(site.area, (ids.tgid, ids.tid), ids.marker))?;
    let mut regs = *base;
    regs.rip = site.code;
    regs.rsp = site.rsp;
    regs.r12 = site.area;
    regs.orig_rax = u64::MAX;
    regs.eflags &= !EFLAGS_DF_TF;
    task.set_regs(&regs)?;
    task.set_sigmask(all_but(ids.marker))?;
    resume(task, kernel::cont)?;
    to_marker(task, site, ids)?;
    let mut image = vec![0; need];
    task.mem()?.read(site.area, &mut image)?;
    Ok(batch.decode(image))
}

fn resume(task: &Stopped, how: impl Fn(i32, i32) -> kernel::Result<()>) -> Result<()> {
    how(task.tid(), 0).map_err(Error::sys(task.tid(), "resuming"))
}

/// Waits for the marker; what else stops the task is put aside.
fn to_marker(task: &mut Stopped, site: &Site, mut ids: Ids) -> Result<()> {
    let end = Instant::now() + LIMIT;
    loop {
        let mut signal = 0;
        match event(task, end, "a batch of calls")? {
            Wait::Signal(marker) if marker == ids.marker => {
                let info =
                    kernel::siginfo(task.tid()).map_err(Error::sys(task.tid(), "PTRACE_GETSIGINFO"))?;
                if field(&info, 8) == SI_TKILL && field(&info, 16) == ids.tgid {
                    task.set_why(Why::Marker);
                    return Ok(());
                }
                ids.marker = other_marker(task, site, ids)?;
                signal = marker;
            }
            // SIGSTOP cannot be blocked: the batch goes on, the stop comes at the end.
            Wait::Signal(libc::SIGSTOP) => task.resend_stop = true,
            Wait::Signal(signal) => return Err(fault(task, signal)),
            Wait::Interrupted | Wait::GroupStop(_) | Wait::Syscall | Wait::Event(_) => {}
            Wait::Ended(_) => return Err(Error::Gone(task.tid())),
        }
        resume(task, |tid, _| kernel::cont(tid, signal))?;
    }
}

/// Somebody else sent the marker's signal in mid-batch. It is not ours to eat (a thread may wait for it by sigwait or signalfd): the batch
/// ends by another signal, and this one, blocked from now on, is queued again by the kernel when it is passed on (ptrace_signal in
/// kernel/signal.c). The stub loads the marker's number from `finish` on: it is sent back there if it was past it.
fn other_marker(task: &Stopped, site: &Site, ids: Ids) -> Result<i32> {
    let status = task.status()?;
    let used = status.sig_caught | status.sig_pending | status.shd_pending | sigbit(ids.marker);
    let other = MARKERS.into_iter().find(|&signal| used & sigbit(signal) == 0);
    let other = other.ok_or(Error::NoMarker { pid: status.tgid })?;
    task.mem()?.write(site.area + batch::MARKER_AT, &(other as u64).to_le_bytes())?;
    let mut regs = task.regs()?;
    let finish = site.code + stub::finish();
    if regs.rip > finish {
        regs.rip = finish;
        regs.orig_rax = u64::MAX;
        task.set_regs(&regs)?;
    }
    task.set_sigmask(all_but(other))?;
    Ok(other)
}

fn field(info: &kernel::SigInfo, at: usize) -> i32 {
    i32::from_le_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]])
}

fn fault(task: &Stopped, signal: i32) -> Error {
    let rip = task.regs().map_or(0, |r| r.rip);
    Error::Fault { tid: task.tid(), signal, rip: RemoteAddr(rip) }
}

fn event(task: &Stopped, end: Instant, what: &'static str) -> Result<Wait> {
    let left = end.saturating_duration_since(Instant::now());
    next_event(task.tid(), left)?.ok_or_else(|| slow(task.tid(), what, LIMIT))
}

/// Makes one call at the `syscall` instruction at `regs.rip`, with `regs` as they are (number and arguments in them), everything blocked,
/// and leaves the task in a stop from which registers with a call to restart can be put back.
///
/// Entry stop, then an interrupt that takes effect when the call returns: no instruction of the program runs. Only for calls that do not
/// sleep (an interrupt is pending while they run): mmap, munmap, mprotect. Three stops instead of two where `sleeps`.
pub(super) fn single(
    task: &mut Stopped,
    regs: &Regs,
    sleeps: bool,
) -> Result<std::result::Result<i64, Errno>> {
    task.set_regs(regs)?;
    task.set_sigmask(all_but(0))?;
    resume(task, |tid, _| kernel::cont_to_syscall(tid))?;
    let end = Instant::now() + LIMIT;
    to_syscall_stop(task, end)?;
    if sleeps {
        resume(task, |tid, _| kernel::cont_to_syscall(tid))?;
        to_syscall_stop(task, end)?;
    }
    kernel::interrupt(task.tid()).map_err(Error::sys(task.tid(), "PTRACE_INTERRUPT"))?;
    loop {
        resume(task, kernel::cont)?;
        match event(task, end, "a call")? {
            Wait::Interrupted => task.set_why(Why::Interrupted),
            Wait::GroupStop(signal) => task.set_why(Why::GroupStop(signal)),
            Wait::Signal(libc::SIGSTOP) => {
                task.resend_stop = true;
                continue;
            }
            Wait::Signal(signal) => return Err(fault(task, signal)),
            Wait::Ended(_) => return Err(Error::Gone(task.tid())),
            Wait::Syscall | Wait::Event(_) => continue,
        }
        break;
    }
    Ok(match task.regs()?.rax as i64 {
        e @ -4095..=-1 => Err(Errno::from_raw(-e as i32)),
        value => Ok(value),
    })
}

fn to_syscall_stop(task: &mut Stopped, end: Instant) -> Result<()> {
    loop {
        match event(task, end, "a call")? {
            Wait::Syscall => return Ok(()),
            Wait::Signal(libc::SIGSTOP) => task.resend_stop = true,
            Wait::Signal(signal) => return Err(fault(task, signal)),
            Wait::Ended(_) => return Err(Error::Gone(task.tid())),
            Wait::Interrupted | Wait::GroupStop(_) | Wait::Event(_) => {}
        }
        resume(task, |tid, _| kernel::cont_to_syscall(tid))?;
    }
}

/// Registers for one call at `at`.
pub(super) fn call_regs(base: &Regs, at: u64, nr: i64, args: [u64; 6]) -> Regs {
    let mut regs = *base;
    regs.rip = at;
    regs.rax = nr as u64;
    regs.orig_rax = u64::MAX;
    regs.eflags &= !EFLAGS_DF_TF;
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
    regs
}
