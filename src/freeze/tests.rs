//! Pods stopped, paused, released: on the real kernel.

use super::*;
use crate::kernel::cgroup::{Cgroup, Hierarchies};
use crate::remote::victim::{CALLS, Victim, helper, until};
use crate::remote::{Batch, is_scratch};
use std::io::BufRead;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const FAMILY: &str = include_str!("../remote/victims/family.c");

/// A cgroup with a victim in it; both go at the end.
struct Pod {
    victim: Victim,
    group: Cgroup,
    tasks: PodTasks,
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.group.kill_all();
        let _ = self.victim.child.wait();
        let _ = self.group.remove();
    }
}

fn hierarchies(v1: bool) -> Hierarchies {
    let all = Hierarchies::detect().expect("cgroups");
    if v1 { Hierarchies { v2: None, ..all } } else { all }
}

/// The victim is started in the group (its children with it).
fn pod(h: &Hierarchies, source: &str, threads: usize, args: &[&str]) -> Pod {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("pmengine-{}-f{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let group = Cgroup::create(h, &PathBuf::from(name)).expect("cgroup");
    let victim = Victim::start_in(&group, source, threads, args);
    let tasks = PodTasks { cgroup: group.freezer(), init: 0 };
    Pod { victim, group, tasks }
}

fn work(threads: usize) -> Pod {
    let mut pod = pod(&hierarchies(false), crate::remote::victim::WORK, threads, &[]);
    pod.victim.progresses("start");
    pod
}

fn family(threads: usize, mode: &str) -> Pod {
    pod(&hierarchies(false), FAMILY, threads, &[mode])
}

/// What is done to a program that must not notice.
fn visit(tasks: &PodTasks) {
    let mut pod = stop_all(tasks).expect("stop");
    for proc in &mut pod.procs {
        let (host_pid, pod_pid) = (proc.host_pid, proc.pod_pid);
        let (mut session, rest) = proc.session().expect("session");
        let mut b = Batch::new();
        let pid = b.call(libc::SYS_getpid, &[]);
        let tid = b.call(libc::SYS_gettid, &[]);
        assert_eq!(session.run(&b).expect("run").ret(pid), Ok(pod_pid.into()), "of {host_pid}");
        for thread in rest {
            let r = session.run_on(&mut thread.stopped, &b).expect("run on");
            assert_eq!(r.ret(tid), Ok(thread.pod_tid.into()));
        }
        session.close().expect("close");
    }
    pod.freeze_cgroup().expect("freeze");
    pod.release().expect("release");
}

/// `calls` with every thread asleep where it should be: (thread, name, number of the call).
struct Calls {
    pod: Pod,
    threads: Vec<(i32, String, String)>,
}

fn sleeping_in(tid: i32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/syscall")).ok()?;
    let state = status::of(tid).ok()?.state;
    (state == 'S').then(|| text.split(' ').next().unwrap_or("").trim().to_owned())
}

fn call_number(name: &str) -> i64 {
    match name {
        "epoll_wait" => libc::SYS_epoll_wait,
        "epoll_pwait" => libc::SYS_epoll_pwait,
        "epoll_pwait2" => libc::SYS_epoll_pwait2,
        "semop" => libc::SYS_semop,
        "semtimedop" => libc::SYS_semtimedop,
        "rt_sigtimedwait" => libc::SYS_rt_sigtimedwait,
        "io_getevents" => libc::SYS_io_getevents,
        "recv" => libc::SYS_recvfrom,
        "accept" => libc::SYS_accept,
        "send" => libc::SYS_sendto,
        "read" => libc::SYS_read,
        "poll" => libc::SYS_poll,
        "ppoll" => libc::SYS_ppoll,
        "select" => libc::SYS_pselect6,
        "futex" | "futex_timed" => libc::SYS_futex,
        "flock" => libc::SYS_flock,
        "wait4" => libc::SYS_wait4,
        "nanosleep" => libc::SYS_clock_nanosleep,
        other => panic!("unknown call {other}"),
    }
}

fn calls(h: &Hierarchies) -> Calls {
    let mut pod = pod(h, CALLS, 0, &[]);
    let mut threads = Vec::new();
    loop {
        let line = pod.victim.read_line();
        match line.split_once(' ') {
            Some((tid, name)) => threads.push((tid.parse::<i32>().expect("tid"), name.to_owned())),
            None if line == "ready" => break,
            None => assert!(!line.is_empty(), "victim ended"),
        }
    }
    let settled = |tid: i32, name: &str| {
        let nr = call_number(name).to_string();
        until(&format!("{name} asleep"), || sleeping_in(tid).is_some_and(|found| found == nr));
        nr
    };
    let threads =
        threads.into_iter().map(|(tid, name)| (tid, settled(tid, &name), name)).map(|(t, nr, n)| (t, n, nr));
    let threads = threads.collect();
    Calls { pod, threads }
}

impl Calls {
    /// Every thread is, or comes to be, asleep in the call it was in; the shortest one may be over.
    fn undisturbed(&self, when: &str) {
        for (tid, name, nr) in &self.threads {
            // 219: restart_syscall, for −516. A thread that ended has no status: only nanosleep may.
            let well = || match sleeping_in(*tid) {
                Some(found) => found == *nr || found == "219",
                None => name == "nanosleep" && status::of(*tid).is_err(),
            };
            let end = Instant::now() + Duration::from_secs(10);
            while !well() {
                let call = std::fs::read_to_string(format!("/proc/{tid}/syscall"));
                assert!(Instant::now() < end, "{when}: {name} is in {call:?}, {:?}", status::of(*tid));
                std::thread::yield_now();
            }
        }
    }

    /// All are woken in their proper way and find what they waited for.
    fn wake(mut self, when: &str) {
        self.pod.victim.say("wake");
        let mut wrong = Vec::new();
        loop {
            let line = self.pod.victim.read_line();
            if line == "end" {
                break;
            }
            assert!(!line.is_empty(), "victim ended, {when}");
            if !line.ends_with("right") {
                wrong.push(line);
            }
        }
        assert!(wrong.is_empty(), "{when}: {wrong:?}");
    }
}

#[test]
fn no_call_shows_a_pause() {
    for v1 in [false, true] {
        let h = hierarchies(v1);
        if v1 && !h.v1.contains_key("freezer") {
            continue;
        }
        let calls = calls(&h);
        for round in 0..20 {
            pause(&calls.pod.tasks).expect("pause");
            assert!(calls.pod.tasks.cgroup.is_frozen().expect("state"));
            resume(&calls.pod.tasks).expect("resume");
            calls.undisturbed(&format!("pause {round}, v1 {v1}"));
        }
        calls.wake("paused");
    }
}

#[test]
fn no_call_shows_a_batch() {
    for v1 in [false, true] {
        let h = hierarchies(v1);
        if v1 && !h.v1.contains_key("freezer") {
            continue;
        }
        let calls = calls(&h);
        for round in 0..20 {
            visit(&calls.pod.tasks);
            calls.undisturbed(&format!("visit {round}, v1 {v1}"));
        }
        calls.wake("visited");
    }
}

/// Visits a pod of its own a few times or, as a helper in a process of its own, another test's for ever, until killed.
#[test]
fn a_pod_is_visited_again_and_again() {
    if let Ok(path) = std::env::var("PODMIG_TEST_GROUP") {
        let group = Cgroup::open(&hierarchies(false), &PathBuf::from(path)).expect("open");
        let tasks = PodTasks { cgroup: group.freezer(), init: 0 };
        // The first takes longer: the program's text is searched.
        visit(&tasks);
        println!("at work");
        loop {
            visit(&tasks);
        }
    }
    let mut pod = work(5);
    for round in 0..10 {
        visit(&pod.tasks);
        pod.victim.progresses(&format!("visit {round}"));
    }
    assert_eq!(scratches(pod.victim.pid()), 0);
}

/// Runs a mover on `pod` in a process of its own and kills it after up to `within`; then does what a monitor does.
fn kill_a_mover(pod: &Pod, within: Duration, state: &mut u64) {
    let mut mover = helper(
        "freeze::tests::a_pod_is_visited_again_and_again",
        &[("PODMIG_TEST_GROUP", pod.group.rel().display().to_string())],
    );
    let mut out = std::io::BufReader::new(mover.stdout.take().expect("stdout"));
    let mut line = String::new();
    while !line.contains("at work") {
        line.clear();
        assert_ne!(out.read_line(&mut line).expect("read"), 0, "mover ended by itself");
    }
    let moment = Instant::now() + Duration::from_nanos(random(state) % within.as_nanos() as u64);
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
    mover.kill().expect("kill");
    // As a monitor does at the end of file: it may not be quite dead.
    let mut end = String::new();
    while out.read_line(&mut end).expect("read") > 0 {}
    resume(&pod.tasks).expect("resume");
    mover.wait().expect("wait");
}

/// A xorshift step: moments need to be random, not good.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock");
    let seed = now.as_nanos() as u64 | 1;
    println!("seed {seed}");
    seed
}

fn scratches(pid: i32) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let range = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let hex = |t| u64::from_str_radix(t, 16).ok();
        Some(crate::base::AddrRange::new(hex(start)?, hex(end)?))
    };
    maps.lines().filter_map(range).filter(|r| is_scratch(*r)).count()
}

#[test]
fn no_call_shows_the_death_of_a_mover() {
    let mut state = seed();
    let calls = calls(&hierarchies(false));
    for round in 0..30 {
        kill_a_mover(&calls.pod, Duration::from_millis(12), &mut state);
        calls.undisturbed(&format!("mover {round} killed"));
    }
    calls.wake("movers killed");
}

#[test]
fn a_program_survives_the_death_of_a_hundred_movers() {
    let mut state = seed();
    let mut pod = work(5);
    let mut orphans = 0;
    for round in 0..100 {
        kill_a_mover(&pod, Duration::from_millis(5), &mut state);
        orphans += scratches(pod.victim.pid());
        pod.victim.progresses(&format!("mover {round} killed"));
        for tid in status::threads(pod.victim.pid()).expect("threads") {
            assert_eq!(status::of(tid).expect("status").sig_blocked, 0, "mask after mover {round}");
        }
    }
    println!("{orphans} scratch areas were left in 100 rounds");
    assert!(orphans > 0, "no mover was killed in a session: the test tests nothing");
    visit(&pod.tasks);
    assert_eq!(scratches(pod.victim.pid()), 0, "orphans are removed at the next attach");
    pod.victim.progresses("at the end");
}

#[test]
fn nothing_is_missed_in_a_storm_of_forks() {
    let mut pod = family(4, "storm");
    pod.victim.progresses("start");
    for round in 0..50 {
        let stopped = stop_all(&pod.tasks).expect("stop");
        let known: Vec<i32> =
            stopped.procs.iter().flat_map(|p| p.threads.iter().map(|t| t.host_tid)).collect();
        for pid in pod.group.procs().expect("procs") {
            assert!(known.contains(&pid), "round {round}: {pid} is not stopped");
            assert_eq!(status::of(pid).expect("status").state, 't', "round {round}");
        }
        assert!(known.len() >= 4);
        stopped.release().expect("release");
        pod.victim.sound("storm");
    }
    pod.victim.progresses("at the end");
}

#[test]
fn a_vfork_parent_is_waited_for() {
    let mut pod = family(1, "vfork");
    pod.victim.progresses("start");
    for _ in 0..20 {
        visit(&pod.tasks);
        pod.victim.sound("vfork");
    }
    pod.victim.progresses("at the end");
}

#[test]
fn a_vfork_child_that_never_execs_is_named() {
    let pod = family(1, "stuck");
    until("the child", || pod.victim.line(0)[0] == 2);
    let error = stop_all(&pod.tasks).map(drop).expect_err("cannot stop");
    let child = status::children(pod.victim.pid()).expect("children")[0];
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", pod.victim.pid())), "{text}");
    assert!(text.contains(&format!("vfork child {child}")), "{text}");
    assert!(!pod.tasks.cgroup.is_frozen().expect("state"));
    assert_eq!(status::of(child).expect("status").tracer, 0);
}

#[test]
fn the_eintr_of_a_handler_is_kept() {
    for paused in [false, true] {
        let pod = family(1, "handler");
        let pid = pod.victim.pid();
        until("epoll_wait", || sleeping_in(pid).is_some_and(|nr| nr == libc::SYS_epoll_wait.to_string()));
        let stopped = stop_all(&pod.tasks).expect("stop");
        if paused {
            stopped.leave_frozen().expect("leave frozen");
            pod.victim.signal(nix::sys::signal::SIGUSR1);
            resume(&pod.tasks).expect("resume");
        } else {
            pod.victim.signal(nix::sys::signal::SIGUSR1);
            stopped.release().expect("release");
        }
        until("the handler's flag to end the loop", || pod.victim.line(0)[0] == 2);
        pod.victim.sound("handler");
    }
}

#[test]
fn a_paused_pod_stays_paused_through_a_visit() {
    let mut pod = work(2);
    pause(&pod.tasks).expect("pause");
    pause(&pod.tasks).expect("twice does no harm");
    let before = pod.victim.line(0);
    visit(&pod.tasks);
    assert!(pod.tasks.cgroup.is_frozen().expect("state"));
    assert_eq!(pod.victim.line(0), before);
    resume(&pod.tasks).expect("resume");
    resume(&pod.tasks).expect("twice does no harm");
    pod.victim.progresses("resumed");
}

#[test]
fn a_traced_task_is_named_and_the_rest_runs() {
    let mut pod = work(3);
    let tid = *status::threads(pod.victim.pid()).expect("threads").last().expect("one");
    std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            let mine = crate::remote::Running::seize(tid, 0).expect("seize");
            tell.send(()).expect("send");
            let _ = ended.recv();
            drop(mine);
        });
        told.recv().expect("seized");
        let error = stop_all(&pod.tasks).map(drop).expect_err("traced");
        assert!(matches!(&error, Error::Task(remote::Error::Traced { tid: t, .. }) if *t == tid), "{error}");
        end.send(()).expect("send");
    });
    assert!(!pod.tasks.cgroup.is_frozen().expect("state"));
    pod.victim.progresses("after a refusal");
}

#[test]
fn zombies_and_dead_leaders_are_told() {
    let pod_ = family(1, "zombie");
    until("the child's end", || {
        let children = status::children(pod_.victim.pid()).unwrap_or_default();
        children.iter().any(|&c| status::of(c).is_ok_and(|s| s.state == 'Z'))
    });
    let zombie = status::children(pod_.victim.pid()).expect("children")[0];
    let stopped = stop_all(&pod_.tasks).expect("stop");
    assert!(stopped.zombies().expect("zombies").contains(&(zombie, zombie)));
    drop(stopped);

    let pod_ = family(1, "leader");
    until("the leader's end", || pod_.victim.state() == 'Z');
    let stopped = stop_all(&pod_.tasks).expect("stop");
    assert_eq!(
        (stopped.procs.len(), stopped.procs[0].leader_dead, stopped.procs[0].threads.len()),
        (1, true, 1)
    );
    stopped.release().expect("release");
    let before = pod_.victim.line(0)[0];
    until("the second thread", || pod_.victim.line(0)[0] > before);
}

/// Stops a process of 1000 threads, and one of 5, and prints what each step costs (`--nocapture`). The times are not judged.
#[test]
fn a_thousand_threads_are_stopped() {
    for (threads, rounds) in [(5, 50), (1000, 3)] {
        let pod = family(threads, "many");
        until("all threads", || pod.victim.line(0)[0] == 2);
        let mut sums = [Duration::ZERO; 5];
        for _ in 0..rounds {
            let mut at = Instant::now();
            let mut lap = |n: usize| {
                sums[n] += at.elapsed();
                at = Instant::now();
            };
            let mut stopped = stop_all(&pod.tasks).expect("stop");
            lap(0);
            assert_eq!(stopped.procs[0].threads.len(), threads);
            let (mut session, _) = stopped.procs[0].session().expect("session");
            let mut b = Batch::new();
            for signal in 1..65 {
                let out = b.out(32);
                b.call(libc::SYS_rt_sigaction, &[signal.into(), 0.into(), out.into(), 8.into()]);
            }
            lap(1);
            session.run(&b).expect("run");
            lap(2);
            session.close().expect("close");
            lap(3);
            stopped.release().expect("release");
            lap(4);
        }
        let us = sums.map(|s| s.as_micros() / rounds);
        println!(
            "{threads} threads: stop {} open {} batch of 64 {} close {} release {} us",
            us[0], us[1], us[2], us[3], us[4]
        );
    }
}
