//! Unix sockets made again: first every socket with its name and its connection, then queues with the descriptors in
//! them, then what closes or shuts. Runs on a thread of its own, whose root directory changes while names are bound.

mod build;
mod place;

pub use place::{SocketFile, discard, place};

use super::UnixSocket;
use crate::kernel::sock::{self, Ucred};
use crate::state::fd::FileId;
use crate::state::fd::error::Error;
use build::Build;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};

/// What is needed besides the sockets themselves.
pub(crate) struct Context<'a> {
    /// A duplicate of a description that is not a unix socket.
    pub file: &'a (dyn Fn(FileId) -> Option<OwnedFd> + Sync),
    /// Host pid by pod pid.
    pub pids: &'a HashMap<i32, i32>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    /// Sockets, in the order given.
    pub sockets: Vec<(FileId, OwnedFd)>,
    /// Files to be brought to their places at activation.
    pub files: Vec<SocketFile>,
    /// What is different now.
    pub warnings: Vec<String>,
}

/// A name for people.
fn shown(u: &UnixSocket) -> String {
    match &u.name {
        Some(name) => format!("unix socket {}", String::from_utf8_lossy(name).replace('\0', "@")),
        None => format!("unix socket {} (unnamed)", u.id),
    }
}

/// Makes all unix sockets of an image.
pub(crate) fn all(sockets: &[(FileId, &UnixSocket)], ctx: &Context) -> Result<Restored, Error> {
    if sockets.is_empty() {
        return Ok(Restored::default());
    }
    std::thread::scope(|s| {
        let body = || {
            unshare(CloneFlags::CLONE_FS).map_err(Error::host("unshare(2) CLONE_FS"))?;
            let mut build = Build::new(sockets)?;
            let made = build.shells().and_then(|()| fill(&mut build, sockets, ctx));
            match made.and_then(|()| build.connect_datagrams()).and_then(|()| finish(&mut build, sockets)) {
                Ok(()) => build.done(),
                Err(e) => {
                    build.discard();
                    Err(e)
                }
            }
        };
        let thread = std::thread::Builder::new().name("unix".into()).spawn_scoped(s, body);
        match thread {
            Ok(handle) => {
                handle.join().unwrap_or(Err(Error::host("the thread for unix sockets")(Errno::EIO)))
            }
            Err(e) => Err(Error::host("clone(2)")(Errno::from_raw(e.raw_os_error().unwrap_or(0)))),
        }
    })
}

/// Puts the queues back: every message is sent by the socket that sent it, or one of its name.
fn fill(build: &mut Build, sockets: &[(FileId, &UnixSocket)], ctx: &Context) -> Result<(), Error> {
    for (n, (_, u)) in sockets.iter().enumerate().filter(|s| !s.1.1.queue.is_empty()) {
        let call = |name: &'static str| Error::restore(name, || shown(u));
        let bytes: usize = u.queue.iter().map(|m| m.data.len() + 4096).sum();
        for m in &u.queue {
            let mut fds = Vec::with_capacity(m.fds.len());
            for id in &m.fds {
                let fd = match build.socket_of(*id) {
                    Some(fd) => fd.try_clone().ok(),
                    None => (ctx.file)(*id),
                };
                fds.push(fd.ok_or_else(|| call("passing a descriptor")(Errno::EBADF))?);
            }
            let numbers: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            let cred = m.cred.and_then(|(pid, uid, gid)| {
                // A process that is gone cannot be named as a sender: then the message has ours.
                ctx.pids.get(&pid).map(|host| Ucred { pid: *host, uid, gid })
            });
            build.send(n, m, &numbers, cred, bytes).map_err(call("sendmsg(2) into its queue"))?;
        }
    }
    Ok(())
}

/// Options, backlogs, shutdowns; then the stand-ins close.
fn finish(build: &mut Build, sockets: &[(FileId, &UnixSocket)]) -> Result<(), Error> {
    for (n, (_, u)) in sockets.iter().enumerate() {
        let call = |name: &'static str| Error::restore(name, || shown(u));
        let (fd, warnings) = build.parts(n).ok_or_else(|| call("socket(2)")(Errno::EBADF))?;
        crate::state::inet::restore::late(fd, &u.options, || shown(u), warnings)
            .map_err(call("setsockopt(2)"))?;
        let how = match u.shutdown & 3 {
            0 => continue,
            1 => libc::SHUT_RD,
            2 => libc::SHUT_WR,
            _ => libc::SHUT_RDWR,
        };
        match sock::shutdown(fd, how) {
            Ok(()) | Err(Errno::ENOTCONN) => {}
            Err(e) => return Err(call("shutdown(2)")(e)),
        }
    }
    Ok(())
}
