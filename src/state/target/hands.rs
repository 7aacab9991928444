//! The descriptors' half joined to the builder: descriptions are made by a thread in the pod's namespaces, handed to
//! the processes, and what only a process itself can do is done in it.

use super::error::{Error, Result};
use super::finish::Hands;
use super::{Builder, Finished, Skeleton};
use crate::remote::{Results, Running};
use crate::state::fd::restore::{self as fds, HandsContext, Inside, Pending, ProcessFds};
use crate::state::script::Script;
use crate::state::{PodState, Tree};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Instant;

/// What only the processes themselves can do, and what came of it.
pub struct InProcess {
    inside: Inside,
    pending: RefCell<HashMap<i32, Pending>>,
    /// What was not taken again, in words.
    pub warnings: RefCell<Vec<String>>,
}

impl InProcess {
    /// Plans it for a whole pod.
    pub fn plan(state: &PodState) -> Self {
        let procs: Vec<ProcessFds<'_>> =
            state.procs.iter().map(|p| ProcessFds { pid: p.pid, fds: &p.fds }).collect();
        let inside = Inside::plan(&procs, &state.files);
        let warnings = RefCell::new(inside.warnings().to_vec());
        Self { inside, pending: RefCell::default(), warnings }
    }
    /// Appends the calls of one process.
    pub fn calls(&self, pid: i32, script: &mut Script) {
        let pending = self.inside.calls(pid, script.batch());
        self.pending.borrow_mut().insert(pid, pending);
    }
    /// Looks at what the calls of one process did.
    pub fn check(&self, pid: i32, results: &Results) -> std::result::Result<(), String> {
        let Some(pending) = self.pending.borrow_mut().remove(&pid) else { return Ok(()) };
        pending.check(results, &mut self.warnings.borrow_mut()).map_err(|e| e.to_string())
    }
}

impl Builder {
    /// Puts everything but memory in place: descriptions are made, then [`Builder::finish_with`].
    ///
    /// # Errors
    /// A description that cannot be made here, state that does not fit, or what the kernel refuses.
    pub fn finish(&mut self, tree: &Tree, state: &PodState) -> Result<Finished> {
        let start = Instant::now();
        let proc = File::open("/proc").map_err(Error::io("opening /proc"))?;
        let pids: HashMap<i32, i32> = self.bodies.iter().map(|(pid, body)| (*pid, body.host)).collect();
        let ctx =
            HandsContext { proc: proc.as_fd(), objects: &self.objects, ports: &self.ctx.ports, pids: &pids };
        let made = self.ns.run(|| fds::Hands::make(&state.files, &ctx).map_err(Error::Hands))?;
        self.stage("descriptions", start);
        let in_process = InProcess::plan(state);
        let hands = Hands { files: &made.files, in_process: &in_process };
        let done = self.finish_with(tree, state, &hands).and_then(|finished| {
            made.arm_timers(state.realtime_ns).map_err(Error::Hands)?;
            Ok(finished)
        });
        match done {
            Ok(mut finished) => {
                finished.repaired = made.repaired;
                finished.socket_files = made.socket_files;
                finished.late_locks = made.late_locks;
                finished.warnings.extend(made.warnings);
                finished.warnings.extend(in_process.warnings.into_inner());
                Ok(finished)
            }
            Err(e) => {
                if let Ok(root) = File::open(format!("/proc/{}/root", self.ctx.init)) {
                    fds::discard(&root, &made.socket_files);
                }
                Err(e)
            }
        }
    }
}

impl Builder {
    /// Builds the skeleton anew after the tree changed; what was filled is gone.
    ///
    /// # Errors
    /// As [`Builder::skeleton`].
    pub fn rebuild(&mut self, tree: &Tree) -> Result<Skeleton> {
        let old: Vec<i32> = self.bodies.values().map(|b| b.host).collect();
        self.undo();
        // Their pids are wanted again: init, which runs now, has to reap them first.
        let until = Instant::now() + super::PATIENCE;
        for host in old {
            while std::fs::exists(format!("/proc/{host}")).unwrap_or(false) {
                if Instant::now() > until {
                    return Err(Error::Order(
                        "build again before the pod's init had reaped the first skeletons",
                    ));
                }
                std::thread::yield_now();
            }
        }
        let stopped = Running::seize(self.ctx.init, 0).and_then(|r| r.stop(super::PATIENCE));
        let init = stopped.map_err(Error::remote(1, "stopping the pod's init"))?;
        let failed = Error::remote(1, "reading the pod's init");
        self.saved = (init.regs().map_err(&failed)?, init.sigmask().map_err(&failed)?);
        self.init = Some(init);
        (self.slot, self.transport) = (None, None);
        self.live.clear();
        self.objects.clear();
        self.skeleton(tree)
    }
}
