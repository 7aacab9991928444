//! Unix sockets of type SOCK_SEQPACKET that carry descriptors (unix(7), SCM_RIGHTS).

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, socket, socketpair,
    sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// Most descriptors one message may carry (the kernel's SCM_MAX_FD).
pub const MAX_FDS: usize = 253;

/// A connected pair, both ends close-on-exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A non-blocking listening socket bound to `path` (which must not exist; 107 bytes at most).
pub fn listener(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(64)?)?;
    Ok(fd)
}

/// One waiting connection, non-blocking and close-on-exec; `None` when nobody waits.
pub fn accept(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let fd = listener.as_fd().as_raw_fd();
    match accept4(fd, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
        // SAFETY: accept4 just made this descriptor; nobody else owns it.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Connects (blocking socket, close-on-exec) to the socket at `path`.
///
/// # Errors
/// ENOENT, ECONNREFUSED: nobody listens there.
pub fn dial(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Credentials of the process that made the other end (SO_PEERCRED).
pub fn peer(fd: impl AsFd) -> io::Result<UnixCredentials> {
    Ok(getsockopt(&fd, sockopt::PeerCredentials)?)
}

/// Sends one message whole, with descriptors; never raises SIGPIPE.
///
/// # Errors
/// EMSGSIZE (longer than the send buffer), EAGAIN (non-blocking and full), EPIPE (other end closed).
pub fn send(fd: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let slices = [IoSlice::new(bytes)];
    let fd = fd.as_fd().as_raw_fd();
    loop {
        match sendmsg::<()>(fd, &slices, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Receives one message into `buf`: its length (0 = the other end closed) and its descriptors, close-on-exec.
///
/// # Errors
/// EMSGSIZE when the message or its descriptors did not fit (nothing of it is kept), EAGAIN, ECONNRESET.
pub fn recv(fd: impl AsFd, buf: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = cmsg_space!([RawFd; MAX_FDS]);
    let fd = fd.as_fd().as_raw_fd();
    loop {
        let mut slices = [IoSliceMut::new(buf)];
        let got = match recvmsg::<()>(fd, &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let mut fds = Vec::new();
        for control in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel installed these descriptors for this message; each is taken once.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if got.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(Errno::EMSGSIZE);
        }
        return Ok((got.bytes, fds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn a_message_keeps_its_edges_and_its_descriptors() {
        let (a, b) = pair().unwrap();
        let file = File::open("/proc/self/comm").unwrap();
        send(&a, b"one", &[file.as_fd()]).unwrap();
        send(&a, b"two", &[]).unwrap();
        let mut buf = [0; 16];
        let (n, fds) = recv(&b, &mut buf).unwrap();
        assert_eq!((&buf[..n], fds.len()), (&b"one"[..], 1));
        let mut text = String::new();
        File::from(fds.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
        assert_eq!(recv(&b, &mut buf).unwrap().0, 3);
        drop(a);
        assert_eq!(recv(&b, &mut buf).unwrap().0, 0);
    }

    #[test]
    fn a_message_too_long_for_the_buffer_is_an_error() {
        let (a, b) = pair().unwrap();
        send(&a, b"too long", &[]).unwrap();
        assert_eq!(recv(&b, &mut [0; 4]).unwrap_err(), Errno::EMSGSIZE);
    }
}
