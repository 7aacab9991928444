//! Pods as such, on the real kernel: started, logged, signalled, joined, ended, and nothing left of them.

mod common;

use common::until;
use podmig::base::spec::{NetMode, NetSpec, PodSpec, Restart, StartType, User};
use podmig::base::{Kind, PodId, PodName};
use podmig::pod::client::Client;
use podmig::pod::launch::{self, StartIo, Started};
use podmig::pod::logs::Reader;
use podmig::pod::monitor::group_of;
use podmig::pod::proto::{Event, ExecSpec};
use podmig::pod::store::{Places, Record, Status, Store};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

/// A host of its own: a store in a temporary directory. What its pods leave is found at the end, and is a failure.
struct Host {
    dir: tempfile::TempDir,
    store: Store,
    specs: Vec<PodSpec>,
}

impl Host {
    fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Places::resolve(Some(dir.path())));
        Host { dir, store, specs: Vec::new() }
    }

    fn spec(&mut self, name: &str, cmd: &[&str]) -> PodSpec {
        let id = PodId::from_bits(u64::from_ne_bytes(random()));
        PodSpec {
            id,
            name: PodName::parse(name).unwrap(),
            cmd: cmd.iter().map(|s| (*s).to_owned()).collect(),
            env: vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()],
            cwd: "/".to_owned(),
            user: User::default(),
            umask: 0o22,
            rlimits: Vec::new(),
            hostname: name.to_owned(),
            net: NetSpec { mode: NetMode::None, ..NetSpec::default() },
            tty: false,
            start_type: StartType::Exec,
            grace_ms: 100,
            restart: Restart::No,
            rm: false,
            volumes: Vec::new(),
            tmpfs: Vec::new(),
            limits: podmig::base::spec::Limits::default(),
            cgroup_parent: None,
            privileged: false,
        }
    }

    fn io() -> StartIo {
        StartIo { exe: Some(PathBuf::from(env!("CARGO_BIN_EXE_podmig"))), ..StartIo::default() }
    }

    fn start(&mut self, spec: PodSpec) -> Result<Started, podmig::base::Failure> {
        self.specs.push(spec.clone());
        launch::start(&self.store, spec, Self::io())
    }

    fn sh(&mut self, name: &str, script: &str) -> Result<Started, podmig::base::Failure> {
        let spec = self.spec(name, &["sh", "-c", script]);
        self.start(spec)
    }

    fn record(&self, name: &str) -> Record {
        self.store.find(name).unwrap()
    }

    fn client(&self, name: &str) -> Client {
        Client::connect(&self.store, &self.record(name)).unwrap()
    }

    fn log(&self, name: &str) -> String {
        let path = self.store.places.log(&self.record(name).spec.id);
        let Ok(mut reader) = Reader::open(&path) else { return String::new() };
        let mut text = String::new();
        loop {
            let entries = reader.more().unwrap();
            if entries.is_empty() {
                return text;
            }
            for e in entries {
                text += &String::from_utf8_lossy(&e.text);
                text += if e.cut { "" } else { "\n" };
            }
        }
    }

    fn ended(&self, name: &str) -> i32 {
        until(LIMIT, "the pod's end", || self.record(name).exit_status)
    }

    fn groups(&self, spec: &PodSpec) -> Vec<PathBuf> {
        let rel = group_of(&self.store.places, spec, None);
        ["unified", "memory", "cpu", "pids", ""]
            .iter()
            .map(|h| Path::new("/sys/fs/cgroup").join(h).join(&rel))
            .filter(|p| p.exists())
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for spec in &self.specs {
            if let Ok(Some(record)) = self.store.get(&spec.id)
                && let Ok(mut client) = Client::connect(&self.store, &record)
            {
                let _ = client.kill();
            }
        }
        if std::thread::panicking() {
            for spec in &self.specs {
                let log = fs::read_to_string(self.store.places.monitor_log(&spec.id)).unwrap_or_default();
                eprintln!("monitor of {}: {log}", spec.name);
            }
            return;
        }
        let root = self.dir.path().to_string_lossy().into_owned();
        for spec in &self.specs {
            until(LIMIT, "the control groups' removal", || self.groups(spec).is_empty().then_some(()));
            assert!(!self.store.places.socket(&spec.id).exists(), "socket of {} left", spec.name);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&root), "a mount is left");
    }
}

fn random() -> [u8; 8] {
    let mut bytes = [0; 8];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

fn pipes() -> ([OwnedFd; 3], File, File, File) {
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let ((in_r, in_w), (out_r, out_w), (err_r, err_w)) = (pipe(), pipe(), pipe());
    ([in_r, out_w, err_w], in_w.into(), out_r.into(), err_r.into())
}

#[test]
fn true_is_up_and_over() {
    let mut host = Host::new();
    let spec = host.spec("t", &["true"]);
    host.start(spec).unwrap();
    assert_eq!(host.ended("t"), 0);
    assert_eq!(host.record("t").status, Status::Exited);
}

#[test]
fn a_failure_within_the_grace_leaves_nothing_but_its_words() {
    let mut host = Host::new();
    let f = host.sh("f", "echo one; echo two >&2; exit 7").unwrap_err();
    assert_eq!(f.kind, Kind::Failed);
    assert!(f.message.contains("status 7") && f.message.contains("one") && f.message.contains("two"), "{f}");
    assert!(host.store.find("f").is_err());
    assert!(!host.store.places.dir(&host.specs[0].id).exists());
    // The name is free again.
    host.sh("f", "exit 0").unwrap();
}

#[test]
fn what_cannot_be_executed_is_126_or_127_and_leaves_nothing() {
    let mut host = Host::new();
    let script = host.dir.path().join("script");
    fs::write(&script, "no shebang").unwrap();
    let odd = script.to_str().unwrap().to_owned();
    for (cmd, code) in [
        ("/nowhere/x", 127),
        ("no-such-command", 127),
        ("/etc/passwd", 126),
        ("/etc", 126),
        (odd.as_str(), 126),
    ] {
        let spec = host.spec("x", &[cmd]);
        let f = host.start(spec).unwrap_err();
        assert_eq!(f.kind.code(), code, "{cmd}: {f}");
        assert!(host.store.find("x").is_err());
    }
    let mut perm = fs::metadata(&script).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut perm, 0o755);
    fs::set_permissions(&script, perm).unwrap();
    let spec = host.spec("x", &[odd.as_str()]);
    assert_eq!(host.start(spec).unwrap_err().kind, Kind::CannotExecute);
    let mut spec = host.spec("x", &["true"]);
    spec.cwd = "/nowhere".to_owned();
    let f = host.start(spec).unwrap_err();
    assert!(f.object == "/nowhere" && f.kind.code() == 126, "{f}");
}

#[test]
fn statuses_are_as_a_shell_gives_them() {
    let mut host = Host::new();
    for (name, script, status) in
        [("a", "sleep 0.2; exit 5", 5), ("b", "sleep 0.2; kill -9 $$", 137), ("c", "sleep 0.2", 0)]
    {
        host.sh(name, script).unwrap();
        assert_eq!(host.ended(name), status, "{script}");
    }
}

#[test]
fn the_log_has_both_streams() {
    let mut host = Host::new();
    host.sh("l", "echo out; echo err >&2; printf 'no newline'").unwrap();
    host.ended("l");
    let log = host.log("l");
    assert!(log.contains("out\n") && log.contains("err\n") && log.ends_with("no newline"), "{log:?}");
}

#[test]
fn the_pod_is_a_world_of_its_own() {
    let mut host = Host::new();
    let script = "echo pid $$; hostname; ls /proc | grep -c '^[0-9]'; cat /proc/1/comm; ls /dev/pts; \
        ls /dev/shm | wc -l; cat /proc/self/cgroup | sort -u | head -1; readlink /proc/1/exe || echo hidden; \
        grep -c : /proc/net/dev; for n in pid mnt ipc uts net cgroup time; do readlink /proc/self/ns/$n; done";
    host.sh("world", script).unwrap();
    host.ended("world");
    let log = host.log("world");
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines[0].starts_with("pid ") && lines[0][4..].parse::<i32>().unwrap() < 10, "{log}");
    assert_eq!(lines[1], "world");
    assert!(lines[2].parse::<i32>().unwrap() <= 4, "{log}");
    assert_eq!(lines[3], "podmig-init");
    assert_eq!(&lines[4..6], ["ptmx", "0"]);
    assert!(lines[6].ends_with(":/"), "{log}");
    assert_eq!(&lines[7..9], ["hidden", "1"]);
    for n in ["pid", "mnt", "ipc", "uts", "net", "cgroup", "time"] {
        let outside = fs::read_link(format!("/proc/self/ns/{n}")).unwrap();
        let inside = lines.iter().find(|l| l.starts_with(&format!("{n}:"))).unwrap();
        assert_ne!(*inside, outside.to_str().unwrap(), "{n} is shared");
    }
}

#[test]
fn the_walls_stand() {
    let mut host = Host::new();
    let script = r#"grep -E 'CapBnd|CapEff|Seccomp:' /proc/self/status
        mount -t tmpfs x /mnt 2>/dev/null && echo MOUNTED
        unshare -U true 2>/dev/null && echo UNSHARED
        echo x > /proc/sysrq-trigger 2>/dev/null && echo SYSRQ
        echo 1 > /proc/sys/kernel/panic 2>/dev/null && echo SYSCTL
        test -s /proc/kcore && echo KCORE
        ls /dev/vda /dev/kvm /dev/mem 2>/dev/null
        mknod /tmp/pm-null c 1 3 2>/dev/null && echo MKNOD
        cat /proc/1/environ >/dev/null 2>&1 && echo PEEKED
        mkdir /sys/fs/cgroup/unified/x 2>/dev/null && echo CGROUP
        python3 - <<'P'
import socket, ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
try: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); print("MPTCP")
except OSError as e: print("mptcp", errno.errorcode[e.errno])
libc.syscall(425, 1, 0); print("io_uring", errno.errorcode[ctypes.get_errno()])
P
        true"#;
    host.sh("walls", script).unwrap();
    host.ended("walls");
    let log = host.log("walls");
    let caps = format!("{:016x}", podmig::sandbox::caps::bounding(false));
    assert!(log.contains(&format!("CapBnd:\t{caps}")) && log.contains(&format!("CapEff:\t{caps}")), "{log}");
    assert!(log.contains("Seccomp:\t2"), "{log}");
    assert!(log.contains("mptcp EPROTONOSUPPORT") && log.contains("io_uring ENOSYS"), "{log}");
    for bad in [
        "MOUNTED", "UNSHARED", "SYSRQ", "SYSCTL", "KCORE", "/dev/vda", "/dev/mem", "MKNOD", "PEEKED",
        "CGROUP",
    ] {
        assert!(!log.contains(bad), "{bad}: {log}");
    }
}

#[test]
fn another_user_has_no_capabilities() {
    let mut host = Host::new();
    let mut spec =
        host.spec("u", &["sh", "-c", "id -u; id -g; id -G; grep CapPrm /proc/self/status; umask; ulimit -n"]);
    spec.user = User { uid: 1234, gid: 1235, groups: vec![1236, 1237], ..User::default() };
    spec.umask = 0o077;
    spec.rlimits = vec![(7, 200, 300)];
    host.start(spec).unwrap();
    host.ended("u");
    assert_eq!(host.log("u"), "1234\n1235\n1235 1236 1237\nCapPrm:\t0000000000000000\n0077\n200\n");
}

#[test]
fn signals_reach_the_command() {
    let mut host = Host::new();
    host.sh("s", "trap 'echo got; exit 4' USR1; echo up; while :; do sleep 0.05; done").unwrap();
    until(LIMIT, "the trap", || host.log("s").contains("up").then_some(()));
    host.client("s").signal(libc::SIGUSR1).unwrap();
    assert_eq!(host.ended("s"), 4);
    assert!(host.log("s").contains("got"));
}

#[test]
fn stop_asks_then_ends() {
    let mut host = Host::new();
    host.sh("polite", "trap 'exit 3' TERM; while :; do sleep 0.05; done").unwrap();
    host.sh("deaf", "trap '' TERM; while :; do sleep 1; done").unwrap();
    host.client("polite").stop(Duration::from_secs(10)).unwrap();
    assert_eq!(host.record("polite").exit_status, Some(3));
    let begin = Instant::now();
    host.client("deaf").stop(Duration::from_millis(200)).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(200));
    assert_eq!(host.record("deaf").exit_status, Some(137));
    assert_eq!(host.record("deaf").status, Status::Exited);
}

#[test]
fn a_daemon_needs_its_type() {
    let mut host = Host::new();
    let f = host.sh("d", "sleep 100 & exit 0").unwrap_err();
    assert!(f.remedy.contains("--type forking"), "{f}");
    let mut spec = host.spec("d", &["sh", "-c", "(sleep 0.5; exit 6) & exit 0"]);
    spec.start_type = StartType::Forking;
    host.start(spec).unwrap();
    assert_eq!(host.record("d").status, Status::Running);
    assert_eq!(host.ended("d"), 6);
    for (script, word) in
        [("exit 0", "no process"), ("exit 3", "status 3"), ("(exit 9) & sleep 0.05", "no process")]
    {
        let mut spec = host.spec("e", &["sh", "-c", script]);
        spec.start_type = StartType::Forking;
        let f = host.start(spec).unwrap_err();
        assert!(f.message.contains(word), "{script}: {f}");
    }
    let mut spec = host.spec("k", &["sh", "-c", "sleep 100 & exit 0"]);
    spec.start_type = StartType::Forking;
    host.start(spec).unwrap();
    host.client("k").stop(Duration::from_secs(10)).unwrap();
    assert_eq!(host.record("k").exit_status, Some(143));
}

#[test]
fn notify_waits_for_its_word() {
    let mut host = Host::new();
    let python = |body: &str| {
        format!(
            "import os,socket,time\ns=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM)\nn=os.environ['NOTIFY_SOCKET']\n\
             assert n[0]=='@'\n{body}\ns.sendto(b'STATUS=x\\nREADY=1\\n','\\0'+n[1:])\ntime.sleep(100)"
        )
    };
    let script = python("time.sleep(0.3)");
    let mut spec = host.spec("n", &["python3", "-c", &script]);
    spec.start_type = StartType::Notify;
    let begin = Instant::now();
    host.start(spec).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(300));
    let script = python("raise SystemExit(3)");
    let mut spec = host.spec("m", &["python3", "-c", &script]);
    spec.start_type = StartType::Notify;
    let f = host.start(spec).unwrap_err();
    assert!(f.message.contains("READY=1") && f.message.contains("status 3"), "{f}");
}

fn exec_spec(cmd: &[&str]) -> ExecSpec {
    ExecSpec {
        cmd: cmd.iter().map(|s| (*s).to_owned()).collect(),
        env: vec!["PATH=/usr/bin:/bin".to_owned(), "X=y".to_owned()],
        cwd: "/tmp".to_owned(),
        user: User::default(),
        umask: 0o22,
        tty: None,
    }
}

#[test]
fn exec_runs_beside_the_command() {
    let mut host = Host::new();
    host.sh("e", "sleep 100").unwrap();
    let mut client = host.client("e");
    let (theirs, mut stdin, mut stdout, mut stderr) = pipes();
    let [i, o, e] = &theirs;
    let spec =
        exec_spec(&["sh", "-c", "read line; echo $X $line; pwd; pgrep -cx sleep; echo bad >&2; exit 5"]);
    let session = client.exec(&spec, Some([i.as_fd(), o.as_fd(), e.as_fd()])).unwrap();
    drop(theirs);
    stdin.write_all(b"hello\n").unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    stdout.read_to_string(&mut out).unwrap();
    stderr.read_to_string(&mut err).unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("y hello\n/tmp\n1\n", "bad\n"));
    let event = client.next(Some(Instant::now() + LIMIT)).unwrap().unwrap();
    assert_eq!(event, Event::SessionEnded { session: session.number, status: 5 });
    for (cmd, code) in [("no-such", 127), ("/etc/passwd", 126)] {
        assert_eq!(client.exec(&exec_spec(&[cmd]), None).unwrap_err().kind.code(), code);
    }
    client.exec(&exec_spec(&["true"]), None).unwrap();
    assert!(matches!(
        client.next(Some(Instant::now() + LIMIT)).unwrap(),
        Some(Event::SessionEnded { status: 0, .. })
    ));
    assert_eq!(host.record("e").status, Status::Running);
}

#[test]
fn exec_with_a_terminal_hangs_up_with_its_caller() {
    let mut host = Host::new();
    host.sh("t", "sleep 100").unwrap();
    let mut client = host.client("t");
    let mut spec = exec_spec(&["sh", "-c", "tty; stty size; echo $$; read x"]);
    spec.tty = Some((33, 99));
    let session = client.exec(&spec, None).unwrap();
    let mut master = File::from(session.master.unwrap());
    let mut text = String::new();
    while text.lines().count() < 3 || !text.ends_with('\n') {
        let mut buf = [0; 256];
        let n = master.read(&mut buf).unwrap();
        text += std::str::from_utf8(&buf[..n]).unwrap();
    }
    assert!(text.starts_with("/dev/pts/0\r\n33 99\r\n"), "{text:?}");
    client.resize(40, 80).unwrap();
    assert_eq!(podmig::kernel::tty::size(&master).unwrap(), (40, 80));
    drop((master, client));
    let init = host.record("t").init_pid.unwrap();
    let children = format!("/proc/{init}/task/{init}/children");
    until(LIMIT, "the session's end", || {
        (fs::read_to_string(&children).unwrap().split_whitespace().count() == 1).then_some(())
    });
}

#[test]
fn in_the_foreground_all_three_streams_are_the_callers() {
    let mut host = Host::new();
    let spec = host.spec("fg", &["sh", "-c", "read line; echo got $line; echo bad >&2; cat; exit 9"]);
    host.specs.push(spec.clone());
    let (theirs, mut stdin, mut stdout, mut stderr) = pipes();
    let io = StartIo { attach: Some(theirs), ..Host::io() };
    let started = launch::start(&host.store, spec, io).unwrap();
    let big = vec![b'x'; 1 << 20];
    let writer = std::thread::spawn(move || {
        stdin.write_all(b"hello\n").unwrap();
        stdin.write_all(&big).unwrap();
    });
    let (mut out, mut err) = (String::new(), String::new());
    stdout.read_to_string(&mut out).unwrap();
    stderr.read_to_string(&mut err).unwrap();
    writer.join().unwrap();
    assert!(out.starts_with("got hello\n") && out.len() == 10 + (1 << 20), "{} bytes", out.len());
    assert_eq!(err, "bad\n");
    let mut client = started.client;
    let status = loop {
        if let Some(Event::Ended { status }) = client.next(Some(Instant::now() + LIMIT)).unwrap() {
            break status;
        }
    };
    assert_eq!(status, 9);
    assert!(host.log("fg").contains("got hello"));
}

#[test]
fn the_starters_end_does_not_touch_the_pod() {
    let mut host = Host::new();
    let started = host.sh("stay", "while :; do echo beat; sleep 0.05; done").unwrap();
    drop(started);
    let before = host.log("stay").len();
    until(LIMIT, "more output", || (host.log("stay").len() > before).then_some(()));
    host.client("stay").kill().unwrap();
    assert_eq!(host.record("stay").exit_status, Some(137));
}

#[test]
fn restart_is_by_policy() {
    let mut host = Host::new();
    let file = host.dir.path().join("count");
    let script = format!(
        "echo x >> {f}; test $(wc -l < {f}) -ge 3 && sleep 0.3 && exit 0; sleep 0.2; exit 1",
        f = file.display()
    );
    let mut spec = host.spec("again", &["sh", "-c", &script]);
    spec.restart = Restart::OnFailure;
    host.start(spec).unwrap();
    assert_eq!(host.ended("again"), 0);
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 3);
    let mut spec = host.spec("always", &["sh", "-c", "sleep 0.15"]);
    spec.restart = Restart::Always;
    host.start(spec).unwrap();
    let first = host.record("always").started.unwrap();
    until(LIMIT, "a restart", || host.record("always").started.filter(|t| *t > first));
    host.client("always").stop(Duration::from_secs(5)).unwrap();
    assert_eq!(host.record("always").status, Status::Exited);
}

#[test]
fn rm_removes_at_the_end_and_start_again_keeps_the_id() {
    let mut host = Host::new();
    let mut spec = host.spec("gone", &["sh", "-c", "sleep 0.2"]);
    spec.rm = true;
    host.start(spec).unwrap();
    until(LIMIT, "its removal", || host.store.find("gone").is_err().then_some(()));
    host.sh("back", "sleep 0.15; exit 2").unwrap();
    assert_eq!(host.ended("back"), 2);
    let id = host.record("back").spec.id;
    until(LIMIT, "the first monitor's end", || host.record("back").monitor.is_none().then_some(()));
    launch::start_again(&host.store, &id, Host::io()).unwrap();
    assert_eq!(host.record("back").status, Status::Running);
    assert_eq!(host.ended("back"), 2);
}

#[test]
fn a_killed_monitor_takes_the_pod_along() {
    let mut host = Host::new();
    host.sh("lost", "sleep 100").unwrap();
    let record = host.record("lost");
    let (monitor, init) = (record.monitor.clone().unwrap(), record.init_pid.unwrap());
    let pid = nix::unistd::Pid::from_raw(monitor.pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    until(LIMIT, "the pod's end", || (!Path::new(&format!("/proc/{init}/ns/pid")).exists()).then_some(()));
    until(LIMIT, "the record", || (host.record("lost").status == Status::Lost).then_some(()));
    assert!(Client::connect(&host.store, &record).is_err());
    podmig::pod::monitor::sweep(&host.store, &record).unwrap();
    podmig::pod::monitor::sweep(&host.store, &record).unwrap();
    assert!(host.groups(&record.spec).is_empty());
    launch::start_again(&host.store, &record.spec.id, Host::io()).unwrap();
}

#[test]
fn limits_hold() {
    let mut host = Host::new();
    let mut spec = host.spec(
        "lim",
        &[
            "sh",
            "-c",
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max \
        /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true",
        ],
    );
    spec.limits = podmig::base::spec::Limits { memory: Some(64 << 20), cpus: Some(0.5), pids: Some(20) };
    host.start(spec).unwrap();
    host.ended("lim");
    assert_eq!(host.log("lim"), "67108864\n20\n");
}
