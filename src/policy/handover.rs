//! Who owns the pod: the commit protocol as two pure state machines, one for the monitor at each end.
//!
//! ```text
//! source:  Idle ─Begin→ Moving ─Commit→ Committed ─Verdict(Committed)→ Gone
//!                         │ Abort, mover gone: undo      └─Verdict(Aborted): undo → Idle
//! target:  Incoming ─Prepared→ Prepared ─Commit→ (record written) Owner
//!                         └─ worker gone, deadline, someone asks ─→ (record written) Aborted
//! ```
//! Invariants (tested below over random schedules with deaths at every event):
//! - the source never thaws after `Commit` was journalled unless the target's record says *aborted*;
//! - the target never activates unless its own record says *committed*;
//! - the record is written once; whoever comes second reads it.

use crate::base::Decision;

/// The source's monitor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Nobody is moving the pod.
    Idle,
    /// A mover holds the pod; whatever it did is undone when it goes.
    Moving {
        /// The cgroup is frozen over the ptrace stops.
        frozen: bool,
    },
    /// The journal says commit: only the target's record matters now.
    Committed {
        /// The mover that asked is still connected (and asks the target itself).
        mover: bool,
    },
    /// The pod lives elsewhere.
    Gone,
}

/// What happens to the source's monitor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceEvent {
    /// A mover wants the pod.
    Begin,
    /// The mover froze the cgroup.
    Frozen,
    /// The mover wants to send `Commit`.
    Commit,
    /// The mover gave up.
    Abort,
    /// The mover's connection closed.
    MoverGone,
    /// The target's record says so.
    Verdict(Decision),
    /// The target could not be asked.
    NoAnswer,
    /// The pod itself ended.
    PodEnded,
}

/// What the source's monitor does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceAction {
    /// Answer yes.
    Agree,
    /// Answer no.
    Deny,
    /// Write the commit record to disk, then answer yes.
    JournalCommit,
    /// Take everything back: sockets out of repair, hold lifted, then thaw.
    Undo,
    /// Ask the target what its record says (again, a little later).
    Ask,
    /// Destroy this copy: link away, kill, namespaces; leave the `moved` record.
    Destroy,
}

/// One step of the source.
pub fn source(state: Source, event: SourceEvent) -> (Source, Vec<SourceAction>) {
    use SourceAction as A;
    use SourceEvent as E;
    match (state, event) {
        (Source::Idle, E::Begin) => (Source::Moving { frozen: false }, vec![A::Agree]),
        (s, E::Begin) => (s, vec![A::Deny]),
        (Source::Moving { .. }, E::Frozen) => (Source::Moving { frozen: true }, vec![A::Agree]),
        (Source::Moving { frozen: true }, E::Commit) => {
            (Source::Committed { mover: true }, vec![A::JournalCommit])
        }
        // Without the freezer over the stops a dying mover would let the copy run on: no commit.
        (Source::Moving { frozen: false }, E::Commit) => (state, vec![A::Deny]),
        (Source::Moving { .. }, E::Abort) => (Source::Idle, vec![A::Undo, A::Agree]),
        (Source::Moving { .. }, E::MoverGone) => (Source::Idle, vec![A::Undo]),
        (Source::Committed { .. }, E::MoverGone) => (Source::Committed { mover: false }, vec![A::Ask]),
        (Source::Committed { .. }, E::Verdict(Decision::Committed)) => (Source::Gone, vec![A::Destroy]),
        (Source::Committed { .. }, E::Verdict(Decision::Aborted)) => (Source::Idle, vec![A::Undo]),
        (Source::Committed { mover: false }, E::NoAnswer) => (state, vec![A::Ask]),
        (Source::Committed { .. }, E::Commit) => (state, vec![A::Agree]),
        (s, E::Commit | E::Frozen) => (s, vec![A::Deny]),
        (s, _) => (s, Vec::new()),
    }
}

/// The target's monitor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Being built by a worker.
    Incoming,
    /// Every task lies detached in the frozen cgroup.
    Prepared,
    /// The record says committed: the pod is ours.
    Owner,
    /// The record says aborted, for ever.
    Aborted,
}

/// What happens to the target's monitor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetEvent {
    /// The worker says all tasks are detached under the freezer.
    Prepared,
    /// The source committed.
    Commit,
    /// The worker's connection closed.
    WorkerGone,
    /// The time for a commit is over.
    Deadline,
    /// Another worker asks what became of the attempt.
    Query,
    /// The record on disk: ours, or one that was there before.
    Recorded(Decision),
}

/// What the target's monitor does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetAction {
    /// Answer yes.
    Agree,
    /// Answer no.
    Deny,
    /// Write this record unless there is one; feed back `Recorded` with what stands.
    Record(Decision),
    /// Repair off, hold lifted, frames replayed, announce, thaw.
    Activate,
    /// Kill what was built and remove it.
    TearDown,
    /// Answer with the record.
    Tell(Decision),
}

/// One step of the target.
pub fn target(state: Target, event: TargetEvent) -> (Target, Vec<TargetAction>) {
    use TargetAction as A;
    use TargetEvent as E;
    match (state, event) {
        (Target::Incoming, E::Prepared) => (Target::Prepared, vec![A::Agree]),
        (Target::Prepared, E::Commit) => (state, vec![A::Record(Decision::Committed)]),
        (Target::Incoming, E::Commit) => (state, vec![A::Deny]),
        (Target::Incoming | Target::Prepared, E::WorkerGone | E::Deadline) => {
            (state, vec![A::Record(Decision::Aborted)])
        }
        (Target::Incoming | Target::Prepared, E::Query) => {
            (state, vec![A::Record(Decision::Aborted), A::Tell(Decision::Aborted)])
        }
        (Target::Incoming | Target::Prepared, E::Recorded(Decision::Aborted)) => {
            (Target::Aborted, vec![A::TearDown])
        }
        (Target::Prepared, E::Recorded(Decision::Committed)) => (Target::Owner, vec![A::Activate, A::Agree]),
        (Target::Owner, E::Query) => (state, vec![A::Tell(Decision::Committed)]),
        (Target::Aborted, E::Query) => (state, vec![A::Tell(Decision::Aborted)]),
        (Target::Owner, E::Commit) => (state, vec![A::Agree]),
        (Target::Aborted, E::Commit) => (state, vec![A::Deny]),
        (s, E::Prepared) => (s, vec![A::Deny]),
        (s, _) => (s, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Both ends in memory, with the disk record between them.
    struct World {
        source: Source,
        target: Target,
        record: Option<Decision>,
        /// Journal of the source: commit written.
        journal: bool,
        source_runs: bool,
        target_runs: bool,
        destroyed: bool,
        mover: bool,
        worker: bool,
        commit_on_wire: bool,
        asking: bool,
    }

    impl World {
        fn new() -> Self {
            World {
                source: Source::Idle,
                target: Target::Incoming,
                record: None,
                journal: false,
                source_runs: true,
                target_runs: false,
                destroyed: false,
                mover: true,
                worker: true,
                commit_on_wire: false,
                asking: false,
            }
        }
        fn source(&mut self, event: SourceEvent) -> bool {
            let (next, actions) = source(self.source, event);
            self.source = next;
            let mut agreed = false;
            for a in actions {
                match a {
                    SourceAction::Agree => agreed = true,
                    SourceAction::Deny => {}
                    SourceAction::JournalCommit => {
                        self.journal = true;
                        agreed = true;
                    }
                    SourceAction::Undo => {
                        assert!(
                            !self.journal || self.record == Some(Decision::Aborted),
                            "thawed after commit"
                        );
                        self.journal = false;
                        self.source_runs = true;
                    }
                    SourceAction::Ask => self.asking = true,
                    SourceAction::Destroy => {
                        assert_eq!(self.record, Some(Decision::Committed));
                        self.source_runs = false;
                        self.destroyed = true;
                    }
                }
            }
            agreed
        }
        fn target(&mut self, event: TargetEvent) -> bool {
            let (next, actions) = target(self.target, event);
            self.target = next;
            let mut agreed = false;
            for a in actions {
                match a {
                    TargetAction::Record(d) => {
                        let stands = *self.record.get_or_insert(d);
                        agreed |= self.target(TargetEvent::Recorded(stands));
                    }
                    TargetAction::Activate => {
                        assert_eq!(self.record, Some(Decision::Committed));
                        self.target_runs = true;
                    }
                    TargetAction::TearDown => self.target_runs = false,
                    TargetAction::Agree => agreed = true,
                    TargetAction::Deny | TargetAction::Tell(_) => {}
                }
            }
            agreed
        }
        /// One thing happens; `step` picks which.
        fn step(&mut self, step: u8) {
            match step % 10 {
                0 if self.mover => {
                    self.source(SourceEvent::Begin);
                }
                1 if self.mover && matches!(self.source, Source::Moving { .. }) => {
                    self.source_runs = false;
                    self.source(SourceEvent::Frozen);
                }
                2 if self.worker && !self.source_runs && !self.destroyed => {
                    let _ = self.target(TargetEvent::Prepared);
                }
                3 if self.mover && self.target == Target::Prepared => {
                    self.commit_on_wire |= self.source(SourceEvent::Commit);
                }
                4 if self.worker && self.commit_on_wire => {
                    self.target(TargetEvent::Commit);
                }
                5 if self.mover => {
                    self.mover = false;
                    self.source(SourceEvent::MoverGone);
                }
                6 if self.worker => {
                    self.worker = false;
                    self.target(TargetEvent::WorkerGone);
                }
                7 => {
                    self.target(TargetEvent::Deadline);
                }
                8 if self.asking => self.ask(),
                9 if self.mover && self.target == Target::Owner => {
                    self.source(SourceEvent::Verdict(Decision::Committed));
                }
                _ => {}
            }
            assert!(!(self.source_runs && self.target_runs), "two copies");
        }
        /// What a query worker does: the record if there is one, else it has it written.
        fn ask(&mut self) {
            self.target(TargetEvent::Query);
            let stands = *self.record.get_or_insert(Decision::Aborted);
            self.asking = false;
            self.source(SourceEvent::Verdict(stands));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn exactly_one_copy_whatever_dies(steps in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut w = World::new();
            for s in steps {
                w.step(s);
            }
            // Everyone dies; then the target is reachable.
            w.step(5);
            w.step(6);
            if w.asking {
                w.ask();
            }
            assert!(w.source_runs ^ w.target_runs, "{:?} {:?}", w.source, w.target);
        }
    }

    #[test]
    fn the_straight_way() {
        let mut w = World::new();
        for s in [0, 1, 2, 3, 4, 9] {
            w.step(s);
        }
        assert!(w.target_runs && w.destroyed && w.source == Source::Gone);
    }

    #[test]
    fn no_commit_without_the_freezer() {
        let (s, a) = source(Source::Moving { frozen: false }, SourceEvent::Commit);
        assert_eq!((s, a), (Source::Moving { frozen: false }, vec![SourceAction::Deny]));
    }
}
