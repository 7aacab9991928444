//! Pause and resume: the pod's tasks frozen where they are, without an EINTR to be seen.

use super::Monitor;
use crate::base::{Failure, Kind};
use crate::freeze::{self, PodTasks};
use crate::pod::store::Status;

impl Monitor {
    /// What the freezer works on.
    ///
    /// # Errors
    /// The pod has no processes.
    pub fn tasks(&self) -> Result<PodTasks, Failure> {
        let Some(pod) = &self.pod else {
            return Err(Failure::new(Kind::Failed, self.record.spec.name.as_str(), "the pod is not running"));
        };
        Ok(PodTasks { cgroup: pod.cgroup.freezer(), init: pod.init.pid })
    }

    /// Freezes every task of the pod. A paused one stays paused.
    pub(super) fn pause(&mut self) -> Result<(), Failure> {
        match self.record.status {
            Status::Paused => return Ok(()),
            Status::Running => {}
            status => return Err(self.not_now("paused", status)),
        }
        freeze::pause(&self.tasks()?)?;
        self.set_status(Status::Paused);
        Ok(())
    }

    /// Lets them run on. A running pod stays running.
    pub(super) fn resume(&mut self) -> Result<(), Failure> {
        match self.record.status {
            Status::Running => return Ok(()),
            Status::Paused => {}
            status => return Err(self.not_now("resumed", status)),
        }
        freeze::resume(&self.tasks()?)?;
        self.set_status(Status::Running);
        Ok(())
    }

    fn not_now(&self, what: &str, status: Status) -> Failure {
        Failure::new(
            Kind::Failed,
            self.record.spec.name.as_str(),
            format!("cannot be {what}: it is {status}"),
        )
    }
}
