//! NETLINK_SOCK_DIAG (sock_diag(7)): every socket of a network namespace, seen without touching it.

use super::sock;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;

/// `UDIAG_SHOW_NAME|VFS|PEER|ICONS|RQLEN`.
const UNIX_SHOW: u32 = 1 | 2 | 4 | 8 | 16;

/// A netlink socket that sees one network namespace.
#[derive(Debug)]
pub struct SockDiag {
    fd: OwnedFd,
}

/// A unix socket.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UnixDiag {
    /// SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET.
    pub kind: u8,
    /// 1 established, 7 closed, 10 listening (as TCP's numbers).
    pub state: u8,
    /// Inode of the socket itself.
    pub ino: u32,
    /// Name: a path, or abstract with its leading zero.
    pub name: Option<Vec<u8>>,
    /// Inode and device (`st_dev`) of the bound file.
    pub file: Option<(u32, u64)>,
    /// Inode of the connected peer; 0: it has none (closed, or not accepted yet).
    pub peer: Option<u32>,
    /// Listening: inodes of the sockets whose connections wait to be accepted, in order (0: closed since).
    pub waiting: Vec<u32>,
    /// Listening: backlog.
    pub backlog: u32,
    /// Bytes (listening: connections) in the receive queue.
    pub queued: u32,
    /// `shutdown(2)` done: bit 0 receive, bit 1 send.
    pub shutdown: u8,
}

/// A TCP or UDP socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InetDiag {
    /// TCP state number.
    pub state: u8,
    /// Own end.
    pub local: SocketAddr,
    /// Other end.
    pub peer: SocketAddr,
    /// Inode; 0: no descriptor refers to it (not accepted yet, or closed and still sending).
    pub ino: u32,
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

/// `(type, payload)` of each attribute; stops at the first malformed one.
fn attributes(mut b: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(b, 0)?);
        let kind = u16_at(b, 2)?;
        let payload = b.get(4..len)?;
        b = b.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, payload))
    })
}

fn unix_message(b: &[u8]) -> Option<UnixDiag> {
    let mut d = UnixDiag { kind: *b.get(1)?, state: *b.get(2)?, ino: u32_at(b, 4)?, ..UnixDiag::default() };
    for (kind, value) in attributes(b.get(16..)?) {
        match kind {
            0 if value.first() == Some(&0) => d.name = Some(value.to_vec()),
            0 => d.name = Some(value.split(|c| *c == 0).next().unwrap_or(value).to_vec()),
            1 => {
                // The kernel's own dev_t: 12 bits of major over 20 of minor.
                let dev = u32_at(value, 4)?;
                d.file = Some((u32_at(value, 0)?, libc::makedev(dev >> 20, dev & 0xf_ffff)));
            }
            2 => d.peer = Some(u32_at(value, 0)?),
            3 => d.waiting = value.chunks_exact(4).filter_map(|c| u32_at(c, 0)).collect(),
            4 => (d.queued, d.backlog) = (u32_at(value, 0)?, u32_at(value, 4)?),
            6 => d.shutdown = *value.first()?,
            _ => {}
        }
    }
    Some(d)
}

fn inet_message(b: &[u8]) -> Option<InetDiag> {
    let v6 = i32::from(*b.first()?) == libc::AF_INET6;
    let end = |port: usize, at: usize| {
        let ip: [u8; 16] = b.get(at..at + 16)?.try_into().ok()?;
        let ip = if v6 {
            IpAddr::V6(Ipv6Addr::from(ip))
        } else {
            IpAddr::V4(Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]))
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes([*b.get(port)?, *b.get(port + 1)?])))
    };
    Some(InetDiag { state: *b.get(1)?, local: end(4, 8)?, peer: end(6, 24)?, ino: u32_at(b, 68)? })
}

impl SockDiag {
    /// Opens one for the caller's namespace. Errors: EPROTONOSUPPORT.
    pub fn open() -> Result<Self, Errno> {
        Ok(Self { fd: sock::socket(libc::AF_NETLINK, libc::SOCK_DGRAM, NETLINK_SOCK_DIAG)? })
    }

    /// Opens one for another namespace, from a thread of its own that enters it. Errors: EPERM.
    pub fn open_in(netns: impl AsFd) -> Result<Self, Errno> {
        let netns = netns.as_fd();
        std::thread::scope(|s| {
            let body = || {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
                Self::open()
            };
            s.spawn(body).join().unwrap_or(Err(Errno::EAGAIN))
        })
    }

    /// The netlink socket itself.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn dump(&self, request: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), Errno> {
        let mut message = Vec::with_capacity(HEADER + request.len());
        message.extend_from_slice(&((HEADER + request.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(request);
        sock::send(&self.fd, &message, &[], None, None, 0)?;
        let mut buf = vec![0u8; 64 << 10];
        loop {
            // Dumps are made in the reader's own context: nothing to wait for.
            let got = sock::recv(&self.fd, &mut buf, 0)?;
            if got.flags & libc::MSG_TRUNC != 0 {
                return Err(Errno::EMSGSIZE);
            }
            let mut rest = &buf[..got.len];
            while let (Some(len), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
                let body = rest.get(HEADER..len as usize).ok_or(Errno::EBADMSG)?;
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => match u32_at(body, 0) {
                        Some(0) => return Ok(()),
                        e => return Err(Errno::from_raw(-(e.unwrap_or(0) as i32))),
                    },
                    _ => each(body),
                }
                rest = rest.get((len as usize).next_multiple_of(4)..).unwrap_or(&[]);
            }
        }
    }

    /// Every unix socket made in the namespace. Errors: ENOENT (no CONFIG_UNIX_DIAG).
    pub fn unix(&self) -> Result<Vec<UnixDiag>, Errno> {
        let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
        for word in [u32::MAX, 0, UNIX_SHOW, u32::MAX, u32::MAX] {
            request.extend_from_slice(&word.to_ne_bytes());
        }
        let mut all = Vec::new();
        self.dump(&request, |b| all.extend(unix_message(b)))?;
        Ok(all)
    }

    /// Every socket of `protocol` (IPPROTO_TCP, IPPROTO_UDP) in one of the `states` (bit n = state n), v4 and v6.
    /// Errors: ENOENT (no CONFIG_INET_DIAG).
    pub fn inet(&self, protocol: i32, states: u32) -> Result<Vec<InetDiag>, Errno> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut request = vec![family as u8, protocol as u8, 0, 0];
            request.extend_from_slice(&states.to_ne_bytes());
            request.extend_from_slice(&[0; 48]);
            self.dump(&request, |b| all.extend(inet_message(b)))?;
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::fstat;
    use std::os::fd::AsRawFd;

    fn inode(fd: impl AsFd) -> u32 {
        fstat(fd).unwrap().st_ino as u32
    }

    #[test]
    fn unix_sockets_and_their_peers() {
        let (a, b) = sock::pair(libc::SOCK_STREAM).unwrap();
        sock::send(&b, b"1234", &[], None, None, 0).unwrap();
        sock::shutdown(&b, libc::SHUT_WR).unwrap();
        let name = format!("\0podmig-diag-{}-{}", std::process::id(), a.as_raw_fd()).into_bytes();
        let server = sock::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        sock::bind(&server, &sock::unix_addr(&name).unwrap()).unwrap();
        sock::listen(&server, 7).unwrap();
        let client = sock::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        sock::connect(&client, &sock::unix_addr(&name).unwrap()).unwrap();
        let all = SockDiag::open().unwrap().unix().unwrap();
        let find = |fd: &OwnedFd| all.iter().find(|d| d.ino == inode(fd)).unwrap();
        let d = find(&a);
        assert_eq!((d.peer, d.queued, d.shutdown, d.state), (Some(inode(&b)), 4, 1, 1));
        let d = find(&server);
        assert_eq!((d.name.as_ref(), d.backlog, d.state), (Some(&name), 7, 10));
        assert_eq!(d.waiting, [inode(&client)]);
        assert_eq!(find(&client).peer, Some(0));
    }

    #[test]
    fn tcp_connections_without_a_descriptor_are_seen() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = server.local_addr().unwrap();
        let client = std::net::TcpStream::connect(at).unwrap();
        let netns = std::fs::File::open("/proc/self/ns/net").unwrap();
        let all = SockDiag::open_in(&netns).unwrap().inet(libc::IPPROTO_TCP, 1 << 1).unwrap();
        let waiting = all.iter().find(|d| d.local == at).unwrap();
        assert_eq!((waiting.ino, waiting.peer), (0, client.local_addr().unwrap()));
        let own = all.iter().find(|d| d.local == client.local_addr().unwrap()).unwrap();
        assert_eq!(own.ino, inode(&client));
    }
}
