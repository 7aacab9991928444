//! A lab: hosts and a client in network namespaces of their own, joined by a switch; everything goes when it is dropped.
//!
//! ```text
//!   hostA (br0 10.77.0.1) ──┐
//!   hostB (br0 10.77.0.2) ──┼── switch (bridge in a namespace of its own)
//!   client (    10.77.0.9) ─┘
//! ```
//! Each host has its own PODMIG_ROOT and agent. Pods on `lan:br0` are on the same network as the client.

use super::until;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static LABS: AtomicU32 = AtomicU32::new(0);

/// The binary under test.
pub const PODMIG: &str = env!("CARGO_BIN_EXE_podmig");

/// Runs a command and panics with its output if it fails.
pub fn sh(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {}\n{err}", out.status);
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// One network namespace, removed when dropped.
pub struct Netns {
    /// Its name, as `ip netns` knows it.
    pub name: String,
}

impl Netns {
    /// Makes it, with its loopback up.
    pub fn new(name: String) -> Self {
        let ns = Self { name };
        sh("ip", &["netns", "add", &ns.name]);
        ns.ip("link set lo up");
        ns
    }
    /// `ip ARGS` inside.
    pub fn ip(&self, args: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(args.split_whitespace());
        sh("ip", &all)
    }
    /// A command inside (nsenter, not `ip netns exec`, which hides the control groups under a new /sys).
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command
    }
    /// Runs `work` on a thread that has entered the namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let ns = std::fs::File::open(format!("/run/netns/{}", self.name)).expect("namespace");
        std::thread::scope(|s| {
            let thread = s.spawn(move || {
                nix::sched::setns(ns, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
                work()
            });
            thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// A host with its agent.
pub struct Host {
    /// Name in the lab and in `podmig host ls`.
    pub name: String,
    /// Its network.
    pub ns: Netns,
    /// Its PODMIG_ROOT.
    pub root: PathBuf,
    /// Its address on the lab's network.
    pub addr: Ipv4Addr,
    agent: Option<Child>,
}

impl Host {
    /// `podmig` on this host, not yet run.
    pub fn podmig(&self, args: &[&str]) -> Command {
        let mut command = self.ns.command(PODMIG);
        command.args(args).env("PODMIG_ROOT", &self.root).stdin(Stdio::null());
        command
    }
    /// Runs `podmig` here, whatever comes of it.
    pub fn run(&self, args: &[&str]) -> Output {
        self.podmig(args).output().expect("podmig runs")
    }
    /// Runs `podmig` here; it must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{}: podmig {args:?}: {}\n{stdout}\n{stderr}", self.name, out.status);
        stdout.into_owned()
    }
    /// Runs `podmig` here with --json; it must exit with `code`.
    pub fn json(&self, args: &[&str], code: i32) -> serde_json::Value {
        let mut all = args.to_vec();
        let at = all.iter().position(|a| *a == "--").unwrap_or(all.len());
        all.insert(at, "--json");
        let out = self.run(&all);
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.status.code(), Some(code), "{}: podmig {all:?}\n{stdout}\n{stderr}", self.name);
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{all:?}: {e}\n{stdout}\n{stderr}"))
    }
    /// State of a pod here, by `inspect`; `None` when there is no such pod.
    pub fn state(&self, pod: &str) -> Option<String> {
        let out = self.run(&["inspect", pod, "--json"]);
        let value: serde_json::Value = serde_json::from_slice(&out.stdout).ok()?;
        Some(value.get("state")?.as_str()?.to_owned())
    }
    /// Starts the agent (again).
    pub fn start_agent(&mut self) {
        let listen = format!("{}:7411", self.addr);
        let log = std::fs::File::create(self.root.join("agent.log")).expect("agent log");
        let mut command = self.podmig(&["agent", "--listen", &listen]);
        command.stderr(Stdio::from(log)).stdout(Stdio::null());
        self.agent = Some(command.spawn().expect("agent starts"));
        let addr = SocketAddr::from((self.addr, 7411));
        until(Duration::from_secs(10), "the agent listens", || {
            self.ns.within(|| TcpStream::connect_timeout(&addr, Duration::from_secs(1)).ok())
        });
    }
    /// Kills the agent (not its workers).
    pub fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
    /// Pid of the agent.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill_agent();
        if let Ok(out) = self.podmig(&["ps", "-a", "-q"]).output() {
            for pod in String::from_utf8_lossy(&out.stdout).lines() {
                let _ = self.podmig(&["rm", "-f", pod]).output();
            }
        }
    }
}

/// Two hosts and a client on one network.
pub struct Lab {
    /// First host.
    pub a: Host,
    /// Second host.
    pub b: Host,
    /// Where clients run.
    pub client: Netns,
    switch: Netns,
    dir: tempfile::TempDir,
}

impl Lab {
    /// Builds it and starts both agents; each host trusts the other.
    pub fn new() -> Self {
        let tag = format!("pmlab{}x{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().expect("temporary directory");
        let switch = Netns::new(format!("{tag}s"));
        switch.ip("link add sw type bridge");
        switch.ip("link set sw up");
        let client = Netns::new(format!("{tag}c"));
        plug(&switch, &client, "eth0", "c");
        client.ip("addr add 10.77.0.9/24 dev eth0");
        let host = |name: &str, last: u8| {
            let ns = Netns::new(format!("{tag}{name}"));
            ns.ip("link add br0 type bridge");
            plug(&switch, &ns, "up0", name);
            ns.ip("link set up0 master br0");
            ns.ip("link set br0 up");
            ns.ip(&format!("addr add 10.77.0.{last}/24 dev br0"));
            let root = dir.path().join(name);
            std::fs::create_dir_all(&root).expect("root");
            Host { name: name.to_owned(), ns, root, addr: Ipv4Addr::new(10, 77, 0, last), agent: None }
        };
        let (mut a, mut b) = (host("hosta", 1), host("hostb", 2));
        introduce(&a, &b);
        introduce(&b, &a);
        a.start_agent();
        b.start_agent();
        Self { a, b, client, switch, dir }
    }
    /// A directory that lives as long as the lab.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
    /// Cuts the cable of a host, or plugs it in again.
    pub fn cable(&self, host: &str, up: bool) {
        self.switch.ip(&format!("link set p{host} {}", if up { "up" } else { "down" }));
    }
}

fn plug(switch: &Netns, ns: &Netns, inside: &str, port: &str) {
    switch.ip(&format!("link add p{port} type veth peer name {inside} netns {}", ns.name));
    switch.ip(&format!("link set p{port} master sw up"));
    ns.ip(&format!("link set {inside} up"));
}

/// Tells `host` of `other`.
fn introduce(host: &Host, other: &Host) {
    let id = other.ok(&["host", "id"]);
    let key = id.split_whitespace().last().expect("`host id` ends in the fingerprint").to_owned();
    host.ok(&["host", "add", &other.name, &format!("{}:7411", other.addr), &key]);
}
