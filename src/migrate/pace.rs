//! `--bandwidth`: a bound on the rate at which the rounds send.

use std::time::{Duration, Instant};

/// Bytes per second that may be sent, counted from the first one.
#[derive(Debug)]
pub(super) struct Pace {
    rate: u64,
    since: Instant,
    sent: u64,
}

impl Pace {
    /// At most `rate` bytes a second.
    pub(super) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), since: Instant::now(), sent: 0 }
    }

    /// Waits until so many more bytes may be sent.
    pub(super) fn wait(&mut self, bytes: u64) {
        let due = Duration::from_secs_f64(self.sent as f64 / self.rate as f64);
        std::thread::sleep(due.saturating_sub(self.since.elapsed()));
        self.sent += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept() {
        let mut pace = Pace::new(1 << 20);
        let start = Instant::now();
        (0..5).for_each(|_| pace.wait(10 << 10));
        assert!(start.elapsed() >= Duration::from_millis(39), "{:?}", start.elapsed());
    }
}
