//! Unix sockets: who is connected to whom by socket diagnosis, queues by peeking from an offset that is put back.

mod queue;

use super::{BoundFile, UnixMessage, UnixSocket};
use crate::base::Blocker;
use crate::kernel::sockdiag::UnixDiag;
use crate::kernel::{sock, tcp_repair::state};
use crate::state::fd::FileId;
use crate::state::fd::collect::table::{Desc, Table};
use crate::state::fd::collect::{Numbers, Sockets};
use crate::state::fd::error::Error;
use crate::state::file::collect::look;
use crate::state::inet::options;
use nix::errno::Errno;
use nix::fcntl::readlink;
use nix::sys::stat::fstat;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;

/// Sockets of the host that take a new connection at any time and keep nothing of an old one.
const WELL_KNOWN: [&[u8]; 6] = [
    b"/dev/log",
    b"/run/systemd/journal/dev-log",
    b"/run/systemd/journal/socket",
    b"/run/systemd/journal/syslog",
    b"/run/systemd/notify",
    b"/var/run/syslog",
];

fn blocker(desc: &Desc, kind: &str, message: String, remedy: &str) -> Blocker {
    Blocker {
        kind: kind.to_owned(),
        pid: desc.pod_pid,
        fd: desc.pod_pid.map(|_| desc.at.1),
        path: None,
        message,
        remedy: remedy.to_owned(),
    }
}

/// A name for people: `@` for the zero of an abstract one.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).replace('\0', "@")
}

/// The socket with this inode number, if the pod has it.
fn in_pod(table: &Table, sibling: &Desc, ino: u32) -> Option<FileId> {
    table.by_inode.get(&(sibling.st.st_dev, u64::from(ino)))?.first().copied()
}

/// Path of a well-known socket of the host a datagram socket is connected to.
fn well_known(fd: impl AsFd, diag: &UnixDiag) -> Option<Vec<u8>> {
    if i32::from(diag.kind) != libc::SOCK_DGRAM {
        return None;
    }
    let name = sock::parse_unix(&sock::name(fd, true).ok()?)?;
    WELL_KNOWN.contains(&name.as_slice()).then_some(name)
}

/// Why a unix socket cannot be carried.
pub(crate) fn check(table: &Table, id: FileId, sockets: &Sockets) -> Result<Vec<Blocker>, Error> {
    let desc = table.desc(id);
    let Some(diag) = sockets.unix(desc.st.st_ino) else {
        if sockets.maybe_in_flight() {
            return Ok(vec![]); // the pod runs: made since the list was read
        }
        let text = "this unix socket was made outside the pod".to_owned();
        return Ok(vec![blocker(desc, "foreign-socket", text, "let the program make it inside the pod")]);
    };
    let fd = table.borrow(id)?;
    let mut found: Vec<Blocker> = crate::state::inet::collect::check(desc, &fd).into_iter().collect();
    let listening = diag.state == state::LISTEN;
    match diag.peer {
        Some(0) if i32::from(diag.kind) != libc::SOCK_DGRAM && diag.shutdown != 3 && !listening => {
            if !pending_in_pod(table, desc, sockets) {
                let text = "its connection waits to be accepted by a process outside the pod".to_owned();
                found.push(blocker(desc, "outside-socket", text, "try again in a moment"));
            } else if sock::outq(&fd).unwrap_or(0) > 0 && !sockets.maybe_in_flight() {
                let text = "it has sent data on a connection that was not accepted yet".to_owned();
                found.push(blocker(desc, "pending-socket", text, "try again in a moment"));
            }
        }
        Some(ino)
            if ino != 0
                && in_pod(table, desc, ino).is_none()
                && well_known(&fd, diag).is_none()
                && !sockets.maybe_in_flight() =>
        {
            let name = sock::name(&fd, true).ok().and_then(|n| sock::parse_unix(&n));
            let peer = name.map_or_else(|| "an unnamed socket".to_owned(), |n| shown(&n));
            let text = format!("it is connected to {peer} of a process outside the pod");
            let remedy = "close the connection, or run both programs in one pod";
            found.push(blocker(desc, "outside-socket", text, remedy));
        }
        _ => {}
    }
    let strangers = diag.waiting.iter().filter(|ino| in_pod(table, desc, **ino).is_none()).count();
    if strangers > 0 && !sockets.maybe_in_flight() {
        let name = diag.name.as_deref().map_or_else(String::new, |n| format!(" on {}", shown(n)));
        let text = format!(
            "{strangers} connection(s){name} from outside the pod or closed since wait to be accepted"
        );
        found.push(blocker(desc, "pending-socket", text, "try again in a moment"));
    }
    Ok(found)
}

fn pending_in_pod(table: &Table, client: &Desc, sockets: &Sockets) -> bool {
    let ino = client.st.st_ino as u32;
    sockets.listening_for(ino).is_some_and(|listener| in_pod(table, client, listener).is_some())
}

/// Queues read, and the numbers sockets have in the image.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    numbers: Numbers,
    messages: HashMap<FileId, Vec<UnixMessage>>,
}

impl Queues {
    /// Reads the queue of one socket; descriptors in it join the table.
    pub fn read(&mut self, table: &mut Table, id: FileId, sockets: &Sockets) -> Result<(), Error> {
        let desc = table.desc(id);
        let Some(diag) = sockets.unix(desc.st.st_ino) else { return Ok(()) };
        let stream = i32::from(diag.kind) == libc::SOCK_STREAM;
        if diag.state == state::LISTEN || (stream && diag.queued == 0) {
            return Ok(());
        }
        let at = desc.at;
        let fd = table.borrow(id)?;
        let raw = queue::peek(&fd, stream).map_err(Error::fd("peeking into the queue", at))?;
        let mut messages = Vec::with_capacity(raw.len());
        for m in raw {
            let mut fds = Vec::with_capacity(m.fds.len());
            for fd in m.fds {
                fds.push(table.intern_in_flight(fd)?);
            }
            let cred = m.cred.map(|c| (table.pod_pid(c.pid).unwrap_or(0), c.uid, c.gid));
            messages.push(UnixMessage { data: m.data, fds, from: m.from, cred });
        }
        self.messages.insert(id, messages);
        Ok(())
    }

    /// One socket as data.
    pub fn socket(
        &mut self,
        table: &Table,
        id: FileId,
        sockets: &Sockets,
        warnings: &mut Vec<String>,
    ) -> Result<UnixSocket, Error> {
        let desc = table.desc(id);
        let Some(diag) = sockets.unix(desc.st.st_ino) else {
            return Err(Error::fd("finding the socket in the pod's namespace", desc.at)(Errno::ENOENT));
        };
        let fd = table.borrow(id)?;
        let dev = desc.st.st_dev;
        let mut number = |ino: u32| self.numbers.of((dev, u64::from(ino))).0;
        let listening = diag.state == state::LISTEN;
        let known = |ino: u32| in_pod(table, desc, ino).is_some();
        let peer = diag.peer.filter(|ino| *ino != 0 && known(*ino));
        let outside = if peer.is_none() { well_known(&fd, diag) } else { None };
        let pending = pending_in_pod(table, desc, sockets);
        let connected = diag.peer.is_some() || (diag.state == state::ESTABLISHED && !listening);
        let listener = accepted_from(diag, sockets).filter(|ino| known(*ino));
        let file = if listener.is_some() { None } else { bound_file(&fd, desc, diag, sockets)? };
        let peer_cred = if listening || (connected && i32::from(diag.kind) != libc::SOCK_DGRAM) {
            peer_cred(table, &fd)
        } else {
            None
        };
        Ok(UnixSocket {
            id: number(diag.ino),
            sock_type: i32::from(diag.kind),
            name: diag.name.clone(),
            file,
            listener: listener.map(&mut number),
            peer: peer.map(&mut number),
            orphan: connected && peer.is_none() && outside.is_none() && !pending && !listening,
            outside,
            backlog: listening.then_some(diag.backlog.min(i32::MAX as u32) as i32),
            waiting: diag.waiting.iter().map(|ino| number(*ino)).collect(),
            shutdown: diag.shutdown & 3,
            queue: self.messages.remove(&id).unwrap_or_default(),
            options: options::read(&fd, options::Family::Unix, false, desc.at, warnings),
            peer_cred,
        })
    }
}

/// The listening socket a connected one got its name from: same name, same file.
fn accepted_from(diag: &UnixDiag, sockets: &Sockets) -> Option<u32> {
    if diag.state == state::LISTEN || diag.peer.is_none() || i32::from(diag.kind) == libc::SOCK_DGRAM {
        return None;
    }
    sockets.listener_named(diag.name.as_deref()?, diag.file)
}

/// The file a socket is bound to, if its path still leads there from the pod's root.
fn bound_file(
    fd: impl AsFd,
    desc: &Desc,
    diag: &UnixDiag,
    sockets: &Sockets,
) -> Result<Option<BoundFile>, Error> {
    if diag.name.as_deref().is_none_or(|n| n.first() == Some(&0)) {
        return Ok(None);
    }
    let file = match sock::unix_file(fd) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(Error::fd("ioctl(2) SIOCUNIXFILE", desc.at)(e)),
    };
    let st = fstat(&file).map_err(Error::fd("fstat(2) of its bound file", desc.at))?;
    let path = readlink(format!("/proc/self/fd/{}", file.as_raw_fd()).as_str())
        .map_err(Error::fd("readlink(2) of its bound file", desc.at))?
        .into_vec();
    let there = look(sockets.root(), &path);
    if !there.is_ok_and(|t| (t.st_dev, t.st_ino) == (st.st_dev, st.st_ino)) {
        return Ok(None);
    }
    Ok(Some(BoundFile { path, mode: st.st_mode & 0o7777, uid: st.st_uid, gid: st.st_gid }))
}

fn peer_cred(table: &Table, fd: impl AsFd) -> Option<(i32, u32, u32)> {
    let b = sock::get(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, 12).ok()?;
    let word = |at: usize| Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?));
    let pid = table.pod_pid(word(0)? as i32).unwrap_or(0);
    Some((pid, word(4)?, word(8)?))
}
