//! TCP and UDP sockets over IPv4 and IPv6.

pub mod collect;
pub(crate) mod options;
pub mod restore;

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// A socket option and its value, as `getsockopt` gave it and `setsockopt` takes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SockOpt {
    /// Level (SOL_SOCKET, IPPROTO_TCP, …).
    pub level: i32,
    /// Name.
    pub name: i32,
    /// Value.
    pub value: Vec<u8>,
}

/// One TCP queue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct TcpQueue {
    /// Sequence number of the *first* byte in `data`.
    pub seq: u32,
    /// Bytes: received and not read, or sent/written and not acknowledged.
    pub data: Vec<u8>,
    /// Bytes at the end of `data` that were never sent (send queue only).
    pub unsent: u32,
}

/// Negotiated options and windows of a connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct TcpLink {
    /// Receive queue.
    pub recv: TcpQueue,
    /// Send queue.
    pub send: TcpQueue,
    /// MSS clamp.
    pub mss: u32,
    /// Window scale the peer announced, and ours; `None` if not negotiated.
    pub wscale: Option<(u8, u8)>,
    /// Selective acknowledgements.
    pub sack: bool,
    /// Timestamps.
    pub timestamps: bool,
    /// `TCP_TIMESTAMP` at the source.
    pub timestamp: u32,
    /// `TCP_REPAIR_WINDOW`: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    pub window: [u32; 5],
    /// Both ends know all there is to know: repair may end without a word.
    pub quiet: bool,
}

/// How a connection that is over ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ended {
    /// Both sides closed it.
    Closed,
    /// An error is pending (reset, timed out); shown as a reset at the target.
    Reset,
}

/// Where a TCP socket stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TcpState {
    /// Fresh or bound.
    Closed,
    /// Listening with this backlog.
    Listen(i32),
    /// connect(2) under way: issued again at the target.
    SynSent,
    /// A connection that is over, with what was received and not read.
    Over {
        /// How.
        how: Ended,
        /// Unread bytes.
        unread: Vec<u8>,
    },
    /// A connection; `state` is the kernel's TCP_* number (1 established, 4/5 FIN_WAIT, 8 CLOSE_WAIT, 9 LAST_ACK, 11 CLOSING).
    Linked {
        /// Kernel state number.
        state: u8,
        /// Queues and options.
        link: Box<TcpLink>,
    },
}

/// A TCP socket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TcpSocket {
    /// IPv6 socket.
    pub v6: bool,
    /// Local address, if bound.
    pub local: Option<SocketAddr>,
    /// Peer, if connected or connecting.
    pub peer: Option<SocketAddr>,
    /// State.
    pub state: TcpState,
    /// Options to set again (SO_REUSEADDR among them: set after repair is off).
    pub options: Vec<SockOpt>,
    /// User who made it (SO_REUSEPORT asks for the same one).
    pub uid: u32,
}

/// A datagram received and not read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Datagram {
    /// Sender.
    pub from: SocketAddr,
    /// Address it was sent to, if the kernel told.
    pub to: Option<SocketAddr>,
    /// Bytes.
    pub data: Vec<u8>,
}

/// A UDP socket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UdpSocket {
    /// IPv6 socket.
    pub v6: bool,
    /// Local address, if bound.
    pub local: Option<SocketAddr>,
    /// Peer, if connected.
    pub peer: Option<SocketAddr>,
    /// Datagrams received and not read.
    pub queue: Vec<Datagram>,
    /// Options to set again.
    pub options: Vec<SockOpt>,
    /// Multicast groups joined: group, interface index.
    pub groups: Vec<(IpAddr, u32)>,
    /// `shutdown(2)` done: bit 0 receive, bit 1 send.
    pub shutdown: u8,
    /// User who made it (SO_REUSEPORT asks for the same one).
    pub uid: u32,
}
