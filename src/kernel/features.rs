//! What this kernel and this caller can do: one probe per feature and privilege, each really tried.
//!
//! Probes that would change the caller run in a child. All of them are for a single-threaded process (the command
//! line before it starts anything); together they take well under a second.

mod memory;
mod network;
mod privilege;
mod process;

use super::clone::{Child, fork_with, pidfd_signal};
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::os::fd::AsFd;

/// What misses it when a feature is absent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Need {
    /// Every pod.
    Pods,
    /// Checkpoint, restore and move.
    Moves,
    /// Mode `live` (one way of tracking pages is enough).
    Live,
    /// Some programs or settings only.
    Some,
}

/// What a probe found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// Name of the feature, stable.
    pub name: String,
    /// What misses it.
    pub need: Need,
    /// Whether it works.
    pub works: bool,
    /// What podmig uses it for.
    pub purpose: String,
    /// What is lost without it.
    pub without: String,
    /// How it works, or why it does not.
    pub detail: String,
}

/// A probe: how it works, or why it does not.
type Probe = fn() -> Result<String, String>;

/// A feature: name, what misses it, what it is for, what is lost without it, how it is tried.
type Feature = (&'static str, Need, &'static str, &'static str, Probe);

use Need::{Live, Moves, Pods, Some as Few};

const NO_PODS: &str = "no pod starts";
const NO_MOVES: &str = "pods start, but cannot be checkpointed, restored or moved";

/// Everything that is tried, beside privileges.
const FEATURES: &[Feature] = &[
    ("kernel", Pods, "machine and release", NO_PODS, process::release),
    ("namespaces", Pods, "walls of a pod", NO_PODS, process::namespaces),
    ("time-namespace", Pods, "clocks that go on after a move", NO_PODS, process::time_namespace),
    ("cgroup", Pods, "tasks of a pod counted, limited and frozen", NO_PODS, process::freezer),
    ("devpts-instance", Pods, "terminals and mounts of a pod's own", NO_PODS, process::mounts),
    (
        "seccomp",
        Pods,
        "what cannot be moved looks absent to programs",
        "only --privileged pods",
        process::seccomp,
    ),
    ("sealed-memfd-exec", Pods, "pid 1 of a pod", NO_PODS, process::sealed_exec),
    ("ptrace-seize", Moves, "tasks stopped without a signal", NO_MOVES, process::ptrace),
    (
        "ptrace-details",
        Moves,
        "registers, masks, pending signals, rseq of a task",
        NO_MOVES,
        process::ptrace_details,
    ),
    (
        "seccomp-read",
        Few,
        "filters of programs read",
        "programs with seccomp filters of their own are refused",
        process::seccomp_read,
    ),
    ("clone3-set-tid", Moves, "pids kept", NO_MOVES, process::set_tid),
    ("tid-address", Moves, "what a thread clears when it ends", NO_MOVES, process::tid_address),
    ("pidfd-getfd", Moves, "descriptors of a task borrowed", NO_MOVES, process::pidfd_getfd),
    ("kcmp", Moves, "descriptors that are one open file", NO_MOVES, process::kcmp),
    ("process-vm", Moves, "memory read and written", NO_MOVES, memory::process_vm),
    ("map-files", Moves, "mapped files, deleted ones too", NO_MOVES, memory::map_files),
    ("set-mm-map", Moves, "places of code, heap and stack", NO_MOVES, memory::set_mm_map),
    ("pagemap", Moves, "pages with content found", NO_MOVES, memory::pagemap),
    (
        "pagemap-scan",
        Few,
        "pages with content found quickly",
        "every page's entry is read instead: slower",
        memory::pagemap_scan,
    ),
    (
        "wp-async",
        Live,
        "written pages tracked without a freeze",
        "soft-dirty is used, if it works",
        memory::wp_async,
    ),
    (
        "soft-dirty",
        Live,
        "written pages tracked by bits",
        "wp-async is used, if it works",
        memory::soft_dirty,
    ),
    (
        "timer-ids",
        Few,
        "ids of POSIX timers",
        "ids are counted up to: slower with high ids",
        process::timer_ids,
    ),
    (
        "timerfd-ticks",
        Few,
        "expirations of a timerfd not read yet",
        "such a timerfd is refused",
        process::timerfd_ticks,
    ),
    (
        "membarrier",
        Few,
        "membarrier registrations read",
        "programs that use membarrier may crash after a move",
        process::membarrier,
    ),
    ("tcp-repair", Moves, "connections carried", NO_MOVES, network::tcp_repair),
    ("sock-diag", Moves, "sockets and their queues listed", NO_MOVES, network::sock_diag),
    (
        "veth",
        Pods,
        "links of nat pods, and of lan pods on a bridge",
        "only --net host, none and macvlan",
        network::veth,
    ),
    ("bridge", Few, "lan pods on a bridge", "--net lan:IF needs a link that is no bridge", network::bridge),
    ("macvlan", Few, "lan pods on a link", "--net lan:IF needs a bridge", network::macvlan),
    ("nft-netdev", Moves, "a pod's link held still during the hand-over", NO_MOVES, network::nft_netdev),
    ("nft-rewrite", Pods, "addresses and ports of nat pods", "no --net nat", network::nft_rewrite),
    ("packet-vnet-hdr", Moves, "frames of the hand-over kept and replayed", NO_MOVES, network::packet),
];

/// Tries everything.
pub fn all() -> Vec<Finding> {
    let mut found = privilege::all();
    let tried = FEATURES
        .iter()
        .map(|(name, need, purpose, without, probe)| Finding::of(name, *need, (purpose, without), probe()));
    found.extend(tried);
    found
}

impl Finding {
    fn of(
        name: &str,
        need: Need,
        (purpose, without): (&str, &str),
        outcome: Result<String, String>,
    ) -> Finding {
        let works = outcome.is_ok();
        let (Ok(detail) | Err(detail)) = outcome;
        let (purpose, without) = (purpose.to_owned(), without.to_owned());
        Finding { name: name.to_owned(), need, works, purpose, without, detail }
    }
}

/// An errno in words.
fn why(what: &str) -> impl Fn(Errno) -> String + '_ {
    move |e| format!("{what}: {}", e.desc().to_lowercase())
}

/// An I/O error in words.
fn why_io(what: &str) -> impl Fn(std::io::Error) -> String + '_ {
    move |e| match e.raw_os_error() {
        Some(n) => why(what)(Errno::from_raw(n)),
        None => format!("{what}: {e}"),
    }
}

/// Runs a probe in a child with new namespaces `flags`, whose end takes along what it changed.
fn in_child(flags: i32, probe: impl FnOnce() -> Result<String, String>) -> Result<String, String> {
    let (mut reader, mut writer) = std::io::pipe().map_err(why_io("pipe"))?;
    let child = fork_with(u64::from(flags.cast_unsigned()), None, || {
        let (code, text) = match probe() {
            Ok(text) => (0, text),
            Err(text) => (1, text),
        };
        // Shorter than a pipe's buffer; if it fails the parent says that nothing was told.
        let _ = writer.write_all(text.as_bytes());
        code
    });
    drop(writer);
    let child = child.map_err(why_io("clone3"))?;
    let mut text = String::new();
    let told = reader.read_to_string(&mut text);
    let code = reap(&child);
    told.map_err(why_io("read"))?;
    match code {
        Some(0) => Ok(text),
        Some(1) => Err(text),
        _ => Err("the probe crashed".to_owned()),
    }
}

/// Waits for a child; its exit code, `None` by signal.
fn reap(child: &Child) -> Option<i32> {
    use nix::sys::wait::WaitStatus;
    loop {
        match waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, code)) => return Some(code),
            Err(Errno::EINTR) => {}
            _ => return None,
        }
    }
}

/// A child that does nothing until it is dropped.
struct Idle(Child);

impl Idle {
    fn start() -> Result<Idle, String> {
        Idle::after(|| Ok(()))
    }
    /// One that has done `first` when this returns.
    fn after(first: impl FnOnce() -> Result<(), String>) -> Result<Idle, String> {
        let (mut reader, mut writer) = std::io::pipe().map_err(why_io("pipe"))?;
        let child = fork_with(0, None, || {
            if let Err(text) = first() {
                // Short; if it fails the parent says that nothing was told.
                let _ = writer.write_all(text.as_bytes());
                return 1;
            }
            let _ = writer.write_all(b"+");
            loop {
                nix::unistd::pause();
            }
        });
        drop(writer);
        let idle = child.map(Idle).map_err(why_io("clone3"))?;
        let mut told = [0; 256];
        match reader.read(&mut told).map_err(why_io("read"))? {
            1 if told[0] == b'+' => Ok(idle),
            0 => Err("the probe crashed".to_owned()),
            n => Err(String::from_utf8_lossy(&told[..n]).into_owned()),
        }
    }
    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.pid)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = pidfd_signal(&self.0.pidfd, libc::SIGKILL);
        reap(&self.0);
    }
}
