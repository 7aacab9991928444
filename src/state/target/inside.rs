//! The pod's namespaces, entered by a short-lived thread: paths, ports and sockets made there are the pod's.

use super::error::{Error, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;

/// Handles to the namespaces of the pod's init.
#[derive(Debug)]
pub struct PodNs {
    init: i32,
    mnt: File,
    rest: [(&'static str, CloneFlags, File); 3],
}

impl PodNs {
    /// Opens those of `init` (host pid).
    pub fn of(init: i32) -> Result<Self> {
        let open = |name: &str| {
            let path = format!("/proc/{init}/ns/{name}");
            File::open(&path).map_err(Error::io(path))
        };
        Ok(Self {
            init,
            mnt: open("mnt")?,
            rest: [
                ("network namespace", CloneFlags::CLONE_NEWNET, open("net")?),
                ("ipc namespace", CloneFlags::CLONE_NEWIPC, open("ipc")?),
                ("uts namespace", CloneFlags::CLONE_NEWUTS, open("uts")?),
            ],
        })
    }

    /// Runs `work` on the calling thread, which lies inside for the rest of its life: so only on a thread made for it.
    pub fn enter_here(&self) -> Result<()> {
        let failed = |what| move |source: Errno| Error::Enter { init: self.init, what, source };
        for (what, flag, file) in &self.rest {
            setns(file, *flag).map_err(failed(what))?;
        }
        // Root and directory are shared by all threads until this: the mount namespace then takes only ours along.
        unshare(CloneFlags::CLONE_FS).map_err(failed("mount namespace (unshare)"))?;
        setns(&self.mnt, CloneFlags::CLONE_NEWNS).map_err(failed("mount namespace"))
    }

    /// Runs `inside` on a thread in the pod's namespaces, and `outside` on this one meanwhile. Descriptors are the
    /// whole process's, so what is opened inside serves outside.
    pub fn beside<A: Send, B>(
        &self,
        inside: impl FnOnce() -> Result<A> + Send,
        outside: impl FnOnce() -> Result<B>,
    ) -> Result<(A, B)> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter_here()?;
                inside()
            });
            let there = outside();
            let here = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((here?, there?))
        })
    }

    /// Runs `inside` on a thread in the pod's namespaces.
    pub fn run<A: Send>(&self, inside: impl FnOnce() -> Result<A> + Send) -> Result<A> {
        self.beside(inside, || Ok(())).map(|(a, ())| a)
    }
}
