//! What a user is told when something fails: kind (and so the exit code), object, reason, remedy.
//!
//! Each room has its own error type; where an error reaches the command line it becomes a `Failure`
//! (`impl From<room::Error> for Failure`, written in that room).

use serde::{Deserialize, Serialize};
use std::fmt;

/// The kinds of failure; each has one exit code (DESIGN 10).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// 1: it failed.
    Failed,
    /// 2: wrong usage, or not yet supported.
    Usage,
    /// 3: no such pod.
    NoSuchPod,
    /// 4: refused before freezing; blockers are listed.
    Refused,
    /// 5: failed or cancelled before commit; the pod runs on the source.
    BeforeCommit,
    /// 6: in doubt: committed, no answer yet.
    InDoubt,
    /// 7: peer unreachable or not trusted.
    Unreachable,
    /// 8: the pod lives on another host.
    Elsewhere,
    /// 9: name, address or port taken.
    Taken,
    /// 124: `wait --timeout` ran out.
    Timeout,
    /// 126: the command is there but cannot be executed.
    CannotExecute,
    /// 127: the command was not found.
    NoSuchCommand,
}

impl Kind {
    /// The process exit code.
    pub fn code(self) -> i32 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::NoSuchPod => 3,
            Kind::Refused => 4,
            Kind::BeforeCommit => 5,
            Kind::InDoubt => 6,
            Kind::Unreachable => 7,
            Kind::Elsewhere => 8,
            Kind::Taken => 9,
            Kind::Timeout => 124,
            Kind::CannotExecute => 126,
            Kind::NoSuchCommand => 127,
        }
    }
}

/// One thing that cannot be carried, named before anything freezes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Blocker {
    /// Kind of state in a word or two, stable (`io_uring`, `tty`, `traced`, `missing-file`, …).
    pub kind: String,
    /// Pid inside the pod, if one process is concerned.
    pub pid: Option<i32>,
    /// Descriptor number, if one is concerned.
    pub fd: Option<i32>,
    /// Path, if one is concerned.
    pub path: Option<String>,
    /// What is met and why it cannot be carried.
    pub message: String,
    /// What the user can do.
    pub remedy: String,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(pid) = self.pid {
            write!(f, " pid {pid}")?;
        }
        if let Some(fd) = self.fd {
            write!(f, " fd {fd}")?;
        }
        if let Some(path) = &self.path {
            write!(f, " {path}")?;
        }
        write!(f, ": {}", self.message)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, " ({})", self.remedy) }
    }
}

/// A failure as the user sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// Kind, which sets the exit code.
    pub kind: Kind,
    /// The object concerned (pod, host, file, port), may be empty.
    pub object: String,
    /// What happened and why, one sentence without a full stop.
    pub message: String,
    /// What to do about it, may be empty.
    pub remedy: String,
    /// For `Refused`: everything in the way.
    pub blockers: Vec<Blocker>,
}

impl Failure {
    /// A failure without remedy or blockers.
    pub fn new(kind: Kind, object: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind,
            object: object.into(),
            message: message.into(),
            remedy: String::new(),
            blockers: Vec::new(),
        }
    }
    /// The same with a remedy.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
    /// A refusal that lists its blockers.
    pub fn refused(object: impl Into<String>, blockers: Vec<Blocker>) -> Self {
        let message = match blockers.len() {
            1 => "1 thing cannot be carried".to_owned(),
            n => format!("{n} things cannot be carried"),
        };
        Self { blockers, ..Self::new(Kind::Refused, object, message) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        f.write_str(&self.message)?;
        for b in &self.blockers {
            write!(f, "\n  {b}")?;
        }
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "\n  {}", self.remedy) }
    }
}

impl std::error::Error for Failure {}
