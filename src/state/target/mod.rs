//! The builder: a pod's processes put back at the target, from outside, through the pod's own init.
//!
//! [`Builder::skeleton`] makes processes with their pids, sessions and groups, and their mappings, empty; the memory
//! room fills them. [`Builder::finish`] adds threads, descriptors, signals, timers, credentials, registers.
//! [`Builder::detach_frozen`] leaves everything in a frozen cgroup, without a tracer and without a trace of us.
//!
//! How: every process is born of its parent's skeleton by an injected `clone3` with the wanted pid (CLONE_PTRACE: it
//! is ours from its first instruction), each starts as a copy of the tiny init, and builds itself by batches of
//! calls run in a scratch area at one address that no process of the pod uses. Until the end every skeleton dies
//! with us (EXITKILL). Dropping the builder undoes everything but the pod's init.
//!
//! Tried and dropped: a scratch area per thread (batches of one process never overlap in time, so one does);
//! fillers for unused descriptor numbers (moving down from the top needs none).

mod bridge;
mod build;
mod check;
mod error;
mod family;
mod files;
mod finish;
mod handover;
mod hands;
mod inside;
mod leave;
mod space;
mod threads;
mod update;

pub use error::{Error, Result};

use crate::base::AddrRange;
use crate::kernel::cgroup::Freezer;
use crate::remote::{Fate, Regs, Running, Slot, Stopped};
use crate::state::cpu::xstate::Component;
use crate::state::fd::Port;
use crate::state::fd::restore::{LateInside, LateLock, Repaired, SocketFile};
use crate::state::mm::MmId;
use crate::state::mm::restore::Special;
use crate::state::mm::vdso::Foreign;
use crate::state::object::ObjectId;
use crate::state::{Tree, cred};
use handover::Transport;
use inside::PodNs;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long init may take to stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the builder is given.
#[derive(Debug)]
pub struct TargetCtx {
    /// Host pid of the pod's init: single-threaded, static, with all capabilities and no seccomp filter.
    pub init: i32,
    /// Address of a `syscall` instruction in init.
    pub syscall_at: u64,
    /// The pod's cgroup, init in it.
    pub cgroup: Freezer,
    /// Ends of the channels to the monitor, for descriptors that are [`Port`]s.
    pub ports: HashMap<Port, OwnedFd>,
    /// Image of the vdso of the kernel the pod comes from; empty: the same as here.
    pub vdso: Vec<u8>,
    /// Components of the extended state of the CPU the pod comes from; empty: the same as here.
    pub xstate: Vec<Component>,
}

/// What the memory room needs to fill a skeleton.
#[derive(Debug)]
pub struct Skeleton {
    /// Host pid of each address space.
    pub pids: HashMap<MmId, i32>,
    /// A handle, open for reading and writing, of each object.
    pub objects: HashMap<ObjectId, OwnedFd>,
    /// It was built from the beginning: no content is in place.
    pub anew: bool,
    /// Mappings made anew although they were there: what was filled in them is gone.
    pub lost: Vec<(MmId, AddrRange)>,
}

/// What is left for the monitor to do when the pod runs.
#[derive(Debug, Default)]
pub struct Finished {
    /// Sockets in repair, to be switched on at activation.
    pub repaired: Vec<Repaired>,
    /// Files of sockets, to be brought to their places at activation.
    pub socket_files: Vec<SocketFile>,
    /// File locks that the source still holds where both see one file system.
    pub late_locks: Vec<LateLock>,
    /// What could not be set and matters little, in words.
    pub warnings: Vec<String>,
}

/// A process under construction.
#[derive(Debug)]
struct Body {
    /// Host pid.
    host: i32,
    /// Threads, leader first; (tid in the pod, task).
    threads: Vec<(i32, Stopped)>,
}

/// What this host and the pod's init have, which the processes start from.
#[derive(Clone, Debug)]
struct Host {
    before: cred::restore::Before,
    special: Special,
    /// Mappings of init.
    init_maps: Vec<AddrRange>,
    /// Hard limit on open files.
    open_files: u64,
    pid_max: i32,
    /// `timer_create` takes ids as told.
    timer_ids: bool,
    oom_score_adj: i32,
    coredump_filter: u32,
    /// Slack of init's timers, which its descendants inherit.
    timer_slack: Option<u64>,
}

/// Builds one pod. All of its calls come from the thread that made it.
#[derive(Debug)]
pub struct Builder {
    ctx: TargetCtx,
    /// State components of this CPU.
    components: Vec<Component>,
    /// The pod comes from another kernel.
    foreign: Option<Foreign>,
    /// Where this kernel's mappings lie in the processes of such a pod.
    places: HashMap<i32, u64>,
    ns: PodNs,
    host: Host,
    /// None only once it was let go.
    init: Option<Stopped>,
    /// With which init goes on.
    saved: (Regs, u64),
    /// Scratch in init and, inherited, in every process.
    slot: Option<Slot>,
    /// Free place for mappings in passing, inside the same hole.
    passing: u64,
    transport: Option<Transport>,
    bodies: BTreeMap<i32, Body>,
    /// Every process ever made and not reaped by us.
    born: Vec<i32>,
    /// Parent of each.
    parents: HashMap<i32, i32>,
    /// What the skeleton is of.
    tree: Option<Tree>,
    /// Processes in the order of the tree, zombies left out.
    live: Vec<i32>,
    objects: HashMap<ObjectId, OwnedFd>,
    known_files: files::Known,
    /// Offset of a `syscall` instruction in the vdso image.
    vdso_syscall: Option<u64>,
    /// (process, thread or all) for which a SIGSTOP waited.
    late_stops: Vec<(i32, Option<i32>)>,
    stages: Vec<(&'static str, Duration)>,
    warnings: Vec<String>,
    /// POSIX locks still to be taken.
    late_inside: Vec<LateInside>,
}

impl Builder {
    /// Stops the pod's init and learns what it has. Nothing is changed yet.
    pub fn new(ctx: TargetCtx) -> Result<Self> {
        let start = Instant::now();
        let init = Running::seize(ctx.init, 0)
            .and_then(|r| r.stop(PATIENCE))
            .map_err(Error::remote(1, "stopping the pod's init"))?;
        let failed = Error::remote(1, "reading the pod's init");
        let saved = (init.portable_regs().map_err(&failed)?, init.sigmask().map_err(&failed)?);
        debug_assert_eq!(init.fate(), Fate::Detach);
        let ns = PodNs::of(ctx.init)?;
        let host = build::learn(ctx.init)?;
        let ours = crate::kernel::vdso::own().map_err(Error::io("/proc/self/mem"))?;
        let foreign = Foreign::new(&ctx.vdso, &ours, host.special).map_err(Error::unfit(1))?;
        let mut builder = Self {
            ctx,
            foreign,
            places: HashMap::new(),
            components: crate::kernel::cpuid::xsave_components(),
            ns,
            host,
            init: Some(init),
            saved,
            slot: None,
            passing: 0,
            transport: None,
            bodies: BTreeMap::new(),
            born: Vec::new(),
            parents: HashMap::new(),
            tree: None,
            live: Vec::new(),
            objects: HashMap::new(),
            known_files: files::Known::default(),
            vdso_syscall: None,
            late_stops: Vec::new(),
            stages: Vec::new(),
            warnings: Vec::new(),
            late_inside: Vec::new(),
        };
        builder.stage("stop init", start);
        Ok(builder)
    }

    /// Compares the mapped files with those here and keeps the result, so that a later [`Builder::skeleton`] need
    /// not read them while a pod stands still. Missing and different ones are [`Error::Files`].
    pub fn check_files(&mut self, tree: &Tree) -> Result<()> {
        let (ns, known) = (&self.ns, &mut self.known_files);
        ns.run(|| files::open_all(&tree.files, known).map_err(Error::Files)).map(drop)
    }

    /// How long each stage took so far.
    pub fn stages(&self) -> &[(&'static str, Duration)] {
        &self.stages
    }

    /// Undoes everything: kills what was built, lets init go as it was found.
    pub fn abort(self) {
        drop(self);
    }

    fn stage(&mut self, name: &'static str, since: Instant) {
        self.stages.push((name, since.elapsed()));
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        self.undo();
    }
}

#[cfg(test)]
mod tests;
