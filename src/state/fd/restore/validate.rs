//! An image is hostile until shown otherwise: every number in it that names something, and every size, is checked
//! before anything is made.

use crate::kernel::sock::{MAX_FDS, MAX_UNIX_NAME};
use crate::kernel::tcp_repair::state;
use crate::state::event::Epoll;
use crate::state::fd::error::Error;
use crate::state::fd::{FileId, FileKind, OpenFile};
use crate::state::inet::options::{Family, is_known};
use crate::state::inet::{SockOpt, TcpSocket, TcpState, UdpSocket};
use crate::state::pipe::PipeEnd;
use crate::state::unix::UnixSocket;
use std::collections::HashMap;
use std::net::SocketAddr;

/// Most descriptions of one image.
const MAX_FILES: usize = 1 << 20;
/// Most bytes of a path (PATH_MAX).
const MAX_PATH: usize = 4096;
/// Largest capacity of a pipe the kernel gives.
const MAX_PIPE: u32 = 1 << 31;
/// Highest descriptor number believed (the kernel's default `fs.nr_open`).
const MAX_FD: i32 = 1 << 20;
/// Most bytes of one socket's queue.
const MAX_QUEUE: usize = 1 << 30;

struct Check<'a> {
    files: &'a [OpenFile],
    unix: HashMap<u32, &'a UnixSocket>,
}

/// Checks a list of descriptions. `Error::Image` names the first that is wrong.
pub fn validate(files: &[OpenFile]) -> Result<(), Error> {
    if files.len() > MAX_FILES {
        return Err(Error::image(FileId(MAX_FILES as u32), format!("{} files are too many", files.len())));
    }
    let mut check = Check { files, unix: HashMap::new() };
    for (id, f) in (0..).map(FileId).zip(files) {
        if let FileKind::Unix(u) = &f.kind
            && check.unix.insert(u.id, u).is_some()
        {
            return Err(Error::image(id, format!("unix socket {} is there twice", u.id)));
        }
    }
    for (id, f) in (0..).map(FileId).zip(files) {
        check.one(f).map_err(|reason| Error::image(id, reason))?;
    }
    Ok(())
}

fn ensure(ok: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if ok { Ok(()) } else { Err(reason()) }
}

fn path(p: &[u8]) -> Result<(), String> {
    let fine = p.first() == Some(&b'/') && p.len() < MAX_PATH && !p.contains(&0);
    ensure(fine, || format!("{:?} is no absolute path", String::from_utf8_lossy(p)))
}

fn options(family: Family, opts: &[SockOpt]) -> Result<(), String> {
    match opts.iter().find(|o| !is_known(family, o)) {
        Some(o) => Err(format!("socket option {}/{} is not one that is carried", o.level, o.name)),
        None => Ok(()),
    }
}

fn same_family(v6: bool, addr: Option<SocketAddr>) -> Result<(), String> {
    ensure(addr.is_none_or(|a| a.is_ipv6() == v6), || "its address is of another family".into())
}

impl Check<'_> {
    fn one(&self, f: &OpenFile) -> Result<(), String> {
        ensure((0..=2).contains(&f.owner.0), || format!("owner type {}", f.owner.0))?;
        ensure((0..=64).contains(&f.owner.2), || format!("signal {}", f.owner.2))?;
        match &f.kind {
            FileKind::Path(p) => path(&p.path),
            FileKind::Pipe(end) => pipe(end),
            FileKind::Event(e) => ensure(e.count != u64::MAX, || "an eventfd cannot hold that much".into()),
            FileKind::Epoll(e) => self.epoll(e),
            FileKind::Timer(t) => {
                let clocks = [
                    libc::CLOCK_REALTIME,
                    libc::CLOCK_MONOTONIC,
                    libc::CLOCK_BOOTTIME,
                    libc::CLOCK_REALTIME_ALARM,
                    libc::CLOCK_BOOTTIME_ALARM,
                ];
                ensure(clocks.contains(&t.clock), || format!("clock {}", t.clock))?;
                ensure((0..=3).contains(&t.settime_flags), || format!("timer flags {}", t.settime_flags))
            }
            FileKind::Unix(u) => self.unix(u),
            FileKind::Tcp(t) => tcp(t),
            FileKind::Udp(u) => udp(u),
            FileKind::Object { .. } | FileKind::Signal(_) | FileKind::Port(_) => Ok(()),
        }
    }

    fn file(&self, id: FileId) -> Result<(), String> {
        ensure((id.0 as usize) < self.files.len(), || format!("there is no description {}", id.0))
    }

    fn epoll(&self, e: &Epoll) -> Result<(), String> {
        for item in &e.items {
            self.file(item.file)?;
            ensure((0..MAX_FD).contains(&item.tfd), || format!("epoll entry {}", item.tfd))?;
        }
        Ok(())
    }

    fn unix(&self, u: &UnixSocket) -> Result<(), String> {
        let types = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET];
        ensure(types.contains(&u.sock_type), || format!("unix socket type {}", u.sock_type))?;
        for name in [u.name.as_ref(), u.outside.as_ref()].into_iter().flatten() {
            let fine = !name.is_empty() && name.len() <= MAX_UNIX_NAME;
            ensure(fine, || format!("a name of {} octets", name.len()))?;
        }
        if let Some(file) = &u.file {
            path(&file.path)?;
            let named = u.name.as_ref().is_some_and(|n| n[0] != 0);
            ensure(named, || "a file, but no name that is a path".into())?;
        }
        let other = |id: &u32| {
            let found = self.unix.get(id).filter(|o| o.sock_type == u.sock_type && o.id != u.id);
            found.ok_or_else(|| format!("there is no unix socket {id} that could be its partner"))
        };
        if let Some(id) = &u.peer {
            let peer = other(id)?;
            let mutual = u.sock_type == libc::SOCK_DGRAM || peer.peer == Some(u.id);
            ensure(mutual, || format!("socket {id} is not connected back to it"))?;
            ensure(!u.orphan && u.backlog.is_none(), || "connected, and an orphan or listening".into())?;
        }
        if let Some(id) = &u.listener {
            ensure(other(id)?.backlog.is_some(), || format!("socket {id} does not listen"))?;
            ensure(u.backlog.is_none(), || "it listens and was accepted".into())?;
        }
        ensure(u.backlog.is_some() || u.waiting.is_empty(), || "it does not listen".into())?;
        ensure(u.backlog.is_none() || u.sock_type != libc::SOCK_DGRAM, || "datagrams do not listen".into())?;
        for id in &u.waiting {
            let client = other(id)?;
            let idle = client.peer.is_none() && client.backlog.is_none() && !client.orphan;
            ensure(idle, || format!("socket {id} waits for nobody"))?;
        }
        let mut bytes = 0usize;
        for m in &u.queue {
            bytes = bytes.saturating_add(m.data.len());
            ensure(m.fds.len() <= MAX_FDS, || format!("{} descriptors in one message", m.fds.len()))?;
            m.fds.iter().try_for_each(|id| self.file(*id))?;
            let long = m.from.as_ref().is_some_and(|n| n.is_empty() || n.len() > MAX_UNIX_NAME);
            ensure(!long, || "a sender's name that cannot be".into())?;
        }
        ensure(bytes <= MAX_QUEUE, || format!("a queue of {bytes} bytes"))?;
        options(Family::Unix, &u.options)
    }
}

fn pipe(end: &PipeEnd) -> Result<(), String> {
    if let Some(p) = &end.fifo {
        path(p)?;
    }
    ensure(end.capacity <= MAX_PIPE, || format!("a pipe of {} bytes", end.capacity))?;
    let fits = end.content.len() <= end.capacity as usize;
    ensure(fits, || format!("{} bytes in a pipe of {}", end.content.len(), end.capacity))
}

fn tcp(t: &TcpSocket) -> Result<(), String> {
    same_family(t.v6, t.local)?;
    same_family(t.v6, t.peer)?;
    options(Family::Tcp(t.v6), &t.options)?;
    match &t.state {
        TcpState::Closed | TcpState::Listen(_) => Ok(()),
        TcpState::SynSent => ensure(t.peer.is_some(), || "connecting to nobody".into()),
        TcpState::Over { unread, .. } => ensure(unread.len() <= MAX_QUEUE, || "a queue too long".into()),
        TcpState::Linked { state: s, link } => {
            let states = [
                state::ESTABLISHED,
                state::FIN_WAIT1,
                state::FIN_WAIT2,
                state::CLOSE_WAIT,
                state::LAST_ACK,
                state::CLOSING,
            ];
            ensure(states.contains(s), || format!("TCP state {s}"))?;
            ensure(t.local.is_some() && t.peer.is_some(), || "a connection without both ends".into())?;
            let longest = link.recv.data.len().max(link.send.data.len());
            ensure(longest <= MAX_QUEUE, || "a queue too long".into())?;
            let fits = link.send.unsent as usize <= link.send.data.len();
            ensure(fits, || format!("{} of {} bytes unsent", link.send.unsent, link.send.data.len()))?;
            let scales = link.wscale.is_none_or(|(a, b)| a <= 14 && b <= 14);
            ensure(scales, || format!("window scales {:?}", link.wscale))?;
            ensure((1..=65535).contains(&link.mss), || format!("MSS {}", link.mss))
        }
    }
}

fn udp(u: &UdpSocket) -> Result<(), String> {
    same_family(u.v6, u.local)?;
    same_family(u.v6, u.peer)?;
    options(Family::Udp(u.v6), &u.options)?;
    ensure(u.shutdown <= 3, || format!("shutdown {}", u.shutdown))?;
    let wrong = u.queue.iter().any(|d| d.data.len() > 65535 || d.from.is_ipv6() != u.v6);
    ensure(!wrong, || "a datagram that cannot be".into())
}
