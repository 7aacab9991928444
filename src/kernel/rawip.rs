//! Packets made by hand and handed to a socket of our own network namespace through loopback: what a peer would have
//! sent before, so that a rebuilt socket stands where the old one stood. Needs CAP_NET_RAW.

use super::sock;
use nix::errno::Errno;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// Flags of a TCP header.
#[allow(missing_docs)]
pub mod flag {
    pub const FIN: u8 = 1;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// Raw sockets, opened when first needed.
#[derive(Debug, Default)]
pub struct Injector {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

/// A TCP segment without data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement.
    pub ack: u32,
    /// [`flag`] bits.
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
}

/// An IPv4-mapped address as what is on the wire.
fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn sum(bytes: &[u8], mut acc: u64) -> u64 {
    for pair in bytes.chunks(2) {
        acc += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    acc
}

fn fold(mut acc: u64) -> u16 {
    while acc > 0xffff {
        acc = (acc & 0xffff) + (acc >> 16);
    }
    !(acc as u16)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Internet checksum of a transport header with data, pseudo-header included (RFC 793, RFC 8200).
fn checksum(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> u16 {
    let acc = sum(&octets(from), 0) + sum(&octets(to), 0) + u64::from(protocol) + body.len() as u64;
    fold(sum(body, acc))
}

fn ip_packet(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut p = Vec::with_capacity(40 + body.len());
    match from {
        IpAddr::V4(_) => {
            let len = u16::try_from(20 + body.len()).map_err(|_| Errno::EMSGSIZE)?;
            p.extend_from_slice(&[0x45, 0]);
            p.extend_from_slice(&len.to_be_bytes());
            p.extend_from_slice(&[0, 0, 0, 0, 64, protocol, 0, 0]);
            p.extend_from_slice(&octets(from));
            p.extend_from_slice(&octets(to));
            let header = fold(sum(&p, 0));
            p[10..12].copy_from_slice(&header.to_be_bytes());
        }
        IpAddr::V6(_) => {
            let len = u16::try_from(body.len()).map_err(|_| Errno::EMSGSIZE)?;
            p.extend_from_slice(&[0x60, 0, 0, 0]);
            p.extend_from_slice(&len.to_be_bytes());
            p.extend_from_slice(&[protocol, 64]);
            p.extend_from_slice(&octets(from));
            p.extend_from_slice(&octets(to));
        }
    }
    p.extend_from_slice(body);
    Ok(p)
}

impl Injector {
    /// A TCP segment as if from `from`. Errors: EADDRNOTAVAIL (`to` is not an address of this namespace), EPERM.
    pub fn tcp(&mut self, from: SocketAddr, to: SocketAddr, s: Segment) -> Result<(), Errno> {
        let (from, to) = (plain(from), plain(to));
        let mut h = Vec::with_capacity(20);
        h.extend_from_slice(&from.port().to_be_bytes());
        h.extend_from_slice(&to.port().to_be_bytes());
        h.extend_from_slice(&s.seq.to_be_bytes());
        h.extend_from_slice(&s.ack.to_be_bytes());
        h.extend_from_slice(&[5 << 4, s.flags]);
        h.extend_from_slice(&s.window.to_be_bytes());
        h.extend_from_slice(&[0; 4]);
        let check = checksum(from.ip(), to.ip(), libc::IPPROTO_TCP as u8, &h);
        h[16..18].copy_from_slice(&check.to_be_bytes());
        self.send(from, to, libc::IPPROTO_TCP as u8, &h)
    }

    /// A datagram as if from `from`. Errors: as [`tcp`](Self::tcp), EMSGSIZE.
    pub fn udp(&mut self, from: SocketAddr, to: SocketAddr, data: &[u8]) -> Result<(), Errno> {
        let (from, to) = (plain(from), plain(to));
        let len = u16::try_from(8 + data.len()).map_err(|_| Errno::EMSGSIZE)?;
        let mut h = Vec::with_capacity(8 + data.len());
        h.extend_from_slice(&from.port().to_be_bytes());
        h.extend_from_slice(&to.port().to_be_bytes());
        h.extend_from_slice(&len.to_be_bytes());
        h.extend_from_slice(&[0; 2]);
        h.extend_from_slice(data);
        // A sum of zero is sent as ones: zero means "none".
        let check = match checksum(from.ip(), to.ip(), libc::IPPROTO_UDP as u8, &h) {
            0 => 0xffff,
            c => c,
        };
        h[6..8].copy_from_slice(&check.to_be_bytes());
        self.send(from, to, libc::IPPROTO_UDP as u8, &h)
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, protocol: u8, body: &[u8]) -> Result<(), Errno> {
        if from.is_ipv4() != to.is_ipv4() {
            return Err(Errno::EAFNOSUPPORT);
        }
        if !is_ours(to.ip())? {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let packet = ip_packet(from.ip(), to.ip(), protocol, body)?;
        let (slot, domain) =
            if to.is_ipv4() { (&mut self.v4, libc::AF_INET) } else { (&mut self.v6, libc::AF_INET6) };
        let fd = match slot {
            Some(fd) => fd,
            None => slot.insert(sock::socket(domain, libc::SOCK_RAW, libc::IPPROTO_RAW)?),
        };
        let to = sock::inet_addr(SocketAddr::new(to.ip(), 0));
        sock::send(fd, &packet, &[], None, Some(&to), 0).map(drop)
    }
}

/// Whether an address is one of this namespace's own, so that a packet to it never leaves.
fn is_ours(ip: IpAddr) -> Result<bool, Errno> {
    let domain = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let probe = sock::socket(domain, libc::SOCK_DGRAM, 0)?;
    Ok(sock::bind(&probe, &sock::inet_addr(SocketAddr::new(ip, 0))).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::descr::poll_for;

    #[test]
    fn a_datagram_arrives_from_whom_it_says() {
        for (at, from) in [("127.0.0.1:0", "192.0.2.9:77"), ("[::1]:0", "[2001:db8::9]:77")] {
            let Ok(socket) = std::net::UdpSocket::bind(at) else { continue };
            let mut injector = Injector::default();
            let to = socket.local_addr().unwrap();
            let from: SocketAddr = from.parse().unwrap();
            injector.udp(from, to, b"as if").unwrap();
            assert_ne!(poll_for(&socket, libc::POLLIN, 2000).unwrap(), 0, "{at}");
            let mut buf = [0; 16];
            let (n, who) = socket.recv_from(&mut buf).unwrap();
            assert_eq!((&buf[..n], who), (&b"as if"[..], from));
        }
        let far: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let error = Injector::default().udp(far, far, b"").unwrap_err();
        assert_eq!(error, Errno::EADDRNOTAVAIL, "nothing is ever sent out");
    }
}
