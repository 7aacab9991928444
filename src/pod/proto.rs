//! What a pod's monitor and its callers say to each other: one message a datagram, descriptors beside it.
//!
//! A connection starts with [`Offer`] (caller) and [`Accept`] (monitor), both of a fixed layout, so that any two
//! versions can at least refuse each other by name; every later message is postcard, in the version agreed on.
//! Each [`Request`] gets exactly one [`Reply`], in order; [`Event`]s come between them to whoever asked for them.
//! A message longer than a datagram allows travels as a memfd beside an empty one.

use super::moving;
use super::store::Status;
use crate::base::spec::User;
use crate::base::{Failure, PodId};
use crate::kernel::{memfd, seqpacket};
use crate::state::fd::Port;
use nix::errno::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Newest version spoken.
pub const VERSION: u16 = 1;
/// Oldest version spoken (N−1 once there are two).
pub const OLDEST: u16 = 1;
/// Longest body sent as a datagram, in bytes; a longer one goes into a memfd.
const INLINE: usize = 64 << 10;
/// Longest body taken at all, in bytes (an environment can be 2 MiB, a manifest a few).
const LIMIT: u64 = 64 << 20;
const MAGIC: &[u8; 6] = b"podmig";

/// Why a message could not be exchanged.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The other end closed the connection.
    #[error("the monitor closed the connection")]
    Closed,
    /// Nothing to read now (non-blocking), or the send buffer is full.
    #[error("the connection would block")]
    WouldBlock,
    /// A system call failed.
    #[error("cannot {0}: {text}", text = .1.desc())]
    Io(&'static str, Errno),
    /// What came is not a message.
    #[error("not a message of podmig's monitor protocol: {0}")]
    Garbage(&'static str),
    /// No version in common.
    #[error("the monitor speaks protocol {theirs}, this podmig {OLDEST} to {VERSION}")]
    Version {
        /// What the other end offers.
        theirs: u16,
    },
}

/// A command to run in a running pod.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Command and arguments.
    pub cmd: Vec<String>,
    /// Its whole environment, `K=V` each.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Credentials.
    pub user: User,
    /// File mode creation mask.
    pub umask: u32,
    /// With a terminal of this size (rows, columns); its master comes with the reply.
    pub tty: Option<(u16, u16)>,
}

/// What a caller asks of the monitor.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// → [`Reply::Info`].
    Info,
    /// Run a command; descriptors: stdin, stdout, stderr (none: /dev/null; with `tty` none are taken).
    /// → [`Reply::Exec`], with the terminal's master; later [`Event::SessionEnded`] on this connection.
    Exec(ExecSpec),
    /// Send a signal to CMD.
    Signal {
        /// Signal number.
        signal: i32,
    },
    /// Freeze all tasks.
    Pause,
    /// Thaw them.
    Resume,
    /// SIGTERM to CMD, after the time SIGKILL to all; → `Done` when the pod has ended.
    Stop {
        /// In milliseconds.
        timeout_ms: u64,
    },
    /// SIGKILL to all; → `Done` when the pod has ended.
    Kill,
    /// Take part in CMD's input and output; descriptors: stdin (monitor reads), stdout, stderr (monitor writes),
    /// all pipes of the caller's own, which the monitor makes non-blocking.
    Attach,
    /// New size of a terminal.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// Send [`Event`]s from now on (the first one tells the present state).
    Watch {
        /// [`Event::Logged`] too.
        log: bool,
    },
    /// Something a mover asks.
    Move(moving::Request),
    /// Send a signal to a command run by [`Request::Exec`]; one that has ended already is no error.
    SignalSession {
        /// Number of the session.
        session: u32,
        /// Signal number.
        signal: i32,
    },
    /// As `Watch` without the log, and [`Event::Move`] too (the present one at once).
    Follow,
}

/// The one answer to a request.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// What the monitor knows.
    Info(Box<Info>),
    /// The command was executed.
    Exec {
        /// Number of the session.
        session: u32,
        /// Pid in the pod.
        pid: i32,
    },
    /// Answer to a mover.
    Move(moving::Reply),
    /// It was refused or failed.
    Failed(Failure),
}

/// Something that happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Event {
    /// The state is now this.
    State(Status),
    /// CMD was executed.
    Started {
        /// Its host pid.
        pid: i32,
    },
    /// The pod is up as its start type has it (`exec`: executed; `forking`: CMD exited 0; `notify`: READY=1).
    Ready,
    /// The pod ended for good with this status (128+N by signal): its restart policy does not start it again.
    Ended {
        /// Exit status, 0 to 255.
        status: i32,
    },
    /// A command run by [`Request::Exec`] ended.
    SessionEnded {
        /// Number of the session.
        session: u32,
        /// Exit status, 0 to 255.
        status: i32,
    },
    /// The log has grown since the last such event.
    Logged,
    /// A start failed; nothing is left of the pod. The last message on the starter's connection.
    StartFailed(Failure),
    /// The move under way has got this far; `None`: there is none, or it is over. Only for [`Request::Follow`].
    Move(Option<moving::Stage>),
}

/// A channel between the pod and its monitor, as found in the pod's descriptor tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortAt {
    /// Which.
    pub port: Port,
    /// Device number of the pipe or terminal (`st_dev`).
    pub dev: u64,
    /// Inode of the pipe or terminal.
    pub ino: u64,
}

/// What the monitor knows of its pod.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Info {
    /// Whose monitor it is.
    pub id: PodId,
    /// State.
    pub state: Status,
    /// Host pid of the monitor.
    pub monitor_pid: i32,
    /// Host pid of the pod's pid 1.
    pub init_pid: Option<i32>,
    /// CMD's host pid while it runs.
    pub cmd_pid: Option<i32>,
    /// CMD's pid in the pod.
    pub cmd_pod_pid: Option<i32>,
    /// Whether it is up as its start type has it.
    pub ready: bool,
    /// Channels to the monitor.
    pub ports: Vec<PortAt>,
    /// Offset of the pod's CLOCK_MONOTONIC to the host's, in nanoseconds.
    pub monotonic_offset_ns: i64,
    /// Offset of the pod's CLOCK_BOOTTIME to the host's, in nanoseconds.
    pub boottime_offset_ns: i64,
    /// The pod's directory in the cgroup tree, relative to the root of the hierarchy (`podmig/ID/pod`).
    pub cgroup: String,
    /// The move under way.
    pub moving: Option<moving::Stage>,
}

/// What a monitor sends: the answer to the oldest unanswered request, or an event.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Message {
    /// Answer.
    Reply(Reply),
    /// Event.
    Event(Event),
}

/// Sends one message.
pub fn send<T: Serialize>(to: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
    let body = postcard::to_stdvec(message).map_err(|_| Error::Garbage("it cannot be encoded"))?;
    let sent = if body.len() <= INLINE {
        seqpacket::send(to, &[&[0], &body[..]].concat(), fds)
    } else {
        let file = memfd::sealed(c"podmig-message", &body, false)
            .map_err(|e| Error::Io("make a memfd", Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        let mut all = vec![file.as_fd()];
        all.extend_from_slice(fds);
        seqpacket::send(to, &[1], &all)
    };
    sent.map_err(|e| match e {
        Errno::EAGAIN => Error::WouldBlock,
        Errno::EPIPE | Errno::ECONNRESET => Error::Closed,
        e => Error::Io("send a message", e),
    })
}

/// Receives one message with its descriptors.
pub fn recv<T: DeserializeOwned>(from: impl AsFd) -> Result<(T, Vec<OwnedFd>), Error> {
    let mut buf = vec![0; INLINE + 1];
    let (n, mut fds) = recv_raw(from, &mut buf)?;
    let body = match buf[..n].split_first() {
        Some((0, body)) => body.to_vec(),
        Some((1, [])) if !fds.is_empty() => long_body(fds.remove(0))?,
        _ => return Err(Error::Garbage("unknown framing")),
    };
    match postcard::take_from_bytes(&body) {
        Ok((message, [])) => Ok((message, fds)),
        Ok(_) => Err(Error::Garbage("trailing bytes")),
        Err(_) => Err(Error::Garbage("it cannot be decoded")),
    }
}

fn recv_raw(from: impl AsFd, buf: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Error> {
    match seqpacket::recv(from, buf) {
        Ok((0, _)) | Err(Errno::ECONNRESET) => Err(Error::Closed),
        Ok(got) => Ok(got),
        Err(Errno::EAGAIN) => Err(Error::WouldBlock),
        Err(Errno::EMSGSIZE) => Err(Error::Garbage("it is too long")),
        Err(e) => Err(Error::Io("receive a message", e)),
    }
}

fn long_body(file: OwnedFd) -> Result<Vec<u8>, Error> {
    let file = File::from(file);
    let len = file.metadata().map(|m| m.len()).unwrap_or(u64::MAX);
    if len > LIMIT {
        return Err(Error::Garbage("it is too long"));
    }
    let mut body = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut body, 0).map_err(|_| Error::Garbage("its memfd cannot be read"))?;
    Ok(body)
}

fn greeting(a: u16, b: u16) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..6].copy_from_slice(MAGIC);
    bytes[6..8].copy_from_slice(&a.to_le_bytes());
    bytes[8..].copy_from_slice(&b.to_le_bytes());
    bytes
}

fn parse_greeting(bytes: &[u8]) -> Result<(u16, u16), Error> {
    match bytes {
        [b'p', b'o', b'd', b'm', b'i', b'g', a0, a1, b0, b1] => {
            Ok((u16::from_le_bytes([*a0, *a1]), u16::from_le_bytes([*b0, *b1])))
        }
        _ => Err(Error::Garbage("no greeting")),
    }
}

/// The caller's first message: the oldest and newest version it speaks.
pub fn offer(to: impl AsFd) -> Result<(), Error> {
    seqpacket::send(to, &greeting(OLDEST, VERSION), &[]).map_err(|e| Error::Io("send a message", e))
}

/// The caller reads which version the monitor took (0 = none in common, then its newest).
pub fn accepted(from: impl AsFd) -> Result<u16, Error> {
    let mut buf = [0; 16];
    let (n, _) = recv_raw(from, &mut buf)?;
    match parse_greeting(&buf[..n])? {
        (0, theirs) => Err(Error::Version { theirs }),
        (version, _) if (OLDEST..=VERSION).contains(&version) => Ok(version),
        (theirs, _) => Err(Error::Version { theirs }),
    }
}

/// The monitor reads an offer and answers with the newest common version; an error closes the connection.
pub fn welcome(conn: impl AsFd) -> Result<u16, Error> {
    let mut buf = [0; 16];
    let (n, _) = recv_raw(&conn, &mut buf)?;
    let (oldest, newest) = parse_greeting(&buf[..n])?;
    let version = if oldest <= VERSION && newest >= OLDEST { newest.min(VERSION) } else { 0 };
    seqpacket::send(&conn, &greeting(version, VERSION), &[]).map_err(|e| Error::Io("send a message", e))?;
    if version == 0 { Err(Error::Version { theirs: newest }) } else { Ok(version) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_messages_arrive_whole() {
        let (a, b) = seqpacket::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        for len in [0, 10, 3 << 20] {
            let spec = ExecSpec {
                cmd: vec!["x".repeat(len)],
                env: vec![],
                cwd: "/".into(),
                user: User::default(),
                umask: 0o22,
                tty: Some((24, 80)),
            };
            let sent = Request::Exec(spec);
            send(&a, &sent, &[null.as_fd()]).unwrap();
            let (got, fds) = recv::<Request>(&b).unwrap();
            assert_eq!((got, fds.len()), (sent, 1));
        }
    }

    #[test]
    fn versions_without_overlap_refuse_each_other_by_name() {
        let (a, b) = seqpacket::pair().unwrap();
        seqpacket::send(&a, &greeting(VERSION + 1, VERSION + 3), &[]).unwrap();
        assert!(matches!(welcome(&b), Err(Error::Version { theirs }) if theirs == VERSION + 3));
        assert!(matches!(accepted(&a), Err(Error::Version { theirs: VERSION })));
        offer(&a).unwrap();
        assert_eq!(welcome(&b).unwrap(), VERSION);
        assert_eq!(accepted(&a).unwrap(), VERSION);
    }

    #[test]
    fn garbage_is_an_error() {
        let (a, b) = seqpacket::pair().unwrap();
        for bytes in [&b"\x00\xff\xff\xff"[..], b"\x01", b"\x02abc", b"\x01abc"] {
            seqpacket::send(&a, bytes, &[]).unwrap();
            assert!(matches!(recv::<Request>(&b), Err(Error::Garbage(_))), "{bytes:?}");
        }
        seqpacket::send(&a, b"hello", &[]).unwrap();
        assert!(matches!(welcome(&b), Err(Error::Garbage(_))));
    }
}
