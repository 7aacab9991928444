//! What can go wrong with a pod's network.

use crate::base::{Failure, Kind};
use crate::kernel::{netlink, nfnetlink};
use std::io;
use std::net::IpAddr;

/// Errors of the net room.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for makes no sense or is not built.
    #[error("{object}: {message}")]
    Usage {
        /// Option or value concerned.
        object: String,
        /// Why it cannot be.
        message: String,
        /// What to give instead.
        remedy: String,
    },
    /// The interface that `lan:IF` names is not there.
    #[error("no interface {0} on this host")]
    NoInterface(String),
    /// A port or name is in use.
    #[error("{what} is taken")]
    Taken {
        /// `port 80/tcp`, `link pm…`.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// Somebody else answers at the pod's address.
    #[error("address {addr} answers from {mac}")]
    Answers {
        /// Address probed.
        addr: IpAddr,
        /// Hardware address of who answered.
        mac: String,
    },
    /// The kernel lacks something.
    #[error("this kernel lacks {feature}")]
    Feature {
        /// Configuration symbol and version.
        feature: &'static str,
        /// What the kernel said.
        #[source]
        source: nfnetlink::Error,
    },
    /// A route netlink request failed.
    #[error("link {object}")]
    Netlink {
        /// Interface or address.
        object: String,
        /// Cause.
        #[source]
        source: netlink::Error,
    },
    /// An nf_tables request failed.
    #[error("packet rules of {object}")]
    Rules {
        /// Pod or interface.
        object: String,
        /// Cause.
        #[source]
        source: nfnetlink::Error,
    },
    /// Another system call failed.
    #[error("cannot {what}")]
    Io {
        /// What was tried, on which object.
        what: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(super) fn usage(
        object: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Usage { object: object.into(), message: message.into(), remedy: remedy.into() }
    }
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
    pub(super) fn link(object: impl Into<String>) -> impl FnOnce(netlink::Error) -> Self {
        let object = object.into();
        move |source| Self::Netlink { object, source }
    }
}

/// The message with all its causes, one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match &error {
            Error::Usage { object, message, remedy } => {
                Failure::new(Kind::Usage, object, message).remedy(remedy)
            }
            Error::NoInterface(name) => Failure::new(Kind::Failed, name, "no such interface on this host")
                .remedy("give --net lan:IF an interface that `ip link` shows here"),
            Error::Taken { what, remedy } => Failure::new(Kind::Taken, what, "in use").remedy(remedy),
            Error::Answers { addr, mac } => {
                Failure::new(Kind::Taken, addr.to_string(), format!("the address answers from {mac}"))
                    .remedy("give another --ip, or stop who has it")
            }
            Error::Feature { feature, .. } => Failure::new(Kind::Failed, *feature, chain(&error))
                .remedy("boot a kernel that has it, or use --net host or none"),
            Error::Netlink { object, .. } | Error::Rules { object, .. } => {
                Failure::new(Kind::Failed, object, chain(&error))
            }
            Error::Io { .. } => Failure::new(Kind::Failed, "", chain(&error)),
        }
    }
}
