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
use std::io::{Read, Write};
use std::os::fd::AsFd;

/// What misses it when a feature is absent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Name of the feature, stable.
    pub name: String,
    /// What misses it.
    pub need: Need,
    /// Whether it works.
    pub works: bool,
    /// How it works, or why it does not.
    pub detail: String,
}

/// A probe: how it works, or why it does not.
type Probe = fn() -> Result<String, String>;

/// Tries everything.
pub fn all() -> Vec<Finding> {
    use Need::{Live, Moves, Pods, Some};
    let probes: [(&str, Need, Probe); 27] = [
        ("kernel", Pods, process::release),
        ("namespaces", Pods, process::namespaces),
        ("time-namespace", Pods, process::time_namespace),
        ("cgroup", Pods, process::freezer),
        ("devpts-instance", Pods, process::mounts),
        ("seccomp", Pods, process::seccomp),
        ("sealed-memfd-exec", Pods, process::sealed_exec),
        ("ptrace-seize", Moves, process::ptrace),
        ("clone3-set-tid", Moves, process::set_tid),
        ("pidfd-getfd", Moves, process::pidfd_getfd),
        ("kcmp", Moves, process::kcmp),
        ("process-vm", Moves, memory::process_vm),
        ("map-files", Moves, memory::map_files),
        ("set-mm-map", Moves, memory::set_mm_map),
        ("pagemap", Moves, memory::pagemap),
        ("pagemap-scan", Some, memory::pagemap_scan),
        ("wp-async", Live, memory::wp_async),
        ("soft-dirty", Live, memory::soft_dirty),
        ("timer-ids", Some, process::timer_ids),
        ("tcp-repair", Moves, network::tcp_repair),
        ("sock-diag", Moves, network::sock_diag),
        ("veth", Pods, network::veth),
        ("bridge", Some, network::bridge),
        ("macvlan", Some, network::macvlan),
        ("nft-netdev", Moves, network::nft_netdev),
        ("nft-rewrite", Pods, network::nft_rewrite),
        ("packet-vnet-hdr", Moves, network::packet),
    ];
    let mut found = privilege::all();
    found.extend(probes.into_iter().map(|(name, need, probe)| Finding::of(name, need, probe())));
    found
}

impl Finding {
    fn of(name: &str, need: Need, outcome: Result<String, String>) -> Finding {
        let works = outcome.is_ok();
        let (Ok(detail) | Err(detail)) = outcome;
        Finding { name: name.to_owned(), need, works, detail }
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
        fork_with(0, None, || {
            loop {
                nix::unistd::pause();
            }
        })
        .map(Idle)
        .map_err(why_io("clone3"))
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
