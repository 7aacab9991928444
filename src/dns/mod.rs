//! Names: the embedded authoritative zone, and signed updates to it or to any other server (RFC 2136, RFC 8945).
//!
//! `key` TSIG keys in the file format of BIND, `zone` the zone with atomic, fenced updates, `journal` its records
//! on disk, `serve` the server, `update` what a host says when a pod starts, moves or stops, `config` which server
//! a host talks to.
//!
//! A pod's entry is its address record and a TXT record `podmig id=ID gen=N`. Every update names the TXT record it
//! replaces as a prerequisite, so a late update from a former host (a smaller N) never wins.

pub mod config;
pub mod journal;
pub mod key;
pub mod serve;
pub mod update;
pub mod zone;

use crate::base::{Failure, Kind};

/// What can go wrong with names.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {doing} {path}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// Path.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// A key file, zone name or configuration is wrong.
    #[error("{object}: {reason}")]
    Invalid {
        /// File or name.
        object: String,
        /// What is wrong.
        reason: String,
    },
    /// The zone's journal failed.
    #[error("the zone's journal {path} failed: {reason}")]
    Journal {
        /// Path.
        path: String,
        /// Reason.
        reason: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}")]
    Listen {
        /// Address.
        addr: std::net::SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// The server cannot be reached or does not answer.
    #[error("the DNS server {server} does not answer")]
    Unreachable {
        /// Server.
        server: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The server answered no.
    #[error("the DNS server {server} refused the update of {name}: {code}")]
    Refused {
        /// Server.
        server: String,
        /// Name.
        name: String,
        /// Response code.
        code: String,
    },
    /// The name belongs to another pod.
    #[error("{name} belongs to another pod ({owner})")]
    Taken {
        /// Name.
        name: String,
        /// Text of the other entry.
        owner: String,
    },
    /// A newer entry of the same pod stands: this update is late.
    #[error("{name} was updated by a later host of the pod")]
    Late {
        /// Name.
        name: String,
    },
}

impl Error {
    /// Whether trying again later can help.
    pub fn passing(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::Refused { .. })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let message = match &error {
            Error::File { source, .. } | Error::Listen { source, .. } | Error::Unreachable { source, .. } => {
                format!("{error}: {}", crate::kernel::errno_text(source))
            }
            _ => error.to_string(),
        };
        match error {
            Error::Listen { addr, source } if source.kind() == std::io::ErrorKind::AddrInUse => {
                Failure::new(Kind::Taken, addr.to_string(), message)
                    .remedy("choose another address with --listen")
            }
            Error::Unreachable { server, .. } => Failure::new(Kind::Unreachable, server, message),
            Error::Taken { name, .. } => {
                Failure::new(Kind::Taken, name, message).remedy("give the pod another name")
            }
            _ => Failure::new(Kind::Failed, "dns", message),
        }
    }
}
