//! Unix-domain sockets: pairs, named, listening, with queued data and descriptors.

pub mod collect;
pub mod restore;

use super::fd::FileId;
use super::inet::SockOpt;
use serde::{Deserialize, Serialize};

/// One message (datagram, packet, or a stretch of a stream) in a receive queue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnixMessage {
    /// Bytes.
    pub data: Vec<u8>,
    /// Descriptors passed along.
    pub fds: Vec<FileId>,
    /// Sender's name for datagrams, if bound.
    pub from: Option<Vec<u8>>,
    /// Sender's credentials where the kernel kept them (SO_PASSCRED): pod pid (0: none in the pod), uid, gid.
    pub cred: Option<(i32, u32, u32)>,
}

/// The file a socket is bound to, where its name still leads to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BoundFile {
    /// Absolute path in the pod's mount namespace.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A unix socket. Two with each other's number in `peer` are connected.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnixSocket {
    /// Number of the socket within the image.
    pub id: u32,
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub sock_type: i32,
    /// Bound name as given to bind(2): a path (maybe relative), or abstract when it begins with a zero byte.
    pub name: Option<Vec<u8>>,
    /// The file of that name; `None` if abstract, if it was unlinked or replaced, or if it is `listener`'s.
    pub file: Option<BoundFile>,
    /// Accepted from the listening socket of this number, whose name it has.
    pub listener: Option<u32>,
    /// Number of the connected peer.
    pub peer: Option<u32>,
    /// Connected once to a peer that is gone now (then `peer` is `None`).
    pub orphan: bool,
    /// Connected to a well-known socket of the host (`/dev/log`): connected again by this path at the target.
    pub outside: Option<Vec<u8>>,
    /// Backlog if listening.
    pub backlog: Option<i32>,
    /// Listening: numbers of the sockets whose connections wait to be accepted, in order (their `peer` is `None`).
    pub waiting: Vec<u32>,
    /// shutdown(2) done: bit 0 receive, bit 1 send.
    pub shutdown: u8,
    /// Receive queue in order.
    pub queue: Vec<UnixMessage>,
    /// Options to set again.
    pub options: Vec<SockOpt>,
    /// SO_PEERCRED as seen: pod pid (0: none in the pod), uid, gid.
    pub peer_cred: Option<(i32, u32, u32)>,
}
