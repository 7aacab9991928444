//! What Linux keeps per thread although POSIX says per process: a private descriptor table, effective ids, root and
//! current directory (unshare(2), credentials(7)).

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// A descriptor table of one thread alone: any number may be used without harm to the rest of the process.
#[derive(Debug)]
pub struct PrivateTable {
    floor: RawFd,
}

impl PrivateTable {
    /// Runs `body` on a new thread with a copy of our table, in which numbers below `floor` are free to be
    /// overwritten with [`place`](Self::place). `body` must [`lift`](Self::lift) every descriptor before it places
    /// any. The table is dropped as a whole at the end; what was placed is closed with it. Errors: EAGAIN (no
    /// thread), ENOMEM.
    pub fn run<T: Send>(
        floor: RawFd,
        body: impl FnOnce(&PrivateTable) -> Result<T, Errno> + Send,
    ) -> Result<T, Errno> {
        std::thread::scope(|s| {
            let thread = std::thread::Builder::new().name("descriptors".into());
            let started = thread.spawn_scoped(s, move || {
                unshare(CloneFlags::CLONE_FILES)?;
                body(&PrivateTable { floor })
            });
            match started {
                Ok(handle) => handle.join().unwrap_or(Err(Errno::EAGAIN)),
                Err(e) => Err(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EAGAIN))),
            }
        })
    }

    /// A duplicate at or above the floor. Errors: EMFILE, EINVAL (the limit on descriptors is below the floor).
    pub fn lift(&self, fd: impl AsFd) -> Result<OwnedFd, Errno> {
        super::descr::dup_from(fd, self.floor)
    }

    /// Puts a duplicate at exactly `number`, below the floor, closing what this table has there. Errors: EBADF
    /// (not below the floor).
    pub fn place(&self, fd: impl AsFd, number: RawFd) -> Result<(), Errno> {
        if number < 0 || number >= self.floor {
            return Err(Errno::EBADF);
        }
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: the number belongs to a table only this thread has, and lies where nothing of its own is kept.
        Errno::result(unsafe { libc::dup3(fd, number, libc::O_CLOEXEC) }).map(drop)
    }
}

/// Runs `body` with these effective ids; the capabilities that go with uid 0 come back after. Errors: EPERM.
pub fn as_user<T>(uid: u32, gid: u32, body: impl FnOnce() -> T) -> Result<T, Errno> {
    const KEEP: libc::c_long = -1;
    // The raw calls change this thread only; glibc's would change every thread.
    let set = |nr: libc::c_long, id: u32| {
        // SAFETY: no pointers.
        Errno::result(unsafe { libc::syscall(nr, KEEP, libc::c_long::from(id), KEEP) })
    };
    let (own_uid, own_gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if (own_uid, own_gid) == (uid, gid) {
        return Ok(body());
    }
    set(libc::SYS_setresgid, gid)?;
    if let Err(e) = set(libc::SYS_setresuid, uid) {
        let _ = set(libc::SYS_setresgid, own_gid);
        return Err(e);
    }
    let result = body();
    set(libc::SYS_setresuid, own_uid)?;
    set(libc::SYS_setresgid, own_gid)?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_private_table_are_its_own() {
        let (r, w) = nix::unistd::pipe().unwrap();
        let number = r.as_raw_fd();
        PrivateTable::run(500, |t| {
            let w = t.lift(&w)?;
            t.place(&w, number)?;
            assert_eq!(t.place(&w, 500), Err(Errno::EBADF));
            assert_eq!(nix::unistd::read(&r, &mut [0]), Err(Errno::EBADF), "here it is the write end");
            Ok(())
        })
        .unwrap();
        nix::unistd::write(&w, b"x").unwrap();
        assert_eq!(nix::unistd::read(&r, &mut [0]), Ok(1), "here it still is the read end");
    }

    #[test]
    fn ids_change_for_one_thread_and_come_back() {
        let inside =
            as_user(1234, 4321, || (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
        assert_eq!(inside, Ok((1234, 4321)));
        assert_eq!(nix::unistd::geteuid().as_raw(), 0);
        assert_eq!(nix::unistd::chown("/proc/self/fd/0", None, None), Ok(()));
    }
}
