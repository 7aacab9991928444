//! A family: own sessions and groups, an orphan, a zombie, children that end after the move with their statuses.

use crate::wait;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{
    ForkResult, Pid, fork, getpgid, getpgrp, getpid, getppid, getsid, pause, pipe, read, setpgid, setsid,
    write,
};

fn child(body: impl FnOnce()) -> Pid {
    // SAFETY: one thread; the child runs its body and ends.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            body();
            std::process::exit(0);
        }
        ForkResult::Parent { child } => child,
    }
}

pub fn run() {
    let me = getpid();
    let zombie = child(|| std::process::exit(42));
    let killed = child(|| {
        pause();
    });
    kill(killed, Signal::SIGKILL).expect("kill");
    for pid in [zombie, killed] {
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("it is a zombie");
    }
    let (out, into) = pipe().expect("pipe");
    let leader = child(|| {
        setsid().expect("setsid");
        let inner = child(|| {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).expect("setpgid");
            write(&into, b"x").expect("write");
            pause();
        });
        write(&into, &inner.as_raw().to_ne_bytes()).expect("write");
        pause();
    });
    let mut told = Vec::new();
    while told.len() < 5 {
        let mut some = [0; 5];
        let n = read(&out, &mut some).expect("read");
        told.extend_from_slice(&some[..n]);
    }
    // 'x' may come first or last.
    let digits: Vec<u8> = if told[0] == b'x' { told[1..].to_vec() } else { told[..4].to_vec() };
    let inner = Pid::from_raw(i32::from_ne_bytes(digits.try_into().expect("four bytes")));
    let orphan_told = pipe().expect("pipe");
    let parent = child(|| {
        let orphan = child(|| {
            pause();
        });
        write(&orphan_told.1, &orphan.as_raw().to_ne_bytes()).expect("write");
    });
    waitpid(parent, None).expect("wait");
    let mut pid = [0; 4];
    read(&orphan_told.0, &mut pid).expect("read");
    let orphan = Pid::from_raw(i32::from_ne_bytes(pid));
    let (parent_before, group, session) = (getppid(), getpgrp(), getsid(None).expect("sid"));
    wait();
    assert_eq!((getpid(), getppid()), (me, parent_before), "own pid and parent");
    assert_eq!((getpgrp(), getsid(None).expect("sid")), (group, session), "own group and session");
    assert_eq!(waitpid(zombie, None), Ok(WaitStatus::Exited(zombie, 42)), "zombie's status");
    assert_eq!(
        waitpid(killed, None),
        Ok(WaitStatus::Signaled(killed, Signal::SIGKILL, false)),
        "killed zombie"
    );
    assert_eq!(getsid(Some(leader)), Ok(leader), "session leader");
    assert_eq!(getsid(Some(inner)), Ok(leader), "member of the session");
    assert_eq!(getpgid(Some(inner)), Ok(inner), "own group in it");
    kill(inner, Signal::SIGKILL).expect("the grandchild is there");
    kill(leader, Signal::SIGUSR1).expect("kill");
    assert_eq!(waitpid(leader, None), Ok(WaitStatus::Signaled(leader, Signal::SIGUSR1, false)));
    let stat = std::fs::read_to_string(format!("/proc/{orphan}/stat")).expect("the orphan is there");
    let after = stat.rsplit(')').next().unwrap_or_default();
    assert_eq!(after.split_whitespace().nth(1), Some("1"), "the orphan's parent is pid 1");
    kill(orphan, Signal::SIGKILL).expect("kill");
    let next = child(|| std::process::exit(1));
    assert!(next.as_raw() > inner.as_raw(), "pids are not used again at once: {next} after {inner}");
    waitpid(next, None).expect("wait");
}
