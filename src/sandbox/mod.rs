//! The walls of a pod, the same for a start and for a restore: capabilities, seccomp, mounts, namespaces.

pub mod caps;
pub mod limits;
pub mod mounts;
pub mod seccomp;
pub mod space;

use crate::base::{Failure, Kind};
use crate::kernel::cgroup;
use nix::errno::Errno;

/// Why a pod's surroundings could not be made.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// A mount failed.
    #[error("cannot mount {path}: {}", .errno.desc())]
    Mount {
        /// Where.
        path: String,
        /// Why.
        errno: Errno,
    },
    /// A step about namespaces or the process in them failed.
    #[error("cannot {what}: {}", .errno.desc())]
    Space {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        errno: Errno,
    },
    /// Capabilities could not be set.
    #[error("cannot set capabilities: {0}")]
    Caps(String),
    /// The control group could not be joined.
    #[error("cannot join the pod's control group")]
    Cgroup(#[from] cgroup::Error),
}

impl Error {
    /// Wraps an I/O error of a step.
    fn io(what: &'static str) -> impl Fn(std::io::Error) -> Error {
        move |e| Error::Space { what, errno: Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)) }
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        let mut text = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(s) = source {
            text = format!("{text}: {s}");
            source = s.source();
        }
        let denied = matches!(
            &e,
            Error::Mount { errno: Errno::EPERM | Errno::EACCES, .. }
                | Error::Space { errno: Errno::EPERM | Errno::EACCES, .. }
        );
        let f = Failure::new(Kind::Failed, "pod", text);
        if denied { f.remedy("podmig needs root with CAP_SYS_ADMIN to make a pod") } else { f }
    }
}
