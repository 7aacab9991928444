//! One TCP socket rebuilt.

use super::{Repaired, early, late, own, reuses, room};
use crate::kernel::rawip::{Injector, Segment, flag};
use crate::kernel::tcp_repair::{self, Negotiated, Queue, state};
use crate::kernel::{descr, sock};
use crate::state::fd::FileId;
use crate::state::fd::error::Error;
use crate::state::fd::shares::in_shares;
use crate::state::inet::{Ended, TcpLink, TcpSocket, TcpState};
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes given to one send in repair: larger ones ask for memory in one piece.
const CHUNK: usize = 32 << 10;

fn shown(t: &TcpSocket) -> String {
    let end = |a: Option<SocketAddr>| a.map_or_else(|| "*".to_owned(), |a| a.to_string());
    format!("TCP {} to {}", end(t.local), end(t.peer))
}

/// Sockets made by one share.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// Sockets, connections with what ends their repair.
    pub sockets: Vec<(FileId, OwnedFd, Option<Repaired>)>,
    /// What is different now.
    pub warnings: Vec<String>,
}

/// Makes sockets, a share on each processor; threads are in the namespaces of the caller.
pub(crate) fn tcp_all(sockets: &[(FileId, &TcpSocket)]) -> Result<Vec<Share>, Error> {
    in_shares(sockets, |sockets| {
        let (mut share, mut injector) = (Share::default(), Injector::default());
        for (id, t) in sockets {
            let (fd, repaired) = tcp(t, &mut injector, &mut share.warnings)?;
            share.sockets.push((*id, fd, repaired));
        }
        Ok(share)
    })
}

/// Makes a socket. A connection comes with what ends its repair.
fn tcp(
    t: &TcpSocket,
    injector: &mut Injector,
    warnings: &mut Vec<String>,
) -> Result<(OwnedFd, Option<Repaired>), Error> {
    let call = |name: &'static str| Error::restore(name, || shown(t));
    let domain = if t.v6 { libc::AF_INET6 } else { libc::AF_INET };
    let socket = sock::socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP).map_err(call("socket(2)"))?;
    let fd = socket.as_fd();
    own(fd, t.uid).map_err(call("fchown(2)"))?;
    early(fd, &t.options, t.v6).map_err(call("setsockopt(2)"))?;
    let mut repaired = None;
    match &t.state {
        TcpState::Closed => {
            bind(fd, t.local).map_err(call("bind(2)"))?;
        }
        TcpState::Listen(backlog) => {
            bind(fd, t.local).map_err(call("bind(2)"))?;
            // What a listener hands down to its connections is set before.
            late(fd, &t.options, || shown(t), warnings).map_err(call("setsockopt(2)"))?;
            sock::listen(fd, *backlog).map_err(call("listen(2)"))?;
            return Ok((socket, None));
        }
        TcpState::SynSent => {
            bind(fd, t.local).map_err(call("bind(2)"))?;
            let peer = t.peer.ok_or_else(|| call("connect(2)")(Errno::EDESTADDRREQ))?;
            match sock::connect(fd, &sock::inet_addr(peer)) {
                Ok(()) | Err(Errno::EINPROGRESS) => {}
                Err(e) => return Err(call("connect(2)")(e)),
            }
        }
        TcpState::Over { how, unread } => {
            over(fd, t, *how, unread, injector).map_err(call("rebuilding a closed connection"))?;
        }
        TcpState::Linked { state, link } => {
            let (Some(local), Some(peer)) = (t.local, t.peer) else {
                return Err(call("connect(2)")(Errno::EDESTADDRREQ));
            };
            let ends = Ends { local, peer };
            connect(fd, ends, link).map_err(call("connecting in repair"))?;
            finish(fd, ends, *state, link, injector).map_err(call("filling its queues"))?;
            late(fd, &t.options, || shown(t), warnings).map_err(call("setsockopt(2)"))?;
            // Only now: setting some options sends what the window lets go.
            tcp_repair::set_window(fd, link.window).map_err(call("setsockopt(2) TCP_REPAIR_WINDOW"))?;
            repaired = Some(Repaired {
                fd: socket.try_clone().map_err(|_| call("dup(2)")(Errno::EMFILE))?,
                reuseaddr: reuses(&t.options),
                push: link.send.unsent > 0 || unsent_fin(*state, link),
            });
            return Ok((socket, repaired));
        }
    }
    late(fd, &t.options, || shown(t), warnings).map_err(call("setsockopt(2)"))?;
    Ok((socket, repaired))
}

fn bind(fd: BorrowedFd, local: Option<SocketAddr>) -> Result<(), Errno> {
    local.map_or(Ok(()), |a| sock::bind(fd, &sock::inet_addr(a)))
}

/// The two ends of a connection.
#[derive(Clone, Copy)]
struct Ends {
    local: SocketAddr,
    peer: SocketAddr,
}

/// In repair, connect(2) sends nothing: the connection stands at the sequence numbers set before.
fn connect(fd: BorrowedFd, ends: Ends, link: &TcpLink) -> Result<(), Errno> {
    tcp_repair::on(fd)?;
    sock::bind(fd, &sock::inet_addr(ends.local))?;
    tcp_repair::choose(fd, Queue::Send)?;
    tcp_repair::set_seq(fd, link.send.seq)?;
    tcp_repair::choose(fd, Queue::Recv)?;
    tcp_repair::set_seq(fd, link.recv.seq)?;
    sock::connect(fd, &sock::inet_addr(ends.peer))?;
    room(fd, link.send.data.len(), link.recv.data.len())?;
    tcp_repair::set_negotiated(
        fd,
        Negotiated { mss: link.mss, wscale: link.wscale, sack: link.sack, timestamps: link.timestamps },
    )?;
    if link.timestamps {
        tcp_repair::set_timestamp(fd, link.timestamp)?;
    }
    Ok(())
}

/// Gives data to a queue, the chosen one in repair.
fn give(fd: BorrowedFd, mut data: &[u8]) -> Result<(), Errno> {
    let mut chunk = CHUNK;
    while !data.is_empty() {
        match sock::send(fd, &data[..data.len().min(chunk)], &[], None, None, 0) {
            Ok(n) => data = &data[n..],
            Err(Errno::ENOMEM) if chunk > 1024 => chunk /= 2,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether our own end was closed (a FIN is queued or sent).
fn fin_out(s: u8) -> bool {
    matches!(s, state::FIN_WAIT1 | state::FIN_WAIT2 | state::LAST_ACK | state::CLOSING)
}

/// Whether the peer's end was closed.
fn fin_in(s: u8) -> bool {
    matches!(s, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING)
}

/// A FIN follows unsent data, so it is unsent, too.
fn unsent_fin(s: u8, link: &TcpLink) -> bool {
    fin_out(s) && link.send.unsent > 0
}

fn finish(fd: BorrowedFd, ends: Ends, s: u8, link: &TcpLink, injector: &mut Injector) -> Result<(), Errno> {
    tcp_repair::choose(fd, Queue::Recv)?;
    give(fd, &link.recv.data)?;
    tcp_repair::choose(fd, Queue::Send)?;
    let sent = link.send.data.len() - (link.send.unsent as usize).min(link.send.data.len());
    give(fd, &link.send.data[..sent])?;
    let recv_end = link.recv.seq.wrapping_add(link.recv.data.len() as u32);
    let from_peer = |flags, ack| Segment { seq: recv_end, ack, flags, window: u16::MAX };
    // Whose FIN came first decides which state the other leads to.
    if fin_in(s) && s != state::CLOSING {
        inject(fd, ends, injector, from_peer(flag::FIN | flag::ACK, link.send.seq), state::CLOSE_WAIT)?;
    }
    if fin_out(s) && !unsent_fin(s, link) {
        tcp_repair::choose(fd, Queue::Send)?;
        sock::shutdown(fd, libc::SHUT_WR)?;
        let after = link.send.seq.wrapping_add(sent as u32).wrapping_add(1);
        if s == state::FIN_WAIT2 {
            inject(fd, ends, injector, from_peer(flag::ACK, after), state::FIN_WAIT2)?;
        }
    }
    if link.send.unsent > 0 {
        unsent(fd, s, link, sent)?;
    }
    if s == state::CLOSING {
        inject(fd, ends, injector, from_peer(flag::FIN | flag::ACK, link.send.seq), state::CLOSING)?;
    }
    tcp_repair::choose(fd, Queue::None)
}

/// Data never sent must not count as sent. It is queued with repair off, behind a closed window, so that it stays.
fn unsent(fd: BorrowedFd, s: u8, link: &TcpLink, sent: usize) -> Result<(), Errno> {
    let mut shut = tcp_repair::window(fd)?;
    // snd_wl1 of a fresh connection is 0, which the kernel refuses for half of all sequence numbers.
    shut[0] = link.recv.seq;
    shut[1] = 0;
    tcp_repair::set_window(fd, shut)?;
    tcp_repair::off_quietly(fd)?;
    let queued = give(fd, &link.send.data[sent..]);
    let closed = if unsent_fin(s, link) { sock::shutdown(fd, libc::SHUT_WR) } else { Ok(()) };
    tcp_repair::on(fd)?;
    queued.and(closed)
}

/// Hands a segment of the peer's to the connection and waits until it has come to `want`.
fn inject(
    fd: BorrowedFd,
    ends: Ends,
    injector: &mut Injector,
    segment: Segment,
    want: u8,
) -> Result<(), Errno> {
    tcp_repair::choose(fd, Queue::None)?;
    injector.tcp(ends.peer, ends.local, segment)?;
    // Loopback delivers before send(2) returns, but for a busy softirq.
    for _ in 0..200 {
        if tcp_repair::info(fd)?.state == want {
            return Ok(());
        }
        descr::poll_for(fd, 0, 5)?;
    }
    Err(Errno::ETIMEDOUT)
}

/// A connection that is over: made with a peer that never was, and ended the way it ended.
fn over(
    fd: BorrowedFd,
    t: &TcpSocket,
    how: Ended,
    unread: &[u8],
    injector: &mut Injector,
) -> Result<(), Errno> {
    let loopback: IpAddr = if t.v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let ends = Ends {
        local: t.local.unwrap_or(SocketAddr::new(loopback, 0)),
        peer: SocketAddr::new(t.local.map_or(loopback, |a| a.ip()), 9),
    };
    let mut link = TcpLink { mss: 1460, ..TcpLink::default() };
    link.recv.data = unread.to_vec();
    let connected = connect(fd, ends, &link);
    if connected == Err(Errno::EADDRNOTAVAIL) && t.local.is_some() {
        // The address is gone from this host; only the name of a dead connection depends on it.
        return over(fd, &TcpSocket { local: None, ..t.clone() }, how, unread, injector);
    }
    connected?;
    let local = sock::parse_inet(&sock::name(fd, false)?).unwrap_or(ends.local);
    let ends = Ends { local, ..ends };
    tcp_repair::choose(fd, Queue::Recv)?;
    give(fd, unread)?;
    let seq = unread.len() as u32;
    let segment = |flags, ack| Segment { seq, ack, flags, window: u16::MAX };
    match how {
        Ended::Reset => inject(fd, ends, injector, segment(flag::RST | flag::ACK, 0), state::CLOSE)?,
        Ended::Closed => {
            inject(fd, ends, injector, segment(flag::FIN | flag::ACK, 0), state::CLOSE_WAIT)?;
            tcp_repair::choose(fd, Queue::Send)?;
            sock::shutdown(fd, libc::SHUT_WR)?;
            let after = Segment { seq: seq.wrapping_add(1), ..segment(flag::ACK, 1) };
            inject(fd, ends, injector, after, state::CLOSE)?;
        }
    }
    tcp_repair::off_quietly(fd)
}
