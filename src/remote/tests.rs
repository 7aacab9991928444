//! Sessions on real programs: they see nothing, whatever happens to us.

use super::gadget::mappings;
use super::victim::{Victim, helper, stop_threads, until};
use super::*;
use crate::base::AddrRange;
use crate::kernel::status::{self, sigbit};
use nix::sys::signal::Signal;
use std::io::BufRead;
use std::time::Duration;

fn ids_batch() -> (Batch, CallIx, CallIx) {
    let mut b = Batch::new();
    let pid = b.call(libc::SYS_getpid, &[]);
    let tid = b.call(libc::SYS_gettid, &[]);
    (b, pid, tid)
}

fn layout(pid: i32) -> Vec<(AddrRange, String)> {
    mappings(pid).expect("maps").into_iter().map(|m| (m.range, m.name)).collect()
}

fn scratches(pid: i32) -> Vec<AddrRange> {
    layout(pid).into_iter().map(|m| m.0).filter(|r| is_scratch(*r)).collect()
}

/// Opens a session, does something in every thread, with one large batch, closes it.
fn visit(pid: i32, threads: &mut [Stopped]) -> Result<()> {
    let siblings: Vec<i32> = threads.iter().map(Stopped::tid).collect();
    let (first, rest) = threads.split_first_mut().expect("a leader");
    let mut session = Session::open(first, &siblings)?;
    let (b, got_pid, got_tid) = ids_batch();
    let r = session.run(&b)?;
    assert_eq!((r.ret(got_pid), r.ret(got_tid)), (Ok(pid.into()), Ok(pid.into())));
    for other in rest {
        let tid = other.tid();
        assert_eq!(session.run_on(other, &b)?.ret(got_tid), Ok(tid.into()));
    }
    let mut b = Batch::new();
    let far = b.out(300_000);
    let random = b.call(libc::SYS_getrandom, &[far.into(), 300_000.into(), 0.into()]);
    assert_eq!(session.run(&b)?.ret(random), Ok(300_000));
    session.close()
}

#[test]
fn a_session_leaves_no_trace() {
    let mut victim = Victim::work(5, &[]);
    for round in 0..20 {
        let mut threads = stop_threads(victim.pid());
        let before = (layout(victim.pid()), all_regs(&threads));
        visit(victim.pid(), &mut threads).expect("visit");
        assert_eq!((layout(victim.pid()), all_regs(&threads)), before, "round {round}");
        threads.into_iter().for_each(|t| t.detach().expect("detach"));
        victim.progresses("after a session");
    }
}

fn all_regs(threads: &[Stopped]) -> Vec<(String, u64, Vec<u8>)> {
    let one = |t: &Stopped| {
        (format!("{:?}", t.regs().expect("regs")), t.sigmask().expect("mask"), t.xstate().expect("xstate"))
    };
    threads.iter().map(one).collect()
}

#[test]
fn nothing_writable_and_executable_is_respected() {
    let mut victim = Victim::work(2, &["mdwe"]);
    let mut threads = stop_threads(victim.pid());
    visit(victim.pid(), &mut threads).expect("visit");
    drop(threads);
    victim.progresses("under MDWE");
    assert_eq!(scratches(victim.pid()), []);
}

#[test]
fn seccomp_is_asked_first() {
    let mut victim = Victim::work(2, &["seccomp"]);
    let mut threads = stop_threads(victim.pid());
    visit(victim.pid(), &mut threads).expect("allowed calls");
    let siblings: Vec<i32> = threads.iter().map(Stopped::tid).collect();
    let mut session = Session::open(&mut threads[0], &siblings).expect("open");
    let mut b = Batch::new();
    b.call(libc::SYS_getppid, &[]);
    let refused = session.run(&b);
    assert!(matches!(refused, Err(Error::Seccomp { nr: libc::SYS_getppid, .. })), "{refused:?}");
    session.close().expect("close");
    drop(threads);
    victim.progresses("with a filter");

    let mut victim = Victim::work(1, &["nommap"]);
    let mut threads = stop_threads(victim.pid());
    let refused = Session::open(&mut threads[0], &[]).map(drop);
    assert!(matches!(refused, Err(Error::Seccomp { nr: libc::SYS_mmap, .. })), "{refused:?}");
    drop(threads);
    victim.progresses("with mmap refused");
}

#[test]
fn a_running_sibling_forbids_a_session() {
    let victim = Victim::work(2, &[]);
    let mut leader =
        Running::seize(victim.pid(), 0).and_then(|r| r.stop(Duration::from_secs(5))).expect("stop");
    let refused = Session::open(&mut leader, &[]).map(drop);
    assert!(matches!(refused, Err(Error::SiblingRuns { .. })), "{refused:?}");
}

#[test]
fn a_stopped_process_stays_stopped() {
    let mut victim = Victim::work(3, &[]);
    victim.signal(Signal::SIGSTOP);
    until("the stop", || victim.state() == 'T');
    for _ in 0..3 {
        let mut threads = stop_threads(victim.pid());
        assert!(threads.iter().all(|t| t.group_stop() == Some(libc::SIGSTOP)));
        visit(victim.pid(), &mut threads).expect("visit");
        assert!(threads.iter().all(|t| t.group_stop() == Some(libc::SIGSTOP)));
        drop(threads);
        until("the stop again", || victim.state() == 'T');
    }
    victim.signal(Signal::SIGCONT);
    victim.progresses("continued");
}

#[test]
fn signals_sent_meanwhile_arrive_once_after() {
    let mut victim = Victim::work(3, &["handler"]);
    let mut threads = stop_threads(victim.pid());
    victim.signal(Signal::SIGUSR1);
    for _ in 0..3 {
        // nix's kill has no real-time signals.
        let status = std::process::Command::new("kill")
            .args(["-s", "RTMIN", &victim.pid().to_string()])
            .status()
            .expect("kill");
        assert!(status.success());
    }
    visit(victim.pid(), &mut threads).expect("visit");
    assert_eq!(threads[0].peek_siginfo(true).expect("peek").len(), 4);
    assert_eq!((victim.line(3)[0], victim.line(3)[1]), (0, 0));
    drop(threads);
    until("the handlers", || (victim.line(3)[0], victim.line(3)[1]) == (1, 3));
    victim.progresses("after signals");
    assert_eq!((victim.line(3)[0], victim.line(3)[1]), (1, 3));
}

/// Runs a batch that sleeps for 30 ms while `act` runs in another thread of ours once the sleep has begun.
fn sleeping_batch(victim: &Victim, threads: &mut [Stopped], act: impl Fn(i32) + Sync) {
    let pid = victim.pid();
    let siblings: Vec<i32> = threads.iter().map(Stopped::tid).collect();
    let mut session = Session::open(&mut threads[0], &siblings).expect("open");
    let mut b = Batch::new();
    let mut time = [0u8; 16];
    time[8..12].copy_from_slice(&30_000_000u32.to_le_bytes());
    let time = b.data(&time);
    let sleep = b.call(libc::SYS_clock_nanosleep, &[0.into(), 0.into(), time.into(), 0.into()]);
    let r = std::thread::scope(|scope| {
        scope.spawn(|| {
            until("the batch asleep", || {
                std::fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|s| s.starts_with("230 "))
            });
            act(pid);
        });
        session.run(&b).expect("run")
    });
    assert_eq!(r.ret(sleep), Ok(0));
    session.close().expect("close");
}

fn send(signal: Signal) -> impl Fn(i32) + Sync {
    move |pid| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("kill")
}

#[test]
fn a_foreign_marker_signal_is_not_eaten() {
    let mut victim = Victim::work(2, &["blocked"]);
    let mut threads = stop_threads(victim.pid());
    sleeping_batch(&victim, &mut threads, send(Signal::SIGURG));
    drop(threads);
    let pending = status::of(victim.pid()).expect("status");
    assert_ne!((pending.shd_pending | pending.sig_pending) & sigbit(libc::SIGURG), 0);
    victim.progresses("after a foreign marker");
}

#[test]
fn a_sigstop_in_a_batch_takes_effect_after_it() {
    let mut victim = Victim::work(2, &[]);
    let mut threads = stop_threads(victim.pid());
    sleeping_batch(&victim, &mut threads, send(Signal::SIGSTOP));
    drop(threads);
    until("the stop", || victim.state() == 'T');
    victim.signal(Signal::SIGCONT);
    victim.progresses("after SIGSTOP and SIGCONT");
    // One that was undone before the end is not sent again.
    let mut threads = stop_threads(victim.pid());
    sleeping_batch(&victim, &mut threads, |pid| {
        send(Signal::SIGSTOP)(pid);
        until("SIGSTOP taken", || {
            status::of(pid).is_ok_and(|s| (s.shd_pending | s.sig_pending) & sigbit(libc::SIGSTOP) == 0)
        });
        send(Signal::SIGCONT)(pid);
    });
    drop(threads);
    victim.progresses("after SIGSTOP undone");
}

#[test]
fn a_critical_section_that_was_disturbed_is_aborted() {
    let victim = Victim::start(super::victim::RSEQ, 3, &[]);
    until("the first pass", || victim.line(0)[0] > 0 || victim.line(0)[1] > 0);
    if victim.line(0)[1] == 77 {
        eprintln!("the C library registers no rseq area here");
        return;
    }
    let mut inside = 0;
    until("five stops in a critical section", || {
        let mut threads = stop_threads(victim.pid());
        let [_, _, start, length] = victim.line(0);
        let regs = threads[0].regs().expect("regs");
        let hit = regs.rip.wrapping_sub(start) < length;
        let (committed, aborted) = (victim.line(1)[0], victim.line(2)[0]);
        if hit {
            assert!(threads[0].portable_regs().expect("portable").rip.wrapping_sub(start) >= length);
        }
        visit(victim.pid(), &mut threads).expect("visit");
        drop(threads);
        if hit {
            inside += 1;
            until("the abort", || victim.line(2)[0] > aborted || victim.line(1)[0] > committed);
            // Another pass may have been committed meanwhile, but not this one.
            assert!(victim.line(2)[0] > aborted, "stop {inside}: committed as if undisturbed");
        }
        inside >= 5
    });
}

#[test]
fn a_traced_task_names_its_tracer() {
    let victim = Victim::work(1, &[]);
    let mut other =
        helper("remote::tests::every_thread_is_held", &[("PODMIG_TEST_VICTIM", victim.pid().to_string())]);
    wait_ready(&mut other);
    let error = Running::seize(victim.pid(), 0).map(drop).expect_err("it is traced");
    assert!(matches!(&error, Error::Traced { tracer, .. } if *tracer != 0), "{error}");
    let _ = other.kill();
    let _ = other.wait();
}

fn wait_ready(child: &mut std::process::Child) {
    let mut out = std::io::BufReader::new(child.stdout.take().expect("stdout"));
    let mut line = String::new();
    loop {
        line.clear();
        assert_ne!(out.read_line(&mut line).expect("read"), 0, "helper ended");
        if line.contains("at work") {
            child.stdout = Some(out.into_inner());
            return;
        }
    }
}

/// Stops a victim, of its own or, as a helper in a process of its own, another test's, which it then holds until killed.
#[test]
fn every_thread_is_held() {
    let given = std::env::var("PODMIG_TEST_VICTIM").ok().map(|pid| pid.parse::<i32>().expect("a pid"));
    let own = given.is_none().then(|| Victim::work(2, &[]));
    let pid = given.or(own.as_ref().map(Victim::pid)).expect("a victim");
    let threads = stop_threads(pid);
    let all = status::threads(pid).expect("threads");
    assert_eq!(all.len(), threads.len());
    assert!(all.iter().all(|&tid| status::of(tid).is_ok_and(|s| s.state == 't')));
    println!("at work");
    while given.is_some() {
        std::thread::park();
    }
}

#[test]
fn a_task_that_died_is_gone() {
    let mut victim = Victim::work(1, &[]);
    let mut threads = stop_threads(victim.pid());
    victim.child.kill().expect("kill");
    let failed = visit(victim.pid(), &mut threads);
    assert!(matches!(failed, Err(Error::Gone(_))), "{failed:?}");
    drop(threads);
    victim.child.wait().expect("reaped");
    assert!(matches!(Running::seize(victim.pid(), 0), Err(Error::Gone(_))));
}
