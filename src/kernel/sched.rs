//! What the scheduler and the kernel keep of a thread and tell from outside: policy, nice value, affinity, I/O
//! priority, robust list.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// `struct sched_attr` (sched_setattr(2)), the version of 56 bytes (5.3); an older kernel leaves the end as it is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SchedAttr {
    size: u32,
    /// SCHED_OTHER, SCHED_FIFO, …
    pub policy: u32,
    /// SCHED_FLAG_*; bit 0 is SCHED_FLAG_RESET_ON_FORK.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// SCHED_DEADLINE: runtime in nanoseconds.
    pub runtime: u64,
    /// SCHED_DEADLINE: deadline in nanoseconds.
    pub deadline: u64,
    /// SCHED_DEADLINE: period in nanoseconds.
    pub period: u64,
    /// Utilisation clamp, lowest (0 where the kernel has none).
    pub util_min: u32,
    /// Highest: 1024 is no clamp, 0 a kernel that has none.
    pub util_max: u32,
}

const _: () = assert!(size_of::<SchedAttr>() == 56);

impl SchedAttr {
    /// For every policy but SCHED_DEADLINE. `policy` may have SCHED_RESET_ON_FORK in it.
    pub fn new(policy: i32, nice: i32, priority: i32) -> Self {
        Self {
            policy: (policy & !libc::SCHED_RESET_ON_FORK) as u32,
            flags: if policy & libc::SCHED_RESET_ON_FORK == 0 { 0 } else { RESET_ON_FORK },
            nice,
            priority: priority as u32,
            ..Self::default()
        }
    }
}

/// Sets the slack of a thread's timers in nanoseconds, which a change of policy resets (`/proc/T/timerslack_ns`, proc(5)).
/// Errors: EPERM, EACCES; ENOENT: gone.
pub fn set_timer_slack(tid: i32, ns: u64) -> Result<(), Errno> {
    let path = format!("/proc/{tid}/timerslack_ns");
    std::fs::write(path, ns.to_string()).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
}

/// What [`set_timer_slack`] sets; 0 for real-time threads.
pub fn timer_slack(tid: i32) -> Option<u64> {
    std::fs::read_to_string(format!("/proc/{tid}/timerslack_ns")).ok()?.trim().parse().ok()
}

/// Scheduling attributes of a thread (sched_getattr(2)). ESRCH: gone.
pub fn attributes(tid: i32) -> Result<SchedAttr, Errno> {
    let mut attr = SchedAttr::default();
    // SAFETY: the kernel writes at most the 56 bytes it is told `attr` has.
    let ret =
        unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size_of::<SchedAttr>(), 0) };
    Errno::result(ret).map(|_| attr)
}

/// The core scheduling cookie of a thread (prctl(2), PR_SCHED_CORE_GET); 0: none, or the kernel has no such thing.
pub fn core_cookie(tid: i32) -> u64 {
    const PR_SCHED_CORE: i32 = 62;
    const PR_SCHED_CORE_GET: u64 = 0;
    let mut cookie = 0u64;
    // SAFETY: the kernel writes one u64, for which there is room.
    let ret = unsafe { libc::prctl(PR_SCHED_CORE, PR_SCHED_CORE_GET, tid, 0u64, &raw mut cookie) };
    if ret == 0 { cookie } else { 0 }
}

/// Sets the scheduling attributes of a thread, 0 = the caller's (sched_setattr(2)). EPERM: no CAP_SYS_NICE, or a control
/// group without real-time share.
pub fn set_attributes(tid: i32, attr: &SchedAttr) -> Result<(), Errno> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..*attr };
    // SAFETY: the kernel reads the 56 bytes `attr` says it has.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0) }).map(drop)
}

/// `SCHED_FLAG_RESET_ON_FORK`.
const RESET_ON_FORK: u64 = 1;

/// Puts a thread (0 = the caller) before all ordinary ones, or where that is not allowed (a control group without
/// real-time share) among the first of them.
fn put_first(tid: i32, inherited: bool) -> Result<(), Errno> {
    let flags = if inherited { 0 } else { RESET_ON_FORK };
    let first = SchedAttr { policy: libc::SCHED_RR as u32, flags, priority: 1, ..SchedAttr::default() };
    let good = SchedAttr { policy: libc::SCHED_OTHER as u32, flags, nice: -20, ..SchedAttr::default() };
    set_attributes(tid, &first).or_else(|_| set_attributes(tid, &good))
}

/// Lets thread `tid` go before all ordinary ones; the threads and processes it makes, too. Where that is not allowed
/// nothing changes. Its timers have no slack meanwhile, and threads that it makes then never get one back.
pub fn hurry(tid: i32) {
    let _ = put_first(tid, true);
}

/// Lets thread `tid` be among the first of the ordinary ones, and the threads it makes. Where that is not allowed nothing
/// changes.
pub fn favour(tid: i32) {
    let _ = set_attributes(tid, &SchedAttr::new(libc::SCHED_OTHER, -20, 0));
}

thread_local! {
    static HASTY: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether the calling thread goes before all ordinary ones by [`Haste::begin`].
pub fn is_hasty() -> bool {
    HASTY.get()
}

/// A thread goes before all ordinary ones while this lives: for the moments in which a pod stands still, which must not
/// last longer because the host is busy. Where that is not allowed nothing changes.
#[derive(Debug)]
pub struct Haste {
    tid: i32,
    before: Option<SchedAttr>,
    /// As a rule it is that of the thread itself.
    local: std::marker::PhantomData<*const ()>,
}

impl Haste {
    /// The calling thread, from here on. `inherited`: threads and processes made meanwhile are hasty, too, for ever.
    pub fn begin(inherited: bool) -> Self {
        Self::start(0, inherited)
    }

    /// Thread `tid`, which nobody else hurries; what it makes meanwhile is ordinary.
    pub fn of(tid: i32) -> Self {
        Self::start(tid, false)
    }

    fn start(tid: i32, inherited: bool) -> Self {
        let before = attributes(tid).ok().filter(|_| put_first(tid, inherited).is_ok());
        if tid == 0 {
            HASTY.set(before.is_some());
        }
        Self { tid, before, local: std::marker::PhantomData }
    }
}

impl Drop for Haste {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = set_attributes(self.tid, before);
            if self.tid == 0 {
                HASTY.set(false);
            }
        }
    }
}

/// I/O priority of a thread (ioprio_get(2)): class in the upper bits, 0 if never set. ESRCH: gone.
pub fn ioprio(tid: i32) -> Result<i32, Errno> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: takes numbers only.
    let ret = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) };
    Errno::result(ret).map(|class| i32::try_from(class).unwrap_or(0))
}

/// CPUs a thread may run on, as 64-bit words, lowest CPU in bit 0 (sched_getaffinity(2)). ESRCH: gone.
pub fn affinity(tid: i32) -> Result<Vec<u64>, Errno> {
    let set = sched_getaffinity(Pid::from_raw(tid))?;
    let mut words = vec![0u64; CpuSet::count().div_ceil(64)];
    for cpu in 0..CpuSet::count() {
        if set.is_set(cpu)? {
            words[cpu / 64] |= 1 << (cpu % 64);
        }
    }
    while words.last() == Some(&0) {
        words.pop();
    }
    Ok(words)
}

/// Head and length of a thread's robust futex list (get_robust_list(2)), 0 if it has none. EPERM, ESRCH.
pub fn robust_list(tid: i32) -> Result<(u64, u64), Errno> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: the kernel writes one pointer and one size_t, for which there is room.
    let ret = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    Errno::result(ret).map(|_| (head, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haste_ends() {
        let before = attributes(0).unwrap();
        {
            let _haste = Haste::begin(false);
            let now = attributes(0).unwrap();
            assert!((now.policy, now.flags) == (2, 1) || (now.nice, now.flags) == (-20, 1), "{now:?}");
        }
        assert_eq!(attributes(0).unwrap(), before);
    }

    #[test]
    fn what_chrt_taskset_and_ionice_say() {
        let mut child = std::process::Command::new("taskset")
            .args([
                "-c", "0", "ionice", "-c", "2", "-n", "3", "nice", "-n", "7", "chrt", "-b", "0", "sleep",
                "60",
            ])
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        let exe = || std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        // glibc sets a list for every thread, of 24 bytes (struct robust_list_head), soon after exec.
        while !exe().ends_with("sleep") || robust_list(pid).unwrap().0 == 0 {
            assert!(std::time::Instant::now() < end, "sleep was not executed");
            std::thread::yield_now();
        }
        let attr = attributes(pid).unwrap();
        // SAFETY: takes numbers only.
        let own = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        assert_eq!((attr.policy, attr.nice, attr.priority), (3, (own + 7).min(19), 0), "SCHED_BATCH is 3");
        assert_eq!(affinity(pid).unwrap(), [1]);
        assert_eq!(ioprio(pid).unwrap(), 2 << 13 | 3);
        assert_eq!(robust_list(pid).unwrap().1, 24);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(attributes(pid), Err(Errno::ESRCH));
        assert_eq!(robust_list(pid), Err(Errno::ESRCH));
    }
}
