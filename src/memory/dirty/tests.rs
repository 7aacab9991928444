//! Rounds against a real process that writes, maps, unmaps, moves, drops and forks between and during them: a copy kept
//! from the rounds alone must be the process's memory in the end.

use super::*;
use crate::base::AddrRange;
use crate::base::addr::PAGE;
use crate::kernel::vmio::ProcMem;
use crate::memory::content::{Class, class};
use crate::memory::testing::{ARENA, Writer};
use crate::memory::{Chunk, Reader};
use crate::remote::Running;
use crate::state::mm::{Backing, Vma};
use std::collections::{BTreeMap, HashSet};

/// The writer makes the descriptor itself, here where it can be asked to.
struct Asked<'a>(&'a mut Writer);

impl MakeUserfaultfd for Asked<'_> {
    fn userfaultfd(&mut self, _: i32) -> Result<OwnedFd, Error> {
        let number = self.0.run(&format!("uffd {}", uffd::FLAGS));
        let fd = self.0.borrow(&number);
        self.0.run(&format!("closefd {number}"));
        Ok(fd)
    }
}

/// What the target would have: pages that arrived, dropped where a mapping of another kind came.
#[derive(Default)]
struct Shadow {
    pages: BTreeMap<(Space, u64), Vec<u8>>,
    layout: Vec<Vma>,
}

/// What the target's own mapping at a page looks like.
fn kind(vmas: &[Vma], addr: u64) -> Option<(bool, u64)> {
    let i = vmas.partition_point(|v| v.range.end <= addr);
    let vma = vmas.get(i).filter(|v| v.range.contains(addr))?;
    Some(match vma.backing {
        Backing::File { offset, .. } | Backing::Object { offset, .. } => {
            (true, offset.wrapping_sub(vma.range.start))
        }
        _ => (false, 0),
    })
}

impl Shadow {
    fn apply(
        &mut self,
        layout: &MmLayout,
        pids: &HashMap<MmId, i32>,
        handles: &HashMap<ObjectId, OwnedFd>,
        round: &Round,
    ) {
        let old = std::mem::replace(&mut self.layout, layout.vmas.clone());
        self.pages.retain(|(space, addr), _| {
            matches!(space, Space::Object(_)) || kind(&old, *addr) == kind(&layout.vmas, *addr)
        });
        let reader = Reader::new(pids, handles, round.work.clone()).unwrap();
        let mut chunk = Chunk::new();
        while reader.fill(&mut chunk).unwrap() {
            for (run, data) in chunk.pieces() {
                for n in 0..run.len / PAGE {
                    let page = if run.zero {
                        vec![0; PAGE as usize]
                    } else {
                        data[(n * PAGE) as usize..][..PAGE as usize].to_vec()
                    };
                    self.pages.insert((run.space, run.addr + n * PAGE), page);
                }
            }
        }
    }

    /// Compares with the memory of a process at rest.
    fn check(&self, pid: i32, layout: &MmLayout) {
        let mem = ProcMem::open(pid, false).unwrap();
        let content = content::content_pages(pid, layout).unwrap();
        let mut buf = vec![0; PAGE as usize];
        for vma in &layout.vmas {
            let class = class(vma);
            for addr in (vma.range.start..vma.range.end).step_by(PAGE as usize) {
                let sent = self.pages.get(&(Space::Mm(layout.mm), addr));
                match class {
                    Class::Anon if content.contains(addr) || sent.is_some() => {
                        assert_eq!(mem.read(addr, &mut buf), Ok(buf.len()), "{addr:#x}");
                        let zeros = vec![0; PAGE as usize];
                        let sent = sent.unwrap_or(&zeros);
                        assert!(
                            *sent == buf,
                            "page {addr:#x} of {vma:?}: {:x?} instead of {:x?}",
                            &sent[..16],
                            &buf[..16]
                        );
                    }
                    Class::Cow => match sent {
                        Some(sent) => {
                            assert_eq!(mem.read(addr, &mut buf), Ok(buf.len()), "{addr:#x}");
                            assert!(
                                *sent == buf,
                                "page {addr:#x} of {vma:?}: {:x?} instead of {:x?}",
                                &sent[..16],
                                &buf[..16]
                            );
                        }
                        None => assert!(!content.contains(addr), "page {addr:#x} of {vma:?} was never sent"),
                    },
                    _ => {}
                }
            }
        }
    }
}

/// A writer under a tracker, with the shadow of it.
struct Rig {
    writer: Writer,
    tracker: Tracker,
    shadow: Shadow,
    handles: HashMap<ObjectId, OwnedFd>,
    access: Access,
    forked: bool,
}

impl Rig {
    fn new(way: Way) -> Self {
        let mut rig = Self {
            writer: Writer::start(),
            tracker: Tracker::by(way),
            shadow: Shadow::default(),
            handles: HashMap::new(),
            access: Access::Mappings,
            forked: false,
        };
        rig.writer.run("small"); // pages are counted
        rig.watch();
        rig
    }

    fn watch(&mut self) {
        let pid = self.writer.pid();
        self.tracker.watch(MmId(pid), pid, &mut Asked(&mut self.writer)).unwrap();
    }

    fn look(&mut self, layout: &MmLayout, last: bool) -> Round {
        let view = |handle| ObjectView { handle, access: self.access };
        let objects = self.handles.iter().map(|(id, h)| (*id, view(h))).collect();
        let layouts = std::slice::from_ref(layout);
        self.tracker.round(&View { layouts, objects: &objects, forked: self.forked, last }).unwrap()
    }

    /// A look and what it takes: the whole process stopped where the way needs it, reading what was found not.
    fn round(&mut self, last: bool) -> Round {
        let stopped = self.tracker.way().needs_stop().then(|| {
            let running = Running::seize(self.writer.pid(), 0).unwrap();
            running.stop(std::time::Duration::from_secs(5)).unwrap()
        });
        let layout = self.writer.layout();
        let round = self.look(&layout, last);
        if let Some(stopped) = stopped {
            stopped.detach().unwrap();
        }
        let pids = HashMap::from([(layout.mm, self.writer.pid())]);
        self.shadow.apply(&layout, &pids, &self.handles, &round);
        round
    }

    /// The last round, with the writer at rest, and the comparison.
    fn last(&mut self) -> Round {
        self.writer.idle();
        let round = self.round(true);
        self.shadow.check(self.writer.pid(), &self.writer.layout());
        round
    }
}

/// Runs a test by every way this kernel has.
fn each_way(test: impl Fn(Way)) {
    let ways = Way::available();
    assert!(!ways.is_empty(), "this kernel has no way to track writes");
    ways.into_iter().for_each(test);
}

/// Pages of the arena in the round's work for the process.
fn arena(round: &Round) -> (PageSet, PageSet) {
    let inside = AddrRange::new(ARENA, 2 * ARENA);
    let mine = round.work.iter().find(|w| matches!(w.space, Space::Mm(_)));
    mine.map(|w| (w.pages.within(inside), w.zero.within(inside))).unwrap_or_default()
}

fn at(page: u64, pages: u64) -> AddrRange {
    AddrRange::new(ARENA + page * PAGE, ARENA + (page + pages) * PAGE)
}

fn set(ranges: &[(u64, u64)]) -> PageSet {
    ranges.iter().map(|(p, n)| at(*p, *n)).collect()
}

fn wild(way: Way, seed: u32, checks: u32, rounds: u32, steps: u32) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), (0..64 * PAGE).map(|i| (i / PAGE) as u8 + 1).collect::<Vec<_>>()).unwrap();
    let mut rig = Rig::new(way);
    rig.writer.run(&format!("wildinit {ARENA} {seed} {}", file.path().display()));
    for _ in 0..checks {
        for _ in 0..rounds {
            rig.writer.send(&format!("wild {steps}")); // goes on while we look and read
            rig.round(false);
            rig.writer.answer();
        }
        rig.last();
    }
}

/// `PODMIG_WILD_SEEDS=N` tries N courses of events instead of one.
#[test]
fn hundreds_of_rounds_over_a_wild_process_lose_nothing() {
    let seeds = std::env::var("PODMIG_WILD_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    each_way(|way| (1..=seeds).for_each(|seed| wild(way, seed, 30, 8, 25)));
}

#[test]
fn rounds_far_apart_lose_nothing_either() {
    each_way(|way| wild(way, 2, 10, 2, 400));
}

#[test]
fn a_round_tells_exactly_what_was_written_and_what_is_gone() {
    each_way(by_a_round_tells_exactly_what_was_written_and_what_is_gone);
}

fn by_a_round_tells_exactly_what_was_written_and_what_is_gone(way: Way) {
    let mut rig = Rig::new(way);
    let range = rig.writer.map(0, 2000);
    rig.writer.fill(at(0, 1500), 3);
    assert_eq!(arena(&rig.last()), (set(&[(0, 1500)]), PageSet::new()));
    assert_eq!(arena(&rig.last()), Default::default());
    rig.writer.fill(at(7, 1), 4);
    rig.writer.fill(at(1700, 2), 4);
    rig.writer.run(&format!("advise {} {} 4", at(100, 600).start, 600 * PAGE));
    assert_eq!(arena(&rig.last()), (set(&[(7, 1), (1700, 2)]), set(&[(100, 600)])));
    assert_eq!(arena(&rig.last()), Default::default());
    // A read makes an absent page one of zeros: the target's is so already.
    rig.writer.run(&format!("read {} {}", at(100, 10).start, 10 * PAGE));
    assert_eq!(arena(&rig.last()), Default::default());
    // Dropped and read again: zeros over content.
    rig.writer.run(&format!("advise {} {} 4", at(0, 10).start, 10 * PAGE));
    rig.writer.run(&format!("read {} {}", at(0, 10).start, 10 * PAGE));
    assert_eq!(arena(&rig.last()), (PageSet::new(), set(&[(0, 10)])));
    // The same place mapped anew in one breath: wholly dirty, the rest gone.
    rig.writer.run(&format!("map {} {} 3 0x22", range.start, range.len()));
    rig.writer.fill(at(20, 5), 5);
    let (pages, zero) = arena(&rig.last());
    assert_eq!(pages, set(&[(20, 5)]));
    assert_eq!(zero, set(&[(10, 10), (25, 75), (700, 800), (1700, 2)]));
    assert_eq!(arena(&rig.last()), Default::default());
    // Moved: the old place is no memory any more, the new one wholly dirty.
    rig.writer.run(&format!(
        "remap {} {} {} {}",
        range.start,
        range.len(),
        at(5000, 2000).start,
        range.len()
    ));
    assert_eq!(arena(&rig.last()).0, set(&[(5020, 5)]));
    assert_eq!(arena(&rig.last()), Default::default());
}

#[test]
fn pages_given_back_come_again_as_they_are_then() {
    each_way(by_pages_given_back_come_again_as_they_are_then);
}

fn by_pages_given_back_come_again_as_they_are_then(way: Way) {
    let mut rig = Rig::new(way);
    rig.writer.map(0, 100);
    rig.writer.fill(at(0, 50), 3);
    let first = rig.last();
    rig.tracker.give_back(&first.work);
    rig.writer.run(&format!("advise {} {} 4", at(10, 5).start, 5 * PAGE));
    rig.writer.fill(at(60, 1), 3);
    assert_eq!(arena(&rig.last()), (set(&[(0, 10), (15, 35), (60, 1)]), set(&[(10, 5)])));
    assert_eq!(arena(&rig.last()), Default::default());
}

#[test]
fn memory_that_takes_a_shared_place_during_a_look_comes_in_the_next() {
    each_way(by_memory_that_takes_a_shared_place_during_a_look_comes_in_the_next);
}

fn by_memory_that_takes_a_shared_place_during_a_look_comes_in_the_next(way: Way) {
    let mut rig = Rig::new(way);
    rig.writer.run(&format!("map {} {} 3 0x21", at(0, 8).start, 8 * PAGE));
    rig.last();
    // New beside it, so that the look registers the whole row; by then the shared part is private.
    rig.writer.map(8, 2);
    rig.writer.idle();
    let stale = rig.writer.layout();
    rig.writer.run(&format!("unmap {} {}", at(0, 8).start, 8 * PAGE));
    rig.writer.map(0, 8);
    rig.writer.fill(at(0, 8), 3);
    rig.writer.idle();
    rig.look(&stale, false);
    assert_eq!(arena(&rig.round(true)).0, set(&[(0, 8)]));
}

#[test]
fn a_sparse_mapping_costs_no_page_tables() {
    each_way(by_a_sparse_mapping_costs_no_page_tables);
}

fn by_a_sparse_mapping_costs_no_page_tables(way: Way) {
    let mut rig = Rig::new(way);
    let len = 64u64 << 30;
    rig.writer.run(&format!("map {ARENA} {len} 3 0x4022"));
    rig.writer.run(&format!("touch {}", ARENA + len / 2));
    let tables = |w: &Writer| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", w.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmPTE:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = tables(&rig.writer);
    assert_eq!(arena(&rig.round(true)).0.pages(), 1);
    assert_eq!(arena(&rig.round(true)).0.pages(), 0);
    assert!(
        tables(&rig.writer) <= before + 64,
        "page tables grew from {before} to {} KiB",
        tables(&rig.writer)
    );
}

#[test]
fn guard_pages_are_content_that_is_gone() {
    each_way(by_guard_pages_are_content_that_is_gone);
}

fn by_guard_pages_are_content_that_is_gone(way: Way) {
    let mut rig = Rig::new(way);
    rig.writer.map(0, 20);
    rig.writer.fill(at(0, 20), 3);
    rig.last();
    rig.writer.run(&format!("guard {} {}", at(5, 3).start, 3 * PAGE));
    rig.writer.idle();
    assert_eq!(arena(&rig.round(true)), (PageSet::new(), set(&[(5, 3)])));
    assert_eq!(arena(&rig.round(true)), Default::default());
    rig.writer.run(&format!("unguard {} {}", at(5, 3).start, 3 * PAGE));
    rig.writer.fill(at(6, 1), 3);
    assert_eq!(arena(&rig.last()), (set(&[(6, 1)]), PageSet::new()));
}

#[test]
fn another_program_is_told_and_sent_whole_in_the_last_round() {
    each_way(by_another_program_is_told_and_sent_whole_in_the_last_round);
}

fn by_another_program_is_told_and_sent_whole_in_the_last_round(way: Way) {
    let mut rig = Rig::new(way);
    rig.writer.map(0, 20);
    rig.writer.fill(at(0, 20), 3);
    rig.last();
    rig.writer.run("exec");
    rig.writer.idle();
    let pid = rig.writer.pid();
    let round = rig.round(false);
    assert_eq!((round.unwatched, round.work.len()), (vec![MmId(pid)], 0));
    let round = rig.last();
    assert_eq!(round.unwatched, [MmId(pid)]);
    assert!(round.bytes() > 100 * PAGE);
}

/// The rig with a shared object of 64 pages mapped at the arena's start, in a state in which only its dirty pages count.
fn sharing(way: Way) -> Rig {
    let mut rig = Rig::new(way);
    let size = 64 * PAGE;
    let fd = rig.writer.run(&format!("memfd mem {size}"));
    rig.writer.run(&format!("map {ARENA} {size} 3 1 mem 0"));
    rig.writer.fill(at(0, 64), 3);
    let handle = rig.writer.borrow(&fd);
    rig.handles.insert(ObjectId(0), handle);
    assert_eq!(rig.last().whole, [ObjectId(0)]);
    settle(&mut rig);
    rig
}

/// Rounds until the object is no longer taken whole (its time stamps must grow old).
fn settle(rig: &mut Rig) {
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while !rig.last().whole.is_empty() {
        assert!(std::time::Instant::now() < limit, "the object stays dirty");
    }
}

/// Pages of the object in the round's work.
fn object(round: &Round) -> u64 {
    round.work.iter().filter(|w| matches!(w.space, Space::Object(_))).map(|w| w.pages.pages()).sum()
}

/// What the copy holds of the object against what a process reads in it.
fn same_object(rig: &mut Rig) {
    let mut content = vec![0u8; 64 * PAGE as usize];
    std::os::unix::fs::FileExt::read_exact_at(
        &content::reopen(ObjectId(0), &rig.handles[&ObjectId(0)], false).unwrap(),
        &mut content,
        0,
    )
    .unwrap();
    for (n, page) in content.chunks(PAGE as usize).enumerate() {
        let sent = rig.shadow.pages.get(&(Space::Object(ObjectId(0)), n as u64 * PAGE));
        assert!(sent.map_or(page.iter().all(|b| *b == 0), |s| s == page), "page {n} of the object differs");
    }
}

#[test]
fn a_shared_object_is_tracked_by_its_pages_while_it_can_be() {
    each_way(by_a_shared_object_is_tracked_by_its_pages_while_it_can_be);
}

fn by_a_shared_object_is_tracked_by_its_pages_while_it_can_be(way: Way) {
    let mut rig = sharing(way);
    assert_eq!(object(&rig.last()), 0);
    rig.writer.run(&format!("touch {}", at(5, 1).start));
    rig.writer.run(&format!("touch {}", at(63, 1).start));
    let round = rig.last();
    assert_eq!((object(&round), round.whole.len()), (2, 0));
    same_object(&mut rig);
    // Dropping the mapping's pages drops nothing of the object; soft-dirty bits would be lost, so they count as set.
    rig.writer.run(&format!("advise {ARENA} {} 4", 64 * PAGE));
    let sent = object(&rig.last());
    assert_eq!(sent, if way == Way::SoftDirty { 64 } else { 0 });
    rig.writer.run(&format!("touch {}", at(9, 1).start));
    assert_eq!(object(&rig.last()), 1);
    same_object(&mut rig);
}

#[test]
fn a_shared_object_is_wholly_dirty_where_bits_may_have_died() {
    each_way(by_a_shared_object_is_wholly_dirty_where_bits_may_have_died);
}

fn by_a_shared_object_is_wholly_dirty_where_bits_may_have_died(way: Way) {
    let mut rig = sharing(way);
    let whole = |rig: &mut Rig, what: &str| {
        let round = rig.last();
        assert_eq!(round.whole, [ObjectId(0)], "{what}");
        assert_eq!(object(&round), 64, "{what}");
        same_object(rig);
        settle(rig);
    };
    // Written by a child that is gone.
    rig.writer.run(&format!("child {} 77", at(11, 1).start));
    rig.forked = true;
    let round = rig.last();
    assert_eq!((round.whole.len(), object(&round)), (1, 64));
    same_object(&mut rig);
    rig.forked = false;
    settle(&mut rig);
    // Written, unmapped and mapped again.
    rig.writer.fill(at(12, 1), 9);
    rig.writer.run(&format!("unmap {ARENA} {}", 64 * PAGE));
    rig.writer.run(&format!("map {ARENA} {} 3 1 mem 0", 64 * PAGE));
    whole(&mut rig, "mapped again");
    // A second mapping came, and went.
    rig.writer.run(&format!("map {} {} 3 1 mem 0", at(100, 1).start, 64 * PAGE));
    whole(&mut rig, "second mapping");
    rig.writer.fill(at(113, 1), 8);
    rig.writer.run(&format!("unmap {} {}", at(100, 1).start, 64 * PAGE));
    whole(&mut rig, "mapping gone");
    // Part of it mapped again, which the kernel joins to the rest at once.
    rig.writer.fill(at(20, 8), 4);
    settle(&mut rig);
    rig.writer.fill(at(20, 8), 5);
    rig.writer.run(&format!("unmap {} {}", at(20, 8).start, 8 * PAGE));
    rig.writer.run(&format!("map {} {} 3 1 mem {}", at(20, 8).start, 8 * PAGE, 20 * PAGE));
    assert!(object(&rig.last()) >= 8);
    same_object(&mut rig);
    settle(&mut rig);
    // Moved.
    rig.writer.run(&format!("remap {ARENA} {} {} {}", 64 * PAGE, at(200, 1).start, 64 * PAGE));
    whole(&mut rig, "moved");
    // write(2), which leaves no bit in any page table.
    rig.access = Access::Name;
    settle(&mut rig);
    rig.writer.run(&format!("pwrite mem {} 55", 20 * PAGE));
    whole(&mut rig, "write");
    // A descriptor that could do it at any time.
    rig.access = Access::Descriptor;
    let round = rig.last();
    assert_eq!((round.whole.len(), object(&round)), (1, 64));
}

#[test]
fn the_ways_of_this_kernel_are_told() {
    let ways = Way::available();
    assert_eq!(ways.contains(&Way::WpAsync), pagemap::has_scan());
    let config = std::process::Command::new("zgrep")
        .args(["-q", "^CONFIG_MEM_SOFT_DIRTY=y", "/proc/config.gz"])
        .status();
    if let Ok(found) = config.map(|s| s.code())
        && found.is_some_and(|c| c < 2)
    {
        assert_eq!(ways.contains(&Way::SoftDirty), found == Some(0));
    }
    let names: HashSet<_> = ways.iter().map(|w| w.name()).collect();
    assert_eq!(names.len(), ways.len());
    assert_eq!(Tracker::new().unwrap().way(), ways[0]);
}
