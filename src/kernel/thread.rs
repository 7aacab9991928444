//! What Linux keeps per thread although POSIX says per process: a private descriptor table, effective ids, root and
//! current directory (unshare(2), credentials(7)).

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use std::os::fd::{BorrowedFd, RawFd};

/// A descriptor table of one thread alone: any number may be used without harm to the rest of the process.
#[derive(Debug)]
pub struct PrivateTable(());

impl PrivateTable {
    /// Runs `body` on a new thread with a copy of our table, in which numbers may be overwritten at will: `body` uses
    /// numbers, no owned descriptors. The table is dropped as a whole at the end. Errors: EAGAIN (no thread), ENOMEM.
    pub fn run<T: Send>(body: impl FnOnce(&PrivateTable) -> Result<T, Errno> + Send) -> Result<T, Errno> {
        std::thread::scope(|s| {
            let thread = std::thread::Builder::new().name("descriptors".into());
            let started = thread.spawn_scoped(s, move || {
                unshare(CloneFlags::CLONE_FILES)?;
                body(&PrivateTable(()))
            });
            match started {
                Ok(handle) => handle.join().unwrap_or(Err(Errno::EAGAIN)),
                Err(e) => Err(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EAGAIN))),
            }
        })
    }

    /// Duplicates `from` to exactly `to`, closing what this table has there. Errors: EBADF (also: `to` is over our
    /// limit on descriptors).
    pub fn place(&self, from: RawFd, to: RawFd) -> Result<(), Errno> {
        if from == to {
            return Ok(());
        }
        // SAFETY: both numbers belong to a table only this thread has.
        Errno::result(unsafe { libc::dup3(from, to, libc::O_CLOEXEC) }).map(drop)
    }

    /// Duplicates `from` to the lowest free number. Errors: EBADF, EMFILE.
    pub fn aside(&self, from: RawFd) -> Result<RawFd, Errno> {
        // SAFETY: as above; the duplicate goes with the table.
        Errno::result(unsafe { libc::fcntl(from, libc::F_DUPFD_CLOEXEC, 0) })
    }

    /// A descriptor of this table for a call. It must not be kept past the next [`place`](Self::place).
    pub fn at(&self, number: RawFd) -> BorrowedFd<'_> {
        // SAFETY: numbers of this table stay open until the thread ends or overwrites them itself; a wrong one
        // makes the call fail with EBADF, no more.
        unsafe { BorrowedFd::borrow_raw(number.max(0)) }
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
    use std::os::fd::AsRawFd;

    #[test]
    fn numbers_of_a_private_table_are_its_own() {
        let (r, w) = nix::unistd::pipe().unwrap();
        let (number, writer) = (r.as_raw_fd(), w.as_raw_fd());
        PrivateTable::run(|t| {
            let kept = t.aside(number)?;
            t.place(writer, number)?;
            nix::unistd::write(t.at(number), b"y")?;
            assert_eq!(nix::unistd::read(t.at(kept), &mut [0; 4]), Ok(1), "the read end was put aside");
            t.place(writer, i32::MAX).unwrap_err();
            Ok(())
        })
        .unwrap();
        nix::unistd::write(&w, b"x").unwrap();
        assert_eq!(nix::unistd::read(&r, &mut [0; 4]), Ok(1), "here it still is the read end");
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
