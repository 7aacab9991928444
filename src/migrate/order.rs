//! What a user asked of a move or checkpoint, as data.

use super::progress::Form;
use crate::base::spec::Publish;
use crate::policy::hosts::Host;
use std::path::PathBuf;
use std::time::Duration;

/// Where the pod goes.
#[derive(Clone, Debug)]
pub enum Destination {
    /// To a host.
    Host(Host),
    /// Into a file.
    File(PathBuf),
    /// To standard output.
    Stdout,
}

impl Destination {
    /// As reports name it.
    pub fn name(&self) -> String {
        match self {
            Destination::Host(host) => host.name.clone(),
            Destination::File(path) => path.display().to_string(),
            Destination::Stdout => "-".to_owned(),
        }
    }
}

/// What to do when the rounds take too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnTimeout {
    /// Give up; the pod runs on here.
    Cancel,
    /// Freeze, however long that is.
    Freeze,
}

/// A whole order.
#[derive(Clone, Debug)]
pub struct Order {
    /// Where to.
    pub to: Destination,
    /// Only say what would be in the way.
    pub dry_run: bool,
    /// Pre-copy while it runs, then freeze; else it is frozen while everything is copied.
    pub live: bool,
    /// Longest frozen time wanted (live).
    pub max_downtime: Duration,
    /// Most bytes a second while the pod runs.
    pub bandwidth: Option<u64>,
    /// Compare all memory before the commit.
    pub verify: bool,
    /// What to do when the rounds take longer than `timeout`.
    pub on_timeout: OnTimeout,
    /// Give up after this long.
    pub timeout: Duration,
    /// Ports published at the target instead of those of the definition.
    pub publish: Option<Vec<Publish>>,
    /// The pod goes on here afterwards (image only).
    pub leave_running: bool,
    /// How progress is told.
    pub progress: Form,
}

/// How long one answer of the target may take at least, whatever the time for the whole move.
const PATIENCE: Duration = Duration::from_secs(60);

impl Order {
    /// How long to wait for one answer. The whole time is watched elsewhere, where it ends the move.
    pub fn patience(&self) -> Duration {
        self.timeout.max(PATIENCE)
    }

    /// After how long without a commit the target gives up by itself.
    pub fn deadline(&self) -> Duration {
        match self.on_timeout {
            OnTimeout::Cancel => self.timeout,
            // The freeze only begins then, and takes as long as it takes.
            OnTimeout::Freeze => self.timeout.saturating_mul(2).saturating_add(PATIENCE.saturating_mul(10)),
        }
    }
}
