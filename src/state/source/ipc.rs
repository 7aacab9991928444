//! System V objects of the pod's ipc namespace: none can be carried yet.

use crate::base::Blocker;
use crate::kernel::procfs::Proc;
use crate::state::error::Error;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{Read, Seek};

/// The tables of System V objects, held open: `/proc/sysvipc` shows the namespace of whoever *opened* it.
#[derive(Debug)]
pub struct SystemV {
    tables: [(&'static str, File); 3],
    init: i32,
}

impl SystemV {
    /// Opens the tables of the pod's ipc namespace, in a thread that goes there and ends.
    pub fn open(init: &Proc) -> Result<Self, Error> {
        let pid = init.pid();
        let fail = |e: std::io::Error| {
            let e = Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
            Error::Read { what: "System V objects".to_owned(), pid, source: e }
        };
        let ns = init.open_at("ns/ipc").map_err(|e| fail(e.into()))?;
        let open = move || -> std::io::Result<_> {
            setns(&ns, CloneFlags::CLONE_NEWIPC)?;
            let one = |kind| Ok::<_, std::io::Error>((kind, File::open(format!("/proc/sysvipc/{kind}"))?));
            Ok([one("shm")?, one("sem")?, one("msg")?])
        };
        let thread = std::thread::Builder::new().spawn(open).map_err(fail)?;
        let tables = thread.join().unwrap_or_else(|_| Err(Errno::EIO.into())).map_err(fail)?;
        Ok(Self { tables, init: pid })
    }

    /// One blocker for each kind of object there is now.
    pub fn look(&mut self) -> Result<Vec<Blocker>, Error> {
        let mut found = Vec::new();
        for (kind, file) in &mut self.tables {
            let mut text = String::new();
            let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
            read.map_err(|e| {
                Error::read(self.init, *kind)(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
            })?;
            found.extend(blocker(kind, &text));
        }
        Ok(found)
    }
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
