//! Descriptor tables read at the source, nothing disturbed: which description each descriptor refers to, and what
//! each description is. The kinds read themselves (`file`, `pipe`, `event`, `unix`, `inet`); here they are told apart.

mod check;
mod sockets;
pub(crate) mod table;

pub use crate::state::inet::collect::{Ahead, RepairedSocket, unrepair};
pub(crate) use check::{Class, class, not_in_way};
pub(crate) use sockets::{Sockets, same_netns_cookie};

use super::error::Error;
use super::{FdEntry, FileId, FileKind, OpenFile, Port};
use crate::base::Blocker;
use crate::kernel::descr;
use crate::state::object::collect::ObjectTable;
use crate::state::{event, file, inet, pipe, unix};
use nix::errno::Errno;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use table::Table;

/// One process of the pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcView {
    /// Pid as our pid namespace numbers it.
    pub host_pid: i32,
    /// Pid as the pod sees it.
    pub pod_pid: i32,
}

/// What the reader of descriptors knows of the pod.
#[derive(Clone, Debug)]
pub struct FdContext {
    /// Host pid of a process in the pod's mount and network namespaces (its pid 1).
    pub init: i32,
    /// Channels to the monitor: which pipe, by `(st_dev, st_ino)`.
    pub ports: Vec<(Port, (u64, u64))>,
    /// `st_dev` of file systems that only the pod sees (as given to the object table).
    pub private: HashSet<u64>,
}

impl FdContext {
    /// The port a pipe is, if it is one.
    pub(crate) fn port(&self, inode: (u64, u64)) -> Option<Port> {
        self.ports.iter().find(|p| p.1 == inode).map(|p| p.0)
    }
}

/// What [`collect`] found.
#[derive(Debug, Default)]
pub struct Collected {
    /// Descriptor table of each process, in the order given.
    pub tables: Vec<Vec<FdEntry>>,
    /// Open file descriptions, by [`FileId`].
    pub files: Vec<OpenFile>,
    /// Bytes written to a port and not yet read by the pod (standard input).
    pub unread: Vec<(Port, Vec<u8>)>,
    /// Connections (TCP, not listening) that go along.
    pub kept: usize,
    /// TCP connections no descriptor refers to (not accepted yet, or closed and still sending): they are lost.
    pub lost: usize,
    /// What will be different afterwards, in words.
    pub warnings: Vec<String>,
}

/// Everything about the pod's descriptors that cannot be carried. Reads `/proc` and socket diagnosis only; the pod runs.
pub fn preflight(procs: &[ProcView], ctx: &FdContext) -> Result<Vec<Blocker>, Error> {
    let table = Table::read(procs, true)?;
    let sockets = Sockets::look(ctx, &table)?;
    check::all(&table, ctx, &sockets)
}

/// The descriptor tables of stopped processes, in two steps: first it is known which sockets will be put in
/// repair, then they are.
pub struct Scan<'a> {
    ctx: &'a FdContext,
    table: Table,
    sockets: Sockets,
    queues: unix::collect::Queues,
    repaired: Vec<RepairedSocket>,
}

impl<'a> Scan<'a> {
    /// Reads the tables. `Error::Blocked` lists what cannot be carried.
    pub fn new(procs: &[ProcView], ctx: &'a FdContext) -> Result<Self, Error> {
        Self::of(Table::read(procs, false)?, ctx)
    }

    /// The same with a table read already, since the stop.
    pub(crate) fn of(mut table: Table, ctx: &'a FdContext) -> Result<Self, Error> {
        let mut sockets = Sockets::look(ctx, &table)?;
        check::classes(&table)?;
        let mut queues = unix::collect::Queues::default();
        // Reading a queue may bring up descriptions that no process holds: the list grows while it is walked.
        let mut next = 0;
        while next < table.descs.len() {
            let id = FileId(next as u32);
            next += 1;
            if class(&table, id)? == Class::Unix {
                queues.read(&mut table, id, &sockets)?;
            }
        }
        sockets.settle();
        let blockers = check::all(&table, ctx, &sockets)?;
        if !blockers.is_empty() {
            return Err(Error::Blocked(blockers));
        }
        let repaired = inet::collect::to_repair(&table)?;
        Ok(Self { ctx, table, sockets, queues, repaired })
    }

    /// The sockets [`finish`](Self::finish) will put in repair: note them where [`unrepair`] will find them.
    pub fn tcp_sockets(&self) -> &[RepairedSocket] {
        &self.repaired
    }

    /// Reads everything. The sockets of [`tcp_sockets`](Self::tcp_sockets) are in repair afterwards, also after an error.
    pub fn finish(mut self, objects: &mut ObjectTable) -> Result<Collected, Error> {
        let mut out = Collected::default();
        let mut tcp = self.tcp()?;
        let mut pipes = pipe::collect::Pipes::default();
        for id in self.table.ids() {
            let kind = match tcp.remove(&id) {
                Some((socket, warnings)) => {
                    out.kept += usize::from(matches!(socket.state, inet::TcpState::Linked { .. }));
                    out.warnings.extend(warnings);
                    FileKind::Tcp(socket)
                }
                None => self.kind(id, objects, &mut pipes, &mut out)?,
            };
            let owner = self.owner(id, &mut out.warnings)?;
            out.files.push(OpenFile { flags: self.table.desc(id).info.flags, owner, kind });
        }
        out.lost = self.sockets.lost(&out.files)?;
        if out.lost > 0 {
            out.warnings.push(format!(
                "{} TCP connection(s) not yet accepted or already closed cannot go along",
                out.lost
            ));
        }
        out.tables = self.table.entries;
        Ok(out)
    }

    /// All TCP sockets; connections are in repair from now on.
    fn tcp(&self) -> Result<inet::collect::Read, Error> {
        let saved = self.repaired.iter().map(|r| (FileId(r.file), *r)).collect();
        let mut ids = Vec::new();
        for id in self.table.ids() {
            if class(&self.table, id)? == Class::Tcp {
                ids.push(id);
            }
        }
        inet::collect::tcp_all(&self.table, &ids, &saved)
    }

    fn kind(
        &mut self,
        id: FileId,
        objects: &mut ObjectTable,
        pipes: &mut pipe::collect::Pipes,
        out: &mut Collected,
    ) -> Result<FileKind, Error> {
        let desc = self.table.desc(id);
        Ok(match class(&self.table, id)? {
            Class::File => {
                if let Some(object) = object(&self.table, id, objects)? {
                    let locks = file::collect::locks(desc);
                    FileKind::Object { object, pos: desc.info.pos, locks }
                } else {
                    FileKind::Path(file::collect::path_file(desc))
                }
            }
            Class::Pipe => match self.ctx.port(desc.inode()) {
                Some(port) => {
                    if let Some(bytes) = pipes.unread(&self.table, id)? {
                        out.unread.push((port, bytes));
                    }
                    FileKind::Port(port)
                }
                None => FileKind::Pipe(pipes.end(&self.table, id, self.sockets.root())?),
            },
            Class::Event => FileKind::Event(event::collect::eventfd(&self.table, id)?),
            Class::Epoll => FileKind::Epoll(event::collect::epoll(&self.table, id, &mut out.warnings)?),
            Class::Signal => FileKind::Signal(event::collect::signalfd(desc)),
            Class::Timer => FileKind::Timer(event::collect::timerfd(desc)),
            Class::Unix => {
                let (table, sockets) = (&self.table, &self.sockets);
                FileKind::Unix(self.queues.socket(table, id, sockets, &mut out.warnings)?)
            }
            Class::Udp => FileKind::Udp(inet::collect::udp(&self.table, id, &mut out.warnings)?),
            // `check::all` refuses these, and TCP was read before.
            Class::Other(name) => return Err(Error::Blocked(vec![check::blocker(desc, name, "", "")])),
            Class::Tcp => return Err(Error::fd("reading a TCP socket", desc.at)(Errno::ENOENT)),
        })
    }

    /// `F_GETOWN_EX` and `F_GETSIG`, the pid as the pod sees it.
    fn owner(&self, id: FileId, warnings: &mut Vec<String>) -> Result<(i32, i32, i32), Error> {
        let desc = self.table.desc(id);
        // Nothing else ever sends SIGIO (leases are refused).
        let sends = matches!(desc.file_type(), libc::S_IFSOCK | libc::S_IFIFO);
        if desc.is_path() || !sends {
            return Ok((0, 0, 0));
        }
        let fd = self.table.borrow(id)?;
        let (kind, pid, signal) = descr::owner(&fd).map_err(Error::fd("fcntl(2) F_GETOWN_EX", desc.at))?;
        if pid == 0 {
            return Ok((0, 0, signal));
        }
        match self.table.pod_pid(pid) {
            Some(pod) => Ok((kind, pod, signal)),
            None => {
                warnings.push(format!("{}: its SIGIO owner is no process of the pod any more", desc.shown()));
                Ok((0, 0, signal))
            }
        }
    }
}

/// The object behind a file, if its content belongs to the pod.
fn object(
    table: &Table,
    id: FileId,
    objects: &mut ObjectTable,
) -> Result<Option<crate::state::object::ObjectId>, Error> {
    let desc = table.desc(id);
    if desc.is_path() && desc.st.st_nlink > 0 {
        return Ok(None);
    }
    objects.claim_stat(&desc.magic_link(), &desc.st).map_err(|source| Error::Object {
        pid: desc.at.0,
        fd: desc.at.1,
        source,
    })
}

/// The sockets [`collect`] would put in repair.
pub fn tcp_sockets(procs: &[ProcView], ctx: &FdContext) -> Result<Vec<RepairedSocket>, Error> {
    Ok(Scan::new(procs, ctx)?.repaired)
}

/// Reads every descriptor of `procs`, all of them stopped; TCP connections are left in repair.
pub fn collect(procs: &[ProcView], ctx: &FdContext, objects: &mut ObjectTable) -> Result<Collected, Error> {
    Scan::new(procs, ctx)?.finish(objects)
}

/// The network namespace of the pod.
pub(crate) fn netns(ctx: &FdContext) -> Result<OwnedFd, Error> {
    use nix::fcntl::{OFlag, open};
    let path = format!("/proc/{}/ns/net", ctx.init);
    open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
        .map_err(Error::process("open(2) of /proc/PID/ns/net", ctx.init))
}

/// Numbers given out in order of first sight, for sockets and pipes.
#[derive(Debug, Default)]
pub(crate) struct Numbers(HashMap<(u64, u64), u32>);

impl Numbers {
    /// The number of an inode, and whether it is new.
    pub fn of(&mut self, inode: (u64, u64)) -> (u32, bool) {
        let next = self.0.len() as u32;
        let number = *self.0.entry(inode).or_insert(next);
        (number, number == next)
    }
}
