//! Files, pipes, counters, timers, epoll sets.

use super::harness::{Again, Clock, FIRST, Holder, Setup, again, dir, make, until};
use crate::kernel::descr;
use crate::state::fd::FileKind;
use crate::state::object::ObjectKind;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek, pipe2, read, write};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

pub const SETUPS: &[Setup] = &[
    ("pipes", pipes),
    ("fifo", fifo),
    ("regular", regular),
    ("nameless", nameless),
    ("events", events),
    ("epoll", epoll),
    ("locks", locks),
    ("many", many),
];

fn flags(fd: impl AsFd) -> i32 {
    descr::flags(fd).unwrap()
}

fn pipes() -> Vec<OwnedFd> {
    let (r, w) = pipe2(OFlag::O_CLOEXEC).unwrap();
    descr::set_pipe_size(&w, 1 << 17).unwrap();
    write(&w, b"hello ").unwrap();
    write(&w, b"pipe").unwrap();
    let second = File::open(format!("/proc/self/fd/{}", r.as_raw_fd())).unwrap();
    let (ended, w2) = pipe2(OFlag::O_NONBLOCK).unwrap();
    write(&w2, b"last words").unwrap();
    let (r3, broken) = pipe2(OFlag::empty()).unwrap();
    drop((w2, r3));
    vec![r, w, second.into(), ended, broken]
}

#[test]
fn pipes_keep_content_capacity_and_ends() {
    let holder = Holder::start("pipes");
    let (mut collected, objects) = holder.collect();
    assert_eq!(holder.collect().0.files, collected.files, "reading changes nothing");
    drop(holder);
    collected.tables[0].retain(|e| e.fd >= FIRST);
    let a = make(collected, &objects, &HashMap::new(), || {});
    assert_ne!(a.file(0), a.file(2), "opened a second time");
    let mut buf = [0; 64];
    assert_eq!(read(a.fd(2), &mut buf[..6]), Ok(6));
    assert_eq!(&buf[..6], b"hello ");
    assert_eq!(read(a.fd(0), &mut buf), Ok(4));
    assert_eq!(&buf[..4], b"pipe");
    assert_eq!(descr::pipe_size(a.fd(0)), Ok(1 << 17));
    assert_eq!(flags(a.fd(0)) & libc::O_NONBLOCK, 0);
    write(a.fd(1), b"x").unwrap();
    assert_eq!(read(a.fd(0), &mut buf), Ok(1));
    assert_eq!(read(a.fd(3), &mut buf), Ok(10), "the writer is gone, its words are not");
    // A child that another test forks meanwhile holds the writing end, too, until it executes.
    until("the end", || (read(a.fd(3), &mut buf) != Err(Errno::EAGAIN)).then_some(()));
    assert_eq!(read(a.fd(3), &mut buf), Ok(0));
    assert_ne!(flags(a.fd(3)) & libc::O_NONBLOCK, 0);
    assert_eq!(write(a.fd(4), b"x"), Err(Errno::EPIPE));
}

fn fifo() -> Vec<OwnedFd> {
    let path = dir().join("fifo");
    let _ = std::fs::remove_file(&path);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let r = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    let mut w = OpenOptions::new().write(true).open(&path).unwrap();
    w.write_all(b"through a name").unwrap();
    vec![r.into(), w.into()]
}

#[test]
fn a_fifo_is_opened_by_its_name() {
    let a = again("fifo");
    let mut buf = [0; 64];
    assert_eq!(read(a.fd(0), &mut buf), Ok(14));
    let mut late = OpenOptions::new().write(true).open(dir().join("fifo")).unwrap();
    late.write_all(b"more").unwrap();
    assert_eq!(read(a.fd(0), &mut buf), Ok(4));
    assert!(matches!(&a.open_file(1).kind, FileKind::Pipe(p) if p.fifo.is_some() && p.content.is_empty()));
}

fn regular() -> Vec<OwnedFd> {
    let path = dir().join("regular");
    let mut a = File::create(&path).unwrap();
    a.write_all(b"0123456789").unwrap();
    let mut b = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    b.seek(SeekFrom::Start(4)).unwrap();
    let same = b.try_clone().unwrap();
    let mut other = File::open(&path).unwrap();
    other.seek(SeekFrom::Start(4)).unwrap();
    let log = OpenOptions::new().append(true).open(&path).unwrap();
    let handle = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&path).unwrap();
    let directory = File::open(dir()).unwrap();
    let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let proc = File::open("/proc/self/status").unwrap();
    drop(proc);
    [b, same, other, log, handle, directory, null].map(OwnedFd::from).into()
}

#[test]
fn files_keep_position_flags_and_sharing() {
    let a = again("regular");
    assert_eq!(a.file(0), a.file(1), "one description");
    assert_ne!(a.file(0), a.file(2), "same file, same position, another description");
    let mut buf = [0; 3];
    read(a.fd(0), &mut buf).unwrap();
    assert_eq!(&buf, b"456");
    assert_eq!(lseek(a.fd(1), 0, Whence::SeekCur), Ok(7));
    assert_eq!(lseek(a.fd(2), 0, Whence::SeekCur), Ok(4));
    assert_eq!(flags(a.fd(0)) & libc::O_ACCMODE, libc::O_RDWR);
    assert_ne!(flags(a.fd(3)) & libc::O_APPEND, 0);
    write(a.fd(3), b"end").unwrap();
    assert_eq!(std::fs::read(dir().join("regular")).unwrap(), b"0123456789end");
    assert_eq!(read(a.fd(4), &mut buf), Err(Errno::EBADF), "O_PATH");
    assert!(nix::sys::stat::fstatat(a.fd(5), "regular", nix::fcntl::AtFlags::empty()).is_ok());
    write(a.fd(6), b"nowhere").unwrap();
}

fn nameless() -> Vec<OwnedFd> {
    let path = dir().join("nameless");
    let mut deleted =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    deleted.write_all(b"still here").unwrap();
    deleted.seek(SeekFrom::Start(6)).unwrap();
    std::fs::remove_file(&path).unwrap();
    let memory = memfd_create(c"pm", MFdFlags::MFD_CLOEXEC).unwrap();
    write(&memory, b"in memory").unwrap();
    vec![deleted.into(), memory]
}

#[test]
fn content_without_a_name_is_an_object() {
    let a = again("nameless");
    let mut text = String::new();
    File::from(a.fd(0).try_clone().unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "here");
    let mut buf = [0; 9];
    File::from(a.fd(1).try_clone().unwrap()).read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"in memory");
    assert_eq!(lseek(a.fd(1), 0, Whence::SeekCur), Ok(9));
    assert!(matches!(a.open_file(0).kind, FileKind::Object { pos: 6, .. }));
    let _ = ObjectKind::AnonShared;
}

fn events() -> Vec<OwnedFd> {
    let semaphore = descr::eventfd(3, true).unwrap();
    let counter = descr::eventfd(u64::MAX - 1, false).unwrap();
    let far = descr::timerfd(libc::CLOCK_MONOTONIC).unwrap();
    descr::set_timer(&far, 0, 3_600_000_000_000, 5_000_000_000).unwrap();
    let fired = descr::timerfd(libc::CLOCK_BOOTTIME).unwrap();
    descr::set_timer(&fired, 0, 1, 1_000_000).unwrap();
    assert_ne!(descr::poll_for(&fired, libc::POLLIN, 2000), Ok(0));
    let idle = descr::timerfd(libc::CLOCK_REALTIME).unwrap();
    let at = descr::timerfd(libc::CLOCK_REALTIME).unwrap();
    let now = descr::clock_ns(libc::CLOCK_REALTIME).unwrap().unsigned_abs();
    descr::set_timer(&at, libc::TFD_TIMER_ABSTIME, now + 1_800_000_000_000, 0).unwrap();
    let signals = descr::signalfd(1 << (libc::SIGUSR2 - 1)).unwrap();
    vec![semaphore, counter, far, fired, idle, at, signals]
}

fn count(fd: &OwnedFd) -> Result<u64, Errno> {
    let mut b = [0; 8];
    read(fd, &mut b).map(|_| u64::from_ne_bytes(b))
}

fn left(a: &Again, number: i32) -> u64 {
    let pid = std::process::id() as i32;
    let dir = crate::kernel::fdinfo::FdDir::open(pid).unwrap();
    match dir.info(a.fd(number).as_raw_fd()).unwrap().extra {
        crate::kernel::fdinfo::Extra::Timer(t) => t.value_ns,
        other => panic!("{other:?}"),
    }
}

#[test]
fn counters_timers_and_signals() {
    let a = again("events");
    assert_eq!([count(a.fd(0)), count(a.fd(0)), count(a.fd(0))], [Ok(1); 3], "a semaphore");
    assert_eq!(count(a.fd(0)), Err(Errno::EAGAIN));
    assert_eq!(count(a.fd(1)), Ok(u64::MAX - 1));
    assert_eq!(left(&a, 2), 0, "not running before it is told");
    a.made.arm_timers(descr::clock_ns(libc::CLOCK_REALTIME).unwrap()).unwrap();
    let hour = 3_600_000_000_000;
    assert!((hour - 60_000_000_000..=hour).contains(&left(&a, 2)), "{}", left(&a, 2));
    assert!(count(a.fd(3)).unwrap() >= 1, "what had expired before");
    assert_ne!(descr::poll_for(a.fd(3), libc::POLLIN, 2000), Ok(0), "and goes on");
    assert_eq!(left(&a, 4), 0);
    let half = hour / 2;
    assert!((half - 60_000_000_000..=half).contains(&left(&a, 5)), "{}", left(&a, 5));
    assert!(matches!(&a.open_file(6).kind, FileKind::Signal(s) if s.mask == 1 << (libc::SIGUSR2 - 1)));
}

fn epoll() -> Vec<OwnedFd> {
    let (r, w) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let event = descr::eventfd(0, false).unwrap();
    let spent = descr::eventfd(1, false).unwrap();
    let moved = descr::eventfd(0, false).unwrap();
    let set = descr::epoll().unwrap();
    // Under the numbers they are to have.
    let at = |fd: &OwnedFd, n: i32| descr::dup_from(fd, FIRST + n).unwrap();
    let (r2, e2, s2) = (at(&r, 2), at(&event, 3), at(&spent, 4));
    let gone = at(&moved, 90);
    let add = |fd: &OwnedFd, events: i32, data| {
        descr::epoll_add(&set, fd.as_raw_fd(), events as u32, data).unwrap();
    };
    add(&r2, libc::EPOLLIN, 1);
    add(&e2, libc::EPOLLIN | libc::EPOLLET, u64::MAX);
    add(&s2, libc::EPOLLIN | libc::EPOLLONESHOT, 3);
    assert_eq!(descr::epoll_take(&set, 8), Ok(1), "fires once");
    add(&gone, libc::EPOLLIN, 4);
    drop((r2, e2, s2, gone)); // the number 190 is closed, its entry lives on by `moved`
    vec![set, w, r, event, spent, moved]
}

fn wait(set: &OwnedFd) -> Vec<u64> {
    use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};
    let set = Epoll(set.try_clone().unwrap());
    let mut events = [EpollEvent::empty(); 8];
    let n = set.wait(&mut events, EpollTimeout::ZERO).unwrap();
    let mut all: Vec<u64> = events[..n].iter().map(EpollEvent::data).collect();
    all.sort_unstable();
    all
}

#[test]
fn epoll_sets_watch_the_same_files_under_the_same_numbers() {
    let a = again("epoll");
    let FileKind::Epoll(e) = &a.open_file(0).kind else { panic!() };
    let mut items: Vec<_> = e.items.iter().map(|i| (i.tfd - FIRST, i.file, i.data)).collect();
    items.sort_by_key(|i| i.0);
    let want = [(2, 2, 1), (3, 3, u64::MAX), (4, 4, 3), (90, 5, 4)];
    assert_eq!(items, want.map(|(tfd, n, data)| (tfd, a.file(n), data)), "by file, not by number");
    assert_eq!(wait(a.fd(0)), [] as [u64; 0], "the spent one stays spent");
    write(a.fd(1), b"x").unwrap();
    assert_eq!(wait(a.fd(0)), [1]);
    write(a.fd(3), &1u64.to_ne_bytes()).unwrap();
    assert_eq!(wait(a.fd(0)), [1, u64::MAX]);
    assert_eq!(wait(a.fd(0)), [1], "edge triggered");
    write(a.fd(5), &1u64.to_ne_bytes()).unwrap();
    assert_eq!(wait(a.fd(0)), [1, 4]);
    let dir = crate::kernel::fdinfo::FdDir::open(std::process::id() as i32).unwrap();
    let mine = dir.info(a.fd(0).as_raw_fd()).unwrap().extra;
    let crate::kernel::fdinfo::Extra::Epoll(mine) = mine else { panic!("{mine:?}") };
    let mut numbers: Vec<i32> = mine.iter().map(|e| e.tfd - FIRST).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3, 4, 90]);
}

fn locks() -> Vec<OwnedFd> {
    let path = dir().join("locks");
    let a = File::create(&path).unwrap();
    descr::flock(&a, true).unwrap();
    let b = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    descr::lock_ofd(&b, false, 10, 20).unwrap();
    let c = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let posix = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 100, l_len: 0, l_pid: 0 };
    // In its place before it is locked: closing any descriptor of the file ends the lock.
    let c = { descr::dup_from(&c, FIRST + 2).unwrap() };
    fcntl(&c, FcntlArg::F_SETLK(&posix)).unwrap();
    vec![a.into(), b.into(), c]
}

#[test]
fn locks_are_taken_again_or_later() {
    let holder = Holder::start("locks");
    let (collected, objects) = holder.collect();
    let locks: Vec<_> = collected
        .files
        .iter()
        .flat_map(|f| if let FileKind::Path(p) = &f.kind { p.locks.clone() } else { vec![] })
        .map(|l| (l.kind, l.exclusive, l.start, l.len, l.pid))
        .collect();
    use crate::state::file::LockKind::{Flock, Ofd};
    assert!(locks.contains(&(Flock, true, 0, 0, 0)), "{locks:?}");
    assert!(locks.contains(&(Ofd, false, 10, 20, 0)), "{locks:?}");
    // The source's copy lives still and holds the first lock: both hosts see one file system here.
    let mut a = make(collected, &objects, &HashMap::new(), || {});
    assert_eq!(a.made.late_locks.len(), 1);
    assert!(!a.made.late_locks[0].retry().unwrap());
    drop(holder);
    assert!(a.made.late_locks[0].retry().unwrap());
    let other = OpenOptions::new().read(true).write(true).open(dir().join("locks")).unwrap();
    assert_eq!(descr::flock(&other, false), Err(Errno::EWOULDBLOCK));
    assert_eq!(descr::lock_ofd(&other, true, 15, 1), Err(Errno::EAGAIN));
    assert_eq!(descr::lock_ofd(&other, true, 30, 1), Ok(()));
}

/// Number of descriptors of the big test.
const MANY: i32 = 9_000;

fn many() -> Vec<OwnedFd> {
    let (r, _w) = pipe2(OFlag::O_CLOEXEC).unwrap();
    (0..MANY)
        .map(|n| match n % 4 {
            0 => descr::eventfd(n.unsigned_abs().into(), false).unwrap(),
            1 => File::open("/dev/null").unwrap().into(),
            2 => r.try_clone().unwrap(),
            _ => crate::kernel::sock::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap(),
        })
        .collect()
}

/// With `--nocapture`: what nine thousand descriptors cost.
#[test]
fn thousands_of_descriptors_go_along() {
    let holder = Holder::start("many");
    holder.stop();
    let clock = Clock::start();
    let (collected, objects) = holder.collect();
    let collect = clock.read();
    drop(holder);
    let clock = Clock::start();
    let a = make(collected, &objects, &HashMap::new(), || {});
    println!("{MANY} descriptors: collect {collect}, restore {}", clock.read());
    assert_eq!(a.file(2), a.file(6), "shared");
    assert_eq!(count(a.fd(4)), Ok(4));
}
