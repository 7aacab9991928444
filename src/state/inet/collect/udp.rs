//! One UDP socket.

use crate::kernel::{descr, sock};
use crate::state::fd::FileId;
use crate::state::fd::collect::table::Table;
use crate::state::fd::error::Error;
use crate::state::inet::{Datagram, UdpSocket, options};
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

/// Largest datagram.
const MAX: usize = 1 << 16;
const IPV6_RECVORIGDSTADDR: i32 = 74;

/// Reads a socket.
pub(crate) fn udp(table: &Table, id: FileId, warnings: &mut Vec<String>) -> Result<UdpSocket, Error> {
    let desc = table.desc(id);
    let fd = table.borrow(id)?;
    let call = |name: &'static str| Error::fd(name, desc.at);
    let uid = nix::sys::stat::fstat(&fd).map_err(call("fstat(2)"))?.st_uid;
    let raw = sock::name(&fd, false).map_err(call("getsockname(2)"))?;
    let own = sock::parse_inet(&raw).ok_or_else(|| call("getsockname(2)")(Errno::EAFNOSUPPORT))?;
    let peer = sock::name(&fd, true).ok().and_then(|b| sock::parse_inet(&b));
    let v6 = own.is_ipv6();
    let options = options::read(&fd, options::Family::Udp(v6), false, desc.at, warnings);
    let queue = if own.port() == 0 {
        vec![]
    } else {
        queue(fd.as_fd(), v6).map_err(call("peeking at queued datagrams"))?
    };
    if sock::outq(&fd).unwrap_or(0) > 0 {
        warnings.push(format!("{own}: datagrams being put together (UDP_CORK) or on their way out are lost"));
    }
    // shutdown(2) shows in what poll(2) says.
    let now = descr::poll_for(&fd, libc::POLLRDHUP, 0).map_err(call("poll(2)"))?;
    let shutdown = match (now & libc::POLLHUP != 0, now & libc::POLLRDHUP != 0) {
        (true, _) => 3,
        (false, true) => 1,
        (false, false) => 0,
    };
    let groups = groups(table, id, fd.as_fd(), v6);
    let local = (own.port() != 0).then_some(own);
    Ok(UdpSocket { v6, local, peer, queue, options, groups, shutdown, uid })
}

/// An int option changed for a while.
struct Borrowed<'a> {
    fd: BorrowedFd<'a>,
    option: (i32, i32),
    saved: i32,
}

impl<'a> Borrowed<'a> {
    fn set(fd: BorrowedFd<'a>, option: (i32, i32), value: i32) -> Result<Self, Errno> {
        let saved = sock::get_i32(fd, option.0, option.1)?;
        sock::set_i32(fd, option.0, option.1, value)?;
        Ok(Self { fd, option, saved })
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let _ = sock::set_i32(self.fd, self.option.0, self.option.1, self.saved);
    }
}

/// The datagrams in the queue, in order, and where each was sent to.
fn queue(fd: BorrowedFd, v6: bool) -> Result<Vec<Datagram>, Errno> {
    let mut all = Vec::new();
    if descr::poll_for(fd, libc::POLLIN, 0)? & libc::POLLIN == 0 {
        return Ok(all);
    }
    let peek_off = (libc::SOL_SOCKET, libc::SO_PEEK_OFF);
    let _offset = Borrowed::set(fd, peek_off, 0)?;
    let _to4 = Borrowed::set(fd, (libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR), 1)?;
    let _to6 = match v6 {
        true => Some(Borrowed::set(fd, (libc::IPPROTO_IPV6, IPV6_RECVORIGDSTADDR), 1)?),
        false => None,
    };
    let mut buf = vec![0u8; MAX];
    let mut at = 0usize;
    loop {
        let offset = i32::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        sock::set_i32(fd, peek_off.0, peek_off.1, offset)?;
        let flags = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
        let got = match sock::recv(fd, &mut buf, flags) {
            Ok(got) => got,
            Err(Errno::EAGAIN) => return Ok(all),
            Err(e) => return Err(e),
        };
        // A shut down socket reads as nothing from nobody.
        let Some(from) = sock::parse_inet(&got.from) else { return Ok(all) };
        let to = got.other.iter().find_map(|(level, kind, bytes)| match (*level, *kind) {
            (libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR) => sock::parse_inet(bytes),
            (libc::IPPROTO_IPV6, IPV6_RECVORIGDSTADDR) => sock::parse_inet(bytes),
            _ => None,
        });
        at += got.len;
        all.push(Datagram { from, to, data: buf[..got.len.min(MAX)].to_vec() });
    }
}

/// Multicast groups a socket is in: the namespace's list says which there are, the socket which are its own.
fn groups(table: &Table, id: FileId, fd: BorrowedFd, v6: bool) -> Vec<(IpAddr, u32)> {
    let pid = table.desc(id).at.0;
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let mut all = igmp(&read("igmp"));
    if v6 {
        all.extend(igmp6(&read("igmp6")));
    }
    all.retain(|(group, index)| is_member(fd, *group, *index));
    all
}

/// `/proc/net/igmp`: a line per interface (index first), then indented lines per group (hex, host order).
fn igmp(text: &str) -> Vec<(IpAddr, u32)> {
    let (mut all, mut index) = (Vec::new(), 0);
    for line in text.lines().skip(1) {
        let first = line.split_whitespace().next().unwrap_or("");
        if !line.starts_with(['\t', ' ']) {
            index = first.parse().unwrap_or(0);
        } else if let Ok(group) = u32::from_str_radix(first, 16) {
            all.push((IpAddr::V4(Ipv4Addr::from(group.to_ne_bytes())), index));
        }
    }
    all
}

/// `/proc/net/igmp6`: index, name, group in hex, ….
fn igmp6(text: &str) -> Vec<(IpAddr, u32)> {
    let line = |l: &str| {
        let mut words = l.split_whitespace();
        let index = words.next()?.parse().ok()?;
        let group = u128::from_str_radix(words.nth(1)?, 16).ok()?;
        Some((IpAddr::V6(Ipv6Addr::from(group)), index))
    };
    text.lines().filter_map(line).collect()
}

/// MCAST_MSFILTER answers only for groups the socket is in.
fn is_member(fd: BorrowedFd, group: IpAddr, index: u32) -> bool {
    const MCAST_MSFILTER: i32 = 48;
    let addr = sock::inet_addr(SocketAddr::new(group, 0));
    // struct group_filter: interface, padding, group (128 bytes), mode, number of sources, one source.
    let mut filter = [0u8; 8 + 128 + 8 + 128];
    filter[..4].copy_from_slice(&index.to_ne_bytes());
    filter[8..8 + addr.len()].copy_from_slice(&addr);
    let level = if group.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    sock::get_into(fd, level, MCAST_MSFILTER, &mut filter).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multicast_lists_are_read() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n";
        assert_eq!(igmp(text), [(IpAddr::from([224, 0, 0, 1]), 1)]);
        let text = "2    eth0            ff0200000000000000000000000000fb     1 00000004 0\n";
        assert_eq!(igmp6(text), [("ff02::fb".parse().unwrap(), 2)]);
    }

    #[test]
    fn membership_is_asked_of_the_socket_itself() {
        let member = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let other = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let group = Ipv4Addr::new(239, 77, 1, 2);
        member.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        let list = igmp(&std::fs::read_to_string("/proc/self/net/igmp").unwrap());
        let ours = |s: &std::net::UdpSocket| -> Vec<_> {
            list.iter().filter(|(g, i)| is_member(s.as_fd(), *g, *i)).map(|(g, _)| *g).collect()
        };
        assert_eq!(ours(&member), [IpAddr::V4(group)]);
        assert!(ours(&other).is_empty());
    }
}
