//! Between hosts: who a host is, whom it trusts, and the encrypted stream of frames between two of them.
//!
//! `identity` is this host's key, `hosts` the list of trusted ones, `tls` mutual TLS 1.3 with pinned raw
//! keys, `channel` frames over TLS or over the standard streams of ssh, `message` and `hello` what is said.

pub mod channel;
pub mod hello;
pub mod hosts;
pub mod identity;
pub mod message;
pub mod tls;

use crate::base::{Failure, Kind};

/// What can go wrong between hosts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer cannot be reached.
    #[error("{host} ({addr}) cannot be reached")]
    Unreachable {
        /// Name of the host.
        host: String,
        /// Address tried.
        addr: String,
        /// Cause.
        source: std::io::Error,
    },
    /// ssh ended before podmig on the other side answered.
    #[error("{host} cannot be reached: ssh ended before podmig answered there")]
    Ssh {
        /// Name of the host.
        host: String,
    },
    /// The peer shows another key than the one pinned, or does not know ours.
    #[error("{host} is not trusted, or does not trust this host: {reason}")]
    Untrusted {
        /// Name of the host.
        host: String,
        /// Reason.
        reason: String,
    },
    /// No such host in the list.
    #[error("no host named {0} is known here")]
    UnknownHost(String),
    /// A line of the hosts file is wrong.
    #[error("{path}: {reason}")]
    HostsFile {
        /// File.
        path: String,
        /// What is wrong, with the line's number.
        reason: String,
    },
    /// A local file could not be read or written.
    #[error("cannot {doing} {path}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// Path.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The stream broke.
    #[error("lost contact with {host}")]
    Lost {
        /// Name of the host.
        host: String,
        /// Cause.
        #[source]
        source: crate::image::Error,
    },
    /// The peer speaks no version of ours.
    #[error("{host} speaks protocol versions {theirs:?}, this podmig {ours:?}")]
    Version {
        /// Name of the host.
        host: String,
        /// Lowest and highest of the peer.
        theirs: (u16, u16),
        /// Lowest and highest of ours.
        ours: (u16, u16),
    },
    /// The peer said something that does not fit here.
    #[error("{host} answered out of turn ({got})")]
    Protocol {
        /// Name of the host.
        host: String,
        /// What came.
        got: String,
    },
    /// A key could not be made or used.
    #[error("the host key cannot be used: {0}")]
    Key(String),
    /// The peer refused, with its reason.
    #[error("{0}")]
    Refused(Failure),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let message = match &error {
            Error::Unreachable { source, .. } | Error::File { source, .. } => {
                format!("{error}: {}", crate::kernel::errno_text(source))
            }
            Error::Lost { source, .. } => format!("{error}: {source}"),
            _ => error.to_string(),
        };
        match error {
            Error::Unreachable { host, .. } => Failure::new(Kind::Unreachable, host, message)
                .remedy("see that `podmig agent` runs there and the address in `podmig host ls` is right"),
            Error::Ssh { host } => Failure::new(Kind::Unreachable, host, message).remedy(
                "see what ssh said, that it needs no password there, and that podmig is in root's PATH there",
            ),
            Error::Untrusted { host, .. } => Failure::new(Kind::Unreachable, host, message)
                .remedy("compare `podmig host id` on both hosts, then `podmig host add` each on the other"),
            Error::UnknownHost(host) => Failure::new(Kind::Unreachable, host, message)
                .remedy("`podmig host add NAME ADDR:PORT FINGERPRINT`, or use ssh://HOST"),
            Error::Lost { host, .. } | Error::Version { host, .. } => {
                Failure::new(Kind::Unreachable, host, message)
            }
            Error::Protocol { host, .. } => Failure::new(Kind::Failed, host, message),
            Error::Refused(failure) => failure,
            Error::HostsFile { path, reason } => Failure::new(Kind::Failed, path, reason),
            Error::File { path, .. } => Failure::new(Kind::Failed, path, message),
            Error::Key(_) => Failure::new(Kind::Failed, "host key", message),
        }
    }
}
