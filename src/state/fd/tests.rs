//! Each kind of descriptor: a child process holds it, is stopped and read; the child is killed, the descriptor made
//! again here, and used.
//!
//! The child is this test binary run again, so that it starts with nothing but what the kernel gives it. What it holds
//! has the numbers 10000, 10001, … in the order its set-up returns it.

mod files;
mod harness;
mod inside;
mod lab;
mod net;
mod refused;
mod unix;

use harness::SETUPS;

/// Not a test of its own: the body of the child, chosen by an environment variable.
#[test]
fn child() {
    let Ok(name) = std::env::var("PMFDS_CHILD") else { return };
    let setup = SETUPS.iter().flat_map(|s| *s).find(|s| s.0 == name).expect("no such set-up");
    harness::be_child(setup.1);
}
