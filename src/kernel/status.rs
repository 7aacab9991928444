//! `/proc/P/task/T/status`: the fields the engine asks for, parsed in one pass (man 5 proc_pid_status).

use std::io;

/// What one thread's status file says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TaskStatus {
    /// Name.
    pub name: String,
    /// State letter (`R S D T t Z X …`).
    pub state: char,
    /// Process id in the reader's pid namespace.
    pub tgid: i32,
    /// Parent's pid in the reader's pid namespace (0 = not visible).
    pub ppid: i32,
    /// Host tid of the tracer, 0 if none.
    pub tracer: i32,
    /// Thread id in each pid namespace, outermost first.
    pub ns_tids: Vec<i32>,
    /// Process id in each pid namespace, outermost first.
    pub ns_tgids: Vec<i32>,
    /// Pending for the thread.
    pub sig_pending: u64,
    /// Pending for the process.
    pub shd_pending: u64,
    /// Blocked now (a temporary mask included).
    pub sig_blocked: u64,
    /// Ignored.
    pub sig_ignored: u64,
    /// Caught by a handler.
    pub sig_caught: u64,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
}

impl TaskStatus {
    /// Thread id in the innermost pid namespace.
    pub fn pod_tid(&self) -> i32 {
        self.ns_tids.last().copied().unwrap_or(0)
    }

    /// Process id in the innermost pid namespace.
    pub fn pod_tgid(&self) -> i32 {
        self.ns_tgids.last().copied().unwrap_or(0)
    }

    /// Signals with a handler that this thread would take at once.
    pub fn deliverable(&self) -> u64 {
        (self.sig_pending | self.shd_pending) & !self.sig_blocked & self.sig_caught
    }

    fn parse(text: &str) -> Self {
        let mut s = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            let hex = || u64::from_str_radix(value, 16).unwrap_or(0);
            let int = || value.parse().unwrap_or(0);
            let list = || value.split_whitespace().filter_map(|n| n.parse().ok()).collect();
            match key {
                "Name" => s.name = value.to_owned(),
                "State" => s.state = value.chars().next().unwrap_or('?'),
                "Tgid" => s.tgid = int(),
                "PPid" => s.ppid = int(),
                "TracerPid" => s.tracer = int(),
                "NStgid" => s.ns_tgids = list(),
                "NSpid" => s.ns_tids = list(),
                "SigPnd" => s.sig_pending = hex(),
                "ShdPnd" => s.shd_pending = hex(),
                "SigBlk" => s.sig_blocked = hex(),
                "SigIgn" => s.sig_ignored = hex(),
                "SigCgt" => s.sig_caught = hex(),
                "Seccomp" => {
                    s.seccomp = value.parse().unwrap_or(0);
                    break;
                }
                _ => {}
            }
        }
        s
    }
}

/// Bit of `signal` in a mask.
pub fn sigbit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Status of thread `tid` (any thread's id works as a path, also one that is not a leader). NotFound or ESRCH: gone.
pub fn of(tid: i32) -> io::Result<TaskStatus> {
    // Bytes: a name may hold any byte.
    let bytes = std::fs::read(format!("/proc/{tid}/status"))?;
    Ok(TaskStatus::parse(&String::from_utf8_lossy(&bytes)))
}

/// Whether thread `tid` is on its way out or gone: a zombie, exiting (PF_EXITING in its flags, man 5 proc_pid_stat), or with a SIGKILL waiting.
pub fn is_dying(tid: i32) -> bool {
    const PF_EXITING: u64 = 4;
    let Ok(status) = of(tid) else { return true };
    if matches!(status.state, 'Z' | 'X')
        || (status.sig_pending | status.shd_pending) & sigbit(libc::SIGKILL) != 0
    {
        return true;
    }
    let Ok(stat) = std::fs::read(format!("/proc/{tid}/stat")) else { return true };
    let stat = String::from_utf8_lossy(&stat).into_owned();
    // After the name, which may hold anything: state, ppid, pgrp, session, tty, tpgid, flags.
    let flags =
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & PF_EXITING != 0)
}

/// Thread ids of process `pid`, in the reader's pid namespace. NotFound or ESRCH: gone.
pub fn threads(pid: i32) -> io::Result<Vec<i32>> {
    let mut tids = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(tid) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) {
            tids.push(tid);
        }
    }
    Ok(tids)
}

/// Pids of the children of thread `tid`, zombies included (`/proc/T/task/T/children`; exact while the thread is stopped).
pub fn children(tid: i32) -> io::Result<Vec<i32>> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/task/{tid}/children"))?;
    Ok(text.split_whitespace().filter_map(|n| n.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_status_reads() {
        let me = std::process::id() as i32;
        let status = of(me).expect("status");
        assert_eq!((status.tgid, status.tracer), (me, 0));
        assert_eq!(status.ns_tgids.first(), Some(&me));
        assert!(threads(me).expect("threads").contains(&me));
        assert!(of(i32::MAX).is_err());
        assert!(is_dying(i32::MAX) && !is_dying(me));
    }

    #[test]
    fn deliverable_needs_a_handler_and_no_mask() {
        let s = TaskStatus::parse(
            "Name:\ta:b\nState:\tS (sleeping)\nTgid:\t7\nNStgid:\t7\t3\nNSpid:\t9\t4\nSigPnd:\t0000000000000001\n\
             ShdPnd:\t0000000000000006\nSigBlk:\t0000000000000002\nSigCgt:\t0000000000000007\nSeccomp:\t2\n",
        );
        assert_eq!((s.name.as_str(), s.state, s.pod_tid(), s.pod_tgid(), s.seccomp), ("a:b", 'S', 4, 3, 2));
        assert_eq!(s.deliverable(), 5);
        assert_eq!(sigbit(1), 1);
    }
}
