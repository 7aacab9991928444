//! Threads, descriptors, signals, timers, credentials, limits, job control: read back from `/proc` while the pod is
//! still frozen, then let run.

use super::*;
use crate::state::PodState;
use crate::state::cpu::{CpuState, Regs};
use crate::state::cred::Cred;
use crate::state::fd::restore::Inside;
use crate::state::fd::{FdEntry, FileId, FileKind, OpenFile, Port};
use crate::state::signal::{ProcessSignals, QueuedSignal, SigAction, ThreadSignals};
use crate::state::target::Error;
use crate::state::target::finish::Hands;
use crate::state::task::{ProcessState, Sched, ThreadState};
use crate::state::timer::{Itimer, PosixTimer, Timers};
use std::os::fd::OwnedFd;

/// `inc qword [rbx]; jmp`: counts at rbx for ever.
pub(super) const COUNT: [u8; 5] = [0x48, 0xff, 0x03, 0xeb, 0xfb];
/// `mov eax, 34; syscall; jmp`: pause(2) for ever.
pub(super) const PAUSE: [u8; 9] = [0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
pub(super) const COUNT_AT: u64 = CODE + 0x100;
pub(super) const PAUSE_AT: u64 = CODE + 0x200;
/// Counters, 8 bytes each; robust lists and the like further up.
pub(super) const DATA: u64 = 0x2000_0000;

pub(super) fn data_page() -> Vma {
    vma(DATA, 4, VmaFlags::READ | VmaFlags::WRITE, Backing::Anon)
}

pub(super) fn thread(tid: i32, rip: u64, rbx: u64, xstate: &[u8]) -> ThreadState {
    let regs = Regs {
        rip,
        rbx,
        rsp: DATA + 0x3000,
        cs: 0x33,
        ss: 0x2b,
        eflags: 0x202,
        orig_rax: u64::MAX,
        ..Regs::default()
    };
    ThreadState {
        tid,
        comm: format!("thread {tid}").into_bytes(),
        cpu: CpuState { regs, xstate: xstate.to_vec(), rseq: None, robust_list: (0, 0), tid_address: 0 },
        signals: ThreadSignals { altstack: (0, libc::SS_DISABLE, 0), ..ThreadSignals::default() },
        cred: root(),
        pdeath_signal: 0,
        sched: Sched { timerslack_ns: 50_000, ..Sched::default() },
    }
}

fn root() -> Cred {
    let status = procfs::process::Process::myself().unwrap().status().unwrap();
    Cred {
        cap_prm: status.capprm,
        cap_eff: status.capeff,
        cap_bnd: status.capbnd.unwrap(),
        ..Cred::default()
    }
}

pub(super) fn process(pid: i32, threads: Vec<ThreadState>) -> ProcessState {
    ProcessState {
        lock_future: 0,
        pid,
        threads,
        signals: ProcessSignals { actions: vec![SigAction::default(); 64], pending: vec![] },
        timers: Timers::default(),
        fds: vec![],
        cwd: b"/tmp".to_vec(),
        root: b"/".to_vec(),
        umask: 0o27,
        rlimits: vec![],
        oom_score_adj: 0,
        dumpable: 1,
        subreaper: false,
        thp_disable: false,
        personality: 0,
        stopped: None,
        coredump_filter: 0x33,
        membarrier: 0,
    }
}

fn info(signal: i32, code: i32, value: u64) -> QueuedSignal {
    let mut info = vec![0u8; 128];
    info[..4].copy_from_slice(&signal.to_le_bytes());
    info[8..12].copy_from_slice(&code.to_le_bytes());
    info[24..32].copy_from_slice(&value.to_le_bytes());
    QueuedSignal { info }
}

/// Skeleton built, code in place: what a test then finishes.
struct Stage {
    pod: Pod,
    builder: Builder,
    tree: Tree,
    hosts: HashMap<MmId, i32>,
    xstate: Vec<u8>,
}

fn stage(procs: Vec<ProcNode>) -> Stage {
    let pod = Pod::new();
    let mut tree = tree(&pod, procs);
    for mm in &mut tree.mms {
        *mm = layout(mm.mm.0, vec![data_page()]);
    }
    let mut builder = pod.builder();
    let skeleton = builder.skeleton(&tree).unwrap();
    for host in skeleton.pids.values() {
        let mem = crate::remote::Mem::open(*host).unwrap();
        mem.write(COUNT_AT, &COUNT).unwrap();
        mem.write(PAUSE_AT, &PAUSE).unwrap();
    }
    let first = builder.bodies.values().next().unwrap();
    let xstate = first.threads[0].1.xstate().unwrap();
    Stage { pod, builder, tree, hosts: skeleton.pids, xstate }
}

impl Stage {
    fn host(&self, pid: i32) -> i32 {
        self.hosts[&MmId(pid)]
    }

    fn finish(&mut self, state: &PodState, files: &HashMap<FileId, OwnedFd>) -> Result<(), Error> {
        let hands = Hands { files, inside: &Inside::default() };
        self.builder.finish_with(&self.tree, state, &hands)?;
        assert_eq!(self.builder.warnings, Vec::<String>::new());
        Ok(())
    }

    /// Detached in a frozen cgroup.
    fn leave(self) -> Left {
        let Stage { pod, builder, hosts, .. } = self;
        builder.detach_frozen().unwrap();
        assert!(pod.freezer().is_frozen().unwrap());
        Left { pod, hosts }
    }
}

struct Left {
    pod: Pod,
    hosts: HashMap<MmId, i32>,
}

impl Left {
    fn host(&self, pid: i32) -> i32 {
        self.hosts[&MmId(pid)]
    }

    fn word(&self, pid: i32, at: u64) -> u64 {
        crate::remote::Mem::open(self.host(pid)).unwrap().word(at).unwrap()
    }
}

fn status(host: i32, tid: i32) -> HashMap<String, String> {
    let found = crate::remote::thread_tids(host).unwrap();
    let text = std::fs::read_to_string(format!("/proc/{host}/task/{}/status", found[&tid])).unwrap();
    let pair = |l: &str| l.split_once(':').map(|(k, v)| (k.to_owned(), v.trim().to_owned()));
    text.lines().filter_map(pair).collect()
}

fn bits(signals: &[i32]) -> String {
    format!("{:016x}", signals.iter().fold(0u64, |set, n| set | 1 << (n - 1)))
}

pub(super) fn state_of(procs: Vec<ProcessState>) -> PodState {
    PodState { procs, last_pid: 77, ..PodState::default() }
}

#[test]
fn threads_run_on_only_when_thawed() {
    let mut nodes = vec![node(5, 1, 5, 5), node(40, 5, 5, 5)];
    nodes[0].tids = vec![5, 17, 9, 300];
    let mut st = stage(nodes);
    let tids = [5, 17, 9, 300];
    let threads = tids
        .iter()
        .enumerate()
        .map(|(n, tid)| thread(*tid, COUNT_AT, DATA + 8 * n as u64, &st.xstate))
        .collect();
    let other = process(40, vec![thread(40, COUNT_AT, DATA, &st.xstate)]);
    let state = state_of(vec![process(5, threads), other]);
    let start = Instant::now();
    st.finish(&state, &HashMap::new()).unwrap();
    eprintln!("finish: {:?} {:?}", start.elapsed(), st.builder.stages());
    let mut left = st.leave();
    let host = left.host(5);
    let found = crate::remote::thread_tids(host).unwrap();
    assert_eq!(found.keys().copied().collect::<std::collections::BTreeSet<_>>(), tids.into());
    for tid in tids {
        assert_eq!(status(host, tid)["Name"], format!("thread {tid}"));
        assert_eq!(status(host, tid)["TracerPid"], "0");
    }
    let text = std::fs::read_to_string(format!("/proc/{host}/maps")).unwrap();
    assert_eq!(text.matches("rwxp").count(), 1, "only the code page of the test: {text}");
    let before: Vec<u64> = (0..4).map(|n| left.word(5, DATA + 8 * n)).collect();
    assert_eq!(before, [0, 0, 0, 0]);
    left.pod.freezer().thaw().unwrap();
    for n in 0..4 {
        until("every thread counts", || (left.word(5, DATA + 8 * n) > 1000).then_some(()));
    }
    until("the child counts", || (left.word(40, DATA) > 1000).then_some(()));
    // Init does its work again, and the pid cursor stands where it stood.
    let shown = Command::new("nsenter")
        .args(["-t", &left.pod.init.to_string(), "-p", "-m", "cat", "/proc/sys/kernel/ns_last_pid"])
        .output()
        .unwrap();
    // nsenter's own fork took the next one.
    assert_eq!(String::from_utf8_lossy(&shown.stdout).trim(), "78");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(host), nix::sys::signal::SIGKILL).unwrap();
    assert_eq!(left.pod.ended(), (5, libc::SIGKILL));
}

#[test]
fn descriptors_come_under_their_numbers() {
    let mut st = stage(vec![node(5, 1, 5, 5), node(6, 5, 5, 5)]);
    let dir = st.pod.dir.path().to_owned();
    let path = |n: u32| dir.join(format!("f{n}"));
    let files: HashMap<FileId, OwnedFd> = (0..5)
        .map(|n| {
            std::fs::write(path(n), b"x").unwrap();
            (FileId(n), std::fs::File::open(path(n)).unwrap().into())
        })
        .collect();
    let described = OpenFile { flags: 0, owner: (0, 0, 0), kind: FileKind::Port(Port::Stdout) };
    let entry = |fd, file, cloexec| FdEntry { fd, file: FileId(file), cloexec };
    let mut first = process(5, vec![thread(5, PAUSE_AT, 0, &st.xstate)]);
    first.fds = vec![
        entry(0, 0, false),
        entry(2, 1, true),
        entry(6, 2, false),
        entry(7, 3, true),
        entry(900, 4, true),
        entry(901, 0, false),
    ];
    let mut second = process(6, vec![thread(6, PAUSE_AT, 0, &st.xstate)]);
    second.fds = (0..600).map(|n| entry(n, n as u32 % 5, n % 3 == 0)).collect();
    let expected = [first.fds.clone(), second.fds.clone()];
    let mut state = state_of(vec![first, second]);
    state.files = vec![described; 5];
    st.finish(&state, &files).unwrap();
    let left = st.leave();
    for (pid, wanted) in [5, 6].into_iter().zip(expected) {
        let host = left.host(pid);
        let mut found: Vec<i32> = std::fs::read_dir(format!("/proc/{host}/fd"))
            .unwrap()
            .map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        found.sort_unstable();
        assert_eq!(found, wanted.iter().map(|e| e.fd).collect::<Vec<_>>());
        for e in &wanted {
            let link = std::fs::read_link(format!("/proc/{host}/fd/{}", e.fd)).unwrap();
            assert_eq!(link, path(e.file.0));
            let info = std::fs::read_to_string(format!("/proc/{host}/fdinfo/{}", e.fd)).unwrap();
            let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap().trim().to_owned();
            let flags = i32::from_str_radix(&flags, 8).unwrap();
            assert_eq!(flags & libc::O_CLOEXEC != 0, e.cloexec, "{e:?}");
        }
    }
    // Shared as they were: one open file description.
    let (a, b) = (left.host(5), left.host(6));
    assert_eq!(crate::kernel::kcmp::file((a, 0), (b, 5)).unwrap(), std::cmp::Ordering::Equal);
}

#[test]
fn signals_timers_and_settings_are_as_they_were() {
    let mut nodes = vec![node(5, 1, 5, 5)];
    nodes[0].tids = vec![5, 6];
    let mut st = stage(nodes);
    let mut leader = thread(5, PAUSE_AT, 0, &st.xstate);
    leader.signals.mask = (1 << 9) | (1 << 11) | (1 << 16) | (1 << 22) | (1 << 33);
    leader.signals.pending = vec![info(12, -6, 0), info(34, -1, 1), info(34, -1, 2)];
    leader.cpu.robust_list = (DATA + 0x800, 24);
    leader.cpu.tid_address = DATA + 0x900;
    leader.pdeath_signal = 15;
    leader.sched = Sched { nice: 5, timerslack_ns: 77_000, ioprio: (2 << 13) | 6, ..Sched::default() };
    let mut other = thread(6, PAUSE_AT, 0, &st.xstate);
    other.signals.mask = 1 << 9;
    other.signals.altstack = (DATA + 0x1000, 0, 8192);
    other.sched = Sched { policy: libc::SCHED_BATCH, timerslack_ns: 50_000, ..Sched::default() };
    let mut p = process(5, vec![leader, other]);
    // SIGURG and SIGCHLD too: the ends of our own batches must not be confused with what waits.
    p.signals.pending = vec![info(10, 0, 0), info(17, 1, 0), info(23, -1, 9), info(34, -1, 3)];
    p.signals.actions[9] = SigAction { handler: CODE, flags: 0x0400_0000, restorer: CODE, mask: 1 << 4 };
    p.signals.actions[12] = SigAction { handler: 1, ..SigAction::default() };
    let timer = |id, notify, tid, value_ns| PosixTimer {
        id,
        clock: libc::CLOCK_MONOTONIC,
        notify,
        signo: 10,
        sigval: 0xabc,
        tid,
        time: Itimer { value_ns, interval_ns: 7_000_000_000 },
        overrun: 0,
    };
    p.timers.posix = vec![timer(0, 0, 0, 0), timer(3, 4, 6, 3_600_000_000_000)];
    p.timers.itimers[0] = Itimer { value_ns: 1_000_000_000_000, interval_ns: 0 };
    p.rlimits = vec![(libc::RLIMIT_NOFILE, 100, 200), (libc::RLIMIT_CORE, 0, 0)];
    (p.oom_score_adj, p.coredump_filter, p.subreaper, p.dumpable, p.thp_disable) = (500, 0x7f, true, 0, true);
    p.personality = 0x0040000; // ADDR_NO_RANDOMIZE
    p.membarrier = 1 << 4; // MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED
    st.finish(&state_of(vec![p]), &HashMap::new()).unwrap();
    let (host, asked) = (st.host(5), ask(&mut st));
    assert_eq!(asked, (1 << 4, DATA + 0x900, 15, 1, 1, 0x1000 + DATA));
    let left = st.leave();
    let s = status(host, 5);
    assert_eq!(s["SigBlk"], bits(&[10, 12, 17, 23, 34]));
    assert_eq!((s["SigPnd"].as_str(), s["ShdPnd"].as_str()), (&*bits(&[12, 34]), &*bits(&[10, 17, 23, 34])));
    assert_eq!((s["SigCgt"].as_str(), s["SigIgn"].as_str()), (&*bits(&[10]), &*bits(&[13])));
    assert_eq!(status(host, 6)["SigBlk"], bits(&[10]));
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{host}/{name}")).unwrap();
    let timers = read("timers");
    assert!(
        timers.contains("ID: 0\n") && timers.contains("ID: 3\n") && !timers.contains("\nID: 1\n"),
        "{timers}"
    );
    assert_eq!((read("oom_score_adj").trim(), read("coredump_filter").trim()), ("500", "0000007f"));
    assert_eq!(read("personality").trim(), "00040000");
    assert!(read("limits").contains("Max open files            100                  200 "));
    assert_eq!(read("timerslack_ns").trim(), "77000");
    assert_eq!(std::fs::read_link(format!("/proc/{host}/cwd")).unwrap(), Path::new("/tmp"));
    assert_eq!(s["Umask"], "0027");
    let attr = crate::kernel::sched::attributes(host).unwrap();
    assert_eq!(attr.nice, 5);
    assert_eq!(crate::kernel::sched::ioprio(host).unwrap(), (2 << 13) | 6);
    drop(left);
}

/// What only the process itself can tell, asked while it is still ours: (membarrier, tid address, pdeath signal,
/// subreaper, THP off, alternate stack of the other thread).
fn ask(st: &mut Stage) -> (i64, u64, i32, i32, i32, u64) {
    let at = st.tree.mms[0].vmas.iter().find(|v| v.backing == Backing::Vdso).unwrap().range.start
        + st.builder.vdso_syscall.unwrap();
    let room = DATA + 0x3000;
    let body = st.builder.bodies.get_mut(&5).unwrap();
    let mem = crate::remote::Mem::open(body.host).unwrap();
    let mut call = |n: usize, nr, args| body.threads[n].1.syscall_at(at, nr, args).unwrap().unwrap();
    let barrier = call(0, libc::SYS_membarrier, [512, 0, 0, 0, 0, 0]); // GET_REGISTRATIONS
    let mut prctl = |option: i32, second: u64| call(0, libc::SYS_prctl, [option as u64, second, 0, 0, 0, 0]);
    prctl(libc::PR_GET_TID_ADDRESS, room);
    prctl(libc::PR_GET_PDEATHSIG, room + 8);
    prctl(libc::PR_GET_CHILD_SUBREAPER, room + 16);
    let thp = prctl(libc::PR_GET_THP_DISABLE, 0) as i32;
    call(1, libc::SYS_sigaltstack, [0, room + 24, 0, 0, 0, 0]);
    let word = |at| mem.word(at).unwrap();
    (barrier, word(room), word(room + 8) as i32, word(room + 16) as i32, thp, word(room + 24))
}

#[test]
fn credentials_are_put_on_per_thread() {
    let mut nodes = vec![node(5, 1, 5, 5)];
    nodes[0].tids = vec![5, 6];
    let mut st = stage(nodes);
    let mut leader = thread(5, PAUSE_AT, 0, &st.xstate);
    let caps = (1 << 10) | (1 << 13);
    leader.cred = Cred {
        uids: [1000, 1001, 1002, 1003],
        gids: [100, 101, 102, 103],
        groups: vec![4, 24, 100],
        cap_inh: 1 << 10,
        cap_prm: caps,
        cap_eff: 1 << 13,
        cap_bnd: caps | 1,
        cap_amb: 1 << 10,
        securebits: 0x2f,
        no_new_privs: true,
        seccomp: crate::state::cred::Seccomp::PodProfile,
    };
    leader.pdeath_signal = 9;
    let other = thread(6, PAUSE_AT, 0, &st.xstate);
    let state = state_of(vec![process(5, vec![leader, other])]);
    st.finish(&state, &HashMap::new()).unwrap();
    let host = st.host(5);
    let left = st.leave();
    let s = status(host, 5);
    assert_eq!((s["Uid"].as_str(), s["Gid"].as_str()), ("1000\t1001\t1002\t1003", "100\t101\t102\t103"));
    assert_eq!(s["Groups"].trim(), "4 24 100");
    let hex = |n: u64| format!("{n:016x}");
    assert_eq!((&s["CapInh"], &s["CapPrm"], &s["CapEff"]), (&hex(1 << 10), &hex(caps), &hex(1 << 13)));
    assert_eq!((&s["CapBnd"], &s["CapAmb"]), (&hex(caps | 1), &hex(1 << 10)));
    assert_eq!(
        (s["NoNewPrivs"].as_str(), s["Seccomp"].as_str(), s["Seccomp_filters"].as_str()),
        ("1", "2", "1")
    );
    let s = status(host, 6);
    assert_eq!(
        (s["Uid"].as_str(), s["Seccomp"].as_str(), s["NoNewPrivs"].as_str()),
        ("0\t0\t0\t0", "0", "0")
    );
    assert_eq!(s["CapEff"], hex(root().cap_eff));
    drop(left);
}

#[test]
fn what_is_not_to_be_had_is_refused() {
    let mut st = stage(vec![node(5, 1, 5, 5)]);
    let mut leader = thread(5, PAUSE_AT, 0, &st.xstate);
    leader.cred.cap_prm |= 1 << 63;
    let refused = st.finish(&state_of(vec![process(5, vec![leader])]), &HashMap::new());
    assert!(matches!(refused, Err(Error::Unfit { pid: 5, .. })), "{refused:?}");
    st.builder.abort();
    let mut st = stage(vec![node(5, 1, 5, 5)]);
    let mut p = process(5, vec![thread(5, PAUSE_AT, 0, &st.xstate)]);
    p.cwd = b"/no/such/dir".to_vec();
    let refused = st.finish(&state_of(vec![p]), &HashMap::new()).unwrap_err();
    let told = crate::base::Failure::from(refused).to_string();
    assert_eq!(told, "process 5: chdir to /no/such/dir: ENOENT: No such file or directory");
    st.builder.abort();
    let mut st = stage(vec![node(5, 1, 5, 5)]);
    let p = process(5, vec![thread(5, PAUSE_AT, 0, &st.xstate[..64])]);
    let refused = st.finish(&state_of(vec![p]), &HashMap::new()).unwrap_err();
    assert!(refused.to_string().contains("extended CPU state"), "{refused}");
}

#[test]
fn a_stopped_job_is_stopped_again_and_nobody_hears_of_it() {
    let mut nodes = vec![node(5, 1, 5, 5), node(6, 5, 6, 5), node(7, 1, 7, 7)];
    nodes[1].tids = vec![6, 16];
    nodes.push(ProcNode { zombie: Some(0), ..node(8, 5, 5, 5) });
    let mut st = stage(nodes);
    let mut shell = process(5, vec![thread(5, PAUSE_AT, 0, &st.xstate)]);
    // A handler for SIGCHLD that would count at DATA: none may come.
    shell.signals.actions[16] = SigAction { handler: COUNT_AT, flags: 0x0400_0000, restorer: CODE, mask: 0 };
    shell.threads[0].cpu.regs.rbx = DATA;
    let threads = vec![thread(6, COUNT_AT, DATA, &st.xstate), thread(16, COUNT_AT, DATA + 8, &st.xstate)];
    let stopped = ProcessState { stopped: Some(libc::SIGTSTP), ..process(6, threads) };
    let mut pending = process(7, vec![thread(7, COUNT_AT, DATA, &st.xstate)]);
    pending.signals.pending = vec![info(libc::SIGSTOP, 0, 0)];
    let state = state_of(vec![shell, stopped, pending]);
    st.finish(&state, &HashMap::new()).unwrap();
    let left = st.leave();
    left.pod.freezer().thaw().unwrap();
    until("the job is stopped", || (status(left.host(6), 6)["State"].starts_with('T')).then_some(()));
    until("its thread too", || (status(left.host(6), 16)["State"].starts_with('T')).then_some(()));
    until("the other took its SIGSTOP", || (status(left.host(7), 7)["State"].starts_with('T')).then_some(()));
    assert_eq!((left.word(6, DATA), left.word(6, DATA + 8), left.word(7, DATA)), (0, 0, 0));
    assert_eq!(left.word(5, DATA), 0, "the parent was told of a stop it knows");
    let host = nix::unistd::Pid::from_raw(left.host(6));
    nix::sys::signal::kill(host, nix::sys::signal::SIGCONT).unwrap();
    until("the parent hears that it goes on", || (left.word(5, DATA) > 0).then_some(()));
    until("the job counts", || (left.word(6, DATA) > 1000 && left.word(6, DATA + 8) > 1000).then_some(()));
    drop(left);
}

#[test]
fn killing_the_builders_thread_leaves_no_skeleton() {
    let pod = Pod::new();
    let t = tree(&pod, vec![node(5, 1, 5, 5), node(6, 5, 5, 5)]);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut builder = pod.builder();
            builder.skeleton(&t).unwrap();
            // As if this process had been killed: nothing is undone.
            std::mem::forget(builder);
        });
    });
    // Init dies, too, with our code in it: then the pod's monitor sees that this attempt is over.
    until("skeletons die with their tracer", || {
        pod.cgroup.procs().unwrap().into_iter().all(|pid| pid == pod.init).then_some(())
    });
}

/// Not a test of time, a look at it: one process of 60 mappings and 5 threads, best of 20.
/// `cargo test --lib state::target::tests::finish::how_long -- --ignored --nocapture`
#[test]
#[ignore = "prints times"]
fn how_long() {
    let mut best: HashMap<&str, Duration> = HashMap::new();
    let mut order = Vec::new();
    for _ in 0..20 {
        let mut nodes = vec![node(5, 1, 5, 5)];
        nodes[0].tids = (5..10).collect();
        let pod = Pod::new();
        let mut tree = tree(&pod, nodes);
        let rw = VmaFlags::READ | VmaFlags::WRITE;
        let more = (0..54).map(|n| {
            let backing = if n % 2 == 0 { Backing::Anon } else { file(0, 0) };
            vma(DATA + n * 0x10_0000, 1, rw, backing)
        });
        tree.mms = vec![layout(5, more.collect())];
        let mut builder = pod.builder();
        builder.check_files(&tree).unwrap();
        let skeleton = builder.skeleton(&tree).unwrap();
        crate::remote::Mem::open(skeleton.pids[&MmId(5)]).unwrap().write(PAUSE_AT, &PAUSE).unwrap();
        let xstate = builder.bodies[&5].threads[0].1.xstate().unwrap();
        let threads = (5..10).map(|tid| thread(tid, PAUSE_AT, 0, &xstate)).collect();
        builder.finish(&tree, &state_of(vec![process(5, threads)])).unwrap();
        order = builder.stages().iter().map(|(name, _)| *name).collect();
        for (name, time) in builder.stages() {
            let entry = best.entry(name).or_insert(*time);
            *entry = (*entry).min(*time);
        }
        builder.detach_frozen().unwrap();
    }
    for name in order {
        eprintln!("{name:40} {:>8.0?}", best[name]);
    }
    eprintln!("{:40} {:>8.0?}", "sum", best.values().sum::<Duration>());
}
