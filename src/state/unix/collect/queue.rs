//! Peeking through a unix socket's queue: SO_PEEK_OFF is moved along and put back; nothing is taken out.
//!
//! A datagram without bytes is seen once only (the kernel marks it): a second attempt to move may miss it.

use crate::kernel::sock::{self, Ucred};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One message as peeked.
#[derive(Debug)]
pub(super) struct Raw {
    pub data: Vec<u8>,
    pub fds: Vec<OwnedFd>,
    pub from: Option<Vec<u8>>,
    pub cred: Option<Ucred>,
}

/// First buffer: more than one piece of a stream ever holds (about 36 KiB).
const CHUNK: usize = 64 << 10;
/// Largest datagram read.
const MAX: usize = 64 << 20;

struct PeekOffset<'a> {
    fd: BorrowedFd<'a>,
    saved: i32,
}

impl PeekOffset<'_> {
    fn set(&self, at: usize) -> Result<(), Errno> {
        let at = i32::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        sock::set_i32(self.fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, at)
    }
}

impl Drop for PeekOffset<'_> {
    fn drop(&mut self) {
        let _ = sock::set_i32(self.fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, self.saved);
    }
}

/// All messages in the queue, in order.
pub(super) fn peek(fd: &OwnedFd, stream: bool) -> Result<Vec<Raw>, Errno> {
    let saved = sock::get_i32(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
    let off = PeekOffset { fd: fd.as_fd(), saved };
    if stream { peek_stream(&off) } else { peek_datagrams(&off) }
}

fn peek_datagrams(off: &PeekOffset) -> Result<Vec<Raw>, Errno> {
    let mut buf = vec![0u8; CHUNK];
    let (mut all, mut at) = (Vec::new(), 0);
    loop {
        off.set(at)?;
        let flags = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
        let got = match sock::recv(off.fd, &mut buf, flags) {
            Ok(got) => got,
            Err(Errno::EAGAIN) => return Ok(all),
            Err(e) => return Err(e),
        };
        if got.len > buf.len() {
            if got.len > MAX {
                return Err(Errno::EMSGSIZE);
            }
            buf.resize(got.len, 0);
            continue;
        }
        // The end of a SOCK_SEQPACKET connection reads as a message of nothing, for ever.
        if got.len == 0 && ended(off.fd) && at >= sock::inq(off.fd)? {
            return Ok(all);
        }
        at += got.len;
        let (from, data) = (sock::parse_unix(&got.from), buf[..got.len].to_vec());
        all.push(Raw { data, fds: got.fds, from, cred: got.cred });
    }
}

/// Whether the other side will send no more, so that a read of nothing is the end.
fn ended(fd: BorrowedFd) -> bool {
    crate::kernel::descr::poll_for(fd, libc::POLLRDHUP, 0).is_ok_and(|e| e & libc::POLLRDHUP != 0)
}

fn peek_stream(off: &PeekOffset) -> Result<Vec<Raw>, Errno> {
    let mut buf = vec![0u8; CHUNK];
    let (mut all, mut at) = (Vec::new(), 0);
    loop {
        off.set(at)?;
        let got = match sock::recv(off.fd, &mut buf, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
            Ok(got) if got.len == 0 => return Ok(all),
            Ok(got) => got,
            Err(Errno::EAGAIN) => return Ok(all),
            Err(e) => return Err(e),
        };
        // A read goes on through pieces without descriptors and stops after one with them: that one may begin in
        // the middle of what was read, and its descriptors belong to its own first byte.
        let plain = if got.fds.is_empty() {
            0
        } else {
            off.set(at)?;
            sock::peek_boundary(off.fd, got.len)?
        };
        if plain > 0 {
            all.push(Raw { data: buf[..plain].to_vec(), fds: vec![], from: None, cred: got.cred });
            at += plain;
            continue;
        }
        if !got.fds.is_empty() && got.len == buf.len() {
            // Cut off inside it: the rest would show the same descriptors again.
            if buf.len() >= MAX {
                return Err(Errno::EMSGSIZE);
            }
            let bigger = buf.len() * 4;
            buf.resize(bigger, 0);
            continue;
        }
        at += got.len;
        all.push(Raw { data: buf[..got.len].to_vec(), fds: got.fds, from: None, cred: got.cred });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_stream_is_cut_where_descriptors_begin() {
        let (a, b) = sock::pair(libc::SOCK_STREAM).unwrap();
        let f = std::fs::File::open("/dev/null").unwrap();
        let fds = [f.as_raw_fd()];
        sock::send(&a, b"plain", &[], None, None, 0).unwrap();
        sock::send(&a, b"more", &[], None, None, 0).unwrap();
        sock::send(&a, b"with", &fds, None, None, 0).unwrap();
        sock::send(&a, b"x", &fds, None, None, 0).unwrap();
        sock::send(&a, b"tail", &[], None, None, 0).unwrap();
        for _ in 0..2 {
            let all = peek(&b, true).unwrap();
            let seen: Vec<(&[u8], usize)> = all.iter().map(|m| (&m.data[..], m.fds.len())).collect();
            assert_eq!(seen, [(&b"plainmore"[..], 0), (b"with", 1), (b"x", 1), (b"tail", 0)]);
        }
        assert_eq!(sock::get_i32(&b, libc::SOL_SOCKET, libc::SO_PEEK_OFF), Ok(-1));
        let mut buf = [0; 64];
        assert_eq!(sock::recv(&b, &mut buf, 0).unwrap().len, 13, "nothing was taken out");
    }

    #[test]
    fn a_long_stream_keeps_its_descriptors_in_place() {
        let (a, b) = sock::pair(libc::SOCK_STREAM).unwrap();
        let f = std::fs::File::open("/dev/null").unwrap();
        let big: Vec<u8> = (0..70_000u32).map(|i| i as u8).collect();
        let n = sock::send(&a, &big, &[], None, None, 0).unwrap();
        let m = sock::send(&a, &big[..30_000], &[f.as_raw_fd()], None, None, 0).unwrap();
        let all = peek(&b, true).unwrap();
        let before: usize = all.iter().take_while(|m| m.fds.is_empty()).map(|m| m.data.len()).sum();
        assert_eq!(before, n);
        assert_eq!(all.iter().map(|m| m.fds.len()).sum::<usize>(), 1);
        let bytes: Vec<u8> = all.iter().flat_map(|m| m.data.clone()).collect();
        assert_eq!(bytes, [&big[..n], &big[..m]].concat());
    }

    #[test]
    fn datagrams_keep_their_bounds_and_senders() {
        let name = format!("\0podmig-q-{}", std::process::id()).into_bytes();
        let (a, b) = sock::pair(libc::SOCK_SEQPACKET).unwrap();
        for text in ["one", "", "three"] {
            sock::send(&a, text.as_bytes(), &[], None, None, 0).unwrap();
        }
        let big = vec![7u8; 100_000];
        sock::send(&a, &big, &[], None, None, 0).unwrap();
        drop(a);
        let sizes: Vec<usize> = peek(&b, false).unwrap().iter().map(|m| m.data.len()).collect();
        assert_eq!(sizes, [3, 0, 5, 100_000]);
        let receiver = sock::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
        sock::bind(&receiver, &sock::unix_addr(b"").unwrap()).unwrap();
        let to = sock::name(&receiver, false).unwrap();
        let sender = sock::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
        sock::bind(&sender, &sock::unix_addr(&name).unwrap()).unwrap();
        sock::send(&sender, b"hi", &[], None, Some(&to), 0).unwrap();
        let all = peek(&receiver, false).unwrap();
        assert_eq!((all.len(), all[0].from.as_ref()), (1, Some(&name)));
    }
}
