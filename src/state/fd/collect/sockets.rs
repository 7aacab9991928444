//! The pod's network namespace as socket diagnosis shows it, and the root of its mount namespace.

use super::table::Table;
use super::{FdContext, netns};
use crate::kernel::sockdiag::{SockDiag, UnixDiag};
use crate::kernel::tcp_repair::state;
use crate::kernel::{sock, sockdiag::InetDiag};
use crate::state::fd::error::Error;
use crate::state::fd::{FileKind, OpenFile};
use crate::state::inet::TcpState;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const SO_NETNS_COOKIE: i32 = 71;

/// What can be seen of the pod's sockets without touching them.
pub(crate) struct Sockets {
    diag: SockDiag,
    unix: HashMap<u32, UnixDiag>,
    /// Listening socket by name and file.
    listeners: HashMap<(Vec<u8>, BoundTo), u32>,
    /// Listening socket by the socket whose connection waits in it.
    waiting: HashMap<u32, u32>,
    cookie: u64,
    root: OwnedFd,
    init: i32,
    settled: bool,
}

/// Inode and device of a bound file.
type BoundTo = Option<(u32, u64)>;

impl Sockets {
    /// Looks once. Unix sockets are listed only if the table has any.
    pub fn look(ctx: &FdContext, table: &Table) -> Result<Self, Error> {
        let netns = netns(ctx)?;
        let diag = SockDiag::open_in(&netns).map_err(Error::host("socket(2) NETLINK_SOCK_DIAG"))?;
        let mut unix = HashMap::new();
        if table.descs.iter().any(|d| d.file_type() == libc::S_IFSOCK && !d.is_path()) {
            let all = diag.unix().map_err(Error::host("listing unix sockets (CONFIG_UNIX_DIAG)"))?;
            unix = all.into_iter().map(|d| (d.ino, d)).collect();
        }
        let cookie = diag.cookie().map_err(Error::host("getsockopt(2) SO_NETNS_COOKIE"))?;
        let path = format!("/proc/{}/root", ctx.init);
        let root = open(path.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(Error::process("open(2) of /proc/PID/root", ctx.init))?;
        let mut sockets = Self {
            diag,
            unix,
            listeners: HashMap::new(),
            waiting: HashMap::new(),
            cookie,
            root,
            init: ctx.init,
            settled: false,
        };
        for d in sockets.unix.values().filter(|d| d.state == state::LISTEN) {
            if let Some(name) = &d.name {
                sockets.listeners.insert((name.clone(), d.file), d.ino);
            }
            sockets.waiting.extend(d.waiting.iter().map(|client| (*client, d.ino)));
        }
        // Without a queue holding anything, no descriptor is on its way.
        let ours = table.descs.iter().filter_map(|d| sockets.unix(d.st.st_ino));
        let mut full = ours.filter(|d| d.state != state::LISTEN && d.queued > 0);
        sockets.settled = full.next().is_none();
        Ok(sockets)
    }

    /// Whether a descriptor of the pod may be on its way through a socket, so that the table lacks it.
    pub fn maybe_in_flight(&self) -> bool {
        !self.settled
    }

    /// Says that every queue was read, and the table has all there is.
    pub fn settle(&mut self) {
        self.settled = true;
    }

    /// The listening socket in which the connection of this one waits.
    pub fn listening_for(&self, client: u32) -> Option<u32> {
        self.waiting.get(&client).copied()
    }

    /// The listening socket of this name and file.
    pub fn listener_named(&self, name: &[u8], file: BoundTo) -> Option<u32> {
        self.listeners.get(&(name.to_vec(), file)).copied()
    }

    /// The unix socket with this inode number.
    pub fn unix(&self, ino: u64) -> Option<&UnixDiag> {
        self.unix.get(&u32::try_from(ino).ok()?)
    }

    /// The pod's root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Whether the pod's network namespace is ours, so that its sockets are not alone in it.
    pub fn are_the_hosts(&self) -> bool {
        SockDiag::open().and_then(|d| d.cookie()) == Ok(self.cookie)
    }

    /// The cookie of the pod's network namespace.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Connections with data under way that no descriptor refers to (not accepted yet, or closed and still sending).
    /// In a namespace shared with others it cannot be known whose they are: none are counted.
    pub fn lost(&self, files: &[OpenFile]) -> Result<usize, Error> {
        if self.are_the_hosts() {
            return Ok(0);
        }
        // Going through all connections of the host takes a millisecond: only if the numbers differ.
        let counted = files.iter().filter(|f| match &f.kind {
            FileKind::Tcp(t) => !matches!(t.state, TcpState::Closed | TcpState::Over { .. }),
            _ => false,
        });
        if in_use(self.init) == Some(counted.count()) {
            return Ok(0);
        }
        let states =
            [state::ESTABLISHED, state::FIN_WAIT1, state::CLOSE_WAIT, state::LAST_ACK, state::CLOSING];
        let mask = states.iter().fold(0, |m, s| m | 1u32 << s);
        let all: Vec<InetDiag> = self
            .diag
            .inet(libc::IPPROTO_TCP, mask)
            .map_err(Error::host("listing TCP sockets (CONFIG_INET_TCP_DIAG)"))?;
        Ok(all.iter().filter(|d| d.ino == 0).count())
    }
}

/// TCP sockets of a process's namespace that are listening or connected (`/proc/P/net/sockstat`, proc(5)).
fn in_use(pid: i32) -> Option<usize> {
    let count = |file: &str, line: &str| -> Option<usize> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{file}")).ok()?;
        let rest = text.lines().find_map(|l| l.strip_prefix(line))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let v6 = if std::path::Path::new(&format!("/proc/{pid}/net/sockstat6")).exists() {
        count("sockstat6", "TCP6: inuse")?
    } else {
        0
    };
    Some(count("sockstat", "TCP: inuse")? + v6)
}

/// Whether a socket was made in the namespace with this cookie.
pub(crate) fn same_netns_cookie(fd: impl AsFd, cookie: u64) -> bool {
    sock::get(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, 8).is_ok_and(|c| c == cookie.to_ne_bytes())
}

impl SockDiag {
    fn cookie(&self) -> nix::Result<u64> {
        let bytes = sock::get(self.as_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, 8)?;
        bytes.try_into().map(u64::from_ne_bytes).map_err(|_| nix::errno::Errno::EBADMSG)
    }
}
