//! The namespaces of a pod: which ones, with which clocks, and what the process that becomes pid 1 does in them
//! before it is executed (namespaces(7), time_namespaces(7)).

use super::mounts::{self, Mounts};
use super::{Error, caps};
use crate::base::spec::NetMode;
use crate::kernel::cgroup::Cgroup;
use crate::kernel::clone;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::ffi::CStr;
use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};

/// CLONE_NEWTIME (not in libc's flags for unshare).
const NEWTIME: i32 = 0x80;

/// What a pod's clocks add to the host's, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Clocks {
    /// CLOCK_MONOTONIC (and the clocks that go with it).
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME.
    pub boottime_ns: i64,
}

/// The surroundings of a pod.
#[derive(Clone, PartialEq, Debug)]
pub struct Space {
    /// Host name inside.
    pub hostname: String,
    /// Whether the host's network is shared.
    pub net: NetMode,
    /// Mounts.
    pub mounts: Mounts,
    /// Clocks.
    pub clocks: Clocks,
}

/// A new time namespace with `clocks` for all children of the calling process from now on.
///
/// # Errors
/// EPERM, or ERANGE where a clock would be before 0 or beyond 146 years.
pub fn set_clocks(clocks: Clocks) -> Result<(), Error> {
    unshare(CloneFlags::from_bits_retain(NEWTIME))
        .map_err(|errno| Error::Space { what: "make a time namespace", errno })?;
    let line = |name: &str, ns: i64| {
        format!("{name} {} {}\n", ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
    };
    let text = line("monotonic", clocks.monotonic_ns) + &line("boottime", clocks.boottime_ns);
    // One write(2) for both: the file takes whole lines only.
    fs::write("/proc/self/timens_offsets", text).map_err(Error::io("set the clocks"))
}

/// Children are born with the caller's own clocks again. Kernels before 6.2 refuse threads to a process whose children
/// would have others. Single-threaded callers only.
///
/// # Errors
/// `/proc` is not there, or EPERM.
pub fn own_clocks() -> Result<(), Error> {
    let own = fs::File::open("/proc/self/ns/time").map_err(Error::io("open /proc/self/ns/time"))?;
    nix::sched::setns(own, CloneFlags::from_bits_retain(NEWTIME))
        .map_err(|errno| Error::Space { what: "go back to the host's clocks", errno })
}

impl Space {
    /// The namespaces to be made with the process (all but cgroup and time, which come separately).
    pub fn flags(&self) -> u64 {
        let mut flags = CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS;
        if self.net != NetMode::Host {
            flags |= CloneFlags::CLONE_NEWNET;
        }
        u64::from(flags.bits().cast_unsigned())
    }

    /// In the new process: makes the pod's surroundings and executes pid 1 from `image` with `socket` as its
    /// descriptor 3; returns only the reason why that failed.
    pub fn enter(&self, cgroup: &Cgroup, socket: BorrowedFd<'_>, image: BorrowedFd<'_>) -> Error {
        match self.prepare(cgroup, socket, image) {
            Ok(never) => match never {},
            Err(e) => e,
        }
    }

    fn prepare(
        &self,
        cgroup: &Cgroup,
        socket: BorrowedFd<'_>,
        image: BorrowedFd<'_>,
    ) -> Result<std::convert::Infallible, Error> {
        let failed = |what| move |errno| Error::Space { what, errno };
        nix::unistd::setsid().map_err(failed("begin a session"))?;
        cgroup.join_rest()?;
        unshare(CloneFlags::CLONE_NEWCGROUP).map_err(failed("make a cgroup namespace"))?;
        nix::unistd::sethostname(&self.hostname).map_err(failed("set the host name"))?;
        let kept = mounts::make(&self.mounts)?;
        nix::unistd::chdir("/").map_err(failed("enter /"))?;
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(Error::io("open /dev/null"))?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).map_err(failed("block signals"))?;
        let mut children = SigSet::empty();
        children.add(Signal::SIGCHLD);
        let children =
            SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK).map_err(failed("make a signalfd"))?;
        clone::default_signals();
        caps::drop_inheritable()?;
        let n = null.as_fd();
        let mut fds = vec![n, n, n, socket, children.as_fd()];
        fds.extend(kept.last_pid.as_ref().map(AsFd::as_fd));
        let image = clone::arrange_fds(&fds, image).map_err(Error::io("arrange descriptors"))?;
        let name: &CStr = c"podmig-init";
        Err(Error::io("execute pid 1")(clone::exec_fd(&image, &[name])))
    }
}
