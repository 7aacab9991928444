//! Reader, feed, filler and digest together: the memory of one real process made anew in another.

use super::testing::{ARENA, Writer};
use super::*;
use crate::base::addr::PAGE;
use crate::state::Tree;
use crate::state::mm::{MmLayout, VmaFlags};
use crate::state::object::{Object, ObjectKind};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

type Pids = HashMap<MmId, i32>;
type Handles = HashMap<ObjectId, OwnedFd>;

fn at(page: u64, pages: u64) -> AddrRange {
    AddrRange::new(ARENA + page * PAGE, ARENA + (page + pages) * PAGE)
}

fn tree(layout: MmLayout, object_size: Option<u64>) -> Tree {
    let object = |size| Object { kind: ObjectKind::AnonShared, size, mode: 0o600, uid: 0, gid: 0 };
    Tree { mms: vec![layout], objects: object_size.map(object).into_iter().collect(), ..Tree::default() }
}

/// A source with one of everything, and an equal but empty target.
struct Pair {
    source: Writer,
    target: Writer,
    tree: Tree,
    from: (Pids, Handles),
    to: (Pids, Handles),
    _file: tempfile::NamedTempFile,
}

const OBJECT: u64 = 40 * PAGE + 100;

impl Pair {
    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![b'f'; 20 * PAGE as usize]).unwrap();
        let make = |full: bool| {
            let mut w = Writer::start();
            w.run("small"); // pages are counted
            for (page, pages) in [(0, 1000), (2000, 16), (2100, 16), (2200, 600)] {
                w.map(page, pages);
            }
            w.run(&format!("open file {}", file.path().display()));
            w.run(&format!("map {} {} 3 2 file 0", at(3000, 20).start, 20 * PAGE));
            let fd = w.run(&format!("memfd mem {OBJECT}"));
            w.run(&format!("map {} {} 3 1 mem 0", at(4000, 20).start, 20 * PAGE));
            w.run(&format!("map {} {} 3 2 mem {}", at(4100, 20).start, 20 * PAGE, 20 * PAGE));
            if full {
                w.fill(at(0, 300), 7);
                w.fill(at(100, 50), 0);
                w.fill(at(400, 1), 8);
                w.run(&format!("read {} {}", at(500, 100).start, 100 * PAGE)); // pages of zeros
                w.fill(at(2000, 16), 3);
                w.fill(at(2100, 16), 4);
                w.fill(at(2200, 600), 5);
                w.run(&format!("guard {} {}", at(2300, 3).start, 3 * PAGE));
                w.fill(at(3003, 2), 6);
                w.fill(at(3010, 1), 0);
                w.fill(at(4002, 5), 9);
                w.run(&format!("pwrite mem {} 77", OBJECT - 1));
                w.fill(at(4103, 1), 10);
            }
            w.run(&format!("protect {} {} 0", at(2000, 16).start, 16 * PAGE));
            w.run(&format!("protect {} {} 1", at(2100, 16).start, 16 * PAGE));
            let handle = w.borrow(&fd);
            w.idle();
            (w, handle)
        };
        let ((source, from), (target, to)) = (make(true), make(false));
        let tree = tree(source.arena(), Some(OBJECT));
        let mm = tree.mms[0].mm;
        let ends = |w: &Writer, fd| (HashMap::from([(mm, w.pid())]), HashMap::from([(ObjectId(0), fd)]));
        let (from, to) = (ends(&source, from), ends(&target, to));
        Self { source, target, tree, from, to, _file: file }
    }

    /// Everything, by two reading threads and three lanes; the bytes of data that went.
    fn send_all(&self, filler: &Filler) -> u64 {
        let work = reader::all_content(&self.tree.mms, &self.from.0, &self.from.1).unwrap();
        let reader = Arc::new(Reader::new(&self.from.0, &self.from.1, work).unwrap());
        let feed = feed::Feed::start(reader.clone(), 2, 4).unwrap();
        let sent = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    while let Some(chunk) = feed.next() {
                        let chunk = chunk.unwrap();
                        filler.apply_chunk(&chunk.runs, chunk.data()).unwrap();
                        sent.fetch_add(chunk.data().len() as u64, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        sent.into_inner()
    }

    fn digests(&self) -> (Vec<digest::Digest>, Vec<digest::Digest>) {
        let of = |(pids, objects): &(Pids, Handles)| {
            digest::of_tree(&self.tree, pids, objects, &digest::Masks::new()).unwrap()
        };
        (of(&self.from), of(&self.to))
    }

    /// What both programs read themselves, where they may.
    fn same_to_the_programs(&mut self) {
        for (page, pages) in
            [(0, 1000), (2100, 16), (2200, 100), (2303, 497), (3000, 20), (4000, 20), (4100, 20)]
        {
            let command = format!("sum {} {}", at(page, pages).start, pages * PAGE);
            assert_eq!(self.source.run(&command), self.target.run(&command), "pages {page}+{pages} differ");
        }
        let open = format!("protect {} {} 1", at(2000, 16).start, 16 * PAGE);
        let sum = format!("sum {} {}", at(2000, 16).start, 16 * PAGE);
        let shut = format!("protect {} {} 0", at(2000, 16).start, 16 * PAGE);
        let sums = [&mut self.source, &mut self.target].map(|w| {
            w.run(&open);
            let s = w.run(&sum);
            w.run(&shut);
            w.idle();
            s
        });
        assert_eq!(sums[0], sums[1]);
    }
}

#[test]
fn a_process_is_made_anew_with_every_kind_of_mapping() {
    let mut pair = Pair::new();
    let filler = Filler::new(&pair.tree, &pair.to.0, &pair.to.1).unwrap();
    let sent = pair.send_all(&filler);
    // Content and nothing else: no page of zeros, no clean file page, no guard, the object once.
    let pages = (300 - 50) + 1 + 16 + 16 + (600 - 3) + 2 + 5 + 1 + 1;
    assert_eq!(sent / PAGE, pages);
    let (a, b) = pair.digests();
    assert_eq!(digest::first_difference(&a, &b), None);
    pair.same_to_the_programs();

    // Zero runs did not populate anything.
    let there = content::content_pages(pair.target.pid(), &pair.tree.mms[0]).unwrap();
    assert!(there.intersect(&PageSet::from_iter([at(100, 50), at(500, 100)])).is_empty());

    // A second time, with pages that became zero where data was.
    pair.source.fill(at(0, 3), 0);
    pair.source.fill(at(250, 9), 11);
    pair.source.fill(at(4003, 1), 0);
    pair.source.fill(at(3003, 1), 0);
    pair.source.idle();
    let (a, b) = pair.digests();
    assert!(digest::first_difference(&a, &b).is_some());
    pair.send_all(&filler);
    let (a, b) = pair.digests();
    assert_eq!(digest::first_difference(&a, &b), None);
    pair.same_to_the_programs();
}

#[test]
fn pages_inherited_by_a_fork_are_made_zero_where_the_child_has_none() {
    // The "child" stands for a skeleton forked from a filled one: it has pages that never went through the filler.
    let pair = Pair::new();
    let (parent, child) = (pair.tree.mms[0].mm, MmId(1));
    let mut tree = pair.tree.clone();
    tree.mms.push(MmLayout { mm: child, ..tree.mms[0].clone() });
    let pids = HashMap::from([(parent, pair.target.pid()), (child, pair.source.pid())]);
    let filler = Filler::new(&tree, &pids, &pair.to.1).unwrap();
    let run = |mm, zero| Run { space: Space::Mm(mm), addr: at(1, 1).start, len: PAGE, zero };
    filler.apply(&run(parent, false), &vec![1; PAGE as usize]).unwrap();
    let first_byte = || {
        let mut byte = [9];
        let addr = at(1, 1).start;
        let range = AddrRange::new(addr, addr + 1);
        assert_eq!(crate::kernel::vmio::read(pair.source.pid(), &[range], &mut byte), Ok(1));
        byte[0]
    };
    let content = first_byte();
    filler.apply(&run(child, true), &[]).unwrap();
    assert_eq!(first_byte(), content, "a page never filled was touched");
    filler.inherit(child, parent);
    filler.apply(&run(child, true), &[]).unwrap();
    assert_eq!((first_byte(), content != 0), (0, true));
}

#[test]
fn populating_ahead_stays_within_writable_anonymous_content() {
    let pair = Pair::new();
    let layout = &pair.tree.mms[0];
    let content = content::content_pages(pair.source.pid(), layout).unwrap();
    let plan = populate_plan(&content, layout);
    let expect = PageSet::from_iter([at(0, 300), at(400, 1), at(2200, 600)]);
    assert_eq!(plan, expect.subtract(&PageSet::from_iter([at(2300, 3)])));
}

#[test]
fn one_byte_makes_a_digest_differ() {
    let mut pair = Pair::new();
    let filler = Filler::new(&pair.tree, &pair.to.0, &pair.to.1).unwrap();
    pair.send_all(&filler);
    let touches = [
        (at(0, 1).start + 5, Space::Mm(pair.tree.mms[0].mm)),
        (at(3007, 1).start, Space::Mm(pair.tree.mms[0].mm)),
        (at(4019, 1).start, Space::Object(ObjectId(0))),
    ];
    for (addr, space) in touches {
        pair.target.run(&format!("touch {addr}"));
        pair.target.idle();
        let (a, b) = pair.digests();
        assert_eq!(digest::first_difference(&a, &b).map(|d| d.0), Some(space), "{addr:#x} not seen");
        pair.source.run(&format!("touch {addr}"));
        pair.source.idle();
        let (a, b) = pair.digests();
        assert_eq!(digest::first_difference(&a, &b), None);
    }
}

#[test]
fn hostile_runs_are_refused_and_nothing_is_written() {
    let pair = Pair::new();
    let filler = Filler::new(&pair.tree, &pair.to.0, &pair.to.1).unwrap();
    let mm = Space::Mm(pair.tree.mms[0].mm);
    let run = |space, range: AddrRange, zero| Run { space, addr: range.start, len: range.len(), zero };
    let page = vec![1u8; PAGE as usize];
    let good = run(mm, at(0, 1), false);
    let stack = testing::layout(pair.target.pid())
        .vmas
        .iter()
        .rfind(|v| v.flags.contains(VmaFlags::WRITE))
        .unwrap()
        .range;
    let bad = [
        run(mm, AddrRange::new(stack.end - PAGE, stack.end), false), // mapped, but not in the layout
        run(mm, at(999, 2), false),
        run(mm, at(1500, 1), false),
        run(mm, at(4000, 1), false), // shared: only through the object
        run(mm, AddrRange::new(0, 1 << 46), true),
        run(Space::Mm(MmId(1)), at(0, 1), false),
        run(Space::Object(ObjectId(1)), AddrRange::new(0, PAGE), false),
        run(Space::Object(ObjectId(0)), AddrRange::new(41 * PAGE, 42 * PAGE), false),
        run(Space::Object(ObjectId(0)), AddrRange::new(0, 42 * PAGE), true),
        Run { space: mm, addr: ARENA + 1, len: PAGE, zero: false },
        Run { space: mm, addr: ARENA, len: 0, zero: false },
        Run { space: mm, addr: u64::MAX - PAGE + 1, len: PAGE, zero: true },
    ];
    for wrong in bad {
        let data = [&page[..], &vec![2; wrong.data_len().min(2 * PAGE as usize)]].concat();
        assert!(filler.apply_chunk(&[good, wrong], &data).is_err(), "{wrong:?} passed");
    }
    assert!(filler.apply_chunk(&[good], &page[1..]).is_err());
    assert!(filler.apply_chunk(&[good, good], &page).is_err());
    let there = content::content_pages(pair.target.pid(), &pair.tree.mms[0]).unwrap();
    assert!(!there.contains(at(0, 1).start), "the good run of a bad chunk was written");
    filler.apply(&good, &page).unwrap();
    let there = content::content_pages(pair.target.pid(), &pair.tree.mms[0]).unwrap();
    assert!(there.contains(at(0, 1).start));
}

#[test]
fn pages_unmapped_after_the_scan_are_skipped_by_name() {
    let mut w = Writer::start();
    let range = w.map(0, 600);
    w.fill(range, 1);
    let layout = w.arena();
    let pids = HashMap::from([(layout.mm, w.pid())]);
    let work = reader::all_content(std::slice::from_ref(&layout), &pids, &HashMap::new()).unwrap();
    let reader = Reader::new(&pids, &HashMap::new(), work).unwrap();
    for gone in [at(10, 2), at(256, 1), at(599, 1)] {
        w.run(&format!("unmap {} {}", gone.start, gone.len()));
    }
    let (mut chunk, mut got) = (Chunk::new(), PageSet::new());
    while reader.fill(&mut chunk).unwrap() {
        for (run, data) in chunk.pieces() {
            got.insert(run.range());
            for (n, page) in data.chunks(PAGE as usize).enumerate() {
                let index = (run.addr - ARENA) / PAGE + n as u64;
                let word = (1_000_003 + index * 7919).to_le_bytes();
                assert!(page.as_chunks::<8>().0.iter().all(|w| *w == word), "page {index} has other content");
            }
        }
    }
    let missing = PageSet::from_iter([at(10, 2), at(256, 1), at(599, 1)]);
    assert_eq!(got, PageSet::from_iter([range]).subtract(&missing));
    assert_eq!(reader.skipped(), HashMap::from([(Space::Mm(layout.mm), missing)]));
}

#[test]
fn a_process_that_died_is_an_error_with_its_pid() {
    let mut w = Writer::start();
    let range = w.map(0, 16);
    w.fill(range, 1);
    let layout = w.arena();
    let pid = w.pid();
    let pids = HashMap::from([(layout.mm, pid)]);
    let work = reader::all_content(std::slice::from_ref(&layout), &pids, &HashMap::new()).unwrap();
    let reader = Reader::new(&pids, &HashMap::new(), work).unwrap();
    let filler = Filler::new(&tree(layout.clone(), None), &pids, &HashMap::new()).unwrap();
    drop(w);
    let mut chunk = Chunk::new();
    assert!(matches!(reader.fill(&mut chunk), Err(Error::Gone { pid: p }) if p == pid));
    let run = Run { space: Space::Mm(layout.mm), addr: range.start, len: PAGE, zero: false };
    let failed = filler.apply(&run, &vec![1; PAGE as usize]);
    assert!(matches!(failed, Err(Error::Killed { pid: p }) if p == pid));
    assert!(matches!(content::content_pages(pid, &layout), Err(Error::Gone { .. })));
}

#[test]
fn a_feed_dropped_half_way_ends_its_threads() {
    let mut w = Writer::start();
    let range = w.map(0, 4096);
    w.fill(range, 3);
    let layout = w.arena();
    let pids = HashMap::from([(layout.mm, w.pid())]);
    let work = reader::all_content(std::slice::from_ref(&layout), &pids, &HashMap::new()).unwrap();
    let reader = Arc::new(Reader::new(&pids, &HashMap::new(), work).unwrap());
    let feed = feed::Feed::start(reader.clone(), 2, 3).unwrap();
    assert!(!feed.next().unwrap().unwrap().is_empty());
    drop(feed); // hangs here if a thread waits for ever
    assert_eq!(Arc::strong_count(&reader), 1);
}

#[test]
fn failures_speak_plainly() {
    let denied = std::io::Error::from_raw_os_error(libc::EACCES);
    let failure = crate::base::Failure::from(Error::Open { path: "/proc/7/mem".into(), source: denied });
    assert_eq!(failure.message, "cannot open /proc/7/mem: Permission denied");
    let full = Error::Write { pid: 7, addr: 0x1000, source: nix::errno::Errno::ENOMEM };
    let failure = crate::base::Failure::from(full);
    assert_eq!(failure.message, "cannot write memory of process 7 (host pid) at 0x1000: Out of memory");
    assert!(!failure.remedy.is_empty());
}

#[test]
fn a_target_out_of_memory_is_an_error_that_says_so() {
    use crate::base::spec::Limits;
    use crate::kernel::cgroup::{Cgroup, Hierarchies};
    /// Removes the group whatever happens.
    struct Group(Cgroup);
    impl Drop for Group {
        fn drop(&mut self) {
            let _ = self.0.kill_all();
            let _ = self.0.remove_with_parent();
        }
    }
    let rel = format!("pmmemory-{}/full", std::process::id());
    let group = Group(Cgroup::create(&Hierarchies::detect().unwrap(), rel.as_ref()).unwrap());
    let mut w = Writer::start();
    group.0.add(w.pid()).unwrap();
    group.0.set_limits(&Limits { memory: Some(32 << 20), ..Limits::default() }).unwrap();
    w.map(0, 16384);
    let layout = w.arena();
    let (pid, space) = (w.pid(), Space::Mm(layout.mm));
    let filler =
        Filler::new(&tree(layout, None), &HashMap::from([(MmId(pid), pid)]), &HashMap::new()).unwrap();
    let data = vec![1; 64 * PAGE as usize];
    let failed = (0..256u64).find_map(|n| {
        let run = Run { space, addr: at(n * 64, 64).start, len: 64 * PAGE, zero: false };
        filler.apply(&run, &data).err()
    });
    let failure = crate::base::Failure::from(failed.expect("64 MiB fit into 32"));
    assert!(failure.remedy.contains("memory limit"), "{failure}");
}
