//! Control messages between the two ends of a migration.

use super::hello::Hello;
use crate::base::{Decision, Failure, MoveId, PodId};
use crate::image::record::Manifest;
use crate::kernel::features::Finding;
use serde::{Deserialize, Serialize};

/// One stage of the report: its name and length in microseconds.
pub type Stage = (String, u64);

/// A control message. Whoever has nothing more to say closes; a reason always goes before.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Message {
    /// First, from both sides.
    Hello(Box<Hello>),
    /// Source: take this pod.
    Reserve {
        /// The attempt.
        move_id: MoveId,
        /// The pod.
        manifest: Box<Manifest>,
        /// Published ports, address and the like given for the target alone.
        publish: Option<Vec<crate::base::spec::Publish>>,
        /// Restore although the original may still be there.
        takeover: bool,
        /// The target gives up by itself after so many milliseconds without `Commit`.
        deadline_ms: u64,
        /// Only say what would be in the way.
        dry_run: bool,
    },
    /// Target: reserved.
    Reserved,
    /// Target: the tree sent last stands as a skeleton; pages may come.
    Built {
        /// What was sent before is still in place; else the skeleton was built from the beginning.
        kept: bool,
        /// What is not in place all the same: process and range.
        lost: Vec<(i32, u64, u64)>,
    },
    /// Source: say when everything up to here is in place.
    Sync,
    /// Target: it is.
    Synced,
    /// Source: everything was sent; are you prepared?
    Seal,
    /// Target: every task is detached in a frozen cgroup under my monitor.
    Prepared {
        /// Where the time went.
        stages: Vec<Stage>,
    },
    /// Source: it is yours. The point of no return.
    Commit,
    /// Target: it runs here.
    Activated {
        /// Where the time went.
        stages: Vec<Stage>,
        /// State of the DNS update: `none`, `done`, `pending`.
        dns: String,
        /// Published ports as they are here.
        publish: Vec<crate::base::spec::Publish>,
    },
    /// Target, after `Activated`: state of the pod's name (`none`, `done`, `pending`).
    Named(String),
    /// Source: forget it.
    Abort,
    /// Target: forgotten, and recorded so.
    Aborted,
    /// Either side: no, and why.
    Refused(Failure),
    /// Source, later: what became of this attempt?
    Query {
        /// The attempt.
        move_id: MoveId,
        /// The pod.
        pod: PodId,
    },
    /// Target: this.
    Decided(Decision),
    /// Source, after `Prepared`: hashes of all memory for `--verify`, by name of the space and mapping.
    Digest(Vec<(String, u64)>),
    /// Target: they are the same here.
    Verified,
    /// What works on your host?
    Check,
    /// This does, and this does not.
    Checked(Vec<Finding>),
}

impl Message {
    /// Its name, for errors.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) => "hello",
            Message::Reserve { .. } => "reserve",
            Message::Reserved => "reserved",
            Message::Built { .. } => "built",
            Message::Sync => "sync",
            Message::Synced => "synced",
            Message::Seal => "seal",
            Message::Prepared { .. } => "prepared",
            Message::Commit => "commit",
            Message::Activated { .. } => "activated",
            Message::Named(_) => "named",
            Message::Abort => "abort",
            Message::Aborted => "aborted",
            Message::Refused(_) => "refused",
            Message::Query { .. } => "query",
            Message::Decided(_) => "decided",
            Message::Digest(_) => "digest",
            Message::Verified => "verified",
            Message::Check => "check",
            Message::Checked(_) => "checked",
        }
    }
}
