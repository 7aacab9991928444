//! Why descriptors could not be read or put back.

use crate::base::{Blocker, Failure, Kind};
use nix::errno::Errno;

/// Errors of every kind of descriptor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call about a process failed.
    #[error("{call} of pid {pid}")]
    Process {
        /// Which call.
        call: &'static str,
        /// Host pid.
        pid: i32,
        /// Why.
        source: Errno,
    },
    /// A call about a descriptor failed.
    #[error("{call} on fd {fd} of pid {pid}")]
    Fd {
        /// Which call.
        call: &'static str,
        /// Host pid.
        pid: i32,
        /// Number in that process.
        fd: i32,
        /// Why.
        source: Errno,
    },
    /// A call of the host or namespace as a whole failed.
    #[error("{call}")]
    Host {
        /// Which call.
        call: &'static str,
        /// Why.
        source: Errno,
    },
    /// State that cannot be carried.
    #[error("{} descriptor(s) cannot be carried", .0.len())]
    Blocked(Vec<Blocker>),
    /// The object table refused a file.
    #[error("content of fd {fd} of pid {pid}")]
    Object {
        /// Host pid.
        pid: i32,
        /// Number in that process.
        fd: i32,
        /// Why.
        source: crate::state::object::collect::Error,
    },
    /// The image contradicts itself or asks for what cannot be.
    #[error("descriptor {file} of the image: {reason}")]
    Image {
        /// Index of the open file description.
        file: u32,
        /// What is wrong.
        reason: String,
    },
    /// Rebuilding a description failed.
    #[error("{call} for {what}")]
    Restore {
        /// Which call.
        call: &'static str,
        /// What was being made (path, address, kind).
        what: String,
        /// Why.
        source: Errno,
    },
    /// A file at the target is not the file the pod had open.
    #[error("{path}: {reason}")]
    Differs {
        /// Path in the pod.
        path: String,
        /// What is different.
        reason: String,
    },
}

impl Error {
    /// For `map_err` of a call on a descriptor.
    pub(crate) fn fd(call: &'static str, at: (i32, i32)) -> impl FnOnce(Errno) -> Self {
        move |source| Error::Fd { call, pid: at.0, fd: at.1, source }
    }
    /// For `map_err` of a call about a process.
    pub(crate) fn process(call: &'static str, pid: i32) -> impl FnOnce(Errno) -> Self {
        move |source| Error::Process { call, pid, source }
    }
    /// For `map_err` of a call about the host.
    pub(crate) fn host(call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |source| Error::Host { call, source }
    }
    /// For `map_err` of a call that rebuilds something; `what` is only made when it failed.
    pub(crate) fn restore(call: &'static str, what: impl FnOnce() -> String) -> impl FnOnce(Errno) -> Self {
        move |source| Error::Restore { call, what: what(), source }
    }
    /// A contradiction in the image.
    pub(crate) fn image(file: super::FileId, reason: impl Into<String>) -> Self {
        Error::Image { file: file.0, reason: reason.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Blocked(blockers) => Failure::refused("", blockers),
            Error::Differs { path, reason } => {
                Failure::new(Kind::Refused, path, reason).remedy("make the file the same on both hosts")
            }
            other => {
                let mut text = other.to_string();
                let mut source = std::error::Error::source(&other);
                while let Some(cause) = source {
                    text = format!("{text}: {cause}");
                    source = cause.source();
                }
                Failure::new(Kind::Failed, "", text)
            }
        }
    }
}
