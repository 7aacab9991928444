//! The descriptors' half joined to the builder: descriptions are made by a thread in the pod's namespaces, handed to
//! the processes, and what only a process itself can do is done in it.

use super::error::{Error, Result};
use super::finish::Hands;
use super::{Builder, Finished, check};
use crate::kernel::sched;
use crate::state::fd::restore::{self as fds, HandsContext, Inside, LateLock, ProcessFds};
use crate::state::{PodState, Tree};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Instant;

impl Builder {
    /// Puts everything but memory in place; memory must be filled by now. Afterwards every task stands in a ptrace
    /// stop with its final registers, and nothing of ours is left in it.
    ///
    /// # Errors
    /// A description that cannot be made here, state that does not fit, or what the kernel refuses. The builder is
    /// fit for [`Builder::abort`] then.
    pub fn finish(&mut self, tree: &Tree, state: &PodState) -> Result<Finished> {
        check::state(tree, state)?;
        let start = Instant::now();
        // Each thread gets its true priority at the end.
        self.bodies.values().for_each(|body| sched::favour(body.host));
        let proc = File::open("/proc").map_err(Error::io("opening /proc"))?;
        let pids: HashMap<i32, i32> = self.bodies.iter().map(|(pid, body)| (*pid, body.host)).collect();
        let ctx =
            HandsContext { proc: proc.as_fd(), objects: &self.objects, ports: &self.ctx.ports, pids: &pids };
        let mut made = self.ns.run(|| fds::Hands::make(&state.files, &ctx).map_err(Error::Hands))?;
        let tables: Vec<ProcessFds<'_>> =
            state.procs.iter().map(|p| ProcessFds { pid: p.pid, fds: &p.fds }).collect();
        let inside = Inside::plan(&tables, &state.files);
        self.warnings.extend(made.warnings.drain(..).chain(inside.warnings().iter().cloned()));
        self.stage("open file descriptions", start);
        let done = self.finish_with(tree, state, &Hands { files: &made.files, inside: &inside });
        if let Err(e) = done.and_then(|()| made.arm_timers(state.realtime_ns).map_err(Error::Hands)) {
            if let Ok(root) = File::open(format!("/proc/{}/root", self.ctx.init)) {
                fds::discard(&root, &made.socket_files);
            }
            return Err(e);
        }
        let mut late_locks = made.late_locks;
        for (pid, number, lock) in std::mem::take(&mut self.late_inside) {
            let table =
                state.procs.iter().find(|p| p.pid == pid).map(|p| p.fds.as_slice()).unwrap_or_default();
            let file = table.iter().find(|e| e.fd == number).and_then(|e| made.files.get(&e.file));
            let fd = file.ok_or(Error::Order("take a lock"))?.try_clone();
            let fd = fd.map_err(Error::io("keeping a descriptor whose lock is not free"))?;
            late_locks.push(LateLock { fd, locks: vec![lock], of: Some((pid, number)) });
        }
        Ok(Finished {
            repaired: made.repaired,
            socket_files: made.socket_files,
            late_locks,
            warnings: std::mem::take(&mut self.warnings),
        })
    }
}
