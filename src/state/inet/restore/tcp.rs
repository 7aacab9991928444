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

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Made {
    /// Sockets.
    pub sockets: Vec<(FileId, OwnedFd)>,
    /// Connections, with what ends their repair.
    pub repaired: Vec<Repaired>,
    /// What is different now.
    pub warnings: Vec<String>,
}

/// Makes sockets, a share on each processor; threads are in the namespaces of the caller. All connections stand before
/// the first is filled: one whose other end is in the pod, too, must not be answered by nobody.
pub(crate) fn tcp_all(sockets: &[(FileId, &TcpSocket)]) -> Result<Made, Error> {
    let stood = in_shares(sockets, |sockets| {
        let (mut share, mut warnings) = (Vec::with_capacity(sockets.len()), Vec::new());
        let mut injector = Injector::default();
        for (id, t) in sockets {
            share.push((*id, *t, stand(t, &mut injector, &mut warnings)?));
        }
        Ok::<_, Error>((share, warnings))
    })?;
    let mut made = Made::default();
    let mut all = Vec::with_capacity(sockets.len());
    for (share, warnings) in stood {
        all.extend(share);
        made.warnings.extend(warnings);
    }
    let filled = in_shares(&all, |sockets| {
        let (mut repaired, mut warnings) = (Vec::new(), Vec::new());
        let mut injector = Injector::default();
        for (_, t, socket) in sockets {
            if let TcpState::Linked { state, link } = &t.state {
                repaired.push(fill(t, socket, *state, link, &mut injector, &mut warnings)?);
            }
        }
        Ok::<_, Error>((repaired, warnings))
    })?;
    for (repaired, warnings) in filled {
        made.repaired.extend(repaired);
        made.warnings.extend(warnings);
    }
    made.sockets = all.into_iter().map(|(id, _, fd)| (id, fd)).collect();
    Ok(made)
}

/// Makes a socket; a connection stands in repair, with nothing in it.
fn stand(t: &TcpSocket, injector: &mut Injector, warnings: &mut Vec<String>) -> Result<OwnedFd, Error> {
    let call = |name: &'static str| Error::restore(name, || shown(t));
    let domain = if t.v6 { libc::AF_INET6 } else { libc::AF_INET };
    let socket = sock::socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP).map_err(call("socket(2)"))?;
    let fd = socket.as_fd();
    own(fd, t.uid).map_err(call("fchown(2)"))?;
    early(fd, &t.options, t.v6).map_err(call("setsockopt(2)"))?;
    match &t.state {
        TcpState::Closed => {
            bind(fd, t.local).map_err(call("bind(2)"))?;
        }
        TcpState::Listen(backlog) => {
            bind(fd, t.local).map_err(call("bind(2)"))?;
            // What a listener hands down to its connections is set before.
            late(fd, &t.options, || shown(t), warnings).map_err(call("setsockopt(2)"))?;
            sock::listen(fd, *backlog).map_err(call("listen(2)"))?;
            return Ok(socket);
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
            over(fd, t.v6, *how, unread, injector).map_err(call("rebuilding a closed connection"))?;
        }
        TcpState::Linked { link, .. } => {
            let ends = ends(t).map_err(call("connect(2)"))?;
            connect(fd, ends, link).map_err(call("connecting in repair"))?;
            return Ok(socket);
        }
    }
    late(fd, &t.options, || shown(t), warnings).map_err(call("setsockopt(2)"))?;
    Ok(socket)
}

/// Brings a standing connection to where the old one was.
fn fill(
    t: &TcpSocket,
    socket: &OwnedFd,
    state: u8,
    link: &TcpLink,
    injector: &mut Injector,
    warnings: &mut Vec<String>,
) -> Result<Repaired, Error> {
    let call = |name: &'static str| Error::restore(name, || shown(t));
    let fd = socket.as_fd();
    let ends = ends(t).map_err(call("connect(2)"))?;
    finish(fd, ends, state, link, injector).map_err(call("filling its queues"))?;
    late(fd, &t.options, || shown(t), warnings).map_err(call("setsockopt(2)"))?;
    // Only now: setting some options sends what the window lets go.
    tcp_repair::set_window(fd, link.window).map_err(call("setsockopt(2) TCP_REPAIR_WINDOW"))?;
    Ok(Repaired {
        fd: socket.try_clone().map_err(|_| call("dup(2)")(Errno::EMFILE))?,
        reuseaddr: reuses(&t.options),
        push: link.send.unsent > 0 || unsent_fin(state, link),
        quiet: link.quiet,
    })
}

fn ends(t: &TcpSocket) -> Result<Ends, Errno> {
    match (t.local, t.peer) {
        (Some(local), Some(peer)) => Ok(Ends { local, peer }),
        _ => Err(Errno::EDESTADDRREQ),
    }
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
    join(fd, ends, link)
}

/// The same for a socket that is in repair and bound.
fn join(fd: BorrowedFd, ends: Ends, link: &TcpLink) -> Result<(), Errno> {
    tcp_repair::choose(fd, Queue::Send)?;
    tcp_repair::set_seq(fd, link.send.seq)?;
    tcp_repair::choose(fd, Queue::Recv)?;
    tcp_repair::set_seq(fd, link.recv.seq)?;
    // The segment size in use is settled by connect(2), from this; TCP_REPAIR_OPTIONS comes too late for it.
    let mss = i32::try_from(link.mss).unwrap_or(0);
    let clamp = |mss| sock::set_i32(fd, libc::IPPROTO_TCP, libc::TCP_MAXSEG, mss);
    let clamped = clamp(mss).is_ok();
    sock::connect(fd, &sock::inet_addr(ends.peer))?;
    if clamped {
        clamp(0)?;
    }
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
    if !link.recv.data.is_empty() {
        tcp_repair::choose(fd, Queue::Recv)?;
        give(fd, &link.recv.data)?;
    }
    let sent = link.send.data.len() - (link.send.unsent as usize).min(link.send.data.len());
    if sent > 0 {
        tcp_repair::choose(fd, Queue::Send)?;
        give(fd, &link.send.data[..sent])?;
    }
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

/// A connection that is over: made on loopback with a stand-in for its peer, and ended the way it ended. Its old name
/// is not kept: the port may be somebody else's by now.
fn over(fd: BorrowedFd, v6: bool, how: Ended, unread: &[u8], injector: &mut Injector) -> Result<(), Errno> {
    let loopback: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let domain = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    let peer = sock::socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP)?;
    let take_port = |fd: BorrowedFd| {
        tcp_repair::on(fd)?;
        sock::bind(fd, &sock::inet_addr(SocketAddr::new(loopback, 0)))?;
        sock::parse_inet(&sock::name(fd, false)?).ok_or(Errno::EAFNOSUPPORT)
    };
    let ends = Ends { local: take_port(fd)?, peer: take_port(peer.as_fd())? };
    let link = TcpLink { mss: 1460, ..TcpLink::default() };
    // The stand-in is there to be answered to; in repair it says nothing, not even at its end.
    join(peer.as_fd(), Ends { local: ends.peer, peer: ends.local }, &link)?;
    room(fd, 0, unread.len())?;
    join(fd, ends, &link)?;
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
