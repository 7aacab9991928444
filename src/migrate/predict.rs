//! `--dry-run`: everything up to the freeze is done for real (the target reserves, builds the skeleton and takes a
//! sample of the memory), then given up; what a move would take is foretold from that.

use super::live::feed;
use super::report::{Outcome, Predicted};
use super::sink::Sink;
use super::source::{ANSWER, Mover};
use crate::base::{AddrRange, Failure};
use crate::memory::reader::all_content;
use crate::memory::{PageSet, Reader, Work};
use crate::state::Tree;
use crate::state::source::Source;
use crate::wire::message::Message;
use std::time::{Duration, Instant};

/// What a freeze is taken to cost without any page, microseconds.
const FIXED_US: u64 = 15_000;
/// What comes after the freeze: activation told, cleaning up.
const AFTER_US: u64 = 60_000;
/// Memory sent at a time to measure the rate, bytes.
const SAMPLE: u64 = 16 << 20;
/// Most samples, and how long they may take together.
const SAMPLES: usize = 4;
const TIME: Duration = Duration::from_millis(500);

/// What the samples showed, bytes a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rates {
    mean: u64,
    least: u64,
}

/// One sample: bytes, microseconds.
type Sample = (u64, u64);

fn rates(samples: &[Sample]) -> Option<Rates> {
    let per_s = |(bytes, us): Sample| bytes.saturating_mul(1_000_000) / us.max(1);
    let (bytes, us) = samples.iter().fold((0, 0), |(b, t), s| (b + s.0, t + s.1));
    let least = samples.iter().map(|s| per_s(*s)).min()?;
    Some(Rates { mean: per_s((bytes, us)), least }).filter(|r| r.least > 0)
}

/// What a move of `bytes` of memory would take after `before_us` of preparations. With pre-copy the rounds aim at
/// `max_downtime_us`; at worst (everything is written all the time) all memory is copied in the freeze, twice sent.
fn predict(bytes: u64, rates: Option<Rates>, before_us: u64, max_downtime_us: Option<u64>) -> Predicted {
    let us = |rate: u64| {
        u64::try_from(u128::from(bytes) * 1_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX)
    };
    let (copy, slow) = rates.map_or((0, 0), |r| (us(r.mean), us(r.least)));
    let whole = FIXED_US.saturating_add(copy);
    // The machine may be twice as busy by then.
    let worst = (2 * FIXED_US).saturating_add(slow.saturating_add(slow / 4));
    let frozen_us = max_downtime_us.map_or(whole, |wanted| whole.min(wanted.max(FIXED_US)));
    Predicted {
        frozen_us,
        frozen_us_max: worst.max(frozen_us),
        total_us: before_us.saturating_add(whole).saturating_add(AFTER_US),
        bytes,
    }
}

/// The next `limit` bytes of the work, taken off it.
fn cut(work: &mut Vec<Work>, limit: u64) -> Vec<Work> {
    let (mut some, mut left) = (Vec::new(), limit);
    while left > 0 {
        let Some(mut last) = work.pop() else { break };
        let mut pages = PageSet::new();
        for range in last.pages.ranges() {
            let len = range.len().min(left);
            if len > 0 {
                pages.insert(AddrRange::new(range.start, range.start + len));
            }
            left -= len;
        }
        last.pages = last.pages.subtract(&pages);
        some.push(Work { space: last.space, pages, zero: PageSet::new() });
        if !last.pages.is_empty() {
            work.push(last);
        }
    }
    some
}

impl Mover<'_> {
    /// Foretells a move whose skeleton stands, and gives it up.
    pub(super) fn foretell(&mut self, source: &Source, tree: &Tree) -> Result<(), Failure> {
        let handles = source.handles()?;
        let mut work = all_content(&tree.mms, source.hosts(), &handles)?;
        let bytes = work.iter().map(|w| w.pages.bytes()).sum();
        let before_us = self.watch.total_us();
        let start = Instant::now();
        let mut samples: Vec<Sample> = Vec::new();
        while samples.len() < SAMPLES && start.elapsed() < TIME {
            let some = cut(&mut work, SAMPLE);
            let size: u64 = some.iter().map(|w| w.pages.bytes()).sum();
            if size == 0 {
                break;
            }
            let began = Instant::now();
            let feed = feed(Reader::new(source.hosts(), &handles, some)?.while_running())?;
            self.send_pages(&feed, None)?;
            self.sync()?;
            samples.push((size, u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)));
        }
        self.watch.lap("sample");
        let wanted = u64::try_from(self.order.max_downtime.as_micros()).unwrap_or(u64::MAX);
        let live = self.order.live.then_some(wanted);
        self.report.predicted = Some(predict(bytes, rates(&samples), before_us, live));
        self.report.would_move = Some(true);
        if self.order.live {
            self.report.mode = "live".to_owned();
        }
        // The contract has no word of its own for it: nothing was moved.
        self.report.outcome = Outcome::Cancelled;
        self.report.reason = Some("dry run: nothing was moved".to_owned());
        // What was sent to measure is not a move's.
        (self.report.pages_sent, self.report.zero_pages) = (0, 0);
        if let Sink::Peer(channel) = &mut self.sink {
            let _ = channel.message(&Message::Abort).and_then(|()| channel.expect(ANSWER).map(drop));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Space;
    use crate::state::mm::MmId;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_prediction_follows_the_samples() {
        let r = rates(&[(16 * MIB, 16_000), (16 * MIB, 32_000)]).unwrap();
        assert_eq!((r.mean * 48 / 1000 / MIB, r.least / MIB), (31, 500));
        assert_eq!(rates(&[]), None);
        let p = predict(500 * MIB, Some(Rates { mean: 1000 * MIB, least: 500 * MIB }), 100_000, None);
        assert_eq!((p.frozen_us, p.frozen_us_max, p.bytes), (515_000, 1_280_000, 500 * MIB));
        assert_eq!(p.total_us, 675_000);
        let live = predict(500 * MIB, Some(Rates { mean: 1000 * MIB, least: 500 * MIB }), 0, Some(100_000));
        assert_eq!((live.frozen_us, live.frozen_us_max), (100_000, 1_280_000));
        assert_eq!(predict(0, None, 7, None).frozen_us, FIXED_US);
    }

    #[test]
    fn samples_are_cut_off_the_work() {
        let pages = |from: u64, to: u64| {
            let mut set = PageSet::new();
            set.insert(AddrRange::new(from * MIB, to * MIB));
            set
        };
        let of = |mm, pages| Work { space: Space::Mm(MmId(mm)), pages, zero: PageSet::new() };
        let mut work = vec![of(1, pages(0, 10)), of(2, pages(20, 25))];
        let first = cut(&mut work, 8 * MIB);
        assert_eq!(first.iter().map(|w| w.pages.bytes()).collect::<Vec<_>>(), [5 * MIB, 3 * MIB]);
        let rest = cut(&mut work, 100 * MIB);
        assert_eq!(rest[0].pages.ranges(), pages(3, 10).ranges());
        assert!(work.is_empty() && cut(&mut work, MIB).is_empty());
    }
}
