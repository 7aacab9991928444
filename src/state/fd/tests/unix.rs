//! Unix sockets: pairs, names, listeners, queues with descriptors in them.

use super::harness::{Again, FIRST, Holder, Setup, again, dir, make};
use crate::kernel::sock::{self, Ucred};
use crate::state::fd::restore::place;
use crate::state::fd::{FileId, FileKind};
use crate::state::unix::UnixSocket;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};

pub const SETUPS: &[Setup] = &[
    ("unix-pairs", pairs),
    ("unix-names", names),
    ("unix-datagrams", datagrams),
    ("unix-orphans", orphans),
    ("unix-outside", outside),
];

fn socket(kind: i32) -> OwnedFd {
    sock::socket(libc::AF_UNIX, kind, 0).unwrap()
}

fn say(fd: &OwnedFd, text: &str) {
    assert_eq!(sock::send(fd, text.as_bytes(), &[], None, None, 0), Ok(text.len()));
}

fn hear(fd: &OwnedFd) -> (String, Vec<OwnedFd>) {
    let mut buf = vec![0; 300_000];
    let got = sock::recv(fd, &mut buf, 0).unwrap();
    (String::from_utf8_lossy(&buf[..got.len]).into_owned(), got.fds)
}

fn unix(a: &Again, n: i32) -> &UnixSocket {
    match &a.open_file(n).kind {
        FileKind::Unix(u) => u,
        other => panic!("{other:?}"),
    }
}

fn pairs() -> Vec<OwnedFd> {
    let (a, b) = sock::pair(libc::SOCK_STREAM).unwrap();
    let (r, w) = nix::unistd::pipe().unwrap();
    say(&a, "plain ");
    sock::send(&a, b"with", &[r.as_raw_fd(), a.as_raw_fd()], None, None, 0).unwrap();
    say(&a, " tail");
    say(&b, "back");
    let (c, d) = sock::pair(libc::SOCK_SEQPACKET).unwrap();
    for text in ["one", "two"] {
        say(&c, text);
    }
    let me = Ucred { pid: std::process::id() as i32, uid: 12, gid: 34 };
    sock::set_i32(&d, libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
    sock::send(&c, b"signed", &[], Some(me), None, 0).unwrap();
    sock::shutdown(&c, libc::SHUT_WR).unwrap();
    // A socket only its own queue knows, with a file only that queue knows.
    let (e, f) = sock::pair(libc::SOCK_DGRAM).unwrap();
    let hidden = sock::pair(libc::SOCK_STREAM).unwrap();
    say(&hidden.0, "deep");
    sock::send(&e, b"nest", &[hidden.0.as_raw_fd(), hidden.1.as_raw_fd()], None, None, 0).unwrap();
    let (g, h) = sock::pair(libc::SOCK_STREAM).unwrap();
    for _ in 0..4 {
        let text = vec![b'x'; 40_000];
        let _ = sock::send(&g, &text, &[], None, None, 0);
    }
    sock::set_i32(&h, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 5).unwrap();
    vec![a, b, c, d, e, f, g, h, w]
}

#[test]
fn pairs_keep_queues_descriptors_and_shutdown() {
    let holder = Holder::start("unix-pairs");
    let (first, _) = holder.collect();
    let (collected, objects) = holder.collect();
    assert!(first.files == collected.files, "reading changes nothing");
    drop(holder);
    // Pid 7 of the pod is us now: senders' credentials name a living process.
    let pids = HashMap::from([(7, std::process::id() as i32)]);
    let a = make(collected, &objects, &pids, || {});
    assert_eq!(hear(a.fd(1)).0, "plain with", "a read goes on to the descriptors and stops there");
    let a = {
        let (collected, objects) = (a.collected, objects);
        make(collected, &objects, &pids, || {})
    };
    let mut six = [0; 6];
    assert!(sock::recv(a.fd(1), &mut six, 0).unwrap().fds.is_empty(), "none before their place");
    assert_eq!(&six, b"plain ");
    let (text, fds) = hear(a.fd(1));
    assert_eq!((text.as_str(), fds.len()), ("with", 2));
    nix::unistd::write(a.fd(8), b"p").unwrap();
    assert_eq!(nix::unistd::read(&fds[0], &mut [0; 4]), Ok(1), "the passed end is the pipe's");
    say(&fds[1], "!");
    assert_eq!(hear(a.fd(1)).0, " tail!", "the passed socket is the sender itself");
    assert_eq!(hear(a.fd(0)).0, "back");
    assert_eq!([hear(a.fd(3)).0, hear(a.fd(3)).0], ["one", "two"]);
    let mut buf = [0; 16];
    let got = sock::recv(a.fd(3), &mut buf, 0).unwrap();
    assert_eq!(got.cred, Some(Ucred { pid: std::process::id() as i32, uid: 12, gid: 34 }));
    assert_eq!(sock::recv(a.fd(3), &mut buf, 0).unwrap().len, 0, "shut down");
    assert_eq!(sock::send(a.fd(2), b"x", &[], None, None, 0), Err(Errno::EPIPE));
    let (text, fds) = hear(a.fd(5));
    assert_eq!((text.as_str(), fds.len()), ("nest", 2));
    assert_eq!(hear(&fds[1]).0, "deep");
    let option = sock::get_i32(a.fd(7), libc::SOL_SOCKET, libc::SO_RCVLOWAT);
    assert_eq!(option, Ok(5));
    let sent: usize = unix(&a, 7).queue.iter().map(|m| m.data.len()).sum();
    let mut heard = 0;
    while heard < sent {
        heard += hear(a.fd(7)).0.len();
    }
    assert_eq!(heard, sent);
    let size = |fd: &OwnedFd| sock::get_i32(fd, libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap();
    assert_eq!(size(a.fd(6)), size(&sock::pair(libc::SOCK_STREAM).unwrap().0), "as it was");
}

fn bound(kind: i32, name: &[u8]) -> OwnedFd {
    let fd = socket(kind);
    sock::bind(&fd, &sock::unix_addr(name).unwrap()).unwrap();
    fd
}

fn path(name: &str) -> Vec<u8> {
    dir().join(name).to_str().unwrap().as_bytes().to_vec()
}

fn names() -> Vec<OwnedFd> {
    std::env::set_current_dir(dir()).unwrap();
    let server = bound(libc::SOCK_STREAM, &path("server"));
    std::fs::set_permissions(dir().join("server"), PermissionsExt::from_mode(0o641)).unwrap();
    nix::unistd::chown(&dir().join("server"), Some(21.into()), Some(43.into())).unwrap();
    sock::listen(&server, 5).unwrap();
    let call = |to: &OwnedFd| {
        let fd = socket(libc::SOCK_STREAM);
        sock::connect(&fd, &sock::name(to, false).unwrap()).unwrap();
        fd
    };
    let client = call(&server);
    let accepted = sock::accept(&server).unwrap();
    say(&client, "to the server");
    let waiting = call(&server);
    let relative = bound(libc::SOCK_STREAM, b"./relative");
    sock::listen(&relative, 1).unwrap();
    let gone = bound(libc::SOCK_STREAM, &path("gone"));
    sock::listen(&gone, 1).unwrap();
    let kept = call(&gone);
    let kept_server = sock::accept(&gone).unwrap();
    std::fs::remove_file(dir().join("gone")).unwrap();
    drop(gone);
    vec![server, client, accepted, waiting, relative, kept, kept_server]
}

#[test]
fn names_listeners_and_waiting_connections() {
    let holder = Holder::start("unix-names");
    let (collected, objects) = holder.collect();
    let before = std::fs::metadata(dir().join("server")).unwrap();
    let a = make(collected, &objects, &HashMap::new(), || {});
    // One file system for both: the source's files are untouched until the pod is ours.
    let ino = |m: std::fs::Metadata| m.ino();
    assert_eq!(ino(std::fs::metadata(dir().join("server")).unwrap()), before.ino());
    drop(holder);
    assert_eq!(
        UnixStream::connect(dir().join("server")).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    let root = open("/", OFlag::O_PATH, Mode::empty()).unwrap();
    assert_eq!(a.made.socket_files.len(), 2, "{:?}", a.made.socket_files);
    place(&root, &a.made.socket_files).unwrap();
    place(&root, &a.made.socket_files).unwrap();
    let left: Vec<_> = std::fs::read_dir(dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "no scratch left: {left:?}");
    let now = std::fs::metadata(dir().join("server")).unwrap();
    assert_eq!((now.mode() & 0o7777, now.uid(), now.gid()), (0o641, 21, 43));
    assert_eq!(hear(a.fd(2)).0, "to the server");
    let name = |n: i32, peer| sock::parse_unix(&sock::name(a.fd(n), peer).unwrap());
    assert_eq!(name(0, false), Some(path("server")));
    assert_eq!(name(2, false), Some(path("server")), "an accepted socket has its listener's name");
    assert_eq!(name(1, true), Some(path("server")));
    let first = sock::accept(a.fd(0)).unwrap();
    say(a.fd(3), "waited");
    assert_eq!(hear(&first).0, "waited", "who waited is accepted first");
    let late = UnixStream::connect(dir().join("server")).unwrap();
    sock::accept(a.fd(0)).unwrap();
    drop(late);
    assert_eq!(name(4, false).as_deref(), Some(&b"./relative"[..]), "the name as it was given");
    UnixStream::connect(dir().join("relative")).unwrap();
    assert_eq!((name(5, true), name(6, false)), (Some(path("gone")), Some(path("gone"))));
    say(a.fd(5), "x");
    assert_eq!(hear(a.fd(6)).0, "x");
    assert_eq!((unix(&a, 0).backlog, unix(&a, 4).backlog), (Some(5), Some(1)));
    let again = make(a.collected, &objects, &HashMap::new(), || {});
    crate::state::fd::restore::discard(&root, &again.made.socket_files);
    let left = std::fs::read_dir(dir()).unwrap().count();
    assert_eq!(left, 2, "given up: nothing left");
}

fn datagrams() -> Vec<OwnedFd> {
    let parent = nix::unistd::getppid();
    let receiver = bound(libc::SOCK_DGRAM, format!("\0pmfds-r-{parent}").as_bytes());
    let to = sock::name(&receiver, false).unwrap();
    let sender = bound(libc::SOCK_DGRAM, format!("\0pmfds-s-{parent}").as_bytes());
    let connected = socket(libc::SOCK_DGRAM);
    sock::connect(&connected, &to).unwrap();
    sock::send(&sender, b"named", &[], None, Some(&to), 0).unwrap();
    say(&connected, "unnamed");
    let left = bound(libc::SOCK_DGRAM, &path("left"));
    sock::send(&left, b"who left", &[], None, Some(&to), 0).unwrap();
    drop(left);
    let mutual = bound(libc::SOCK_DGRAM, format!("\0pmfds-m-{parent}").as_bytes());
    sock::connect(&mutual, &sock::name(&sender, false).unwrap()).unwrap();
    let (a, b) = sock::pair(libc::SOCK_SEQPACKET).unwrap();
    for text in ["", "x", ""] {
        say(&a, text);
    }
    let hidden = bound(libc::SOCK_SEQPACKET, format!("\0pmfds-l-{parent}").as_bytes());
    sock::listen(&hidden, 3).unwrap();
    vec![receiver, sender, connected, mutual, b, a, hidden]
}

#[test]
fn datagrams_keep_their_senders() {
    let holder = Holder::start("unix-datagrams");
    let (collected, objects) = holder.collect();
    drop(holder);
    // A namespace of this test's own from here on: abstract names are free there, as on another host.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let a = make(collected, &objects, &HashMap::new(), || {});
    let me = std::process::id();
    let mut seen = vec![];
    for _ in 0..3 {
        let mut buf = [0; 64];
        let got = sock::recv(a.fd(0), &mut buf, 0).unwrap();
        seen.push((String::from_utf8_lossy(&buf[..got.len]).into_owned(), sock::parse_unix(&got.from)));
    }
    let sender = format!("\0pmfds-s-{me}").into_bytes();
    let want = [("named", Some(sender)), ("unnamed", None), ("who left", Some(path("left")))];
    assert_eq!(seen, want.map(|(t, f)| (t.to_owned(), f)));
    say(a.fd(2), "still connected");
    assert_eq!(hear(a.fd(0)).0, "still connected");
    say(a.fd(3), "to the sender");
    assert_eq!(hear(a.fd(1)).0, "to the sender");
    assert_eq!([hear(a.fd(4)).0, hear(a.fd(4)).0, hear(a.fd(4)).0], ["", "x", ""]);
    assert_eq!(sock::recv(a.fd(4), &mut [0], 0).unwrap_err(), Errno::EAGAIN);
    let client = socket(libc::SOCK_SEQPACKET);
    sock::connect(&client, &sock::name(a.fd(6), false).unwrap()).unwrap();
    sock::accept(a.fd(6)).unwrap();
}

fn orphans() -> Vec<OwnedFd> {
    let (a, gone) = sock::pair(libc::SOCK_STREAM).unwrap();
    say(&gone, "testament");
    let (b, gone2) = sock::pair(libc::SOCK_SEQPACKET).unwrap();
    say(&gone2, "second");
    let (c, gone3) = sock::pair(libc::SOCK_DGRAM).unwrap();
    say(&gone3, "third");
    let fresh = socket(libc::SOCK_STREAM);
    vec![a, b, c, fresh]
}

#[test]
fn what_a_dead_peer_said_is_still_heard() {
    let a = again("unix-orphans");
    assert!(unix(&a, 0).orphan && unix(&a, 1).orphan && !unix(&a, 3).orphan);
    assert_eq!([hear(a.fd(0)).0, hear(a.fd(1)).0, hear(a.fd(2)).0], ["testament", "second", "third"]);
    assert_eq!(hear(a.fd(0)).0, "", "and then the end");
    assert_eq!(hear(a.fd(1)).0, "");
    assert_eq!(sock::send(a.fd(0), b"x", &[], None, None, 0), Err(Errno::EPIPE));
    assert_eq!(sock::send(a.fd(3), b"x", &[], None, None, 0), Err(Errno::ENOTCONN), "never connected");
    assert_eq!(a.made.files.len(), 4);
    let _ = FileId(0);
}

fn outside() -> Vec<OwnedFd> {
    let parent = nix::unistd::getppid();
    let stream = socket(libc::SOCK_STREAM);
    let name = sock::unix_addr(format!("\0pmfds-out-{parent}").as_bytes()).unwrap();
    sock::connect(&stream, &name).unwrap();
    let datagram = socket(libc::SOCK_DGRAM);
    let name = sock::unix_addr(format!("\0pmfds-outd-{parent}").as_bytes()).unwrap();
    sock::connect(&datagram, &name).unwrap();
    vec![stream, datagram]
}

#[test]
fn a_peer_outside_the_pod_is_refused_by_name() {
    let me = std::process::id();
    let server = bound(libc::SOCK_STREAM, format!("\0pmfds-out-{me}").as_bytes());
    sock::listen(&server, 5).unwrap();
    let receiver = bound(libc::SOCK_DGRAM, format!("\0pmfds-outd-{me}").as_bytes());
    let holder = Holder::start("unix-outside");
    let pending = holder.blockers();
    let accepted = sock::accept(&server).unwrap();
    let connected = holder.blockers();
    for blockers in [pending, connected] {
        for n in 0..2 {
            let b =
                blockers.iter().find(|b| b.fd == Some(FIRST + n)).unwrap_or_else(|| panic!("{blockers:#?}"));
            assert_eq!(b.kind, "outside-socket");
        }
    }
    drop((accepted, receiver));
    let _ = UnixDatagram::unbound().map(|u| u.as_fd().as_raw_fd());
}
