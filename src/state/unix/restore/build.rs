//! Names, listeners, pairs and accepted connections: the sockets themselves, before anything is in them.

use super::place::{Jail, Places, SocketFile};
use super::{Restored, shown};
use crate::kernel::sock::{self, Ucred};
use crate::kernel::thread::as_user;
use crate::state::fd::FileId;
use crate::state::fd::error::Error;
use crate::state::inet::restore::room;
use crate::state::unix::{UnixMessage, UnixSocket};
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One socket being made.
#[derive(Debug, Default)]
struct Shell {
    fd: Option<OwnedFd>,
    /// The root under which its name leads to it (a path).
    jail: Option<usize>,
    /// The other end, where the image has none: closed when all is done.
    stand_in: Option<OwnedFd>,
    /// Made as a pair with this one.
    pair: Option<usize>,
}

/// The work in progress.
pub(super) struct Build<'a> {
    sockets: &'a [(FileId, &'a UnixSocket)],
    shells: Vec<Shell>,
    by_id: HashMap<u32, usize>,
    by_file: HashMap<FileId, usize>,
    by_name: HashMap<&'a [u8], usize>,
    places: Places,
    jails: Vec<Jail>,
    /// Jails that hold no file to be placed.
    nameless: Vec<usize>,
    files: Vec<SocketFile>,
    warnings: Vec<String>,
}

fn is_path(name: &[u8]) -> bool {
    name.first().is_some_and(|c| *c != 0)
}

impl<'a> Build<'a> {
    pub fn new(sockets: &'a [(FileId, &'a UnixSocket)]) -> Result<Self, Error> {
        let places = Places::new().map_err(Error::host("open(2) of /"))?;
        let mut build = Self {
            sockets,
            shells: sockets.iter().map(|_| Shell::default()).collect(),
            by_id: HashMap::new(),
            by_file: HashMap::new(),
            by_name: HashMap::new(),
            places,
            jails: vec![],
            nameless: vec![],
            files: vec![],
            warnings: vec![],
        };
        for (n, (file, u)) in sockets.iter().enumerate() {
            build.by_id.insert(u.id, n);
            build.by_file.insert(*file, n);
            if let (Some(name), None) = (&u.name, u.listener) {
                build.by_name.insert(name, n);
            }
        }
        Ok(build)
    }

    fn u(&self, n: usize) -> &'a UnixSocket {
        self.sockets[n].1
    }

    fn fd(&self, n: usize) -> Result<BorrowedFd<'_>, Errno> {
        self.shells[n].fd.as_ref().map(AsFd::as_fd).ok_or(Errno::EBADF)
    }

    /// The socket that is a description of the image.
    pub fn socket_of(&self, file: FileId) -> Option<&OwnedFd> {
        self.shells[*self.by_file.get(&file)?].fd.as_ref()
    }

    /// A socket and where to warn.
    pub fn parts(&mut self, n: usize) -> Option<(BorrowedFd<'_>, &mut Vec<String>)> {
        Some((self.shells[n].fd.as_ref()?.as_fd(), &mut self.warnings))
    }

    /// Makes every socket: names and listeners, then connections, then what waits to be accepted.
    pub fn shells(&mut self) -> Result<(), Error> {
        let all = 0..self.sockets.len();
        let step = |build: &mut Self, n: usize, f: &dyn Fn(&mut Self, usize) -> Result<(), Errno>| {
            f(build, n).map_err(Error::restore("making it again", || shown(build.u(n))))
        };
        for n in all.clone() {
            if self.u(n).backlog.is_some() {
                step(self, n, &Self::listener)?;
            }
        }
        for n in all.clone() {
            if self.shells[n].fd.is_none() && self.u(n).sock_type == libc::SOCK_DGRAM {
                step(self, n, &Self::datagram)?;
            }
        }
        for n in all.clone() {
            let u = self.u(n);
            if self.shells[n].fd.is_none() && (u.peer.is_some() || u.orphan) {
                step(self, n, &Self::connected)?;
            }
        }
        for n in all.clone() {
            for id in &self.u(n).waiting {
                let client = *self.by_id.get(id).unwrap_or(&n);
                step(self, client, &|b, c| b.waiting(c, n))?;
            }
            if let Some(backlog) = self.u(n).backlog {
                step(self, n, &|b, n| b.listen(n, backlog))?;
            }
        }
        for n in all {
            if self.shells[n].fd.is_none() {
                step(self, n, &Self::plain)?;
            }
        }
        Ok(())
    }

    /// Runs `body` with the ids that SO_PEERCRED of the other side shall show; with our own where those may not.
    fn as_peer_of<T>(&self, n: usize, body: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match self.u(n).peer_cred {
            Some((_, uid, gid)) => match as_user(uid, gid, &body)? {
                Err(Errno::EACCES | Errno::EPERM) => body(),
                other => other,
            },
            None => body(),
        }
    }

    /// Binds a socket to its name, if it has one.
    fn bind(&mut self, n: usize, fd: BorrowedFd) -> Result<(), Errno> {
        let u = self.u(n);
        let Some(name) = u.name.as_deref() else { return Ok(()) };
        let addr = sock::unix_addr(name)?;
        if !is_path(name) {
            return sock::bind(fd, &addr);
        }
        let jail = match &u.file {
            Some(file) => self.places.jail_beside(file, &mut self.warnings)?,
            None => self.places.jail_anywhere()?,
        };
        self.jails.push(jail);
        let at = self.jails.len() - 1;
        if u.file.is_none() {
            self.nameless.push(at);
        }
        self.shells[n].jail = Some(at);
        let bound = self.places.within(&self.jails[at], name, || sock::bind(fd, &addr));
        match (bound, &u.file) {
            (Ok(()), Some(file)) => {
                let file = self.places.finish(&self.jails[at], name, file);
                self.files.push(file.inspect_err(|_| self.nameless.push(at))?);
                Ok(())
            }
            (Err(e), Some(_)) => {
                self.nameless.push(at);
                Err(e)
            }
            (other, None) => other,
        }
    }

    /// `connect(2)` to a socket by its name, under the root where the name leads to it.
    fn connect_to(&self, fd: BorrowedFd, target: usize) -> Result<(), Errno> {
        let name = self.u(target).name.as_deref().ok_or(Errno::EDESTADDRREQ)?;
        let addr = sock::unix_addr(name)?;
        match self.shells[target].jail {
            Some(at) => self.places.within(&self.jails[at], name, || sock::connect(fd, &addr)),
            None => sock::connect(fd, &addr),
        }
    }

    fn listen(&self, n: usize, backlog: i32) -> Result<(), Errno> {
        let fd = self.fd(n)?;
        self.as_peer_of(n, || sock::listen(fd, backlog))
    }

    fn listener(&mut self, n: usize) -> Result<(), Errno> {
        let fd = sock::socket(libc::AF_UNIX, self.u(n).sock_type, 0)?;
        self.bind(n, fd.as_fd())?;
        self.shells[n].fd = Some(fd);
        // Room for all that will be connected before the true backlog is set.
        self.listen(n, 4096)
    }

    /// A socket that is neither connected nor listening.
    fn plain(&mut self, n: usize) -> Result<(), Errno> {
        let fd = sock::socket(libc::AF_UNIX, self.u(n).sock_type, 0)?;
        self.bind(n, fd.as_fd())?;
        self.shells[n].fd = Some(fd);
        Ok(())
    }

    /// Datagram sockets: a pair where one end could not be found by name, else alone, connected later.
    fn datagram(&mut self, n: usize) -> Result<(), Errno> {
        let peer = self.u(n).peer.and_then(|id| self.by_id.get(&id).copied());
        let nobody = self.u(n).name.is_none() && self.u(n).orphan;
        let mate = peer.filter(|p| {
            let (a, b) = (self.u(n), self.u(*p));
            self.shells[*p].fd.is_none() && (b.name.is_none() || (b.peer == Some(a.id) && a.name.is_none()))
        });
        match mate {
            Some(p) => {
                let (a, b) = sock::pair(libc::SOCK_DGRAM)?;
                self.bind(n, a.as_fd())?;
                self.bind(p, b.as_fd())?;
                self.shells[n] = Shell { fd: Some(a), pair: Some(p), ..std::mem::take(&mut self.shells[n]) };
                self.shells[p] = Shell { fd: Some(b), pair: Some(n), ..std::mem::take(&mut self.shells[p]) };
            }
            None if nobody => {
                let (a, b) = sock::pair(libc::SOCK_DGRAM)?;
                self.shells[n].fd = Some(a);
                self.shells[n].stand_in = Some(b);
            }
            None => self.plain(n)?,
        }
        Ok(())
    }

    /// One or both ends of a connection.
    fn connected(&mut self, n: usize) -> Result<(), Errno> {
        let u = self.u(n);
        let mate =
            u.peer.and_then(|id| self.by_id.get(&id).copied()).filter(|p| self.shells[*p].fd.is_none());
        // The end that was accepted: it has its listener's name, or a name while the other has none.
        let named = |b: &Self, n: usize| b.u(n).listener.is_some() || b.u(n).name.is_some();
        let first = match mate {
            Some(m) if self.u(n).listener.is_none() && (self.u(m).listener.is_some() || !named(self, n)) => m,
            _ => n,
        };
        let second = if first == n { mate } else { Some(n) };
        if !named(self, first) {
            let (a, b) = self.as_peer_of(first, || sock::pair(u.sock_type))?;
            self.put(first, second, a, b);
            return Ok(());
        }
        let client = sock::socket(libc::AF_UNIX, u.sock_type, 0)?;
        if let Some(s) = second {
            self.bind(s, client.as_fd())?;
        }
        let server = match self.u(first).listener.and_then(|id| self.by_id.get(&id).copied()) {
            Some(l) => {
                self.as_peer_of(first, || self.connect_to(client.as_fd(), l))?;
                sock::accept(self.fd(l)?)?
            }
            None => {
                // Its listener is gone: one of the same name serves for this connection.
                let temporary = sock::socket(libc::AF_UNIX, u.sock_type, 0)?;
                self.bind(first, temporary.as_fd())?;
                sock::listen(&temporary, 1)?;
                self.as_peer_of(first, || self.connect_to(client.as_fd(), first))?;
                sock::accept(&temporary)?
            }
        };
        self.put(first, second, server, client);
        Ok(())
    }

    fn put(&mut self, first: usize, second: Option<usize>, a: OwnedFd, b: OwnedFd) {
        self.shells[first].fd = Some(a);
        match second {
            Some(n) => self.shells[n].fd = Some(b),
            None => self.shells[first].stand_in = Some(b),
        }
    }

    /// A client whose connection waits in `listener`'s queue.
    fn waiting(&mut self, client: usize, listener: usize) -> Result<(), Errno> {
        let fd = match self.shells[client].fd.take() {
            Some(fd) => fd,
            None => {
                let fd = sock::socket(libc::AF_UNIX, self.u(client).sock_type, 0)?;
                self.bind(client, fd.as_fd())?;
                fd
            }
        };
        self.connect_to(fd.as_fd(), listener)?;
        self.shells[client].fd = Some(fd);
        Ok(())
    }

    /// Puts one message into the queue of socket `n`.
    pub fn send(
        &mut self,
        n: usize,
        m: &UnixMessage,
        fds: &[i32],
        cred: Option<Ucred>,
        bytes: usize,
    ) -> Result<(), Errno> {
        let u = self.u(n);
        let peer = u.peer.and_then(|id| self.by_id.get(&id).copied());
        if u.sock_type != libc::SOCK_DGRAM {
            let from = match (peer, &self.shells[n].stand_in) {
                (Some(p), _) => self.fd(p)?,
                (None, Some(s)) => s.as_fd(),
                (None, None) => return Err(Errno::ENOTCONN),
            };
            room(from, bytes, 0)?;
            return send_all(from, m, fds, cred, u.sock_type == libc::SOCK_STREAM);
        }
        let known = match &m.from {
            Some(name) => self.by_name.get(name.as_slice()).copied(),
            None => peer.filter(|p| self.u(*p).name.is_none() && self.u(*p).peer == Some(u.id)),
        };
        if let Some(s) = known {
            let from = self.fd(s)?;
            room(from, bytes, 0)?;
            return self.send_to(from, n, m, fds, cred);
        }
        if let (None, Some(s)) = (&m.from, &self.shells[n].stand_in) {
            room(s.as_fd(), bytes, 0)?;
            return send_all(s.as_fd(), m, fds, cred, false);
        }
        // A sender that is gone: another of its name will do.
        let from = sock::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
        if let Some(name) = &m.from {
            let addr = sock::unix_addr(name)?;
            if is_path(name) {
                let jail = self.places.jail_anywhere()?;
                let bound = self.places.within(&jail, name, || sock::bind(&from, &addr));
                self.places.remove(&jail);
                bound?;
            } else {
                sock::bind(&from, &addr)?;
            }
        }
        room(from.as_fd(), bytes, 0)?;
        self.send_to(from.as_fd(), n, m, fds, cred)
    }

    fn send_to(
        &self,
        from: BorrowedFd,
        to: usize,
        m: &UnixMessage,
        fds: &[i32],
        cred: Option<Ucred>,
    ) -> Result<(), Errno> {
        let Some(name) = self.u(to).name.as_deref() else { return send_all(from, m, fds, cred, false) };
        let addr = sock::unix_addr(name)?;
        let send = || sock::send(from, &m.data, fds, cred, Some(&addr), 0).map(drop);
        match self.shells[to].jail {
            Some(at) => self.places.within(&self.jails[at], name, send),
            None => send(),
        }
    }

    /// Connects datagram sockets that were not made as pairs: after the queues, which strangers may have filled.
    pub fn connect_datagrams(&mut self) -> Result<(), Error> {
        for n in 0..self.sockets.len() {
            let u = self.u(n);
            if u.sock_type != libc::SOCK_DGRAM {
                continue;
            }
            let call = |name: &'static str| Error::restore(name, || shown(u));
            if let Some(path) = &u.outside {
                let addr = sock::unix_addr(path).map_err(call("connect(2)"))?;
                let fd = self.fd(n).map_err(call("connect(2)"))?;
                if let Err(e) = self.places.outside(|| sock::connect(fd, &addr)) {
                    let path = String::from_utf8_lossy(path).into_owned();
                    self.warnings.push(format!("{}: not connected to {path} again: {e}", shown(u)));
                }
            }
            let Some(p) = u.peer.and_then(|id| self.by_id.get(&id).copied()) else { continue };
            let fd = self.fd(n).map_err(call("connect(2)"))?;
            if self.shells[n].pair == Some(p) {
                continue;
            }
            self.connect_to(fd, p).map_err(call("connect(2)"))?;
        }
        Ok(())
    }

    /// All done: the stand-ins close, scratch directories without a file to place go.
    pub fn done(mut self) -> Result<Restored, Error> {
        for at in std::mem::take(&mut self.nameless) {
            self.places.remove(&self.jails[at]);
        }
        let mut sockets = Vec::with_capacity(self.shells.len());
        for (shell, (file, u)) in self.shells.into_iter().zip(self.sockets) {
            let missing = Error::restore("socket(2)", || shown(u));
            sockets.push((*file, shell.fd.ok_or(Errno::EBADF).map_err(missing)?));
        }
        Ok(Restored { sockets, files: self.files, warnings: self.warnings })
    }

    /// Given up: every scratch directory goes.
    pub fn discard(self) {
        for jail in &self.jails {
            self.places.remove(jail);
        }
    }
}

/// Sends one message whole; a stream may take it in pieces, the descriptors with the first.
fn send_all(
    from: BorrowedFd,
    m: &UnixMessage,
    fds: &[i32],
    cred: Option<Ucred>,
    stream: bool,
) -> Result<(), Errno> {
    let mut sent = sock::send(from, &m.data, fds, cred, None, 0)?;
    while stream && sent < m.data.len() {
        sent += sock::send(from, &m.data[sent..], &[], cred, None, 0)?;
    }
    Ok(())
}
