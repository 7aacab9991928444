//! New processes: a child in new namespaces that runs our code (clone3(2)), and a program detached from its starter.

use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::ptr;
use std::time::{Duration, Instant};

/// `CLONE_INTO_CGROUP` (linux/sched.h; libc's is cut to 32 bits).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child and the descriptor that names it for good (pidfd_open(2)).
#[derive(Debug)]
pub struct Child {
    /// Its pid, as the caller sees it.
    pub pid: i32,
    /// Readable once it ended; close-on-exec.
    pub pidfd: OwnedFd,
}

/// Forks with clone3 flags `flags` (CLONE_NEW*), in v2 cgroup `cgroup` from its first instruction; the child runs
/// `child` and exits with what it returns. It is reaped by the caller (SIGCHLD).
///
/// The child is a copy of the whole process, locks included, so this is for single-threaded processes only.
///
/// # Errors
/// `Other` when the caller has more threads than one; what clone3 gives: EPERM, ENOSPC (too many namespaces), EBUSY.
pub fn fork_with(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> i32,
) -> io::Result<Child> {
    alone()?;
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain numbers; all zero is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: no new stack and no shared memory: the child is a fork of this single-threaded process and may run any
    // code; it never returns from the closure into the caller's frames but exits.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_ref(&args), size_of::<libc::clone_args>()) };
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
        // SAFETY: ends the child at once, without destructors that belong to the parent.
        unsafe { libc::_exit(code) }
    }
    let pid = i32::try_from(Errno::result(pid)?).map_err(io::Error::other)?;
    // SAFETY: clone3 stored a descriptor it just made; nobody else owns it.
    Ok(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// Waits for threads that were joined to be gone from the kernel, too; an error when one stays.
fn alone() -> io::Result<()> {
    let end = Instant::now() + Duration::from_millis(200);
    // One directory entry per thread beside `.` and `..`.
    while std::fs::metadata("/proc/self/task")?.nlink() != 3 {
        if Instant::now() > end {
            return Err(io::Error::other("a process with threads cannot fork a pod"));
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// A descriptor for process `pid` (pidfd_open(2)), close-on-exec.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel just made this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}

/// Sends a signal to the process a pidfd names (pidfd_send_signal(2)); ESRCH when it has been reaped.
pub fn pidfd_signal(pidfd: impl AsFd, signal: i32) -> Result<(), Errno> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo is allowed: the kernel fills it as kill(2) does.
    let ret = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, ptr::null::<u8>(), 0) };
    Errno::result(ret).map(drop)
}

/// Replaces this process by the program in `fd` (execveat(2) with AT_EMPTY_PATH); returns only on failure.
pub fn exec_fd(fd: impl AsFd, argv: &[&CStr]) -> io::Error {
    let mut args: Vec<*const libc::c_char> = argv.iter().map(|a| a.as_ptr()).collect();
    args.push(ptr::null());
    let env: [*const libc::c_char; 1] = [ptr::null()];
    // SAFETY: all pointers are NUL-terminated strings or null-terminated arrays of such that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// Every signal back to its default, for a program about to be executed (the Rust runtime ignores SIGPIPE, and
/// a caller may have ignored others).
pub fn default_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no code; failures (SIGKILL, SIGSTOP, libc's own) change nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Puts `fds[i]` at number `i` of this process and closes everything above but `keep`, which is close-on-exec at
/// number `fds.len()`. For a process about to execute another program: every other descriptor of it is gone.
pub fn arrange_fds(fds: &[BorrowedFd<'_>], keep: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let count = i32::try_from(fds.len()).map_err(io::Error::other)?;
    // First above all targets, so that no dup2 overwrites a source still needed.
    let mut high = Vec::new();
    for fd in fds.iter().chain([&keep]) {
        // SAFETY: duplicates a borrowed, open descriptor.
        high.push(Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, count + 1) })?);
    }
    for (to, from) in (0..).zip(&high[..fds.len()]) {
        // SAFETY: `from` is ours; what was open at `to` is given up on purpose (the process is about to exec).
        Errno::result(unsafe { libc::dup2(*from, to) })?;
    }
    // SAFETY: as above.
    Errno::result(unsafe { libc::dup3(high[fds.len()], count, libc::O_CLOEXEC) })?;
    // SAFETY: closes descriptors whose owners never run again in this process.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, count + 1, libc::c_uint::MAX, 0) })?;
    // SAFETY: made by dup3 above, not owned by any value.
    Ok(unsafe { OwnedFd::from_raw_fd(count) })
}

/// Takes over a descriptor this process was started with, by its number; close-on-exec from now on. Whoever calls
/// this must know that nothing else in the process owns it: only a main function at its start does.
///
/// # Errors
/// EBADF: nothing is open there.
pub fn take_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a failing fcntl changes nothing.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and by the contract above not owned by any other value.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Starts `exe` as a daemon: own session, not our child, `/` as directory, descriptors 0, 1, 2 = `fds[0..3]`, the
/// further ones from 3 on, nothing else open, default signals, nothing blocked. Returns once it was executed.
///
/// # Errors
/// What fork or execve gave.
pub fn spawn_detached(
    exe: &CStr,
    argv: &[CString],
    env: &[CString],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let pointers = |list: &[CString]| {
        let mut p: Vec<*const libc::c_char> = list.iter().map(|s| s.as_ptr()).collect();
        p.push(ptr::null());
        p
    };
    let (argv, envp) = (pointers(argv), pointers(env));
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // Room for descriptors duplicated by the child, so that it allocates nothing: it may be a fork of one thread.
    let mut high = vec![-1; fds.len() + 1];
    // SAFETY: the child makes only async-signal-safe calls (raw system calls on memory prepared above) and ends in
    // execve or _exit.
    let pid = Errno::result(unsafe { libc::fork() })?;
    if pid == 0 {
        // SAFETY: in the child, see above.
        unsafe {
            detach_and_exec(exe.as_ptr(), argv.as_ptr(), envp.as_ptr(), fds, write.as_raw_fd(), &mut high)
        }
    }
    drop(write);
    let mut failed = [0; 4];
    let mut pipe = std::fs::File::from(read);
    let outcome = pipe.read_exact(&mut failed);
    let mut status = 0;
    loop {
        // SAFETY: waits for our own child, which exits as soon as it has forked.
        match Errno::result(unsafe { libc::waitpid(pid, &raw mut status, 0) }) {
            Err(Errno::EINTR) => {}
            other => break other.map(drop)?,
        }
    }
    match outcome {
        Ok(()) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(failed))),
        Err(_) => Ok(()),
    }
}

/// The child's side of [`spawn_detached`].
///
/// # Safety
/// Only in a fresh fork; pointers as execve wants them; `high` has one more place than `fds`.
unsafe fn detach_and_exec(
    exe: *const libc::c_char,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    fds: &[BorrowedFd<'_>],
    report: RawFd,
    high: &mut [RawFd],
) -> ! {
    // SAFETY: raw system calls on valid arguments; every failure is reported and ends the process.
    unsafe {
        let fail = |fd: RawFd| -> ! {
            let errno = Errno::last_raw().to_ne_bytes();
            libc::write(fd, errno.as_ptr().cast(), errno.len());
            libc::_exit(127)
        };
        libc::setsid();
        match libc::fork() {
            -1 => fail(report),
            0 => {}
            _ => libc::_exit(0),
        }
        let count = fds.len() as RawFd;
        for (i, fd) in fds.iter().map(AsRawFd::as_raw_fd).chain([report]).enumerate() {
            high[i] = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, count + 1);
            if high[i] < 0 {
                fail(report);
            }
        }
        for (to, from) in (0..).zip(&high[..fds.len()]) {
            libc::dup2(*from, to);
        }
        let report = libc::dup3(high[fds.len()], count, libc::O_CLOEXEC);
        if report < 0 || libc::chdir(c"/".as_ptr()) < 0 {
            fail(high[fds.len()]);
        }
        libc::syscall(libc::SYS_close_range, count + 1, libc::c_uint::MAX, 0);
        default_signals();
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::execve(exe, argv, envp);
        fail(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_detached_program_has_what_it_was_given_and_nothing_else() {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let script = c"ls /proc/self/fd | tr '\\n' ' '; ps -o sid= -p $$ | tr -d ' '; echo $$; echo $X; pwd";
        let argv = [c"sh".into(), c"-c".into(), script.into()];
        let fds = [null.as_fd(), write.as_fd(), write.as_fd(), null.as_fd()];
        spawn_detached(c"/bin/sh", &argv, &[c"X=y".into(), c"PATH=/usr/bin:/bin".into()], &fds).unwrap();
        drop(write);
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        // 0 to 3 and the directory that ls reads; then session and pid differ (not a session leader's tty grab).
        assert_eq!(&lines[0][..8], "0 1 2 3 ", "{text}");
        assert_eq!(lines[0].split_whitespace().count(), 6, "{text}");
        assert_ne!(lines[0].split_whitespace().last(), Some(lines[1]));
        assert_eq!(&lines[2..], ["y", "/"]);
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fds = [null.as_fd(), null.as_fd(), null.as_fd()];
        let e = spawn_detached(c"/nowhere/podmig", &[c"x".into()], &[], &fds).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn a_pidfd_signals_its_process() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let fd = pidfd_open(child.id().cast_signed()).unwrap();
        pidfd_signal(&fd, libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert_eq!(pidfd_signal(&fd, 0).unwrap_err(), Errno::ESRCH);
    }

    #[test]
    fn a_process_with_threads_does_not_fork_a_pod() {
        // The test runner has threads.
        assert!(fork_with(0, None, || 0).is_err());
    }
}
