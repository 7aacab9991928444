//! For tests: programs that notice being disturbed, compiled from `victims/*.c`, watched from outside.

use super::{Running, Stopped};
use crate::kernel::status;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) const WORK: &str = include_str!("victims/work.c");
pub(crate) const RSEQ: &str = include_str!("victims/rseq.c");
pub(crate) const CALLS: &str = include_str!("victims/calls.c");

/// A running victim; killed and reaped at the end.
pub(crate) struct Victim {
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    pub stdout: BufReader<ChildStdout>,
    /// Lines of four u64 the program writes (`work`).
    pub lines: File,
    threads: usize,
    _dir: TempDir,
}

/// Waits, bounded, until `done`.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "waiting for: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn compile(source: &str, dir: &Path) -> std::path::PathBuf {
    let (c, exe) = (dir.join("victim.c"), dir.join("victim"));
    std::fs::write(&c, source).expect("write source");
    let status = Command::new("gcc").args(["-O1", "-pthread", "-o"]).arg(&exe).arg(&c).status().expect("gcc");
    assert!(status.success(), "gcc failed");
    exe
}

impl Victim {
    /// Compiles `source` and runs it with FILE, the number of threads, and `args`.
    pub fn start(source: &str, threads: usize, args: &[&str]) -> Self {
        Self::start_with(source, threads, args, |command| command.spawn())
    }

    /// The same in a cgroup from its first instruction on.
    pub fn start_in(
        group: &crate::kernel::cgroup::Cgroup,
        source: &str,
        threads: usize,
        args: &[&str],
    ) -> Self {
        Self::start_with(source, threads, args, |command| {
            // A shell goes in first and becomes the victim.
            let mut shell = Command::new("sh");
            shell
                .args(["-c", "read go; exec \"$0\" \"$@\""])
                .arg(command.get_program())
                .args(command.get_args());
            let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            group.add(child.id() as i32).expect("add to cgroup");
            writeln!(child.stdin.as_mut().expect("stdin"), "go")?;
            Ok(child)
        })
    }

    fn start_with(
        source: &str,
        threads: usize,
        args: &[&str],
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
    ) -> Self {
        let dir = TempDir::new().expect("temp dir");
        let exe = compile(source, dir.path());
        let path = dir.path().join("lines");
        std::fs::write(&path, vec![0; (threads + 1) * 32]).expect("lines");
        let lines = File::open(&path).expect("lines");
        let mut command = Command::new(exe);
        command.arg(&path).arg(threads.to_string()).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = spawn(&mut command).expect("spawn victim");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("stdout"));
        Self { child, stdin, stdout, lines, threads, _dir: dir }
    }

    /// `work` with its threads at work.
    pub fn work(threads: usize, args: &[&str]) -> Self {
        let mut victim = Self::start(WORK, threads, args);
        victim.progresses("start");
        victim
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn line(&self, n: usize) -> [u64; 4] {
        let mut bytes = [0; 32];
        self.lines.read_exact_at(&mut bytes, 32 * n as u64).expect("read lines");
        std::array::from_fn(|i| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().expect("eight")))
    }

    /// Waits until every thread finished one more whole round (two, since the current one was disturbed), none with an error.
    pub fn progresses(&mut self, when: &str) {
        let before: Vec<u64> = (0..self.threads).map(|n| self.line(n)[0]).collect();
        until(&format!("rounds of every thread, {when}"), || {
            if let Some(status) = self.child.try_wait().expect("try_wait") {
                panic!("victim ended, {when}: {status}");
            }
            self.sound(when);
            (0..self.threads).all(|n| self.line(n)[0] >= before[n] + 2)
        });
    }

    /// No thread saw an error.
    pub fn sound(&self, when: &str) {
        for n in 0..self.threads {
            let [rounds, errors, code, detail] = self.line(n);
            assert_eq!(errors, 0, "{when}: thread {n}, round {rounds}: check {code}, detail {detail}");
        }
    }

    /// The next line of its output, without newline.
    pub fn read_line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read victim's output");
        line.trim_end().to_owned()
    }

    pub fn say(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("stdin");
        writeln!(stdin, "{text}").expect("write to victim");
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).expect("kill");
    }

    pub fn state(&self) -> char {
        status::of(self.pid()).expect("status").state
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every thread of `pid` stopped and rewound, the leader first. For a process whose threads do not come and go.
pub(crate) fn stop_threads(pid: i32) -> Vec<Stopped> {
    let mut tids = status::threads(pid).expect("threads");
    tids.sort_unstable();
    let running: Vec<Running> = tids.iter().map(|&t| Running::seize(t, 0).expect("seize")).collect();
    for r in &running {
        r.interrupt().expect("interrupt");
    }
    running
        .into_iter()
        .map(|r| {
            let mut stopped = r.wait(Duration::from_secs(5)).expect("stop");
            stopped.hide_stop().expect("rewind");
            stopped
        })
        .collect()
}

/// Runs the test `name` of this binary in a process of its own, with `key=value` in its environment, which gives it another part to play.
pub(crate) fn helper(name: &str, env: &[(&str, String)]) -> Child {
    Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .envs(env.iter().map(|(k, v)| (*k, v.as_str())))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("spawn helper")
}
