//! TCP_REPAIR (`net/ipv4/tcp.c`, tcp(7)): a TCP socket opened up for reading and rebuilding. Needs CAP_NET_ADMIN over
//! the socket's network namespace. While in repair, nothing the caller does sends a packet.

use super::sock;
use linux_raw_sys::net as raw;
use nix::errno::Errno;
use std::os::fd::AsFd;

/// `TCP_REPAIR` values.
const ON: i32 = 1;
const OFF: i32 = 0;
const OFF_NO_WP: i32 = -1;

const TCP: i32 = libc::IPPROTO_TCP;
const TCPOPT_MAXSEG: u32 = 2;
const TCPOPT_WINDOW: u32 = 3;
const TCPOPT_SACK_PERM: u32 = 4;
const TCPOPT_TIMESTAMP: u32 = 8;

const _: () = assert!(size_of::<raw::tcp_repair_window>() == 20 && size_of::<raw::tcp_repair_opt>() == 8);

/// `TCP_*` states (`net/tcp_states.h`).
#[allow(missing_docs)]
pub mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
}

/// Which queue a call is about (`TCP_REPAIR_QUEUE`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Queue {
    /// Neither: what is in the queues behaves as usual.
    None = 0,
    /// Received.
    Recv = 1,
    /// To be sent.
    Send = 2,
}

/// Opens a socket up. SO_REUSEADDR reads as 2 from now on. Errors: EPERM (no capability, or a listener).
pub fn on(fd: impl AsFd) -> Result<(), Errno> {
    sock::set_i32(fd, TCP, libc::TCP_REPAIR, ON)
}

/// Ends repair and sends a window probe if established. Clears SO_REUSEADDR: set it again after.
pub fn off(fd: impl AsFd) -> Result<(), Errno> {
    sock::set_i32(fd, TCP, libc::TCP_REPAIR, OFF)
}

/// Ends repair without sending anything. Clears SO_REUSEADDR: set it again after.
pub fn off_quietly(fd: impl AsFd) -> Result<(), Errno> {
    sock::set_i32(fd, TCP, libc::TCP_REPAIR, OFF_NO_WP)
}

/// Whether a socket is in repair.
pub fn is_on(fd: impl AsFd) -> Result<bool, Errno> {
    sock::get_i32(fd, TCP, libc::TCP_REPAIR).map(|v| v != 0)
}

/// Chooses the queue for [`seq`], [`set_seq`], peeking and sending. Never leave a live connection on `Send`: what
/// the kernel sends of itself would only be marked as sent.
pub fn choose(fd: impl AsFd, queue: Queue) -> Result<(), Errno> {
    sock::set_i32(fd, TCP, libc::TCP_REPAIR_QUEUE, queue as i32)
}

/// Sequence number after the last byte of the chosen queue (a FIN counts as one).
pub fn seq(fd: impl AsFd) -> Result<u32, Errno> {
    sock::get_i32(fd, TCP, libc::TCP_QUEUE_SEQ).map(|v| v as u32)
}

/// Sets the first sequence number of the chosen queue of a socket not yet connected. Errors: EPERM.
pub fn set_seq(fd: impl AsFd, seq: u32) -> Result<(), Errno> {
    sock::set(fd, TCP, libc::TCP_QUEUE_SEQ, &seq.to_ne_bytes())
}

/// What [`info`] reads of `TCP_INFO`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Info {
    /// State, one of [`state`].
    pub state: u8,
    /// Timestamps were negotiated.
    pub timestamps: bool,
    /// SACK was negotiated.
    pub sack: bool,
    /// Window scales of the peer and ours, if negotiated.
    pub wscale: Option<(u8, u8)>,
    /// Listening: connections not yet accepted.
    pub waiting: u32,
    /// Listening: backlog.
    pub backlog: u32,
    /// Nothing waits to be sent or to be acknowledged; never said by kernels that do not tell (before 4.6).
    pub all_acknowledged: bool,
    /// Milliseconds since data came in.
    pub received_ms: u32,
}

/// `TCP_INFO`.
pub fn info(fd: impl AsFd) -> Result<Info, Errno> {
    let mut b = [0u8; 148];
    let len = sock::get_into(fd, TCP, libc::TCP_INFO, &mut b)?;
    let b = &b[..len];
    let word = |at: usize| b.get(at..at + 4).map_or(0, |w| u32::from_ne_bytes([w[0], w[1], w[2], w[3]]));
    let (Some(state), Some(options), Some(scales)) = (b.first(), b.get(5), b.get(6)) else {
        return Err(Errno::EBADMSG);
    };
    Ok(Info {
        state: *state,
        timestamps: options & 1 != 0,
        sack: options & 2 != 0,
        wscale: (options & 4 != 0).then_some((scales & 15, scales >> 4)),
        waiting: word(24),
        backlog: word(28),
        // tcpi_unacked counts segments, tcpi_notsent_bytes what was never sent.
        all_acknowledged: len >= 148 && word(24) == 0 && word(144) == 0,
        received_ms: word(52),
    })
}

/// The MSS clamp of a connection: in repair TCP_MAXSEG reads as what the peer allowed.
pub fn mss_clamp(fd: impl AsFd) -> Result<u32, Errno> {
    sock::get_i32(fd, TCP, libc::TCP_MAXSEG).map(|v| v.max(0).unsigned_abs())
}

/// The connection's timestamp clock.
pub fn timestamp(fd: impl AsFd) -> Result<u32, Errno> {
    sock::get_i32(fd, TCP, libc::TCP_TIMESTAMP).map(|v| v as u32)
}

/// Makes the connection's timestamp clock go on from here. Errors: EPERM (not in repair).
pub fn set_timestamp(fd: impl AsFd, value: u32) -> Result<(), Errno> {
    sock::set(fd, TCP, libc::TCP_TIMESTAMP, &value.to_ne_bytes())
}

/// Windows: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup. Errors: EPERM (not in repair).
pub fn window(fd: impl AsFd) -> Result<[u32; 5], Errno> {
    let mut b = [0u8; 20];
    let n = sock::get_into(fd, TCP, libc::TCP_REPAIR_WINDOW, &mut b)?;
    if n != b.len() {
        return Err(Errno::EBADMSG);
    }
    let mut w = [0u32; 5];
    for (value, c) in w.iter_mut().zip(b.chunks_exact(4)) {
        *value = u32::from_ne_bytes([c[0], c[1], c[2], c[3]]);
    }
    Ok(w)
}

/// Sets what [`window`] reads. Errors: EINVAL (numbers that contradict each other or the queues), EPERM.
pub fn set_window(fd: impl AsFd, window: [u32; 5]) -> Result<(), Errno> {
    let mut b = [0u8; 20];
    for (c, value) in b.chunks_exact_mut(4).zip(window) {
        c.copy_from_slice(&value.to_ne_bytes());
    }
    sock::set(fd, TCP, libc::TCP_REPAIR_WINDOW, &b)
}

/// Options that were negotiated when a connection was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// MSS clamp.
    pub mss: u32,
    /// Window scales of the peer and ours.
    pub wscale: Option<(u8, u8)>,
    /// SACK.
    pub sack: bool,
    /// Timestamps.
    pub timestamps: bool,
}

/// Sets them on a socket connected in repair. Errors: EFBIG (a scale over 14), EPERM.
pub fn set_negotiated(fd: impl AsFd, n: Negotiated) -> Result<(), Errno> {
    let mut b = Vec::with_capacity(32);
    let mut put = |code: u32, value: u32| {
        b.extend_from_slice(&code.to_ne_bytes());
        b.extend_from_slice(&value.to_ne_bytes());
    };
    put(TCPOPT_MAXSEG, n.mss);
    if let Some((peer, ours)) = n.wscale {
        put(TCPOPT_WINDOW, u32::from(peer) | u32::from(ours) << 16);
    }
    if n.sack {
        put(TCPOPT_SACK_PERM, 0);
    }
    if n.timestamps {
        put(TCPOPT_TIMESTAMP, 0);
    }
    sock::set(fd, TCP, libc::TCP_REPAIR_OPTIONS, &b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repair_is_entered_and_left() {
        let fd = sock::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        assert_eq!(info(&fd).unwrap().state, state::CLOSE);
        assert_eq!(set_seq(&fd, 1), Err(Errno::EINVAL), "only in repair, only a chosen queue");
        on(&fd).unwrap();
        assert!(is_on(&fd).unwrap());
        choose(&fd, Queue::Recv).unwrap();
        set_seq(&fd, 4_000_000_000).unwrap();
        assert_eq!(seq(&fd), Ok(4_000_000_000));
        off_quietly(&fd).unwrap();
        assert!(!is_on(&fd).unwrap());
    }
}
