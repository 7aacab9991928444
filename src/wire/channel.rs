//! A channel: frames to and from one peer, over TLS or over the standard streams of an ssh session.

use super::identity::{Fingerprint, Identity};
use super::message::Message;
use super::{Error, tls};
use crate::base::{Failure, Kind};
use crate::image::frame::{self, FrameKind};
use crate::image::record::Record;
use crate::kernel::sock;
use crate::policy::hosts::{Host, Via};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a peer may take to answer a connect or a handshake.
const CONNECT: Duration = Duration::from_secs(5);

/// How long what was sent may stay unacknowledged (tcp(7), TCP_USER_TIMEOUT; by itself the kernel tries for a quarter of an
/// hour, while a pod stands still).
const CUT: Duration = Duration::from_secs(20);

/// What came.
#[derive(Debug)]
pub enum Incoming<'a> {
    /// A control message.
    Message(Box<Message>),
    /// A record.
    Record(Box<Record>),
    /// A page frame's body.
    Pages(&'a [u8]),
}

enum Transport {
    Client(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
    Server(Box<rustls::StreamOwned<rustls::ServerConnection, TcpStream>>),
    Ssh { child: Child, input: ChildStdout, output: ChildStdin },
    Stdio { input: io::Stdin, output: io::Stdout },
}

impl Read for Transport {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Client(s) => s.read(buf),
            Transport::Server(s) => s.read(buf),
            Transport::Ssh { input, .. } => input.read(buf),
            Transport::Stdio { input, .. } => input.read(buf),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Transport::Client(s) => s.write(buf),
            Transport::Server(s) => s.write(buf),
            Transport::Ssh { output, .. } => output.write(buf),
            Transport::Stdio { output, .. } => output.write(buf),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Transport::Client(s) => s.flush(),
            Transport::Server(s) => s.flush(),
            Transport::Ssh { output, .. } => output.flush(),
            Transport::Stdio { output, .. } => output.flush(),
        }
    }
}

impl Transport {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Transport::Client(s) => s.sock.as_fd(),
            Transport::Server(s) => s.sock.as_fd(),
            Transport::Ssh { input, .. } => input.as_fd(),
            Transport::Stdio { input, .. } => input.as_fd(),
        }
    }
    /// Plain text that already lies decrypted in our memory.
    fn buffered(&mut self) -> bool {
        let state = match self {
            Transport::Client(s) => s.conn.process_new_packets(),
            Transport::Server(s) => s.conn.process_new_packets(),
            _ => return false,
        };
        state.is_ok_and(|s| s.plaintext_bytes_to_read() > 0 || s.peer_has_closed())
    }
    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Transport::Client(s) => Some(&s.sock),
            Transport::Server(s) => Some(&s.sock),
            _ => None,
        }
    }
}

/// Frames to and from one peer.
pub struct Channel {
    transport: Transport,
    buf: Vec<u8>,
    /// Name of the peer.
    pub peer: String,
    /// Bytes of frames sent so far.
    pub sent: u64,
}

impl Channel {
    fn new(transport: Transport, peer: String) -> Self {
        Self { transport, buf: Vec::new(), peer, sent: 0 }
    }

    /// Calls a host: its agent by TLS with the pinned key, or `podmig receive` there by ssh.
    pub fn connect(me: &Identity, host: &Host) -> Result<Self, Error> {
        match &host.via {
            Via::Agent { addr, fingerprint } => {
                let key = Fingerprint::parse(fingerprint).ok_or_else(|| Error::Untrusted {
                    host: host.name.clone(),
                    reason: "the fingerprint in the list is not 64 hex digits".into(),
                })?;
                connect_tls(me, &host.name, addr, key)
            }
            Via::Ssh { target, port } => connect_ssh(&host.name, target, *port),
        }
    }

    /// Serves a caller on an accepted socket; only `trusted` keys get through. The handshake is finished here.
    pub fn accept(
        me: &Identity,
        trusted: Vec<Fingerprint>,
        socket: TcpStream,
    ) -> Result<(Self, Fingerprint), Error> {
        let name = socket.peer_addr().map_or_else(|_| "peer".to_owned(), |a| a.to_string());
        let untrusted = |reason: String| Error::Untrusted { host: name.clone(), reason };
        let conn = rustls::ServerConnection::new(tls::server(me, trusted)?)
            .map_err(|e| Error::Key(e.to_string()))?;
        let mut stream = rustls::StreamOwned::new(conn, socket);
        stream.conn.set_buffer_limit(None);
        tune(&stream.sock);
        let set = |s: &TcpStream, t| s.set_read_timeout(t).and_then(|()| s.set_write_timeout(t));
        set(&stream.sock, Some(CONNECT)).map_err(|e| untrusted(e.to_string()))?;
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(|e| untrusted(e.to_string()))?;
        }
        set(&stream.sock, None).map_err(|e| untrusted(e.to_string()))?;
        let key = stream.conn.peer_certificates().and_then(|c| Fingerprint::from_spki(c.first()?));
        let key = key.ok_or_else(|| untrusted("it showed no key".into()))?;
        Ok((Self::new(Transport::Server(Box::new(stream)), name), key))
    }

    /// The standard streams (`podmig receive`): the caller was let in by ssh.
    pub fn stdio() -> Self {
        let transport = Transport::Stdio { input: io::stdin(), output: io::stdout() };
        Self::new(transport, std::env::var("SSH_CLIENT").unwrap_or_else(|_| "ssh".into()))
    }

    /// Whether the peer is reached over ssh.
    pub fn is_ssh(&self) -> bool {
        matches!(self.transport, Transport::Ssh { .. })
    }

    fn lost(&self, source: crate::image::Error) -> Error {
        Error::Lost { host: self.peer.clone(), source }
    }

    fn send(&mut self, kind: FrameKind, head: &[u8], body: &[u8]) -> Result<(), Error> {
        self.sent += (frame::HEADER + head.len() + body.len()) as u64;
        // Over ssh the stream is as safe; a checksum of our own would only cost time.
        let done = frame::write(&mut self.transport, kind, head, body, false);
        done.map_err(|e| self.lost(e))
    }

    /// Sends a control message and flushes.
    pub fn message(&mut self, message: &Message) -> Result<(), Error> {
        let body = frame::encode(message).map_err(|e| self.lost(e))?;
        self.send(FrameKind::Control, &[], &body)?;
        self.flush()
    }

    /// Sends a record.
    pub fn record(&mut self, record: &Record) -> Result<(), Error> {
        let body = frame::encode(record).map_err(|e| self.lost(e))?;
        self.send(FrameKind::Record, &[], &body)
    }

    /// Sends a page frame: header of runs, then their bytes.
    pub fn pages(&mut self, head: &[u8], body: &[u8]) -> Result<(), Error> {
        self.send(FrameKind::Pages, head, body)
    }

    /// Pushes out what is buffered.
    pub fn flush(&mut self) -> Result<(), Error> {
        let done = self.transport.flush();
        done.map_err(|source| self.lost(crate::image::Error::Io { doing: "write to the stream", source }))
    }

    /// Waits until something can be read, at most `timeout`; `false` when the time ran out.
    pub fn wait_readable(&mut self, timeout: Duration) -> Result<bool, Error> {
        if self.transport.buffered() {
            return Ok(true);
        }
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left =
                // Rounded up: else the last millisecond would be a busy one.
                PollTimeout::try_from(left.as_micros().div_ceil(1000).min(1 << 30) as i32).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.transport.fd(), PollFlags::POLLIN)];
            match poll(&mut fds, left) {
                Ok(n) => return Ok(n > 0),
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => {
                    let source = io::Error::from(e);
                    return Err(self.lost(crate::image::Error::Io { doing: "wait for the peer", source }));
                }
            }
        }
    }

    /// Whether the peer's kernel has all we sent. Over ssh it is taken for granted: a lost peer ends the session.
    pub fn delivered(&self) -> bool {
        self.transport.socket().is_none_or(|s| sock::outq(s).is_ok_and(|waiting| waiting == 0))
    }

    /// From now on a read or write that stands still for `limit` is an error (not over ssh).
    pub fn patience(&self, limit: Duration) {
        if let Some(socket) = self.transport.socket() {
            let _ = socket.set_read_timeout(Some(limit)).and_then(|()| socket.set_write_timeout(Some(limit)));
        }
    }

    /// The next frame; `None` when the peer closed between frames.
    pub fn next(&mut self) -> Result<Option<Incoming<'_>>, Error> {
        let lost = |peer: &str, source| Error::Lost { host: peer.to_owned(), source };
        let kind = frame::read(&mut self.transport, &mut self.buf).map_err(|e| lost(&self.peer, e))?;
        Ok(match kind {
            None => None,
            Some(FrameKind::Control) => {
                Some(Incoming::Message(frame::decode(&self.buf).map_err(|e| lost(&self.peer, e))?))
            }
            Some(FrameKind::Record) => {
                Some(Incoming::Record(frame::decode(&self.buf).map_err(|e| lost(&self.peer, e))?))
            }
            Some(FrameKind::Pages) => Some(Incoming::Pages(&self.buf)),
        })
    }

    /// Waits for a control message, at most `timeout`. A refusal becomes the error it carries.
    pub fn expect(&mut self, timeout: Duration) -> Result<Message, Error> {
        let host = self.peer.clone();
        if !self.wait_readable(timeout)? {
            let source = io::Error::from(io::ErrorKind::TimedOut);
            return Err(self.lost(crate::image::Error::Io { doing: "wait for the peer", source }));
        }
        match self.next()? {
            Some(Incoming::Message(m)) => match *m {
                Message::Refused(failure) => Err(Error::Refused(at(&host, failure))),
                message => Ok(message),
            },
            Some(_) => Err(Error::Protocol { host, got: "data".into() }),
            None => Err(Error::Lost { host, source: crate::image::Error::Truncated("the conversation") }),
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        match &mut self.transport {
            Transport::Client(s) => {
                s.conn.send_close_notify();
                let _ = s.flush();
            }
            Transport::Server(s) => {
                s.conn.send_close_notify();
                let _ = s.flush();
            }
            // ssh ends when its streams do; reap it so that no zombie stays with a long-lived caller.
            Transport::Ssh { child, .. } => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Transport::Stdio { output, .. } => {
                let _ = output.flush();
            }
        }
        if let Some(socket) = self.transport.socket() {
            let _ = socket.shutdown(std::net::Shutdown::Write);
        }
    }
}

/// A failure as told here: what it names is at the peer's.
fn at(host: &str, failure: Failure) -> Failure {
    match failure.kind {
        Kind::Failed => Failure { message: format!("on {host}: {}", failure.message), ..failure },
        _ => failure,
    }
}

/// Answers must not wait for more to say; a dead peer must be noticed within seconds, not hours.
fn tune(socket: &TcpStream) {
    let _ = socket.set_nodelay(true);
    let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::KeepAlive, &true);
    let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::TcpKeepIdle, &2);
    let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::TcpKeepInterval, &1);
    let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::TcpKeepCount, &5);
    let cut = u32::try_from(CUT.as_millis()).unwrap_or(u32::MAX);
    let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::TcpUserTimeout, &cut);
}

fn connect_tls(me: &Identity, host: &str, addr: &str, pinned: Fingerprint) -> Result<Channel, Error> {
    let unreachable = |source| Error::Unreachable { host: host.to_owned(), addr: addr.to_owned(), source };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let mut socket = None;
    for candidate in addr.to_socket_addrs().map_err(unreachable)? {
        match TcpStream::connect_timeout(&candidate, CONNECT) {
            Ok(s) => {
                socket = Some(s);
                break;
            }
            Err(e) => last = e,
        }
    }
    let Some(socket) = socket else { return Err(unreachable(last)) };
    tune(&socket);
    let name = rustls::pki_types::ServerName::try_from("podmig").map_err(|e| Error::Key(e.to_string()))?;
    let conn = rustls::ClientConnection::new(tls::client(me, pinned)?, name)
        .map_err(|e| Error::Key(e.to_string()))?;
    let mut stream = rustls::StreamOwned::new(conn, socket);
    stream.conn.set_buffer_limit(None);
    stream.sock.set_read_timeout(Some(CONNECT)).map_err(unreachable)?;
    while stream.conn.is_handshaking() {
        let done = stream.conn.complete_io(&mut stream.sock);
        done.map_err(|e| Error::Untrusted { host: host.to_owned(), reason: e.to_string() })?;
    }
    stream.sock.set_read_timeout(None).map_err(unreachable)?;
    Ok(Channel::new(Transport::Client(Box::new(stream)), host.to_owned()))
}

fn connect_ssh(host: &str, target: &str, port: Option<u16>) -> Result<Channel, Error> {
    let unreachable = |source| Error::Unreachable { host: host.to_owned(), addr: target.to_owned(), source };
    let mut ssh = Command::new("ssh");
    ssh.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-T"]);
    if let Some(port) = port {
        ssh.args(["-p", &port.to_string()]);
    }
    ssh.args(["--", target, "podmig", "receive"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    // Not in our group: ctrl-C at the terminal is for us to understand, and must not cut a move that is committed.
    ssh.process_group(0);
    let mut child = ssh.spawn().map_err(unreachable)?;
    let (Some(input), Some(output)) = (child.stdout.take(), child.stdin.take()) else {
        return Err(unreachable(io::Error::from(io::ErrorKind::BrokenPipe)));
    };
    Ok(Channel::new(Transport::Ssh { child, input, output }, host.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair(trusted: bool) -> (Result<Channel, Error>, Result<(Channel, Fingerprint), Error>) {
        let (da, db) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (a, b) =
            (Identity::load(&da.path().join("k")).unwrap(), Identity::load(&db.path().join("k")).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let list = if trusted { vec![a.fingerprint] } else { vec![b.fingerprint] };
        let key = b.fingerprint;
        let server = std::thread::spawn(move || Channel::accept(&b, list, listener.accept().unwrap().0));
        let host = Host { name: "b".into(), via: Via::Agent { addr, fingerprint: key.to_string() } };
        let client = Channel::connect(&a, &host);
        (client, server.join().unwrap())
    }

    #[test]
    fn known_peers_talk() {
        let (client, server) = pair(true);
        let (mut client, (mut server, _)) = (client.unwrap(), server.unwrap());
        client.message(&Message::Seal).unwrap();
        client.pages(b"abc", &[7; 100_000]).unwrap();
        client.flush().unwrap();
        assert_eq!(server.expect(CONNECT).unwrap(), Message::Seal);
        assert!(matches!(server.next().unwrap(), Some(Incoming::Pages(p)) if p.len() == 100_003));
        assert!(!client.wait_readable(Duration::ZERO).unwrap());
        assert!(client.delivered());
        server.message(&Message::Refused(Failure::new(Kind::Taken, "x", "y"))).unwrap();
        assert!(matches!(client.expect(CONNECT), Err(Error::Refused(_))));
        drop(client);
        assert!(server.next().unwrap().is_none());
    }

    #[test]
    fn an_unknown_caller_is_turned_away() {
        let (client, server) = pair(false);
        assert!(matches!(server, Err(Error::Untrusted { .. })));
        // TLS 1.3: the caller has finished its side by then and learns of it at the first read.
        if let Ok(mut client) = client {
            assert!(client.expect(CONNECT).is_err());
        }
    }
}
