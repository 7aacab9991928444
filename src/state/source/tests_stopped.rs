//! Stopped pods read whole, compared with what the programs say of themselves.

use super::fixture::{Pod, until};
use super::{HostPids, PodView, Snapshot, Source};
use crate::base::Failure;
use crate::freeze::{self, PodTasks, StoppedPod};
use crate::state::Tree;
use crate::state::cred::Seccomp;
use crate::state::error::Error;
use crate::state::inet::collect::{RepairedSocket, unrepair};
use crate::state::task::ProcessState;

fn stop(pod: &Pod) -> StoppedPod {
    freeze::stop_all(&PodTasks { cgroup: pod.view().cgroup, init: pod.init }).unwrap()
}

/// The whole way over one stop: prepared, stopped, read, released.
fn snapshot(pod: &Pod) -> (Tree, Snapshot, HostPids) {
    let mut source = pod.source();
    source.prepare().unwrap();
    let mut stopped = stop(pod);
    let (tree, hosts) = source.tree(&mut stopped).unwrap();
    let snapshot = source.collect(&stopped, &mut |_| Ok(())).unwrap();
    stopped.release().unwrap();
    (tree, snapshot, hosts)
}

/// A program with something of everything, which then says what it did.
const RICH: &str = r#"
import faulthandler, json, resource, struct
def work():
    os.setsid()
    fact = {}
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong]*4
    libc.sigaltstack.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
    class Action(ctypes.Structure):
        _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong*16), ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]
    handler = HANDLER(lambda n: None)
    act = Action(ctypes.cast(handler, ctypes.c_void_p).value, (ctypes.c_ulong*16)(1 << 14), 0x08000000)  # SA_ONSTACK, mask SIGTERM
    libc.sigaction(40, ctypes.byref(act), None)
    fact["handler"] = act.handler
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 1000, 5.5)
    signal.setitimer(signal.ITIMER_PROF, 300)
    class Event(ctypes.Structure):
        _fields_ = [("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int), ("tid", ctypes.c_int), ("pad", ctypes.c_char*40)]
    spec = struct.pack("qqqq", 7, 250, 2000, 0)
    for i, (notify, clock) in enumerate([(0, 1), (4, 0), (1, 1)]):
        id = ctypes.c_int()
        ev = Event(0xdeadbeefcafe0000 + i, 41, notify, os.getpid())
        assert libc.syscall(222, clock, ctypes.byref(ev), ctypes.byref(id)) == 0
        if i < 2: assert libc.syscall(223, id.value, 0, spec, None) == 0
    signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR1, signal.SIGUSR2, 50])
    os.kill(os.getpid(), signal.SIGUSR1)
    libc.sigqueue.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    for v in (111, 222): libc.sigqueue(os.getpid(), 50, v)
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
    stack = ctypes.create_string_buffer(65536)
    fact["altstack"] = ctypes.addressof(stack)
    assert libc.sigaltstack(struct.pack("Qii Q", fact["altstack"], 0, 0, 65536), None) == 0
    libc.prctl(36, 1, 0, 0, 0)          # PR_SET_CHILD_SUBREAPER
    libc.prctl(41, 1, 0, 0, 0)          # PR_SET_THP_DISABLE
    libc.syscall(324, 1 << 4, 0, 0)     # MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED
    resource.setrlimit(resource.RLIMIT_NOFILE, (77, 99))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY))
    os.umask(0o137); os.chdir("/usr/lib")
    open("/proc/self/oom_score_adj", "w").write("321")
    open("/proc/self/coredump_filter", "w").write("0x7")
    libc.personality(0x0040000)         # ADDR_NO_RANDOMIZE
    os.setpriority(os.PRIO_PROCESS, 0, -3); os.sched_setaffinity(0, {0})
    os.setgroups([5, 6, 70000])
    libc.prctl(24, 21, 0, 0, 0)         # PR_CAPBSET_DROP CAP_SYS_ADMIN
    libc.prctl(28, 1 << 4, 0, 0, 0)     # PR_SET_SECUREBITS SECBIT_KEEP_CAPS
    os.setresgid(10, 11, 12); os.setresuid(20, 21, 22)
    libc.prctl(38, 1, 0, 0, 0)          # PR_SET_NO_NEW_PRIVS
    libc.prctl(4, 1, 0, 0, 0)           # PR_SET_DUMPABLE
    libc.prctl(1, 12, 0, 0, 0)          # PR_SET_PDEATHSIG
    libc.prctl(29, 123456, 0, 0, 0)     # PR_SET_TIMERSLACK
    libc.prctl(15, ctypes.addressof(ctypes.create_string_buffer(b"ri)ch \xff")), 0, 0, 0)
    def other():
        small = ctypes.create_string_buffer(16384)
        libc.sigaltstack(struct.pack("Qii Q", ctypes.addressof(small), 0, 0, 16384), None)
        signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGTERM, signal.SIGUSR1, 50])
        libc.prctl(15, ctypes.addressof(ctypes.create_string_buffer(b"other")), 0, 0, 0)
        fact["small"] = ctypes.addressof(small)
        fact["other"] = threading.get_native_id()
        done.set(); pause()
    done = threading.Event()
    threading.Thread(target=other, daemon=True).start(); done.wait()
    # Which signal is next is not ours to wait for: read blocks until the test writes.
    fact["pid"] = os.getpid()
    libc.sbrk.restype = ctypes.c_ulong
    fact["brk"] = libc.sbrk(0)
    fact["fs"] = threading.get_ident()  # pthread_self, which is fs_base
    fact["monotonic"] = time.monotonic_ns()
    say(json.dumps(fact))
    before = os.read(0, 1)
    left = signal.getitimer(signal.ITIMER_REAL)
    pending = sorted(int(s) for s in signal.sigpending())
    say(json.dumps({"read": len(before), "left": left[0], "interval": left[1], "pending": pending,
                    "brk": libc.sbrk(0), "mapped": sum(l.startswith("2f70") for l in open("/proc/self/maps"))}))
    pause()
fork(work)
pause()
"#;

fn word(facts: &serde_json::Value, key: &str) -> u64 {
    facts[key].as_u64().unwrap_or_else(|| panic!("{key} in {facts}"))
}

fn info(signal: &crate::state::signal::QueuedSignal, at: usize) -> i32 {
    i32::from_ne_bytes(signal.info[at..at + 4].try_into().unwrap())
}

#[test]
fn everything_of_a_process_is_what_it_says_itself() {
    let mut pod = Pod::start(RICH);
    let facts: serde_json::Value = serde_json::from_str(&pod.line()).unwrap();
    let (pid, other) = (word(&facts, "pid") as i32, word(&facts, "other") as i32);
    let host = pod.host(pid);
    let (tree, snap, hosts) = snapshot(&pod);
    assert_eq!(snap.state.procs.len(), 1);
    let p = &snap.state.procs[0];
    assert_eq!((p.pid, hosts[&tree.mms[0].mm]), (pid, host));
    assert_eq!(p.threads.iter().map(|t| t.tid).collect::<Vec<_>>(), [pid, other]);
    assert_eq!(tree.procs[0].tids, [pid, other]);
    signals_are_right(p, &facts);
    timers_are_right(p);
    surroundings_are_right(p);
    credentials_are_right(p);
    let (lead, second) = (&p.threads[0], &p.threads[1]);
    assert_eq!((lead.comm.as_slice(), second.comm.as_slice()), (&b"ri)ch \xff"[..], &b"other"[..]));
    assert_eq!((lead.pdeath_signal, second.pdeath_signal), (12, 0));
    assert_eq!((lead.sched.timerslack_ns, lead.sched.nice), (123_456, -3));
    assert_eq!((&lead.sched.affinity, lead.sched.policy), (&vec![1], libc::SCHED_OTHER));
    // pthread_self is fs_base; glibc registers tid address, robust list and rseq within the thread's own block.
    assert_eq!(lead.cpu.regs.fs_base, word(&facts, "fs"));
    for thread in &p.threads {
        let near = |addr: u64| addr.abs_diff(thread.cpu.regs.fs_base) < 0x1000;
        assert!(near(thread.cpu.tid_address) && near(thread.cpu.robust_list.0), "{thread:?}");
        assert_eq!(thread.cpu.robust_list.1, 24);
        assert!(thread.cpu.rseq.is_some_and(|r| near(r.addr) && r.len >= 32));
        assert!(thread.cpu.xstate.len() >= 576);
    }
    // Blocked in read(0, …): rewound, the number of the call in rax, at its `syscall` instruction.
    assert_eq!((lead.cpu.regs.rax, lead.cpu.regs.rdi), (libc::SYS_read as u64, 0));
    let borders = &tree.mms[0].borders;
    assert_eq!(borders.brk, word(&facts, "brk"));
    assert!(tree.mms[0].vmas.iter().all(|v| !crate::remote::is_scratch(v.range)));
    let now = snap.state.monotonic_ns;
    assert!(now > facts["monotonic"].as_i64().unwrap() && snap.state.boottime_ns >= now);
    assert!(snap.state.last_pid >= other, "{}", snap.state.last_pid);
    // It never noticed.
    pod.go_on();
    let after: serde_json::Value = serde_json::from_str(&pod.line()).unwrap();
    assert_eq!((word(&after, "read"), word(&after, "mapped"), &after["brk"]), (1, 0, &facts["brk"]));
    assert_eq!(after["pending"], serde_json::json!([10, 12, 50]));
    assert!(after["left"].as_f64().unwrap() > 900.0 && after["interval"].as_f64() == Some(5.5));
}

fn signals_are_right(p: &ProcessState, facts: &serde_json::Value) {
    let action = |n: usize| p.signals.actions[n - 1];
    assert_eq!(p.signals.actions.len(), 64);
    let own = action(40);
    assert_eq!((own.handler, own.mask), (word(facts, "handler"), 1 << 14));
    assert_eq!(own.flags & 0x0c00_0000, 0x0c00_0000, "SA_ONSTACK and SA_RESTORER: {:#x}", own.flags);
    assert!(own.restorer != 0);
    assert_eq!((action(1).handler, action(2).handler > 1, action(9).handler), (1, true, 0));
    // SIGUSR1 by kill, two queued of 50 with their values, for the process; SIGUSR2 for the thread.
    let all: Vec<_> = p.signals.pending.iter().map(|s| (info(s, 0), info(s, 8), info(s, 24))).collect();
    let (user, queue) = (0, -1);
    assert_eq!(all.len(), 3);
    assert_eq!((all[0].0, all[0].1), (10, user));
    assert_eq!(all[1..], [(50, queue, 111), (50, queue, 222)]);
    let [lead, second] = &p.threads[..] else { panic!("two threads") };
    assert_eq!(lead.signals.pending.iter().map(|s| (info(s, 0), info(s, 8))).collect::<Vec<_>>(), [(12, -6)]);
    let bit = |n: i32| 1u64 << (n - 1);
    assert_eq!(
        (lead.signals.mask, second.signals.mask),
        (bit(10) | bit(12) | bit(50), bit(10) | bit(15) | bit(50))
    );
    assert_eq!(lead.signals.altstack, (word(facts, "altstack"), 0, 65536));
    assert_eq!(second.signals.altstack, (word(facts, "small"), 0, 16384));
}

fn timers_are_right(p: &ProcessState) {
    let second = 1_000_000_000;
    let [real, virt, prof] = p.timers.itimers;
    assert!((900 * second..=1000 * second).contains(&real.value_ns) && real.interval_ns == 5_500_000_000);
    assert_eq!((virt.value_ns, virt.interval_ns), (0, 0));
    assert!((200 * second..=301 * second).contains(&prof.value_ns), "{prof:?}");
    let kinds: Vec<_> = p.timers.posix.iter().map(|t| (t.id, t.clock, t.notify, t.signo, t.tid)).collect();
    let thread = libc::SIGEV_THREAD_ID;
    assert_eq!(
        kinds,
        [(0, 1, libc::SIGEV_SIGNAL, 41, 0), (1, 0, thread, 41, p.pid), (2, 1, libc::SIGEV_NONE, 41, 0)]
    );
    for (i, timer) in p.timers.posix.iter().enumerate() {
        assert_eq!(timer.sigval, 0xdead_beef_cafe_0000 + i as u64);
        let armed = i < 2;
        assert_eq!((1900 * second..=2000 * second).contains(&timer.time.value_ns), armed, "{timer:?}");
        assert_eq!(timer.time.interval_ns, if armed { 7 * second + 250 } else { 0 });
        assert_eq!(timer.overrun, 0);
    }
}

fn surroundings_are_right(p: &ProcessState) {
    assert_eq!((p.cwd.as_slice(), p.root.as_slice(), p.umask), (&b"/usr/lib"[..], &b"/"[..], 0o137));
    let limit = |n: u32| *p.rlimits.iter().find(|l| l.0 == n).unwrap();
    assert_eq!(limit(libc::RLIMIT_NOFILE), (libc::RLIMIT_NOFILE, 77, 99));
    assert_eq!(limit(libc::RLIMIT_CORE), (libc::RLIMIT_CORE, 0, libc::RLIM_INFINITY));
    assert_eq!(p.rlimits.len(), 16);
    assert_eq!((p.oom_score_adj, p.coredump_filter, p.personality), (321, 7, 0x0004_0000));
    assert_eq!((p.dumpable, p.subreaper, p.thp_disable, p.stopped), (1, true, true, None));
    assert!(p.membarrier & 1 << 4 != 0 || p.membarrier == 0, "{:#x}", p.membarrier);
    assert_eq!(p.fds.iter().map(|f| f.fd).collect::<Vec<_>>()[..3], [0, 1, 2]);
}

fn credentials_are_right(p: &ProcessState) {
    let cred = &p.threads[0].cred;
    assert_eq!((cred.uids, cred.gids), ([20, 21, 22, 21], [10, 11, 12, 11]));
    assert_eq!(cred.groups, [5, 6, 70000]);
    let admin = 1u64 << 21;
    // Capabilities were kept (SECBIT_KEEP_CAPS) but no longer effective.
    assert_eq!((cred.cap_bnd & admin, cred.cap_eff, cred.cap_amb), (0, 0, 0));
    assert!(cred.cap_prm != 0 && cred.cap_inh == 0);
    assert_eq!((cred.securebits, cred.no_new_privs, cred.seccomp), (1 << 4, true, Seccomp::None));
}

#[test]
fn a_process_stopped_by_job_control_stays_so() {
    // In a group of its own: SIGTSTP is discarded in an orphaned one, and ours may be (a shell that went on).
    let mut pod = Pod::start(
        "fork(lambda: (os.setpgid(0, 0), say(os.getpid()), os.kill(os.getpid(), signal.SIGTSTP), pause()))\npause()",
    );
    let pid = pod.line().parse().unwrap();
    let host = pod.host(pid);
    let state = || {
        let text = std::fs::read(format!("/proc/{host}/stat")).unwrap();
        crate::kernel::procfs::Stat::parse(&text).unwrap().state
    };
    until("the stop", || (state() == b'T').then_some(()));
    let (_, snap, _) = snapshot(&pod);
    assert_eq!(snap.state.procs[0].stopped, Some(libc::SIGTSTP));
    until("the stop again", || (state() == b'T').then_some(()));
}

/// Starts redis-server with `MIB` of data, and is `CLIENTS` clients that count.
const REDIS: &str = r#"
def server():
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2): os.dup2(null, fd)
    os.execv("/usr/bin/redis-server", ["redis-server", "--port", "7000", "--save", "", "--dir", "/tmp", "--io-threads", "2", "--enable-debug-command", "yes"])
pid = fork(server)
def connect():
    while True:
        try: return socket.create_connection(("127.0.0.1", 7000))
        except ConnectionRefusedError: time.sleep(0.01)
def ask(s, text):
    s.sendall(text.encode() + b"\r\n")
    got = b""
    while not got.endswith(b"\r\n"): got += s.recv(65536)
    return got.strip().decode()
first = connect()
assert ask(first, "DEBUG POPULATE %d key 1000" % (MIB * 1000)) == "+OK"
all = [first] + [connect() for _ in range(CLIENTS - 1)]
say(pid)
while True:
    wait()
    say(*[ask(s, "INCR n") for s in all])
"#;

/// redis-server on a loopback port with clients. `PMCOLLECT_MIB` of data (32), `PMCOLLECT_CLIENTS` (100) and
/// `PMCOLLECT_ROUNDS` (3) may be set to measure; times are printed.
#[test]
fn redis_with_clients_is_read_and_goes_on() {
    let env =
        |name: &str, default: u32| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (mib, clients) = (env("PMCOLLECT_MIB", 32), env("PMCOLLECT_CLIENTS", 100));
    let rounds = env("PMCOLLECT_ROUNDS", 3);
    let code = REDIS.replace("MIB", &mib.to_string()).replace("CLIENTS", &clients.to_string());
    // The clients are pid 1, which is not read: only the server is in the way of nothing.
    let mut pod = Pod::start(&code);
    let line = pod.line();
    let pid: i32 = line.parse().unwrap_or_else(|_| panic!("{line}"));
    let count =
        |round: u32| (1..=clients).map(|i| format!(":{}", round * clients + i)).collect::<Vec<_>>().join(" ");
    let mut source = pod.source();
    let timed = |what: &str, start: std::time::Instant| println!("{what:>20} {:?}", start.elapsed());
    let now = std::time::Instant::now;
    let t = now();
    assert_eq!(source.preflight().unwrap(), []);
    timed("preflight", t);
    let t = now();
    source.prepare().unwrap();
    timed("prepare", t);
    for round in 0..rounds {
        pod.go_on();
        assert_eq!(pod.line(), count(round));
        let t = now();
        let mut stopped = stop(&pod);
        timed("stop", t);
        let t = now();
        let (tree, _) = source.tree(&mut stopped).unwrap();
        timed("tree", t);
        let t = now();
        let mut told = Vec::new();
        let mut note = |all: &[RepairedSocket]| -> Result<(), Failure> {
            told.extend_from_slice(all);
            Ok(())
        };
        let snap = source.collect(&stopped, &mut note).unwrap();
        timed("collect", t);
        assert_eq!(
            (tree.procs.len(), tree.procs[0].pid, snap.state.procs[0].threads.len() >= 5),
            (1, pid, true)
        );
        assert_eq!((told.len(), snap.kept), (clients as usize, clients as usize));
        told.iter().for_each(|socket| unrepair(socket).unwrap());
        stopped.release().unwrap();
    }
}

/// A filter as prctl(PR_SET_SECCOMP) takes it, in hexadecimal digits.
fn hex(program: &[libc::sock_filter]) -> String {
    let words = program.iter().flat_map(|i| {
        let mut bytes = i.code.to_le_bytes().to_vec();
        bytes.extend([i.jt, i.jf]);
        bytes.extend(i.k.to_le_bytes());
        bytes
    });
    words.map(|b| format!("{b:02x}")).collect()
}

#[test]
fn podmigs_own_filter_is_known_and_any_other_refused() {
    let code = r#"
class F(ctypes.Structure): _fields_ = [("n", ctypes.c_ushort), ("p", ctypes.c_char_p)]
def filter(b): assert libc.prctl(22, 2, ctypes.byref(F(len(b) // 8, b))) == 0
def walled(more):
    def go():
        libc.prctl(38, 1, 0, 0, 0)
        for program in ["PROFILE"] + more: filter(bytes.fromhex(program))
        threading.Thread(target=pause, daemon=True).start()
        say("ready"); pause()
    return go
fork(walled([]))
wait()
fork(walled(["060000000000ff7f"]))
pause()
"#;
    let mut pod = Pod::start(&code.replace("PROFILE", &hex(&crate::sandbox::seccomp::profile())));
    pod.line();
    let mut source = Source::new(PodView { walled: true, ..pod.view() }).unwrap();
    assert_eq!(source.preflight().unwrap(), []);
    let mut stopped = stop(&pod);
    source.tree(&mut stopped).unwrap();
    let snap = source.collect(&stopped, &mut |_| Ok(())).unwrap();
    stopped.release().unwrap();
    let kinds: Vec<_> = snap.state.procs[0].threads.iter().map(|t| t.cred.seccomp).collect();
    assert_eq!(kinds, [Seccomp::PodProfile; 2]);
    // One more filter: found in advance by its number, and at the stop by its program.
    pod.go_on();
    pod.line();
    let found = source.preflight().unwrap();
    assert!(found.iter().all(|b| b.kind == "seccomp") && found.len() == 1, "{found:#?}");
    let mut stopped = stop(&pod);
    let refused = source.tree(&mut stopped);
    stopped.release().unwrap();
    assert!(matches!(refused, Err(Error::Refused(all)) if all == found || all[0].kind == "seccomp"));
}

#[test]
fn children_born_after_the_look_ahead_are_read_as_well() {
    let mut pod = Pod::start(
        r#"
def work():
    os.setsid()
    area = bytearray(50 << 20)
    say("ready")
    wait()
    for _ in range(3):
        def child(): os.setsid(); say("child"); pause()
        fork(child)
    pause()
fork(work)
pause()
"#,
    );
    pod.line();
    let mut source = pod.source();
    source.prepare().unwrap();
    pod.go_on();
    (0..3).for_each(|_| assert_eq!(pod.line(), "child"));
    let mut stopped = stop(&pod);
    let (tree, hosts) = source.tree(&mut stopped).unwrap();
    let snap = source.collect(&stopped, &mut |_| Ok(())).unwrap();
    // The truth, from scratch: another collector that has looked at nothing before.
    let mut fresh = pod.source();
    let (truth, _) = fresh.tree(&mut stopped).unwrap();
    stopped.release().unwrap();
    assert_eq!((tree.procs.len(), hosts.len(), snap.state.procs.len()), (4, 4, 4));
    assert!(tree == truth, "what was inferred is not what is");
    let order: Vec<_> = snap.state.procs.iter().map(|p| p.pid).collect();
    assert_eq!(order, tree.procs.iter().map(|p| p.pid).collect::<Vec<_>>());
}
