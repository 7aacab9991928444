//! Pipes and FIFOs made again with their content; every end that is a description of its own is opened as one.

use super::PipeEnd;
use crate::kernel::{descr, sock};
use crate::state::fd::error::Error;
use crate::state::file::restore::{find, reopen};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat, mknod};
use nix::unistd::{pipe2, write};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// A pipe while its ends are made.
#[derive(Debug)]
struct Pipe {
    /// Read and write descriptors of our own; the same one for a FIFO.
    hold: (OwnedFd, OwnedFd),
    /// The fresh ends of pipe2(2), for the first description that wants one.
    fresh: (bool, bool),
}

/// Pipes made so far; dropping it closes what no end of the image needs, so that ends without a partner see it.
#[derive(Debug, Default)]
pub(crate) struct Pipes(HashMap<u32, Pipe>);

fn what(end: &PipeEnd) -> String {
    match &end.fifo {
        Some(path) => String::from_utf8_lossy(path).into_owned(),
        None => format!("pipe {}", end.pipe),
    }
}

impl Pipes {
    /// One end. The first of a pipe makes it, with the capacity and content that end has.
    pub fn end(
        &mut self,
        proc: BorrowedFd,
        end: &PipeEnd,
        flags: i32,
        warnings: &mut Vec<String>,
    ) -> Result<OwnedFd, Error> {
        let call = |name: &'static str| Error::restore(name, || what(end));
        let pipe = match self.0.entry(end.pipe) {
            Entry::Occupied(o) => o.into_mut(),
            Entry::Vacant(v) => v.insert(make(proc, end, warnings)?),
        };
        let (hold, fresh) = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => (&pipe.hold.0, &mut pipe.fresh.0),
            libc::O_WRONLY => (&pipe.hold.1, &mut pipe.fresh.1),
            _ => return reopen(proc, &pipe.hold.0, flags).map_err(call("open(2) of a pipe")),
        };
        // Later ends are descriptions of their own; the first may as well be the one pipe2(2) made.
        if std::mem::take(fresh) {
            return hold.try_clone().map_err(|_| call("dup(2)")(Errno::EMFILE));
        }
        reopen(proc, hold, flags | libc::O_NONBLOCK).map_err(call("open(2) of a pipe"))
    }
}

fn make(proc: BorrowedFd, end: &PipeEnd, warnings: &mut Vec<String>) -> Result<Pipe, Error> {
    let call = |name: &'static str| Error::restore(name, || what(end));
    let pipe = match &end.fifo {
        None => {
            let hold = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(call("pipe2(2)"))?;
            Pipe { hold, fresh: (true, true) }
        }
        Some(path) => {
            let handle = match find(path) {
                Ok(handle) => handle,
                Err(Errno::ENOENT) => {
                    warnings.push(format!("{}: was missing, made anew", what(end)));
                    mknod(OsStr::from_bytes(path), SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0)
                        .map_err(call("mkfifo(3)"))?;
                    find(path).map_err(call("openat2(2)"))?
                }
                Err(e) => return Err(call("openat2(2)")(e)),
            };
            let st = fstat(&handle).map_err(call("fstat(2)"))?;
            if st.st_mode & libc::S_IFMT != libc::S_IFIFO {
                return Err(Error::Differs { path: what(end), reason: "it is not a FIFO here".into() });
            }
            // Open both ways, it waits for nobody.
            let both = reopen(proc, &handle, libc::O_RDWR | libc::O_NONBLOCK);
            let both = both.map_err(call("open(2) of a FIFO"))?;
            let second = both.try_clone().map_err(|_| call("dup(2)")(Errno::EMFILE))?;
            Pipe { hold: (both, second), fresh: (false, false) }
        }
    };
    let queued = sock::inq(&pipe.hold.0).map_err(call("ioctl(2) FIONREAD"))?;
    if queued == end.content.len() && queued > 0 {
        // Source and target are one kernel (or one file system on it): the FIFO still holds its content.
        return Ok(pipe);
    }
    if queued > 0 {
        let reason = format!("it holds {queued} bytes here and {} there", end.content.len());
        return Err(Error::Differs { path: what(end), reason });
    }
    if descr::pipe_size(&pipe.hold.1) != Ok(end.capacity) {
        descr::set_pipe_size(&pipe.hold.1, end.capacity).map_err(call("fcntl(2) F_SETPIPE_SZ"))?;
    }
    fill(pipe.hold.1.as_fd(), &end.content).map_err(call("write(2) to a pipe"))?;
    Ok(pipe)
}

fn fill(fd: BorrowedFd, mut content: &[u8]) -> Result<(), Errno> {
    while !content.is_empty() {
        content = &content[write(fd, content)?..];
    }
    Ok(())
}
