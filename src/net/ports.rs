//! Published ports: chosen, reserved and shown.
//!
//! Traffic never reaches the sockets here (DNAT comes first): they only make sure, and show, that the port is taken.

use super::Error;
use crate::base::spec::Publish;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, setsockopt, socket,
    sockopt,
};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

/// One published port, as `podmig port` shows it: `80/tcp -> 0.0.0.0:32768`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublishedPort {
    /// Host side.
    pub host: SocketAddrV4,
    /// Port inside the pod.
    pub pod_port: u16,
    /// UDP instead of TCP.
    pub udp: bool,
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} -> {}", self.pod_port, proto(self.udp), self.host)
    }
}

impl From<&Publish> for PublishedPort {
    fn from(port: &Publish) -> Self {
        let ip = port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
        Self { host: SocketAddrV4::new(ip, port.host_port), pod_port: port.pod_port, udp: port.udp }
    }
}

impl super::Link {
    /// The published ports with their host side as chosen.
    pub fn ports(&self) -> Vec<PublishedPort> {
        self.spec.publish.iter().map(PublishedPort::from).collect()
    }
}

fn proto(udp: bool) -> &'static str {
    if udp { "udp" } else { "tcp" }
}

/// Whether the host side of a published port could be had now.
///
/// # Errors
/// [`Error::Taken`]; [`Error::Usage`] when the address is not this host's.
pub fn port_free(port: &Publish) -> Result<(), Error> {
    let socket = open(port)?;
    if port.udp { Ok(()) } else { enlist(&socket, port) }
}

/// Binds a socket to each port; a port 0 is replaced by the one the kernel chose.
pub(super) fn reserve(publish: &mut [Publish]) -> Result<Vec<OwnedFd>, Error> {
    let mut sockets = Vec::with_capacity(publish.len());
    for port in publish {
        let socket = open(port)?;
        let chosen = getsockname::<SockaddrIn>(socket.as_raw_fd());
        let chosen =
            chosen.map_err(|e| Error::io(format!("read the port chosen for {}", port.pod_port))(e.into()))?;
        port.host_port = chosen.port();
        sockets.push(socket);
    }
    Ok(sockets)
}

/// Listens on the reserved TCP ports: only a listener keeps others off whatever options they set.
pub(super) fn occupy(sockets: Vec<OwnedFd>, publish: &[Publish]) -> Result<Vec<OwnedFd>, Error> {
    for (socket, port) in sockets.iter().zip(publish) {
        if !port.udp {
            enlist(socket, port)?;
        }
    }
    Ok(sockets)
}

fn enlist(socket: &OwnedFd, port: &Publish) -> Result<(), Error> {
    listen(socket, Backlog::new(1).unwrap_or(Backlog::MAXCONN)).map_err(|e| refused(e, port))
}

fn open(port: &Publish) -> Result<OwnedFd, Error> {
    let kind = if port.udp { SockType::Datagram } else { SockType::Stream };
    let made = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None);
    let made = made.map_err(|e| refused(e, port))?;
    if !port.udp {
        // Connections of an earlier program in TIME_WAIT are no reason to refuse.
        setsockopt(&made, sockopt::ReuseAddr, &true).map_err(|e| refused(e, port))?;
    }
    let ip = port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let addr = SockaddrIn::from(SocketAddrV4::new(ip, port.host_port));
    bind(made.as_raw_fd(), &addr).map_err(|e| refused(e, port))?;
    Ok(made)
}

fn refused(errno: Errno, port: &Publish) -> Error {
    let shown = format!("{}/{}", PublishedPort::from(port).host, proto(port.udp));
    match errno {
        Errno::EADDRINUSE => Error::Taken {
            what: format!("port {shown}"),
            remedy: format!("give -p another host port, or none for a free one (-p {})", port.pod_port),
        },
        Errno::EADDRNOTAVAIL => Error::usage(
            format!("-p {shown}"),
            "the address is not this host's",
            "give one that `ip address` shows here, or none for all",
        ),
        other => Error::io(format!("reserve port {shown}"))(other.into()),
    }
}
