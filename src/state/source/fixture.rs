//! A pod for tests: namespaces and a cgroup of its own around a Python program that is pid 1.

use super::{PodView, Source};
use crate::kernel::cgroup::{Cgroup, Hierarchies};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What pid 1 does first: wait until it is in its cgroup.
const PRELUDE: &str = r#"
import ctypes, os, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def say(*w): os.write(1, (" ".join(map(str, w)) + "\n").encode())
def wait(): return sys.stdin.readline().strip()
def fork(f):
    pid = os.fork()
    if pid: return pid
    try: f()
    finally: os._exit(0)
def pause():
    while True: signal.pause()
wait()
"#;

/// A pod whose pid 1 runs Python code; ended and removed when dropped.
pub struct Pod {
    unshare: Child,
    /// Host pid of pid 1.
    pub init: i32,
    cgroup: Cgroup,
    out: BufReader<ChildStdout>,
    input: ChildStdin,
}

/// Waits, bounded, until `f` gives something.
pub fn until<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(t) = f() {
            return t;
        }
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::yield_now();
    }
}

impl Pod {
    /// Starts one; `code` runs as pid 1, with `say`, `wait`, `fork`, `pause` at hand.
    pub fn start(code: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pmcollect-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = Cgroup::create(&Hierarchies::detect().unwrap(), Path::new(&name)).unwrap();
        let script = format!(
            "mount -t tmpfs none /dev/shm && ip link set lo up && exec /usr/bin/python3 -I -c '{}'",
            format!("{PRELUDE}\n{code}").replace('\'', "'\\''")
        );
        let mut unshare = Command::new("unshare")
            .args(["--pid", "--mount", "--ipc", "--uts", "--net", "--cgroup", "--mount-proc", "--fork"])
            .args(["--kill-child", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = unshare.id();
        let init = until("pid 1", || {
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.trim().parse().ok()
        });
        cgroup.add(init).unwrap();
        let out = BufReader::new(unshare.stdout.take().unwrap());
        let mut input = unshare.stdin.take().unwrap();
        input.write_all(b"\n").unwrap();
        Self { unshare, init, cgroup, out, input }
    }

    /// The next line it says.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the pod ended");
        line.trim().to_owned()
    }

    /// Lets a `wait` return.
    pub fn go_on(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }

    /// The pod as a collector knows it.
    pub fn view(&self) -> PodView {
        PodView {
            init: self.init,
            cgroup: self.cgroup.freezer(),
            ports: Vec::new(),
            walled: false,
            tracked: false,
        }
    }

    /// A collector for it.
    pub fn source(&self) -> Source {
        Source::new(self.view()).unwrap()
    }

    /// Host pid of the process that is `pid` in the pod.
    pub fn host(&self, pid: i32) -> i32 {
        let pids = self.cgroup.procs().unwrap();
        let ends = format!("\t{pid}");
        let is = |p: &i32| {
            let text = std::fs::read_to_string(format!("/proc/{p}/status")).unwrap_or_default();
            text.lines().any(|l| l.starts_with("NSpid:") && l.ends_with(&ends))
        };
        pids.into_iter().find(is).unwrap_or_else(|| panic!("no process {pid} in the pod"))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.cgroup.freezer().thaw();
        let _ = self.cgroup.kill_all();
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let _ = self.cgroup.wait_empty();
        let _ = self.cgroup.remove();
    }
}
