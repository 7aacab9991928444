//! The source's half, put together: everything a pod is, read from outside and in batches.
//!
//! One [`Source`] serves one attempt to move a pod, in this order:
//! 1. [`Source::preflight`], as often as wanted: what is in the way, without stopping anything.
//! 2. [`Source::prepare`], once or each round, while the pod runs: the tree as far as it can be known then. It
//!    reads what would take too long in the freeze: flags of mappings (`smaps`), hashes of mapped files.
//! 3. [`Source::tree`] at the freeze, then [`Source::collect`]: true and complete.
//! 4. [`Source::handles`]: the content of objects, for the memory reader.
//!
//! Ids of files and objects stay the same from the first call to the last.

mod ipc;
mod private;
mod running;
mod stopped;

pub use stopped::Snapshot;

use self::private::Private;
use super::error::Error;
use super::fd::Port;
use super::fd::collect::table::Table;
use super::fd::collect::{Ahead, FdContext, ProcView};
use super::mm::MmId;
use super::mm::collect::Known;
use super::mm::files::FileTable;
use super::object::ObjectId;
use super::object::collect::ObjectTable;
use super::task::collect::{Usual, Walls, walls};
use crate::base::Blocker;
use crate::kernel::cgroup::Freezer;
use crate::kernel::descr;
use crate::kernel::procfs::{Proc, Status};
use crate::kernel::status;
use nix::sys::stat::SFlag;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What is known of a pod to whoever reads it.
#[derive(Clone, Debug)]
pub struct PodView {
    /// Host pid of the pod's pid 1.
    pub init: i32,
    /// The pod's cgroup: its processes, pid 1 included, and nothing else.
    pub cgroup: Freezer,
    /// The channels to the monitor: the name and (`st_dev`, `st_ino`) of the pipe.
    pub ports: Vec<(Port, (u64, u64))>,
    /// podmig's seccomp profile stands over every process but pid 1 (not so for `--privileged`).
    pub walled: bool,
    /// podmig itself tracks writes in this pod by userfaultfd.
    pub tracked: bool,
}

/// Descriptors there is room for when the pod is stopped.
const ROOM: u64 = 32 << 10;

/// A process for good: host pid and start time.
type Who = (i32, u64);

/// Reads one pod. See the module's text for the order of calls.
pub struct Source {
    view: PodView,
    init: Arc<Proc>,
    /// Namespaces of init.
    walls: Walls,
    /// How init is scheduled.
    usual: Usual,
    files: FileTable,
    objects: ObjectTable,
    ipc: ipc::SystemV,
    /// Mappings with their flags, as of the last look.
    known: HashMap<Who, Known>,
    /// Processes found to share nothing with one another.
    alone: HashSet<Who>,
    /// File systems only the pod sees.
    private: Private,
    /// Connections looked at while the pod ran.
    ahead: Option<Ahead>,
    /// Between [`Source::tree`] and [`Source::collect`].
    read: Vec<stopped::Read>,
    /// The same: all descriptors.
    table: Option<Table>,
    last_pid: Option<i32>,
    /// Host pids as of the last look.
    hosts: HostPids,
    /// Objects with a descriptor open for writing, as of the last look.
    written: HashSet<ObjectId>,
    buf: Vec<u8>,
}

impl Source {
    /// Opens what is needed of a running pod. [`Error::Gone`]: its pid 1 is not there.
    pub fn new(view: PodView) -> Result<Self, Error> {
        let init = Arc::new(Proc::open(view.init).map_err(Error::read(view.init, "/proc"))?);
        let walls = walls(&init, None)?;
        let usual = Usual::of(view.init)?;
        let private = Private::find(&init)?;
        let objects = ObjectTable::new(private.devices().clone())?;
        Ok(Self {
            ipc: ipc::SystemV::open(&init)?,
            view,
            walls,
            usual,
            files: FileTable::new(Arc::clone(&init)),
            init,
            objects,
            known: HashMap::new(),
            alone: HashSet::new(),
            private,
            ahead: None,
            read: Vec::new(),
            table: None,
            last_pid: None,
            hosts: HostPids::new(),
            written: HashSet::new(),
            buf: Vec::with_capacity(1 << 16),
        })
    }

    /// The pod it reads.
    pub fn view(&self) -> &PodView {
        &self.view
    }

    /// Says that podmig now tracks writes in the pod by userfaultfd (or no longer does).
    pub fn set_tracked(&mut self, tracked: bool) {
        self.view.tracked = tracked;
    }

    /// Host pid of each address space, as of the last look.
    pub fn hosts(&self) -> &HostPids {
        &self.hosts
    }

    /// The last pid the pod's namespace gave out, as of [`Source::tree`]; `None` where it could not be read.
    pub fn last_pid(&self) -> Option<i32> {
        self.last_pid
    }

    /// Whether a descriptor through which the object can be written was open in the pod at the last look.
    pub fn is_open_for_writing(&self, id: ObjectId) -> bool {
        self.written.contains(&id)
    }

    /// Read-only handles of every object of the tree, each with a position of its own.
    pub fn handles(&self) -> Result<HashMap<ObjectId, OwnedFd>, Error> {
        (0..self.objects.len())
            .filter_map(|i| u32::try_from(i).ok().map(ObjectId))
            .filter(|id| self.objects.is_used(*id))
            .filter_map(|id| Some((id, self.objects.handle(id)?)))
            .map(|(id, fd)| match reopen(&fd) {
                Ok(own) => Ok((id, own)),
                Err(e) => Err(Error::read(self.view.init, "an object's handle")(e)),
            })
            .collect()
    }

    /// Looks at the connections of the running pod, shortly before it is stopped: what does not change until then need not
    /// be asked while it stands still. Where that fails all of it is asked then.
    pub fn look_ahead(&mut self) {
        descr::make_room(ROOM);
        let pids = self.view.cgroup.procs().unwrap_or_default();
        let view = |pid: i32| Some(ProcView { host_pid: pid, pod_pid: status::of(pid).ok()?.pod_tgid() });
        let views: Vec<ProcView> =
            pids.into_iter().filter(|p| *p != self.view.init).filter_map(view).collect();
        self.ahead = Ahead::look(&views, &self.fd_context()).ok().flatten();
    }

    fn fd_context(&self) -> FdContext {
        let private = self.private.devices().clone();
        FdContext { init: self.view.init, ports: self.view.ports.clone(), private }
    }

    /// `status` of the pod's pid 1.
    fn init_status(&mut self) -> Result<Status, Error> {
        self.init.read_into("status", &mut self.buf).map_err(Error::read(self.view.init, "status"))?;
        Status::parse(&self.buf).ok_or_else(Error::odd(self.view.init, "status"))
    }

    /// Takes into the table what belongs to the pod and is reached by descriptors only.
    fn objects_by_descriptor(
        &mut self,
        proc: &Proc,
        pid: i32,
        found: &mut Vec<Blocker>,
    ) -> Result<(), Error> {
        let host = proc.pid();
        for fd in proc.numbers("fd").map_err(Error::read(host, "fd"))? {
            let link = format!("fd/{fd}");
            let st = match proc.stat(link.as_str()) {
                Ok(st) => st,
                // Closed meanwhile (a running pod), or a file whose file system no longer answers: not an object.
                Err(_) => continue,
            };
            if st.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() || !self.objects.is_object(&st) {
                continue;
            }
            let path = format!("/proc/{host}/{link}");
            match self.objects.claim_stat(path.as_ref(), &st) {
                Ok(Some(id)) => {
                    // The link's own mode shows how the file was opened.
                    if proc.lstat(link.as_str()).is_ok_and(|l| l.st_mode & 0o200 != 0) {
                        self.written.insert(id);
                    }
                }
                Ok(None) => {}
                Err(e) => match e.blocker(pid, Some(fd)) {
                    Some(b) => found.push(b),
                    None => return Err(e.into()),
                },
            }
        }
        Ok(())
    }
}

impl Source {
    /// As [`Source::objects_by_descriptor`], from a table.
    fn objects_of_table(&mut self, table: &Table, found: &mut Vec<Blocker>) -> Result<(), Error> {
        for desc in &table.descs {
            if desc.file_type() != libc::S_IFREG || !self.objects.is_object(&desc.st) {
                continue;
            }
            match self.objects.claim_stat(&desc.magic_link(), &desc.st) {
                Ok(Some(id)) if desc.writable() && !desc.is_path() => {
                    self.written.insert(id);
                }
                Ok(_) => {}
                Err(e) => match e.blocker(desc.pod_pid.unwrap_or(0), Some(desc.at.1)) {
                    Some(b) => found.push(b),
                    None => return Err(e.into()),
                },
            }
        }
        Ok(())
    }
}

/// An open file description of our own for the same file, so that positions do not mix.
fn reopen(fd: &std::os::fd::BorrowedFd<'_>) -> Result<OwnedFd, nix::errno::Errno> {
    use nix::fcntl::{OFlag, open};
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
}

/// Host pids by address space.
pub type HostPids = HashMap<MmId, i32>;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_stopped;
