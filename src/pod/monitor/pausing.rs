//! Pause and resume: the pod's tasks frozen where they are, without an EINTR to be seen.

use super::Monitor;
use crate::base::{Failure, Kind};

impl Monitor {
    /// Freezes every task of the pod.
    pub(super) fn pause(&mut self) -> Result<(), Failure> {
        Err(Failure::new(Kind::Usage, self.record.spec.name.as_str(), "not yet supported: pause"))
    }

    /// Lets them run on.
    pub(super) fn resume(&mut self) -> Result<(), Failure> {
        Err(Failure::new(Kind::Usage, self.record.spec.name.as_str(), "not yet supported: resume"))
    }
}
