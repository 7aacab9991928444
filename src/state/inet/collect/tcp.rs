//! One TCP socket.

use super::RepairedSocket;
use crate::kernel::sock;
use crate::kernel::tcp_repair::{self, Queue, state};
use crate::state::fd::FileId;
use crate::state::fd::collect::table::Table;
use crate::state::fd::error::Error;
use crate::state::fd::shares::in_shares;
use crate::state::inet::{Ended, SockOpt, TcpLink, TcpQueue, TcpSocket, TcpState, options};
use nix::errno::Errno;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

/// Most bytes of one queue that are believed.
const MAX_QUEUE: usize = 1 << 30;

/// Sockets read, and what is to be said about them.
pub(crate) type Read = HashMap<FileId, (TcpSocket, Vec<String>)>;

/// Reads sockets, a share on each processor: each asks the kernel some fifty things while the pod stands still.
pub(crate) fn tcp_all(
    table: &Table,
    ids: &[FileId],
    saved: &HashMap<FileId, RepairedSocket>,
) -> Result<Read, Error> {
    in_shares(ids, |ids| {
        let one = |id: &FileId| {
            let mut warnings = Vec::new();
            let socket = tcp(table, *id, saved.get(id), &mut warnings)?;
            Ok((*id, (socket, warnings)))
        };
        ids.iter().map(one).collect::<Result<Vec<_>, Error>>()
    })
    .map(|all| all.into_iter().flatten().collect())
}

/// Reads a socket; a connection is put in repair and left in it.
fn tcp(
    table: &Table,
    id: FileId,
    saved: Option<&RepairedSocket>,
    warnings: &mut Vec<String>,
) -> Result<TcpSocket, Error> {
    let desc = table.desc(id);
    let at = desc.at;
    let fd = table.borrow(id)?;
    let call = |name: &'static str| Error::fd(name, at);
    let uid = nix::sys::stat::fstat(&fd).map_err(call("fstat(2)"))?.st_uid;
    let raw = sock::name(&fd, false).map_err(call("getsockname(2)"))?;
    let own = sock::parse_inet(&raw).ok_or_else(|| call("getsockname(2)")(Errno::EAFNOSUPPORT))?;
    let peer = sock::name(&fd, true).ok().and_then(|b| sock::parse_inet(&b));
    let v6 = own.is_ipv6();
    let info = tcp_repair::info(&fd).map_err(call("getsockopt(2) TCP_INFO"))?;
    let linked = super::is_linked(info.state);
    let known = table.known(id).filter(|k| linked && k.v6 == v6);
    let mut opts = match known {
        Some(known) => {
            let mut all = known.options.clone();
            options::read_volatile(&fd, v6, &mut all);
            all
        }
        None => options::read(&fd, options::Family::Tcp(v6), linked, at, warnings),
    };
    let mut local = (own.port() != 0).then_some(own);
    let mut remote = peer;
    let state = match info.state {
        state::LISTEN => {
            if info.waiting > 0 {
                warnings.push(format!("{own}: {} connection(s) not yet accepted are lost", info.waiting));
            }
            TcpState::Listen(info.backlog.min(i32::MAX as u32) as i32)
        }
        state::SYN_SENT => {
            remote = syn_peer(table, id)?;
            TcpState::SynSent
        }
        state::CLOSE => {
            let state = closed(fd.as_fd()).map_err(call("peeking a closed connection"))?;
            if matches!(state, TcpState::Over { .. }) {
                local = None; // its port may be somebody else's by now
                opts.retain(|o| (o.level, o.name) != (libc::IPPROTO_TCP, libc::TCP_MAXSEG)); // what was in use
            }
            state
        }
        s if super::is_linked(s) => {
            let saved = saved.ok_or_else(|| call("finding it in the list of connections")(Errno::EBUSY))?;
            set_reuseaddr(&mut opts, saved.reuseaddr);
            let mut link = read_link(fd.as_fd(), s, &info).map_err(call("reading a TCP connection"))?;
            link.quiet = s == state::ESTABLISHED && known.is_some_and(|k| k.is_quiet(&info));
            TcpState::Linked { state: s, link: Box::new(link) }
        }
        other => {
            // SYN_RECV and TIME_WAIT never belong to a descriptor.
            warnings.push(format!("{own}: TCP state {other} is not carried"));
            TcpState::Over { how: Ended::Reset, unread: vec![] }
        }
    };
    Ok(TcpSocket { v6, local, peer: remote, state, options: opts, uid })
}

fn set_reuseaddr(opts: &mut Vec<SockOpt>, on: bool) {
    let (level, name) = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
    opts.retain(|o| (o.level, o.name) != (level, name));
    if on {
        opts.push(SockOpt { level, name, value: 1i32.to_ne_bytes().to_vec() });
    }
}

/// Whom a socket in SYN_SENT is calling: getpeername(2) does not tell yet, socket diagnosis does.
fn syn_peer(table: &Table, id: FileId) -> Result<Option<SocketAddr>, Error> {
    let desc = table.desc(id);
    let fd = table.borrow(id)?;
    let netns = sock::netns(&fd).map_err(Error::fd("ioctl(2) SIOCGSKNS", desc.at))?;
    let diag = crate::kernel::sockdiag::SockDiag::open_in(&netns)
        .map_err(Error::host("socket(2) NETLINK_SOCK_DIAG"))?;
    let all = diag
        .inet(libc::IPPROTO_TCP, 1 << state::SYN_SENT)
        .map_err(Error::host("listing TCP sockets (CONFIG_INET_TCP_DIAG)"))?;
    Ok(all.iter().find(|d| u64::from(d.ino) == desc.st.st_ino).map(|d| d.peer))
}

/// A socket in state CLOSE: fresh, bound, or a connection that is over.
fn closed(fd: BorrowedFd) -> Result<TcpState, Errno> {
    use crate::kernel::descr::poll_for;
    // A fresh socket polls OUT and HUP as well; a dead connection has read shutdown, too.
    let now = poll_for(fd, libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP, 0)?;
    let over = now & (libc::POLLERR | libc::POLLRDHUP) != 0;
    if !over {
        return Ok(TcpState::Closed);
    }
    let how = if now & libc::POLLERR != 0 { Ended::Reset } else { Ended::Closed };
    Ok(TcpState::Over { how, unread: peek(fd, sock::inq(fd)?)? })
}

/// Peeks exactly `len` bytes.
fn peek(fd: BorrowedFd, len: usize) -> Result<Vec<u8>, Errno> {
    if len > MAX_QUEUE {
        return Err(Errno::EMSGSIZE);
    }
    let mut data = vec![0u8; len];
    if len > 0 {
        let got = sock::recv(fd, &mut data, libc::MSG_PEEK | libc::MSG_DONTWAIT)?;
        if got.len != len {
            return Err(Errno::EIO);
        }
    }
    Ok(data)
}

fn read_link(fd: BorrowedFd, s: u8, info: &tcp_repair::Info) -> Result<TcpLink, Errno> {
    tcp_repair::on(fd)?;
    let read = || {
        let window = tcp_repair::window(fd)?;
        let timestamp = if info.timestamps { tcp_repair::timestamp(fd)? } else { 0 };
        let mss = tcp_repair::mss_clamp(fd)?;
        // A FIN takes a sequence number, and counts in the queue's length, but is no byte of data.
        let fin_in = u32::from(matches!(s, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING));
        let fin_out = matches!(s, state::FIN_WAIT1 | state::LAST_ACK | state::CLOSING);
        let fin_acked = u32::from(s == state::FIN_WAIT2);
        tcp_repair::choose(fd, Queue::Recv)?;
        let end = tcp_repair::seq(fd)?;
        let data = peek(fd, sock::inq(fd)?)?;
        let seq = end.wrapping_sub(fin_in).wrapping_sub(data.len() as u32);
        let recv = TcpQueue { seq, data, unsent: 0 };
        tcp_repair::choose(fd, Queue::Send)?;
        let end = tcp_repair::seq(fd)?;
        let nothing = s == state::ESTABLISHED && info.all_acknowledged;
        let (queued, unsent) = if nothing { (0, 0) } else { (sock::outq(fd)?, sock::outq_unsent(fd)?) };
        let data = peek(fd, queued - usize::from(fin_out && queued > 0))?;
        // The FIN is the last thing in the queue, so if anything is unsent, it is.
        let unsent = (unsent - usize::from(fin_out && unsent > 0)) as u32;
        let seq = end.wrapping_sub(u32::from(fin_out) + fin_acked).wrapping_sub(data.len() as u32);
        let send = TcpQueue { seq, data, unsent };
        Ok(TcpLink {
            recv,
            send,
            mss,
            wscale: info.wscale,
            sack: info.sack,
            timestamps: info.timestamps,
            timestamp,
            window,
            quiet: false,
        })
    };
    let link = read();
    tcp_repair::choose(fd, Queue::None)?;
    link
}
