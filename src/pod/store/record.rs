//! What this host knows of one pod: its definition and its state, as kept on disk.

use crate::base::MoveId;
use crate::base::spec::PodSpec;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// Version of the record file; a newer one than ours is refused by name.
pub const SCHEMA: u32 = 1;

/// State of a pod as users see it (a pod being moved is `running`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It runs (or is being started).
    Running,
    /// All its tasks are frozen on the user's demand.
    Paused,
    /// It is arriving from another host or being restored from a file.
    Incoming,
    /// Committed to another host that has not answered yet.
    InDoubt,
    /// It ended; status and log are kept.
    Exited,
    /// Written to a file and stopped.
    Checkpointed,
    /// It lives on another host.
    Moved,
    /// Its monitor died or the host restarted.
    Lost,
}

impl Status {
    /// The word used in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Incoming => "incoming",
            Status::InDoubt => "in-doubt",
            Status::Exited => "exited",
            Status::Checkpointed => "checkpointed",
            Status::Moved => "moved",
            Status::Lost => "lost",
        }
    }
    /// Whether processes of the pod exist here (or may): shown by `ps` without `-a`.
    pub fn is_here(self) -> bool {
        matches!(self, Status::Running | Status::Paused | Status::Incoming | Status::InDoubt)
    }
    /// Whether `podmig start POD` may start it again.
    pub fn is_ended(self) -> bool {
        matches!(self, Status::Exited | Status::Lost)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One process of this host for its life: a pid alone may be used again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcId {
    /// Host pid.
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/PID/stat` field 22).
    pub start: u64,
    /// Boot id of the kernel it runs on.
    pub boot: String,
}

impl ProcId {
    /// The calling process.
    pub fn me() -> ProcId {
        let pid = std::process::id().cast_signed();
        Self::of(pid).unwrap_or(ProcId { pid, start: 0, boot: boot_id() })
    }
    /// The process `pid`; `None` when there is none.
    pub fn of(pid: i32) -> Option<ProcId> {
        let stat = procfs::process::Process::new(pid).ok()?.stat().ok()?;
        Some(ProcId { pid, start: stat.starttime, boot: boot_id() })
    }
    /// Whether it still runs (a zombie does not).
    pub fn alive(&self) -> bool {
        if self.boot != boot_id() {
            return false;
        }
        let Ok(stat) = procfs::process::Process::new(self.pid).and_then(|p| p.stat()) else { return false };
        stat.starttime == self.start && !matches!(stat.state, 'Z' | 'X')
    }
}

fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// A commit under way: which attempt, and whom to ask what became of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MoveMark {
    /// The attempt.
    pub move_id: MoveId,
    /// Name of the target.
    pub to: String,
}

/// What this host knows of one pod.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of this file's form.
    pub schema: u32,
    /// The definition.
    pub spec: PodSpec,
    /// State as last written; [`super::Store`] turns a dead `running` into `lost` when it reads.
    pub status: Status,
    /// When the name was taken.
    pub created: Timestamp,
    /// When CMD was last started; `None` until it is up.
    pub started: Option<Timestamp>,
    /// When the pod ended.
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// Counts moves and restores of this id; the DNS entry carries it.
    pub generation: u64,
    /// The monitor; before there is one, the process that is starting the pod.
    pub monitor: Option<ProcId>,
    /// Host pid of the pod's pid 1.
    #[serde(default)]
    pub init_pid: Option<i32>,
    /// CMD's host pid.
    #[serde(default)]
    pub cmd_pid: Option<i32>,
    /// CMD's status once over (128+N by signal).
    #[serde(default)]
    pub exit_status: Option<i32>,
    /// The address others reach the pod at.
    #[serde(default)]
    pub ip: Option<IpAddr>,
    /// Host it moved to (or is in doubt with).
    #[serde(default)]
    pub moved_to: Option<String>,
    /// A commit that was written down and not yet answered.
    #[serde(default)]
    pub moving: Option<MoveMark>,
    /// While `incoming`: what this host knew of the same id before, taken up again if nothing comes of it.
    #[serde(default)]
    pub previous: Option<Box<Record>>,
}

impl Record {
    /// A record for a pod that is about to start or arrive, owned by the calling process.
    pub fn new(spec: PodSpec, status: Status) -> Record {
        Record {
            schema: SCHEMA,
            spec,
            status,
            created: Timestamp::now(),
            started: None,
            ended: None,
            generation: 1,
            monitor: Some(ProcId::me()),
            init_pid: None,
            cmd_pid: None,
            exit_status: None,
            ip: None,
            moved_to: None,
            moving: None,
            previous: None,
        }
    }

    /// Whether the process that answers for the pod runs.
    pub fn owner_alive(&self) -> bool {
        self.monitor.as_ref().is_some_and(ProcId::alive)
    }

    /// The record as a reader must take it: `None` for a reservation whose starter died before anything ran;
    /// `lost` for a pod whose monitor is gone. `in-doubt` stays: the pod may live at the other end.
    pub fn settled(self) -> Option<Record> {
        if !matches!(self.status, Status::Running | Status::Paused | Status::Incoming) || self.owner_alive() {
            return Some(self);
        }
        if self.started.is_none() {
            return self.previous.and_then(|p| p.settled());
        }
        Some(Record { status: Status::Lost, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_more_than_its_pid() {
        let me = ProcId::me();
        assert!(me.alive());
        assert!(!ProcId { start: me.start + 1, ..me.clone() }.alive());
        assert!(!ProcId { boot: "another boot".into(), ..me }.alive());
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = ProcId::of(child.id().cast_signed()).unwrap();
        // Wait for the state without reaping: WNOWAIT leaves the zombie.
        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        let pid = nix::unistd::Pid::from_raw(id.pid);
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        assert!(!id.alive());
        child.wait().unwrap();
        assert!(!id.alive());
    }
}
