//! What the target may hold of a space, and what to send next: pure bookkeeping over page sets.
//!
//! A look at a space says which pages were written, which read as zeros, which are not there. From it and from what
//! was sent before follow the pages to send and the pages to declare zero. The rule is "dirty or never sent", with a
//! third case, "sent and now not populated", and a fourth, "sent, but perhaps not delivered".
//!
//! The target keeps its mappings like the source's; where the two differ in kind or file it maps anew before the pages
//! come. A mapping replaced by an equal one it cannot see: that is settled here, page by page.

use crate::memory::PageSet;

/// What one look at a space found. Sets may overlap where the program ran on meanwhile.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Look {
    /// Pages of the space that can have content now (its mappings).
    pub mapped: PageSet,
    /// Pages with content, written since the last look or not known to be unwritten.
    pub dirty: PageSet,
    /// Pages with content that are not dirty, where the way of looking lists them; those never sent are sent.
    pub clean: PageSet,
    /// Pages that became the page of zeros since the last look.
    pub zeroed: PageSet,
    /// Pages that are not populated.
    pub absent: PageSet,
    /// Pages of `mapped` where absent does not mean zero but the page of a file: these are read and sent.
    pub filed: PageSet,
}

/// What to send of a space.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Pages whose bytes are sent.
    pub send: PageSet,
    /// Pages declared zero.
    pub zero: PageSet,
}

/// The pages of one space that the target may hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SentSet {
    /// Perhaps at the target. Kept over unmapping: the target may not have heard of that when a new mapping comes.
    sent: PageSet,
    /// Of these: not known to have arrived.
    owed: PageSet,
}

impl SentSet {
    /// Plans the next round and takes it as sent; [`SentSet::give_back`] says when it was not.
    pub fn plan(&mut self, look: &Look) -> Plan {
        let nothing = look.absent.union(&look.zeroed);
        let mut send = look.dirty.clone();
        send.add(&look.clean.subtract(&self.sent));
        send.add(&self.owed.subtract(&nothing));
        let gone = self.sent.intersect(&nothing).intersect(&look.mapped);
        send.add(&gone.intersect(&look.filed));
        let send = send.intersect(&look.mapped);
        let zero = gone.subtract(&send);
        // Zero is declared without a look. A page of the file that takes the place of a lost copy is read, later, and
        // may by then be a copy again and be lost once more before the next round: it stays sent, and is sent each time.
        self.sent = self.sent.subtract(&zero).union(&send);
        self.owed = self.owed.subtract(&look.mapped);
        Plan { send, zero }
    }

    /// These pages were planned and perhaps not delivered: they are sent again, or declared zero, by the next plan.
    pub fn give_back(&mut self, plan: &Plan) {
        let pages = plan.send.union(&plan.zero);
        self.sent.add(&pages);
        self.owed.add(&pages);
    }

    /// The target lost these pages (it maps anew there): those it had are owed.
    pub fn lost(&mut self, pages: &PageSet) {
        self.owed.add(&self.sent.intersect(pages));
    }

    /// Everything the target may hold.
    pub fn sent(&self) -> &PageSet {
        &self.sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::AddrRange;
    use crate::base::addr::PAGE;
    use proptest::prelude::*;

    const PAGES: usize = 24;

    /// One page of a made-up source: the file below a filed page has one byte of content.
    #[derive(Clone, Copy, PartialEq, Debug)]
    struct Page {
        mapped: bool,
        filed: u8,
        /// `None`: not populated. `Some(0)`: the page of zeros.
        content: Option<u8>,
        written: bool,
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Map(usize, u8),
        Unmap(usize),
        Write(usize, u8),
        Touch(usize),
        Drop(usize),
        Round { arrives: bool, lists_clean: bool },
    }

    fn op() -> impl Strategy<Value = Op> {
        let page = 0..PAGES;
        prop_oneof![
            2 => (page.clone(), 0..3u8).prop_map(|(p, f)| Op::Map(p, f)),
            1 => page.clone().prop_map(Op::Unmap),
            4 => (page.clone(), 1..250u8).prop_map(|(p, v)| Op::Write(p, v)),
            1 => page.clone().prop_map(Op::Touch),
            2 => page.prop_map(Op::Drop),
            3 => (any::<bool>(), any::<bool>())
                .prop_map(|(arrives, lists_clean)| Op::Round { arrives, lists_clean }),
        ]
    }

    fn set(pages: &[Page], pick: impl Fn(&Page) -> bool) -> PageSet {
        let picked = pages.iter().enumerate().filter(|(_, p)| pick(p));
        picked.map(|(i, _)| AddrRange::new(i as u64 * PAGE, (i as u64 + 1) * PAGE)).collect()
    }

    fn look(pages: &[Page], lists_clean: bool) -> Look {
        let content = |p: &Page| p.mapped && p.content.is_some_and(|c| c != 0);
        Look {
            mapped: set(pages, |p| p.mapped),
            dirty: set(pages, |p| content(p) && p.written),
            clean: if lists_clean { set(pages, |p| content(p) && !p.written) } else { PageSet::new() },
            zeroed: set(pages, |p| p.mapped && p.content == Some(0) && p.written),
            absent: set(pages, |p| p.mapped && p.content.is_none()),
            filed: set(pages, |p| p.mapped && p.filed > 0),
        }
    }

    fn step(pages: &mut [Page], op: Op) {
        match op {
            // A new mapping: nothing populated. What is written later counts as written: new entries are.
            Op::Map(i, filed) => pages[i] = Page { mapped: true, filed, content: None, written: true },
            Op::Unmap(i) => pages[i] = Page { mapped: false, filed: 0, content: None, written: true },
            Op::Write(i, v) if pages[i].mapped => (pages[i].content, pages[i].written) = (Some(v), true),
            // A read makes an anonymous page that is absent the page of zeros.
            Op::Touch(i) if pages[i].mapped && pages[i].filed == 0 && pages[i].content.is_none() => {
                (pages[i].content, pages[i].written) = (Some(0), true);
            }
            Op::Drop(i) if pages[i].mapped => (pages[i].content, pages[i].written) = (None, true),
            _ => {}
        }
    }

    proptest! {
        /// Whatever happens between rounds, and whichever rounds get lost, after a round that arrives the target's
        /// memory reads as the source's did, although the target drops a page only with a mapping of another kind.
        #[test]
        fn the_target_reads_the_same(ops in proptest::collection::vec(op(), 0..120)) {
            let fresh = Page { mapped: false, filed: 0, content: None, written: true };
            let mut pages = [fresh; PAGES];
            let mut target: [Option<u8>; PAGES] = [None; PAGES];
            let mut below = [None; PAGES]; // the mapping the target has there
            let mut sent = SentSet::default();
            for op in ops.into_iter().chain([Op::Round { arrives: true, lists_clean: false }]) {
                let Op::Round { arrives, lists_clean } = op else {
                    step(&mut pages, op);
                    continue;
                };
                let plan = sent.plan(&look(&pages, lists_clean));
                prop_assert!(plan.send.intersect(&plan.zero).is_empty());
                // A round that failed may have arrived in part.
                for i in (0..PAGES).filter(|i| arrives || i % 2 == 0) {
                    let page = &pages[i];
                    let layout = page.mapped.then_some(page.filed);
                    if below[i] != layout {
                        (below[i], target[i]) = (layout, None);
                    }
                    if plan.send.contains(i as u64 * PAGE) {
                        target[i] = Some(page.content.unwrap_or(page.filed));
                    } else if plan.zero.contains(i as u64 * PAGE) {
                        target[i] = Some(0);
                    }
                }
                if !arrives {
                    sent.give_back(&plan);
                }
                pages.iter_mut().for_each(|p| p.written &= p.content.is_none());
                for (i, page) in pages.iter().enumerate().filter(|(_, p)| arrives && p.mapped) {
                    let reads = target[i].unwrap_or(page.filed);
                    prop_assert_eq!(reads, page.content.unwrap_or(page.filed), "page {} {:?}", i, page);
                }
            }
        }
    }

    #[test]
    fn nothing_new_means_nothing_to_send() {
        let mut sent = SentSet::default();
        let all = PageSet::from_iter([AddrRange::new(0, 8 * PAGE)]);
        let first = Look { mapped: all.clone(), dirty: all.clone(), ..Look::default() };
        assert_eq!(sent.plan(&first).send, all);
        let quiet = Look { mapped: all.clone(), clean: all.clone(), ..Look::default() };
        assert_eq!(sent.plan(&quiet), Plan::default());
        let dropped = Look { mapped: all.clone(), absent: all.clone(), ..Look::default() };
        assert_eq!(sent.plan(&dropped).zero, all);
        assert_eq!(sent.plan(&dropped), Plan::default());
    }
}
