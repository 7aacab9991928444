//! The point of no return as this process sees it: the mover passes it or somebody cancels before it, never both.

use std::sync::atomic::{AtomicU8, Ordering};

const OPEN: u8 = 0;
const PASSED: u8 = 1;
const CANCELLED: u8 = 2;

/// One process moves one pod.
static POINT: Point = Point(AtomicU8::new(OPEN));

struct Point(AtomicU8);

impl Point {
    fn go(&self, to: u8) -> bool {
        match self.0.compare_exchange(OPEN, to, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => true,
            Err(stands) => stands == to,
        }
    }
}

/// The mover is about to commit, or has ended: nothing is cancelled any more. `false`: it was cancelled first, and must
/// not commit.
pub fn pass() -> bool {
    POINT.go(PASSED)
}

/// Somebody wants to cancel. `false`: too late, the move must be finished.
pub fn cancel() -> bool {
    POINT.go(CANCELLED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_first_has_it() {
        for (first, second) in [(PASSED, CANCELLED), (CANCELLED, PASSED)] {
            let point = Point(AtomicU8::new(OPEN));
            assert!(point.go(first) && !point.go(second) && point.go(first));
        }
    }
}
