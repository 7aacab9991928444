//! Pipes and FIFOs: content copied by tee(2), which leaves it where it is.

use super::PipeEnd;
use crate::base::Blocker;
use crate::kernel::{descr, sock};
use crate::state::fd::FileId;
use crate::state::fd::collect::Numbers;
use crate::state::fd::collect::table::{Desc, Table};
use crate::state::fd::error::Error;
use crate::state::file::collect::look;
use nix::errno::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Why a pipe cannot be carried: packet mode, or an end outside the pod. `maybe_in_flight`: an end that is not in
/// the table may be on its way through a socket of the pod.
pub(crate) fn check(table: &Table, id: FileId, maybe_in_flight: bool) -> Result<Option<Blocker>, Error> {
    let desc = table.desc(id);
    let block = |kind: &str, message: &str, remedy: &str| {
        Ok(Some(Blocker {
            kind: kind.to_owned(),
            pid: desc.pod_pid,
            fd: desc.pod_pid.map(|_| desc.at.1),
            path: desc.link.starts_with(b"/").then(|| desc.shown()),
            message: message.to_owned(),
            remedy: remedy.to_owned(),
        }))
    };
    if desc.info.flags & libc::O_DIRECT != 0 {
        let remedy = "make the pipe without O_DIRECT";
        return block("packet-pipe", "pipes in packet mode (O_DIRECT) cannot be carried", remedy);
    }
    let ends = table.by_inode.get(&desc.inode()).map_or(&[][..], |v| v.as_slice());
    if ends.first() != Some(&id) || maybe_in_flight {
        return Ok(None);
    }
    let (reader, writer) = (find(table, ends, Desc::readable), find(table, ends, Desc::writable));
    // With one kind of end in the pod, the hang-up tells whether the other exists anywhere.
    let (end, gone) = match (reader, writer) {
        (Some(_), Some(_)) | (None, None) => return Ok(None),
        (Some(r), None) => (r, libc::POLLHUP),
        (None, Some(w)) => (w, libc::POLLERR),
    };
    let now = descr::poll_now(table.borrow(end)?).map_err(Error::fd("poll(2)", desc.at))?;
    if now & gone != 0 {
        return Ok(None);
    }
    let remedy = "redirect it to a file, or start both programs in one pod";
    block("outside-pipe", "the other end of this pipe is held by a process outside the pod", remedy)
}

fn find(table: &Table, ends: &[FileId], which: impl Fn(&Desc) -> bool) -> Option<FileId> {
    ends.iter().copied().find(|id| which(table.desc(*id)))
}

/// Pipes met so far.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    numbers: Numbers,
    scratch: Option<(OwnedFd, OwnedFd, u32)>,
}

impl Pipes {
    /// One end as data; the content goes with the first end asked for.
    pub fn end(&mut self, table: &Table, id: FileId, root: BorrowedFd) -> Result<PipeEnd, Error> {
        let desc = table.desc(id);
        let (pipe, first) = self.numbers.of(desc.inode());
        let fd = table.borrow(id)?;
        let capacity = descr::pipe_size(&fd).map_err(Error::fd("fcntl(2) F_GETPIPE_SZ", desc.at))?;
        let content = if first { self.content(table, id, capacity)? } else { vec![] };
        let named = desc.link.starts_with(b"/")
            && look(root, &desc.link).is_ok_and(|st| (st.st_dev, st.st_ino) == desc.inode());
        Ok(PipeEnd { pipe, fifo: named.then(|| desc.link.clone()), capacity, content })
    }

    /// Bytes a port's pipe still holds, once per pipe and only if the pod reads it.
    pub fn unread(&mut self, table: &Table, id: FileId) -> Result<Option<Vec<u8>>, Error> {
        let desc = table.desc(id);
        if !desc.readable() || !self.numbers.of(desc.inode()).1 {
            return Ok(None);
        }
        let fd = table.borrow(id)?;
        let capacity = descr::pipe_size(&fd).map_err(Error::fd("fcntl(2) F_GETPIPE_SZ", desc.at))?;
        self.content(table, id, capacity).map(Some)
    }

    fn content(&mut self, table: &Table, id: FileId, capacity: u32) -> Result<Vec<u8>, Error> {
        let desc = table.desc(id);
        let ends = table.by_inode.get(&desc.inode()).map_or(&[][..], |v| v.as_slice());
        let Some(reader) = find(table, ends, Desc::readable) else { return Ok(vec![]) };
        let fd = table.borrow(reader)?;
        let len = sock::inq(&fd).map_err(Error::fd("ioctl(2) FIONREAD", desc.at))?;
        if len == 0 {
            return Ok(vec![]);
        }
        // tee(2) copies references to the same buffers: as many must fit in ours.
        if self.scratch.as_ref().is_none_or(|s| s.2 < capacity) {
            let (r, w) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)
                .map_err(Error::host("pipe2(2)"))?;
            descr::set_pipe_size(&w, capacity).map_err(Error::fd("fcntl(2) F_SETPIPE_SZ", desc.at))?;
            self.scratch = Some((r, w, capacity));
        }
        let Some((r, w, _)) = &self.scratch else { return Ok(vec![]) };
        let copied = descr::tee(&fd, w, len).map_err(Error::fd("tee(2)", desc.at))?;
        let mut content = vec![0u8; copied];
        let mut got = 0;
        while got < copied {
            match nix::unistd::read(r, &mut content[got..]) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) => return Err(Error::fd("read(2) of the copied pipe", desc.at)(e)),
            }
        }
        if got != len {
            return Err(Error::fd("tee(2), which did not copy everything,", desc.at)(Errno::EIO));
        }
        Ok(content)
    }
}
