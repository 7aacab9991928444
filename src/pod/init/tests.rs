//! pid 1 as a plain process: it obeys, reports, reaps; no namespaces needed for that.

use super::*;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::Read;

/// pid 1 run as a plain child of the test, with the test as its monitor.
struct Init {
    child: std::process::Child,
    socket: OwnedFd,
}

impl Init {
    fn start() -> Init {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let image = image().unwrap();
        // Above the numbers that pid 1 wants, and inherited by the shell.
        let high = |fd: OwnedFd| nix::fcntl::fcntl(&fd, nix::fcntl::F_DUPFD(20)).unwrap();
        let (s, i) = (high(theirs), high(image));
        // The shell arranges the descriptors as the launcher does; signalfd and mask are made by the launcher alone,
        // so this one gets /dev/null for a signalfd: always readable, so it reaps at every wake-up.
        let script = format!("exec 3<&{s} {s}<&- 4</dev/null 5>/dev/null; exec /proc/self/fd/{i}");
        let child = std::process::Command::new("bash").args(["-c", &script]).spawn().unwrap();
        nix::unistd::close(s).unwrap();
        nix::unistd::close(i).unwrap();
        Init { child, socket: ours }
    }

    fn next(&self) -> (Said, Vec<OwnedFd>) {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(), 1, "pid 1 says nothing");
        let mut buf = [0; 4096];
        let (n, fds) = seqpacket::recv(&self.socket, &mut buf).unwrap();
        (said(&buf[..n]).unwrap(), fds)
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn shell(plan: &mut Plan, script: &str) {
    let path = plan.string("/bin/sh").unwrap();
    let argv = plan.strings(&["sh".into(), "-c".into(), script.into()]).unwrap();
    let envp = plan.strings(&["A=b".into()]).unwrap();
    plan.try_call("execute", libc::SYS_execve, &[path.into(), argv.into(), envp.into()]);
}

#[test]
fn the_image_is_small_and_has_its_syscall() {
    assert!(IMAGE.len() < 20 << 10, "{} bytes", IMAGE.len());
    assert!(syscall_address() > 0x1f00_0000_0000);
}

#[test]
fn it_forks_what_it_is_told_and_reaps() {
    let init = Init::start();
    assert_eq!(init.next().0, Said::Hello);
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let mut plan = Plan::new();
    plan.call("duplicate", libc::SYS_dup3, &[Arg::Fd(0), 1u64.into(), 0u64.into()]);
    shell(&mut plan, "echo $A; exit 3");
    let file = plan.send(&init.socket, 7, &[write.as_fd()]).unwrap();
    drop(write);
    let (said, fds) = init.next();
    let Said::Forked { id: 7, child: Ok(pid) } = said else { panic!("{said:?}") };
    assert_eq!(fds.len(), 1, "a pidfd comes along");
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, "b\n");
    assert_eq!(plan.outcome(&file).unwrap(), Outcome::Executed);
    assert_eq!(init.next().0, Said::Exited { pid, status: 3 << 8, childless: true });
}

#[test]
fn a_failure_names_its_call() {
    let init = Init::start();
    assert_eq!(init.next().0, Said::Hello);
    let mut plan = Plan::new();
    let nowhere = plan.string("/nowhere").unwrap();
    plan.try_call("drop", libc::SYS_chdir, &[nowhere.into()]);
    plan.call("enter the directory", libc::SYS_chdir, &[nowhere.into()]);
    shell(&mut plan, "exit 0");
    let file = plan.send(&init.socket, 1, &[]).unwrap();
    let Said::Forked { child: Ok(pid), .. } = init.next().0 else { panic!() };
    assert_eq!(init.next().0, Said::Exited { pid, status: 127 << 8, childless: true });
    let failed = Outcome::Failed { what: "enter the directory", errno: Errno::ENOENT };
    assert_eq!(plan.outcome(&file).unwrap(), failed);
}

#[test]
fn of_several_tries_the_telling_one_is_told() {
    let init = Init::start();
    assert_eq!(init.next().0, Said::Hello);
    let mut plan = Plan::new();
    let argv = plan.strings(&["x".into()]).unwrap();
    for path in ["/nowhere/x", "/etc/passwd", "/nowhere/y"] {
        let path = plan.string(path).unwrap();
        plan.try_call("execute", libc::SYS_execve, &[path.into(), argv.into(), 0u64.into()]);
    }
    let file = plan.send(&init.socket, 1, &[]).unwrap();
    let Said::Forked { child: Ok(_), .. } = init.next().0 else { panic!() };
    let Said::Exited { .. } = init.next().0 else { panic!() };
    assert_eq!(plan.outcome(&file).unwrap(), Outcome::Failed { what: "execute", errno: Errno::EACCES });
}

#[test]
fn a_child_is_not_the_last_while_another_runs() {
    let init = Init::start();
    assert_eq!(init.next().0, Said::Hello);
    let (stay, go) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let mut plan = Plan::new();
    plan.call("duplicate", libc::SYS_dup3, &[Arg::Fd(0), 0u64.into(), 0u64.into()]);
    shell(&mut plan, "read x");
    plan.send(&init.socket, 1, &[stay.as_fd()]).unwrap();
    let Said::Forked { child: Ok(first), .. } = init.next().0 else { panic!() };
    let mut plan = Plan::new();
    shell(&mut plan, "exit 0");
    plan.send(&init.socket, 2, &[]).unwrap();
    let Said::Forked { child: Ok(second), .. } = init.next().0 else { panic!() };
    assert_eq!(init.next().0, Said::Exited { pid: second, status: 0, childless: false });
    drop((stay, go));
    assert!(matches!(init.next().0, Said::Exited { pid, childless: true, .. } if pid == first));
}

#[test]
fn it_ends_with_its_monitor() {
    let mut init = Init::start();
    assert_eq!(init.next().0, Said::Hello);
    let (other, _) = seqpacket::pair().unwrap();
    init.socket = other;
    assert_eq!(init.child.wait().unwrap().code(), Some(1));
}
