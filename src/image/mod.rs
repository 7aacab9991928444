//! An image is a recorded migration: one stream of frames, whether its peer is a host or a file.
//!
//! `frame` is the codec (fixed header first), `record` what the frames say, `check` the test that a
//! whole pod hangs together before anything is built from it, `file` the container on disk.

pub mod check;
pub mod file;
pub mod frame;
pub mod record;

use crate::base::{Failure, Kind};

/// What can be wrong with a stream or an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed.
    #[error("cannot {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Cause.
        source: std::io::Error,
    },
    /// The other side closed the stream, or the file ends early.
    #[error("the stream ends in the middle of {0}")]
    Truncated(&'static str),
    /// Not our format.
    #[error("this is not a podmig stream (bad magic)")]
    Magic,
    /// A version we do not speak.
    #[error("stream version {0}; this podmig reads {min} to {max}", min = frame::OLDEST, max = frame::VERSION)]
    Version(u16),
    /// Larger than the limit for its kind.
    #[error("a frame of kind {kind} says {len} bytes; the limit is {limit}")]
    TooLarge {
        /// Kind number.
        kind: u16,
        /// Announced length in bytes.
        len: u64,
        /// Limit in bytes.
        limit: u64,
    },
    /// Checksum or encoding is wrong.
    #[error("damaged: {0}")]
    Damaged(String),
}

impl Error {
    /// The failure a user sees; `object` is the file or host concerned.
    pub fn failure(&self, object: &str) -> Failure {
        let mut message = self.to_string();
        if let Error::Io { source, .. } = self {
            message = format!("{message}: {}", crate::kernel::errno_text(source));
        }
        let remedy = match self {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "make room there, or choose another place"
            }
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "see that the directory is there"
            }
            Error::Io { .. } => "",
            Error::Version(_) => "use the podmig that wrote it, or one version apart",
            Error::Truncated(_) | Error::Magic | Error::TooLarge { .. } | Error::Damaged(_) => {
                "it is not whole: take it again, or copy it again"
            }
        };
        Failure::new(Kind::Failed, object, message).remedy(remedy)
    }
}
