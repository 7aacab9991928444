//! The skeleton built anew when the tree has changed since it was built.

use super::error::{Error, Result};
use super::{Builder, Skeleton};
use crate::remote::Running;
use crate::state::Tree;
use std::time::Instant;

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
        self.saved = (init.portable_regs().map_err(&failed)?, init.sigmask().map_err(&failed)?);
        self.init = Some(init);
        (self.slot, self.transport) = (None, None);
        self.live.clear();
        self.objects.clear();
        self.skeleton(tree)
    }
}
