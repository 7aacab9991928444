//! Stop-and-copy and commitment at the source: what happens between the last instruction here and the first there.
//!
//! Order, and why:
//! 0. while the pod runs: look at its connections, whose options then need not be asked in the freeze;
//! 1. hold and capture the link, so that no peer sees half a pod;
//! 2. stop every thread, read what needs the thread itself (batches);
//! 3. freeze the cgroup over the stops and let go of them: from here our death changes nothing, the pod stands still
//!    until its monitor thaws it;
//! 4. read descriptors and sockets (TCP in repair, which the monitor was told of before);
//! 5. send the pages and the state; the target builds meanwhile;
//! 6. `Prepared` → commit on disk → `Commit`. The point of no return.

use super::facts;
use super::live::{self, Precopy};
use super::pace::Pace;
use super::point;
use super::report::Outcome;
use super::resolve;
use super::sink::Sink;
use super::source::{LOG_TAIL, Mover, out_of_turn, tail};
use super::verify::{self, Digests};
use crate::base::AddrRange;
use crate::base::addr::PAGE;
use crate::base::{Decision, Failure, Kind};
use crate::freeze::{self, PodTasks, StoppedPod};
use crate::image::record::{NetFrame, Record};
use crate::kernel::errno_text;
use crate::kernel::sched::Haste;
use crate::memory::Reader;
use crate::memory::feed::Feed;
use crate::memory::reader::all_content;
use crate::net::{Capture, Engaged};
use crate::pod::moving::{self, Stage};
use crate::state::mm::MmId;
use crate::state::mm::restore::Special;
use crate::state::source::{HostPids, Source};
use crate::state::{PodState, Tree};
use crate::wire::message::Message;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// How long to wait for word of the pod's name after it runs there.
const NAMED: Duration = Duration::from_secs(1);
/// How long to wait for `Activated` while the target's kernel does not say that it has the `Commit`, and for the monitor's word then,
/// before the pod counts as in doubt.
const DOUBT: Duration = Duration::from_secs(5);
/// The same while the target's kernel has the `Commit` and its worker lives: something is slow there, a disk as a rule.
const SLOW: Duration = Duration::from_secs(60);

/// How often a pod is stopped anew because a thread was inside the vdso.
const VDSO_TRIES: u32 = 50;

/// A thread that stopped inside the kernel's vdso: its id in the pod.
fn inside_vdso(stopped: &StoppedPod, tree: &Tree, pids: &HashMap<MmId, i32>) -> Result<Option<i32>, Failure> {
    let spaces: HashMap<i32, AddrRange> =
        tree.mms.iter().filter_map(|mm| Some((*pids.get(&mm.mm)?, Special::of(mm).vdso?))).collect();
    for process in &stopped.procs {
        let Some(vdso) = spaces.get(&process.host_pid) else { continue };
        for thread in &process.threads {
            let regs = thread.stopped.regs().map_err(freeze::Error::from)?;
            if vdso.contains(regs.rip) {
                return Ok(Some(thread.pod_tid));
            }
        }
    }
    Ok(None)
}

impl Mover<'_> {
    pub(super) fn ask(&mut self, request: moving::Request) -> Result<moving::Reply, Failure> {
        self.client.moving(request)
    }

    /// Step 1, and what is done just before it.
    fn hold(&mut self, source: &mut Source, warm: bool) -> Result<(Capture, Haste), Failure> {
        if warm {
            let bytes_left = facts::resident(&self.cgroup);
            self.stage(Stage { bytes_left, ..Stage::named("stop-and-copy") })?;
        }
        source.look_ahead();
        let mut capture = Capture::open(self.netns()?.as_fd(), &self.pod.spec.net.mode)?;
        capture.start()?;
        self.watch.lap("capture");
        // With the memory copied ahead, little is left: no busy host may make it long. A long copy takes its turn.
        if !warm {
            self.sink.record(&Record::Frozen)?;
        }
        let haste = Haste::begin(true);
        self.held = Some(Instant::now());
        if let moving::Reply::Held { since_ns } = self.ask(moving::Request::Hold)? {
            capture.since(Engaged { since: UNIX_EPOCH + Duration::from_nanos(since_ns) });
        }
        self.watch.lap("hold");
        Ok((capture, haste))
    }

    /// Steps 1 to 5. On return the target has everything.
    pub(super) fn stop_and_copy(
        &mut self,
        source: &mut Source,
        sent: &Tree,
        mut pre: Option<&mut Precopy>,
    ) -> Result<Capture, Failure> {
        let warm = pre.is_none();
        let (capture, mut haste) = self.hold(source, warm)?;
        self.frozen = Some(Instant::now());
        let (mut stopped, tree, pids) = self.stop(source)?;
        // No batch runs after this: from here our death changes nothing.
        stopped.freeze_cgroup()?;
        let moving::Reply::Frozen { input, input_ended } = self.ask(moving::Request::Frozen)? else {
            return Err(Failure::new(Kind::Failed, self.name(), "its monitor answers something else"));
        };
        self.watch.lap("freeze");
        let changed = tree != *sent;
        if changed {
            self.sink.record(&Record::Tree(Box::new(tree.clone())))?;
        }
        let feed = match &mut pre {
            Some(pre) => self.last_round(source, pre, &tree, &pids)?,
            None => {
                drop(haste);
                let feed = read_all(source, &tree, &pids)?;
                haste = Haste::begin(true);
                feed
            }
        };
        self.watch.lap("scan");
        let client = &mut self.client;
        let collected = source.collect(&stopped, &mut |sockets| {
            client.moving(moving::Request::Repairing(sockets.to_vec())).map(|_| ())
        });
        // Before the outcome is looked at: a failure must not thaw the pod while its sockets are in repair; the
        // monitor gives back sockets, link and freezer in that order.
        stopped.leave_frozen()?;
        let mut snapshot = collected?;
        snapshot.state.input.extend(input);
        snapshot.state.input_ended = input_ended;
        self.report.connections.kept = snapshot.kept as u64;
        self.report.connections.lost = snapshot.lost as u64;
        self.report.warnings.extend(snapshot.warnings);
        self.watch.lap("collect");
        let again = match &mut pre {
            Some(pre) if changed => self.lost_again(source, pre, &tree, &pids)?,
            None if changed => self.built().map(|_| None)?,
            _ => None,
        };
        if warm {
            drop(haste);
        }
        for feed in [Some(feed), again].into_iter().flatten() {
            self.send_pages(&feed, None)?;
        }
        let _haste = Haste::begin(true);
        self.watch.lap("pages");
        let verify = self.order.verify || pre.is_some_and(|p| p.unsteady);
        self.send_state(source, snapshot.state, (&tree, &pids), verify)?;
        Ok(capture)
    }

    /// The last part of step 5; to verify also the hashes of all memory.
    fn send_state(
        &mut self,
        source: &Source,
        state: PodState,
        (tree, pids): (&Tree, &HostPids),
        verify: bool,
    ) -> Result<(), Failure> {
        // The monitor emptied the output pipes into the log when it was told of the freeze.
        let log = tail(&self.store.places.log(&self.pod.spec.id), LOG_TAIL);
        self.sink.record(&Record::Log(log))?;
        let masks = verify.then(|| verify::masks(tree, &state));
        self.sink.record(&Record::State(Box::new(state)))?;
        self.watch.lap("state");
        if let Some(masks) = masks {
            self.digests = Some(verify::digests(tree, pids, &source.handles()?, &masks)?);
            self.watch.lap("digest");
        }
        Ok(())
    }

    /// Everything stopped, no thread inside a function of the kernel's vdso: another kernel's data would not fit what it
    /// has read. Such a thread is let run on for a moment; those functions are over in no time.
    fn stop(&mut self, source: &mut Source) -> Result<(StoppedPod, Tree, HashMap<MmId, i32>), Failure> {
        let mut tries = 0;
        loop {
            let mut stopped = freeze::stop_all(&self.tasks(source))?;
            self.watch.lap("stop");
            let (tree, pids) = source.tree(&mut stopped)?;
            self.watch.lap("tree");
            let inside = if self.other_kernel { inside_vdso(&stopped, &tree, &pids)? } else { None };
            let Some(tid) = inside else { return Ok((stopped, tree, pids)) };
            stopped.release()?;
            tries += 1;
            if tries == VDSO_TRIES {
                let text = format!("thread {tid} is in the kernel's vdso whenever it is looked at");
                return Err(Failure::new(Kind::BeforeCommit, self.name(), text).remedy("try again"));
            }
        }
    }

    fn tasks(&self, source: &Source) -> PodTasks {
        PodTasks { cgroup: source.view().cgroup.clone(), init: source.view().init }
    }

    /// Sends what the feed reads, at the pace given.
    pub(super) fn send_pages(&mut self, feed: &Feed, mut pace: Option<&mut Pace>) -> Result<(), Failure> {
        let mut head = Vec::new();
        self.progress.begin(feed.total_bytes(), self.sink.sent());
        while let Some(chunk) = feed.next() {
            let chunk = chunk?;
            if let Some(pace) = &mut pace {
                pace.wait(chunk.data().len() as u64);
            }
            head.clear();
            head.extend_from_slice(&[0; 4]);
            chunk.encode_header(&mut head);
            let len = u32::try_from(head.len() - 4).unwrap_or(u32::MAX);
            head[..4].copy_from_slice(&len.to_le_bytes());
            self.sink.pages(&head, chunk.data())?;
            self.pages.0 += 1;
            self.pages.1 += (head.len() + chunk.data().len()) as u64;
            self.went(chunk.runs.iter().map(|r| r.len).sum())?;
            for run in &chunk.runs {
                let pages = run.len / PAGE;
                if run.zero {
                    self.report.zero_pages += pages;
                } else {
                    self.report.pages_sent += pages;
                }
            }
        }
        Ok(())
    }

    /// Step 6, into a peer; for an image: the end is written, then the pod ends or goes on here.
    pub(super) fn commit(&mut self, mut capture: Capture) -> Result<(), Failure> {
        match &mut self.sink {
            Sink::Peer(_) => self.commit_to_peer(&mut capture),
            Sink::File { .. } => self.close_image(&mut capture),
        }
    }

    fn commit_to_peer(&mut self, capture: &mut Capture) -> Result<(), Failure> {
        let haste = Haste::begin(true);
        self.sink.channel()?.message(&Message::Seal)?;
        match self.sink.channel()?.expect(self.order.patience())? {
            Message::Prepared { stages } => self.report.add_stages(&stages),
            other => return Err(out_of_turn(self.sink.channel()?, &other)),
        }
        self.watch.lap("prepared");
        if let Some(digests) = self.digests.take() {
            self.compare(digests)?;
        }
        let frames = frames(capture)?;
        self.sink.record(&Record::Frames(frames))?;
        if !point::pass() {
            return Err(self.cancelled());
        }
        self.ask(moving::Request::Commit)?;
        self.watch.lap("journal");
        // From here nothing may be taken back on our own account: every way out is the target's word, or doubt.
        let said = self.sink.channel().and_then(|c| c.message(&Message::Commit).map_err(Failure::from));
        let verdict = said.and_then(|()| self.await_activation(capture));
        let decision = match verdict {
            Ok(decision) => decision,
            Err(lost) => return self.settle_by_monitor(&lost),
        };
        // What the target did after the thaw, before it answered, is not frozen time.
        let after = self.report.stages.iter().filter(|s| s.name == "target.record").map(|s| s.us).sum();
        let now = Instant::now().checked_sub(Duration::from_micros(after)).unwrap_or_else(Instant::now);
        let us = |since: Option<Instant>| since.map_or(0, |t| now.duration_since(t).as_micros() as u64);
        self.report.frozen_us = us(self.frozen);
        self.report.downtime_us = us(self.held);
        self.watch.lap("activated");
        drop(haste);
        // If the monitor was killed, its frozen copy must not stay.
        let settled = self.ask(moving::Request::Settle(decision)).or_else(|_| {
            resolve::settle(self.store, &self.pod.spec.id, decision).map(|()| moving::Reply::Done)
        });
        match decision {
            Decision::Committed => {
                self.report.outcome = Outcome::Moved;
                if let Err(e) = settled {
                    self.report.warnings.push(format!("the source could not be cleaned up: {}", e.message));
                }
                self.watch.lap("cleanup");
                if let Ok(Message::Named(dns)) = self.sink.channel().and_then(|c| Ok(c.expect(NAMED)?)) {
                    self.report.dns = dns;
                }
                Ok(())
            }
            Decision::Aborted => Err(Failure::new(
                Kind::BeforeCommit,
                self.name(),
                format!("{} gave up before the commit arrived", self.order.to.name()),
            )),
        }
    }

    fn cancelled(&self) -> Failure {
        Failure::new(Kind::BeforeCommit, self.name(), "the move was cancelled")
    }

    /// The target compares the hashes of all memory with its own.
    fn compare(&mut self, digests: Digests) -> Result<(), Failure> {
        let timeout = self.order.patience();
        let channel = self.sink.channel()?;
        channel.message(&Message::Digest(digests))?;
        match channel.expect(timeout)? {
            Message::Verified => self.report.verified = true,
            other => return Err(out_of_turn(channel, &other)),
        }
        self.watch.lap("verify");
        Ok(())
    }

    /// Frames go on arriving here until the link is gone: they follow the commit.
    fn await_activation(&mut self, capture: &mut Capture) -> Result<Decision, Failure> {
        let start = Instant::now();
        let mut heard = start;
        self.sink.channel()?.patience(DOUBT);
        loop {
            let channel = self.sink.channel()?;
            if channel.wait_readable(Duration::from_millis(1))? {
                match channel.expect(DOUBT)? {
                    Message::Activated { stages, dns, publish: _ } => {
                        self.report.add_stages(&stages);
                        self.report.dns = dns;
                        return Ok(Decision::Committed);
                    }
                    Message::Decided(decision) => return Ok(decision),
                    other => return Err(out_of_turn(channel, &other)),
                }
            }
            let late = frames(capture)?;
            if !late.is_empty() {
                self.sink.record(&Record::Frames(late))?;
            }
            if self.sink.channel()?.delivered() {
                heard = Instant::now();
            }
            if start.elapsed() >= SLOW || heard.elapsed() >= DOUBT {
                let text = format!("no answer to the commit within {} s", start.elapsed().as_secs());
                return Err(Failure::new(Kind::InDoubt, self.name(), text));
            }
        }
    }

    /// Contact was lost after the commit: the monitor asks the target; we wait a while for what it learns.
    fn settle_by_monitor(&mut self, lost: &Failure) -> Result<(), Failure> {
        let to = self.order.to.name();
        match self.ask_through_monitor() {
            Some(Decision::Committed) => {
                self.report.outcome = Outcome::Moved;
                self.report.warnings.push(format!("contact was lost after the commit ({})", lost.message));
                Ok(())
            }
            Some(Decision::Aborted) => {
                Err(Failure::new(Kind::BeforeCommit, self.name(), format!("{to} did not take it: {}", lost.message)))
            }
            None => Err(Failure::new(
                Kind::InDoubt,
                self.name(),
                format!("{to} has not said whether it has the pod: {}", lost.message),
            )
            .remedy(format!(
                "the pod stays frozen here and goes on asking; if {to} is gone for good: `podmig resolve {} --here`",
                self.name()
            ))),
        }
    }

    /// Lets go of the pod (its monitor then asks the target itself) and waits for what it learns.
    fn ask_through_monitor(&mut self) -> Option<Decision> {
        // Its connection closes: for the monitor the mover is gone.
        self.client.hang_up();
        resolve::wait(self.store, &self.pod.spec.id, 2 * DOUBT)
    }

    /// The pod's network namespace.
    fn netns(&self) -> Result<std::fs::File, Failure> {
        let path = format!("/proc/{}/ns/net", self.info.init_pid.unwrap_or(0));
        std::fs::File::open(&path)
            .map_err(|e| Failure::new(Kind::Failed, path, format!("cannot open it: {}", errno_text(&e))))
    }

    fn close_image(&mut self, capture: &mut Capture) -> Result<(), Failure> {
        let frames = frames(capture)?;
        self.sink.record(&Record::Frames(frames))?;
        let (page_frames, page_bytes) = self.pages;
        self.sink.record(&Record::End { page_frames, page_bytes })?;
        self.report.bytes_sent = self.sink.sent();
        if !point::pass() {
            return Err(self.cancelled());
        }
        self.stage(Stage::named(Stage::COMMITMENT))?;
        self.sink.finish_image()?;
        self.watch.lap("sync");
        let end = if self.order.leave_running { moving::Request::Abort } else { moving::Request::Written };
        self.ask(end)?;
        self.report.outcome = Outcome::Checkpointed;
        self.report.frozen_us = self.frozen.map_or(0, |t| t.elapsed().as_micros() as u64);
        self.report.downtime_us = self.held.map_or(0, |t| t.elapsed().as_micros() as u64);
        Ok(())
    }
}

/// Reads all content of a stopped pod ahead of the stream.
fn read_all(source: &Source, tree: &Tree, pids: &HashMap<MmId, i32>) -> Result<Feed, Failure> {
    let handles = source.handles()?;
    let work = all_content(&tree.mms, pids, &handles)?;
    live::feed(Reader::new(pids, &handles, work)?)
}

/// What was captured since the last look, in the image's words.
fn frames(capture: &mut Capture) -> Result<Vec<NetFrame>, Failure> {
    let frames = capture.drain()?;
    Ok(frames.into_iter().map(|f| NetFrame { vnet_hdr: f.vnet_hdr.to_vec(), bytes: f.bytes }).collect())
}
