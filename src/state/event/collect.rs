//! eventfd, signalfd and timerfd as fdinfo tells them; epoll entries with the files they really watch.

use super::{Epoll, EpollItem, EventFd, SignalFd, TimerFd};
use crate::kernel::fdinfo::{EpollEntry, Extra};
use crate::kernel::{descr, kcmp};
use crate::state::fd::FileId;
use crate::state::fd::collect::table::{Desc, Table};
use crate::state::fd::error::Error;
use crate::state::timer::Itimer;
use std::collections::HashMap;

/// An eventfd.
pub(crate) fn eventfd(table: &Table, id: FileId) -> Result<EventFd, Error> {
    let desc = table.desc(id);
    let Extra::Event { count, semaphore } = desc.info.extra else {
        return Ok(EventFd { count: 0, semaphore: false });
    };
    let semaphore = match semaphore {
        Some(told) => told,
        // While it runs, only the program may touch it.
        None if table.running => false,
        None => {
            let fd = table.borrow(id)?;
            descr::is_semaphore(&fd, count).map_err(|e| Error::fd("reading an eventfd", desc.at)(e))?
        }
    };
    Ok(EventFd { count, semaphore })
}

/// A signalfd.
pub(crate) fn signalfd(desc: &Desc) -> SignalFd {
    let mask = if let Extra::Signal(mask) = desc.info.extra { mask } else { 0 };
    SignalFd { mask }
}

/// A timerfd.
pub(crate) fn timerfd(desc: &Desc) -> TimerFd {
    let t = if let Extra::Timer(t) = &desc.info.extra { *t } else { Default::default() };
    TimerFd {
        clock: t.clock,
        ticks: t.ticks,
        settime_flags: t.settime_flags,
        time: Itimer { value_ns: t.value_ns, interval_ns: t.interval_ns },
    }
}

/// An epoll set. Entries whose file nobody in the pod holds any more are left out (and said).
pub(crate) fn epoll(table: &Table, id: FileId, warnings: &mut Vec<String>) -> Result<Epoll, Error> {
    let desc = table.desc(id);
    let Extra::Epoll(entries) = &desc.info.extra else { return Ok(Epoll { items: vec![] }) };
    // Entries under the same number follow each other in the kernel's order; kcmp asks for the n-th of them.
    let mut nth: HashMap<i32, u32> = HashMap::new();
    let mut items = Vec::with_capacity(entries.len());
    for entry in entries {
        let n = nth.entry(entry.tfd).or_default();
        match watched(table, desc, entry, *n)? {
            Some(file) => {
                items.push(EpollItem { tfd: entry.tfd, file, events: entry.events, data: entry.data });
            }
            None => warnings.push(format!(
                "epoll fd {} of pid {}: its entry {} watches a file that only processes outside the pod hold",
                desc.at.1,
                desc.pod_pid.unwrap_or(0),
                entry.tfd
            )),
        }
        *n += 1;
    }
    Ok(Epoll { items })
}

/// The file an entry watches: almost always the one its number refers to in a process that has the set, but the
/// number may have been closed or used again since.
fn watched(table: &Table, epoll: &Desc, entry: &EpollEntry, nth: u32) -> Result<Option<FileId>, Error> {
    let dev = libc::makedev((entry.sdev >> 20) as u32, (entry.sdev & 0xf_ffff) as u32);
    let empty = Vec::new();
    let same_inode = table.by_inode.get(&(dev, entry.ino)).unwrap_or(&empty);
    // A socket's inode has one description only: no need to ask further.
    if let [only] = same_inode[..]
        && table.desc(only).file_type() == libc::S_IFSOCK
    {
        return Ok(Some(only));
    }
    let is = |file: FileId| match kcmp::epoll_watches(table.desc(file).at, epoll.at, entry.tfd, nth) {
        Ok(yes) => Ok(yes),
        Err(e) => Err(Error::fd("kcmp(2) KCMP_EPOLL_TFD", epoll.at)(e)),
    };
    let by_number = epoll.holders.iter().find_map(|(index, _)| {
        let row = &table.entries[*index];
        let at = row.binary_search_by_key(&entry.tfd, |e| e.fd).ok()?;
        Some(row[at].file)
    });
    if let Some(file) = by_number
        && is(file)?
    {
        return Ok(Some(file));
    }
    for file in same_inode {
        if is(*file)? {
            return Ok(Some(*file));
        }
    }
    // Some file systems report another device by stat(2) than the kernel keeps (btrfs, overlayfs): ask about all.
    if same_inode.is_empty() {
        for file in table.ids().filter(|f| table.desc(*f).st.st_ino == entry.ino) {
            if is(file)? {
                return Ok(Some(file));
            }
        }
    }
    Ok(None)
}
