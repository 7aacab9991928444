//! Probes of processes: namespaces, control groups, tracing, chosen pids, descriptors.

use super::{Idle, in_child, reap, why, why_io};
use crate::base::spec::Limits;
use crate::kernel::cgroup::{Cgroup, Hierarchies};
use crate::kernel::clone::Child;
use crate::kernel::{descr, memfd, pidfd, ptrace as raw, tty};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::time::{ClockId, clock_gettime};
use std::cmp::Ordering;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// The kernel's own word.
pub fn release() -> Result<String, String> {
    let name = nix::sys::utsname::uname().map_err(why("uname"))?;
    let (release, machine) = (name.release().to_string_lossy(), name.machine().to_string_lossy());
    if machine != "x86_64" {
        return Err(format!("{release} on {machine}: podmig is for x86_64"));
    }
    Ok(format!("{release} {machine}"))
}

/// Every namespace of a pod but time.
pub fn namespaces() -> Result<String, String> {
    let kinds = [
        ("pid", libc::CLONE_NEWPID),
        ("mnt", libc::CLONE_NEWNS),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("net", libc::CLONE_NEWNET),
        ("cgroup", libc::CLONE_NEWCGROUP),
    ];
    for (name, flag) in kinds {
        in_child(flag, || Ok(String::new())).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(kinds.map(|(name, _)| name).join(" "))
}

/// Clocks of a pod's own.
pub fn time_namespace() -> Result<String, String> {
    in_child(0, || {
        // CLONE_NEWTIME (linux/sched.h); it goes for children.
        let flags = nix::sched::CloneFlags::from_bits_retain(0x80);
        nix::sched::unshare(flags).map_err(why("unshare a time namespace"))?;
        std::fs::write("/proc/self/timens_offsets", "monotonic 1000000 0")
            .map_err(why_io("write timens_offsets"))?;
        let before = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(why("clock_gettime"))?.tv_sec();
        in_child(0, || {
            let inside = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(why("clock_gettime"))?.tv_sec();
            if inside >= before + 1_000_000 {
                Ok("with offsets".to_owned())
            } else {
                Err("the offset does not show".to_owned())
            }
        })
    })
}

/// A control group of our own freezes and thaws a process.
pub fn freezer() -> Result<String, String> {
    let groups = Hierarchies::detect().map_err(|e| e.to_string())?;
    let rel = format!("podmig/check-{}", std::process::id());
    let chain = |e: crate::kernel::cgroup::Error| {
        let cause = std::error::Error::source(&e).and_then(|s| s.downcast_ref::<std::io::Error>());
        match cause.and_then(std::io::Error::raw_os_error) {
            Some(n) => why(&e.to_string())(Errno::from_raw(n)),
            None => e.to_string(),
        }
    };
    let group = Cgroup::create(&groups, Path::new(&rel)).map_err(chain)?;
    let tried = Idle::start().and_then(|child| {
        group.add(child.0.pid).map_err(chain)?;
        let freezer = group.freezer();
        freezer.freeze().map_err(chain)?;
        let frozen = freezer.is_frozen().map_err(chain)?;
        freezer.thaw().map_err(chain)?;
        if frozen { Ok(freezer.is_v2()) } else { Err("the freezer does not freeze".to_owned()) }
    });
    let limits = Limits { memory: Some(1 << 30), cpus: Some(1.0), pids: Some(100) };
    let limited = group.set_limits(&limits).is_ok();
    let empty = group.wait_empty().and_then(|()| group.remove());
    let v2 = tried?;
    empty.map_err(chain)?;
    let version = if v2 { "v2 freezer" } else { "v1 freezer" };
    Ok(format!("{version}, {}", if limited { "limits" } else { "no limits of memory, cpus and pids" }))
}

/// A devpts of the pod's own, with terminals.
pub fn mounts() -> Result<String, String> {
    in_child(libc::CLONE_NEWNS, || {
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .map_err(why("make mounts private"))?;
        mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), none).map_err(why("mount a tmpfs"))?;
        std::fs::create_dir("/mnt/pts").map_err(why_io("mkdir"))?;
        let data = Some("newinstance,ptmxmode=0666,mode=0620");
        mount(Some("devpts"), "/mnt/pts", Some("devpts"), MsFlags::empty(), data)
            .map_err(why("mount a devpts"))?;
        let pty = tty::open(Path::new("/mnt/pts/ptmx")).map_err(why_io("open a terminal"))?;
        let number = tty::number(&pty.master).map_err(why_io("number of the terminal"))?;
        if number == 0 {
            Ok("own terminals".to_owned())
        } else {
            Err("its terminals are not its own".to_owned())
        }
    })
}

/// A seccomp filter is taken.
pub fn seccomp() -> Result<String, String> {
    in_child(0, seccomp_filter)
}

/// Puts a filter that allows everything on the caller, for good.
fn seccomp_filter() -> Result<String, String> {
    let allow = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let mut program = [allow];
    let filter = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
        .map_err(why("PR_SET_NO_NEW_PRIVS"))?;
    // SAFETY: the kernel reads one sock_fprog and the one instruction it points to; both live here.
    let ret =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    Errno::result(ret).map_err(why("seccomp"))?;
    Ok("filters".to_owned())
}

/// A program can be run from a sealed memfd (`vm.memfd_noexec` may forbid it).
pub fn sealed_exec() -> Result<String, String> {
    memfd::sealed(c"podmig-check", b"#!/bin/true\n", true).map_err(why_io("an executable memfd"))?;
    Ok("made".to_owned())
}

/// A process is stopped without a signal and let go.
pub fn ptrace() -> Result<String, String> {
    use nix::sys::ptrace;
    let child = Idle::start()?;
    let pid = child.pid();
    ptrace::seize(pid, ptrace::Options::empty())
        .map_err(|e| format!("{} (see kernel.yama.ptrace_scope)", why("PTRACE_SEIZE")(e)))?;
    ptrace::interrupt(pid).map_err(why("PTRACE_INTERRUPT"))?;
    // A stop of our own making is no signal of the realtime kind, so this call decodes it.
    waitid(Id::Pid(pid), WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED).map_err(why("wait for the stop"))?;
    ptrace::getregs(pid).map_err(why("PTRACE_GETREGS"))?;
    ptrace::detach(pid, None).map_err(why("PTRACE_DETACH"))?;
    Ok("seized and let go".to_owned())
}

/// Stops a child of ours and looks at it.
fn stopped(child: &Idle, look: impl FnOnce(i32) -> Result<String, String>) -> Result<String, String> {
    let pid = child.0.pid;
    raw::seize(pid, 0).map_err(why("PTRACE_SEIZE"))?;
    raw::interrupt(pid).map_err(why("PTRACE_INTERRUPT"))?;
    waitid(Id::Pid(child.pid()), WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED)
        .map_err(why("wait for the stop"))?;
    look(pid)
}

/// What ptrace tells of a stopped task beside its registers.
pub fn ptrace_details() -> Result<String, String> {
    stopped(&Idle::start()?, |pid| {
        let xstate = raw::xstate(pid).map_err(why("NT_X86_XSTATE"))?;
        raw::set_xstate(pid, &xstate).map_err(why("set NT_X86_XSTATE"))?;
        let mask = raw::sigmask(pid).map_err(why("PTRACE_GETSIGMASK"))?;
        raw::set_sigmask(pid, mask).map_err(why("PTRACE_SETSIGMASK"))?;
        raw::peek_siginfo(pid, true).map_err(why("PTRACE_PEEKSIGINFO"))?;
        raw::rseq(pid).map_err(why("PTRACE_GET_RSEQ_CONFIGURATION"))?;
        Ok(format!("read and written, xstate of {} bytes", xstate.len()))
    })
}

/// A seccomp filter of another process is read.
pub fn seccomp_read() -> Result<String, String> {
    let child = Idle::after(|| seccomp_filter().map(drop))?;
    stopped(&child, |pid| match raw::seccomp_filter(pid, 0) {
        Ok(Some(filter)) if filter.len() == 1 => Ok("read".to_owned()),
        Ok(_) => Err("it shows another filter".to_owned()),
        Err(e) => Err(why("PTRACE_SECCOMP_GET_FILTER")(e)),
    })
}

/// The address a thread clears at its end is told (CONFIG_CHECKPOINT_RESTORE).
pub fn tid_address() -> Result<String, String> {
    let mut at = 0usize;
    // SAFETY: the kernel writes one pointer there.
    let ret = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut at, 0, 0, 0) };
    Errno::result(ret).map_err(why("PR_GET_TID_ADDRESS"))?;
    Ok("told".to_owned())
}

/// A timerfd's expirations can be set (CONFIG_CHECKPOINT_RESTORE).
pub fn timerfd_ticks() -> Result<String, String> {
    use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)
        .map_err(why("timerfd_create"))?;
    descr::set_timer_ticks(&timer, 3).map_err(why("TFD_IOC_SET_TICKS"))?;
    let mut ticks = [0; 8];
    nix::unistd::read(&timer, &mut ticks).map_err(why("read"))?;
    if u64::from_ne_bytes(ticks) == 3 {
        Ok("set".to_owned())
    } else {
        Err("they do not read back".to_owned())
    }
}

/// A process's membarrier registrations are told (6.3).
pub fn membarrier() -> Result<String, String> {
    // SAFETY: MEMBARRIER_CMD_GET_REGISTRATIONS only returns a number.
    Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, 1 << 9, 0, 0) })
        .map_err(why("MEMBARRIER_CMD_GET_REGISTRATIONS"))?;
    Ok("told".to_owned())
}

/// A child gets the pid we choose.
pub fn set_tid() -> Result<String, String> {
    // In a pid namespace of its own no one else can take the number first.
    in_child(libc::CLONE_NEWPID, || {
        let wanted: libc::pid_t = 321;
        // SAFETY: clone_args is plain numbers; all zero is a valid value.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        let mut fd = -1i32;
        args.flags = u64::from(libc::CLONE_PIDFD.cast_unsigned());
        args.pidfd = std::ptr::from_mut(&mut fd) as u64;
        args.exit_signal = libc::SIGCHLD as u64;
        args.set_tid = std::ptr::from_ref(&wanted) as u64;
        args.set_tid_size = 1;
        // SAFETY: a fork of a single-threaded process; the child only exits.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
        if pid == 0 {
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) }
        }
        let pid = Errno::result(pid).map_err(why("clone3 with set_tid"))? as i32;
        // SAFETY: clone3 stored a descriptor it just made.
        reap(&Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(fd) } });
        if pid == wanted { Ok("chosen".to_owned()) } else { Err(format!("{pid} came for {wanted}")) }
    })
}

/// A descriptor of another process is borrowed.
pub fn pidfd_getfd() -> Result<String, String> {
    let (reader, _writer) = std::io::pipe().map_err(why_io("pipe"))?;
    let child = Idle::start()?;
    pidfd::borrow(child.0.pid, reader.as_raw_fd()).map_err(why("pidfd_getfd"))?;
    Ok("borrowed".to_owned())
}

/// Whether two descriptors are one open file is told.
pub fn kcmp() -> Result<String, String> {
    use crate::kernel::kcmp;
    let (reader, writer) = std::io::pipe().map_err(why_io("pipe"))?;
    let child = Idle::start()?;
    let (me, other) = (std::process::id().cast_signed(), child.0.pid);
    let compare = |a: i32, b: i32| kcmp::file((me, a), (other, b)).map_err(why("kcmp"));
    let same = compare(reader.as_raw_fd(), reader.as_raw_fd())?;
    let different = compare(reader.as_raw_fd(), writer.as_raw_fd())?;
    match (same, different) {
        (Ordering::Equal, Ordering::Less | Ordering::Greater) => Ok("told".to_owned()),
        _ => Err("it tells wrong".to_owned()),
    }
}

/// POSIX timers get the ids we choose (6.16; without it ids are counted up to the wanted one).
pub fn timer_ids() -> Result<String, String> {
    in_child(0, || {
        let set = |on: libc::c_ulong| {
            // SAFETY: plain numbers (PR_TIMER_CREATE_RESTORE_IDS).
            Errno::result(unsafe {
                libc::prctl(linux_raw_sys::prctl::PR_TIMER_CREATE_RESTORE_IDS as i32, on, 0, 0, 0)
            })
        };
        set(1).map_err(why("PR_TIMER_CREATE_RESTORE_IDS"))?;
        set(0).map_err(why("PR_TIMER_CREATE_RESTORE_IDS off"))?;
        Ok("chosen".to_owned())
    })
}
