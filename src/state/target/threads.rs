//! Threads and their settings, the job-control stop, and the last acts: scratch away, registers as they were.

use super::error::{Error, Result};
use super::finish::Hands;
use super::{Body, Builder, Host};
use crate::kernel::ptrace::{self, Wait};
use crate::kernel::sched::{self, SchedAttr};
use crate::remote::{self, Fate, Stopped, new_child, thread_tids};
use crate::state::cpu::xstate::{self, Component};
use crate::state::cred::Seccomp;
use crate::state::cred::restore::Filter;
use crate::state::mm::{Backing, MmLayout, VmaFlags};
use crate::state::script::Script;
use crate::state::task::{ProcessState, ThreadState, restore};
use crate::state::{PodState, Tree, cpu, cred, mm, signal, timer};
use nix::errno::Errno;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long a stop may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// `CLD_STOPPED` (`siginfo_t.si_code` of SIGCHLD).
const CLD_STOPPED: i32 = 5;
const SYSCALL: [u8; 2] = [0x0f, 0x05];

impl Builder {
    /// Takes over the threads that the leader's batch made.
    pub(super) fn births_of_threads(&mut self, p: &ProcessState) -> Result<()> {
        let Some(others) = p.threads.get(1..).filter(|t| !t.is_empty()) else { return Ok(()) };
        let body = self.bodies.get_mut(&p.pid).ok_or(Error::Order("make threads"))?;
        let found = thread_tids(body.host).map_err(Error::remote(p.pid, "finding its threads"))?;
        for t in others {
            let Some(host) = found.get(&t.tid) else {
                return Err(Error::Unfit { pid: p.pid, what: format!("its thread {} was not born", t.tid) });
            };
            let task =
                new_child(*host, Fate::Kill).map_err(Error::remote(p.pid, "taking over its thread"))?;
            body.threads.push((t.tid, task));
        }
        Ok(())
    }

    /// All threads of a process go before others on this host until they have their own priority. Not earlier: what a
    /// thread in a hurry gives birth to would have no timer slack.
    pub(super) fn hurry(&self, pid: i32) {
        let threads = self.bodies.get(&pid).into_iter().flat_map(|b| &b.threads);
        threads.for_each(|(_, task)| sched::hurry(task.tid()));
    }

    /// Puts a process into the job-control stop it was in. It takes its SIGSTOP before any instruction; other
    /// threads follow when they are let go next, that is in their batches, and all are in it again once detached.
    pub(super) fn stop_job(&mut self, pid: i32) -> Result<()> {
        let task = self.leader(pid)?;
        let host = task.tid();
        let sys = |doing| {
            move |e: nix::errno::Errno| Error::Io {
                what: format!("process {pid}: {doing}"),
                source: e.into(),
            }
        };
        ptrace::tgkill(host, host, libc::SIGSTOP).map_err(sys("tgkill SIGSTOP"))?;
        ptrace::cont(host, 0).map_err(sys("PTRACE_CONT"))?;
        let start = Instant::now();
        loop {
            match ptrace::try_wait(host).map_err(sys("waitpid"))? {
                Some(Wait::Signal(libc::SIGSTOP)) => {
                    ptrace::cont(host, libc::SIGSTOP).map_err(sys("PTRACE_CONT"))?;
                }
                Some(Wait::GroupStop(_)) => return Ok(()),
                Some(Wait::Ended(_)) => {
                    return Err(Error::remote(pid, "stopping it")(remote::Error::Gone(host)));
                }
                Some(_) => ptrace::cont(host, 0).map_err(sys("PTRACE_CONT"))?,
                None if start.elapsed() > PATIENCE => {
                    let what = "it does not come to its job-control stop".to_owned();
                    return Err(Error::Unfit { pid, what });
                }
                None => ptrace::yield_now(),
            }
        }
    }

    /// Everything a process and its threads set on themselves; threads first, since the leader's part ends with what
    /// all threads' changes of credentials would undo.
    pub(super) fn settle(
        &mut self,
        tree: &Tree,
        state: &PodState,
        p: &ProcessState,
        layout: &MmLayout,
        hands: &Hands<'_>,
    ) -> Result<()> {
        let pid = p.pid;
        let mut before = self.host.before;
        for t in &p.threads {
            if let Some(what) = cred::restore::beyond(&t.cred, before).into_iter().next() {
                return Err(Error::Unfit { pid, what });
            }
        }
        if let Some(bounding) = common_bound(p) {
            before.bounding &= bounding;
        }
        let filters = one_filter(p);
        let slot = self.slot.ok_or(Error::Order("finish a process"))?.avoiding(pending(p));
        for (n, t) in p.threads.iter().enumerate().skip(1) {
            let mut s = Script::new();
            first_half(&mut s, pid, t).map_err(Error::unfit(pid))?;
            let by = if filters { Filter::Another } else { Filter::Own };
            second_half(&mut s, t, before, by);
            let body = self.bodies.get_mut(&pid).ok_or(Error::Order("finish a process"))?;
            let (_, task) = body.threads.get_mut(n).ok_or(Error::Order("finish a thread"))?;
            let results = slot.run(task, s.as_batch());
            self.judge(pid, &s, results)?;
        }
        self.note_stops(p);
        let leader = p.threads.first().ok_or(Error::Order("finish a process"))?;
        let unfit = Error::unfit(pid);
        let mut s = Script::new();
        let acts = hands.inside.calls(pid, s.batch());
        forget_children(&mut s, tree, state, p);
        signal::restore::actions(&mut s, &p.signals);
        mm::restore::lock(&mut s, layout);
        restore::lock_future(&mut s, p.lock_future);
        restore::settings(&mut s, p);
        let timers = timer::restore::create(&mut s, &p.timers, self.host.timer_ids).map_err(&unfit)?;
        first_half(&mut s, pid, leader).map_err(&unfit)?;
        signal::restore::process_queue(&mut s, &p.signals.pending, pid).map_err(&unfit)?;
        restore::limits(&mut s, p);
        let by = if filters { Filter::ForAll } else { Filter::Own };
        second_half(&mut s, leader, before, by);
        restore::dumpable(&mut s, p);
        timer::restore::arm(&mut s, &p.timers);
        let results = slot.run(self.leader(pid)?, s.as_batch());
        let results = self.judge(pid, &s, results)?;
        self.late_inside.extend(acts.check(&results).map_err(Error::Hands)?);
        timer::restore::check(&timers, &results).map_err(&unfit)?;
        self.from_outside(p)
    }

    fn note_stops(&mut self, p: &ProcessState) {
        if signal::restore::stop_pending(&p.signals.pending) {
            self.late_stops.push((p.pid, None));
        }
        let waiting = p.threads.iter().filter(|t| signal::restore::stop_pending(&t.signals.pending));
        self.late_stops.extend(waiting.map(|t| (p.pid, Some(t.tid))));
    }

    /// What is written in `/proc`.
    fn from_outside(&mut self, p: &ProcessState) -> Result<()> {
        let host = self.leader(p.pid)?.tid();
        let mut write = |name: &str, value: String| {
            if let Err(e) = std::fs::write(format!("/proc/{host}/{name}"), &value) {
                self.warnings.push(format!("process {}: {name} could not be set to {value}: {e}", p.pid));
            }
        };
        if p.oom_score_adj != self.host.oom_score_adj {
            write("oom_score_adj", p.oom_score_adj.to_string());
        }
        if p.coredump_filter != self.host.coredump_filter {
            write("coredump_filter", format!("{:#x}", p.coredump_filter));
        }
        Ok(())
    }

    /// Takes the scratch away and sets what the first instruction finds.
    pub(super) fn bare(&mut self, p: &ProcessState, layout: &MmLayout) -> Result<()> {
        let pid = p.pid;
        let at = self.syscall_in(pid, layout)?;
        let slot = self.slot.ok_or(Error::Order("finish a process"))?;
        slot.unmap(self.leader(pid)?, at).map_err(Error::remote(pid, "taking the scratch area away"))?;
        let body = self.bodies.get(&pid).ok_or(Error::Order("finish a process"))?;
        for (t, (_, task)) in p.threads.iter().zip(&body.threads) {
            set_cpu(pid, t, task, &self.ctx.xstate, &self.components)?;
            self.host.settle(pid, t, task.tid())?;
        }
        Ok(())
    }

    /// A `syscall` instruction that stays: in the vdso, else in the program's own code.
    fn syscall_in(&mut self, pid: i32, layout: &MmLayout) -> Result<u64> {
        let vdso = layout.vmas.iter().find(|v| v.backing == Backing::Vdso).map(|v| v.range);
        if let (Some(range), Some(offset)) = (vdso, self.vdso_syscall) {
            return Ok(range.start + offset);
        }
        let code = layout.vmas.iter().filter(|v| v.flags.contains(VmaFlags::EXEC | VmaFlags::READ));
        let ranges: Vec<_> = vdso.into_iter().chain(code.map(|v| v.range)).collect();
        let mem = self.leader(pid)?.mem().map_err(Error::remote(pid, "reading its code"))?;
        for range in ranges {
            let mut text = vec![0; range.len().min(4 << 20) as usize];
            if mem.read(range.start, &mut text).is_err() {
                continue;
            }
            if let Some(offset) = text.windows(2).position(|w| w == SYSCALL) {
                if Some(range) == vdso {
                    self.vdso_syscall = Some(offset as u64);
                }
                return Ok(range.start + offset as u64);
            }
        }
        Err(Error::Unfit { pid, what: "no `syscall` instruction is left in it".to_owned() })
    }
}

impl Host {
    /// Gives thread `tid` its own scheduling policy, in place of ours.
    fn settle(&self, pid: i32, t: &ThreadState, tid: i32) -> Result<()> {
        let want = &t.sched;
        let sys =
            |doing| move |e: Errno| Error::Io { what: format!("process {pid}: {doing}"), source: e.into() };
        sched::set_attributes(tid, &SchedAttr::new(want.policy, want.nice, want.priority))
            .map_err(sys("sched_setattr"))?;
        // Real-time threads show none and need none.
        if want.timerslack_ns != 0 && self.timer_slack != Some(want.timerslack_ns) {
            sched::set_timer_slack(tid, want.timerslack_ns).map_err(sys("setting its timer slack"))?;
        }
        Ok(())
    }
}

/// Every signal that waits in a queue of the process: none of them may end a batch.
fn pending(p: &ProcessState) -> u64 {
    let threads = p.threads.iter().flat_map(|t| &t.signals.pending);
    let numbers = p.signals.pending.iter().chain(threads).filter_map(|q| signal::restore::number(q).ok());
    numbers.fold(0, |set, n| set | 1 << (n - 1))
}

/// Settings that do not depend on credentials, or need those we still have.
fn first_half(s: &mut Script, pid: i32, t: &ThreadState) -> std::result::Result<(), String> {
    restore::name(s, &t.comm);
    restore::sched(s, t);
    signal::restore::altstack(s, &t.signals);
    signal::restore::thread_queue(s, &t.signals.pending, pid, t.tid)?;
    cpu::restore::calls(s, &t.cpu);
    Ok(())
}

fn second_half(s: &mut Script, t: &ThreadState, before: cred::restore::Before, by: Filter) {
    cred::restore::calls(s, &t.cred, before, by);
    restore::death_signal(s, t);
}

/// The bounding set that all threads of a process have: the first takes it on before it makes the others.
pub(super) fn common_bound(p: &ProcessState) -> Option<u64> {
    let first = p.threads.first()?.cred.cap_bnd;
    p.threads.iter().all(|t| t.cred.cap_bnd == first).then_some(first)
}

/// Whether the first thread can put the filter on all others with one call, which is made ready for use only once.
fn one_filter(p: &ProcessState) -> bool {
    let Some((first, rest)) = p.threads.split_first() else { return false };
    let same = |t: &ThreadState| {
        (t.cred.seccomp, t.cred.no_new_privs) == (first.cred.seccomp, first.cred.no_new_privs)
    };
    first.cred.seccomp == Seccomp::PodProfile && !rest.is_empty() && rest.iter().all(same)
}

/// Signals that births, stops and ends under our hands have sent to a parent; the true ones are queued afterwards.
fn forget_children(s: &mut Script, tree: &Tree, state: &PodState, p: &ProcessState) {
    let children: Vec<_> = tree.procs.iter().filter(|n| n.ppid == p.pid).collect();
    for child in &children {
        let stopped = state.procs.iter().any(|c| c.pid == child.pid && c.stopped.is_some());
        if stopped && !tells_of_stop(p, child.pid) {
            restore::take_note_of_stop(s, child.pid);
        }
    }
    let signals: HashSet<i32> = children.iter().map(|n| n.exit_signal).chain([libc::SIGCHLD]).collect();
    let mut signals: Vec<i32> = signals.into_iter().filter(|n| (1..=64).contains(n)).collect();
    signals.sort_unstable();
    signals.retain(|n| *n != libc::SIGKILL && *n != libc::SIGSTOP);
    signal::restore::forget(s, &signals);
}

/// Whether the parent has yet to hear that `child` stopped: the signal that says so still waits.
fn tells_of_stop(p: &ProcessState, child: i32) -> bool {
    let word =
        |info: &[u8], at: usize| info.get(at..at + 4).and_then(|b| b.try_into().ok()).map(i32::from_le_bytes);
    p.signals.pending.iter().any(|q| {
        // siginfo_t: si_signo, si_errno, si_code, padding, si_pid.
        word(&q.info, 0) == Some(libc::SIGCHLD)
            && word(&q.info, 8) == Some(CLD_STOPPED)
            && word(&q.info, 16) == Some(child)
    })
}

fn set_cpu(pid: i32, t: &ThreadState, task: &Stopped, from: &[Component], to: &[Component]) -> Result<()> {
    let regs = cpu::restore::registers(&t.cpu.regs).map_err(Error::unfit(pid))?;
    let here = task.xstate().map_err(Error::remote(pid, "reading its extended state"))?.len();
    let xstate = xstate::fit(&t.cpu.xstate, from, to, here).map_err(Error::unfit(pid))?;
    let failed = Error::remote(pid, "setting its registers");
    task.set_xstate(&xstate).map_err(&failed)?;
    task.set_sigmask(t.signals.mask).map_err(&failed)?;
    task.set_regs(&regs).map_err(&failed)
}

impl Body {
    /// The task of a thread.
    pub(super) fn task(&self, tid: i32) -> Option<&Stopped> {
        self.threads.iter().find(|(t, _)| *t == tid).map(|(_, task)| task)
    }
}
