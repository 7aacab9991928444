//! The difference between two looks at one address space, as the fewest changes that keep content where it can stay. Pure.

use super::{Backing, Vma, VmaFlags};
use crate::base::AddrRange;

/// One change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A mapping, or a part of one, is gone.
    Unmap(AddrRange),
    /// A mapping, or a part of one, is new; its content is not there.
    Map(Vma),
    /// Another protection.
    Protect(AddrRange, VmaFlags),
    /// Other advice: (before, now).
    Advise(AddrRange, VmaFlags, VmaFlags),
    /// Another name.
    Name(AddrRange, Vec<u8>),
}

const PROTECTION: VmaFlags = VmaFlags::READ.union(VmaFlags::WRITE).union(VmaFlags::EXEC);
/// What is fixed when a mapping is made.
const KIND: VmaFlags =
    VmaFlags::SHARED.union(VmaFlags::GROWSDOWN).union(VmaFlags::NORESERVE).union(VmaFlags::DROPPABLE);
/// What madvise(2) sets, and can take back. (MADV_HUGEPAGE cannot be taken back; mlock comes last of all anyway.)
const ADVICE: VmaFlags = VmaFlags::DONTFORK
    .union(VmaFlags::DONTDUMP)
    .union(VmaFlags::MERGEABLE)
    .union(VmaFlags::HUGEPAGE)
    .union(VmaFlags::NOHUGEPAGE)
    .union(VmaFlags::WIPEONFORK)
    .union(VmaFlags::SEQUENTIAL)
    .union(VmaFlags::RANDOM);

/// The part of `vma` in `range`, which must lie inside.
pub fn part(vma: &Vma, range: AddrRange) -> Vma {
    let shift = |offset: u64| offset.wrapping_add(range.start - vma.range.start);
    let backing = match vma.backing {
        Backing::File { file, offset } => Backing::File { file, offset: shift(offset) },
        Backing::Object { object, offset } => Backing::Object { object, offset: shift(offset) },
        ref other => other.clone(),
    };
    Vma { range, backing, ..vma.clone() }
}

/// Whether the content of `a` can serve as that of `b`; both cover the same range.
fn same_memory(a: &Vma, b: &Vma) -> bool {
    a.backing == b.backing && (a.flags & KIND) == (b.flags & KIND)
}

/// The changes that make `old` into `new` (both by rising address, without overlap): what goes first, then the rest by
/// rising address. Special mappings of the kernel must be the same in both; they are left alone.
pub fn changes(old: &[Vma], new: &[Vma]) -> Vec<Change> {
    let mut gone: Vec<AddrRange> = Vec::new();
    let mut rest: Vec<Change> = Vec::new();
    for range in pieces(old, new) {
        let (before, after) = (at(old, range), at(new, range));
        match (before, after) {
            (Some(b), Some(a)) if same_memory(&b, &a) => soften(&b, &a, &mut rest),
            (before, after) => {
                if before.is_some() {
                    join(&mut gone, range);
                }
                if let Some(a) = after {
                    append(&mut rest, a, new);
                }
            }
        }
    }
    gone.into_iter().map(Change::Unmap).chain(rest).collect()
}

/// Every stretch between two borders of any mapping.
fn pieces(old: &[Vma], new: &[Vma]) -> Vec<AddrRange> {
    let mut borders: Vec<u64> = old.iter().chain(new).flat_map(|v| [v.range.start, v.range.end]).collect();
    borders.sort_unstable();
    borders.dedup();
    borders.windows(2).map(|w| AddrRange::new(w[0], w[1])).collect()
}

fn at(vmas: &[Vma], range: AddrRange) -> Option<Vma> {
    let n = vmas.partition_point(|v| v.range.end <= range.start);
    vmas.get(n).filter(|v| v.range.start <= range.start).map(|v| part(v, range))
}

fn join(list: &mut Vec<AddrRange>, range: AddrRange) {
    match list.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => list.push(range),
    }
}

/// A new piece; together with the one before it if both are of one new mapping.
fn append(rest: &mut Vec<Change>, piece: Vma, new: &[Vma]) {
    if let Some(Change::Map(last)) = rest.last_mut()
        && last.range.end == piece.range.start
        && new.iter().any(|v| v.range.start <= last.range.start && piece.range.end <= v.range.end)
    {
        last.range.end = piece.range.end;
        return;
    }
    rest.push(Change::Map(piece));
}

fn soften(before: &Vma, after: &Vma, rest: &mut Vec<Change>) {
    if after.is_special() {
        return;
    }
    let range = after.range;
    let (b, a) = (before.flags, after.flags);
    if b & PROTECTION != a & PROTECTION {
        rest.push(Change::Protect(range, a));
    }
    if b & ADVICE != a & ADVICE {
        rest.push(Change::Advise(range, b, a));
    }
    if let Some(name) = after.name.as_ref().filter(|n| before.name.as_ref() != Some(*n)) {
        rest.push(Change::Name(range, name.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::mm::MapFileId;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const PAGE: u64 = 4096;

    /// What one page is, and whether its content has been kept since the beginning.
    type Pages = BTreeMap<u64, (Backing, VmaFlags, bool)>;

    fn model(vmas: &[Vma]) -> Pages {
        let mut pages = Pages::new();
        for v in vmas {
            lay(&mut pages, v, true);
        }
        pages
    }

    fn lay(pages: &mut Pages, v: &Vma, kept: bool) {
        for at in (v.range.start..v.range.end).step_by(PAGE as usize) {
            let page = part(v, AddrRange::new(at, at + PAGE));
            assert!(pages.insert(at, (page.backing, page.flags, kept)).is_none(), "mapped twice");
        }
    }

    fn layout() -> impl Strategy<Value = Vec<Vma>> {
        let vma = (0..3u64, 1..6u64, 0..3u32, 0..8u32, any::<bool>(), any::<bool>());
        prop::collection::vec(vma, 0..12).prop_map(|list| {
            let mut at = 16 * PAGE;
            let mut vmas = Vec::new();
            for (gap, len, file, prot, dontfork, noreserve) in list {
                at += gap * PAGE;
                let range = AddrRange::new(at, at + len * PAGE);
                at = range.end;
                let backing = match file {
                    0 => Backing::Anon,
                    // The same file at the same place has the same offset, now and then.
                    f => Backing::File { file: MapFileId(f), offset: range.start },
                };
                let mut flags = VmaFlags::from_bits_retain(prot);
                flags.set(VmaFlags::DONTFORK, dontfork);
                flags.set(VmaFlags::NORESERVE, noreserve);
                vmas.push(Vma { range, flags, backing, name: None });
            }
            vmas
        })
    }

    proptest! {
        #[test]
        fn the_changes_lead_from_one_to_the_other(old in layout(), new in layout()) {
            let mut pages = model(&old);
            for change in changes(&old, &new) {
                match change {
                    Change::Unmap(r) => (r.start..r.end).step_by(4096).for_each(|at| {
                        pages.remove(&at);
                    }),
                    Change::Map(v) => lay(&mut pages, &v, false),
                    Change::Protect(r, f) => (r.start..r.end).step_by(4096).for_each(|at| {
                        let page = pages.get_mut(&at).unwrap();
                        page.1 = (page.1 - PROTECTION) | (f & PROTECTION);
                    }),
                    Change::Advise(r, _, f) => (r.start..r.end).step_by(4096).for_each(|at| {
                        let page = pages.get_mut(&at).unwrap();
                        page.1 = (page.1 - ADVICE) | (f & ADVICE);
                    }),
                    Change::Name(..) => {}
                }
            }
            let (before, after) = (model(&old), model(&new));
            prop_assert!(pages.keys().eq(after.keys()));
            for (at, (backing, flags, kept)) in &pages {
                let want = &after[at];
                prop_assert_eq!((backing, flags), (&want.0, &want.1));
                // Content stays wherever the memory is the same.
                let same = before.get(at).is_some_and(|b| b.0 == want.0 && b.1 & KIND == want.1 & KIND);
                prop_assert_eq!(*kept, same, "{:x}", at);
            }
        }

        #[test]
        fn nothing_changes_between_equals(one in layout()) {
            prop_assert_eq!(changes(&one, &one), vec![]);
        }
    }

    #[test]
    fn a_grown_heap_is_one_change() {
        let heap = |pages: u64| Vma {
            range: AddrRange::new(0x1000, 0x1000 + pages * PAGE),
            flags: VmaFlags::READ | VmaFlags::WRITE,
            backing: Backing::Anon,
            name: None,
        };
        let grown = changes(&[heap(2)], &[heap(5)]);
        assert_eq!(grown, [Change::Map(Vma { range: AddrRange::new(0x3000, 0x6000), ..heap(1) })]);
    }
}
