//! Why a pod cannot be built here; what is missing or different is refused by name.

use crate::base::{Blocker, Failure, Kind};
use crate::state::{object, script, task};
use crate::{kernel, remote};
use nix::errno::Errno;

/// Result of the builder.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the builder. Pids are those of the pod (1 = its init).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task could not be stopped, read or run a batch.
    #[error("process {pid}: {doing}")]
    Remote {
        /// Process.
        pid: i32,
        /// What was under way.
        doing: &'static str,
        /// Why not.
        source: remote::Error,
    },
    /// A call in a process did not do what it was for.
    #[error("process {pid}")]
    Call {
        /// Process.
        pid: i32,
        /// Which call.
        source: script::Failed,
    },
    /// The family cannot be retold.
    #[error("the process tree cannot be rebuilt")]
    Family(#[from] task::plan::Unplannable),
    /// State that makes no sense, or asks for what this host does not have.
    #[error("process {pid}: {what}")]
    Unfit {
        /// Process.
        pid: i32,
        /// What.
        what: String,
    },
    /// Mapped files that are missing or different here.
    #[error("{} mapped files are missing or different here", .0.len())]
    Files(Vec<Blocker>),
    /// Content of the pod could not be made.
    #[error("making memory or a file of the pod")]
    Object(#[from] object::restore::Error),
    /// The pod's namespaces could not be entered.
    #[error("entering the pod's {what} (process {init})")]
    Enter {
        /// Host pid of the pod's init.
        init: i32,
        /// Which.
        what: &'static str,
        /// Why not.
        source: Errno,
    },
    /// Reading or writing outside of any process.
    #[error("{what}")]
    Io {
        /// What was done to what.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Descriptors could not be handed over.
    #[error("process {pid}: handing over descriptors: {what}")]
    HandOver {
        /// Process.
        pid: i32,
        /// What went wrong.
        what: &'static str,
        /// Why.
        source: Errno,
    },
    /// The freezer.
    #[error("the pod's cgroup")]
    Cgroup(#[from] kernel::cgroup::Error),
    /// Called in the wrong order: a mistake of the caller.
    #[error("the builder was asked to {0} out of order")]
    Order(&'static str),
}

impl Error {
    pub(super) fn remote(pid: i32, doing: &'static str) -> impl Fn(remote::Error) -> Error {
        move |source| Error::Remote { pid, doing, source }
    }

    pub(super) fn unfit(pid: i32) -> impl Fn(String) -> Error {
        move |what| Error::Unfit { pid, what }
    }

    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if let Error::Files(blockers) = error {
            return Failure::refused("", blockers);
        }
        let kind = match &error {
            Error::Family(_) | Error::Unfit { .. } => Kind::Refused,
            Error::Object(e) if matches!(e.source, Errno::ENOENT | Errno::EROFS | Errno::EXDEV) => {
                Kind::Refused
            }
            _ => Kind::Failed,
        };
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Failure::new(kind, "", message)
    }
}
