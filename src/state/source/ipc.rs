//! System V objects of the pod's ipc namespace: none can be carried yet.

use crate::base::Blocker;
use crate::kernel::procfs::Proc;
use crate::state::error::Error;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

/// One blocker for each kind of System V object the pod has.
pub fn system_v(init: &Proc) -> Result<Vec<Blocker>, Error> {
    let pid = init.pid();
    let fail = |e: Errno| Error::read(pid, "System V objects")(e);
    let ns = init.open_at("ns/ipc").map_err(fail)?;
    // `/proc/sysvipc` shows the namespace of the thread that opens it: one of ours goes there and ends.
    let read = move || -> Result<Vec<(&'static str, String)>, Errno> {
        setns(&ns, CloneFlags::CLONE_NEWIPC)?;
        let one = |kind| {
            std::fs::read_to_string(format!("/proc/sysvipc/{kind}"))
                .map(|text| (kind, text))
                .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
        };
        ["shm", "sem", "msg"].into_iter().map(one).collect()
    };
    let thread = std::thread::Builder::new().spawn(read);
    let thread = thread.map_err(|e| fail(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EAGAIN))))?;
    let tables = thread.join().unwrap_or(Err(Errno::EIO)).map_err(fail)?;
    Ok(tables.iter().filter_map(|(kind, text)| blocker(kind, text)).collect())
}

fn blocker(kind: &str, table: &str) -> Option<Blocker> {
    // The first line names the columns.
    let rows = table.lines().skip(1).filter(|l| !l.trim().is_empty()).count();
    let what = match kind {
        "shm" => "shared memory segments",
        "sem" => "semaphore sets",
        _ => "message queues",
    };
    (rows > 0).then(|| Blocker {
        kind: format!("sysv-{kind}"),
        pid: None,
        fd: None,
        path: None,
        message: format!("{rows} System V {what} cannot be carried yet"),
        remedy: "remove them with ipcrm(1) in the pod, or use the POSIX kind".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted() {
        let head = "       key      shmid perms\n";
        assert_eq!(blocker("shm", head), None);
        let one = blocker("sem", &format!("{head}  0  1 600\n")).unwrap();
        assert_eq!(
            (one.kind.as_str(), one.message.contains("1 System V semaphore sets")),
            ("sysv-sem", true)
        );
    }
}
