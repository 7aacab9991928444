//! A pod changing hosts, as its monitors see it: what movers and workers ask, and what is done about it.
//!
//! The monitor is the one that stays when a mover dies. At the source it takes everything back before the commit
//! point, and after it carries on ([`guard`]); at the target it alone decides, records and activates ([`arrival`]).
//! Who may do what when is `policy::handover`, pure; here are the deeds.

mod arrival;
mod guard;
mod late_locks;

pub use guard::CANCEL;

use super::client::Client;
use super::monitor::{ConnId, Monitor};
use super::proto;
use crate::base::{Decision, Failure, Kind, MoveId};
use crate::net::Frame;
use crate::state::fd::restore::{SocketFile, Waking};
use crate::state::file::FileLock;
use crate::state::inet::collect::RepairedSocket;
use serde::{Deserialize, Serialize};
use std::os::fd::{BorrowedFd, OwnedFd};

/// What a mover (at the source) or a worker (at the target) asks.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Source: this connection moves the pod from now on; when it closes before `Commit`, all is taken back.
    Begin {
        /// The attempt.
        move_id: MoveId,
        /// Name of the target, or of the image file.
        to: String,
    },
    /// Source: for `ps`.
    Stage(Stage),
    /// Source: stop every frame on the pod's link.
    Hold,
    /// Source: the pod's cgroup is frozen and nothing is traced any more.
    Frozen,
    /// Source: these sockets are about to be put in repair.
    Repairing(Vec<RepairedSocket>),
    /// Source: `Commit` is about to be sent. Answered when it is on disk.
    Commit,
    /// Source: the target's record says so. Answered when it is done.
    Settle(Decision),
    /// Source: the image is complete; the pod ends here, as `checkpointed`.
    Written,
    /// Source: take everything back. Answered when the pod runs.
    Abort,
    /// Target: this connection builds the pod.
    Arrive {
        /// The attempt.
        move_id: MoveId,
        /// The monitor gives up by itself after so many milliseconds.
        deadline_ms: u64,
    },
    /// Target: sockets in repair (descriptors beside), to be switched on at activation.
    Sockets(Vec<Waking>),
    /// Target: file locks (one list for each descriptor beside) that somebody still holds, the source's copy as a rule: to be
    /// taken as soon as they are free. With the process they are to be taken in and the number there, or none.
    Locks(Vec<LockList>),
    /// Target: every task lies detached in the frozen cgroup.
    Prepared(Arrival),
    /// Target: the source committed; frames to replay. Answered when the pod runs.
    Own {
        /// Frames captured at the source.
        frames: Vec<Frame>,
    },
    /// Target: nothing will come of it. Answered when all that was made is gone.
    GiveUp,
    /// Target: has this attempt been decided? Undecided ones are aborted now.
    Query(MoveId),
    /// Source, from anyone: end the move under way before its commit. Answered when everything was taken back.
    Cancel,
}

/// Locks, and the process (pid in the pod, descriptor) they belong to if they do.
pub type LockList = (Vec<FileLock>, Option<(i32, i32)>);

/// A move in progress, as `ps` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct Stage {
    /// Name of the target.
    pub to: String,
    /// Stage (`reservation`, `pre-copy`, `stop-and-copy`, …).
    pub stage: String,
    /// Round of pre-copy.
    pub round: u32,
    /// Bytes still to send.
    pub bytes_left: u64,
    /// Expected frozen time, microseconds; 0: not known.
    pub expected_frozen_us: u64,
    /// Bytes sent so far.
    #[serde(default)]
    pub bytes_sent: u64,
    /// Bytes a second sent lately; 0: not known.
    #[serde(default)]
    pub rate: u64,
    /// Bytes a second the pod writes to its memory; 0: not known.
    #[serde(default)]
    pub dirty_rate: u64,
}

impl Stage {
    /// The stage from which on nothing is cancelled any more.
    pub const COMMITMENT: &str = "commitment";

    /// A stage of which nothing but the name is known; [`Stage::to`] is filled in by who tells it.
    pub fn named(stage: &str) -> Self {
        Self { stage: stage.to_owned(), ..Self::default() }
    }
}

/// What the target's monitor must know of the pod it now has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Arrival {
    /// CMD's pid in the pod; 0 if it is over.
    pub cmd_pid: i32,
    /// CMD's pid on this host; 0 if it is over.
    pub cmd_host_pid: i32,
    /// CMD's wait status if it is over.
    pub cmd_status: Option<i32>,
    /// CLOCK_MONOTONIC and CLOCK_BOOTTIME of the pod at the freeze, nanoseconds: no less may be seen here.
    pub clocks: (i64, i64),
    /// CLOCK_REALTIME at the freeze, nanoseconds.
    pub realtime_ns: i64,
    /// When CMD was started first.
    pub started: Option<jiff::Timestamp>,
    /// Last part of the log.
    pub log_tail: Vec<u8>,
    /// Files of unix sockets, to be brought to their places.
    pub socket_files: Vec<SocketFile>,
    /// What it has not read of its standard input.
    pub input: Vec<u8>,
    /// Nothing more will come.
    pub input_ended: bool,
    /// Host pids of what `exec` runs: its callers stayed behind, as a lost terminal.
    pub hang_up: Vec<i32>,
}

/// The monitor's answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// The link is held; frames stamped earlier (nanoseconds since the epoch) have passed.
    Held {
        /// Nanoseconds since the epoch.
        since_ns: u64,
    },
    /// The pod stands still, and its standard input with it.
    Frozen {
        /// What came for it and did not fit into its pipe.
        input: Vec<u8>,
        /// Nothing more will come.
        input_ended: bool,
    },
    /// No, and why.
    Denied(String),
    /// The pod runs here.
    Activated {
        /// Where the time went: name, microseconds.
        stages: Vec<(String, u64)>,
    },
    /// What stands.
    Decided(Decision),
}

/// What a monitor remembers of a move.
#[derive(Default)]
pub struct State {
    guard: Option<guard::Guard>,
    arrival: Option<arrival::Incoming>,
    /// For `ps`.
    pub stage: Option<Stage>,
}

impl State {
    /// Whether somebody has said that he builds the arriving pod.
    pub(super) fn arriving(&self) -> bool {
        self.arrival.is_some()
    }

    /// Whether the pod is being handed over: from the hold on, what acts on it would be lost or undo the hand-over.
    pub(super) fn handing_over(&self) -> bool {
        self.guard.as_ref().is_some_and(guard::Guard::holds)
    }
}

impl Monitor {
    pub(super) fn answer_move(&mut self, conn: ConnId, reply: Reply, fds: Vec<OwnedFd>) {
        self.reply(conn, proto::Reply::Move(reply), fds);
    }

    /// Where the move under way is, `None` when it is over; those who follow it are told.
    fn set_stage(&mut self, stage: Option<Stage>) {
        if self.moving.stage != stage {
            self.moving.stage.clone_from(&stage);
            self.event(&proto::Event::Move(stage));
        }
    }
}

/// A request; it is answered exactly once.
pub fn handle(monitor: &mut Monitor, conn: ConnId, request: Request, fds: Vec<OwnedFd>) {
    match request {
        Request::Arrive { .. }
        | Request::Sockets(_)
        | Request::Locks(_)
        | Request::Prepared(_)
        | Request::Own { .. }
        | Request::GiveUp
        | Request::Query(_) => arrival::handle(monitor, conn, request, fds),
        _ => guard::handle(monitor, conn, request),
    }
}

/// A connection was closed: if it was the mover's, nobody else will end what it began.
pub fn closed(monitor: &mut Monitor, conn: ConnId) {
    guard::closed(monitor, conn);
    arrival::closed(monitor, conn);
}

/// After every wake-up of the monitor.
pub fn tick(monitor: &mut Monitor) {
    guard::tick(monitor);
    arrival::tick(monitor);
}

impl Client {
    /// Asks the monitor something about a move.
    ///
    /// # Errors
    /// It said no, or is gone.
    pub fn moving(&mut self, request: Request) -> Result<Reply, Failure> {
        self.moving_with(request, &[])
    }

    /// The same with descriptors.
    ///
    /// # Errors
    /// As [`Client::moving`].
    pub fn moving_with(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, Failure> {
        let odd = |text: String| Failure::new(Kind::Failed, "the pod's monitor", text);
        match self.request(&proto::Request::Move(request), fds)?.0 {
            proto::Reply::Move(Reply::Denied(reason)) => Err(Failure::new(Kind::Failed, self.name(), reason)),
            proto::Reply::Move(reply) => Ok(reply),
            proto::Reply::Failed(failure) => Err(failure),
            other => Err(odd(format!("an answer that does not fit: {other:?}"))),
        }
    }
}
