//! Tiny self-checking programs, one for each kind of state: prepare, say `ready`, wait for SIGTERM, verify, exit 0.
//!
//! Each must pass with no migration at all (a test sees to that), so that a failure after one is the migration's.

#![allow(unsafe_code)]

mod churn;
mod creds;
mod events;
mod files;
mod locks;
mod mem;
mod noeintr;
mod pipes;
mod shared;
mod signals;
mod sockets;
mod threads;
mod timers;
mod tree;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use std::io::Write;

/// A name in /tmp that no other pod's workload has: pids are the same in every pod.
fn own_path(kind: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock");
    format!("/tmp/workload.{kind}.{}.{}", std::process::id(), now.as_nanos())
}

/// Says `ready` and waits for SIGTERM (blocked in every thread since the start).
pub fn wait() {
    println!("ready");
    std::io::stdout().flush().expect("stdout");
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    term.wait().expect("sigwait");
}

/// A byte pattern that says where it belongs.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

const KINDS: &[(&str, fn())] = &[
    ("churn", churn::run),
    ("creds", creds::run),
    ("events", events::run),
    ("files", files::run),
    ("locks", locks::run),
    ("mem", mem::run),
    ("noeintr", noeintr::run),
    ("pipes", pipes::run),
    ("shared", shared::run),
    ("signals", signals::run),
    ("tcp", sockets::tcp),
    ("threads", threads::run),
    ("timers", timers::run),
    ("tree", tree::run),
    ("udp", sockets::udp),
    ("unix", sockets::unix),
];

fn main() {
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&term), None).expect("block SIGTERM");
    let kind = std::env::args().nth(1).unwrap_or_default();
    if kind == "list" {
        KINDS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    }
    match KINDS.iter().find(|(name, _)| *name == kind) {
        Some((_, run)) => run(),
        None => {
            eprintln!("workload: no kind '{kind}'");
            std::process::exit(2);
        }
    }
    println!("whole");
}
