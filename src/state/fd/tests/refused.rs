//! What cannot be carried is named.

use super::harness::{FIRST, Holder, Setup, dir};
use crate::kernel::sock;
use crate::state::fd::collect::Scan;
use crate::state::fd::{Error, FileId, FileKind, OpenFile, restore};
use crate::state::inet::{SockOpt, TcpLink, TcpSocket, TcpState};
use crate::state::unix::UnixSocket;
use nix::fcntl::OFlag;
use std::os::fd::{AsFd, OwnedFd};

pub const SETUPS: &[Setup] = &[("refused", refused), ("urgent", urgent)];

/// What `refused` holds, in order.
const NAMES: &[&str] = &[
    "inotify",
    "netlink-socket",
    "packet-socket",
    "raw-socket",
    "packet-pipe",
    "outside-pipe",
    "hard-link",
    "hard-link",
    "tty",
    "deleted-directory",
    "mptcp",
];

fn refused() -> Vec<OwnedFd> {
    let dir = dir();
    std::fs::create_dir_all(dir.join("gone")).unwrap();
    let open = |name: &str| std::fs::File::create(dir.join(name)).unwrap();
    let replaced = open("replaced");
    std::fs::hard_link(dir.join("replaced"), dir.join("other")).unwrap();
    std::fs::rename(
        {
            open("new");
            dir.join("new")
        },
        dir.join("replaced"),
    )
    .unwrap();
    let linked = open("linked");
    std::fs::hard_link(dir.join("linked"), dir.join("third")).unwrap();
    std::fs::remove_file(dir.join("linked")).unwrap();
    let gone = std::fs::File::open(dir.join("gone")).unwrap();
    std::fs::remove_dir(dir.join("gone")).unwrap();
    let inotify = crate::kernel::descr::inotify().unwrap();
    let (packets, other) = nix::unistd::pipe2(OFlag::O_DIRECT).unwrap();
    drop(packets);
    let tty = nix::pty::openpty(None, None).unwrap();
    // The write end of a pipe whose reader is our parent: our own standard output.
    let outside = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
    vec![
        inotify,
        sock::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0).unwrap(),
        sock::socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0).unwrap(),
        sock::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).unwrap(),
        other,
        outside,
        replaced.into(),
        linked.into(),
        tty.slave,
        gone.into(),
        sock::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap(),
    ]
}

fn urgent() -> Vec<OwnedFd> {
    let (urgent, sender) = sock::pair(libc::SOCK_STREAM).unwrap();
    sock::send(&sender, b"!", &[], None, None, libc::MSG_OOB).unwrap();
    vec![urgent, sender]
}

#[test]
fn an_out_of_band_byte_is_named() {
    let blockers = Holder::start("urgent").blockers();
    assert_eq!(blockers.len(), 1, "{blockers:#?}");
    assert_eq!((blockers[0].kind.as_str(), blockers[0].fd), ("urgent-data", Some(FIRST)));
}

#[test]
fn each_kind_is_named_before_anything_is_stopped() {
    let holder = Holder::start("refused");
    let blockers = holder.blockers();
    for (n, name) in NAMES.iter().enumerate() {
        let fd = FIRST + n as i32;
        let b = blockers.iter().find(|b| b.fd == Some(fd));
        let b = b.unwrap_or_else(|| panic!("fd {fd} ({name}) was let through: {blockers:#?}"));
        assert_eq!((b.kind.as_str(), b.pid), (*name, Some(7)));
        assert!(!b.message.is_empty() && !b.remedy.is_empty(), "{b:?}");
    }
    assert_eq!(blockers.len(), NAMES.len(), "{blockers:#?}");
    holder.stop();
    let ctx = holder.context();
    match Scan::new(&[holder.view()], &ctx).map(|_| ()) {
        Err(Error::Blocked(again)) => assert_eq!(again, blockers),
        other => panic!("{other:?}"),
    }
}

fn file(kind: FileKind) -> OpenFile {
    OpenFile { flags: libc::O_RDWR, owner: (0, 0, 0), kind }
}

fn unix(id: u32) -> UnixSocket {
    UnixSocket {
        id,
        sock_type: libc::SOCK_STREAM,
        name: None,
        file: None,
        listener: None,
        peer: None,
        orphan: false,
        outside: None,
        backlog: None,
        waiting: vec![],
        shutdown: 0,
        queue: vec![],
        options: vec![],
        peer_cred: None,
    }
}

#[test]
fn an_image_that_contradicts_itself_is_an_error() {
    use crate::state::event::{Epoll, EpollItem};
    use crate::state::pipe::PipeEnd;
    let item = |tfd, n| EpollItem { tfd, file: FileId(n), events: 1, data: 0 };
    let tcp = |link: TcpLink| {
        FileKind::Tcp(TcpSocket {
            v6: false,
            local: Some("127.0.0.1:1".parse().unwrap()),
            peer: Some("127.0.0.1:2".parse().unwrap()),
            state: TcpState::Linked { state: 1, link: Box::new(link) },
            options: vec![],
            uid: 0,
        })
    };
    let mut unsent = TcpLink { mss: 1460, ..TcpLink::default() };
    unsent.send.unsent = 5;
    let scale = TcpLink { mss: 1460, wscale: Some((15, 0)), ..TcpLink::default() };
    let bad_option = SockOpt { level: 1, name: 9999, value: vec![0; 4] };
    let bad: Vec<FileKind> = vec![
        FileKind::Epoll(Epoll { items: vec![item(1, 7)] }),
        FileKind::Epoll(Epoll { items: vec![item(-1, 0)] }),
        FileKind::Pipe(PipeEnd { pipe: 0, fifo: None, capacity: 4, content: vec![0; 5] }),
        FileKind::Pipe(PipeEnd { pipe: 0, fifo: Some(b"relative".to_vec()), capacity: 4, content: vec![] }),
        FileKind::Unix(UnixSocket { peer: Some(5), ..unix(1) }),
        FileKind::Unix(UnixSocket { peer: Some(1), ..unix(1) }),
        FileKind::Unix(UnixSocket { name: Some(vec![b'x'; 200]), ..unix(1) }),
        FileKind::Unix(UnixSocket { sock_type: 77, ..unix(1) }),
        FileKind::Unix(UnixSocket { waiting: vec![9], backlog: Some(1), ..unix(1) }),
        FileKind::Unix(UnixSocket { options: vec![bad_option], ..unix(1) }),
        tcp(unsent),
        tcp(scale),
        tcp(TcpLink::default()),
    ];
    for kind in bad {
        let shown = format!("{kind:?}");
        let error = restore::validate(&[file(kind)]).expect_err(&shown);
        assert!(matches!(error, Error::Image { file: 0, .. }), "{error}");
    }
    let twice = [file(FileKind::Unix(unix(1))), file(FileKind::Unix(unix(1)))];
    assert!(restore::validate(&twice).is_err());
}
