//! Processes and threads: ids, family, sessions, limits, and the per-process bundle of all other kinds.

pub mod asked;
pub mod collect;
pub mod plan;
pub mod restore;

use super::{cpu, cred, fd, signal, timer};
use serde::{Deserialize, Serialize};

/// A process's place in the family; enough to fork its skeleton.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcNode {
    /// Pid in the pod.
    pub pid: i32,
    /// Parent's pid in the pod (1 = the pod's init, 0 = outside: an exec session or CMD's spawner).
    pub ppid: i32,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Signal sent to the parent at exit (usually SIGCHLD).
    pub exit_signal: i32,
    /// Thread ids, the leader (== pid) first.
    pub tids: Vec<i32>,
    /// Wait status (as in `waitpid`) of a process that ended and was not reaped.
    pub zombie: Option<i32>,
    /// Name (`comm`), needed for zombies.
    pub comm: Vec<u8>,
}

/// Everything of a live process that is not memory.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ProcessState {
    /// Pid in the pod.
    pub pid: i32,
    /// Threads, leader first, same order as `ProcNode::tids`.
    pub threads: Vec<ThreadState>,
    /// Signal handlers and the process-wide queue.
    pub signals: signal::ProcessSignals,
    /// Timers.
    pub timers: timer::Timers,
    /// Descriptor table.
    pub fds: Vec<fd::FdEntry>,
    /// Current directory, as seen from the pod's root.
    pub cwd: Vec<u8>,
    /// Root directory, as seen from the pod's root (`/` unless it called chroot).
    pub root: Vec<u8>,
    /// File mode creation mask.
    pub umask: u32,
    /// (RLIMIT number, soft, hard), all of them.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// `/proc/P/oom_score_adj`.
    pub oom_score_adj: i32,
    /// `PR_GET_DUMPABLE`.
    pub dumpable: i32,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub subreaper: bool,
    /// `PR_GET_THP_DISABLE`.
    pub thp_disable: bool,
    /// `personality(2)`.
    pub personality: u32,
    /// Stopped by job control with this signal.
    pub stopped: Option<i32>,
    /// `/proc/P/coredump_filter`.
    pub coredump_filter: u32,
    /// Flags of mlockall(2) for mappings to come (`MCL_FUTURE`, `MCL_ONFAULT`), 0 if none.
    pub lock_future: i32,
    /// membarrier registrations (`MEMBARRIER_CMD_GET_REGISTRATIONS` bits), 0 if none or unknown.
    pub membarrier: u32,
}

/// Everything of one thread.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ThreadState {
    /// Thread id in the pod.
    pub tid: i32,
    /// Name (`comm`), without newline.
    pub comm: Vec<u8>,
    /// Registers and what hangs on them.
    pub cpu: cpu::CpuState,
    /// Mask, own queue, alternate stack.
    pub signals: signal::ThreadSignals,
    /// Credentials (per thread in the kernel).
    pub cred: cred::Cred,
    /// `PR_GET_PDEATHSIG`.
    pub pdeath_signal: i32,
    /// Policy, priority, nice, affinity.
    pub sched: Sched,
}

/// Scheduling attributes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct Sched {
    /// `sched_getscheduler` (with SCHED_RESET_ON_FORK).
    pub policy: i32,
    /// Real-time priority.
    pub priority: i32,
    /// Nice value.
    pub nice: i32,
    /// `ioprio_get`.
    pub ioprio: i32,
    /// CPUs it was bound to, lowest in bit 0 of the first word; empty = wherever the pod may run.
    pub affinity: Vec<u64>,
    /// `/proc/P/timerslack_ns`.
    pub timerslack_ns: u64,
}
