//! Sockets inside the pod: unix of every type with queues and descriptors in flight, TCP and UDP over loopback.

use crate::{pattern, wait};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv, recvmsg, send,
    sendmsg, socketpair,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).expect("socketpair")
}

pub fn unix() {
    let (a, b) = pair(SockType::Stream);
    send(a.as_raw_fd(), &pattern(1, 5000), MsgFlags::empty()).expect("send");
    let passed = File::open("/etc/hostname").expect("open");
    let fds = [passed.as_raw_fd()];
    let text = [IoSlice::new(b"with a descriptor")];
    sendmsg::<()>(a.as_raw_fd(), &text, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None)
        .expect("sendmsg");
    drop(passed);
    let (c, d) = pair(SockType::Datagram);
    for n in 0..5u8 {
        send(c.as_raw_fd(), &vec![n; usize::from(n) + 1], MsgFlags::empty()).expect("send");
    }
    let path = crate::own_path("sock");
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::remove_file(format!("{path}.d"));
    let listener = UnixListener::bind(&path).expect("bind");
    let mut near = UnixStream::connect(&path).expect("connect");
    let (mut far, _) = listener.accept().expect("accept");
    far.write_all(b"hello").expect("write");
    near.shutdown(Shutdown::Write).expect("shutdown");
    let named = UnixDatagram::bind(format!("{path}.d")).expect("bind");
    let sender = UnixDatagram::unbound().expect("socket");
    sender.connect(format!("{path}.d")).expect("connect");
    sender.send(b"queued").expect("send");
    wait();
    let mut got = vec![0; 5000];
    assert_eq!(recv(b.as_raw_fd(), &mut got, MsgFlags::MSG_WAITALL), Ok(5000));
    assert_eq!(got, pattern(1, 5000), "stream queue");
    let mut text = [0; 17];
    let mut room = nix::cmsg_space!([i32; 2]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let message =
        recvmsg::<()>(b.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::empty()).expect("recvmsg");
    let mut descriptors = Vec::new();
    for control in message.cmsgs().expect("control") {
        if let ControlMessageOwned::ScmRights(fds) = control {
            descriptors.extend(fds);
        }
    }
    assert_eq!(descriptors.len(), 1, "the descriptor in flight");
    // SAFETY: just received, ours alone.
    let mut file = unsafe { File::from_raw_fd(descriptors[0]) };
    let mut host = String::new();
    file.read_to_string(&mut host).expect("the passed file");
    assert_eq!(host, std::fs::read_to_string("/etc/hostname").expect("hostname"));
    assert_eq!(&text, b"with a descriptor");
    for n in 0..5u8 {
        let mut one = [0; 10];
        let len = recv(d.as_raw_fd(), &mut one, MsgFlags::empty()).expect("recv");
        assert_eq!(one[..len], vec![n; usize::from(n) + 1][..], "datagram boundaries");
    }
    let mut hello = [0; 5];
    near.read_exact(&mut hello).expect("read");
    assert_eq!(&hello, b"hello");
    assert_eq!(far.read(&mut hello).expect("shutdown is seen"), 0);
    let mut datagram = [0; 10];
    assert_eq!(named.recv(&mut datagram).expect("named datagram"), 6);
    sender.send(b"again").expect("still connected");
    assert_eq!(named.recv(&mut datagram).expect("named datagram"), 5);
    UnixStream::connect(&path).expect("the listener still has its name");
    listener.accept().expect("accept");
    std::fs::remove_file(&path).expect("unlink");
    std::fs::remove_file(format!("{path}.d")).expect("unlink");
}

pub fn tcp() {
    for host in ["127.0.0.1", "::1"] {
        if TcpListener::bind((host, 0)).is_err() {
            continue;
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = listener.local_addr().expect("address");
    let mut near = TcpStream::connect(addr).expect("connect");
    let (mut far, _) = listener.accept().expect("accept");
    near.set_nodelay(true).expect("nodelay");
    near.write_all(&pattern(1, 30_000)).expect("write");
    far.write_all(&pattern(2, 20_000)).expect("write");
    // A second pair, half closed.
    let mut half = TcpStream::connect(addr).expect("connect");
    let (mut half_far, _) = listener.accept().expect("accept");
    half.write_all(b"last words").expect("write");
    half.shutdown(Shutdown::Write).expect("shutdown");
    wait();
    let mut got = vec![0; 30_000];
    far.read_exact(&mut got).expect("read");
    assert_eq!(got, pattern(1, 30_000), "queue one way");
    let mut got = vec![0; 20_000];
    near.read_exact(&mut got).expect("read");
    assert_eq!(got, pattern(2, 20_000), "queue the other way");
    near.write_all(b"still here").expect("write");
    let mut words = [0; 10];
    far.read_exact(&mut words).expect("read");
    assert_eq!(&words, b"still here");
    assert!(near.nodelay().expect("nodelay"));
    let mut text = String::new();
    half_far.read_to_string(&mut text).expect("half-closed");
    assert_eq!(text, "last words");
    half_far.write_all(b"answer").expect("the other half is open");
    drop(half_far);
    let mut text = String::new();
    half.read_to_string(&mut text).expect("read");
    assert_eq!(text, "answer");
    let fresh = TcpStream::connect(addr).expect("the listener listens");
    listener.accept().expect("accept");
    drop(fresh);
}

pub fn udp() {
    let server = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
    client.connect(server.local_addr().expect("address")).expect("connect");
    server.set_broadcast(true).expect("option");
    wait();
    client.send(b"ping").expect("send");
    let mut got = [0; 10];
    let (n, from) = server.recv_from(&mut got).expect("recv");
    assert_eq!((&got[..n], from), (&b"ping"[..], client.local_addr().expect("address")));
    server.send_to(b"pong", from).expect("send");
    assert_eq!(client.recv(&mut got).expect("connected"), 4);
    assert!(server.broadcast().expect("option"));
}
