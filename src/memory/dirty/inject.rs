//! Making the userfaultfd inside a process of the pod, by one batch that also closes it there. The batch waits a moment
//! with it open while we borrow it; should we die in that moment, the batch goes on alone and closes it.

use super::MakeUserfaultfd;
use crate::kernel::{pidfd, uffd};
use crate::memory::Error;
use crate::remote::{Batch, Session};
use nix::errno::Errno;
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest wait of the batch.
const LIMIT_MS: u64 = 100;

/// By a session open in the process.
pub struct BySession<'a, 'b>(pub &'a mut Session<'b>);

impl MakeUserfaultfd for BySession<'_, '_> {
    fn userfaultfd(&mut self, host_pid: i32) -> Result<OwnedFd, Error> {
        let track = |what| move |source| Error::Track { pid: host_pid, what, source };
        let mut batch = Batch::new();
        // The bell ends the wait: an eventfd that we ring when we have what we want.
        let interest = batch.data(&[1u32.to_le_bytes(), [0; 4], [0; 4]].concat()); // EPOLLIN, packed epoll_event
        let happened = batch.out(12);
        let bell = batch.must(libc::SYS_eventfd2, &[0.into(), libc::EFD_CLOEXEC.into()]);
        let poll = batch.must(libc::SYS_epoll_create1, &[libc::EPOLL_CLOEXEC.into()]);
        let add = libc::EPOLL_CTL_ADD.into();
        batch.must(libc::SYS_epoll_ctl, &[poll.into(), add, bell.into(), interest.into()]);
        let made = batch.call(libc::SYS_userfaultfd, &[uffd::FLAGS.into()]);
        let wait = [poll.into(), happened.into(), 1.into(), LIMIT_MS.into(), 0.into(), 8.into()];
        batch.call(libc::SYS_epoll_pwait, &wait);
        for fd in [made, poll, bell] {
            batch.call(libc::SYS_close, &[fd.into()]);
        }
        let before = descriptors(host_pid).map_err(track("its descriptors cannot be listed"))?;
        let over = AtomicBool::new(false);
        let (borrowed, results) = std::thread::scope(|scope| {
            let borrower = scope.spawn(|| borrow(host_pid, &before, &over));
            let results = self.0.run(&batch);
            over.store(true, Ordering::Release);
            (borrower.join(), results)
        });
        let results = results.map_err(|source| Error::Inject { pid: host_pid, source: Box::new(source) })?;
        if let Some((_, _, source)) =
            results.first_error().filter(|(ix, ..)| *ix == made || !results.done(made))
        {
            return Err(track("it cannot make a userfaultfd")(source));
        }
        let borrowed = borrowed.unwrap_or(None);
        borrowed
            .ok_or_else(|| track("the userfaultfd it made could not be borrowed in time")(Errno::ETIMEDOUT))
    }
}

/// Descriptor numbers of a process with what they are.
fn descriptors(pid: i32) -> Result<HashSet<(i32, Vec<u8>)>, Errno> {
    use std::os::unix::ffi::OsStringExt;
    let raw = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    let mut found = HashSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(raw)? {
        let entry = entry.map_err(raw)?;
        let number = entry.file_name().to_str().and_then(|n| n.parse().ok());
        if let (Some(number), Ok(link)) = (number, std::fs::read_link(entry.path())) {
            found.insert((number, link.into_os_string().into_vec()));
        }
    }
    Ok(found)
}

/// Waits for the new userfaultfd to appear, borrows it, and rings the new eventfd.
fn borrow(pid: i32, before: &HashSet<(i32, Vec<u8>)>, over: &AtomicBool) -> Option<OwnedFd> {
    let limit = Instant::now() + Duration::from_millis(10 * LIMIT_MS);
    while Instant::now() < limit && !over.load(Ordering::Acquire) {
        let now = descriptors(pid).ok()?;
        let new = |what: &[u8]| now.difference(before).find(|(_, link)| link == what).map(|(fd, _)| *fd);
        let (Some(made), Some(bell)) = (new(b"anon_inode:[userfaultfd]"), new(b"anon_inode:[eventfd]"))
        else {
            std::thread::yield_now();
            continue;
        };
        let made = pidfd::borrow(pid, made).ok();
        if let Ok(bell) = pidfd::borrow(pid, bell) {
            let _ = nix::unistd::write(bell, &1u64.to_ne_bytes()); // without it the batch waits its time out
        }
        return made;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::addr::PAGE;
    use crate::memory::dirty::{Tracker, View, Way};
    use crate::memory::testing::Writer;
    use crate::remote::Running;
    use crate::state::mm::MmId;
    use std::collections::HashMap;

    #[test]
    fn a_process_is_watched_by_one_batch_that_leaves_nothing_there() {
        if !uffd::has_wp_async() {
            return; // a kernel before 6.7
        }
        let mut writer = Writer::start();
        let range = writer.map(0, 100);
        writer.fill(range, 3);
        writer.idle();
        let pid = writer.pid();
        let (before, maps) = (descriptors(pid).unwrap(), writer.layout());

        let mut tracker = Tracker::by(Way::WpAsync);
        let mut stopped = Running::seize(pid, 0).unwrap().stop(Duration::from_secs(5)).unwrap();
        let mut session = Session::open(&mut stopped, &[]).unwrap();
        tracker.watch(MmId(pid), pid, &mut BySession(&mut session)).unwrap();
        session.close().unwrap();
        assert_eq!(descriptors(pid).unwrap(), before);
        stopped.detach().unwrap();
        assert_eq!(writer.layout(), maps);

        let look = |tracker: &mut Tracker, writer: &Writer| {
            let (layouts, objects) = ([writer.arena()], HashMap::new());
            let view = View { layouts: &layouts, objects: &objects, forked: false, last: true };
            let round = tracker.round(&view).unwrap();
            assert!(round.unwatched.is_empty());
            round.bytes() / PAGE
        };
        assert_eq!(look(&mut tracker, &writer), 100);
        writer.run(&format!("touch {}", range.start));
        assert_eq!(look(&mut tracker, &writer), 1);
        assert_eq!(look(&mut tracker, &writer), 0);
    }

    #[test]
    fn a_process_without_room_for_descriptors_is_named() {
        let mut writer = Writer::start();
        writer.run("nofile 5");
        writer.idle();
        let pid = writer.pid();
        let mut stopped = Running::seize(pid, 0).unwrap().stop(Duration::from_secs(5)).unwrap();
        let mut session = Session::open(&mut stopped, &[]).unwrap();
        let failed = BySession(&mut session).userfaultfd(pid);
        assert!(
            matches!(failed, Err(Error::Track { pid: p, source: Errno::EMFILE, .. }) if p == pid),
            "{failed:?}"
        );
        session.close().unwrap();
        stopped.detach().unwrap();
        assert_eq!(writer.run("reap"), "");
    }
}
