//! Addresses nobody uses: where a scratch area and the kernel's special mappings can lie in passing. Pure.

use crate::base::AddrRange;
use crate::base::addr::PAGE;

/// First address past what a 64-bit program can map without asking for more (x86-64, four-level tables).
pub const TASK_END: u64 = 0x7fff_ffff_f000;
/// Below lies `vm.mmap_min_addr`; nothing is put there.
const LOWEST: u64 = 0x10_0000;
/// Alignment of a hole: a page table of its own, so that it never shares one with a mapping of the program.
const ALIGN: u64 = 2 << 20;

/// A place of `len` bytes in the middle of the widest gap that none of `used` touches: far from stacks that
/// grow down and heaps that grow up. `used` may overlap and have any order. None: there is no such gap.
pub fn common_hole(used: impl IntoIterator<Item = AddrRange>, len: u64) -> Option<AddrRange> {
    let len = len.checked_next_multiple_of(PAGE)?;
    let mut used: Vec<AddrRange> = used.into_iter().collect();
    used.sort_unstable();
    used.push(AddrRange { start: TASK_END, end: u64::MAX });
    let mut widest = AddrRange { start: 0, end: 0 };
    let mut at = LOWEST;
    for range in used {
        let end = range.start.min(TASK_END);
        if end > at && end - at > widest.len() {
            widest = AddrRange { start: at, end };
        }
        at = at.max(range.end);
    }
    let spare = widest.len().checked_sub(len + 2 * ALIGN)?;
    let start = (widest.start + spare / 2).next_multiple_of(ALIGN);
    Some(AddrRange { start, end: start + len })
}

/// What lies between `keep` (any order, may overlap) from the lowest page to [`TASK_END`].
pub fn all_but(keep: impl IntoIterator<Item = AddrRange>) -> Vec<AddrRange> {
    let mut keep: Vec<AddrRange> = keep.into_iter().collect();
    keep.sort_unstable();
    let mut rest = Vec::new();
    let mut at = PAGE;
    for range in keep {
        if range.start > at {
            rest.push(AddrRange { start: at, end: range.start });
        }
        at = at.max(range.end);
    }
    if at < TASK_END {
        rest.push(AddrRange { start: at, end: TASK_END });
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = Vec<AddrRange>> {
        let range = (0..TASK_END / PAGE, 1..1u64 << 30)
            .prop_map(|(at, len)| AddrRange::new(at * PAGE, (at * PAGE + len * PAGE).min(TASK_END)));
        prop::collection::vec(range, 0..40)
    }

    proptest! {
        #[test]
        fn a_hole_touches_nothing(used in ranges(), pages in 1..5000u64) {
            if let Some(hole) = common_hole(used.clone(), pages * PAGE) {
                prop_assert_eq!(hole.len(), pages * PAGE);
                prop_assert!(hole.start >= LOWEST && hole.end <= TASK_END && hole.start % PAGE == 0);
                prop_assert!(used.iter().all(|u| !u.overlaps(&hole)), "{:?} in {:?}", hole, used);
            }
        }

        #[test]
        fn the_rest_and_the_kept_are_everything(keep in ranges()) {
            let rest = all_but(keep.clone());
            for r in &rest {
                prop_assert!(keep.iter().all(|k| !k.overlaps(r)));
                prop_assert!(r.start >= PAGE && r.end <= TASK_END && !r.is_empty());
            }
            let mut all: Vec<_> = rest.into_iter().chain(keep).collect();
            all.sort_unstable();
            let mut at = PAGE;
            for r in all {
                prop_assert!(r.start <= at);
                at = at.max(r.end);
            }
            prop_assert_eq!(at, TASK_END);
        }
    }

    #[test]
    fn a_full_space_has_no_hole() {
        assert_eq!(common_hole([AddrRange::new(0, TASK_END)], PAGE), None);
        assert_eq!(common_hole([], u64::MAX), None);
        assert!(common_hole([], 1 << 30).is_some());
    }
}
