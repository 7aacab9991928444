//! Traced threads as types: [`Running`] → [`Stopped`]. Verbs consume; dropping lets go (or kills, where that is the [`Fate`]).

use super::mem::Mem;
use super::restart::{self, Verdict};
use super::{Error, Result};
use crate::kernel::ptrace::{self as kernel, Regs, RseqConfig, SigInfo, Wait};
use crate::kernel::status::{self, TaskStatus, sigbit};
use std::cell::OnceCell;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

/// How long dropping a running tracee may wait for the stop that detaching needs.
const DROP_LIMIT: Duration = Duration::from_secs(1);

/// What happens to a tracee when its value is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is let go and runs on: every source.
    Detach,
    /// It is killed: skeletons, which must never run half-built.
    Kill,
}

/// Why a task stands still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// We asked, or CLONE_PTRACE attached it.
    Interrupted,
    /// Job control, with this signal: it goes back to that stop when let go.
    GroupStop(i32),
    /// The end of a batch: the stop of our marker signal, which is never delivered.
    Marker,
    /// An event of a traced clone, exec or exit.
    Event(i32),
}

/// Registers and mask, to be put back by [`Stopped::restore`].
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    pub(super) regs: Regs,
    pub(super) mask: u64,
}

/// The next state change of `tid` within `limit`; None when it ran out. Spins first: a stop is microseconds away as a rule.
pub(super) fn next_event(tid: i32, limit: Duration) -> Result<Option<Wait>> {
    const SPIN: Duration = Duration::from_micros(300);
    let start = Instant::now();
    loop {
        match kernel::try_wait(tid) {
            Ok(Some(event)) => return Ok(Some(event)),
            Ok(None) => {}
            // ECHILD: its tid vanished in another thread's exec, or it was never ours.
            Err(nix::errno::Errno::ECHILD) => return Err(Error::Gone(tid)),
            Err(e) => return Err(Error::sys(tid, "waitpid")(e)),
        }
        let waited = start.elapsed();
        if waited > limit {
            return Ok(None);
        }
        if waited < SPIN { kernel::yield_now() } else { std::thread::sleep(Duration::from_micros(50)) }
    }
}

pub(super) fn slow(tid: i32, what: &'static str, limit: Duration) -> Error {
    let status = status::of(tid).unwrap_or_default();
    Error::Slow { tid, name: status.name, state: status.state, what, limit }
}

/// A thread we trace that runs (or is on its way to a stop).
#[derive(Debug)]
pub struct Running {
    tid: i32,
    fate: Fate,
    local: PhantomData<*const ()>,
}

/// What [`Running::poll`] found.
#[derive(Debug)]
pub enum Progress {
    /// It stands.
    Stopped(Stopped),
    /// Not yet.
    Running(Running),
}

impl Running {
    /// Attaches to thread `tid` without stopping it. `options` are `option::*`.
    pub fn seize(tid: i32, options: i32) -> Result<Self> {
        match kernel::seize(tid, options | kernel::option::TRACESYSGOOD) {
            Ok(()) => Ok(Self { tid, fate: Fate::Detach, local: PhantomData }),
            Err(nix::errno::Errno::EPERM) => Err(refused(tid)),
            Err(e) => Err(Error::sys(tid, "PTRACE_SEIZE")(e)),
        }
    }

    /// A task already attached to this thread by CLONE_PTRACE.
    pub(super) fn adopt(tid: i32, fate: Fate) -> Self {
        Self { tid, fate, local: PhantomData }
    }

    /// Host thread id.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Asks it to stop.
    pub fn interrupt(&self) -> Result<()> {
        kernel::interrupt(self.tid).map_err(Error::sys(self.tid, "PTRACE_INTERRUPT"))
    }

    /// Looks, without blocking, whether it stands. A signal on its way is delivered, other events are run through.
    pub fn poll(self) -> Result<Progress> {
        loop {
            let event = match kernel::try_wait(self.tid) {
                Ok(None) => return Ok(Progress::Running(self)),
                Ok(Some(event)) => event,
                Err(nix::errno::Errno::ECHILD) => return self.gone(),
                Err(e) => return Err(Error::sys(self.tid, "waitpid")(e)),
            };
            if let Some(why) = self.absorb(event)? {
                return Ok(Progress::Stopped(self.into_stopped(why)));
            }
        }
    }

    /// Waits until it stands; a stop must have been asked for.
    pub fn wait(self, limit: Duration) -> Result<Stopped> {
        let end = Instant::now() + limit;
        loop {
            let event = match next_event(self.tid, end.saturating_duration_since(Instant::now())) {
                Ok(Some(event)) => event,
                Ok(None) => return Err(slow(self.tid, "stopping", limit)),
                Err(Error::Gone(_)) => return self.gone(),
                Err(e) => return Err(e),
            };
            if let Some(why) = self.absorb(event)? {
                return Ok(self.into_stopped(why));
            }
        }
    }

    /// [`Running::interrupt`] and [`Running::wait`].
    pub fn stop(self, limit: Duration) -> Result<Stopped> {
        self.interrupt()?;
        self.wait(limit)
    }

    /// Takes an event on the way to the stop: Some when it is the stop.
    fn absorb(&self, event: Wait) -> Result<Option<Why>> {
        let signal = match event {
            Wait::Interrupted => return Ok(Some(Why::Interrupted)),
            Wait::GroupStop(signal) => return Ok(Some(Why::GroupStop(signal))),
            Wait::Ended(_) => return Err(Error::Gone(self.tid)),
            // A real signal reported first: it takes its normal course, the interrupt stays asked for.
            Wait::Signal(signal) => signal,
            Wait::Syscall | Wait::Event(_) => 0,
        };
        match kernel::cont(self.tid, signal) {
            // It was killed between the report and our answer: the end is reported next.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(None),
            Err(e) => Err(Error::sys(self.tid, "PTRACE_CONT")(e)),
        }
    }

    fn gone<T>(self) -> Result<T> {
        let this = ManuallyDrop::new(self);
        Err(Error::Gone(this.tid))
    }

    pub(super) fn into_stopped(self, why: Why) -> Stopped {
        let this = ManuallyDrop::new(self);
        Stopped::new(this.tid, why, this.fate)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.fate == Fate::Kill {
            kill(self.tid);
            return;
        }
        // Detaching needs a stop. A task that will not stop stays attached and runs on; our thread's end frees it.
        let _ = kernel::interrupt(self.tid);
        let end = Instant::now() + DROP_LIMIT;
        while let Ok(Some(event)) = next_event(self.tid, end.saturating_duration_since(Instant::now())) {
            match self.absorb(event) {
                Ok(None) => {}
                Ok(Some(_)) => {
                    let _ = kernel::detach(self.tid, 0);
                    return;
                }
                Err(_) => return,
            }
        }
    }
}

/// Kills the process of `tid` and takes its tracer's share of the zombie, without which nobody can reap the process. A leader is
/// reported only after its threads: drop those first.
fn kill(tid: i32) {
    const REAP_LIMIT: Duration = Duration::from_millis(50);
    let tgid = status::of(tid).map_or(tid, |s| s.tgid);
    let _ = kernel::tgkill(tgid, tid, libc::SIGKILL);
    let end = Instant::now() + REAP_LIMIT;
    while let Ok(Some(event)) = next_event(tid, end.saturating_duration_since(Instant::now())) {
        if matches!(event, Wait::Ended(_)) {
            return;
        }
    }
}

fn refused(tid: i32) -> Error {
    let Ok(status) = status::of(tid) else { return Error::Gone(tid) };
    match status {
        TaskStatus { state: 'Z' | 'X', .. } => Error::Gone(tid),
        TaskStatus { tracer: 0, name, .. } => Error::Denied { tid, name },
        TaskStatus { tracer, name, .. } => {
            let tracer_name = status::of(tracer).map_or_else(|_| "?".to_owned(), |t| t.name);
            Error::Traced { tid, name, tracer, tracer_name }
        }
    }
}

/// A thread that stands in a ptrace stop of ours.
#[derive(Debug)]
pub struct Stopped {
    tid: i32,
    why: Why,
    fate: Fate,
    mem: OnceCell<Mem>,
    /// A SIGSTOP that came in a batch: sent again when it is let go.
    pub(super) resend_stop: bool,
    /// Its −EINTR was rewound: looked at again when it is let go.
    rewound: bool,
    local: PhantomData<*const ()>,
}

impl Stopped {
    fn new(tid: i32, why: Why, fate: Fate) -> Self {
        Self { tid, why, fate, mem: OnceCell::new(), resend_stop: false, rewound: false, local: PhantomData }
    }

    /// Host thread id.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Why it stands.
    pub fn why(&self) -> Why {
        self.why
    }

    pub(super) fn set_why(&mut self, why: Why) {
        self.why = why;
    }

    /// The signal of the job-control stop it stands in, if any.
    pub fn group_stop(&self) -> Option<i32> {
        match self.why {
            Why::GroupStop(signal) => Some(signal),
            _ => None,
        }
    }

    /// Sets what dropping it does.
    pub fn set_fate(&mut self, fate: Fate) {
        self.fate = fate;
    }

    /// What dropping it does.
    pub fn fate(&self) -> Fate {
        self.fate
    }

    /// Registers as they stand in the kernel.
    pub fn regs(&self) -> Result<Regs> {
        kernel::regs(self.tid).map_err(Error::sys(self.tid, "PTRACE_GETREGS"))
    }

    /// Writes registers. With a new `rip`, `orig_rax` must be −1 (`u64::MAX`), else the kernel may take 2 off it.
    pub fn set_regs(&self, regs: &Regs) -> Result<()> {
        kernel::set_regs(self.tid, regs).map_err(Error::sys(self.tid, "PTRACE_SETREGS"))
    }

    /// Extended state, uncompacted XSAVE layout.
    pub fn xstate(&self) -> Result<Vec<u8>> {
        kernel::xstate(self.tid).map_err(Error::sys(self.tid, "PTRACE_GETREGSET NT_X86_XSTATE"))
    }

    /// Writes the extended state.
    pub fn set_xstate(&self, bytes: &[u8]) -> Result<()> {
        kernel::set_xstate(self.tid, bytes).map_err(Error::sys(self.tid, "PTRACE_SETREGSET NT_X86_XSTATE"))
    }

    /// The blocked mask the program set.
    pub fn sigmask(&self) -> Result<u64> {
        kernel::sigmask(self.tid).map_err(Error::sys(self.tid, "PTRACE_GETSIGMASK"))
    }

    /// Replaces the blocked mask.
    pub fn set_sigmask(&self, mask: u64) -> Result<()> {
        kernel::set_sigmask(self.tid, mask).map_err(Error::sys(self.tid, "PTRACE_SETSIGMASK"))
    }

    /// Pending signals in order: the process's queue (`shared`) or the thread's own.
    pub fn peek_siginfo(&self, shared: bool) -> Result<Vec<SigInfo>> {
        kernel::peek_siginfo(self.tid, shared).map_err(Error::sys(self.tid, "PTRACE_PEEKSIGINFO"))
    }

    /// The rseq registration.
    pub fn rseq_config(&self) -> Result<Option<RseqConfig>> {
        kernel::rseq(self.tid).map_err(Error::sys(self.tid, "PTRACE_GET_RSEQ_CONFIGURATION"))
    }

    /// Replaces the ptrace options (`option::*`); TRACESYSGOOD is always added.
    pub fn set_options(&self, options: i32) -> Result<()> {
        kernel::set_options(self.tid, options | kernel::option::TRACESYSGOOD)
            .map_err(Error::sys(self.tid, "PTRACE_SETOPTIONS"))
    }

    /// `/proc/T/status` of the thread.
    pub fn status(&self) -> Result<TaskStatus> {
        status::of(self.tid).map_err(Error::proc(self.tid, "status"))
    }

    /// Memory of its process.
    pub fn mem(&self) -> Result<&Mem> {
        if let Some(mem) = self.mem.get() {
            return Ok(mem);
        }
        let mem = Mem::open(self.tid)?;
        Ok(self.mem.get_or_init(|| mem))
    }

    /// Registers with which it can go on anywhere, to be written exactly as they are, `orig_rax` included: a call is made again,
    /// an rseq critical section is aborted, and a signal with a handler that waits now is taken as the kernel would have let it.
    pub fn portable_regs(&self) -> Result<Regs> {
        let regs = self.regs()?;
        let handler_waits = restart::judge(&regs) != Verdict::Done && self.status()?.deliverable() != 0;
        let mut out = restart::portable(&regs, handler_waits);
        if out.orig_rax == u64::MAX {
            out.rip = self.rseq_aborted(out.rip)?;
        }
        Ok(out)
    }

    /// `rip`, or the abort handler when it lies in the rseq critical section in force (`struct rseq_cs`, linux/rseq.h).
    pub(super) fn rseq_aborted(&self, rip: u64) -> Result<u64> {
        const RSEQ_CS_FIELD: u64 = 8;
        let Some(config) = self.rseq_config()? else { return Ok(rip) };
        let mem = self.mem()?;
        let section = mem.word(config.addr + RSEQ_CS_FIELD)?;
        if section == 0 {
            return Ok(rip);
        }
        let (start, length, abort) =
            (mem.word(section + 8)?, mem.word(section + 16)?, mem.word(section + 24)?);
        Ok(if rip.wrapping_sub(start) < length { abort } else { rip })
    }

    /// The restart rule, applied at the stop: a call that answers −EINTR only because we stopped it is made again.
    pub fn hide_stop(&mut self) -> Result<()> {
        let regs = self.regs()?;
        if restart::judge(&regs) != Verdict::Eintr {
            return Ok(());
        }
        if !restart::has_temporary_mask(&regs) && self.status()?.deliverable() != 0 {
            return Ok(());
        }
        self.set_regs(&restart::rewound(&regs))?;
        self.rewound = true;
        Ok(())
    }

    /// The reverse at the end of the stop: when meanwhile a signal with a handler came for a call that was rewound, that call has
    /// been interrupted after all, as it would have been without us (a loop that ends by a handler's flag must not sleep on).
    /// `always`: also where another tracer, now gone, did the rewinding.
    pub fn settle(&mut self, always: bool) -> Result<()> {
        if !self.rewound && !always {
            return Ok(());
        }
        let regs = self.regs()?;
        if restart::interrupted(&regs, true).is_none() || self.status()?.deliverable() == 0 {
            return Ok(());
        }
        let mut code = [0; 2];
        self.mem()?.read(regs.rip, &mut code)?;
        if let Some(regs) = restart::interrupted(&regs, code == [0x0f, 0x05]) {
            self.set_regs(&regs)?;
        }
        Ok(())
    }

    /// Registers and mask as they are.
    pub fn save(&self) -> Result<Saved> {
        Ok(Saved { regs: self.regs()?, mask: self.sigmask()? })
    }

    /// Puts registers and mask back (mask first: dying in between leaves the task able to take signals).
    pub fn restore(&self, saved: &Saved) -> Result<()> {
        self.set_sigmask(saved.mask)?;
        self.set_regs(&saved.regs)
    }

    /// Lets it run, still traced.
    pub fn cont(self) -> Result<Running> {
        kernel::cont(self.tid, 0).map_err(Error::sys(self.tid, "PTRACE_CONT"))?;
        let this = ManuallyDrop::new(self);
        Ok(Running { tid: this.tid, fate: this.fate, local: PhantomData })
    }

    /// Lets go of it. A SIGSTOP swallowed in a batch is sent again first; a job-control stop holds it again. Gone is fine.
    pub fn detach(mut self) -> Result<()> {
        let sent = self.put_back_stop();
        let detached = kernel::detach(self.tid, 0).map_err(Error::sys(self.tid, "PTRACE_DETACH"));
        let result = sent.and(detached);
        let _forgotten = ManuallyDrop::new(self);
        match result {
            Err(Error::Gone(_)) => Ok(()),
            other => other,
        }
    }

    /// Puts back what a batch took: a SIGSTOP, which cannot be masked.
    fn put_back_stop(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.resend_stop) {
            return Ok(());
        }
        let status = self.status()?;
        // A SIGCONT that came after the SIGSTOP has undone it.
        if (status.sig_pending | status.shd_pending) & sigbit(libc::SIGCONT) != 0 {
            return Ok(());
        }
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(status.tgid), nix::sys::signal::SIGSTOP)
            .map_err(Error::sys(self.tid, "kill SIGSTOP"))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        match self.fate {
            Fate::Kill => kill(self.tid),
            Fate::Detach => {
                let _ = self.put_back_stop();
                let _ = kernel::detach(self.tid, 0);
            }
        }
    }
}
