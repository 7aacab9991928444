//! Processes and threads read from `/proc`: who they are, the family they form, what surrounds them.

use super::{ProcNode, Sched};
use crate::base::Blocker;
use crate::kernel::kcmp::{self, What};
use crate::kernel::procfs::{Proc, Stat, Status, number};
use crate::kernel::sched;
use crate::state::error::{Error, blocker};
use procfs::FromBufRead;
use procfs::process::{LimitValue, Limits};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

/// A process as `/proc` shows it.
#[derive(Debug)]
pub struct Facts {
    /// Its directory.
    pub proc: Proc,
    /// Host pid.
    pub host: i32,
    /// `stat`.
    pub stat: Stat,
    /// `status` of the leader.
    pub status: Status,
    /// Threads as (host tid, tid in the pod), the leader first; a zombie has none.
    pub threads: Vec<(i32, i32)>,
}

impl Facts {
    /// Looks at a process with all its threads.
    pub fn look(host: i32, buf: &mut Vec<u8>) -> Result<Self, Error> {
        let mut facts = Self::look_leader(host, buf)?;
        if facts.is_zombie() {
            return Ok(facts);
        }
        facts.threads.push((host, facts.status.pid()));
        for tid in facts.proc.numbers("task").map_err(Error::read(host, "task"))? {
            if tid == host {
                continue;
            }
            // A thread may end at any moment.
            match thread_status(&facts.proc, tid, buf) {
                Ok(status) => facts.threads.push((tid, status.pid())),
                Err(Error::Gone { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(facts)
    }

    /// Looks at a process and leaves its threads to the caller, who knows them.
    pub fn look_leader(host: i32, buf: &mut Vec<u8>) -> Result<Self, Error> {
        let proc = Proc::open(host).map_err(Error::read(host, "/proc"))?;
        proc.read_into("stat", buf).map_err(Error::read(host, "stat"))?;
        let stat = Stat::parse(buf).ok_or_else(Error::odd(host, "stat"))?;
        proc.read_into("status", buf).map_err(Error::read(host, "status"))?;
        let status = Status::parse(buf).ok_or_else(Error::odd(host, "status"))?;
        Ok(Self { proc, host, stat, status, threads: Vec::new() })
    }

    /// Pid in the pod.
    pub fn pid(&self) -> i32 {
        self.status.pid()
    }

    /// Ended and not reaped.
    pub fn is_zombie(&self) -> bool {
        matches!(self.stat.state, b'Z' | b'X')
    }
}

/// `status` of one thread (host tid).
pub fn thread_status(proc: &Proc, tid: i32, buf: &mut Vec<u8>) -> Result<Status, Error> {
    let name = format!("task/{tid}/status");
    proc.read_into(name.as_str(), buf).map_err(Error::read(tid, "status"))?;
    Status::parse(buf).ok_or_else(Error::odd(tid, "status"))
}

/// The family as data, parents before children. `init` is the host pid of the pod's pid 1, with its `status`. What
/// does not fit into one family is told in `found`.
pub fn family(all: &[Facts], init: (i32, &Status), found: &mut Vec<Blocker>) -> Vec<ProcNode> {
    let pids: HashMap<i32, i32> = all.iter().map(|f| (f.host, f.pid())).chain([(init.0, 1)]).collect();
    let mut left: Vec<ProcNode> = Vec::with_capacity(all.len());
    for facts in all {
        let pid = facts.pid();
        let last = |ids: &[i32]| ids.last().copied().unwrap_or(0);
        let (pgid, sid) = (last(&facts.status.ns_pgid), last(&facts.status.ns_sid));
        // 0: the leader is outside the pod; which is well if init is a member, too.
        let outside = |id, ids: &[i32], inits: &[i32]| id == 0 && ids.first() != inits.first();
        let no_session = outside(sid, &facts.status.ns_sid, &init.1.ns_sid);
        if no_session || outside(pgid, &facts.status.ns_pgid, &init.1.ns_pgid) {
            let what = if no_session { "session" } else { "process group" };
            found.push(blocker(
                "session",
                pid,
                format!("its {what} began outside the pod"),
                "start it with podmig exec, or under setsid(1)",
            ));
        }
        let Some(&ppid) = pids.get(&facts.stat.ppid) else {
            let message = format!("its parent, process {} of the host, is outside the pod", facts.stat.ppid);
            found.push(blocker("joined", pid, message, "end it, and use podmig exec"));
            continue;
        };
        if facts.is_zombie() && facts.stat.threads > 1 {
            let message = "its first thread has ended and others run on";
            found.push(blocker("dead-leader", pid, message, "no remedy while it is so"));
            continue;
        }
        left.push(ProcNode {
            pid,
            ppid,
            pgid,
            sid,
            exit_signal: facts.stat.exit_signal,
            tids: if facts.is_zombie() { vec![pid] } else { facts.threads.iter().map(|t| t.1).collect() },
            zombie: facts.is_zombie().then_some(facts.stat.exit_code),
            comm: facts.stat.comm.clone(),
        });
    }
    parents_first(left)
}

/// Sorts so that each stands after its parent, brothers by pid; one whose parent is missing stands last.
fn parents_first(mut left: Vec<ProcNode>) -> Vec<ProcNode> {
    left.sort_unstable_by_key(|n| n.pid);
    let mut placed = HashSet::from([1]);
    let mut out = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let before = out.len();
        let (ready, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|n| placed.contains(&n.ppid));
        placed.extend(ready.iter().map(|n| n.pid));
        out.extend(ready);
        left = rest;
        if out.len() == before {
            out.append(&mut left);
        }
    }
    out
}

/// Names of the namespaces a pod's tasks must be in together with its init.
const NAMESPACES: [&str; 10] =
    ["pid", "pid_for_children", "mnt", "net", "ipc", "uts", "cgroup", "user", "time", "time_for_children"];

/// What `ns/*` of a task shows, in the order of [`NAMESPACES`]; empty where the kernel has no such namespace.
pub type Walls = [Vec<u8>; 10];

/// The namespaces of a process, or with `thread` of one of its threads (host tid).
pub fn walls(proc: &Proc, thread: Option<i32>) -> Result<Walls, Error> {
    let mut walls = Walls::default();
    for (wall, name) in walls.iter_mut().zip(NAMESPACES) {
        let path = match thread {
            Some(tid) => format!("task/{tid}/ns/{name}"),
            None => format!("ns/{name}"),
        };
        *wall = match proc.link(path.as_str()) {
            Ok(link) => link,
            // Absent kinds are ENOENT; a task that is gone has no directory either.
            Err(nix::errno::Errno::ENOENT) if proc.stat("ns").is_ok() => Vec::new(),
            Err(e) => return Err(Error::read(thread.unwrap_or(proc.pid()), path)(e)),
        };
    }
    Ok(walls)
}

/// The blocker of a task that stands behind other walls than the pod's init.
pub fn foreign_walls(pid: i32, walls: &Walls, pod: &Walls) -> Option<Blocker> {
    let at = walls.iter().zip(pod).position(|(a, b)| a != b)?;
    Some(blocker(
        "namespace",
        pid,
        format!("it is in a {} namespace of its own", NAMESPACES[at].trim_end_matches("_for_children")),
        "a pod inside a pod cannot be carried; end it",
    ))
}

/// The blocker of a task traced by someone, who is named. `us` may trace.
pub fn traced(pid: i32, tracer: i32, us: i32) -> Option<Blocker> {
    if tracer == 0 || tracer == us {
        return None;
    }
    let name = Proc::open(tracer).and_then(|p| p.read("comm")).unwrap_or_default();
    let name = String::from_utf8_lossy(name.trim_ascii_end()).into_owned();
    let message = format!("it is traced by {name} (process {tracer} of the host)");
    Some(blocker("traced", pid, message, "detach the debugger or tracer"))
}

/// Two processes that share what each must have for itself: address space, descriptor table, file system context
/// or signal handlers. Processes of `known` (by host pid and start time) were found to share nothing before, and
/// sharing only begins with a birth: pairs of them are not compared again.
pub fn sharing(
    all: &[&Facts],
    known: &mut HashSet<(i32, u64)>,
    found: &mut Vec<Blocker>,
) -> Result<(), Error> {
    let id = |f: &Facts| (f.host, f.stat.start_time);
    if all.iter().all(|f| known.contains(&id(f))) {
        return Ok(());
    }
    let before = found.len();
    for (what, name) in [
        (What::Vm, "memory"),
        (What::Files, "descriptor table"),
        (What::Fs, "working directory"),
        (What::Sighand, "signal handlers"),
    ] {
        let mut sorted: Vec<&Facts> = Vec::with_capacity(all.len());
        for &facts in all {
            let mut failed = None;
            let place = sorted.binary_search_by(|other| {
                kcmp::compare(other.host, facts.host, what).unwrap_or_else(|e| {
                    failed = Some(Error::read(facts.host, "kcmp(2)")(e));
                    Ordering::Equal
                })
            });
            match (failed, place) {
                (Some(error), _) => return Err(error),
                (None, Err(at)) => sorted.insert(at, facts),
                (None, Ok(at)) => {
                    let (a, b) = (facts.pid(), sorted[at].pid());
                    let message = format!("it shares its {name} with process {} of the pod", a.min(b));
                    let remedy = "no remedy while both live (clone(2) without CLONE_THREAD)";
                    found.push(blocker("shared", a.max(b), message, remedy));
                }
            }
        }
    }
    if found.len() == before {
        known.extend(all.iter().map(|f| id(f)));
    }
    Ok(())
}

/// Threads that have a descriptor table or working directory apart from their process's.
pub fn apart(facts: &Facts, found: &mut Vec<Blocker>) -> Result<(), Error> {
    for &(tid, pod_tid) in facts.threads.iter().skip(1) {
        for (what, name) in [(What::Files, "descriptor table"), (What::Fs, "working directory")] {
            let same = kcmp::compare(facts.host, tid, what).map_err(Error::read(tid, "kcmp(2)"))?;
            if same != Ordering::Equal {
                found.push(blocker(
                    "thread-apart",
                    facts.pid(),
                    format!("its thread {pod_tid} has a {name} of its own (unshare(2))"),
                    "no remedy while that thread lives",
                ));
            }
        }
    }
    Ok(())
}

/// What surrounds a process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Around {
    /// Current directory.
    pub cwd: Vec<u8>,
    /// Root directory.
    pub root: Vec<u8>,
    /// Umask.
    pub umask: u32,
    /// (RLIMIT number, soft, hard).
    pub rlimits: Vec<(u32, u64, u64)>,
    /// `/proc/P/oom_score_adj`.
    pub oom_score_adj: i32,
    /// `personality(2)`.
    pub personality: u32,
    /// `/proc/P/coredump_filter`.
    pub coredump_filter: u32,
}

/// Reads what surrounds a process. Directories must be found under their names below the root of `init`.
pub fn around(
    facts: &Facts,
    init: &Proc,
    buf: &mut Vec<u8>,
    found: &mut Vec<Blocker>,
) -> Result<Around, Error> {
    let (proc, host) = (&facts.proc, facts.host);
    let hex = |name: &'static str, buf: &mut Vec<u8>| {
        proc.read_into(name, buf).map_err(Error::read(host, name))?;
        let value = crate::kernel::procfs::hex(buf).and_then(|v| u32::try_from(v).ok());
        value.ok_or_else(Error::odd(host, name))
    };
    let personality = hex("personality", buf)?;
    let coredump_filter = hex("coredump_filter", buf)?;
    proc.read_into("oom_score_adj", buf).map_err(Error::read(host, "oom_score_adj"))?;
    let oom_score_adj = number(buf).ok_or_else(Error::odd(host, "oom_score_adj"))?;
    proc.read_into("limits", buf).map_err(Error::read(host, "limits"))?;
    let rlimits = rlimits(buf).ok_or_else(Error::odd(host, "limits"))?;
    Ok(Around {
        cwd: directory(facts, init, "cwd", found)?,
        root: directory(facts, init, "root", found)?,
        umask: facts.status.umask.ok_or_else(Error::odd(host, "Umask in status"))?,
        rlimits,
        oom_score_adj,
        personality,
        coredump_filter,
    })
}

/// A directory a process stands in; the name must lead to it, seen from the pod's root.
fn directory(
    facts: &Facts,
    init: &Proc,
    link: &'static str,
    found: &mut Vec<Blocker>,
) -> Result<Vec<u8>, Error> {
    let path = facts.proc.link(link).map_err(Error::read(facts.host, link))?;
    let at = facts.proc.stat(link).map_err(Error::read(facts.host, link))?;
    let below = [b"root/", path.strip_prefix(b"/").unwrap_or(&path)].concat();
    let there = init.stat(below.as_slice());
    if !matches!(there, Ok(st) if (st.st_dev, st.st_ino) == (at.st_dev, at.st_ino)) {
        let what = if link == "cwd" { "working" } else { "root" };
        let message = format!("its {what} directory is no longer found under its name");
        let b = blocker("directory", facts.pid(), message, "let it change to another directory");
        found.push(Blocker { path: Some(String::from_utf8_lossy(&path).into_owned()), ..b });
    }
    Ok(path)
}

/// The limits of `/proc/P/limits` by RLIMIT number.
fn rlimits(text: &[u8]) -> Option<Vec<(u32, u64, u64)>> {
    let l = Limits::from_buf_read(text).ok()?;
    let all = [
        (libc::RLIMIT_CPU, l.max_cpu_time),
        (libc::RLIMIT_FSIZE, l.max_file_size),
        (libc::RLIMIT_DATA, l.max_data_size),
        (libc::RLIMIT_STACK, l.max_stack_size),
        (libc::RLIMIT_CORE, l.max_core_file_size),
        (libc::RLIMIT_RSS, l.max_resident_set),
        (libc::RLIMIT_NPROC, l.max_processes),
        (libc::RLIMIT_NOFILE, l.max_open_files),
        (libc::RLIMIT_MEMLOCK, l.max_locked_memory),
        (libc::RLIMIT_AS, l.max_address_space),
        (libc::RLIMIT_LOCKS, l.max_file_locks),
        (libc::RLIMIT_SIGPENDING, l.max_pending_signals),
        (libc::RLIMIT_MSGQUEUE, l.max_msgqueue_size),
        (libc::RLIMIT_NICE, l.max_nice_priority),
        (libc::RLIMIT_RTPRIO, l.max_realtime_priority),
        (libc::RLIMIT_RTTIME, l.max_realtime_timeout),
    ];
    let value = |v| match v {
        LimitValue::Unlimited => libc::RLIM_INFINITY,
        LimitValue::Value(n) => n,
    };
    Some(all.iter().map(|(n, l)| (*n, value(l.soft_limit), value(l.hard_limit))).collect())
}

/// What is usual in a pod: how its init is scheduled.
#[derive(Clone, Debug)]
pub struct Usual {
    affinity: Vec<u64>,
    core_cookie: u64,
}

impl Usual {
    /// Of the pod's init (host pid).
    pub fn of(init: i32) -> Result<Self, Error> {
        let affinity = sched::affinity(init).map_err(Error::read(init, "sched_getaffinity(2)"))?;
        Ok(Self { affinity, core_cookie: sched::core_cookie(init) })
    }
}

/// Whether a thread's utilisation is clamped. Real-time threads have the system's own lowest clamp.
fn clamped(attr: &sched::SchedAttr) -> bool {
    let real_time = matches!(attr.policy.cast_signed(), libc::SCHED_FIFO | libc::SCHED_RR);
    attr.util_max != 0 && (attr.util_max < 1024 || (attr.util_min != 0 && !real_time))
}

/// Scheduling of a thread (host tid). The timer slack is left 0: only the thread itself is told it cheaply.
pub fn sched(tid: i32, pid: i32, usual: &Usual, found: &mut Vec<Blocker>) -> Result<Sched, Error> {
    let attr = sched::attributes(tid).map_err(Error::read(tid, "sched_getattr(2)"))?;
    let policy = i32::try_from(attr.policy).unwrap_or(i32::MAX);
    if !matches!(
        policy,
        libc::SCHED_OTHER | libc::SCHED_FIFO | libc::SCHED_RR | libc::SCHED_BATCH | libc::SCHED_IDLE
    ) {
        let message = format!("its scheduling policy {policy} (SCHED_DEADLINE is 6) cannot be carried yet");
        found.push(blocker("sched", pid, message, "choose another with chrt(1)"));
    }
    if clamped(&attr) {
        let message = format!(
            "its CPU utilisation is clamped to {}..{} of 1024 (uclamp), which cannot be carried yet",
            attr.util_min, attr.util_max
        );
        found.push(blocker("uclamp", pid, message, "reset it with uclampset(1): -m 0 -M 1024"));
    }
    if !matches!(sched::core_cookie(tid), 0) && sched::core_cookie(tid) != usual.core_cookie {
        let message =
            "it has a core scheduling cookie of its own (PR_SCHED_CORE), which cannot be carried yet";
        found.push(blocker("core-sched", pid, message, "no remedy while it lives: start it without"));
    }
    let reset = if attr.flags & 1 != 0 { libc::SCHED_RESET_ON_FORK } else { 0 };
    let affinity = sched::affinity(tid).map_err(Error::read(tid, "sched_getaffinity(2)"))?;
    Ok(Sched {
        policy: policy | reset,
        priority: i32::try_from(attr.priority).unwrap_or(0),
        nice: attr.nice,
        ioprio: sched::ioprio(tid).map_err(Error::read(tid, "ioprio_get(2)"))?,
        timerslack_ns: 0,
        affinity: if affinity == usual.affinity { Vec::new() } else { affinity },
    })
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn only_a_clamp_of_its_own_is_one() {
        let attr = |policy: i32, util_min, util_max| {
            let mut attr = sched::SchedAttr::default();
            (attr.policy, attr.util_min, attr.util_max) = (policy.cast_unsigned(), util_min, util_max);
            attr
        };
        // A kernel without clamps; none set; the system's own for real-time threads.
        assert!(!clamped(&attr(libc::SCHED_OTHER, 0, 0)));
        assert!(!clamped(&attr(libc::SCHED_OTHER, 0, 1024)));
        assert!(!clamped(&attr(libc::SCHED_RR, 1024, 1024)));
        assert!(clamped(&attr(libc::SCHED_OTHER, 512, 1024)) && clamped(&attr(libc::SCHED_FIFO, 0, 800)));
    }
}
