//! What the tests share: a lab of hosts in network namespaces, and waiting for a state without sleeping.

#![allow(dead_code)]

pub mod clients;
pub mod footprint;
pub mod lab;
pub mod podhost;
pub mod steps;

use std::time::{Duration, Instant};

/// Waits until `ready` gives a value, looking again at once while others run; panics with `what` after `limit`.
pub fn until<T>(limit: Duration, what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        // Give the processor to those we wait for; no fixed sleep, so the wait ends as soon as they are done.
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Whether the long sweeps were asked for (`scripts/test --full`).
pub fn full() -> bool {
    std::env::var("PODMIG_TEST_FULL").is_ok_and(|v| v == "1")
}
