//! Sets of pages: sorted, coalesced ranges of addresses, in bytes, multiples of a page.

use crate::base::AddrRange;
use crate::base::addr::PAGE;
use serde::{Deserialize, Serialize};

/// A set of pages of one space. Ranges are sorted, never empty, and neither overlap nor touch.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct PageSet {
    ranges: Vec<AddrRange>,
}

/// `range` widened to whole pages.
pub fn whole_pages(range: AddrRange) -> AddrRange {
    AddrRange::new(
        range.start / PAGE * PAGE,
        range.end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX / PAGE * PAGE),
    )
}

impl PageSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it holds no page.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(AddrRange::len).sum()
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.bytes() / PAGE
    }

    /// The ranges, by rising address; no two touch.
    pub fn ranges(&self) -> &[AddrRange] {
        &self.ranges
    }

    /// Whether the page at `addr` is inside.
    pub fn contains(&self, addr: u64) -> bool {
        let i = self.ranges.partition_point(|r| r.end <= addr);
        self.ranges.get(i).is_some_and(|r| r.contains(addr))
    }

    /// Whether all of `range` is inside (an empty range is).
    pub fn covers(&self, range: AddrRange) -> bool {
        let i = self.ranges.partition_point(|r| r.end <= range.start);
        range.is_empty() || self.ranges.get(i).is_some_and(|r| r.start <= range.start && range.end <= r.end)
    }

    /// Adds the pages of `range` (widened to whole pages). Cheap when ranges come in rising order.
    pub fn insert(&mut self, range: AddrRange) {
        let new = whole_pages(range);
        if new.is_empty() {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if new.start > last.end => self.ranges.push(new),
            Some(last) if new.start >= last.start => last.end = last.end.max(new.end),
            None => self.ranges.push(new),
            Some(_) => {
                let from = self.ranges.partition_point(|r| r.end < new.start);
                let to = self.ranges.partition_point(|r| r.start <= new.end);
                let merged = self.ranges[from..to]
                    .iter()
                    .fold(new, |a, r| AddrRange::new(a.start.min(r.start), a.end.max(r.end)));
                self.ranges.splice(from..to, [merged]);
            }
        }
    }

    /// Adds all of `other`.
    pub fn add(&mut self, other: &Self) {
        if other.is_empty() {
            return;
        }
        if self.ranges.last().is_none_or(|l| l.start <= other.ranges[0].start) {
            other.ranges.iter().for_each(|r| self.insert(*r));
        } else {
            *self = self.union(other);
        }
    }

    /// Pages in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut out = Self { ranges: Vec::with_capacity(self.ranges.len().max(other.ranges.len())) };
        let (mut a, mut b) = (self.ranges.iter().peekable(), other.ranges.iter().peekable());
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if x.start <= y.start => a.next(),
                (_, Some(_)) => b.next(),
                (_, None) => a.next(),
            };
            match next {
                Some(r) => out.insert(*r),
                None => return out,
            }
        }
    }

    /// Pages in both.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let mut out = Self::new();
        let (mut i, mut j) = (0, 0);
        while let (Some(a), Some(b)) = (self.ranges.get(i), other.ranges.get(j)) {
            let (start, end) = (a.start.max(b.start), a.end.min(b.end));
            if start < end {
                out.ranges.push(AddrRange::new(start, end));
            }
            if a.end <= b.end {
                i += 1;
            } else {
                j += 1;
            }
        }
        out
    }

    /// Pages in `self` and not in `other`.
    #[must_use]
    pub fn subtract(&self, other: &Self) -> Self {
        let mut out = Self::new();
        let mut j = 0;
        for a in &self.ranges {
            let mut start = a.start;
            while other.ranges.get(j).is_some_and(|b| b.end <= start) {
                j += 1;
            }
            let mut k = j;
            while let Some(b) = other.ranges.get(k).filter(|b| b.start < a.end) {
                if start < b.start {
                    out.ranges.push(AddrRange::new(start, b.start));
                }
                start = start.max(b.end);
                k += 1;
            }
            if start < a.end {
                out.ranges.push(AddrRange::new(start, a.end));
            }
            j = k.saturating_sub(1).max(j);
        }
        out
    }

    /// The pages inside `range`.
    #[must_use]
    pub fn within(&self, range: AddrRange) -> Self {
        let from = self.ranges.partition_point(|r| r.end <= range.start);
        let to = self.ranges.partition_point(|r| r.start < range.end);
        let ranges = self
            .ranges
            .get(from..to)
            .unwrap_or_default()
            .iter()
            .map(|r| AddrRange::new(r.start.max(range.start), r.end.min(range.end)));
        Self { ranges: ranges.filter(|r| !r.is_empty()).collect() }
    }
}

impl FromIterator<AddrRange> for PageSet {
    /// In any order, overlapping or not.
    fn from_iter<I: IntoIterator<Item = AddrRange>>(iter: I) -> Self {
        let mut all: Vec<AddrRange> = iter.into_iter().collect();
        if !all.is_sorted() {
            all.sort_unstable();
        }
        let mut out = Self::new();
        all.into_iter().for_each(|r| out.insert(r));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn page(n: u64) -> u64 {
        n * PAGE
    }

    fn model(set: &PageSet) -> BTreeSet<u64> {
        set.ranges().iter().flat_map(|r| r.start / PAGE..r.end / PAGE).collect()
    }

    fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
        proptest::collection::vec((0..64u64, 0..9u64), 0..24)
    }

    fn build(parts: &[(u64, u64)]) -> PageSet {
        let mut set = PageSet::new();
        for (start, len) in parts {
            set.insert(AddrRange::new(page(*start), page(start + len)));
        }
        set
    }

    fn well_formed(set: &PageSet) {
        assert!(set.ranges().iter().all(|r| r.start < r.end && r.start % PAGE == 0 && r.end % PAGE == 0));
        assert!(set.ranges().windows(2).all(|w| w[0].end < w[1].start), "{set:?}");
    }

    proptest! {
        #[test]
        fn behaves_as_a_set_of_page_numbers(a in ranges(), b in ranges(), cut in (0..64u64, 0..40u64)) {
            let (x, y) = (build(&a), build(&b));
            let (mx, my) = (model(&x), model(&y));
            let expect: BTreeSet<u64> = a.iter().flat_map(|(s, l)| *s..s + l).collect();
            prop_assert_eq!(&mx, &expect);
            let mut added = x.clone();
            added.add(&y);
            prop_assert_eq!(&added, &x.union(&y));
            let any: PageSet = a.iter().chain(&b).map(|(s, l)| AddrRange::new(page(*s), page(s + l))).collect();
            prop_assert_eq!(&any, &added);
            for (set, want) in [
                (x.union(&y), &mx | &my),
                (x.intersect(&y), &mx & &my),
                (x.subtract(&y), &mx - &my),
                (x.within(AddrRange::new(page(cut.0), page(cut.0 + cut.1))),
                 mx.iter().copied().filter(|p| (cut.0..cut.0 + cut.1).contains(p)).collect()),
            ] {
                well_formed(&set);
                prop_assert_eq!(model(&set), want);
            }
            prop_assert_eq!(x.pages() as usize, mx.len());
            for p in 0..80 {
                prop_assert_eq!(x.contains(page(p)), mx.contains(&p));
                let two = AddrRange::new(page(p), page(p + 2));
                prop_assert_eq!(x.covers(two), mx.contains(&p) && mx.contains(&(p + 1)));
            }
        }
    }

    #[test]
    fn odd_bytes_are_widened_to_pages() {
        let mut set = PageSet::new();
        set.insert(AddrRange::new(PAGE + 1, PAGE + 2));
        assert_eq!(set.ranges(), [AddrRange::new(PAGE, 2 * PAGE)]);
        set.insert(AddrRange::new(u64::MAX - 1, u64::MAX));
        well_formed(&set);
    }
}
