//! Iterative pre-copy: while the pod runs, rounds of "look what was written, send it" until the rest is small; then
//! the freeze sends what is left.
//!
//! A round: the tree as it is now (blockers are refused here, with nothing frozen), the pages written since the last
//! look (in the first round: all content), sent and in place at the target. Address spaces that are new are watched in a
//! short stop. What cannot be watched is sent whole at the freeze.

use super::order::OnTimeout;
use super::pace::Pace;
use super::report::Round as Told;
use super::source::{ANSWER, Mover, out_of_turn, settled_tree};
use super::worker::Kept;
use crate::base::{AddrRange, Failure, Kind};
use crate::freeze::{self, PodTasks};
use crate::image::record::Record;
use crate::memory::dirty::inject::BySession;
use crate::memory::dirty::{Access, ObjectView, Round, Tracker, View};
use crate::memory::feed::{DEFAULT_CHUNKS, Feed};
use crate::memory::{self, PageSet, Reader, Space, Work};
use crate::pod::moving::Stage;
use crate::policy::rounds::{self, Limits, Next, Sent};
use crate::remote::Batch;
use crate::state::Tree;
use crate::state::mm::MmId;
use crate::state::object::{ObjectId, ObjectKind};
use crate::state::source::{HostPids, Source};
use crate::state::task::asked;
use crate::wire::message::Message;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

/// What a freeze is taken to cost without any page, microseconds.
const FIXED_US: u64 = 15_000;
/// Most rounds.
const ROUNDS: u32 = 30;
/// How often a process that could not be watched is tried again.
const WATCHES: usize = 2;
/// Threads that read pages ahead of the stream.
const READERS: usize = 1;

/// Handles of objects by id.
type Handles = HashMap<ObjectId, OwnedFd>;

/// What the rounds leave for the freeze.
pub(super) struct Precopy {
    tracker: Tracker,
    /// `ns_last_pid` when the watching began; while it stays no process was made.
    last_pid: Option<i32>,
    /// Address spaces that cannot be watched.
    whole: HashSet<MmId>,
    /// Objects of the last round.
    objects: HashSet<ObjectId>,
    sent: Vec<Sent>,
    /// The target lost something of what it had: its memory is compared before the commit, asked for or not.
    pub(super) unsteady: bool,
}

impl Precopy {
    /// Looks at the pod. `last`: it stands still, and what is not watched comes whole.
    fn round(
        &mut self,
        source: &Source,
        tree: &Tree,
        handles: &Handles,
        last: bool,
    ) -> Result<Round, memory::Error> {
        // The target emptied what was gone from the pod for a while.
        for id in std::mem::take(&mut self.objects).into_iter().filter(|id| !handles.contains_key(id)) {
            self.give_back_space(Space::Object(id));
        }
        self.objects = handles.keys().copied().collect();
        let view =
            |(id, handle): (&ObjectId, _)| (*id, ObjectView { handle, access: access(source, tree, *id) });
        let forked = last && (self.last_pid.is_none() || self.last_pid != source.last_pid());
        let objects: HashMap<ObjectId, ObjectView<'_>> = handles.iter().map(view).collect();
        let view = View { layouts: &tree.mms, objects: &objects, forked, last };
        for (mm, pid) in source.hosts() {
            if last {
                self.tracker.locate(*mm, *pid);
            }
        }
        self.tracker.round(&view)
    }

    fn give_back_space(&mut self, space: Space) {
        let pages = self.tracker.sent(space);
        self.tracker.give_back(&[Work { space, pages, zero: PageSet::new() }]);
    }

    /// The target has nothing any more: all of it comes again.
    fn forget(&mut self, tree: &Tree, handles: &Handles) {
        let spaces = tree.mms.iter().map(|m| Space::Mm(m.mm));
        let spaces: Vec<Space> = spaces.chain(handles.keys().map(|id| Space::Object(*id))).collect();
        spaces.into_iter().for_each(|space| self.give_back_space(space));
    }

    /// Takes in what the target kept when its tree changed; whether that was everything.
    fn kept(&mut self, (kept, lost): Kept, tree: &Tree, handles: &Handles) -> bool {
        if !kept {
            self.forget(tree, handles);
        }
        for (pid, start, end) in &lost {
            let range = AddrRange::new(*start, (*end).max(*start));
            self.tracker.lost(MmId(*pid), &PageSet::from_iter([range]));
        }
        self.unsteady |= !(kept && lost.is_empty());
        kept && lost.is_empty()
    }

    /// Name of the way writes are noticed.
    pub(super) fn way(&self) -> &'static str {
        self.tracker.way().name()
    }
}

/// Ways to write to an object but through mappings.
fn access(source: &Source, tree: &Tree, id: ObjectId) -> Access {
    match tree.objects.get(id.0 as usize).map(|o| &o.kind) {
        _ if source.is_open_for_writing(id) => Access::Descriptor,
        Some(ObjectKind::AnonShared) => Access::Mappings,
        // By its name, or by /proc/self/fd of a descriptor for reading.
        Some(_) => Access::Name,
        None => Access::Descriptor,
    }
}

impl Mover<'_> {
    /// The rounds. The tree the target has then, and what is left to do; `None`: this kernel cannot notice writes,
    /// everything is copied in the freeze.
    pub(super) fn precopy(
        &mut self,
        source: &mut Source,
        mut tree: Tree,
    ) -> Result<(Tree, Option<Precopy>), Failure> {
        let tracker = match Tracker::new() {
            Ok(tracker) => tracker,
            Err(e) => {
                self.report.warnings.push(format!("moved warm, since this kernel cannot do pre-copy: {e}"));
                return Ok((tree, None));
            }
        };
        let (last_pid, whole, objects, sent) = (None, HashSet::new(), HashSet::new(), Vec::new());
        let mut pre = Precopy { tracker, last_pid, whole, objects, sent, unsteady: false };
        self.report.tracker = pre.way().to_owned();
        self.report.mode = "live".to_owned();
        source.set_tracked(true);
        let mut strangers: Vec<MmId> = tree.mms.iter().map(|m| m.mm).collect();
        loop {
            self.watch_all(source, &mut pre, &strangers)?;
            let (now, round, handles, kept) = self.look(source, &mut pre, &tree)?;
            tree = now;
            strangers = round.unwatched.iter().copied().filter(|mm| !pre.whole.contains(mm)).collect();
            let left = round.bytes() + unwatched_bytes(source, &tree, &round);
            let late = self.is_late()?;
            // What the target has lost comes in the next round: how much is left is not known before.
            let unsure = !kept && pre.sent.len() < ROUNDS as usize;
            let next = match pre.sent.is_empty() || unsure {
                true => Next::Again,
                false => rounds::next(&pre.sent, left, &self.limits()),
            };
            if late || next != Next::Again {
                tracing::debug!("{} rounds, {left} bytes are left: {next:?}", pre.sent.len());
                pre.tracker.give_back(&round.work);
                self.stage(Stage { stage: "stop-and-copy".to_owned(), ..self.round_stage(&pre, left) })?;
                return Ok((tree, Some(pre)));
            }
            self.send_round(source, &mut pre, round, &handles)?;
        }
    }

    /// Whether the time given is over and the user wants the freeze then, however long. Errors: the user wants to give up.
    fn is_late(&self) -> Result<bool, Failure> {
        if self.watch.total_us() < u64::try_from(self.order.timeout.as_micros()).unwrap_or(u64::MAX) {
            return Ok(false);
        }
        match self.order.on_timeout {
            OnTimeout::Freeze => Ok(true),
            OnTimeout::Cancel => {
                let text = format!(
                    "not moved within {} s: it writes faster than can be sent, or the link is slow",
                    self.order.timeout.as_secs()
                );
                Err(Failure::new(Kind::BeforeCommit, self.name(), text)
                    .remedy("a longer --timeout, or --on-timeout freeze"))
            }
        }
    }

    fn limits(&self) -> Limits {
        let max_downtime_us = u64::try_from(self.order.max_downtime.as_micros()).unwrap_or(u64::MAX);
        Limits { max_downtime_us, fixed_us: FIXED_US, rounds: ROUNDS }
    }

    /// Starts watching address spaces, in one stop of the pod.
    fn watch_all(&mut self, source: &Source, pre: &mut Precopy, mms: &[MmId]) -> Result<(), Failure> {
        let stop = pre.tracker.way().needs_stop();
        if mms.is_empty() {
            return Ok(());
        }
        let view = source.view();
        let mut stopped = freeze::stop_all(&PodTasks { cgroup: view.cgroup.clone(), init: view.init })?;
        for proc in &mut stopped.procs {
            let (mm, host) = (MmId(proc.pod_pid), proc.host_pid);
            if !mms.contains(&mm) || proc.leader_dead {
                continue;
            }
            let (mut session, _) = proc.session()?;
            if pre.last_pid.is_none() && !stop {
                let mut batch = Batch::new();
                let asked = asked::ask_last_pid(&mut batch);
                pre.last_pid = asked::last_pid(&asked, &session.run(&batch)?);
            }
            // On a busy host the descriptor may not be borrowed in time.
            let mut watched = pre.tracker.watch(mm, host, &mut BySession(&mut session));
            for _ in 0..WATCHES {
                if watched.is_ok() {
                    break;
                }
                watched = pre.tracker.watch(mm, host, &mut BySession(&mut session));
            }
            session.close()?;
            if let Err(e) = watched {
                let text =
                    format!("process {} is copied while it stands still: {}", mm.0, Failure::from(e).message);
                self.report.warnings.push(text);
                pre.whole.insert(mm);
            }
        }
        stopped.release()?;
        self.watch.lap("watch");
        Ok(())
    }

    /// The pod as it is now: its tree, sent if it changed, what was written, and whether the target has kept what it had.
    fn look(
        &mut self,
        source: &mut Source,
        pre: &mut Precopy,
        sent: &Tree,
    ) -> Result<(Tree, Round, Handles, bool), Failure> {
        let tree = settled_tree(source)?;
        let handles = source.handles()?;
        // At once: the older the list of mappings, the more of them are others by now.
        let round = if pre.tracker.way().needs_stop() {
            let view = source.view();
            let stopped = freeze::stop_all(&PodTasks { cgroup: view.cgroup.clone(), init: view.init })?;
            let round = pre.round(source, &tree, &handles, false)?;
            stopped.release()?;
            round
        } else {
            pre.round(source, &tree, &handles, false)?
        };
        let kept = match tree == *sent {
            true => true,
            false => pre.kept(self.send_tree(&tree)?, &tree, &handles),
        };
        self.watch.lap("look");
        Ok((tree, round, handles, kept))
    }

    /// Sends what a round found and waits until it is in place.
    fn send_round(
        &mut self,
        source: &Source,
        pre: &mut Precopy,
        round: Round,
        handles: &Handles,
    ) -> Result<(), Failure> {
        let (start, bytes) = (Instant::now(), round.bytes());
        self.stage(self.round_stage(pre, bytes))?;
        let (pages, sent) = (self.report.pages_sent, self.sink.sent());
        let reader = Reader::new(source.hosts(), handles, round.work)?.while_running();
        let feed = feed(reader)?;
        let mut pace = self.order.bandwidth.map(Pace::new);
        self.send_pages(&feed, pace.as_mut())?;
        self.sync()?;
        let us = start.elapsed().as_micros() as u64;
        pre.sent.push(Sent { bytes, us });
        self.report.rounds.push(Told {
            n: u32::try_from(pre.sent.len()).unwrap_or(u32::MAX),
            pages: self.report.pages_sent - pages,
            bytes: self.sink.sent() - sent,
            us,
        });
        self.watch.lap("round");
        Ok(())
    }

    /// Where we are as a round begins that sends `bytes`.
    fn round_stage(&self, pre: &Precopy, bytes: u64) -> Stage {
        let per_s = |bytes: u64, us: u64| bytes.saturating_mul(1_000_000) / us.max(1);
        let last = pre.sent.last();
        Stage {
            round: u32::try_from(pre.sent.len() + 1).unwrap_or(u32::MAX),
            bytes_left: bytes,
            bytes_sent: self.sink.sent(),
            rate: last.map_or(0, |s| per_s(s.bytes, s.us)),
            // What this round sends was written while the last one was sent.
            dirty_rate: last.map_or(0, |s| per_s(bytes, s.us)),
            expected_frozen_us: last.map_or(0, |_| rounds::predict(&pre.sent, bytes, &self.limits())),
            ..Stage::named("pre-copy")
        }
    }

    /// Waits until the target has put everything in place.
    pub(super) fn sync(&mut self) -> Result<(), Failure> {
        let timeout = self.order.patience();
        let channel = self.sink.channel()?;
        channel.message(&Message::Sync)?;
        match channel.expect(timeout)? {
            Message::Synced => Ok(()),
            other => Err(out_of_turn(channel, &other)),
        }
    }

    /// The work of the freeze: everything stands still, `tree` is the truth.
    pub(super) fn last_round(
        &self,
        source: &Source,
        pre: &mut Precopy,
        tree: &Tree,
        pids: &HostPids,
    ) -> Result<Feed, Failure> {
        let handles = source.handles()?;
        let round = pre.round(source, tree, &handles, true)?;
        if let Some(mm) = round.unwatched.iter().find(|mm| !pids.contains_key(mm)) {
            return Err(Failure::new(Kind::Failed, self.name(), format!("process {} cannot be found", mm.0)));
        }
        feed(Reader::new(pids, &handles, round.work)?)
    }

    /// As [`Mover::last_round`], for what the target lost when its tree changed; `None`: nothing.
    pub(super) fn lost_again(
        &mut self,
        source: &Source,
        pre: &mut Precopy,
        tree: &Tree,
        pids: &HostPids,
    ) -> Result<Option<Feed>, Failure> {
        let kept = self.built()?;
        if pre.kept(kept, tree, &source.handles()?) {
            return Ok(None);
        }
        self.last_round(source, pre, tree, pids).map(Some)
    }

    /// Sends a tree; whether what was sent before is still in place at the target, which has built it when this returns.
    pub(super) fn send_tree(&mut self, tree: &Tree) -> Result<Kept, Failure> {
        self.sink.record(&Record::Tree(Box::new(tree.clone())))?;
        self.built()
    }

    /// Waits for the target to have built the tree sent last; whether what it was sent before is still in place.
    pub(super) fn built(&mut self) -> Result<Kept, Failure> {
        let crate::migrate::sink::Sink::Peer(channel) = &mut self.sink else { return Ok((true, Vec::new())) };
        match channel.expect(ANSWER)? {
            Message::Built { kept, lost } => Ok((kept, lost)),
            other => Err(out_of_turn(channel, &other)),
        }
    }
}

/// Content of the address spaces that nobody watches, bytes: it comes in the freeze.
fn unwatched_bytes(source: &Source, tree: &Tree, round: &Round) -> u64 {
    let of = |layout: &&crate::state::mm::MmLayout| round.unwatched.contains(&layout.mm);
    let bytes = |layout: &crate::state::mm::MmLayout| {
        let pid = *source.hosts().get(&layout.mm)?;
        Some(memory::content::content_pages(pid, layout).ok()?.bytes())
    };
    tree.mms.iter().filter(of).filter_map(bytes).sum()
}

/// Starts the threads that read pages ahead of the stream.
pub(super) fn feed(reader: Reader) -> Result<Feed, Failure> {
    Feed::start(Arc::new(reader), READERS, DEFAULT_CHUNKS).map_err(|e| {
        let text = format!("cannot start a thread: {}", crate::kernel::errno_text(&e));
        Failure::new(Kind::Failed, "podmig", text)
    })
}
