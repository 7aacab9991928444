//! Leaving: everything detached under a frozen cgroup, or everything undone.

use super::Builder;
use super::error::{Error, Result};
use super::family;
use crate::kernel::ptrace;
use crate::remote::Fate;
use crate::state::script::{About, Script};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Descriptor of `ns_last_pid` in the pod's init, where it has one.
const LAST_PID_FD: i32 = 5;

impl Builder {
    /// Freezes the pod's cgroup over the stops and lets go of every task, init included: nothing runs until the
    /// cgroup is thawed, and nothing depends on this process any more. Processes that job control had stopped are
    /// in that stop again.
    ///
    /// On failure what is still held is killed; what was let go lies frozen: end the pod's cgroup.
    pub fn detach_frozen(mut self) -> Result<()> {
        if self.slot.is_some() {
            return Err(Error::Order("detach before it was finished"));
        }
        self.ctx.cgroup.freeze()?;
        self.late_stops()?;
        for (pid, body) in std::mem::take(&mut self.bodies) {
            for (_, mut task) in body.threads.into_iter().rev() {
                task.set_fate(Fate::Detach);
                task.detach().map_err(Error::remote(pid, "letting it go"))?;
            }
        }
        match self.init.take() {
            Some(init) => init.detach().map_err(Error::remote(1, "letting the pod's init go")),
            None => Ok(()),
        }
    }

    /// A SIGSTOP that waited: it cannot be blocked, so it comes when nothing of ours is left to run.
    fn late_stops(&mut self) -> Result<()> {
        for (pid, tid) in std::mem::take(&mut self.late_stops) {
            let Some(body) = self.bodies.get(&pid) else { continue };
            let sent = match tid.map(|tid| body.task(tid)) {
                None => kill(Pid::from_raw(body.host), Signal::SIGSTOP),
                Some(Some(task)) => ptrace::tgkill(body.host, task.tid(), libc::SIGSTOP),
                Some(None) => Ok(()),
            };
            sent.map_err(|e| Error::Io { what: format!("process {pid}: SIGSTOP"), source: e.into() })?;
        }
        Ok(())
    }

    /// Takes everything of ours out of init, which then stands as it was found.
    pub(super) fn release_init(&mut self, last_pid: Option<i32>) -> Result<()> {
        let Some(slot) = self.slot else { return Ok(()) };
        let mut s = Script::new();
        if let Some(t) = self.transport.take() {
            s.must("close", About::Number(t.number.into()), libc::SYS_close, &[t.number.into()]);
        }
        if let Some(pid) = last_pid {
            self.cursor(&mut s, pid);
        }
        self.run(1, &s)?;
        let at = self.ctx.syscall_at;
        let (regs, mask) = self.saved;
        let init = self.init.as_mut().ok_or(Error::Order("release init"))?;
        let failed = Error::remote(1, "putting the pod's init back");
        slot.unmap(init, at).map_err(&failed)?;
        self.slot = None;
        init.set_sigmask(mask).map_err(&failed)?;
        init.set_regs(&regs).map_err(&failed)
    }

    /// The pid given out last: births with chosen pids do not move the kernel's cursor, and the next fork would
    /// use a small number that was in use a moment ago. Writing it needs a process of the pod's pid namespace.
    fn cursor(&self, s: &mut Script, last_pid: i32) {
        let text = last_pid.to_string();
        let data = s.data(text.as_bytes());
        let link = std::fs::read_link(format!("/proc/{}/fd/{LAST_PID_FD}", self.ctx.init));
        let fd = if link.is_ok_and(|l| l.ends_with("ns_last_pid")) {
            LAST_PID_FD.into()
        } else {
            let path = s.path(b"/proc/sys/kernel/ns_last_pid");
            let flags = libc::O_WRONLY | libc::O_CLOEXEC;
            s.may(
                "open of",
                About::Path(b"/proc/sys/kernel/ns_last_pid".to_vec()),
                libc::SYS_openat,
                &[libc::AT_FDCWD.into(), path.into(), flags.into()],
            )
            .into()
        };
        s.may(
            "writing ns_last_pid",
            About::Number(last_pid.into()),
            libc::SYS_pwrite64,
            &[fd, data.into(), text.len().into(), 0u64.into()],
        );
        if fd != LAST_PID_FD.into() {
            s.batch().call(libc::SYS_close, &[fd]);
        }
    }

    /// Kills what was built and lets init go.
    pub(super) fn undo(&mut self) {
        let bodies = std::mem::take(&mut self.bodies);
        for body in bodies.values() {
            let _ = kill(Pid::from_raw(body.host), Signal::SIGKILL);
        }
        for (pid, body) in bodies.into_iter().rev() {
            if let Err(e) = family::end(pid, body) {
                tracing::warn!("undoing a pod: {e}");
            }
        }
        if self.slot.is_some()
            && let Err(e) = self.release_init(None)
        {
            tracing::warn!("undoing a pod: {e}");
        }
        // Dropping init lets it go.
        self.init = None;
    }
}
