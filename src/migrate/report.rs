//! The report of a move, checkpoint or restore: where the time and the bytes went (DESIGN 10).

use crate::base::{Blocker, Failure, PodId};
use serde::Serialize;
use std::time::Instant;

/// One stage with its length.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Stage {
    /// Name, `source.…` or `target.…`.
    pub name: String,
    /// Length in microseconds.
    pub us: u64,
}

/// One round of pre-copy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Round {
    /// Number from 1.
    pub n: u32,
    /// Pages sent.
    pub pages: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// Length in microseconds.
    pub us: u64,
}

/// Connections to the world outside the pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Default)]
pub struct Connections {
    /// Live on with the pod.
    pub kept: u64,
    /// Live on through the old host.
    pub forwarded: u64,
    /// Lost.
    pub lost: u64,
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Outcome {
    Moved,
    Checkpointed,
    Restored,
    Refused,
    Failed,
    Cancelled,
    InDoubt,
}

/// What `--dry-run` foretells.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Predicted {
    /// Expected frozen time, microseconds.
    pub frozen_us: u64,
    /// Upper bound of it, microseconds.
    pub frozen_us_max: u64,
    /// Expected total time, microseconds.
    pub total_us: u64,
    /// Bytes that would be sent.
    pub bytes: u64,
}

/// The report, as printed by `--json`.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Report {
    pub schema: u32,
    pub pod: String,
    pub id: PodId,
    pub from: String,
    pub to: String,
    pub mode: String,
    pub tracker: String,
    pub outcome: Outcome,
    pub reason: Option<String>,
    pub frozen_us: u64,
    pub downtime_us: u64,
    pub total_us: u64,
    pub rounds: Vec<Round>,
    pub pages_sent: u64,
    pub zero_pages: u64,
    pub bytes_sent: u64,
    pub stages: Vec<Stage>,
    pub connections: Connections,
    pub verified: bool,
    pub dns: String,
    pub warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub would_move: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<Blocker>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Predicted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<FailureJson>,
}

/// A failure in JSON.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[allow(missing_docs)]
pub struct FailureJson {
    pub code: i32,
    #[serde(flatten)]
    pub failure: Failure,
}

impl Report {
    /// A report in which nothing has happened yet.
    pub fn new(pod: &str, id: &PodId, from: &str, to: &str, mode: &str) -> Self {
        Self {
            schema: 1,
            pod: pod.to_owned(),
            id: id.clone(),
            from: from.to_owned(),
            to: to.to_owned(),
            mode: mode.to_owned(),
            tracker: "none".to_owned(),
            outcome: Outcome::Failed,
            reason: None,
            frozen_us: 0,
            downtime_us: 0,
            total_us: 0,
            rounds: Vec::new(),
            pages_sent: 0,
            zero_pages: 0,
            bytes_sent: 0,
            stages: Vec::new(),
            connections: Connections::default(),
            verified: false,
            dns: "none".to_owned(),
            warnings: Vec::new(),
            would_move: None,
            blockers: Vec::new(),
            predicted: None,
            error: None,
        }
    }

    /// Adds stages measured at the other end.
    pub fn add_stages(&mut self, stages: &[(String, u64)]) {
        self.stages.extend(stages.iter().map(|(name, us)| Stage { name: name.clone(), us: *us }));
    }

    /// Ends the report of a move that was cancelled.
    pub fn cancel(&mut self, failure: &Failure) {
        self.fail(failure);
        self.outcome = Outcome::Cancelled;
    }

    /// Ends the report with a failure; the outcome follows from its kind.
    pub fn fail(&mut self, failure: &Failure) {
        use crate::base::Kind;
        self.outcome = match failure.kind {
            Kind::Refused | Kind::NoSuchPod | Kind::Usage | Kind::Elsewhere | Kind::Taken => Outcome::Refused,
            Kind::InDoubt => Outcome::InDoubt,
            _ => Outcome::Failed,
        };
        self.reason = Some(failure.message.clone());
        self.blockers.clone_from(&failure.blockers);
        self.error = Some(FailureJson { code: failure.kind.code(), failure: failure.clone() });
    }
}

/// A stopwatch whose laps are stages.
pub struct Stopwatch {
    side: &'static str,
    started: Instant,
    last: Instant,
    /// Laps so far.
    pub stages: Vec<Stage>,
}

impl Stopwatch {
    /// Starts; `side` is `source` or `target`.
    pub fn start(side: &'static str) -> Self {
        let now = Instant::now();
        Self { side, started: now, last: now, stages: Vec::new() }
    }
    /// Ends a stage here and begins the next.
    pub fn lap(&mut self, name: &str) {
        let now = Instant::now();
        let us = now.duration_since(self.last).as_micros() as u64;
        self.stages.push(Stage { name: format!("{}.{name}", self.side), us });
        self.last = now;
    }
    /// Microseconds since the start.
    pub fn total_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }
    /// The laps in the form that crosses the wire.
    pub fn pairs(&self) -> Vec<(String, u64)> {
        self.stages.iter().map(|s| (s.name.clone(), s.us)).collect()
    }
}
