//! What keeps a pod from being stopped, or let go.

use crate::base::{Failure, Kind};
use crate::kernel::cgroup;
use crate::remote;
use std::time::Duration;

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of stopping, freezing or releasing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One task is in the way.
    #[error(transparent)]
    Task(#[from] remote::Error),
    /// The cgroup is.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// A task that does not come to its stop: in uninterruptible sleep, or a vfork parent whose child neither execs nor exits.
    #[error(
        "process {pid} ({name}), thread {tid}, did not stop within {limit:?}: it is in state {state}{children}"
    )]
    Unstoppable {
        /// Process.
        pid: i32,
        /// Thread.
        tid: i32,
        /// Its name.
        name: String,
        /// State letter.
        state: char,
        /// "; it may wait for its vfork child PID" or empty.
        children: String,
        /// Bound.
        limit: Duration,
    },
    /// New tasks kept coming.
    #[error("the pod starts processes faster than they can be stopped ({tasks} tasks after {limit:?})")]
    TooBusy {
        /// Tasks stopped by then.
        tasks: usize,
        /// Bound.
        limit: Duration,
    },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let remedy = match error {
            Error::Task(task) => return task.into(),
            Error::Unstoppable { .. } => {
                "try again; a task that waits for a dead file server must be freed first"
            }
            Error::TooBusy { .. } => "limit the pod's tasks with --pids",
            Error::Cgroup(_) => "",
        };
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Failure::new(Kind::Failed, "", message).remedy(remedy)
    }
}
