//! TCP and UDP: connections moved from one network namespace to another while their peer, in a third, goes on.

use super::harness::{Again, Clock, FIRST, Holder, Setup, make, until};
use super::lab::{Lab, POD, POD6, enter};
use crate::kernel::tcp_repair::{self, state};
use crate::kernel::{pidfd, sock};
use crate::state::fd::collect::table::Table;
use crate::state::fd::collect::{Ahead, Scan, unrepair};
use crate::state::fd::restore::activate;
use crate::state::fd::{FileKind, OpenFile};
use crate::state::inet::TcpState;
use crate::state::object::collect::ObjectTable;
use nix::errno::Errno;
use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

pub const SETUPS: &[Setup] = &[
    ("tcp-serve", || serve(&[POD], 6)),
    ("tcp-serve6", || serve(&[POD6, "::"], 2)),
    ("tcp-hundred", || serve(&[POD], 100)),
    ("tcp-idle", idle),
    ("tcp-inner", inner),
    ("udp", udp),
];

const PORT: u16 = 7000;

fn addr(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Listens (on the last address given with one port more), accepts so many, says nothing. Order: connections by the
/// first byte each one sends, then listeners.
fn serve(ips: &[&str], n: usize) -> Vec<OwnedFd> {
    let mut listeners: Vec<TcpListener> =
        (0..).zip(ips).map(|(i, ip)| TcpListener::bind(addr(ip, PORT + i)).unwrap()).collect();
    let mut all: Vec<(u8, OwnedFd)> = (0..n)
        .map(|_| {
            let mut c = listeners[0].accept().unwrap().0;
            let mut first = [0];
            c.read_exact(&mut first).unwrap();
            c.set_nonblocking(true).unwrap();
            (first[0], c.into())
        })
        .collect();
    all.sort_by_key(|c| c.0);
    let mut all: Vec<OwnedFd> = all.into_iter().map(|c| c.1).collect();
    all.extend(listeners.drain(..).map(OwnedFd::from));
    all
}

/// A client's end, numbered by its first byte.
fn call(ip: &str, n: u8) -> TcpStream {
    let mut c = until("the server listens", || TcpStream::connect(addr(ip, PORT)).ok());
    c.write_all(&[n]).unwrap();
    c.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    c
}

/// A child that serves in the source, and its clients in the peer's namespace.
fn start(lab: &Lab, setup: &str, ip: &str, n: u8) -> (Holder, Vec<TcpStream>) {
    std::thread::scope(|s| {
        let clients = s.spawn(|| {
            enter(&lab.peer());
            (0..n).map(|n| call(ip, n)).collect()
        });
        let holder = Holder::start_in(&lab.source(), setup);
        (holder, clients.join().unwrap())
    })
}

/// The whole move: cut off, read, kill, make again, plug in, activate.
fn relocate(lab: &Lab, holder: Holder) -> Again {
    lab.unplug("source");
    let (collected, objects) = holder.collect();
    drop(holder);
    let a = make(collected, &objects, &HashMap::new(), || enter(&lab.target()));
    assert_eq!(a.made.warnings, [] as [String; 0]);
    lab.plug("target");
    for r in &a.made.repaired {
        assert_eq!(tcp_repair::is_on(&r.fd), Ok(true));
        activate(&r.fd, r.waking()).unwrap();
        assert_eq!(tcp_repair::is_on(&r.fd), Ok(false));
    }
    a
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 251) as u8 ^ i as u8 ^ seed).collect()
}

/// Everything that comes in `len` bytes, from a socket that does not block.
fn read_all(fd: &OwnedFd, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buf = vec![0; 1 << 16];
    until("bytes come", || {
        while let Ok(got) = sock::recv(fd, &mut buf, libc::MSG_DONTWAIT) {
            if got.len == 0 {
                return Some(());
            }
            all.extend_from_slice(&buf[..got.len]);
        }
        (all.len() >= len).then_some(())
    });
    all
}

fn link_of(f: &OpenFile) -> (u8, &crate::state::inet::TcpLink) {
    match &f.kind {
        FileKind::Tcp(t) => match &t.state {
            TcpState::Linked { state, link } => (*state, link),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// The child's own end of a connection, to act in its place.
fn borrow(holder: &Holder, n: i32) -> OwnedFd {
    pidfd::borrow(holder.pid, FIRST + n).unwrap()
}

fn queues(ip: &str, setup: &str, n: u8) {
    let lab = Lab::new();
    let (holder, mut clients) = start(&lab, setup, ip, n);
    // 0: much in both queues, the send queue longer than the peer will take. 1: sent and never arrived. Others: idle.
    let to_server = pattern(1, 50_000);
    clients[0].write_all(&to_server).unwrap();
    let sent_up = to_server.len();
    let first = borrow(&holder, 0);
    until("it has arrived", || (sock::inq(&first).unwrap() == sent_up).then_some(()));
    let to_client = pattern(2, 30 << 20);
    let mut sent_down = 0;
    until("the client's window is closed", || {
        match sock::send(&first, &to_client[sent_down..], &[], None, None, libc::MSG_DONTWAIT) {
            Ok(n) => sent_down += n,
            Err(Errno::EAGAIN) if sock::outq_unsent(&first).unwrap() > 0 => return Some(()),
            Err(_) => {}
        }
        None
    });
    lab.unplug("source");
    let second = borrow(&holder, 1);
    let lost = pattern(3, 5_000);
    sock::send(&second, &lost, &[], None, None, 0).unwrap();
    sock::set_i32(&second, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 77_000).unwrap();
    sock::set_i32(&second, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).unwrap();
    drop((first, second));
    let a = relocate(&lab, holder);
    assert_eq!(a.collected.kept, usize::from(n));
    assert_eq!(a.collected.lost, 0);
    let (_, link) = link_of(a.open_file(0));
    assert!(link.send.unsent > 0 && link.recv.data.len() == sent_up, "{} {}", link.send.unsent, sent_up);
    assert!(link.timestamps && link.sack && link.wscale.is_some());
    assert_eq!(link_of(a.open_file(1)).1.send.data, lost);
    assert_eq!(link_of(a.open_file(1)).1.send.unsent, 0);
    let mss = |fd: &OwnedFd| sock::get_i32(fd, libc::IPPROTO_TCP, libc::TCP_MAXSEG).unwrap();
    assert!(mss(a.fd(0)) > 1400, "full segments again: {}", mss(a.fd(0)));
    // The server reads what it had not; the client reads everything in order.
    assert!(read_all(a.fd(0), sent_up) == to_server[..sent_up], "bytes up");
    let mut down = vec![0; sent_down];
    clients[0].read_exact(&mut down).unwrap();
    assert!(down == to_client[..sent_down], "bytes down");
    let mut again = vec![0; lost.len()];
    clients[1].read_exact(&mut again).unwrap();
    assert!(again == lost, "what was lost on the way is sent again");
    let get = |fd: &OwnedFd, level, name| sock::get_i32(fd, level, name).unwrap();
    assert_eq!(get(a.fd(1), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT), 77_000);
    assert_eq!(get(a.fd(1), libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
    for (n, c) in (0..).zip(&mut clients) {
        c.write_all(b"ping").unwrap();
        assert_eq!(read_all(a.fd(n), 4), b"ping");
        sock::send(a.fd(n), b"pong", &[], None, None, 0).unwrap();
        let mut pong = [0; 4];
        c.read_exact(&mut pong).unwrap();
        assert_eq!(&pong, b"pong");
    }
    // The listener listens.
    let late = lab.within(&lab.peer(), || TcpStream::connect(addr(ip, PORT)).unwrap());
    until("a new connection", || sock::accept(a.fd(n.into())).ok());
    drop(late);
}

#[test]
fn connections_go_on_with_both_queues() {
    queues(POD, "tcp-serve", 6);
}

#[test]
fn connections_over_ipv6_go_on() {
    queues(POD6, "tcp-serve6", 2);
}

fn state_of(fd: &OwnedFd) -> u8 {
    tcp_repair::info(fd).unwrap().state
}

#[test]
fn connections_being_closed_go_on_closing() {
    let lab = Lab::new();
    let (holder, mut clients) = start(&lab, "tcp-serve", POD, 6);
    let ours: Vec<OwnedFd> = (0..6).map(|n| borrow(&holder, n)).collect();
    let say = |n: usize, text: &[u8]| {
        sock::send(&ours[n], text, &[], None, None, 0).unwrap();
    };
    let reached = |n: usize, s| until("a state", || (state_of(&ours[n]) == s).then_some(()));
    // 0 CLOSE_WAIT with unread data, 1 FIN_WAIT2, 2 LAST_ACK, 3 FIN_WAIT1, 4 CLOSING, 5 reset.
    clients[0].write_all(b"the end").unwrap();
    clients[0].shutdown(Shutdown::Write).unwrap();
    reached(0, state::CLOSE_WAIT);
    sock::shutdown(&ours[1], libc::SHUT_WR).unwrap();
    reached(1, state::FIN_WAIT2);
    clients[2].shutdown(Shutdown::Write).unwrap();
    reached(2, state::CLOSE_WAIT);
    clients[5].write_all(b"before the reset").unwrap();
    until("data", || (sock::inq(&ours[5]) == Ok(16)).then_some(()));
    let reset = clients.pop().unwrap();
    let hard = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
    sock::set(&reset, libc::SOL_SOCKET, libc::SO_LINGER, &hard).unwrap();
    drop(reset);
    reached(5, state::CLOSE);
    lab.mute_source();
    say(2, b"last");
    sock::shutdown(&ours[2], libc::SHUT_WR).unwrap();
    reached(2, state::LAST_ACK);
    say(3, b"and done");
    sock::shutdown(&ours[3], libc::SHUT_WR).unwrap();
    reached(3, state::FIN_WAIT1);
    say(4, b"both at once");
    sock::shutdown(&ours[4], libc::SHUT_WR).unwrap();
    clients[4].write_all(b"crossing").unwrap();
    clients[4].shutdown(Shutdown::Write).unwrap();
    reached(4, state::CLOSING);
    drop(ours);
    let a = relocate(&lab, holder);
    let states: Vec<u8> = (0..5).map(|n| link_of(a.open_file(n)).0).collect();
    let want = [state::CLOSE_WAIT, state::FIN_WAIT2, state::LAST_ACK, state::FIN_WAIT1, state::CLOSING];
    assert_eq!(states, want);
    // Heard by the server.
    assert_eq!(read_all(a.fd(0), usize::MAX), b"the end");
    assert_eq!(read_all(a.fd(4), usize::MAX), b"crossing");
    let mut buf = [0; 32];
    assert_eq!(sock::recv(a.fd(5), &mut buf, 0).map(|g| g.len), Ok(16), "unread data of a reset connection");
    assert_eq!(sock::recv(a.fd(5), &mut buf, 0).unwrap_err(), Errno::ECONNRESET);
    // Heard by the clients, to the end.
    sock::send(a.fd(0), b"you too", &[], None, None, 0).unwrap();
    sock::shutdown(a.fd(0), libc::SHUT_WR).unwrap();
    let said: [&[u8]; 5] = [b"you too", b"", b"last", b"and done", b"both at once"];
    for (c, want) in clients.iter_mut().zip(said) {
        let mut all = Vec::new();
        c.read_to_end(&mut all).unwrap();
        assert_eq!(all, want);
    }
    clients[1].write_all(b"still read").unwrap();
    assert_eq!(read_all(a.fd(1), 10), b"still read", "FIN_WAIT2 is half open");
    drop(clients);
    for n in [0, 1, 2, 4] {
        until("closed for good", || (state_of(a.fd(n)) == state::CLOSE).then_some(()));
    }
}

/// Connections whose both ends are in the pod: 0/1 with data both ways, 2/3 one side closed.
fn inner() -> Vec<OwnedFd> {
    let listener = TcpListener::bind("127.0.0.1:7300").unwrap();
    let pair = || {
        let a = TcpStream::connect("127.0.0.1:7300").unwrap();
        (a, listener.accept().unwrap().0)
    };
    let ((mut a, mut b), (mut c, d)) = (pair(), pair());
    a.write_all(b"from a").unwrap();
    b.write_all(b"from b").unwrap();
    c.write_all(b"last of c").unwrap();
    c.shutdown(Shutdown::Write).unwrap();
    let all = [a, b, c, d].map(OwnedFd::from);
    until("closed on one side", || {
        (state_of(&all[3]) == state::CLOSE_WAIT && state_of(&all[2]) == state::FIN_WAIT2).then_some(())
    });
    all.into()
}

#[test]
fn connections_inside_the_pod_go_along() {
    let lab = Lab::new();
    let holder = Holder::start_in(&lab.source(), "tcp-inner");
    let mut clone = holder.collect().0.files;
    let a = relocate(&lab, holder);
    assert_eq!((a.collected.kept, a.collected.lost), (4, 0));
    assert_eq!(read_all(a.fd(1), 6), b"from a");
    assert_eq!(read_all(a.fd(0), 6), b"from b");
    assert_eq!(read_all(a.fd(3), usize::MAX), b"last of c");
    sock::send(a.fd(3), b"answer", &[], None, None, 0).unwrap();
    assert_eq!(read_all(a.fd(2), 6), b"answer");
    sock::shutdown(a.fd(3), libc::SHUT_WR).unwrap();
    assert_eq!(read_all(a.fd(2), usize::MAX), b"");
    // A clone keeps these, and would lose one that leaves the pod.
    let before = clone.clone();
    crate::state::fd::close_outside_connections(&mut clone);
    assert!(clone == before);
    clone.truncate(1);
    crate::state::fd::close_outside_connections(&mut clone);
    let FileKind::Tcp(t) = &clone[0].kind else { panic!() };
    let unread = b"from b".to_vec();
    assert_eq!(t.state, TcpState::Over { how: crate::state::inet::Ended::Reset, unread });
}

#[test]
fn a_connection_nobody_accepted_is_counted() {
    let lab = Lab::new();
    let (holder, _clients) = start(&lab, "tcp-serve", POD, 6);
    let _late = lab.within(&lab.peer(), || TcpStream::connect(addr(POD, PORT)).unwrap());
    let (collected, _) = holder.collect();
    assert_eq!((collected.kept, collected.lost), (6, 1));
    assert!(collected.warnings.iter().any(|w| w.contains("accepted")), "{:?}", collected.warnings);
}

#[test]
fn a_move_given_up_leaves_connections_as_they_were() {
    let lab = Lab::new();
    let (holder, mut clients) = start(&lab, "tcp-serve", POD, 6);
    clients[0].write_all(b"unread").unwrap();
    let before = sock::get_i32(borrow(&holder, 0), libc::SOL_SOCKET, libc::SO_REUSEADDR);
    holder.stop();
    let ctx = holder.context();
    let scan = Scan::new(&[holder.view()], &ctx).unwrap();
    let sockets = scan.tcp_sockets().to_vec();
    assert_eq!(sockets.len(), 6);
    scan.finish(&mut ObjectTable::new(HashSet::new()).unwrap()).unwrap();
    let ours = borrow(&holder, 0);
    assert_eq!(tcp_repair::is_on(&ours), Ok(true));
    for s in sockets.iter().chain(&sockets) {
        unrepair(s).unwrap();
    }
    assert_eq!(tcp_repair::is_on(&ours), Ok(false));
    assert_eq!(sock::get_i32(&ours, libc::SOL_SOCKET, libc::SO_REUSEADDR), before);
    assert_eq!(read_all(&ours, 6), b"unread");
    sock::send(&ours, b"answer", &[], None, None, 0).unwrap();
    let mut buf = [0; 6];
    clients[0].read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"answer");
}

fn idle() -> Vec<OwnedFd> {
    let fresh = sock::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    sock::set_i32(&fresh, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1).unwrap();
    let bound = sock::socket(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap();
    sock::set_i32(&bound, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).unwrap();
    sock::bind(&bound, &sock::inet_addr(addr("::", 7100))).unwrap();
    // Nobody answers there: the peer's namespace has no such address.
    let calling = sock::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    assert_eq!(sock::connect(&calling, &sock::inet_addr(addr("10.77.0.99", 5))), Err(Errno::EINPROGRESS));
    let listener = sock::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    sock::set_i32(&listener, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).unwrap();
    sock::set_i32(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 3).unwrap();
    sock::set_i32(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, 60_000).unwrap();
    sock::set(&listener, libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"cubic").unwrap();
    sock::bind(&listener, &sock::inet_addr(addr("0.0.0.0", 7101))).unwrap();
    sock::listen(&listener, 17).unwrap();
    let twin = sock::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    sock::set_i32(&twin, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).unwrap();
    sock::bind(&twin, &sock::inet_addr(addr("0.0.0.0", 7101))).unwrap();
    sock::listen(&twin, 3).unwrap();
    // Over: both sides closed it, one byte is unread.
    let l = TcpListener::bind("127.0.0.1:7102").unwrap();
    let mut out = TcpStream::connect("127.0.0.1:7102").unwrap();
    let over = l.accept().unwrap().0;
    out.write_all(b"!").unwrap();
    out.shutdown(Shutdown::Write).unwrap();
    over.shutdown(Shutdown::Write).unwrap();
    let over = OwnedFd::from(over);
    until("closed", || (state_of(&over) == state::CLOSE).then_some(()));
    vec![fresh, bound, calling, listener, twin, over]
}

#[test]
fn sockets_without_a_connection() {
    let lab = Lab::new();
    let holder = Holder::start_in(&lab.source(), "tcp-idle");
    let before: Vec<OpenFile> = holder.collect().0.files;
    let a = relocate(&lab, holder);
    assert!(before == a.collected.files, "reading changes nothing");
    let get = |n: i32, level, name| sock::get_i32(a.fd(n), level, name).unwrap();
    assert_eq!(get(0, libc::IPPROTO_TCP, libc::TCP_NODELAY), 1);
    assert_eq!(get(1, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY), 1);
    assert_eq!(get(1, libc::SOL_SOCKET, libc::SO_REUSEADDR), 0, "set for a while only");
    let local = |n: i32| sock::parse_inet(&sock::name(a.fd(n), false).unwrap()).unwrap();
    assert_eq!(local(1), addr("::", 7100));
    assert_eq!(state_of(a.fd(2)), state::SYN_SENT);
    let info = tcp_repair::info(a.fd(3)).unwrap();
    assert_eq!((info.state, info.backlog), (state::LISTEN, 17));
    assert_eq!(get(3, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT), 3);
    assert_eq!(get(3, libc::SOL_SOCKET, libc::SO_RCVBUF), 120_000);
    assert_eq!(get(3, libc::SOL_SOCKET, 72), 2, "fixed by the program");
    assert_eq!(get(4, libc::SOL_SOCKET, 72), 0, "not fixed");
    let congestion = sock::get(a.fd(3), libc::IPPROTO_TCP, libc::TCP_CONGESTION, 16).unwrap();
    assert_eq!(&congestion[..5], b"cubic");
    assert_eq!(state_of(a.fd(5)), state::CLOSE);
    let mut buf = [0; 4];
    assert_eq!(sock::recv(a.fd(5), &mut buf, 0).unwrap().len, 1);
    assert_eq!(sock::recv(a.fd(5), &mut buf, 0).unwrap().len, 0, "the end, not an error");
}

fn udp() -> Vec<OwnedFd> {
    let plain = UdpSocket::bind(addr("0.0.0.0", 7200)).unwrap();
    let shared: Vec<OwnedFd> = (0..2)
        .map(|_| {
            let fd = sock::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
            sock::set_i32(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).unwrap();
            sock::bind(&fd, &sock::inet_addr(addr("0.0.0.0", 7201))).unwrap();
            fd
        })
        .collect();
    let v6 = UdpSocket::bind(addr(POD6, 7202)).unwrap();
    let connected = UdpSocket::bind(addr(POD, 7203)).unwrap();
    connected.connect(addr("10.77.0.1", 9000)).unwrap();
    connected.set_broadcast(true).unwrap();
    plain.join_multicast_v4(&[239, 77, 0, 9].into(), &POD.parse().unwrap()).unwrap();
    let mut all = vec![OwnedFd::from(plain)];
    all.extend(shared);
    all.extend([OwnedFd::from(v6), connected.into()]);
    all
}

fn datagrams(fd: &OwnedFd) -> Vec<(String, SocketAddr)> {
    let mut all = Vec::new();
    let mut buf = [0; 2048];
    while let Ok(got) = sock::recv(fd, &mut buf, libc::MSG_DONTWAIT) {
        let text = String::from_utf8_lossy(&buf[..got.len]).into_owned();
        all.push((text, sock::parse_inet(&got.from).unwrap()));
    }
    all
}

#[test]
fn udp_sockets_keep_what_came_and_who_sent_it() {
    let lab = Lab::new();
    let holder = Holder::start_in(&lab.source(), "udp");
    let clients: Vec<UdpSocket> = lab.within(&lab.peer(), || {
        let from = [("10.77.0.1", 9000), ("10.77.0.1", 9001), ("fd77::1", 9002)];
        from.map(|(ip, port)| UdpSocket::bind(addr(ip, port)).unwrap()).into()
    });
    clients[0].send_to(b"one", addr(POD, 7200)).unwrap();
    clients[1].send_to(b"two", addr(POD, 7200)).unwrap();
    clients[0].send_to(b"three", addr(POD, 7200)).unwrap();
    for n in 0..8 {
        let client = lab.within(&lab.peer(), || UdpSocket::bind(addr("10.77.0.1", 9100 + n)).unwrap());
        client.send_to(format!("shared {n}").as_bytes(), addr(POD, 7201)).unwrap();
    }
    clients[2].send_to(b"six", addr(POD6, 7202)).unwrap();
    clients[0].send_to(b"connected", addr(POD, 7203)).unwrap();
    until("they arrive", || {
        let ready = |n: i32| crate::kernel::descr::poll_for(borrow(&holder, n), libc::POLLIN, 0).unwrap() & 1;
        (ready(0) & ready(3) & ready(4) & (ready(1) | ready(2)) == 1).then_some(())
    });
    let before: Vec<OpenFile> = holder.collect().0.files;
    let queue = |n: i32| match &before[n as usize].kind {
        FileKind::Udp(u) => {
            u.queue.iter().map(|d| (String::from_utf8_lossy(&d.data).into_owned(), d.from)).collect()
        }
        other => panic!("{other:?}"),
    };
    let want: Vec<Vec<(String, SocketAddr)>> = (0..5).map(queue).collect();
    assert_eq!(want[1].len() + want[2].len(), 8);
    assert_eq!(want[0].len(), 3);
    let a = relocate(&lab, holder);
    assert!(before == a.collected.files, "reading changes nothing");
    for (n, want) in (0..).zip(&want) {
        assert_eq!(&datagrams(a.fd(n)), want, "socket {n}");
    }
    clients[0].send_to(b"later", addr(POD, 7203)).unwrap();
    until("a new one", || {
        (datagrams(a.fd(4)) == [("later".to_owned(), addr("10.77.0.1", 9000))]).then_some(())
    });
    sock::send(a.fd(4), b"reply", &[], None, None, 0).unwrap();
    let mut buf = [0; 16];
    clients[0].set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(clients[0].recv(&mut buf).unwrap(), 5);
    assert_eq!(sock::get_i32(a.fd(4), libc::SOL_SOCKET, libc::SO_BROADCAST), Ok(1));
    assert!(matches!(&a.open_file(0).kind, FileKind::Udp(u) if u.groups.len() == 1), "{:?}", a.open_file(0));
}

/// With `--nocapture`: what a hundred connections cost.
#[test]
fn a_hundred_connections_go_along() {
    let lab = Lab::new();
    let (holder, mut clients) = start(&lab, "tcp-hundred", POD, 100);
    for c in &mut clients {
        c.write_all(b"unread request").unwrap();
    }
    lab.unplug("source");
    holder.stop();
    for _ in 0..5 {
        let ctx = holder.context();
        let clock = Clock::start();
        let scan = Scan::new(&[holder.view()], &ctx).unwrap();
        let scanned = clock.read();
        let sockets = scan.tcp_sockets().to_vec();
        let collected = scan.finish(&mut ObjectTable::new(HashSet::new()).unwrap()).unwrap();
        let read = clock.read();
        assert_eq!(collected.kept, 100);
        let clock = Clock::start();
        sockets.iter().for_each(|s| unrepair(s).unwrap());
        println!("scan {scanned}, with reading {read}, undo {}", clock.read());
    }
    let (collected, objects) = holder.collect();
    drop(holder);
    let clock = Clock::start();
    let a = make(collected, &objects, &HashMap::new(), || enter(&lab.target()));
    let made = clock.read();
    lab.plug("target");
    let clock = Clock::start();
    for r in &a.made.repaired {
        activate(r.fd.as_fd(), r.waking()).unwrap();
    }
    println!("make again {made}, activate {}", clock.read());
    for n in 0..100 {
        assert_eq!(read_all(a.fd(n), 14), b"unread request");
    }
}

#[test]
fn what_is_known_ahead_is_what_is_read() {
    let lab = Lab::new();
    let (holder, _clients) = start(&lab, "tcp-serve", POD, 6);
    let ctx = holder.context();
    let ahead = Ahead::look(&[holder.view()], &ctx).unwrap().expect("options can be watched");
    holder.stop();
    let known = ahead.still().expect("nothing was set");
    assert_eq!(known.len(), 6);
    let read = |known| {
        let table = Table::read_with(&[holder.view()], false, known).unwrap();
        let mut objects = ObjectTable::new(HashSet::new()).unwrap();
        let scan = Scan::of(table, &ctx).unwrap();
        let repaired = scan.tcp_sockets().to_vec();
        let files = scan.finish(&mut objects).unwrap().files;
        repaired.iter().for_each(|r| unrepair(r).unwrap());
        let plain = |f: OpenFile| match f.kind {
            FileKind::Tcp(mut t) => {
                t.options.sort_by_key(|o| (o.level, o.name));
                let quiet = matches!(&t.state, TcpState::Linked { link, .. } if link.quiet);
                if let TcpState::Linked { link, .. } = &mut t.state {
                    // What goes on by itself.
                    (link.quiet, link.timestamp) = (false, 0);
                }
                Some((t, quiet))
            }
            _ => None,
        };
        (repaired, files.into_iter().filter_map(plain).unzip::<_, _, Vec<_>, Vec<bool>>())
    };
    let (sockets, (with, quiet)) = read(Some(known));
    assert_eq!((sockets, with), {
        let (sockets, (without, _)) = read(None);
        (sockets, without)
    });

    assert_eq!(quiet.len(), 7);
    let fd = pidfd::borrow(holder.pid, FIRST).unwrap();
    sock::set_i32(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1).unwrap();
    assert!(ahead.still().is_none(), "an option was set");
}
