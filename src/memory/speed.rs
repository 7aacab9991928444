//! Speeds of this room, printed (`cargo test --lib memory::speed -- --nocapture`); nothing here fails by the clock.
//! `PODMIG_SPEED_MIB` sets the amount of memory (64).

use super::testing::Writer;
use super::*;
use crate::base::addr::PAGE;
use crate::kernel::pagemap::{PageIs, Query};
use crate::kernel::vmio;
use crate::state::Tree;
use std::collections::HashMap;
use std::time::{Duration, Instant};

fn mib() -> u64 {
    std::env::var("PODMIG_SPEED_MIB").ok().and_then(|v| v.parse().ok()).unwrap_or(64)
}

/// The fastest of a few runs: the machine is shared.
fn best(times: usize, mut work: impl FnMut()) -> Duration {
    let timed = (0..times).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed()
    });
    timed.min().unwrap_or_default()
}

fn rate(what: &str, bytes: u64, took: Duration) -> f64 {
    let gbs = bytes as f64 / took.as_secs_f64() / 1e9;
    println!("{what:<44} {:>9.2} ms  {gbs:>6.2} GB/s", took.as_secs_f64() * 1e3);
    gbs
}

/// A writer with `mib()` of memory and another with as much of nothing.
struct Two {
    source: Writer,
    target: Writer,
    size: u64,
    layout: crate::state::mm::MmLayout,
    from: HashMap<MmId, i32>,
    to: HashMap<MmId, i32>,
}

impl Two {
    fn new() -> Self {
        let size = mib() << 20;
        let (mut source, mut target) = (Writer::start(), Writer::start());
        let range = source.map(0, size / PAGE);
        target.map(0, size / PAGE);
        source.run(&format!("set {} {size} 119", range.start));
        let layout = source.arena();
        let mm = layout.mm;
        let (from, to) = (HashMap::from([(mm, source.pid())]), HashMap::from([(mm, target.pid())]));
        Self { source, target, size, layout, from, to }
    }

    fn reader(&self) -> Reader {
        let none = HashMap::new();
        let work = reader::all_content(std::slice::from_ref(&self.layout), &self.from, &none).unwrap();
        Reader::new(&self.from, &none, work).unwrap()
    }

    /// Reads everything; bytes of data.
    fn read(&self, chunk: &mut Chunk) -> u64 {
        let (reader, mut sum) = (self.reader(), 0);
        while reader.fill(chunk).unwrap() {
            sum += chunk.data().len() as u64;
        }
        sum
    }
}

#[test]
fn reading() {
    let two = Two::new();
    let (size, range, pid) = (two.size, two.layout.vmas[0].range, two.source.pid());
    let mut buf = vec![1u8; chunk::MAX_DATA];
    let raw = best(5, || {
        let mut at = range.start;
        while at < range.end {
            let piece = AddrRange::new(at, (at + buf.len() as u64).min(range.end));
            assert_eq!(vmio::read(pid, &[piece], &mut buf), Ok(piece.len() as usize));
            at = piece.end;
        }
    });
    let raw_rate = rate("raw process_vm_readv, 1 MiB a call", size, raw);
    let mut chunk = Chunk::new();
    let read = best(5, || assert_eq!(two.read(&mut chunk), size));
    let ours = rate("reader, scan and zero test included", size, read);
    println!("{:<44} {:>9.0} %", "reader against raw", ours / raw_rate * 100.0);
    let ahead = best(3, || {
        let feed = feed::Feed::start(std::sync::Arc::new(two.reader()), 2, feed::DEFAULT_CHUNKS).unwrap();
        let mut sum = 0;
        while let Some(chunk) = feed.next() {
            sum += chunk.unwrap().data().len() as u64;
        }
        assert_eq!(sum, size);
    });
    rate("feed, two reading threads", size, ahead);
    let digest = best(3, || assert_eq!(digest::of_mm(pid, &two.layout, &[]).unwrap().len(), 1));
    rate("digest", size, digest);
    let mut two = two;
    two.source.run(&format!("set {} {size} 0", range.start));
    rate("reader, all pages zero", size, best(3, || assert_eq!(two.read(&mut chunk), 0)));
}

#[test]
fn filling() {
    let mut two = Two::new();
    let (size, start) = (two.size, two.layout.vmas[0].range.start);
    let tree = Tree { mms: vec![two.layout.clone()], ..Tree::default() };
    let filler = Filler::new(&tree, &two.to, &HashMap::new()).unwrap();
    let copy = |two: &Two| {
        let (reader, mut chunk, mut took) = (two.reader(), Chunk::new(), Duration::ZERO);
        while reader.fill(&mut chunk).unwrap() {
            let start = Instant::now();
            filler.apply_chunk(&chunk.runs, chunk.data()).unwrap();
            took += start.elapsed();
        }
        took
    };
    rate("filler, fresh pages", size, copy(&two));
    rate("filler, present pages", size, (0..3).map(|_| copy(&two)).min().unwrap());
    let drop_all = format!("advise {start} {size} 4"); // MADV_DONTNEED
    two.target.run(&drop_all);
    rate("filler, fresh pages of used host memory", size, copy(&two));
    two.target.run(&drop_all);
    let populate = best(1, || drop(two.target.run(&format!("advise {start} {size} 23")))); // MADV_POPULATE_WRITE
    rate("populate from inside (MADV_POPULATE_WRITE)", size, populate);
    rate("filler, after populating", size, copy(&two));
}

#[test]
fn rounds() {
    use super::dirty::{MakeUserfaultfd, Tracker, View};
    struct Asked<'a>(&'a mut Writer);
    impl MakeUserfaultfd for Asked<'_> {
        fn userfaultfd(&mut self, _: i32) -> Result<std::os::fd::OwnedFd, Error> {
            let number = self.0.run(&format!("uffd {}", crate::kernel::uffd::FLAGS));
            let fd = self.0.borrow(&number);
            self.0.run(&format!("closefd {number}"));
            Ok(fd)
        }
    }
    let size = mib() << 20;
    let mut w = Writer::start();
    let range = w.map(0, size / PAGE);
    w.run(&format!("set {} {size} 1", range.start));
    let way = Tracker::new().unwrap().way();
    let mut tracker = Tracker::by(way);
    println!("by {}", way.name());
    let (mm, pid) = (MmId(w.pid()), w.pid());
    tracker.watch(mm, pid, &mut Asked(&mut w)).unwrap();
    let layouts = [w.layout()];
    println!("{} mappings", layouts[0].vmas.len());
    let objects = HashMap::new();
    let mut round = |what: &str, least: u64| {
        let start = Instant::now();
        let round =
            tracker.round(&View { layouts: &layouts, objects: &objects, forked: false, last: true }).unwrap();
        rate(what, size, start.elapsed());
        assert!(round.bytes() >= least, "{} bytes", round.bytes());
    };
    round("first round", size);
    round("quiet round", 0);
    round("quiet round", 0);
    w.run(&format!("scatter {} {size} 4000", range.start));
    round("round, up to 4000 single pages", PAGE);
    w.run(&format!("set {} {} 3", range.start, 16 << 20));
    round("round, 16 MiB in a row", 16 << 20);
    rate("end of tracking", size, best(1, || tracker = Tracker::by(way)));
}

#[test]
fn scans() {
    let size = mib() << 20;
    let mut w = Writer::start();
    let range = w.map(0, size / PAGE);
    w.run(&format!("set {} {size} 1", range.start));
    let layout = w.arena();
    rate(
        "populated set",
        size,
        best(5, || {
            assert_eq!(content::content_pages(w.pid(), &layout).unwrap().bytes(), size);
        }),
    );
    let map = content::open_pagemap(w.pid()).unwrap();
    rate(
        "plain pagemap entries",
        size,
        best(3, || {
            let mut seen = 0;
            map.entries(range, |r| seen += r.range.len()).unwrap();
            assert_eq!(seen, size);
        }),
    );
    let pid = w.pid();
    rate("clear_refs", size, best(1, || crate::kernel::pagemap::clear_soft_dirty(pid).unwrap()));
    if !crate::kernel::pagemap::has_scan() {
        return;
    }
    let uffd = w.run(&format!("uffd {}", crate::kernel::uffd::FLAGS));
    let uffd = crate::kernel::uffd::Uffd::adopt(w.borrow(&uffd)).unwrap();
    rate("register", size, best(1, || uffd.register(range).unwrap()));
    let written = Query {
        mask: PageIs::WRITTEN,
        anyof: PageIs::PRESENT | PageIs::SWAPPED,
        ret: PageIs::WRITTEN,
        protect: true,
        ..Query::default()
    };
    let scan = |query: &Query| {
        let mut seen = 0;
        map.scan(range, query, |r| seen += r.range.len()).unwrap();
        seen
    };
    rate("first get and protect", size, best(1, || assert_eq!(scan(&written), size)));
    rate("get and protect, nothing written", size, best(5, || assert_eq!(scan(&written), 0)));
    w.run(&format!("scatter {} {size} 2000", range.start));
    rate("get and protect, up to 2000 pages written", size, best(1, || assert!(scan(&written) > 0)));
    let both = Query { mask: PageIs::empty(), ret: PageIs::WRITTEN, ..written };
    rate("both: populated set, get and protect, quiet", size, best(5, || assert_eq!(scan(&both), size)));
    w.run(&format!("scatter {} {size} 2000", range.start));
    rate("both, up to 2000 pages written", size, best(1, || assert_eq!(scan(&both), size)));
    let absent = Query {
        invert: PageIs::PRESENT,
        mask: PageIs::PRESENT,
        ret: PageIs::SWAPPED | PageIs::GUARD,
        ..Query::default()
    };
    rate("absent pages", size, best(5, || assert_eq!(scan(&absent), 0)));
    rate("unregister", size, best(1, || uffd.unregister(range).unwrap()));
}
