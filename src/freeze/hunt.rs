//! Finding and stopping every task of a cgroup. A stopped task makes no new ones, so when a whole pass over the cgroup finds nothing
//! new while everything known stands, everything stands.

use super::{Error, PodTasks, Result, StoppedProc, StoppedThread};
use crate::kernel::ptrace::yield_now;
use crate::kernel::status;
use crate::remote::{self, Progress, Running, Stopped};
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

/// Bound for the whole.
const LIMIT: Duration = Duration::from_secs(5);
/// A task that does not stand after this is asked why.
const SUSPICIOUS: Duration = Duration::from_millis(5);

struct Hunt<'a> {
    tasks: &'a PodTasks,
    /// Frozen v2 tasks take a tracer's stop as they are; frozen v1 tasks only once thawed.
    thaw_to_stop: bool,
    known: HashSet<i32>,
    stopped: BTreeMap<i32, Stopped>,
    /// Children of a vfork parent, let run on until it stands.
    loose: Vec<Running>,
    /// Last, so that on a failure the children are let go before the parents that wait for them.
    running: Vec<Running>,
    dead_leaders: HashSet<i32>,
    start: Instant,
}

/// Stops everything in the cgroup but init.
pub(super) fn stop(tasks: &PodTasks, frozen: bool) -> Result<Vec<StoppedProc>> {
    let mut hunt = Hunt {
        tasks,
        thaw_to_stop: frozen && !tasks.cgroup.is_v2(),
        known: HashSet::new(),
        running: Vec::new(),
        stopped: BTreeMap::new(),
        loose: Vec::new(),
        dead_leaders: HashSet::new(),
        start: Instant::now(),
    };
    loop {
        let found = hunt.pass()?;
        if !found && hunt.running.is_empty() {
            return hunt.grouped();
        }
        if hunt.start.elapsed() > LIMIT {
            return Err(Error::TooBusy { tasks: hunt.stopped.len(), limit: LIMIT });
        }
        if hunt.thaw_to_stop {
            tasks.cgroup.thaw()?;
            hunt.thaw_to_stop = false;
        }
        hunt.wait()?;
    }
}

impl Hunt<'_> {
    /// One pass over the cgroup: seizes and interrupts what is new. True when there was something.
    fn pass(&mut self) -> Result<bool> {
        let mut found = false;
        for pid in self.tasks.cgroup.procs()? {
            if pid == self.tasks.init {
                continue;
            }
            let tids = match status::threads(pid).map_err(remote::Error::proc(pid, "task")) {
                Err(remote::Error::Gone(_)) => continue,
                other => other?,
            };
            for tid in tids {
                if !self.known.contains(&tid) {
                    found |= self.seize(pid, tid)?;
                }
            }
        }
        Ok(found)
    }

    fn seize(&mut self, pid: i32, tid: i32) -> Result<bool> {
        let seized = Running::seize(tid, 0).and_then(|running| running.interrupt().map(|()| running));
        match seized {
            Ok(running) => {
                self.known.insert(tid);
                self.running.push(running);
                Ok(true)
            }
            Err(remote::Error::Gone(_)) => {
                if pid == tid && status::of(tid).is_ok_and(|s| s.state == 'Z') {
                    self.dead_leaders.insert(pid);
                }
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until everything seized so far stands or is gone.
    fn wait(&mut self) -> Result<()> {
        let start = Instant::now();
        while !self.running.is_empty() {
            let before = self.running.len();
            for running in std::mem::take(&mut self.running) {
                self.look(running)?;
            }
            if self.running.is_empty() {
                break;
            }
            if start.elapsed() > LIMIT {
                return Err(self.unstoppable());
            }
            if start.elapsed() > SUSPICIOUS {
                self.let_children_run()?;
                std::thread::sleep(Duration::from_micros(200));
            } else if self.running.len() == before {
                yield_now();
            }
        }
        // Their parent stands: now they may stop as well.
        for running in std::mem::take(&mut self.loose) {
            match running.interrupt() {
                Ok(()) => self.running.push(running),
                Err(remote::Error::Gone(_)) => self.forget(running.tid()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn look(&mut self, running: Running) -> Result<()> {
        let tid = running.tid();
        let progress = match running.poll() {
            Err(remote::Error::Gone(_)) => {
                self.forget(tid);
                return Ok(());
            }
            other => other?,
        };
        match progress {
            Progress::Running(running) => self.running.push(running),
            Progress::Stopped(mut stopped) => match stopped.hide_stop() {
                Err(remote::Error::Gone(_)) => self.forget(tid),
                other => {
                    other?;
                    self.stopped.insert(tid, stopped);
                }
            },
        }
        Ok(())
    }

    /// Its id may come again with another task.
    fn forget(&mut self, tid: i32) {
        self.known.remove(&tid);
    }

    /// A vfork parent does not stop before its child execs or exits: the children of what does not stop run on.
    fn let_children_run(&mut self) -> Result<()> {
        let mut children = Vec::new();
        for parent in &self.running {
            children.extend(status::children(parent.tid()).unwrap_or_default());
        }
        for pid in children {
            for tid in status::threads(pid).unwrap_or_default() {
                if let Some(mut stopped) = self.stopped.remove(&tid) {
                    stopped.settle(false)?;
                    match stopped.cont() {
                        Ok(running) => self.loose.push(running),
                        Err(remote::Error::Gone(_)) => self.forget(tid),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        // They may stop for signals of their own or end; neither may be left waiting for us.
        for running in std::mem::take(&mut self.loose) {
            let tid = running.tid();
            match running.poll() {
                Ok(Progress::Running(running)) => self.loose.push(running),
                Ok(Progress::Stopped(stopped)) => self.loose.push(stopped.cont()?),
                Err(remote::Error::Gone(_)) => self.forget(tid),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn unstoppable(&self) -> Error {
        let Some(tid) = self.running.first().map(Running::tid) else {
            return Error::TooBusy { tasks: self.stopped.len(), limit: LIMIT };
        };
        let status = status::of(tid).unwrap_or_default();
        let list: Vec<String> =
            status::children(tid).unwrap_or_default().iter().map(ToString::to_string).collect();
        let children = match list.as_slice() {
            [] => String::new(),
            list => format!("; it may wait for its vfork child {}", list.join(", ")),
        };
        Error::Unstoppable {
            pid: status.tgid,
            tid,
            name: status.name,
            state: status.state,
            children,
            limit: LIMIT,
        }
    }

    /// Everything by process, leaders first.
    fn grouped(self) -> Result<Vec<StoppedProc>> {
        let mut procs: BTreeMap<i32, StoppedProc> = BTreeMap::new();
        for (host_tid, stopped) in self.stopped {
            let status = match stopped.status() {
                Err(remote::Error::Gone(_)) => continue,
                other => other?,
            };
            let proc = procs.entry(status.tgid).or_insert_with(|| StoppedProc {
                host_pid: status.tgid,
                pod_pid: status.pod_tgid(),
                threads: Vec::new(),
                leader_dead: self.dead_leaders.contains(&status.tgid),
            });
            let thread = StoppedThread { host_tid, pod_tid: status.pod_tid(), stopped };
            if host_tid == status.tgid { proc.threads.insert(0, thread) } else { proc.threads.push(thread) }
        }
        Ok(procs.into_values().collect())
    }
}
