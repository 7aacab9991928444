//! Unix-domain sockets: pairs, named, listening, with queued data and descriptors.

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
}

/// A unix socket. Two with each other's number in `peer` are connected.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnixSocket {
    /// Number of the socket within the image.
    pub id: u32,
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub sock_type: i32,
    /// Bound name: a path, or abstract when it begins with a zero byte.
    pub name: Option<Vec<u8>>,
    /// The bound path still names this socket (else it was unlinked or replaced).
    pub name_present: bool,
    /// Permission bits, uid, gid of the bound file.
    pub file_mode: (u32, u32, u32),
    /// Number of the connected peer.
    pub peer: Option<u32>,
    /// Backlog if listening.
    pub backlog: Option<i32>,
    /// shutdown(2) done: bit 0 receive, bit 1 send.
    pub shutdown: u8,
    /// Receive queue in order.
    pub queue: Vec<UnixMessage>,
    /// Options to set again.
    pub options: Vec<SockOpt>,
    /// SO_PEERCRED as seen: pid, uid, gid.
    pub peer_cred: Option<(i32, u32, u32)>,
}
