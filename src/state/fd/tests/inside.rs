//! What is done inside processes, channels to the monitor, files that are not there, and looking while all runs.

use super::harness::{Again, FIRST, Holder, Setup, dir, make, try_make};
use crate::kernel::fdinfo::{Extra, FdDir, LockType};
use crate::kernel::thread::as_user;
use crate::kernel::{descr, pidfd, sock};
use crate::remote::{Batch, Running, Session, Stopped};
use crate::state::fd::collect::{FdContext, ProcView, preflight};
use crate::state::fd::restore::{Inside, ProcessFds, check_files};
use crate::state::fd::{Error, FileKind, Port};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;
use nix::unistd::{pipe2, read, write};
use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const SETUPS: &[Setup] = &[
    ("inside", || inside(true)),
    ("inside-bare", || inside(false)),
    ("files", files),
    ("peercred", peercred),
];

fn path(name: &str) -> std::path::PathBuf {
    dir().join(name)
}

/// A locked file, a set that watches a signalfd, a socket that sends signals; or the same without all that.
fn inside(full: bool) -> Vec<OwnedFd> {
    let at = |fd: OwnedFd, n: i32| descr::dup_from(&fd, FIRST + n).unwrap();
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path("inside")).unwrap();
    let file = at(file.into(), 0);
    let signals = at(descr::signalfd(1 << (libc::SIGUSR1 - 1)).unwrap(), 1);
    let set = descr::epoll().unwrap();
    let (a, b) = sock::pair(libc::SOCK_STREAM).unwrap();
    if full {
        let (l_type, l_whence) = (libc::F_WRLCK as i16, 0);
        let lock = libc::flock { l_type, l_whence, l_start: 5, l_len: 10, l_pid: 0 };
        fcntl(&file, FcntlArg::F_SETLK(&lock)).unwrap();
        descr::epoll_add(&set, signals.as_raw_fd(), libc::EPOLLIN as u32, 77).unwrap();
        descr::set_owner(&a, std::process::id() as i32, libc::SIGUSR2).unwrap();
    }
    vec![file, signals, set, a, b]
}

#[test]
fn locks_owners_and_signal_sets_are_made_in_the_process() {
    let bare = Holder::start("inside-bare");
    let holder = Holder::start("inside");
    // The process that will stand for it: what the pod calls it is its own pid.
    let view = ProcView { host_pid: holder.pid, pod_pid: bare.pid };
    let (collected, objects) = holder.collect_as(view, &holder.context());
    drop(holder);
    let fds = &collected.tables[0];
    let plan = Inside::plan(&[ProcessFds { pid: bare.pid, fds }], &collected.files);
    assert!(plan.warnings().is_empty());
    let mut batch = Batch::new();
    let pending = plan.calls(bare.pid, &mut batch);
    assert!(!pending.is_empty() && plan.calls(1, &mut Batch::new()).is_empty());
    let tids = std::fs::read_dir(format!("/proc/{}/task", bare.pid)).unwrap();
    let mut threads: Vec<Stopped> = tids
        .map(|t| t.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .map(|tid| Running::seize(tid, 0).and_then(|r| r.stop(Duration::from_secs(5))).unwrap())
        .collect();
    let all: Vec<i32> = threads.iter().map(Stopped::tid).collect();
    let mut session = Session::open(&mut threads[0], &all).unwrap();
    let results = session.run(&batch).unwrap();
    session.close().unwrap();
    assert_eq!(pending.check(&results).unwrap(), []);
    let dir = FdDir::open(bare.pid).unwrap();
    let lock = dir.info(FIRST).unwrap().locks[0];
    assert_eq!((lock.kind, lock.exclusive, lock.start, lock.end), (LockType::Posix, true, 5, Some(14)));
    let Extra::Epoll(entries) = dir.info(FIRST + 2).unwrap().extra else { panic!("no entry") };
    assert_eq!((entries[0].tfd, entries[0].data), (FIRST + 1, 77));
    let socket = pidfd::borrow(bare.pid, FIRST + 3).unwrap();
    assert_eq!(descr::owner(&socket), Ok((1, bare.pid, libc::SIGUSR2)));
    assert_ne!(descr::flags(&socket).unwrap() & libc::O_ASYNC, 0);
    // Outside, everything but that was made: the set is still empty, the socket silent.
    let a = make(collected, &objects, &HashMap::new(), || {});
    let own = FdDir::open(std::process::id() as i32).unwrap();
    assert_eq!(own.info(a.fd(2).as_raw_fd()).unwrap().extra, Extra::None);
    assert_eq!(descr::flags(a.fd(3)).unwrap() & libc::O_ASYNC, 0);
}

#[test]
fn a_pipe_to_the_monitor_is_a_port() {
    let holder = Holder::start("pipes");
    let look = |n: i32| fstat(pidfd::borrow(holder.pid, FIRST + n).unwrap()).unwrap();
    let key = |n: i32| (look(n).st_dev, look(n).st_ino);
    let ports = vec![(Port::Stdin, key(3)), (Port::Stdout, key(4))];
    let ctx = FdContext { ports, ..holder.context() };
    let (collected, objects) = holder.collect_as(holder.view(), &ctx);
    drop(holder);
    assert_eq!(collected.unread, [(Port::Stdin, b"last words".to_vec())]);
    let none = HashMap::new();
    let error = try_make(&collected, &objects, &HashMap::new(), &none, || {}).unwrap_err();
    assert!(error.to_string().contains("port"), "{error}");
    let (r, w) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let (monitor_in, monitor_out) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let ports = HashMap::from([(Port::Stdin, r), (Port::Stdout, monitor_out)]);
    let made = try_make(&collected, &objects, &HashMap::new(), &ports, || {}).unwrap();
    let a = Again { made, collected };
    write(&w, b"typed").unwrap();
    let mut buf = [0; 16];
    assert_eq!(read(a.fd(3), &mut buf), Ok(5));
    write(a.fd(4), b"said").unwrap();
    assert_eq!(read(&monitor_in, &mut buf), Ok(4));
}

fn files() -> Vec<OwnedFd> {
    let open = |name: &str, append: bool| {
        let file = OpenOptions::new().write(true).create(true).append(append).open(path(name)).unwrap();
        OwnedFd::from(file)
    };
    let (gone, grown, log) = (open("gone", false), open("grown", false), open("log", true));
    write(&log, b"line").unwrap();
    vec![gone, grown, log]
}

#[test]
fn files_that_are_missing_or_different_are_named() {
    let holder = Holder::start("files");
    let (collected, objects) = holder.collect();
    drop(holder);
    assert_eq!(check_files(&collected.files), []);
    let attempt = || try_make(&collected, &objects, &HashMap::new(), &HashMap::new(), || {});
    std::fs::write(path("grown"), b"another content").unwrap();
    let error = attempt().unwrap_err();
    assert!(matches!(&error, Error::Differs { path: p, .. } if p.contains("grown")), "{error}");
    std::fs::write(path("grown"), b"").unwrap();
    std::fs::remove_file(path("gone")).unwrap();
    std::fs::remove_file(path("log")).unwrap();
    let error = attempt().unwrap_err();
    assert!(matches!(&error, Error::Differs { path: p, .. } if p.contains("gone")), "{error}");
    let blockers = check_files(&collected.files);
    assert_eq!(blockers.len(), 1, "a log is made anew: {blockers:#?}");
    assert_eq!(blockers[0].kind, "missing-file");
    std::fs::create_dir(path("gone")).unwrap();
    assert_eq!(check_files(&collected.files)[0].kind, "different-file");
    std::fs::remove_dir(path("gone")).unwrap();
    std::fs::write(path("gone"), b"").unwrap();
    let made = attempt().unwrap();
    assert!(made.warnings.iter().any(|w| w.contains("log")), "{:?}", made.warnings);
}

fn peercred() -> Vec<OwnedFd> {
    let (a, b) = as_user(12, 34, || sock::pair(libc::SOCK_STREAM)).unwrap().unwrap();
    vec![a, b]
}

#[test]
fn peers_have_the_ids_they_had() {
    let a = super::harness::again("peercred");
    let cred = sock::get(a.fd(0), libc::SOL_SOCKET, libc::SO_PEERCRED, 12).unwrap();
    assert_eq!(&cred[4..], [12u32.to_ne_bytes(), 34u32.to_ne_bytes()].concat());
    assert!(matches!(&a.open_file(0).kind, FileKind::Unix(u) if u.peer_cred == Some((7, 12, 34))));
}

#[test]
fn looking_is_safe_while_everything_runs() {
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (a, b) = sock::pair(libc::SOCK_DGRAM).unwrap();
                let (r, w) = pipe2(OFlag::O_CLOEXEC).unwrap();
                let _ = sock::send(&a, b"x", &[r.as_raw_fd()], None, None, libc::MSG_DONTWAIT);
                drop((b, w, a));
            }
        });
        let pid = std::process::id() as i32;
        let ctx = FdContext { init: pid, ports: vec![], private: HashSet::new() };
        for _ in 0..100 {
            let looked = preflight(&[ProcView { host_pid: pid, pod_pid: 7 }], &ctx);
            stop.store(looked.is_err(), Ordering::Relaxed);
            looked.unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let gone = Holder::start("pipes");
    let (view, ctx) = (gone.view(), FdContext { init: std::process::id() as i32, ..gone.context() });
    drop(gone);
    assert_eq!(preflight(&[view], &ctx).unwrap(), [], "a process that ended is no trouble");
    let _ = std::io::stdin().as_fd();
}
