//! How pods end, on the real kernel: signalled, stopped, killed, started again, their monitors and starters killed.

mod common;

use common::podhost::*;
use common::until;
use podmig::base::spec::{Restart, StartType};
use podmig::pod::client::Client;
use podmig::pod::launch;
use podmig::pod::store::Status;
use podmig::sandbox::space::Clocks;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn signals_reach_the_command() {
    let mut host = Host::new();
    host.sh("s", "trap 'echo got; exit 4' USR1; echo up; while :; do sleep 0.05; done").unwrap();
    until(LIMIT, "the trap", || host.log("s").contains("up").then_some(()));
    host.client("s").signal(libc::SIGUSR1).unwrap();
    assert_eq!(host.ended("s"), 4);
    assert!(host.log("s").contains("got"));
}

#[test]
fn stop_asks_then_ends() {
    let mut host = Host::new();
    host.sh("polite", "trap 'exit 3' TERM; while :; do sleep 0.05; done").unwrap();
    host.sh("deaf", "trap '' TERM; while :; do sleep 1; done").unwrap();
    host.client("polite").stop(Duration::from_secs(10)).unwrap();
    assert_eq!(host.record("polite").exit_status, Some(3));
    let begin = Instant::now();
    host.client("deaf").stop(Duration::from_millis(200)).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(200));
    assert_eq!(host.record("deaf").exit_status, Some(137));
    assert_eq!(host.record("deaf").status, Status::Exited);
}

#[test]
fn the_starters_end_does_not_touch_the_pod() {
    let mut host = Host::new();
    let started = host.sh("stay", "while :; do echo beat; sleep 0.05; done").unwrap();
    drop(started);
    let before = host.log("stay").len();
    until(LIMIT, "more output", || (host.log("stay").len() > before).then_some(()));
    host.client("stay").kill().unwrap();
    assert_eq!(host.record("stay").exit_status, Some(137));
}

#[test]
fn restart_is_by_policy() {
    let mut host = Host::new();
    let file = host.dir.path().join("count");
    let script = format!(
        "echo x >> {f}; test $(wc -l < {f}) -ge 3 && sleep 0.3 && exit 0; sleep 0.2; exit 1",
        f = file.display()
    );
    let mut spec = host.spec("again", &["sh", "-c", &script]);
    spec.restart = Restart::OnFailure;
    host.start(spec).unwrap();
    assert_eq!(host.ended("again"), 0);
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 3);
    let mut spec = host.spec("always", &["sh", "-c", "sleep 0.2"]);
    spec.restart = Restart::Always;
    host.start(spec).unwrap();
    let first = host.record("always").started.unwrap();
    until(LIMIT, "a restart", || host.record("always").started.filter(|t| *t > first));
    host.client("always").stop(Duration::from_secs(5)).unwrap();
    assert_eq!(host.record("always").status, Status::Exited);
}

#[test]
fn rm_removes_at_the_end_and_start_again_keeps_the_id() {
    let mut host = Host::new();
    let mut spec = host.spec("gone", &["sh", "-c", "sleep 0.2"]);
    spec.rm = true;
    host.start(spec).unwrap();
    until(LIMIT, "its removal", || host.store.find("gone").is_err().then_some(()));
    host.sh("back", "sleep 0.2; exit 2").unwrap();
    assert_eq!(host.ended("back"), 2);
    let id = host.record("back").spec.id;
    until(LIMIT, "the first monitor's end", || host.record("back").monitor.is_none().then_some(()));
    launch::start_again(&host.store, &id, Host::io()).unwrap();
    assert_eq!(host.record("back").status, Status::Running);
    assert_eq!(host.ended("back"), 2);
}

#[test]
fn a_killed_monitor_takes_the_pod_along() {
    let mut host = Host::new();
    host.sh("lost", "sleep 100").unwrap();
    let record = host.record("lost");
    let (monitor, init) = (record.monitor.clone().unwrap(), record.init_pid.unwrap());
    let pid = nix::unistd::Pid::from_raw(monitor.pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    until(LIMIT, "the pod's end", || (!Path::new(&format!("/proc/{init}/ns/pid")).exists()).then_some(()));
    until(LIMIT, "the record", || (host.record("lost").status == Status::Lost).then_some(()));
    assert!(Client::connect(&host.store, &record).is_err());
    podmig::pod::monitor::sweep(&host.store, &record).unwrap();
    podmig::pod::monitor::sweep(&host.store, &record).unwrap();
    assert!(host.groups(&record.spec).is_empty());
    launch::start_again(&host.store, &record.spec.id, Host::io()).unwrap();
}

#[test]
fn a_paused_pod_stands_still() {
    let mut host = Host::new();
    host.sh("p", "while :; do echo beat; sleep 0.02; done").unwrap();
    until(LIMIT, "output", || host.log("p").contains("beat").then_some(()));
    let mut client = host.client("p");
    client.pause().unwrap();
    client.pause().unwrap();
    assert_eq!(host.record("p").status, Status::Paused);
    let group = &host.groups(&host.specs[0])[0].join("pod");
    assert_eq!(fs::read_to_string(group.join("cgroup.freeze")).unwrap(), "1\n");
    let f = client.exec(&exec_spec(&["true"]), None).unwrap_err();
    assert!(f.message.contains("paused"), "{f}");
    client.resume().unwrap();
    client.resume().unwrap();
    let before = host.log("p").len();
    until(LIMIT, "more output", || (host.log("p").len() > before).then_some(()));
    client.pause().unwrap();
    client.stop(Duration::from_secs(10)).unwrap();
    assert_eq!(host.record("p").exit_status, Some(143));
    host.sh("q", "sleep 100").unwrap();
    let mut client = host.client("q");
    client.pause().unwrap();
    client.kill().unwrap();
    assert_eq!(host.record("q").exit_status, Some(137));
}

/// The verbs that end a pod, while it is in each of its states; and its monitor killed in each.
#[test]
fn killed_in_every_state_it_leaves_nothing() {
    let mut host = Host::new();
    // While it waits for its daemon, for READY=1, and for its grace to pass.
    for (i, kind) in [StartType::Forking, StartType::Notify, StartType::Exec].into_iter().enumerate() {
        for hard in [false, true] {
            let name = format!("k{i}{}", u8::from(hard));
            let mut spec = host.spec(&name, &["sleep", "100"]);
            spec.start_type = kind;
            spec.grace_ms = 60_000;
            host.specs.push(spec.clone());
            let store = host.store.clone();
            let starter =
                std::thread::spawn(move || launch::start(&store, spec, Host::io()).map(|s| s.ended));
            let record =
                until(LIMIT, "the command", || host.store.find(&name).ok().filter(|r| r.cmd_pid.is_some()));
            if hard {
                let pid = nix::unistd::Pid::from_raw(record.monitor.clone().unwrap().pid);
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
                let f = starter.join().unwrap().unwrap_err();
                assert!(f.message.contains("monitor ended"), "{f}");
            } else {
                host.client(&name).kill().unwrap();
                assert_eq!(starter.join().unwrap().unwrap(), Some(137));
            }
            let init = record.init_pid.unwrap();
            until(LIMIT, "the end of its processes", || {
                (!Path::new(&format!("/proc/{init}/ns/pid")).exists()).then_some(())
            });
        }
    }
    // While it waits to be started again.
    let mut spec = host.spec("r", &["sh", "-c", "sleep 0.2; exit 1"]);
    spec.restart = Restart::Always;
    host.start(spec).unwrap();
    until(LIMIT, "the pause before a restart", || host.record("r").init_pid.is_none().then_some(()));
    host.client("r").kill().unwrap();
    assert_eq!(host.record("r").status, Status::Exited);
}

/// The starter killed at some moment of the start: the pod is up or there is none, never a part of one.
#[test]
fn a_starter_that_dies_leaves_a_whole_pod_or_none() {
    let mut host = Host::new();
    let exe = env!("CARGO_BIN_EXE_podmig");
    for i in 0..12u64 {
        let name = format!("s{i}");
        let root = host.dir.path().to_str().unwrap().to_owned();
        let args = ["--root", &root, "start", "--net", "none", "--name", &name, "--", "sleep", "100"];
        let mut child = std::process::Command::new(exe).args(args).spawn().unwrap();
        let moment = Instant::now() + Duration::from_micros(4000 * i);
        until(LIMIT, "the moment", || (Instant::now() >= moment).then_some(()));
        let _ = child.kill();
        child.wait().unwrap();
        // Whatever is there comes to rest: a running command, or nothing.
        let record = until(LIMIT, "a whole pod or none", || {
            // Under the lock: a monitor may be about to make the reservation its own.
            let _names = host.store.lock_names().unwrap();
            match host.store.find(&name) {
                Err(_) => Some(None),
                Ok(r) if r.cmd_pid.is_some() => Some(Some(r)),
                Ok(_) => None,
            }
        });
        if let Some(record) = record {
            host.specs.push(record.spec.clone());
            host.client(&name).kill().unwrap();
        }
    }
}

fn incoming(host: &mut Host, name: &str) -> (Client, podmig::pod::monitor::Prepared) {
    let spec = host.spec(name, &["true"]);
    host.specs.push(spec.clone());
    let record = host.store.reserve_incoming(&spec, 2).unwrap();
    let clocks = Clocks { monotonic_ns: 3_600_000_000_123, boottime_ns: 7_200_000_000_000 };
    launch::incoming(&host.store, &record, clocks, Host::io().exe).unwrap()
}

/// An arriving pod: everything but its processes; gone when whoever built it is gone.
#[test]
fn an_arriving_pod_is_made_without_a_command() {
    let mut host = Host::new();
    let (client, prepared) = incoming(&mut host, "in");
    let init = prepared.info.init_pid.unwrap();
    assert_eq!(host.record("in").status, Status::Incoming);
    assert_eq!(prepared.ports.len(), 3);
    assert_eq!(prepared.info.ports.len(), 3);
    let offsets = fs::read_to_string(format!("/proc/{init}/timens_offsets")).unwrap();
    let offsets: Vec<&str> = offsets.split_whitespace().collect();
    assert_eq!(offsets, ["monotonic", "3600", "123", "boottime", "7200", "0"]);
    let fds = fs::read_dir(format!("/proc/{init}/fd")).unwrap().count();
    assert!(fds <= 6, "{fds} descriptors in pid 1");
    let group = Path::new("/sys/fs/cgroup/unified").join(&prepared.info.cgroup);
    if group.exists() {
        assert_eq!(fs::read_to_string(group.join("cgroup.procs")).unwrap(), format!("{init}\n"));
    }
    drop(client);
    until(LIMIT, "its end", || (!Path::new(&format!("/proc/{init}/ns/pid")).exists()).then_some(()));
    until(LIMIT, "its name", || host.store.find("in").is_err().then_some(()));
}
