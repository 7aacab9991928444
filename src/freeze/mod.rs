//! All tasks of a pod stopped, or none; then the cgroup freezer over the stops.
//!
//! The ptrace stops come first: only in them can batches run, and only there can the restart rule hide the stop from the program. The freezer
//! comes after the last batch: from then on nothing runs even if every process of ours dies.

mod error;
mod hunt;
#[cfg(test)]
mod tests;

pub use error::{Error, Result};

use crate::kernel::cgroup::Freezer;
use crate::kernel::status;
use crate::remote::{self, Session, Stopped};

/// A pod as the freezer sees it.
#[derive(Clone, Debug)]
pub struct PodTasks {
    /// The pod's cgroup, init included.
    pub cgroup: Freezer,
    /// Host pid of the pod's pid 1, which is never stopped by ptrace.
    pub init: i32,
}

/// One thread of a stopped pod.
#[derive(Debug)]
pub struct StoppedThread {
    /// Thread id on the host.
    pub host_tid: i32,
    /// Thread id in the pod.
    pub pod_tid: i32,
    /// The tracee.
    pub stopped: Stopped,
}

/// One process of a stopped pod.
#[derive(Debug)]
pub struct StoppedProc {
    /// Process id on the host.
    pub host_pid: i32,
    /// Process id in the pod.
    pub pod_pid: i32,
    /// Its threads, the leader first unless [`StoppedProc::leader_dead`].
    pub threads: Vec<StoppedThread>,
    /// The first thread ended while others live on (`pthread_exit` in main): it is a zombie and not in `threads`.
    pub leader_dead: bool,
}

impl StoppedProc {
    /// A session in this process through its first thread, and the other threads for `Session::run_on`.
    pub fn session(&mut self) -> remote::Result<(Session<'_>, &mut [StoppedThread])> {
        let siblings: Vec<i32> = self.threads.iter().map(|t| t.host_tid).collect();
        let Some((first, rest)) = self.threads.split_first_mut() else {
            return Err(remote::Error::Gone(self.host_pid));
        };
        Ok((Session::open(&mut first.stopped, &siblings)?, rest))
    }

    /// The signal of the job-control stop the whole process is in, if it is in one.
    pub fn group_stop(&self) -> Option<i32> {
        self.threads.iter().find_map(|t| t.stopped.group_stop())
    }
}

/// Every thread of every process of a pod, stopped and rewound. Dropping it releases everything, as [`StoppedPod::release`] does.
#[derive(Debug)]
pub struct StoppedPod {
    /// Its processes by host pid, pid 1 not among them.
    pub procs: Vec<StoppedProc>,
    tasks: PodTasks,
    /// It was paused when we came: release leaves it so.
    was_frozen: bool,
    frozen: bool,
}

/// Stops every thread of every process in the pod's cgroup, its init excepted, none missing; each is rewound by the restart rule. A paused pod is
/// thawed under the stops (calls cannot run in a frozen task) and is paused again by [`StoppedPod::release`].
///
/// # Errors
/// Nothing is left stopped then. A task traced by somebody else is named with its tracer.
pub fn stop_all(tasks: &PodTasks) -> Result<StoppedPod> {
    let was_frozen = tasks.cgroup.is_frozen()?;
    let found = hunt::stop(tasks, was_frozen);
    let procs = match found {
        Ok(procs) => procs,
        Err(error) => {
            if was_frozen {
                // v1 had to be thawed for the stops; a pod that was paused stays paused.
                tasks.cgroup.freeze()?;
            }
            return Err(error);
        }
    };
    let mut pod = StoppedPod { procs, tasks: tasks.clone(), was_frozen, frozen: was_frozen };
    if was_frozen {
        pod.thaw()?;
    }
    Ok(pod)
}

/// Pauses: stops, rewinds, freezes, lets go. Never the freezer alone, which makes EINTRs. A paused pod stays paused.
pub fn pause(tasks: &PodTasks) -> Result<()> {
    stop_all(tasks)?.leave_frozen()
}

/// Resumes a paused pod. Signals that came in between interrupt the calls they would have interrupted.
pub fn resume(tasks: &PodTasks) -> Result<()> {
    if !tasks.cgroup.is_frozen()? {
        return Ok(());
    }
    match stop_all(tasks) {
        Ok(mut pod) => {
            pod.was_frozen = false;
            pod.let_go(true)
        }
        // A debugger sits on one of its tasks: the pod still has to run again.
        Err(Error::Task(remote::Error::Traced { .. })) => Ok(tasks.cgroup.thaw()?),
        Err(error) => Err(error),
    }
}

impl StoppedPod {
    /// The cgroup freezer over the stops: after the last batch. From here nothing runs whoever dies.
    pub fn freeze_cgroup(&mut self) -> Result<()> {
        if !self.frozen {
            self.tasks.cgroup.freeze()?;
            self.frozen = true;
        }
        Ok(())
    }

    /// Lifts the freezer; the stops hold. For more batches after [`StoppedPod::freeze_cgroup`].
    pub fn thaw(&mut self) -> Result<()> {
        if self.frozen {
            self.tasks.cgroup.thaw()?;
            self.frozen = false;
        }
        Ok(())
    }

    /// Lets everything run on as if nothing had been (a pod that was paused stays paused). Job-control stops hold, signals that came meanwhile
    /// are taken.
    pub fn release(mut self) -> Result<()> {
        if self.was_frozen {
            return self.leave_frozen();
        }
        self.let_go(false)
    }

    /// Lets go of every task under the frozen cgroup: nothing runs, nobody traces. Only thawing is needed afterwards.
    pub fn leave_frozen(mut self) -> Result<()> {
        self.freeze_cgroup()?;
        self.detach(false)
    }

    /// Zombies of the pod as (host pid, pid in the pod): children of its processes and of its init that nobody has reaped.
    pub fn zombies(&self) -> Result<Vec<(i32, i32)>> {
        let mut parents = vec![self.tasks.init];
        parents.extend(self.procs.iter().flat_map(|p| p.threads.iter().map(|t| t.host_tid)));
        let mut found = Vec::new();
        for parent in parents {
            let children = match status::children(parent).map_err(remote::Error::proc(parent, "children")) {
                Err(remote::Error::Gone(_)) => continue,
                other => other?,
            };
            for pid in children {
                match status::of(pid) {
                    Ok(status) if matches!(status.state, 'Z' | 'X') && !self.has_process(pid) => {
                        found.push((pid, status.pod_tgid()));
                    }
                    // Reaped between the list and the look: only init still runs.
                    _ => {}
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn has_process(&self, host_pid: i32) -> bool {
        self.procs.binary_search_by_key(&host_pid, |p| p.host_pid).is_ok()
    }

    /// The process with this host pid.
    pub fn process(&mut self, host_pid: i32) -> Option<&mut StoppedProc> {
        let at = self.procs.binary_search_by_key(&host_pid, |p| p.host_pid).ok()?;
        Some(&mut self.procs[at])
    }

    fn let_go(&mut self, settle_always: bool) -> Result<()> {
        self.thaw()?;
        self.detach(settle_always)
    }

    /// Detaches everything; goes on after a failure and returns the first.
    fn detach(&mut self, settle_always: bool) -> Result<()> {
        let mut first = Ok(());
        for mut thread in self.procs.drain(..).flat_map(|p| p.threads) {
            let settled = thread.stopped.settle(settle_always);
            let detached = thread.stopped.detach();
            for result in [settled, detached] {
                match result {
                    Err(error) if !error.is_gone() && first.is_ok() => first = Err(error.into()),
                    _ => {}
                }
            }
        }
        first
    }
}

impl Drop for StoppedPod {
    fn drop(&mut self) {
        if self.procs.is_empty() {
            return;
        }
        if !self.was_frozen {
            // Nobody is left to tell; a failed thaw is seen by the monitor, which thaws again.
            let _ = self.thaw();
        } else if self.freeze_cgroup().is_err() {
            let _ = self.thaw();
        }
        let _ = self.detach(false);
    }
}
