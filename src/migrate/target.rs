//! The target's half: a pod put together from a stream, whether a host or a file sends it.
//!
//! ```text
//! reserve → tree (skeleton) → pages … → state (finish) → prepare → own
//! ```
//! Until `own` returns, dropping the [`Target`] takes everything down: the skeletons die, and the pod's monitor records
//! *aborted* and removes what it had made; when the drop is done nothing is left. If this process dies the monitor sees its
//! connection close, and does the same.

use super::facts;
use super::report::Stopwatch;
use super::verify::{self, Digests};
use super::worker::Kept;
use crate::base::spec::Publish;
use crate::base::{Blocker, Failure, Kind, MoveId};
use crate::image::check;
use crate::image::record::{Manifest, NetFrame};
use crate::kernel::sched::Haste;
use crate::memory::digest::Masks;
use crate::memory::{Chunk, Filler, Run};
use crate::net::{self, Frame, Replayer};
use crate::pod::client::Client;
use crate::pod::monitor::Prepared;
use crate::pod::moving::{self, Arrival};
use crate::pod::store::{self, Record as PodRecord, Status, Store};
use crate::pod::{init, launch};
use crate::sandbox::space::Clocks;
use crate::state::fd::restore as fds;
use crate::state::fd::{FdEntry, FileKind, OpenFile, Port};
use crate::state::mm::MmId;
use crate::state::target::{Builder, Finished, Skeleton, TargetCtx};
use crate::state::{PodState, Tree};
use nix::time::{ClockId, clock_gettime};
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Added to the pod's clocks so that they never seem to have stood still for less than nothing, nanoseconds: the
/// clocks of two hosts may drift apart by 500 ppm while a move is under way, and the message took its time.
const CLOCK_MARGIN_NS: i64 = 5_000_000;
/// How long the remains of an earlier attempt may take to go.
const CLEARING: Duration = Duration::from_secs(5);
/// How long the taking down of what was built may take, before it is left to the monitor alone.
const TEAR_DOWN: Duration = Duration::from_secs(10);
/// Sockets handed to the monitor at a time (SCM_MAX_FD is 253).
const SOCKETS: usize = 200;

/// What is asked of a target.
pub struct Request {
    /// The attempt; `None` for a restore from a file (it gets one of its own).
    pub move_id: MoveId,
    /// The pod.
    pub manifest: Manifest,
    /// Ports to publish here instead of the definition's.
    pub publish: Option<Vec<Publish>>,
    /// Restore although the original may live.
    pub takeover: bool,
    /// Time for the commit, milliseconds.
    pub deadline_ms: u64,
    /// This host's clocks when the manifest, with those of the pod, came: whatever takes time from then on must not put
    /// the pod's clocks back.
    pub came: Came,
}

/// CLOCK_MONOTONIC and CLOCK_BOOTTIME of this host at one moment, nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Came(i64, i64);

impl Came {
    /// This moment.
    pub fn now() -> Self {
        Self(now(ClockId::CLOCK_MONOTONIC), now(ClockId::CLOCK_BOOTTIME))
    }
}

/// A pod being put together.
pub struct Target<'s> {
    store: &'s Store,
    request: Request,
    record: PodRecord,
    client: Client,
    builder: Option<Builder>,
    skeleton: Option<Skeleton>,
    tree: Option<Tree>,
    filler: Option<Filler>,
    runs: Vec<Run>,
    state: Option<PodState>,
    finished: Finished,
    /// What the kernel writes by itself, for `--verify`.
    masks: Masks,
    frames: Vec<Frame>,
    log: Vec<u8>,
    /// Since the pod stands still at the source.
    haste: Option<Haste>,
    watch: Stopwatch,
    /// The monitor has the pod: nothing to take down.
    owned: bool,
}

/// A pod that runs here.
pub struct Owned {
    /// Where the time went at activation.
    pub stages: Vec<(String, u64)>,
    /// The pod.
    pub record: PodRecord,
    /// What will be different, in words.
    pub warnings: Vec<String>,
    replayer: Option<Replayer>,
}

/// A pod that runs here does not arrive here (a host may know itself by some name).
fn absent(store: &Store, request: &Request) -> Result<(), Failure> {
    match store.get(&request.manifest.spec.id)? {
        Some(r) if matches!(r.status, Status::Running | Status::Paused) => {
            let text = format!("it is here, on {}, already ({})", facts::hostname(), r.status);
            Err(Failure::new(Kind::Refused, r.spec.name.as_str(), text).remedy("choose another host"))
        }
        _ => Ok(()),
    }
}

/// Takes name and id. An earlier attempt of the same pod whose mover died may still be being taken down: it is
/// waited for.
fn take_place(store: &Store, request: &Request) -> Result<PodRecord, Failure> {
    let until = Instant::now() + CLEARING;
    loop {
        match store.reserve_incoming(&request.spec(), request.manifest.generation + 1) {
            Err(store::Error::Here { status: Status::Incoming, .. }) if Instant::now() < until => {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            // Another pod's: for this one the name is simply taken.
            Err(store::Error::Elsewhere { name, host, .. }) => {
                let here = facts::hostname();
                let text = format!("{here} keeps the name for a pod that has moved to {host}");
                return Err(Failure::new(Kind::Taken, name.as_str(), text)
                    .remedy(format!("`podmig rm {name}` there forgets that one")));
            }
            other => return Ok(other?),
        }
    }
}

fn now(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |t| t.tv_sec() * 1_000_000_000 + t.tv_nsec())
}

impl Request {
    /// The definition as it will be here.
    fn spec(&self) -> crate::base::spec::PodSpec {
        let mut spec = self.manifest.spec.clone();
        if let Some(publish) = &self.publish {
            spec.net.publish.clone_from(publish);
        }
        spec
    }
}

impl<'s> Target<'s> {
    /// Whether the pod could be taken: name and id free, network there, memory enough.
    ///
    /// # Errors
    /// `Taken` or `Refused`, with the blockers.
    pub fn could_take(request: &Request) -> Result<(), Failure> {
        let spec = request.spec();
        net::plan(&spec.net, &spec.id)?;
        let free = facts::memory_available();
        if request.manifest.memory > free {
            let message = format!(
                "the pod has {} MiB of memory, {} has {} MiB to give",
                request.manifest.memory >> 20,
                facts::hostname(),
                free >> 20
            );
            let blocker = Blocker {
                kind: "memory".into(),
                pid: None,
                fd: None,
                path: None,
                message,
                remedy: "free memory there, or choose another host".into(),
            };
            return Err(Failure::refused(spec.name.as_str(), vec![blocker]));
        }
        Ok(())
    }

    /// Reserves: record, monitor, cgroup, namespaces, init, link (held).
    ///
    /// # Errors
    /// As [`Target::could_take`], and what could not be made; nothing is left then.
    pub fn reserve(store: &'s Store, request: Request) -> Result<Self, Failure> {
        let watch = Stopwatch::start("target");
        absent(store, &request)?;
        Self::could_take(&request)?;
        let record = take_place(store, &request)?;
        let (there, here) = (request.manifest.clocks, request.came);
        let clocks = Clocks {
            monotonic_ns: there.0 - here.0 + CLOCK_MARGIN_NS,
            boottime_ns: there.1 - here.1 + CLOCK_MARGIN_NS,
        };
        let (client, prepared) = launch::incoming(store, &record, clocks, None)?;
        // Before anything that can fail: dropping it takes down what the monitor has made.
        let mut target = Self {
            store,
            request,
            record,
            client,
            builder: None,
            skeleton: None,
            tree: None,
            filler: None,
            runs: Vec::new(),
            state: None,
            finished: Finished::default(),
            masks: Masks::new(),
            frames: Vec::new(),
            log: Vec::new(),
            haste: None,
            watch,
            owned: false,
        };
        target.arrive(prepared)?;
        target.watch.lap("reserve");
        Ok(target)
    }

    /// The attempt.
    pub fn move_id(&self) -> &MoveId {
        &self.request.move_id
    }

    fn arrive(&mut self, prepared: Prepared) -> Result<(), Failure> {
        self.client.moving(moving::Request::Arrive {
            move_id: self.request.move_id.clone(),
            deadline_ms: self.request.deadline_ms,
        })?;
        let name = self.record.spec.name.as_str();
        let lost = || Failure::new(Kind::Failed, name, "the monitor made no pid 1");
        let ctx = TargetCtx {
            init: prepared.info.init_pid.ok_or_else(lost)?,
            syscall_at: init::syscall_address(),
            cgroup: super::source::freezer_of(&prepared.info)?,
            ports: prepared.ports.into_iter().collect(),
            vdso: self.request.manifest.vdso.clone(),
            xstate: self.request.manifest.xstate.clone(),
        };
        self.builder = Some(Builder::new(ctx)?);
        Ok(())
    }

    fn builder(&mut self) -> Result<&mut Builder, Failure> {
        self.builder
            .as_mut()
            .ok_or_else(|| Failure::new(Kind::Failed, "the stream", "something follows the end"))
    }

    /// Builds the skeleton, or changes it; whether what was filled before is still in place.
    ///
    /// # Errors
    /// Files missing or different here (`Refused`), or what the kernel refuses.
    pub fn tree(&mut self, tree: Tree) -> Result<Kept, Failure> {
        check::tree(&tree).map_err(|e| e.failure("the stream"))?;
        let first = self.tree.is_none();
        let skeleton = match &self.tree {
            None => self.builder()?.skeleton(&tree)?,
            Some(_) => self.builder()?.update(&tree)?,
        };
        match &mut self.filler {
            None => self.filler = Some(Filler::new(&tree, &skeleton.pids, &skeleton.objects)?),
            Some(filler) => filler.update(&tree, &skeleton.pids, &skeleton.objects)?,
        }
        let lost = skeleton.lost.iter().map(|(mm, r)| (mm.0, r.start, r.end)).collect();
        let kept = (!skeleton.anew, lost);
        self.skeleton = Some(skeleton);
        self.tree = Some(tree);
        self.watch.lap(if first { "skeleton" } else { "update" });
        Ok(kept)
    }

    /// Puts the pages of one frame in place.
    ///
    /// # Errors
    /// A frame that does not fit the tree; memory that cannot be written.
    pub fn pages(&mut self, body: &[u8]) -> Result<(), Failure> {
        let early = || Failure::new(Kind::Failed, "the stream", "pages before the tree");
        let filler = self.filler.as_ref().ok_or_else(early)?;
        let short = || Failure::new(Kind::Failed, "the stream", "a page frame is too short");
        let (len, rest) = body.split_first_chunk::<4>().ok_or_else(short)?;
        let len = u32::from_le_bytes(*len) as usize;
        let (head, data) = rest.split_at_checked(len).ok_or_else(short)?;
        Chunk::decode_header(head, &mut self.runs)?;
        filler.apply_chunk(&self.runs, data)?;
        Ok(())
    }

    /// The pod stands still at the source: nobody on this host goes before it.
    pub fn hurry(&mut self) {
        if self.haste.is_none() {
            self.haste = Some(Haste::begin(true));
        }
    }

    /// Everything but memory: threads, descriptors, signals, timers, credentials, registers.
    ///
    /// # Errors
    /// State that does not fit the tree or cannot be set here.
    pub fn state(&mut self, state: PodState) -> Result<(), Failure> {
        self.hurry();
        self.watch.lap("pages");
        let tree = self
            .tree
            .take()
            .ok_or_else(|| Failure::new(Kind::Failed, "the stream", "state before the tree"))?;
        check::state(&tree, &state).map_err(|e| e.failure("the stream"))?;
        self.finished = self.builder()?.finish(&tree, &state)?;
        self.masks = verify::masks(&tree, &state);
        self.tree = Some(tree);
        self.state = Some(state);
        self.watch.lap("finish");
        Ok(())
    }

    /// The last part of the pod's log.
    pub fn log(&mut self, log: Vec<u8>) {
        self.log = log;
    }

    /// Frames for the pod that arrived at the source.
    pub fn frames(&mut self, frames: Vec<NetFrame>) {
        self.frames.extend(frames.into_iter().filter_map(frame));
    }

    /// Lets go of every task in the frozen cgroup and hands the sockets to the monitor; the stages so far.
    ///
    /// # Errors
    /// The stream is not complete, or the monitor refuses.
    pub fn prepare(&mut self) -> Result<Vec<(String, u64)>, Failure> {
        let incomplete = || Failure::new(Kind::Failed, "the stream", "it ends before the pod's state");
        let state = self.state.take().ok_or_else(incomplete)?;
        let builder = self.builder.take().ok_or_else(incomplete)?;
        let cmd_pid = self.request.manifest.cmd_pid;
        if cmd_pid != 0 && !self.tree.iter().flat_map(|t| &t.procs).any(|p| p.pid == cmd_pid) {
            let text = format!("its command, process {cmd_pid}, is not among its processes");
            return Err(crate::image::Error::Damaged(text).failure("the stream"));
        }
        // None: a zombie, which pid 1 reaps.
        let cmd_host_pid =
            self.skeleton.as_ref().and_then(|s| s.pids.get(&MmId(cmd_pid)).copied()).unwrap_or(0);
        builder.detach_frozen()?;
        self.watch.lap("detach");
        for some in self.finished.repaired.chunks(SOCKETS) {
            let fds: Vec<_> = some.iter().map(|s| s.fd.as_fd()).collect();
            let how = some.iter().map(fds::Repaired::waking).collect();
            self.client.moving_with(moving::Request::Sockets(how), &fds)?;
        }
        for some in self.finished.late_locks.chunks(SOCKETS) {
            let fds: Vec<_> = some.iter().map(|l| l.fd.as_fd()).collect();
            let locks = some.iter().map(|l| (l.locks.clone(), l.of)).collect();
            self.client.moving_with(moving::Request::Locks(locks), &fds)?;
        }
        let arrival = Arrival {
            cmd_pid,
            cmd_host_pid,
            cmd_status: self.request.manifest.cmd_status,
            clocks: (state.monotonic_ns, state.boottime_ns),
            realtime_ns: state.realtime_ns,
            started: self.request.manifest.started.parse().ok(),
            log_tail: std::mem::take(&mut self.log),
            socket_files: std::mem::take(&mut self.finished.socket_files),
            hang_up: self.sessions(&state),
            input: state.input,
            input_ended: state.input_ended,
        };
        self.client.moving(moving::Request::Prepared(arrival))?;
        self.watch.lap("prepare");
        Ok(self.watch.pairs())
    }

    /// Host pids of the process groups of `exec` sessions, whose streams ended with the source.
    fn sessions(&self, state: &PodState) -> Vec<i32> {
        let (Some(tree), Some(skeleton)) = (&self.tree, &self.skeleton) else { return Vec::new() };
        let session = |file: &OpenFile| matches!(file.kind, FileKind::Port(Port::Session(_)));
        let file = |fd: &FdEntry| state.files.get(fd.file.0 as usize).is_some_and(session);
        let joined = |pid: i32| state.procs.iter().any(|p| p.pid == pid && p.fds.iter().any(file));
        let leaders: HashSet<i32> =
            tree.procs.iter().filter(|p| p.sid == p.pid && joined(p.pid)).map(|p| p.pid).collect();
        let groups = tree.procs.iter().filter(|p| leaders.contains(&p.pgid));
        groups.filter_map(|p| skeleton.pids.get(&MmId(p.pid)).copied()).collect()
    }

    /// Compares the source's hashes of all memory with those of what was built here.
    ///
    /// # Errors
    /// The first mapping that differs.
    pub fn verify(&mut self, theirs: &Digests) -> Result<(), Failure> {
        let failed = |text: String| Failure::new(Kind::Failed, self.record.spec.name.as_str(), text);
        let (Some(tree), Some(skeleton)) = (&self.tree, &self.skeleton) else {
            return Err(failed("hashes of memory before the memory".to_owned()));
        };
        let ours = verify::digests(tree, &skeleton.pids, &skeleton.objects, &self.masks)?;
        match verify::difference(theirs, &ours) {
            None => Ok(()),
            Some(what) => Err(failed(format!("its memory is not the same here: {what}"))
                .remedy("nothing was lost: it runs on where it was; please report this")),
        }
    }

    /// The commit: the monitor records it and brings the pod to life. Once that has happened this cannot fail.
    ///
    /// # Errors
    /// The record says aborted, or the monitor (and with it the pod) died; nothing is left.
    pub fn own(mut self) -> Result<Owned, Failure> {
        let frames = std::mem::take(&mut self.frames);
        let stages = match self.client.moving(moving::Request::Own { frames })? {
            moving::Reply::Activated { stages } => stages,
            _ => Vec::new(),
        };
        self.haste = None;
        self.owned = true;
        let record = self.store.get(&self.record.spec.id).ok().flatten();
        let record = record.unwrap_or_else(|| self.record.clone());
        Ok(Owned { stages, record, warnings: std::mem::take(&mut self.finished.warnings), replayer: None })
    }

    /// Kills what was built, then has the monitor remove what it made and end.
    fn take_down(&mut self) {
        (self.filler, self.skeleton) = (None, None);
        drop(self.builder.take());
        self.client.patience(TEAR_DOWN);
        let Err(refusal) = self.client.moving(moving::Request::GiveUp) else { return };
        // The monitor is gone, or as good as: by itself, after it had removed everything, or killed.
        tracing::debug!("giving up: {refusal}");
        self.client.hang_up();
        let until = Instant::now() + CLEARING;
        let alive = || match self.store.get(&self.record.spec.id) {
            Ok(Some(found)) if found.owner_alive() => Some(found.created == self.record.created),
            _ => None,
        };
        // Killed just now, it is still there for a moment.
        while alive() == Some(true) && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        // What another attempt has made meanwhile is not ours.
        if alive().is_none() {
            let swept = crate::pod::monitor::sweep(self.store, &self.record);
            if let Err(left) = swept.and_then(|()| Ok(self.store.give_back_dead(&self.record)?)) {
                tracing::warn!("an arriving pod was not removed as a whole: {left}");
            }
        }
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        if !self.owned {
            self.take_down();
        }
    }
}

/// A frame in the network's words; one with a header of another size is no frame.
fn frame(f: NetFrame) -> Option<Frame> {
    Some(Frame { vnet_hdr: f.vnet_hdr.try_into().ok()?, bytes: f.bytes })
}

impl Owned {
    /// Frames that still arrived at the source, replayed into the pod's link.
    pub fn late_frames(&mut self, frames: Vec<NetFrame>, store: &Store) {
        let frames: Vec<Frame> = frames.into_iter().filter_map(frame).collect();
        if self.replayer.is_none() {
            self.replayer =
                crate::pod::link_of(store, &self.record.spec.id).and_then(|l| Replayer::open(&l).ok());
        }
        if let Some(replayer) = &self.replayer {
            replayer.send(&frames);
        }
    }
}
