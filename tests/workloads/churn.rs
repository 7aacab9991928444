//! Memory that changes in every way, all the time: mapped, unmapped, grown, moved, protected, emptied, shared, forked,
//! replaced by exec. A model beside it knows what every page must hold; two processes do so at once.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;
const REGIONS: usize = 40;

/// What a page must hold.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Page {
    Zero,
    /// A pattern that follows from this number.
    Seed(u64),
    /// That, or zeros: given to the kernel to take (MADV_FREE).
    Perhaps(u64),
    /// The program file's page of this number.
    File(usize),
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Private,
    Shared,
    File,
    Memfd(i32),
}

struct Region {
    at: *mut u8,
    kind: Kind,
    prot: i32,
    pages: Vec<Page>,
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n.max(1)
    }
}

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn word(seed: u64, n: usize) -> u64 {
    seed ^ (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Region {
    fn map(kind: Kind, pages: usize, program: &std::fs::File) -> Self {
        use std::os::fd::AsRawFd;
        let (flags, fd, first) = match kind {
            Kind::Private => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, Page::Zero),
            Kind::Shared => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, Page::Zero),
            Kind::File => (libc::MAP_PRIVATE, program.as_raw_fd(), Page::File(0)),
            Kind::Memfd(fd) => (libc::MAP_SHARED, fd, Page::Zero),
        };
        // SAFETY: a fresh mapping where the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), pages * PAGE, RW, flags, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED, "mmap: {}", Errno::last());
        let page = |n| if first == Page::Zero { Page::Zero } else { Page::File(n) };
        Self { at: at.cast(), kind, prot: RW, pages: (0..pages).map(page).collect() }
    }

    fn words(&mut self, page: usize) -> &mut [u64] {
        // SAFETY: the page lies in a mapping of ours; one thread uses it.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(page * PAGE).cast(), WORDS) }
    }

    fn protect(&mut self, prot: i32) {
        // SAFETY: a mapping of ours; it is not touched against its protection.
        let done = unsafe { libc::mprotect(self.at.cast(), self.pages.len() * PAGE, prot) };
        assert_eq!(done, 0, "mprotect: {}", Errno::last());
        self.prot = prot;
    }

    fn write(&mut self, page: usize, seed: u64) {
        if self.prot & libc::PROT_WRITE == 0 {
            self.protect(RW);
        }
        self.words(page).iter_mut().enumerate().for_each(|(n, w)| *w = word(seed, n));
        self.pages[page] = Page::Seed(seed);
    }

    fn advise(&mut self, from: usize, count: usize, advice: i32) {
        // SAFETY: inside a mapping of ours, whose content is ours to drop.
        let done = unsafe { libc::madvise(self.at.add(from * PAGE).cast(), count * PAGE, advice) };
        assert_eq!(done, 0, "madvise: {}", Errno::last());
    }

    fn check(&mut self, program: &std::fs::File) {
        if self.prot & libc::PROT_READ == 0 {
            self.protect(RW);
        }
        for n in 0..self.pages.len() {
            let (kind, at, page) = (self.kind, self.at, self.pages[n]);
            let words = self.words(n);
            let zero = words.iter().all(|w| *w == 0);
            let seeded = |seed| words.iter().enumerate().all(|(n, w)| *w == word(seed, n));
            let right = match page {
                Page::Zero => zero,
                Page::Seed(seed) => seeded(seed),
                Page::Perhaps(seed) => zero || seeded(seed),
                Page::File(at) => {
                    let mut file = [0u8; PAGE];
                    program.read_exact_at(&mut file, (at * PAGE) as u64).expect("program file");
                    words.iter().flat_map(|w| w.to_ne_bytes()).eq(file)
                }
            };
            assert!(right, "{:?} at {:p} page {n} ({:?}) holds {:#x} …", kind, at, page, words[0]);
        }
    }

    fn unmap(self) {
        // SAFETY: a mapping of ours that nobody uses any more.
        unsafe { libc::munmap(self.at.cast(), self.pages.len() * PAGE) };
        if let Kind::Memfd(fd) = self.kind {
            // SAFETY: the descriptor is ours.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

struct Churn {
    rng: Rng,
    regions: Vec<Region>,
    program: std::fs::File,
    heap: Vec<u64>,
}

impl Churn {
    fn map(&mut self) {
        if self.regions.len() >= REGIONS {
            let n = self.rng.below(self.regions.len());
            self.regions.swap_remove(n).unmap();
        }
        let pages = 1 + self.rng.below(64);
        let kind = match self.rng.below(8) {
            0 => Kind::Shared,
            1 => Kind::File,
            2 => {
                // SAFETY: a name for the kernel's lists; the length is that of the mapping.
                let fd = unsafe { libc::memfd_create(c"churn".as_ptr(), libc::MFD_CLOEXEC) };
                assert!(fd >= 0, "memfd: {}", Errno::last());
                // SAFETY: a descriptor of ours.
                assert_eq!(unsafe { libc::ftruncate(fd, (pages * PAGE) as i64) }, 0);
                Kind::Memfd(fd)
            }
            _ => Kind::Private,
        };
        let pages = if kind == Kind::File { pages.min(16) } else { pages };
        self.regions.push(Region::map(kind, pages, &self.program));
    }

    fn cut(&mut self, n: usize) {
        let r = &mut self.regions[n];
        let keep = 1 + self.rng.below(r.pages.len());
        if keep < r.pages.len() && !matches!(r.kind, Kind::Memfd(_)) {
            // SAFETY: the end of a mapping of ours.
            unsafe { libc::munmap(r.at.add(keep * PAGE).cast(), (r.pages.len() - keep) * PAGE) };
            r.pages.truncate(keep);
        }
    }

    fn grow(&mut self, n: usize) {
        let r = &mut self.regions[n];
        if r.kind != Kind::Private || r.pages.len() > 200 {
            return;
        }
        let more = 1 + self.rng.below(32);
        let len = r.pages.len() * PAGE;
        // SAFETY: a mapping of ours; nothing points into it but `at`.
        let at = unsafe { libc::mremap(r.at.cast(), len, len + more * PAGE, libc::MREMAP_MAYMOVE) };
        assert_ne!(at, libc::MAP_FAILED, "mremap: {}", Errno::last());
        r.at = at.cast();
        r.pages.extend(std::iter::repeat_n(Page::Zero, more));
    }

    fn write(&mut self, n: usize) {
        for _ in 0..1 + self.rng.below(8) {
            let page = self.rng.below(self.regions[n].pages.len());
            let seed = self.rng.next();
            match self.regions[n].kind {
                Kind::Memfd(fd) if seed.is_multiple_of(2) => {
                    let bytes: Vec<u8> = (0..WORDS).flat_map(|n| word(seed, n).to_ne_bytes()).collect();
                    // SAFETY: `bytes` is a page long, the descriptor is ours.
                    let done = unsafe { libc::pwrite(fd, bytes.as_ptr().cast(), PAGE, (page * PAGE) as i64) };
                    assert_eq!(done, PAGE as isize);
                    self.regions[n].pages[page] = Page::Seed(seed);
                }
                _ => self.regions[n].write(page, seed),
            }
        }
    }

    fn drop_pages(&mut self, n: usize) {
        let r = &mut self.regions[n];
        let from = self.rng.below(r.pages.len());
        let count = 1 + self.rng.below(r.pages.len() - from);
        if r.kind == Kind::Private && self.rng.below(2) == 0 {
            r.advise(from, count, libc::MADV_FREE);
            for page in &mut r.pages[from..from + count] {
                if let Page::Seed(seed) = *page {
                    *page = Page::Perhaps(seed);
                }
            }
            return;
        }
        r.advise(from, count, libc::MADV_DONTNEED);
        for (k, page) in r.pages.iter_mut().enumerate().skip(from).take(count) {
            match r.kind {
                Kind::Private => *page = Page::Zero,
                Kind::File => *page = Page::File(k),
                Kind::Shared | Kind::Memfd(_) => {} // the object has it
            }
        }
    }

    /// The program break up or down.
    fn shift(&mut self) {
        // SAFETY: what was got by growing is used by us alone, and given back only while nobody grew it further.
        unsafe {
            let top = libc::sbrk(0) as u64;
            match self.heap.last() {
                Some(own) if own + PAGE as u64 == top && self.rng.below(2) == 0 => {
                    assert_eq!(*(*own as *const u64), word(*own, 7));
                    libc::sbrk(-(PAGE as isize));
                    self.heap.pop();
                }
                _ if top.is_multiple_of(PAGE as u64) && self.heap.len() < 500 => {
                    let own = libc::sbrk(PAGE as isize) as u64;
                    assert_eq!(own, top);
                    *(own as *mut u64) = word(own, 7);
                    self.heap.push(own);
                }
                _ => {}
            }
        }
    }

    /// A child that finds everything as it is here, changes its copy, leaves something in shared memory and ends.
    fn child(&mut self, seed: u64) {
        // SAFETY: one thread; the child uses what it inherits and ends by _exit.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                self.check();
                self.regions.iter_mut().filter(|r| r.kind == Kind::Private).for_each(|r| r.write(0, !seed));
                self.regions.iter_mut().filter(|r| r.kind == Kind::Shared).for_each(|r| r.write(0, seed));
                self.check();
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                ends_well(child);
                for r in self.regions.iter_mut().filter(|r| r.kind == Kind::Shared) {
                    r.pages[0] = Page::Seed(seed);
                }
            }
        }
    }

    fn check(&mut self) {
        let program = &self.program;
        self.regions.iter_mut().for_each(|r| r.check(program));
        // SAFETY: got by sbrk and not given back.
        self.heap.iter().for_each(|own| assert_eq!(unsafe { *(*own as *const u64) }, word(*own, 7), "heap"));
    }

    fn step(&mut self) {
        if self.regions.is_empty() {
            return self.map();
        }
        let n = self.rng.below(self.regions.len());
        match self.rng.below(64) {
            0..6 => self.map(),
            6..9 => self.cut(n),
            9..12 => self.grow(n),
            12..16 => self.drop_pages(n),
            16..19 => {
                let prot = [libc::PROT_NONE, libc::PROT_READ, RW][self.rng.below(3)];
                self.regions[n].protect(prot);
            }
            19..22 => self.shift(),
            22 => {
                let seed = self.rng.next();
                self.child(seed);
            }
            23 => exec(),
            24 => {
                let depth = self.rng.below(100);
                assert_eq!(deep(depth, self.rng.0), depth as u64);
            }
            25 => self.check(),
            26..32 => {
                let program = &self.program;
                self.regions[n].check(program);
            }
            _ => self.write(n),
        }
    }
}

fn ends_well(child: Pid) {
    assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
}

/// A child with another program, whose end is waited for.
fn exec() {
    let program = std::env::current_exe().expect("exe");
    let status = std::process::Command::new(program).arg("list").stdout(std::process::Stdio::null()).status();
    assert!(status.expect("exec").success());
}

#[inline(never)]
fn deep(depth: usize, seed: u64) -> u64 {
    let mut frame = [0u64; WORDS];
    frame.iter_mut().enumerate().for_each(|(n, w)| *w = word(seed + depth as u64, n));
    let below = if depth == 0 { 0 } else { deep(depth - 1, seed) + 1 };
    assert!(std::hint::black_box(&frame).iter().enumerate().all(|(n, w)| *w == word(seed + depth as u64, n)));
    below
}

fn told_to_end() -> bool {
    let mut pending = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigpending(2) fills the set.
    unsafe { libc::sigpending(pending.as_mut_ptr()) };
    // SAFETY: filled above.
    unsafe { SigSet::from_sigset_t_unchecked(pending.assume_init()) }.contains(Signal::SIGTERM)
}

pub fn run() {
    let program = std::fs::File::open("/proc/self/exe").expect("exe");
    let mut churn = Churn { rng: Rng(0x1234_5678_9abc_def1), regions: Vec::new(), program, heap: Vec::new() };
    (0..2000).for_each(|_| churn.step());
    // SAFETY: one thread.
    let twin = match unsafe { fork() }.expect("fork") {
        ForkResult::Child => None,
        ForkResult::Parent { child } => Some(child),
    };
    churn.rng.0 ^= u64::from(twin.is_some()) << 40;
    // What is shared belongs to the parent from here on.
    if twin.is_none() {
        let shared = |r: &Region| matches!(r.kind, Kind::Shared | Kind::Memfd(_));
        while let Some(n) = churn.regions.iter().position(shared) {
            churn.regions.swap_remove(n).unmap();
        }
    } else {
        println!("ready");
        std::io::stdout().flush().expect("stdout");
    }
    while !told_to_end() {
        churn.step();
        std::thread::sleep(std::time::Duration::from_micros(200)); // a busy program, not one that fills a processor
    }
    churn.check();
    if let Some(twin) = twin {
        nix::sys::signal::kill(twin, Signal::SIGTERM).expect("kill");
        ends_well(twin);
    } else {
        // SAFETY: ends the twin at once.
        unsafe { libc::_exit(0) };
    }
}
