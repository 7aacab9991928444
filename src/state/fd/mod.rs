//! Descriptor tables and open file descriptions.

pub mod collect;
pub mod error;
pub mod restore;
pub(crate) mod shares;

pub use error::Error;

use super::{event, file, inet, object::ObjectId, pipe, unix};
use serde::{Deserialize, Serialize};

/// Index into `PodState::files`: one open file description, however many descriptors share it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct FileId(pub u32);

/// One descriptor of one process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FdEntry {
    /// Number.
    pub fd: i32,
    /// What it refers to.
    pub file: FileId,
    /// FD_CLOEXEC.
    pub cloexec: bool,
}

/// An open file description.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OpenFile {
    /// `F_GETFL` status flags (access mode, O_APPEND, O_NONBLOCK, …).
    pub flags: i32,
    /// `F_GETOWN_EX` type and pid (0, 0 if none), `F_GETSIG`.
    pub owner: (i32, i32, i32),
    /// What it is.
    pub kind: FileKind,
}

/// A channel between the pod and its monitor, re-joined at the target by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Port {
    /// CMD's standard output (write end of a pipe read by the monitor).
    Stdout,
    /// CMD's standard error.
    Stderr,
    /// Standard input, where it is a pipe from the monitor (`--fg`).
    Stdin,
    /// A descriptor of an exec session: hung up at the target.
    Session(u32),
}

/// What an open file description is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file, directory, device or O_PATH handle with a name.
    Path(file::PathFile),
    /// Descriptor of an object (memfd, deleted file, private file).
    Object {
        /// Which.
        object: ObjectId,
        /// Position.
        pos: u64,
        /// Locks held through it.
        locks: Vec<file::FileLock>,
    },
    /// One end of a pipe or an open FIFO.
    Pipe(pipe::PipeEnd),
    /// eventfd.
    Event(event::EventFd),
    /// epoll instance.
    Epoll(event::Epoll),
    /// signalfd.
    Signal(event::SignalFd),
    /// timerfd.
    Timer(event::TimerFd),
    /// Unix-domain socket.
    Unix(unix::UnixSocket),
    /// TCP socket.
    Tcp(inet::TcpSocket),
    /// UDP socket.
    Udp(inet::UdpSocket),
    /// A channel to the monitor.
    Port(Port),
}

/// Ends every TCP connection that leaves the pod, as a reset by the peer: for a clone, whose peers talk to the
/// original. Connections between two sockets of the list stay.
pub fn close_outside_connections(files: &mut [OpenFile]) {
    use inet::{Ended, TcpState};
    let ends: std::collections::HashSet<_> = files
        .iter()
        .filter_map(|f| match &f.kind {
            FileKind::Tcp(t) if matches!(t.state, TcpState::Linked { .. }) => t.local.zip(t.peer),
            _ => None,
        })
        .collect();
    for f in files {
        let FileKind::Tcp(t) = &mut f.kind else { continue };
        let unread = match &mut t.state {
            TcpState::Linked { link, .. } => {
                if t.local.zip(t.peer).is_some_and(|(local, peer)| ends.contains(&(peer, local))) {
                    continue;
                }
                std::mem::take(&mut link.recv.data)
            }
            TcpState::SynSent => vec![],
            TcpState::Closed | TcpState::Listen(_) | TcpState::Over { .. } => continue,
        };
        t.state = TcpState::Over { how: Ended::Reset, unread };
        (t.local, t.peer) = (None, None);
    }
}

#[cfg(test)]
mod tests;
