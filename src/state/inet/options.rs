//! Which socket options are carried. Both halves use one table: the reader leaves out what has its default, the
//! writer takes nothing that is not in it.

use super::SockOpt;
use crate::kernel::sock;
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd};

/// Families of sockets, as far as options go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    /// Unix.
    Unix,
    /// TCP; true: IPv6.
    Tcp(bool),
    /// UDP; true: IPv6.
    Udp(bool),
}

/// What an option is when nobody set it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Usual {
    /// An int of this value.
    Int(i32),
    /// So many zero bytes.
    Zeros(usize),
    /// Empty.
    Empty(usize),
    /// So many bytes of ones.
    Ones(usize),
    /// Carried always; at most so many bytes.
    Never(usize),
}
use Usual::{Empty, Int, Never, Ones, Zeros};

type Row = (i32, i32, Usual);

const SOL: i32 = libc::SOL_SOCKET;
const IP: i32 = libc::IPPROTO_IP;
const IP6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;

/// `SO_BUF_LOCK` (5.14): which of the two buffer sizes the program fixed.
pub(crate) const SO_BUF_LOCK: i32 = 72;
/// Filters and filter locks come last.
pub(crate) const SO_LOCK_FILTER: i32 = libc::SO_LOCK_FILTER;

/// asm-generic/socket.h. Each row costs a call per socket while the pod stands still: only what matters there.
const SOCKET: &[Row] = &[
    (SOL, libc::SO_SNDBUF, Never(4)),
    (SOL, libc::SO_RCVBUF, Never(4)),
    (SOL, SO_BUF_LOCK, Int(0)),
    (SOL, libc::SO_PRIORITY, Int(0)),
    (SOL, libc::SO_MARK, Int(0)),
    (SOL, libc::SO_RCVLOWAT, Int(1)),
    (SOL, libc::SO_RCVTIMEO, Zeros(16)),
    (SOL, libc::SO_SNDTIMEO, Zeros(16)),
    (SOL, libc::SO_LINGER, Zeros(8)),
    (SOL, libc::SO_REUSEADDR, Int(0)),
    (SOL, libc::SO_DONTROUTE, Int(0)),
    (SOL, libc::SO_PEEK_OFF, Int(-1)),
    (SOL, libc::SO_TIMESTAMP, Int(0)),
    (SOL, libc::SO_TIMESTAMPNS, Int(0)),
    (SOL, libc::SO_TIMESTAMPING, Int(0)),
    (SOL, SO_LOCK_FILTER, Int(0)),
];

const UNIX: &[Row] = &[
    (SOL, libc::SO_PASSCRED, Int(0)),
    (SOL, libc::SO_PASSSEC, Int(0)),
    (SOL, 76, Int(0)), // SO_PASSPIDFD
];

const INET: &[Row] = &[
    (SOL, libc::SO_REUSEPORT, Int(0)),
    (SOL, libc::SO_KEEPALIVE, Int(0)),
    (SOL, libc::SO_OOBINLINE, Int(0)),
    (SOL, libc::SO_BINDTODEVICE, Empty(16)),
    (SOL, libc::SO_MAX_PACING_RATE, Ones(8)),
    (SOL, libc::SO_ZEROCOPY, Int(0)),
    (IP, libc::IP_TOS, Int(0)),
    (IP, libc::IP_TTL, Int(64)),
    (IP, libc::IP_MTU_DISCOVER, Int(libc::IP_PMTUDISC_WANT)),
    (IP, libc::IP_FREEBIND, Int(0)),
    (IP, libc::IP_TRANSPARENT, Int(0)),
    (IP, libc::IP_MINTTL, Int(0)),
    (IP, libc::IP_BIND_ADDRESS_NO_PORT, Int(0)),
    (IP, 51, Int(0)), // IP_LOCAL_PORT_RANGE
    (IP, libc::IP_RECVERR, Int(0)),
];

const INET6: &[Row] = &[
    (IP6, libc::IPV6_V6ONLY, Int(0)),
    (IP6, libc::IPV6_UNICAST_HOPS, Int(64)),
    (IP6, libc::IPV6_TCLASS, Int(0)),
    (IP6, libc::IPV6_MTU_DISCOVER, Int(libc::IPV6_PMTUDISC_WANT)),
    (IP6, libc::IPV6_FREEBIND, Int(0)),
    (IP6, libc::IPV6_TRANSPARENT, Int(0)),
    (IP6, libc::IPV6_RECVERR, Int(0)),
];

const TCP_ONLY: &[Row] = &[
    (TCP, libc::TCP_NODELAY, Int(0)),
    (TCP, libc::TCP_CORK, Int(0)),
    (TCP, libc::TCP_MAXSEG, Int(536)),
    (TCP, libc::TCP_KEEPIDLE, Int(7200)),
    (TCP, libc::TCP_KEEPINTVL, Int(75)),
    (TCP, libc::TCP_KEEPCNT, Int(9)),
    (TCP, libc::TCP_SYNCNT, Int(6)),
    (TCP, libc::TCP_LINGER2, Int(60)),
    (TCP, libc::TCP_DEFER_ACCEPT, Int(0)),
    (TCP, libc::TCP_WINDOW_CLAMP, Int(0)),
    (TCP, libc::TCP_QUICKACK, Int(1)),
    (TCP, libc::TCP_CONGESTION, Never(16)),
    (TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, Int(0)),
    (TCP, libc::TCP_USER_TIMEOUT, Int(0)),
    (TCP, libc::TCP_NOTSENT_LOWAT, Int(0)),
    (TCP, libc::TCP_FASTOPEN, Int(0)),
    (TCP, libc::TCP_FASTOPEN_CONNECT, Int(0)),
    (TCP, libc::TCP_SAVE_SYN, Int(0)),
    (TCP, 36, Int(0)), // TCP_INQ
];

const UDP_ONLY: &[Row] = &[
    (SOL, libc::SO_BROADCAST, Int(0)),
    (SOL, libc::SO_NO_CHECK, Int(0)),
    (SOL, libc::SO_RXQ_OVFL, Int(0)),
    (IP, libc::IP_PKTINFO, Int(0)),
    (IP, libc::IP_RECVTTL, Int(0)),
    (IP, libc::IP_RECVTOS, Int(0)),
    (IP, libc::IP_RECVORIGDSTADDR, Int(0)),
    (UDP, 103, Int(0)), // UDP_SEGMENT
    (UDP, 104, Int(0)), // UDP_GRO
    (IP, libc::IP_MULTICAST_TTL, Int(1)),
    (IP, libc::IP_MULTICAST_LOOP, Int(1)),
    (IP, 49, Int(1)), // IP_MULTICAST_ALL
    (IP, libc::IP_MULTICAST_IF, Zeros(4)),
];

const UDP6_ONLY: &[Row] = &[
    (IP6, libc::IPV6_DONTFRAG, Int(0)),
    (IP6, libc::IPV6_RECVPKTINFO, Int(0)),
    (IP6, libc::IPV6_RECVHOPLIMIT, Int(0)),
    (IP6, libc::IPV6_RECVTCLASS, Int(0)),
    (IP6, 74, Int(0)), // IPV6_RECVORIGDSTADDR
    (IP6, libc::IPV6_MULTICAST_HOPS, Int(1)),
    (IP6, libc::IPV6_MULTICAST_LOOP, Int(1)),
    (IP6, libc::IPV6_MULTICAST_IF, Int(0)),
    (IP6, 29, Int(1)), // IPV6_MULTICAST_ALL
];

/// Of no effect on a connection that stands: for binding, listening and connecting.
const BEFORE: &[(i32, i32)] = &[
    (IP, libc::IP_FREEBIND),
    (IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (IP, 51),
    (IP6, libc::IPV6_FREEBIND),
    (TCP, libc::TCP_MAXSEG),
    (TCP, libc::TCP_SYNCNT),
    (TCP, libc::TCP_DEFER_ACCEPT),
    (TCP, libc::TCP_FASTOPEN),
    (TCP, libc::TCP_FASTOPEN_CONNECT),
    (TCP, libc::TCP_SAVE_SYN),
];

/// Changed by the kernel itself on a connection.
pub(crate) const VOLATILE: &[(i32, i32)] = &[
    (SOL, libc::SO_SNDBUF),
    (SOL, libc::SO_RCVBUF),
    (TCP, libc::TCP_WINDOW_CLAMP),
    (TCP, libc::TCP_QUICKACK),
];

fn tables(family: Family) -> impl Iterator<Item = &'static Row> {
    let (inet, own, v6): (&[Row], &[Row], &[Row]) = match family {
        Family::Unix => (UNIX, &[], &[]),
        Family::Tcp(false) => (INET, TCP_ONLY, &[]),
        Family::Tcp(true) => (INET, TCP_ONLY, INET6),
        Family::Udp(false) => (INET, UDP_ONLY, &[]),
        Family::Udp(true) => (INET, UDP_ONLY, INET6),
    };
    let more: &[Row] = if family == Family::Udp(true) { UDP6_ONLY } else { &[] };
    SOCKET.iter().chain(inet).chain(own).chain(v6).chain(more)
}

fn is_default(value: &[u8], default: Usual) -> bool {
    match default {
        Int(n) => value == n.to_ne_bytes(),
        Zeros(_) => value.iter().all(|b| *b == 0),
        Empty(_) => value.is_empty(),
        Ones(_) => value.iter().all(|b| *b == 0xff),
        Never(_) => false,
    }
}

fn size(default: Usual) -> usize {
    match default {
        Int(_) => 4,
        Zeros(n) | Empty(n) | Ones(n) | Never(n) => n,
    }
}

/// The options of a socket that are not at their default, in the order of the table; a classic filter among them.
/// `connected`: what only matters before is left out.
pub(crate) fn read(
    fd: impl AsFd,
    family: Family,
    connected: bool,
    at: (i32, i32),
    warnings: &mut Vec<String>,
) -> Vec<SockOpt> {
    let fd = fd.as_fd();
    let mut all = Vec::new();
    let rows = tables(family).filter(|r| !connected || !BEFORE.contains(&(r.0, r.1)));
    read_rows(fd, rows, &mut all);
    match sock::filter_len(fd) {
        Ok(0) | Err(Errno::ENOPROTOOPT) => {}
        Ok(n) => match sock::filter(fd, n) {
            Ok(value) => all.push(SockOpt { level: SOL, name: libc::SO_ATTACH_FILTER, value }),
            Err(e) => warnings.push(format!("fd {} of host pid {}: its filter: {e}", at.1, at.0)),
        },
        Err(e) => warnings.push(format!("fd {} of host pid {}: its filter: {e}", at.1, at.0)),
    }
    all
}

/// The [`VOLATILE`] ones of a connection, added to the others.
pub(crate) fn read_volatile(fd: impl AsFd, v6: bool, all: &mut Vec<SockOpt>) {
    let rows = tables(Family::Tcp(v6)).filter(|r| VOLATILE.contains(&(r.0, r.1)));
    read_rows(fd.as_fd(), rows, all);
}

fn read_rows(fd: BorrowedFd<'_>, rows: impl Iterator<Item = &'static Row>, all: &mut Vec<SockOpt>) {
    let mut buf = [0u8; 16];
    for (level, name, default) in rows {
        let max = size(*default);
        // Options a kernel does not have are at their default.
        if let Ok(n) = sock::get_into(fd, *level, *name, &mut buf[..max])
            && !is_default(&buf[..n], *default)
        {
            all.push(SockOpt { level: *level, name: *name, value: buf[..n].to_vec() });
        }
    }
}

/// Whether an option of an image may be set on a socket of this family, by name and size.
pub(crate) fn is_known(family: Family, option: &SockOpt) -> bool {
    if (option.level, option.name) == (SOL, libc::SO_ATTACH_FILTER) {
        return option.value.len().is_multiple_of(8) && option.value.len() <= 8 * 4096;
    }
    tables(family).any(|(level, name, default)| {
        (*level, *name) == (option.level, option.name) && option.value.len() <= size(*default)
    })
}

/// The value of one option in a list, as an int.
pub(crate) fn int(options: &[SockOpt], level: i32, name: i32) -> Option<i32> {
    let found = options.iter().find(|o| (o.level, o.name) == (level, name))?;
    Some(i32::from_ne_bytes(found.value.get(..4)?.try_into().ok()?))
}
