//! One UDP socket rebuilt; queued datagrams arrive again, from their senders, through loopback.

use super::{early, late, own, room};
use crate::kernel::rawip::Injector;
use crate::kernel::{descr, sock};
use crate::state::fd::error::Error;
use crate::state::inet::{SockOpt, UdpSocket, options};
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

fn shown(u: &UdpSocket) -> String {
    let end = |a: Option<SocketAddr>| a.map_or_else(|| "*".to_owned(), |a| a.to_string());
    format!("UDP {} to {}", end(u.local), end(u.peer))
}

/// Makes a socket.
pub(crate) fn udp(
    u: &UdpSocket,
    injector: &mut Injector,
    warnings: &mut Vec<String>,
) -> Result<OwnedFd, Error> {
    let call = |name: &'static str| Error::restore(name, || shown(u));
    let domain = if u.v6 { libc::AF_INET6 } else { libc::AF_INET };
    let socket = sock::socket(domain, libc::SOCK_DGRAM, libc::IPPROTO_UDP).map_err(call("socket(2)"))?;
    let fd = socket.as_fd();
    own(fd, u.uid).map_err(call("fchown(2)"))?;
    early(fd, &u.options, u.v6).map_err(call("setsockopt(2)"))?;
    let device = |o: &&SockOpt| (o.level, o.name) == (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
    if u.queue.is_empty() {
        // A device tells sockets of one port apart; with a queue it would keep loopback out, and is set late.
        for o in u.options.iter().filter(device) {
            sock::set(fd, o.level, o.name, &o.value).map_err(call("setsockopt(2) SO_BINDTODEVICE"))?;
        }
    }
    if let Some(local) = u.local {
        sock::bind(fd, &sock::inet_addr(local)).map_err(call("bind(2)"))?;
    }
    for (group, index) in &u.groups {
        if let Err(e) = join(fd, *group, *index) {
            warnings.push(format!("{}: multicast group {group} not joined again: {e}", shown(u)));
        }
    }
    if !u.queue.is_empty() {
        let lost = refill(fd, u, injector).map_err(call("putting queued datagrams back"))?;
        if lost > 0 {
            warnings.push(format!("{}: {lost} queued datagram(s) lost", shown(u)));
        }
    }
    if let Some(peer) = u.peer {
        sock::connect(fd, &sock::inet_addr(peer)).map_err(call("connect(2)"))?;
    }
    late(fd, &u.options, || shown(u), warnings).map_err(call("setsockopt(2)"))?;
    match u.shutdown {
        0 => {}
        3 => shut(fd, libc::SHUT_RDWR).map_err(call("shutdown(2)"))?,
        _ => shut(fd, libc::SHUT_RD).map_err(call("shutdown(2)"))?,
    }
    Ok(socket)
}

/// shutdown(2) of an unconnected UDP socket does its work and says ENOTCONN.
fn shut(fd: BorrowedFd, how: i32) -> Result<(), Errno> {
    match sock::shutdown(fd, how) {
        Err(Errno::ENOTCONN) => Ok(()),
        other => other,
    }
}

fn join(fd: BorrowedFd, group: IpAddr, index: u32) -> Result<(), Errno> {
    const MCAST_JOIN_GROUP: i32 = 42;
    // struct group_req: interface, padding, group (128 bytes).
    let addr = sock::inet_addr(SocketAddr::new(group, 0));
    let mut request = [0u8; 8 + 128];
    request[..4].copy_from_slice(&index.to_ne_bytes());
    request[8..8 + addr.len()].copy_from_slice(&addr);
    let level = if group.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    sock::set(fd, level, MCAST_JOIN_GROUP, &request)
}

/// Sends the queue to ourselves, each datagram as if from its sender; how many could not be.
fn refill(fd: BorrowedFd, u: &UdpSocket, injector: &mut Injector) -> Result<usize, Errno> {
    let Some(local) = u.local else { return Ok(u.queue.len()) };
    room(fd, 0, u.queue.iter().map(|d| d.data.len() + 1024).sum())?;
    let shared = options::int(&u.options, libc::SOL_SOCKET, libc::SO_REUSEPORT).is_some()
        || options::int(&u.options, libc::SOL_SOCKET, libc::SO_REUSEADDR).is_some();
    let mut lost = 0;
    for d in &u.queue {
        let to = d.to.filter(|t| !t.ip().is_multicast()).unwrap_or(local);
        let to = match to.ip() {
            ip if !ip.is_unspecified() => SocketAddr::new(ip, local.port()),
            _ if d.from.ip().to_canonical().is_ipv4() => {
                SocketAddr::new(Ipv4Addr::LOCALHOST.into(), local.port())
            }
            _ => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), local.port()),
        };
        // Several sockets may share the port: connected to the sender, this one is the one that gets it.
        if shared {
            sock::connect(fd, &sock::inet_addr(d.from))?;
        }
        match injector.udp(d.from, to, &d.data) {
            Ok(()) => {}
            // Sent to a group or to an address that is not here.
            Err(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT | Errno::EMSGSIZE) => lost += 1,
            Err(e) => return Err(e),
        }
    }
    if shared {
        // AF_UNSPEC, all of it zeroes: connected to nobody.
        sock::connect(fd, &[0u8; 16])?;
    }
    if lost < u.queue.len() {
        descr::poll_for(fd, libc::POLLIN, 1000)?;
    }
    Ok(lost)
}
