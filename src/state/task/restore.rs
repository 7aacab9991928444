//! What a process and its threads set on themselves: births, names, limits, scheduling, directories.

use super::plan::{Birth, Family};
use super::{ProcessState, ThreadState};
use crate::remote::CallIx;
use crate::state::script::{About, Script};

const CLONE_ARGS: usize = 88;
const PRIO_PROCESS: u64 = 0;
const IOPRIO_WHO_PROCESS: u64 = 1;
const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_PTRACE;

/// Births, `setsid` and the own group of one family, in the order of the plan. The results are the pids as the
/// pod sees them; the newborn are attached to our tracer (CLONE_PTRACE) and stand at their first instruction.
pub fn family(s: &mut Script, f: &Family) -> Vec<(i32, CallIx)> {
    let mut births: Vec<_> = f.before.iter().map(|b| (b.pid, birth(s, b))).collect();
    if f.setsid {
        s.must("setsid", About::Nothing, libc::SYS_setsid, &[]);
    }
    births.extend(f.after.iter().map(|b| (b.pid, birth(s, b))));
    if f.lead_group {
        join(s, 0);
    }
    births
}

fn birth(s: &mut Script, b: &Birth) -> CallIx {
    let parent = if b.sibling { libc::CLONE_PARENT } else { 0 };
    // A sibling takes its creator's exit signal; the kernel wants none named.
    let exit_signal = if b.sibling { 0 } else { b.exit_signal };
    clone3(s, "clone3 (process)", libc::CLONE_PTRACE | parent, exit_signal, b.pid)
}

/// Births of the threads after the leader; stacks and everything else come with their registers.
pub fn threads(s: &mut Script, tids: impl Iterator<Item = i32>) {
    for tid in tids {
        clone3(s, "clone3 (thread)", THREAD_FLAGS, 0, tid);
    }
}

fn clone3(s: &mut Script, what: &'static str, flags: i32, exit_signal: i32, id: i32) -> CallIx {
    let wanted = s.data(&id.to_le_bytes());
    let mut args = vec![0u8; CLONE_ARGS];
    args[..8].copy_from_slice(&u64::from(flags as u32).to_le_bytes());
    args[32..40].copy_from_slice(&u64::from(exit_signal as u32).to_le_bytes());
    args[72..80].copy_from_slice(&1u64.to_le_bytes());
    let args = s.data(&args);
    s.pointer(args, 64, wanted, 0);
    s.must(what, About::Number(id.into()), libc::SYS_clone3, &[args.into(), CLONE_ARGS.into()])
}

/// Joins a process group of the own session (0: opens one).
pub fn join(s: &mut Script, pgid: i32) {
    s.must("setpgid", About::Number(pgid.into()), libc::SYS_setpgid, &[0u64.into(), pgid.into()]);
}

/// Becomes, or ceases to be, the one who gets orphans.
pub fn subreaper(s: &mut Script, on: bool) {
    s.must(
        "prctl(PR_SET_CHILD_SUBREAPER)",
        About::Nothing,
        libc::SYS_prctl,
        &[(libc::PR_SET_CHILD_SUBREAPER).into(), u64::from(on).into()],
    );
}

/// Waits for a child that has ended, so that its pid is free again.
pub fn reap(s: &mut Script, pid: i32) {
    s.must(
        "wait4",
        About::Number(pid.into()),
        libc::SYS_wait4,
        &[pid.into(), 0u64.into(), (libc::WNOHANG | libc::__WALL).into(), 0u64.into()],
    );
}

/// Takes note of a child's job-control stop, as the program had done.
pub fn take_note_of_stop(s: &mut Script, pid: i32) {
    s.may(
        "wait4 (stopped child)",
        About::Number(pid.into()),
        libc::SYS_wait4,
        &[pid.into(), 0u64.into(), (libc::WNOHANG | libc::WUNTRACED).into(), 0u64.into()],
    );
}

/// Current directory, root and umask; paths are those of the pod, so the directory comes before the root.
pub fn places(s: &mut Script, p: &ProcessState) {
    let cwd = s.path(&p.cwd);
    s.must("chdir to", About::Path(p.cwd.clone()), libc::SYS_chdir, &[cwd.into()]);
    if p.root != b"/" {
        let root = s.path(&p.root);
        s.must("chroot to", About::Path(p.root.clone()), libc::SYS_chroot, &[root.into()]);
    }
    s.must("umask", About::Number(p.umask.into()), libc::SYS_umask, &[p.umask.into()]);
}

/// Settings of the whole process that need no privilege of ours afterwards.
pub fn settings(s: &mut Script, p: &ProcessState) {
    let prctl = |s: &mut Script, what, option: i32, value: u64| {
        s.must(
            what,
            About::Number(value as i64),
            libc::SYS_prctl,
            &[option.into(), value.into(), 0u64.into(), 0u64.into(), 0u64.into()],
        );
    };
    if p.thp_disable {
        prctl(s, "prctl(PR_SET_THP_DISABLE)", libc::PR_SET_THP_DISABLE, 1);
    }
    subreaper(s, p.subreaper);
    s.must(
        "personality",
        About::Number(p.personality.into()),
        libc::SYS_personality,
        &[p.personality.into()],
    );
    for bit in (0..32).filter(|n| p.membarrier & (1 << n) != 0) {
        s.must(
            "membarrier (registration)",
            About::Number(bit),
            libc::SYS_membarrier,
            &[(1u64 << bit).into(), 0u64.into(), 0u64.into()],
        );
    }
}

/// What mlockall(2) was told about mappings to come; what is there already is left alone.
pub fn lock_future(s: &mut Script, flags: i32) {
    if flags != 0 {
        s.must("mlockall", About::Number(flags.into()), libc::SYS_mlockall, &[flags.into()]);
    }
}

/// Limits; after everything they could be in the way of, before CAP_SYS_RESOURCE (if there is one) goes.
pub fn limits(s: &mut Script, p: &ProcessState) {
    for &(which, soft, hard) in &p.rlimits {
        let limit = s.words(&[soft, hard]);
        let name = LIMITS.get(which as usize).copied().unwrap_or("a limit without a name");
        let (soft, hard) = (shown(soft), shown(hard));
        s.must(
            "prlimit64 of",
            About::Path(format!("{name} to {soft}, hard limit {hard}").into_bytes()),
            libc::SYS_prlimit64,
            &[0u64.into(), which.into(), limit.into(), 0u64.into()],
        );
    }
}

/// Names by number (x86-64, `asm-generic/resource.h`).
const LIMITS: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

fn shown(limit: u64) -> String {
    if limit == libc::RLIM_INFINITY { "unlimited".to_owned() } else { limit.to_string() }
}

/// A soft limit on descriptors that leaves room while they are put in place.
pub fn room_for_fds(s: &mut Script, soft: u64, hard: u64) {
    let limit = s.words(&[soft, hard]);
    s.must(
        "prlimit64 (RLIMIT_NOFILE)",
        About::Number(soft as i64),
        libc::SYS_prlimit64,
        &[0u64.into(), (libc::RLIMIT_NOFILE as u64).into(), limit.into(), 0u64.into()],
    );
}

/// Name (in `comm`) of the calling thread.
pub fn name(s: &mut Script, comm: &[u8]) {
    let comm = s.path(comm.split(|&b| b == 0).next().unwrap_or_default());
    s.must("prctl(PR_SET_NAME)", About::Nothing, libc::SYS_prctl, &[(libc::PR_SET_NAME).into(), comm.into()]);
}

/// Nice value, I/O priority, affinity of the calling thread. Policy and timer slack are set from outside at the end: until
/// then it runs before all others.
pub fn sched(s: &mut Script, t: &ThreadState) {
    let want = &t.sched;
    s.must(
        "setpriority",
        About::Number(want.nice.into()),
        libc::SYS_setpriority,
        &[PRIO_PROCESS.into(), 0u64.into(), want.nice.into()],
    );
    s.must(
        "ioprio_set",
        About::Number(want.ioprio.into()),
        libc::SYS_ioprio_set,
        &[IOPRIO_WHO_PROCESS.into(), 0u64.into(), want.ioprio.into()],
    );
    if !want.affinity.is_empty() {
        let mask = s.words(&want.affinity);
        // The CPUs it was bound to may not exist here; then it runs anywhere, and that is told.
        s.may(
            "sched_setaffinity",
            About::Nothing,
            libc::SYS_sched_setaffinity,
            &[0u64.into(), (want.affinity.len() * 8).into(), mask.into()],
        );
    }
}

/// Signal at the parent's death; credentials must be final, since changing them clears it.
pub fn death_signal(s: &mut Script, t: &ThreadState) {
    s.must(
        "prctl(PR_SET_PDEATHSIG)",
        About::Number(t.pdeath_signal.into()),
        libc::SYS_prctl,
        &[(libc::PR_SET_PDEATHSIG).into(), t.pdeath_signal.into()],
    );
}

/// Whether others may look inside; last of all, since a change of credentials resets it.
pub fn dumpable(s: &mut Script, p: &ProcessState) {
    // 2 (root only) is what the kernel gives after such a change and cannot be asked for.
    if p.dumpable != 2 {
        s.must(
            "prctl(PR_SET_DUMPABLE)",
            About::Number(p.dumpable.into()),
            libc::SYS_prctl,
            &[(libc::PR_SET_DUMPABLE).into(), p.dumpable.into()],
        );
    }
}

/// Prepares the end of a zombie: its name, no core file, default action for `signal`; then its exit if it has none.
pub fn end(s: &mut Script, comm: &[u8], status: i32) {
    name(s, comm);
    if libc::WIFSIGNALED(status) {
        s.must(
            "prctl(PR_SET_DUMPABLE)",
            About::Nothing,
            libc::SYS_prctl,
            &[(libc::PR_SET_DUMPABLE).into(), 0u64.into()],
        );
        let default = s.words(&[0; 4]);
        let signal = libc::WTERMSIG(status);
        if signal != libc::SIGKILL {
            s.must(
                "rt_sigaction (default)",
                About::Number(signal.into()),
                libc::SYS_rt_sigaction,
                &[signal.into(), default.into(), 0u64.into(), 8u64.into()],
            );
        }
    }
}
