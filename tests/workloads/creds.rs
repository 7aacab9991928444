//! Credentials and limits: ids, groups, capabilities, nice, limits, umask, name, no_new_privs.

use crate::wait;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getgroups, getresgid, getresuid, setgroups, setresgid, setresuid};

fn status() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/status").expect("status");
    let kept = ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp:", "Umask", "Name"];
    text.lines().filter(|l| kept.iter().any(|k| l.starts_with(k))).map(str::to_owned).collect()
}

pub fn run() {
    umask(Mode::from_bits_truncate(0o037));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    setrlimit(Resource::RLIMIT_NOFILE, soft.min(500), hard).expect("limit");
    setrlimit(Resource::RLIMIT_CORE, 0, 0).expect("limit");
    // SAFETY: plain numbers and a constant string.
    unsafe {
        assert_eq!(libc::setpriority(libc::PRIO_PROCESS, 0, 7), 0);
        assert_eq!(libc::prctl(libc::PR_SET_NAME, c"renamed".as_ptr()), 0);
    }
    setgroups(&[Gid::from_raw(100), Gid::from_raw(4242)]).expect("setgroups");
    setresgid(Gid::from_raw(10), Gid::from_raw(11), Gid::from_raw(12)).expect("setresgid");
    // SAFETY: keeps capabilities over the change of uid, then none is asked for.
    unsafe {
        libc::prctl(libc::PR_SET_KEEPCAPS, 1);
    }
    setresuid(Uid::from_raw(20), Uid::from_raw(21), Uid::from_raw(22)).expect("setresuid");
    // SAFETY: plain numbers.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGUSR2), 0);
    }
    let before = status();
    wait();
    assert_eq!(status(), before, "/proc/self/status");
    let (uids, gids) = (getresuid().expect("uids"), getresgid().expect("gids"));
    assert_eq!((uids.real.as_raw(), uids.effective.as_raw(), uids.saved.as_raw()), (20, 21, 22));
    assert_eq!((gids.real.as_raw(), gids.effective.as_raw(), gids.saved.as_raw()), (10, 11, 12));
    assert_eq!(getgroups().expect("groups"), [Gid::from_raw(100), Gid::from_raw(4242)]);
    assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).expect("limit"), (soft.min(500), hard));
    assert_eq!(getrlimit(Resource::RLIMIT_CORE).expect("limit"), (0, 0));
    // SAFETY: plain numbers and a local.
    unsafe {
        assert_eq!(libc::getpriority(libc::PRIO_PROCESS, 0), 7);
        let mut signal = 0i32;
        libc::prctl(libc::PR_GET_PDEATHSIG, &mut signal);
        assert_eq!(signal, libc::SIGUSR2, "parent death signal");
    }
}
