//! Socket calls (socket(7), unix(7), ip(7)) in raw form: options as bytes, names as bytes, messages with
//! descriptors and credentials, and peeking that disturbs nothing.

use nix::errno::Errno;
use std::ffi::c_void;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Most descriptors one message carries (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;
/// Most bytes of a unix socket's name (`sun_path`).
pub const MAX_UNIX_NAME: usize = 108;
const SIOCUNIXFILE: libc::Ioctl = 0x89e0;
const SIOCGSKNS: libc::Ioctl = 0x894c;
const SIOCOUTQNSD: libc::Ioctl = 0x894b;
const SCM_PIDFD: i32 = 4;
const ADDR_MAX: usize = 128;

fn own(fd: i32) -> OwnedFd {
    // SAFETY: the caller passes a descriptor the kernel just made for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The value of an option, at most `max` bytes. Errors: ENOPROTOOPT, EOPNOTSUPP, EINVAL, EPERM.
pub fn get(fd: impl AsFd, level: i32, name: i32, max: usize) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0u8; max];
    let len = get_into(fd, level, name, &mut value)?;
    value.truncate(len);
    Ok(value)
}

/// The same into a buffer whose bytes the kernel may also read; how many bytes it wrote. Errors: as [`get`].
pub fn get_into(fd: impl AsFd, level: i32, name: i32, value: &mut [u8]) -> Result<usize, Errno> {
    let mut len = value.len() as libc::socklen_t;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: `value` is `len` writable bytes, `len` is writable.
    let rc = unsafe { libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut len) };
    Errno::result(rc)?;
    Ok((len as usize).min(value.len()))
}

/// An `int` option. Errors: as [`get`].
pub fn get_i32(fd: impl AsFd, level: i32, name: i32) -> Result<i32, Errno> {
    let mut value = [0u8; 4];
    let fd = fd.as_fd().as_raw_fd();
    let mut len: libc::socklen_t = 4;
    // SAFETY: four writable bytes, `len` says so.
    Errno::result(unsafe { libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut len) })?;
    Ok(i32::from_ne_bytes(value))
}

/// Sets an option. Errors: ENOPROTOOPT, EINVAL, EPERM, ….
pub fn set(fd: impl AsFd, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let (fd, len) = (fd.as_fd().as_raw_fd(), value.len() as libc::socklen_t);
    // SAFETY: `value` is `len` readable bytes.
    Errno::result(unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) }).map(drop)
}

/// Sets an `int` option. Errors: as [`set`].
pub fn set_i32(fd: impl AsFd, level: i32, name: i32, value: i32) -> Result<(), Errno> {
    set(fd, level, name, &value.to_ne_bytes())
}

/// Length in instructions of the classic filter on a socket, 0 = none. Errors: EACCES (an eBPF program).
pub fn filter_len(fd: impl AsFd) -> Result<usize, Errno> {
    let mut len: libc::socklen_t = 0;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: with a length of 0 the kernel only writes the number of instructions to `len` (socket(7)).
    Errno::result(unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_GET_FILTER, std::ptr::null_mut(), &raw mut len)
    })?;
    Ok(len as usize)
}

/// The classic filter on a socket: `len` instructions of 8 bytes (`struct sock_filter`). Errors: EACCES, EINVAL.
pub fn filter(fd: impl AsFd, len: usize) -> Result<Vec<u8>, Errno> {
    let mut code = vec![0u8; len * 8];
    let mut n = len as libc::socklen_t;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: here `n` counts instructions of 8 bytes, and `code` holds that many.
    Errno::result(unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_GET_FILTER, code.as_mut_ptr().cast(), &raw mut n)
    })?;
    Ok(code)
}

/// Puts a classic filter on a socket. Errors: EINVAL (not a valid program), EPERM (locked).
pub fn attach_filter(fd: impl AsFd, code: &[u8]) -> Result<(), Errno> {
    let n = u16::try_from(code.len() / 8).map_err(|_| Errno::EINVAL)?;
    let mut aligned: Vec<libc::sock_filter> = code
        .chunks_exact(8)
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let program = libc::sock_fprog { len: n, filter: aligned.as_mut_ptr() };
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: `program` points to `n` instructions, both live over the call.
    Errno::result(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
    .map(drop)
}

fn ioctl_i32(fd: BorrowedFd, request: libc::Ioctl) -> Result<i32, Errno> {
    let mut value = 0i32;
    // SAFETY: these requests write one int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) })?;
    Ok(value)
}

/// Bytes (datagrams: size of the first) in the receive queue. Errors: EINVAL (listening).
pub fn inq(fd: impl AsFd) -> Result<usize, Errno> {
    ioctl_i32(fd.as_fd(), libc::FIONREAD).map(|n| n.max(0).unsigned_abs() as usize)
}

/// Bytes not yet acknowledged (TCP; counts a queued FIN) or not yet read by the peer (unix; memory, not payload).
pub fn outq(fd: impl AsFd) -> Result<usize, Errno> {
    ioctl_i32(fd.as_fd(), libc::TIOCOUTQ).map(|n| n.max(0).unsigned_abs() as usize)
}

/// Bytes never sent (TCP; counts a queued FIN).
pub fn outq_unsent(fd: impl AsFd) -> Result<usize, Errno> {
    ioctl_i32(fd.as_fd(), SIOCOUTQNSD).map(|n| n.max(0).unsigned_abs() as usize)
}

/// An O_PATH descriptor of the file a unix socket is bound to. Errors: ENOENT (not bound to a path), EPERM.
pub fn unix_file(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no argument; the result is a new descriptor.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), SIOCUNIXFILE, 0) }).map(own)
}

/// The network namespace of a socket. Errors: EPERM.
pub fn netns(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no argument; the result is a new descriptor.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), SIOCGSKNS, 0) }).map(own)
}

/// A fresh socket, close-on-exec and non-blocking. Errors: EAFNOSUPPORT, EPERM, EMFILE.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers; the result is a new descriptor.
    Errno::result(unsafe { libc::socket(domain, kind, protocol) }).map(own)
}

/// A connected pair of unix sockets, close-on-exec and non-blocking. Errors: EMFILE.
pub fn pair(kind: i32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut fds = [0i32; 2];
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: `fds` has room for the two descriptors.
    Errno::result(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    Ok((own(fds[0]), own(fds[1])))
}

/// `bind(2)` to a raw address (see [`inet_addr`], [`unix_addr`]). Errors: EADDRINUSE, EADDRNOTAVAIL, ….
pub fn bind(fd: impl AsFd, addr: &[u8]) -> Result<(), Errno> {
    let len = addr.len() as libc::socklen_t;
    // SAFETY: `addr` is `len` readable bytes; the kernel copies them, alignment does not matter to it.
    Errno::result(unsafe { libc::bind(fd.as_fd().as_raw_fd(), addr.as_ptr().cast(), len) }).map(drop)
}

/// `connect(2)` to a raw address. Errors: EINPROGRESS, ECONNREFUSED, ….
pub fn connect(fd: impl AsFd, addr: &[u8]) -> Result<(), Errno> {
    let len = addr.len() as libc::socklen_t;
    // SAFETY: as in `bind`.
    Errno::result(unsafe { libc::connect(fd.as_fd().as_raw_fd(), addr.as_ptr().cast(), len) }).map(drop)
}

/// `listen(2)`.
pub fn listen(fd: impl AsFd, backlog: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::listen(fd.as_fd().as_raw_fd(), backlog) }).map(drop)
}

/// `accept4(2)`, close-on-exec and non-blocking. Errors: EAGAIN (nobody waits).
pub fn accept(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let null = std::ptr::null_mut();
    // SAFETY: no address is asked for; the result is a new descriptor.
    Errno::result(unsafe { libc::accept4(fd.as_fd().as_raw_fd(), null, std::ptr::null_mut(), flags) })
        .map(own)
}

/// `shutdown(2)` with SHUT_RD, SHUT_WR or SHUT_RDWR. Errors: ENOTCONN.
pub fn shutdown(fd: impl AsFd, how: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::shutdown(fd.as_fd().as_raw_fd(), how) }).map(drop)
}

/// The raw address of a socket's own end (`peer` false) or the other. Errors: ENOTCONN.
pub fn name(fd: impl AsFd, peer: bool) -> Result<Vec<u8>, Errno> {
    let mut buf = vec![0u8; ADDR_MAX];
    let mut len = ADDR_MAX as libc::socklen_t;
    let (fd, at) = (fd.as_fd().as_raw_fd(), buf.as_mut_ptr().cast());
    // SAFETY: `buf` has `len` writable bytes.
    Errno::result(unsafe {
        if peer { libc::getpeername(fd, at, &raw mut len) } else { libc::getsockname(fd, at, &raw mut len) }
    })?;
    buf.truncate((len as usize).min(ADDR_MAX));
    Ok(buf)
}

/// `struct sockaddr_in` or `sockaddr_in6` as bytes.
pub fn inet_addr(addr: SocketAddr) -> Vec<u8> {
    let mut b = Vec::with_capacity(28);
    match addr {
        SocketAddr::V4(a) => {
            b.extend_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            b.extend_from_slice(&a.port().to_be_bytes());
            b.extend_from_slice(&a.ip().octets());
            b.extend_from_slice(&[0; 8]);
        }
        SocketAddr::V6(a) => {
            b.extend_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            b.extend_from_slice(&a.port().to_be_bytes());
            b.extend_from_slice(&a.flowinfo().to_ne_bytes());
            b.extend_from_slice(&a.ip().octets());
            b.extend_from_slice(&a.scope_id().to_ne_bytes());
        }
    }
    b
}

/// The reverse of [`inet_addr`]; `None` for other families or a short address.
pub fn parse_inet(b: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([*b.get(2)?, *b.get(3)?]);
    let word = |at: usize| Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?));
    match i32::from(u16::from_ne_bytes([b[0], b[1]])) {
        libc::AF_INET => {
            let ip: [u8; 4] = b.get(4..8)?.try_into().ok()?;
            Some(SocketAddrV4::new(Ipv4Addr::from(ip), port).into())
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = b.get(8..24)?.try_into().ok()?;
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, word(4)?, word(24)?).into())
        }
        _ => None,
    }
}

/// `struct sockaddr_un` for a name as [`parse_unix`] gives it. The kernel stops a path at its end.
/// Errors: ENAMETOOLONG (over 108 octets).
pub fn unix_addr(name: &[u8]) -> Result<Vec<u8>, Errno> {
    if name.len() > MAX_UNIX_NAME {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut b = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    b.extend_from_slice(name);
    // A path shorter than the field ends in a zero; an abstract name is counted, and a zero would be part of it.
    if name.first() != Some(&0) && name.len() < MAX_UNIX_NAME {
        b.push(0);
    }
    Ok(b)
}

/// The name in a `struct sockaddr_un`: a path, or an abstract name with its leading zero; `None` if unnamed.
pub fn parse_unix(b: &[u8]) -> Option<Vec<u8>> {
    let name = b.get(2..).filter(|n| !n.is_empty())?;
    if name[0] == 0 {
        return Some(name.to_vec());
    }
    let end = name.iter().position(|c| *c == 0).unwrap_or(name.len());
    Some(name[..end].to_vec())
}

/// Credentials of a sender (`struct ucred`), pid as our pid namespace numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ucred {
    /// Pid.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What [`recv`] got.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes now in the buffer; with MSG_TRUNC in the call's flags the true length of a datagram.
    pub len: usize,
    /// `msg_flags` (MSG_TRUNC, MSG_CTRUNC, …).
    pub flags: i32,
    /// Raw address of the sender, empty if none.
    pub from: Vec<u8>,
    /// Descriptors, ours to close.
    pub fds: Vec<OwnedFd>,
    /// SCM_CREDENTIALS.
    pub cred: Option<Ucred>,
    /// Other control messages: (level, type, bytes).
    pub other: Vec<(i32, i32, Vec<u8>)>,
}

/// Aligned space for control messages: 253 descriptors, credentials, a few others.
#[repr(C, align(8))]
struct Control([u8; 2048]);

/// `recvmsg(2)`. Errors: EAGAIN (nothing there), ….
pub fn recv(fd: impl AsFd, buf: &mut [u8], flags: i32) -> Result<Received, Errno> {
    let mut control = Control([0; 2048]);
    let mut addr = [0u8; ADDR_MAX];
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: a msghdr of zeroes is valid; the fields are filled in below.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_name = addr.as_mut_ptr().cast::<c_void>();
    msg.msg_namelen = ADDR_MAX as u32;
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.0.as_mut_ptr().cast();
    msg.msg_controllen = control.0.len();
    // SAFETY: every pointer in `msg` is to live, writable memory of the length given.
    let len = Errno::result(unsafe {
        libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut msg, flags | libc::MSG_CMSG_CLOEXEC)
    })?;
    let mut got = Received { len: len as usize, flags: msg.msg_flags, ..Received::default() };
    got.from = addr[..(msg.msg_namelen as usize).min(ADDR_MAX)].to_vec();
    // SAFETY: `msg` was filled by the kernel and its control buffer is live.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const msg) };
    while !at.is_null() {
        // SAFETY: CMSG_FIRSTHDR/NXTHDR give headers that lie whole inside the buffer.
        let (level, kind, data, n) = unsafe {
            let head = &*at;
            let data = libc::CMSG_DATA(at);
            let n = head.cmsg_len - (data as usize - at as usize);
            (head.cmsg_level, head.cmsg_type, data, n)
        };
        // SAFETY: `data` is `n` bytes inside the control buffer.
        let bytes = unsafe { std::slice::from_raw_parts(data, n) };
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => got
                .fds
                .extend(bytes.chunks_exact(4).map(|c| own(RawFd::from_ne_bytes([c[0], c[1], c[2], c[3]])))),
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if n >= 12 => {
                let word = |i: usize| [bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]];
                got.cred = Some(Ucred {
                    pid: i32::from_ne_bytes(word(0)),
                    uid: u32::from_ne_bytes(word(4)),
                    gid: u32::from_ne_bytes(word(8)),
                });
            }
            // A pidfd of the sender (SO_PASSPIDFD): nobody asked for it here.
            (libc::SOL_SOCKET, SCM_PIDFD) if n >= 4 => {
                drop(own(RawFd::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])));
            }
            _ => got.other.push((level, kind, bytes.to_vec())),
        }
        // SAFETY: as above.
        at = unsafe { libc::CMSG_NXTHDR(&raw const msg, at) };
    }
    Ok(got)
}

/// Peeks at `len` bytes of a stream with room for one byte less: the kernel copies whole pieces, so the answer is
/// where the piece ends that is the last to fit, 0 if none does. (MSG_PEEK itself walks on to the next piece with
/// descriptors whatever the length asked for, so a shorter read would not tell.)
pub fn peek_boundary(fd: impl AsFd, len: usize) -> Result<usize, Errno> {
    const PAGE: usize = 4096;
    let Some(room) = len.checked_sub(1).filter(|r| *r > 0) else { return Ok(0) };
    let whole = room.next_multiple_of(PAGE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh mapping wherever the kernel likes, nobody else's.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), whole + PAGE, libc::PROT_NONE, flags, -1, 0) };
    if map == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: the first `whole` bytes of our own mapping; the page after them stays out of reach.
    let opened = unsafe { libc::mprotect(map, whole, libc::PROT_READ | libc::PROT_WRITE) };
    let result = Errno::result(opened).and_then(|_| {
        // SAFETY: `whole - room` is inside the mapping.
        let start = unsafe { map.cast::<u8>().add(whole - room) };
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the kernel writes `room` bytes of our mapping and meets the closed page after them, which it
        // reports and does not pass. No control buffer: descriptors are not installed.
        Errno::result(unsafe { libc::recv(fd.as_fd().as_raw_fd(), start.cast(), len, flags) })
    });
    // SAFETY: our own mapping, not used any more.
    unsafe { libc::munmap(map, whole + PAGE) };
    match result {
        Ok(n) => Ok(n.unsigned_abs()),
        Err(Errno::EFAULT) => Ok(0),
        Err(e) => Err(e),
    }
}

/// `sendmsg(2)` with MSG_NOSIGNAL: bytes, at most [`MAX_FDS`] descriptors, credentials, and where to (raw address).
/// How many bytes went. Errors: EAGAIN (no room), EPERM (not our credentials), EINVAL (too many descriptors), ….
pub fn send(
    fd: impl AsFd,
    data: &[u8],
    fds: &[RawFd],
    cred: Option<Ucred>,
    to: Option<&[u8]>,
    flags: i32,
) -> Result<usize, Errno> {
    if fds.len() > MAX_FDS {
        return Err(Errno::EINVAL);
    }
    let mut control = Control([0; 2048]);
    let mut used = 0;
    let mut put = |kind: i32, payload: &[u8]| {
        // Layout of cmsg(3) on 64 bits: length, level, type, data, padded to 8.
        let head = &mut control.0[used..];
        head[..8].copy_from_slice(&(16 + payload.len()).to_ne_bytes());
        head[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
        head[12..16].copy_from_slice(&kind.to_ne_bytes());
        head[16..16 + payload.len()].copy_from_slice(payload);
        used += 16 + payload.len().next_multiple_of(8);
    };
    if !fds.is_empty() {
        let bytes: Vec<u8> = fds.iter().flat_map(|f| f.to_ne_bytes()).collect();
        put(libc::SCM_RIGHTS, &bytes);
    }
    if let Some(c) = cred {
        let mut bytes = [0u8; 12];
        bytes[..4].copy_from_slice(&c.pid.to_ne_bytes());
        bytes[4..8].copy_from_slice(&c.uid.to_ne_bytes());
        bytes[8..].copy_from_slice(&c.gid.to_ne_bytes());
        put(libc::SCM_CREDENTIALS, &bytes);
    }
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: a msghdr of zeroes is valid; the fields are filled in below.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    if let Some(to) = to {
        msg.msg_name = to.as_ptr().cast_mut().cast();
        msg.msg_namelen = to.len() as u32;
    }
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    if used > 0 {
        msg.msg_control = control.0.as_mut_ptr().cast();
        msg.msg_controllen = used;
    }
    // SAFETY: the kernel only reads through these pointers, all of which are live and of the length given.
    let n = Errno::result(unsafe {
        libc::sendmsg(fd.as_fd().as_raw_fd(), &raw const msg, flags | libc::MSG_NOSIGNAL)
    })?;
    Ok(n as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for text in ["1.2.3.4:5", "[fe80::1%3]:7", "[::]:0"] {
            let a: SocketAddr = text.parse().unwrap();
            assert_eq!(parse_inet(&inet_addr(a)), Some(a));
        }
        assert_eq!(parse_inet(&[2, 0, 0]), None);
        for name in [&b"/a/b"[..], b"\0abs", b"\0a\0b\0", &[b'x'; 108]] {
            assert_eq!(parse_unix(&unix_addr(name).unwrap()).as_deref(), Some(name));
        }
        assert_eq!(unix_addr(&[b'x'; 109]), Err(Errno::ENAMETOOLONG));
        assert_eq!(parse_unix(&[1, 0]), None);
    }

    #[test]
    fn descriptors_and_credentials_travel() {
        let (a, b) = pair(libc::SOCK_SEQPACKET).unwrap();
        set_i32(&b, libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let me = Ucred { pid: std::process::id() as i32, uid: 77, gid: 88 };
        let fds = vec![file.as_raw_fd(); MAX_FDS];
        send(&a, b"hello", &fds, Some(me), None, 0).unwrap();
        let mut buf = [0; 16];
        let got = recv(&b, &mut buf, libc::MSG_PEEK).unwrap();
        assert_eq!((got.len, got.fds.len(), got.cred), (5, MAX_FDS, Some(me)));
        let got = recv(&b, &mut buf, 0).unwrap();
        assert_eq!(&buf[..got.len], b"hello");
        assert_eq!(recv(&b, &mut buf, 0).unwrap_err(), Errno::EAGAIN);
        assert_eq!(send(&a, b"", &[0; MAX_FDS + 1], None, None, 0), Err(Errno::EINVAL));
    }

    #[test]
    fn a_classic_filter_is_read_and_put_back() {
        let (a, b) = pair(libc::SOCK_DGRAM).unwrap();
        assert_eq!(filter_len(&a), Ok(0));
        let code = [6u8, 0, 0, 0, 3, 0, 0, 0]; // ret #3: keep three bytes
        attach_filter(&a, &code).unwrap();
        assert_eq!(filter_len(&a), Ok(1));
        assert_eq!(filter(&a, 1).unwrap(), code);
        send(&b, b"abcdef", &[], None, None, 0).unwrap();
        let mut buf = [0; 16];
        assert_eq!(recv(&a, &mut buf, 0).unwrap().len, 3);
    }
}
