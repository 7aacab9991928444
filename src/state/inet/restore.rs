//! TCP and UDP sockets rebuilt in the caller's network namespace. Connections come out in repair, silent; what ends
//! that is [`activate`], the last act, when packets may flow.

mod tcp;
mod udp;

pub(crate) use tcp::tcp_all;
pub(crate) use udp::udp;

use super::{SockOpt, options};
use crate::kernel::{sock, tcp_repair};
use crate::state::fd::error::Error;
use crate::state::fd::shares::in_shares;
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// `SO_SNDBUF`, `SO_RCVBUF` are doubled by the kernel when set, and limited unless forced.
const SO_SNDBUFFORCE: i32 = 32;
const SO_RCVBUFFORCE: i32 = 33;

/// A connection left in repair, and what ends it.
#[derive(Debug)]
pub struct Repaired {
    /// The socket (a duplicate: it stays in repair when the pod's processes are killed).
    pub fd: OwnedFd,
    /// SO_REUSEADDR, which the end of repair clears.
    pub reuseaddr: bool,
    /// Holds data never sent.
    pub push: bool,
    /// Repair may end without a word to the peer.
    pub quiet: bool,
}

/// What to do when repair of a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Waking {
    /// SO_REUSEADDR, which the end of repair clears.
    pub reuseaddr: bool,
    /// Holds data never sent.
    pub push: bool,
    /// Repair may end without a word to the peer.
    pub quiet: bool,
}

impl Repaired {
    /// How its repair ends.
    pub fn waking(&self) -> Waking {
        Waking { reuseaddr: self.reuseaddr, push: self.push, quiet: self.quiet }
    }
}

/// Ends repair of one connection: a window probe goes out (unless the peer knows all there is to know), and what was never
/// sent follows. Any process may do it.
pub fn activate(fd: impl AsFd, Waking { reuseaddr, push, quiet }: Waking) -> Result<(), Error> {
    let fd = fd.as_fd();
    let call = |name: &'static str| Error::restore(name, || "a TCP connection".into());
    let off = if quiet { tcp_repair::off_quietly(fd) } else { tcp_repair::off(fd) };
    off.map_err(call("setsockopt(2) TCP_REPAIR"))?;
    if reuseaddr {
        sock::set_i32(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
            .map_err(call("setsockopt(2) SO_REUSEADDR"))?;
    }
    if push {
        // TCP_NODELAY pushes whatever waits, when it is set.
        let option = |name| sock::get_i32(fd, libc::IPPROTO_TCP, name);
        let (saved, cork) = (option(libc::TCP_NODELAY), option(libc::TCP_CORK));
        let saved = saved.map_err(call("getsockopt(2) TCP_NODELAY"))?;
        if cork == Ok(0) {
            let set = |v| sock::set_i32(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, v);
            set(1).and_then(|()| set(saved)).map_err(call("setsockopt(2) TCP_NODELAY"))?;
        }
    }
    Ok(())
}

/// [`activate`] for many, a share on each processor; what went wrong.
pub fn activate_all(sockets: &[(OwnedFd, Waking)]) -> Vec<Error> {
    let one = |(fd, waking): &(OwnedFd, Waking)| activate(fd, *waking).err();
    let all = in_shares(sockets, |share| Ok(share.iter().filter_map(one).collect::<Vec<_>>()));
    all.unwrap_or_else(|e: Error| vec![vec![e]]).into_iter().flatten().collect()
}

/// Options that matter to bind(2).
const EARLY: &[(i32, i32)] = &[
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
    (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
    (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (libc::IPPROTO_IP, 51),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
];

fn is(option: &SockOpt, level: i32, name: i32) -> bool {
    (option.level, option.name) == (level, name)
}

/// Sets what bind(2) needs; SO_REUSEADDR is on until [`settle`], so that order does not matter among our own.
pub(crate) fn early(fd: BorrowedFd, opts: &[SockOpt], v6: bool) -> Result<(), Errno> {
    if v6 {
        // Its default is a sysctl: say it either way.
        let only = options::int(opts, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY).unwrap_or(0);
        sock::set_i32(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, only)?;
    }
    for o in opts.iter().filter(|o| EARLY.contains(&(o.level, o.name))) {
        sock::set(fd, o.level, o.name, &o.value)?;
    }
    sock::set_i32(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
}

/// Sets the rest, in the order that works: sizes before their lock, filters last. An option this kernel refuses is
/// said, not fatal: `name` is the socket for people.
pub(crate) fn late(
    fd: BorrowedFd,
    opts: &[SockOpt],
    name: impl Fn() -> String,
    warnings: &mut Vec<String>,
) -> Result<(), Errno> {
    let last = |o: &&SockOpt| {
        is(o, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER) || is(o, libc::SOL_SOCKET, options::SO_LOCK_FILTER)
    };
    let rest = |o: &&SockOpt| !last(o) && !EARLY.contains(&(o.level, o.name));
    let mut sizes = false;
    for o in opts.iter().filter(rest) {
        let result = match (o.level, o.name) {
            (libc::SOL_SOCKET, libc::SO_SNDBUF) => {
                sizes = true;
                half(fd, SO_SNDBUFFORCE, o)
            }
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => {
                sizes = true;
                half(fd, SO_RCVBUFFORCE, o)
            }
            // Left for the end: setting a size sets the lock.
            (libc::SOL_SOCKET, options::SO_BUF_LOCK | libc::SO_REUSEADDR) => Ok(()),
            _ => sock::set(fd, o.level, o.name, &o.value),
        };
        if let Err(e) = result {
            warnings.push(format!("{}: option {}/{} not set again: {e}", name(), o.level, o.name));
        }
    }
    if sizes {
        let lock = options::int(opts, libc::SOL_SOCKET, options::SO_BUF_LOCK).unwrap_or(0);
        match sock::set_i32(fd, libc::SOL_SOCKET, options::SO_BUF_LOCK, lock) {
            // Before 5.14 sizes stay as set, which is what they were.
            Ok(()) | Err(Errno::ENOPROTOOPT) => {}
            Err(e) => return Err(e),
        }
    }
    for o in opts.iter().filter(last) {
        if o.name == libc::SO_ATTACH_FILTER {
            sock::attach_filter(fd, &o.value)?;
        }
    }
    for o in opts.iter().filter(|o| is(o, libc::SOL_SOCKET, options::SO_LOCK_FILTER)) {
        sock::set(fd, o.level, o.name, &o.value)?;
    }
    Ok(())
}

/// Whether the program set SO_REUSEADDR.
pub(crate) fn reuses(opts: &[SockOpt]) -> bool {
    options::int(opts, libc::SOL_SOCKET, libc::SO_REUSEADDR).unwrap_or(0) != 0
}

/// Gives SO_REUSEADDR its own value, once every socket of the pod is bound.
pub(crate) fn settle(fd: BorrowedFd, opts: &[SockOpt]) -> Result<(), Errno> {
    sock::set_i32(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, i32::from(reuses(opts)))
}

fn half(fd: BorrowedFd, force: i32, o: &SockOpt) -> Result<(), Errno> {
    let value = o.value.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    sock::set_i32(fd, libc::SOL_SOCKET, force, value / 2)
}

/// Room for whole queues; the true sizes are set by [`late`].
pub(crate) fn room(fd: BorrowedFd, send: usize, recv: usize) -> Result<(), Errno> {
    // The kernel counts its own overhead, several times the data for small pieces.
    let size = |n: usize| i32::try_from(n.saturating_mul(4).saturating_add(1 << 20)).unwrap_or(i32::MAX / 2);
    if send > 0 {
        sock::set_i32(fd, libc::SOL_SOCKET, SO_SNDBUFFORCE, size(send))?;
    }
    if recv > 0 {
        sock::set_i32(fd, libc::SOL_SOCKET, SO_RCVBUFFORCE, size(recv))?;
    }
    Ok(())
}

/// Gives a socket to the user who made it: SO_REUSEPORT lets only one user share.
pub(crate) fn own(fd: BorrowedFd, uid: u32) -> Result<(), Errno> {
    if uid == 0 {
        return Ok(());
    }
    nix::unistd::fchown(fd, Some(nix::unistd::Uid::from_raw(uid)), None)
}
