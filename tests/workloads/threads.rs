//! Threads: thread-local storage, names, floating point in flight, sleepers on futexes and clocks.

use crate::wait;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

thread_local! {
    static MINE: Cell<u64> = const { Cell::new(0) };
}

/// Steps of a chaotic map: one lost or changed bit of FPU state shows within a few steps.
fn chaos(mut x: f64, steps: u64) -> f64 {
    for _ in 0..steps {
        x = 3.999_99 * x * (1.0 - x);
    }
    x
}

fn name() -> String {
    std::fs::read_to_string("/proc/thread-self/comm").expect("comm").trim().to_owned()
}

pub fn run() {
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU64::new(0));
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let expected = chaos(0.123_456_789, 100_000);
    let mut threads = Vec::new();
    for n in 0..4u64 {
        let (stop, rounds) = (stop.clone(), rounds.clone());
        threads.push(std::thread::Builder::new().name(format!("calc{n}")).spawn(move || {
            MINE.set(n + 100);
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(chaos(0.123_456_789, 100_000).to_bits(), expected.to_bits(), "floating point");
                rounds.fetch_add(1, Ordering::SeqCst);
            }
            assert_eq!(MINE.get(), n + 100, "thread-local storage");
            assert_eq!(name(), format!("calc{n}"));
        }));
    }
    for n in 0..4u64 {
        let gate = gate.clone();
        threads.push(std::thread::Builder::new().name(format!("wait{n}")).spawn(move || {
            MINE.set(n + 200);
            let mut open = gate.0.lock().expect("lock");
            while !*open {
                open = gate.1.wait(open).expect("wait");
            }
            drop(open);
            assert_eq!(MINE.get(), n + 200, "thread-local storage");
            assert_eq!(name(), format!("wait{n}"));
        }));
    }
    let clock = Instant::now();
    let ticker = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let mut last = Instant::now();
            while !stop.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
                let now = Instant::now();
                assert!(now.duration_since(last) >= Duration::from_millis(5), "a sleep came back early");
                last = now;
            }
        })
    };
    wait();
    assert!(clock.elapsed() < Duration::from_secs(3600), "the monotonic clock jumped");
    let before = rounds.load(Ordering::SeqCst);
    while rounds.load(Ordering::SeqCst) < before + 4 {
        std::thread::yield_now();
    }
    stop.store(true, Ordering::SeqCst);
    *gate.0.lock().expect("lock") = true;
    gate.1.notify_all();
    for t in threads {
        t.expect("spawned").join().expect("thread");
    }
    ticker.join().expect("ticker");
}
