//! What each description is, and why some cannot be carried: refused by name, with what to do about it.

use super::sockets::Sockets;
use super::table::{Desc, Table};
use super::{FdContext, same_netns_cookie};
use crate::base::Blocker;
use crate::kernel::fdinfo::LockType;
use crate::kernel::sock;
use crate::state::fd::FileId;
use crate::state::fd::error::Error;
use crate::state::fd::shares::in_shares;
use crate::state::object::collect::ObjectTable;
use crate::state::{file, inet, pipe, unix};
use std::collections::HashSet;

/// The kinds of descriptions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// Something with a path, or an object.
    File,
    /// Pipe or FIFO.
    Pipe,
    /// eventfd.
    Event,
    /// epoll.
    Epoll,
    /// signalfd.
    Signal,
    /// timerfd.
    Timer,
    /// Unix socket.
    Unix,
    /// TCP socket.
    Tcp,
    /// UDP socket.
    Udp,
    /// Cannot be carried; the stable word for it.
    Other(&'static str),
}

/// Stable words for anonymous inodes: (how the kernel's name for it begins, word).
const ANONYMOUS: &[(&str, &str)] = &[
    ("[io_uring]", "io_uring"),
    ("[userfaultfd]", "userfaultfd"),
    ("inotify", "inotify"),
    ("[fanotify]", "fanotify"),
    ("[perf_event]", "perf"),
    ("[pidfd]", "pidfd"),
    ("bpf", "bpf"),
    ("[fscontext]", "fscontext"),
    ("[landlock", "landlock"),
    ("kvm", "kvm"),
    ("seccomp notify", "seccomp-notify"),
];

/// What is said of each word: (word, what it is, what to do).
#[rustfmt::skip]
const REFUSED: &[(&str, &str, &str)] = &[
    ("io_uring", "io_uring rings live in the kernel and cannot be read", "turn io_uring off in the program, or start it in a pod, where it falls back"),
    ("userfaultfd", "user-handled page faults cannot be carried", "turn userfaultfd off in the program"),
    ("inotify", "file watches (inotify) cannot be carried yet", "turn file watching off in the program"),
    ("fanotify", "file watches (fanotify) cannot be carried", "turn file watching off in the program"),
    ("perf", "performance counters belong to this host", "stop profiling"),
    ("pidfd", "pidfds cannot be carried yet", "close it in the program"),
    ("bpf", "BPF objects belong to this host's kernel", "close it in the program"),
    ("fscontext", "a mount being made cannot be carried", "try again when it is done"),
    ("landlock", "Landlock rule sets cannot be read", "close it in the program"),
    ("kvm", "virtual machines cannot be carried", "stop the virtual machine"),
    ("seccomp-notify", "seccomp listeners cannot be carried", "close it in the program"),
    ("mptcp", "Multipath TCP sockets cannot be carried", "start it in a pod, where MPTCP looks absent, or turn it off (Go: GODEBUG=multipathtcp=0)"),
    ("sctp", "SCTP sockets cannot be carried", "use TCP"),
    ("udplite", "UDP-Lite sockets cannot be carried", "use UDP"),
    ("raw-socket", "raw IP sockets cannot be carried yet", "close it in the program"),
    ("ping-socket", "ping sockets cannot be carried yet", "try again when it is closed"),
    ("netlink-socket", "netlink sockets cannot be carried yet", "try again when it is closed, or close it in the program"),
    ("packet-socket", "packet sockets are tied to this host's links", "stop the capture"),
    ("vsock", "vsock connections end at this host's hypervisor", "use TCP"),
    ("af-alg", "kernel crypto sockets cannot be read", "use a crypto library"),
    ("af-xdp", "AF_XDP rings are tied to this host's links", "turn AF_XDP off in the program"),
];

/// What a description is.
pub(crate) fn class(table: &Table, id: FileId) -> Result<Class, Error> {
    let known = &table.desc(id).class;
    match known.get() {
        Some(class) => Ok(*class),
        None => classify(table, id).inspect(|class| {
            let _ = known.set(*class);
        }),
    }
}

/// Finds out what every description is, a share on each processor. What cannot be asked is asked again later.
pub(crate) fn classes(table: &Table) -> Result<(), Error> {
    let ids: Vec<FileId> = table.ids().collect();
    in_shares(&ids, |share| {
        share.iter().for_each(|id| drop(class(table, *id)));
        Ok(())
    })
    .map(drop)
}

fn classify(table: &Table, id: FileId) -> Result<Class, Error> {
    let desc = table.desc(id);
    if let Some(name) = desc.link.strip_prefix(b"anon_inode:") {
        return Ok(match name {
            b"[eventfd]" => Class::Event,
            b"[eventpoll]" => Class::Epoll,
            b"[signalfd]" => Class::Signal,
            b"[timerfd]" => Class::Timer,
            _ => {
                let name = String::from_utf8_lossy(name);
                let known = ANONYMOUS.iter().find(|r| name.starts_with(r.0));
                Class::Other(known.map_or("kernel-object", |r| r.1))
            }
        });
    }
    if desc.link.starts_with(b"pidfd:") {
        return Ok(Class::Other("pidfd"));
    }
    if desc.is_path() {
        return Ok(Class::File);
    }
    match desc.file_type() {
        libc::S_IFIFO => Ok(Class::Pipe),
        libc::S_IFSOCK if table.known(id).is_some() => Ok(Class::Tcp),
        libc::S_IFSOCK => socket_class(table, id),
        _ if !desc.link.starts_with(b"/") => Ok(Class::Other("kernel-object")),
        _ => Ok(Class::File),
    }
}

fn socket_class(table: &Table, id: FileId) -> Result<Class, Error> {
    let fd = table.borrow(id)?;
    let option = |name| {
        sock::get_i32(&fd, libc::SOL_SOCKET, name).map_err(Error::fd("getsockopt(2)", table.desc(id).at))
    };
    let (domain, protocol) = (option(libc::SO_DOMAIN)?, option(libc::SO_PROTOCOL)?);
    let kind = match (domain, protocol) {
        (libc::AF_UNIX, _) | (_, libc::IPPROTO_TCP) => libc::SOCK_STREAM, // it does not matter
        _ => option(libc::SO_TYPE)?,
    };
    Ok(match (domain, kind, protocol) {
        (libc::AF_UNIX, _, _) => Class::Unix,
        (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_TCP) => Class::Tcp,
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP) => Class::Udp,
        (_, _, libc::IPPROTO_MPTCP) => Class::Other("mptcp"),
        (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_SCTP) => Class::Other("sctp"),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW, _) => Class::Other("raw-socket"),
        (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => {
            Class::Other("ping-socket")
        }
        (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_UDPLITE) => Class::Other("udplite"),
        (libc::AF_NETLINK, _, _) => Class::Other("netlink-socket"),
        (libc::AF_PACKET, _, _) => Class::Other("packet-socket"),
        (libc::AF_VSOCK, _, _) => Class::Other("vsock"),
        (libc::AF_ALG, _, _) => Class::Other("af-alg"),
        (libc::AF_XDP, _, _) => Class::Other("af-xdp"),
        _ => Class::Other("socket"),
    })
}

/// A blocker about a description; empty message and remedy are looked up by its name.
pub(crate) fn blocker(desc: &Desc, name: &str, message: &str, remedy: &str) -> Blocker {
    let known = REFUSED.iter().find(|r| r.0 == name);
    let message = match (message, known) {
        ("", Some(r)) => r.1.to_owned(),
        ("", None) => format!("{} ({name}) cannot be carried", desc.shown()),
        (text, _) => text.to_owned(),
    };
    let remedy = match (remedy, known) {
        ("", Some(r)) => r.2,
        ("", None) => "close it in the program, or stop the program that needs it",
        (text, _) => text,
    };
    Blocker {
        kind: name.to_owned(),
        pid: desc.pod_pid,
        fd: desc.pod_pid.map(|_| desc.at.1),
        path: desc.link.starts_with(b"/").then(|| desc.shown()),
        message,
        remedy: remedy.to_owned(),
    }
}

/// Why one description cannot be carried; empty if it can.
pub(crate) fn one(
    table: &Table,
    id: FileId,
    ctx: &FdContext,
    sockets: &Sockets,
) -> Result<Vec<Blocker>, Error> {
    let desc = table.desc(id);
    let mut found = Vec::new();
    if desc.locks.iter().any(|l| l.0.kind == LockType::Other) {
        found.push(blocker(desc, "lease", "a lease on a file cannot be carried", "give the lease back"));
    }
    match class(table, id)? {
        Class::Other(name) => found.push(blocker(desc, name, "", "")),
        Class::File => found.extend(file::collect::check(desc, sockets.root())),
        Class::Pipe => {
            if ctx.port(desc.inode()).is_none() {
                found.extend(pipe::collect::check(table, id, sockets.maybe_in_flight())?);
            }
        }
        Class::Unix => found.extend(unix::collect::check(table, id, sockets)?),
        Class::Tcp | Class::Udp => {
            let fd = table.borrow(id)?;
            if table.known(id).is_some() {
                // All else was looked at and has not changed.
                found.extend(inet::collect::urgent(desc, &fd));
                return Ok(found);
            }
            if !same_netns_cookie(&fd, sockets.cookie()) {
                found.push(blocker(
                    desc,
                    "foreign-socket",
                    "this socket was made in another network namespace",
                    "let the program make it inside the pod",
                ));
            }
            found.extend(inet::collect::check(desc, &fd));
        }
        Class::Event | Class::Epoll | Class::Signal | Class::Timer => {}
    }
    Ok(found)
}

/// Nothing about it is in the way, as far as can be told now.
pub(crate) fn not_in_way(table: &Table, id: FileId, ctx: &FdContext, sockets: &Sockets) -> bool {
    one(table, id, ctx, sockets).is_ok_and(|found| found.is_empty())
}

/// Everything that cannot be carried, each description once.
pub(crate) fn all(table: &Table, ctx: &FdContext, sockets: &Sockets) -> Result<Vec<Blocker>, Error> {
    let ids: Vec<FileId> = table.ids().collect();
    let checked = in_shares(&ids, |share| {
        let check = |id: &FileId| match one(table, *id, ctx, sockets) {
            // Closed since the table was read, or another file by now: the next look will tell.
            Err(Error::Fd { .. }) if table.running => Ok(None),
            other => other.map(Some),
        };
        share.iter().map(check).collect::<Result<Vec<_>, Error>>()
    })?;
    let mut found = Vec::new();
    let mut scratch: Option<ObjectTable> = None;
    let mut seen = HashSet::new();
    for (id, blockers) in ids.into_iter().zip(checked.into_iter().flatten()) {
        let desc = table.desc(id);
        match blockers {
            Some(blockers) => found.extend(blockers),
            None => continue,
        }
        // The object table knows which content it cannot carry: ask one that is thrown away.
        let content = desc.file_type() == libc::S_IFREG && desc.link.starts_with(b"/");
        if content && (desc.st.st_nlink == 0 || ctx.private.contains(&desc.inode().0)) {
            if !seen.insert(desc.inode()) {
                continue;
            }
            let objects = match &mut scratch {
                Some(objects) => objects,
                None => {
                    scratch.insert(ObjectTable::new(ctx.private.clone()).map_err(|source| Error::Object {
                        pid: desc.at.0,
                        fd: desc.at.1,
                        source,
                    })?)
                }
            };
            if let Err(e) = objects.claim_stat(&desc.magic_link(), &desc.st) {
                let pid = desc.pod_pid.unwrap_or(0);
                found.extend(e.blocker(pid, Some(desc.at.1)));
            }
        }
    }
    Ok(found)
}
