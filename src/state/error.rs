//! Why state could not be read: one type for every collector, with the process and the file in it.

use super::object;
use crate::base::{Blocker, Failure, Kind};
use nix::errno::Errno;

/// Why the state of a pod could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A process ended while it was looked at.
    #[error("process {pid} ended while it was looked at")]
    Gone {
        /// Host pid.
        pid: i32,
    },
    /// A call or a file in `/proc` failed.
    #[error("{what} of process {pid}")]
    Read {
        /// Call or file.
        what: String,
        /// Host pid or tid.
        pid: i32,
        /// Why.
        source: Errno,
    },
    /// The kernel wrote something that is not understood.
    #[error("{what} of process {pid} is not understood")]
    Odd {
        /// File or value.
        what: String,
        /// Host pid or tid.
        pid: i32,
    },
    /// What cannot be carried, all of it.
    #[error("{} cannot be carried", things(.0))]
    Refused(Vec<Blocker>),
    /// A file that belongs to the pod.
    #[error("content that belongs to the pod")]
    Object(#[from] object::collect::Error),
    /// Acting in a process of the pod.
    #[error("a stopped process of the pod")]
    Remote(#[source] crate::remote::Error),
    /// Descriptors.
    #[error("descriptors of the pod")]
    Fd(#[source] super::fd::error::Error),
    /// Stopping the pod.
    #[error("stopping the pod")]
    Freeze(#[from] crate::freeze::Error),
    /// Whoever was told that connections are about to be held did not accept it.
    #[error("{0}")]
    Told(Box<Failure>),
    /// The pod's cgroup.
    #[error("the pod's cgroup")]
    Cgroup(#[from] crate::kernel::cgroup::Error),
}

fn things(all: &[Blocker]) -> String {
    match all {
        [one] => one.to_string(),
        _ => format!("{} things", all.len()),
    }
}

impl Error {
    /// For `map_err` of a call on process or file `what`: a vanished process is [`Error::Gone`].
    pub fn read(pid: i32, what: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let what = what.into();
        move |source| match source {
            Errno::ESRCH | Errno::ENOENT => Self::Gone { pid },
            _ => Self::Read { what, pid, source },
        }
    }

    /// Whether something went away while it was looked at: the next look may do better.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Gone { .. } => true,
            Self::Object(e) => e.is_missing(),
            _ => false,
        }
    }

    /// For `ok_or_else` of a parser.
    pub fn odd(pid: i32, what: impl Into<String>) -> impl FnOnce() -> Self {
        let what = what.into();
        move || Self::Odd { what, pid }
    }
}

impl From<crate::remote::Error> for Error {
    fn from(error: crate::remote::Error) -> Self {
        match error {
            crate::remote::Error::Gone(pid) => Self::Gone { pid },
            other => Self::Remote(other),
        }
    }
}

impl From<super::fd::error::Error> for Error {
    fn from(error: super::fd::error::Error) -> Self {
        match error {
            super::fd::error::Error::Blocked(blockers) => Self::Refused(blockers),
            other => Self::Fd(other),
        }
    }
}

/// A blocker of a process without descriptor or path.
pub fn blocker(kind: &str, pid: i32, message: impl Into<String>, remedy: impl Into<String>) -> Blocker {
    Blocker {
        kind: kind.to_owned(),
        pid: Some(pid),
        fd: None,
        path: None,
        message: message.into(),
        remedy: remedy.into(),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(blockers) => Failure::refused("", blockers),
            Error::Told(failure) => *failure,
            other => {
                let mut text = other.to_string();
                let mut source = std::error::Error::source(&other);
                while let Some(inner) = source {
                    text.push_str(": ");
                    text.push_str(&inner.to_string());
                    source = inner.source();
                }
                Failure::new(Kind::Failed, "", text)
            }
        }
    }
}
