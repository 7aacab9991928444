//! TCP and UDP sockets read through borrowed descriptors: connections in repair, so that nothing moves while their
//! queues are peeked; datagrams peeked from an offset that is put back.

mod ahead;
mod tcp;
mod udp;

pub use ahead::Ahead;
pub(crate) use ahead::Known;
pub(crate) use tcp::{Read, tcp_all};
pub(crate) use udp::udp;

use crate::base::Blocker;
use crate::kernel::tcp_repair::{self, state};
use crate::kernel::{descr, pidfd, sock};
use crate::state::fd::collect::table::{Desc, Table};
use crate::state::fd::collect::{Class, class};
use crate::state::fd::error::Error;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// A TCP socket that is put in repair, and what has to be put back when repair ends: enough for another process to
/// undo it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RepairedSocket {
    /// Index of its description among those collected.
    pub file: u32,
    /// Host pid of a process that has it.
    pub host_pid: i32,
    /// Number there.
    pub fd: i32,
    /// SO_REUSEADDR before repair, which repair overwrites.
    pub reuseaddr: bool,
}

/// Why a socket cannot be carried: an eBPF filter, an upper-layer protocol (kTLS), an out-of-band byte.
pub(crate) fn check(desc: &Desc, fd: impl AsFd) -> Option<Blocker> {
    let fd = fd.as_fd();
    let block = |kind: &str, message: String, remedy: &str| {
        Some(Blocker {
            kind: kind.into(),
            pid: desc.pod_pid,
            fd: desc.pod_pid.map(|_| desc.at.1),
            path: None,
            message,
            remedy: remedy.into(),
        })
    };
    if sock::filter_len(fd) == Err(Errno::EACCES) {
        let text = "an eBPF filter on a socket cannot be carried".to_owned();
        return block("bpf", text, "detach the filter, or use a classic one");
    }
    if let Some(found) = urgent(desc, fd) {
        return Some(found);
    }
    if let Ok(ulp) = sock::get(fd, libc::IPPROTO_TCP, libc::TCP_ULP, 16)
        && let name = String::from_utf8_lossy(&ulp).trim_end_matches('\0').to_owned()
        && !name.is_empty()
    {
        return block("ktls", format!("the kernel runs {name} on this connection"), "turn kernel TLS off");
    }
    None
}

/// An out-of-band byte that waits.
pub(crate) fn urgent(desc: &Desc, fd: impl AsFd) -> Option<Blocker> {
    let waits = descr::poll_for(fd, libc::POLLPRI, 0).is_ok_and(|now| now & libc::POLLPRI != 0);
    waits.then(|| Blocker {
        kind: "urgent-data".into(),
        pid: desc.pod_pid,
        fd: desc.pod_pid.map(|_| desc.at.1),
        path: None,
        message: "an out-of-band byte (MSG_OOB) waits to be read, which cannot be carried".to_owned(),
        remedy: "try again in a moment".into(),
    })
}

/// Whether a connection in this state has queues and sequence numbers to carry.
fn is_linked(s: u8) -> bool {
    matches!(
        s,
        state::ESTABLISHED
            | state::FIN_WAIT1
            | state::FIN_WAIT2
            | state::CLOSE_WAIT
            | state::LAST_ACK
            | state::CLOSING
    )
}

/// The sockets of a table that have to be put in repair to be read.
pub(crate) fn to_repair(table: &Table) -> Result<Vec<RepairedSocket>, Error> {
    let mut found = Vec::new();
    for id in table.ids() {
        let desc = table.desc(id);
        if class(table, id)? != Class::Tcp {
            continue;
        }
        let fd = table.borrow(id)?;
        let info = tcp_repair::info(&fd).map_err(Error::fd("getsockopt(2) TCP_INFO", desc.at))?;
        if !is_linked(info.state) {
            continue;
        }
        let reuseaddr = match table.known(id) {
            Some(known) => known.reuseaddr,
            // A socket left in repair by an attempt that died reads 2, and its own value is lost: servers set it.
            None => {
                let reuse = sock::get_i32(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR);
                reuse.map_err(Error::fd("getsockopt(2) SO_REUSEADDR", desc.at))? != 0
            }
        };
        found.push(RepairedSocket { file: id.0, host_pid: desc.at.0, fd: desc.at.1, reuseaddr });
    }
    Ok(found)
}

/// Ends repair of a socket of a stopped or frozen process on its own host, from any process: nothing was changed, so
/// nothing is sent. Harmless for a socket that is not in repair. Errors: the process or the descriptor is gone.
pub fn unrepair(socket: &RepairedSocket) -> Result<(), Error> {
    let at = (socket.host_pid, socket.fd);
    let fd = pidfd::borrow(at.0, at.1).map_err(Error::fd("pidfd_getfd(2)", at))?;
    if !tcp_repair::is_on(&fd).map_err(Error::fd("getsockopt(2) TCP_REPAIR", at))? {
        return Ok(());
    }
    tcp_repair::off_quietly(&fd).map_err(Error::fd("setsockopt(2) TCP_REPAIR", at))?;
    sock::set_i32(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, i32::from(socket.reuseaddr))
        .map_err(Error::fd("setsockopt(2) SO_REUSEADDR", at))
}
