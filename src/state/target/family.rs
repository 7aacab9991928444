//! Births and ends: the plan of the family carried out.

use super::error::{Error, Result};
use super::{Body, Builder};
use crate::kernel::ptrace::{self, Wait};
use crate::remote::{self, Fate, Stopped, child_pids, new_child, option};
use crate::state::Tree;
use crate::state::script::{About, Script};
use crate::state::task::plan::{Birth, Family, INIT, Plan};
use crate::state::task::{ProcNode, restore};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long the end of a killed task may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Core dump flag of a wait status (`WCOREFLAG`).
const CORE: i32 = 0x80;

/// A skeleton dies with us, and no filter of its own stops what we do in it.
pub(super) const SKELETON: i32 = option::EXITKILL | option::SUSPEND_SECCOMP;

impl Builder {
    /// All births, in the order of the plan.
    pub(super) fn births(&mut self, plan: &Plan) -> Result<()> {
        let parents = parents(plan);
        for family in &plan.families {
            let mut s = Script::new();
            restore::family(&mut s, family);
            let slot = self.slot.ok_or(Error::Order("give birth"))?;
            let creator = family.creator;
            let results = slot.run(self.leader(creator)?, s.as_batch());
            // Whoever was born is ours to end, even if a later birth failed.
            self.adopt(family, &parents)?;
            self.judge(creator, &s, results).map_err(|e| self.explain(e))?;
        }
        Ok(())
    }

    /// EINVAL of a birth: the pid is beyond what the pod's own pid namespace allows (it may have its own limit).
    fn explain(&self, e: Error) -> Error {
        match &e {
            Error::Call { pid, source }
                if source.errno == Errno::EINVAL && source.what.starts_with("clone3") =>
            {
                Error::Unfit {
                    pid: *pid,
                    what: format!("{source}: beyond the pod's kernel.pid_max, or no such pid"),
                }
            }
            _ => e,
        }
    }

    fn adopt(&mut self, family: &Family, parents: &HashMap<i32, i32>) -> Result<()> {
        let births: Vec<&Birth> = family.before.iter().chain(&family.after).collect();
        let wanted: HashSet<i32> = births.iter().map(|b| b.pid).collect();
        let of: HashSet<i32> = births.iter().filter_map(|b| parents.get(&b.pid).copied()).collect();
        for parent in of {
            let host = self.leader(parent)?.tid();
            let children = child_pids(host).map_err(Error::remote(parent, "finding its children"))?;
            for (pid, host) in children {
                if !wanted.contains(&pid) || self.bodies.contains_key(&pid) {
                    continue;
                }
                let failed = Error::remote(pid, "taking over the new process");
                let task = new_child(host, Fate::Kill).map_err(&failed)?;
                task.set_options(SKELETON).map_err(&failed)?;
                self.bodies.insert(pid, Body { host, threads: vec![(pid, task)] });
            }
        }
        Ok(())
    }

    /// What comes when all are born and in their groups: leaders that left theirs, stand-ins, zombies.
    pub(super) fn part(&mut self, tree: &Tree, plan: &Plan) -> Result<()> {
        for (pid, pgid) in &plan.leaves {
            let mut s = Script::new();
            restore::join(&mut s, *pgid);
            self.run(*pid, &s)?;
        }
        for f in &plan.farewells {
            if let Some(adopter) = f.adopter {
                self.adopter(adopter, true)?;
            }
            if let Some(body) = self.bodies.remove(&f.pid) {
                end(f.pid, body)?;
            }
            let mut s = Script::new();
            restore::reap(&mut s, f.pid);
            self.run(f.parent, &s)?;
            if let Some(adopter) = f.adopter {
                self.adopter(adopter, false)?;
            }
        }
        for node in tree.procs.iter().filter(|n| n.zombie.is_some()) {
            let join = plan.joins.iter().find(|(pid, _)| *pid == node.pid).map(|(_, pgid)| *pgid);
            self.zombie(node, join)?;
        }
        Ok(())
    }

    fn adopter(&mut self, pid: i32, on: bool) -> Result<()> {
        let mut s = Script::new();
        restore::subreaper(&mut s, on);
        self.run(pid, &s).map(drop)
    }

    /// Ends a process the way it had ended; its parent finds it when it waits.
    fn zombie(&mut self, node: &ProcNode, join: Option<i32>) -> Result<()> {
        let status = node.zombie.unwrap_or(0);
        let mut s = Script::new();
        if let Some(pgid) = join {
            restore::join(&mut s, pgid);
        }
        restore::end(&mut s, &node.comm, status);
        self.run(node.pid, &s)?;
        let Some(body) = self.bodies.remove(&node.pid) else { return Ok(()) };
        let Some((_, task)) = body.threads.into_iter().next() else { return Ok(()) };
        let found = if libc::WIFSIGNALED(status) {
            die_of(node.pid, task, libc::WTERMSIG(status))?
        } else {
            self.exit(node.pid, task, libc::WEXITSTATUS(status))?
        };
        if found != status & !CORE {
            let what = format!("its end came out as wait status {found:#x} instead of {status:#x}");
            return Err(Error::Unfit { pid: node.pid, what });
        }
        if status & CORE != 0 {
            self.warnings
                .push(format!("process {}: its status no longer says that it dumped core", node.pid));
        }
        Ok(())
    }

    fn exit(&mut self, pid: i32, mut task: Stopped, code: i32) -> Result<i32> {
        let slot = self.slot.ok_or(Error::Order("end a process"))?;
        let mut s = Script::new();
        s.must("exit_group", About::Number(code.into()), libc::SYS_exit_group, &[code.into()]);
        match slot.run(&mut task, s.as_batch()) {
            // The batch has no end: the task is gone, its status was taken with the wait that told so.
            Err(remote::Error::Gone(_)) => {
                drop(task.detach());
                Ok(code << 8)
            }
            Err(e) => Err(Error::remote(pid, "ending it")(e)),
            Ok(_) => Err(Error::Unfit { pid, what: "it did not end".to_owned() }),
        }
    }
}

/// Who is whose parent once born.
fn parents(plan: &Plan) -> HashMap<i32, i32> {
    let mut parents = HashMap::new();
    for f in &plan.families {
        for b in f.before.iter().chain(&f.after) {
            let parent = if b.sibling { parents.get(&f.creator).copied().unwrap_or(INIT) } else { f.creator };
            parents.insert(b.pid, parent);
        }
    }
    parents
}

/// Lets a task die of `signal`: it is sent, taken and delivered before any instruction runs.
fn die_of(pid: i32, task: Stopped, signal: i32) -> Result<i32> {
    let host = task.tid();
    let sys = |doing| move |e: Errno| Error::Io { what: format!("process {pid}: {doing}"), source: e.into() };
    task.set_sigmask(0).map_err(Error::remote(pid, "ending it"))?;
    ptrace::tgkill(host, host, signal).map_err(sys("tgkill"))?;
    ptrace::cont(host, 0).map_err(sys("PTRACE_CONT"))?;
    let status = until_ended(pid, host, |wait| match wait {
        Wait::Signal(n) if n == signal => signal,
        _ => 0,
    })?;
    drop(task.detach());
    Ok(status & !CORE)
}

/// Kills a process and waits until it has ended.
pub(super) fn end(pid: i32, body: Body) -> Result<()> {
    let gone = |e| e == Errno::ESRCH;
    match kill(Pid::from_raw(body.host), Signal::SIGKILL) {
        Err(e) if !gone(e) => {
            return Err(Error::Io { what: format!("process {pid}: kill"), source: e.into() });
        }
        _ => {}
    }
    for (_, task) in body.threads.into_iter().rev() {
        let host = task.tid();
        drop(task.detach());
        until_ended(pid, host, |_| 0)?;
    }
    Ok(())
}

/// Waits for the end of our tracee `host`; other stops go on with the signal `answer` gives.
fn until_ended(pid: i32, host: i32, answer: impl Fn(Wait) -> i32) -> Result<i32> {
    let start = Instant::now();
    loop {
        match ptrace::try_wait(host) {
            Ok(Some(Wait::Ended(status))) => return Ok(status),
            // Reaped already, or taken along by its leader's end.
            Err(Errno::ECHILD) => return Ok(0),
            Err(e) => return Err(Error::Io { what: format!("process {pid}: waitpid"), source: e.into() }),
            Ok(Some(wait)) => drop(ptrace::cont(host, answer(wait))),
            Ok(None) if start.elapsed() > PATIENCE => {
                let source = std::io::ErrorKind::TimedOut.into();
                return Err(Error::Io { what: format!("process {pid}: it does not end"), source });
            }
            Ok(None) => ptrace::yield_now(),
        }
    }
}
