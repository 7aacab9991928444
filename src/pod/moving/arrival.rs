//! The target's side: the record decides, and the monitor alone brings the pod to life.

use super::{Arrival, Reply, Request, late_locks};
use crate::base::{Decision, MoveId};
use crate::kernel::sched::Haste;
use crate::net::{Announcer, Frame, Hold, Replayer};
use crate::pod::decisions::Decisions;
use crate::pod::monitor::{ConnId, Monitor, Started};
use crate::pod::store::Status;
use crate::policy::handover::{Target, TargetAction, TargetEvent, target};
use crate::state::fd::restore::{self as fds, LateLock};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// A stage of the activation that takes longer is a line in the monitor's log.
const SLOW: Duration = Duration::from_secs(1);

/// A pod being built here.
pub struct Incoming {
    machine: Target,
    conn: Option<ConnId>,
    move_id: MoveId,
    deadline: Instant,
    sockets: Vec<(OwnedFd, fds::Waking)>,
    /// Still to be taken, and until when that is tried.
    pub(super) locks: Vec<LateLock>,
    pub(super) locks_until: Option<Instant>,
    arrival: Option<Arrival>,
    /// Its CMD, unless that is over.
    cmd: Option<Started>,
    frames: Vec<Frame>,
    /// Opened before the commit, dropped when there is time: both cost more than what they do.
    doors: Option<Doors>,
    /// From the last preparations to the thaw.
    haste: Option<Haste>,
    stages: Vec<(String, u64)>,
}

/// The hand on the hold, the way for captured frames into the pod's link, and the announcement.
struct Doors {
    hold: Hold,
    replayer: Option<Replayer>,
    announcer: Option<Announcer>,
}

/// A request of a worker.
pub fn handle(monitor: &mut Monitor, conn: ConnId, request: Request, fds: Vec<OwnedFd>) {
    let outcome = match request {
        Request::Arrive { move_id, deadline_ms } => arrive(monitor, conn, move_id, deadline_ms),
        Request::Query(move_id) => query(monitor, &move_id),
        Request::GiveUp => give_up(monitor, conn),
        _ if monitor.moving.arrival.as_ref().is_none_or(|a| a.conn != Some(conn)) => {
            Err("this connection is not building the pod".to_owned())
        }
        Request::Sockets(reuse) if reuse.len() == fds.len() => {
            if let Some(incoming) = &mut monitor.moving.arrival {
                incoming.sockets.extend(fds.into_iter().zip(reuse));
            }
            Ok(Reply::Done)
        }
        Request::Locks(locks) if locks.len() == fds.len() => {
            if let Some(incoming) = &mut monitor.moving.arrival {
                let lists = fds.into_iter().zip(locks);
                incoming.locks.extend(lists.map(|(fd, (locks, of))| LateLock { fd, locks, of }));
            }
            Ok(Reply::Done)
        }
        Request::Prepared(arrival) => prepared(monitor, arrival),
        Request::Own { frames } => own(monitor, frames),
        _ => Err("not a worker's request".to_owned()),
    };
    monitor.answer_move(conn, outcome.unwrap_or_else(Reply::Denied), Vec::new());
    // Whatever waits for a disk or another process comes after the answer: the source is waiting for it.
    if let Some(arrival) = monitor.moving.arrival.as_mut().filter(|i| i.machine == Target::Owner)
        && let Some(arrival) = arrival.arrival.take()
    {
        monitor.move_in(&arrival);
    }
}

fn arrive(monitor: &mut Monitor, conn: ConnId, move_id: MoveId, deadline_ms: u64) -> Result<Reply, String> {
    if monitor.moving.arrival.is_some() || monitor.record.status != Status::Incoming {
        return Err("nothing is to arrive here".to_owned());
    }
    // Its record finds no full disk when it counts.
    let begun = Decisions::new(&monitor.store.places.var).begin(&move_id);
    begun.map_err(|e| format!("the record of the move cannot be made: {}", crate::kernel::errno_text(&e)))?;
    let deadline = Instant::now() + Duration::from_millis(deadline_ms);
    monitor.moving.arrival = Some(Incoming {
        machine: Target::Incoming,
        conn: Some(conn),
        move_id,
        deadline,
        sockets: Vec::new(),
        locks: Vec::new(),
        locks_until: None,
        arrival: None,
        cmd: None,
        frames: Vec::new(),
        doors: None,
        haste: None,
        stages: Vec::new(),
    });
    monitor.wake_at(deadline);
    Ok(Reply::Done)
}

fn prepared(monitor: &mut Monitor, arrival: Arrival) -> Result<Reply, String> {
    let Some(pod) = &monitor.pod else { return Err("there is no pod".to_owned()) };
    match pod.cgroup.freezer().is_frozen() {
        Ok(true) => {}
        Ok(false) => return Err("the pod's control group is not frozen".to_owned()),
        Err(e) => return Err(e.to_string()),
    }
    let hold = Hold::open(pod.netns.as_fd(), &monitor.record.spec.net.mode).map_err(|e| e.to_string())?;
    let cmd = match arrival.cmd_host_pid {
        0 => None,
        host_pid => Some(monitor.process(host_pid).map_err(|f| f.to_string())?),
    };
    let announcer = monitor.announcer();
    let replayer = monitor.link().and_then(|link| match Replayer::open(link) {
        Ok(replayer) => Some(replayer),
        Err(e) => {
            monitor.complain(&format!("captured frames will not be replayed: {e}"));
            None
        }
    });
    monitor.put_input(&arrival.input, arrival.input_ended);
    if let Some(incoming) = &mut monitor.moving.arrival {
        incoming.arrival = Some(arrival);
        incoming.cmd = cmd;
        incoming.haste = Some(Haste::begin(false));
        incoming.doors = Some(Doors { hold, replayer, announcer });
    }
    match event(monitor, TargetEvent::Prepared)? {
        true => Ok(Reply::Done),
        false => Err("not at this stage".to_owned()),
    }
}

fn own(monitor: &mut Monitor, frames: Vec<Frame>) -> Result<Reply, String> {
    if let Some(incoming) = &mut monitor.moving.arrival {
        incoming.frames = frames;
    }
    let agreed = event(monitor, TargetEvent::Commit)?;
    let stages = monitor.moving.arrival.as_mut().map(|i| std::mem::take(&mut i.stages)).unwrap_or_default();
    if agreed {
        Ok(Reply::Activated { stages })
    } else {
        Err("the attempt was aborted before the commit came".into())
    }
}

/// Takes down what was made for a builder that gives up; answered when it is gone.
fn give_up(monitor: &mut Monitor, conn: ConnId) -> Result<Reply, String> {
    match monitor.moving.arrival.as_ref().map(|i| (i.conn, i.machine)) {
        Some((Some(owner), Target::Incoming | Target::Prepared)) if owner == conn => {
            event(monitor, TargetEvent::WorkerGone)?;
        }
        // Launched, but the building has not begun.
        None if monitor.launched_by(conn) => monitor.vanish(),
        _ => return Err("there is nothing to give up".to_owned()),
    }
    Ok(Reply::Done)
}

/// Has the attempt been decided? If not, it is aborted now, and for ever.
fn query(monitor: &mut Monitor, move_id: &MoveId) -> Result<Reply, String> {
    if monitor.moving.arrival.as_ref().is_none_or(|a| a.move_id != *move_id) {
        return Err("that attempt is not known here".to_owned());
    }
    event(monitor, TargetEvent::Query)?;
    let stands = Decisions::new(&monitor.store.places.var).read(move_id);
    match stands {
        Ok(Some(decision)) => Ok(Reply::Decided(decision)),
        Ok(None) => Err("it is not decided".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// One step of the machine and its deeds; whether it agreed.
fn event(monitor: &mut Monitor, event_: TargetEvent) -> Result<bool, String> {
    let Some(incoming) = &mut monitor.moving.arrival else { return Err("nothing arrives here".to_owned()) };
    let (next, actions) = target(incoming.machine, event_);
    incoming.machine = next;
    let move_id = incoming.move_id.clone();
    let mut yes = false;
    for action in actions {
        match action {
            TargetAction::Agree => yes = true,
            TargetAction::Deny | TargetAction::Tell(_) => {}
            TargetAction::Record(wanted) => {
                let stands = record(monitor, &move_id, wanted);
                yes |= event(monitor, TargetEvent::Recorded(stands))?;
            }
            TargetAction::Activate => activate(monitor),
            TargetAction::TearDown => tear_down(monitor),
        }
    }
    Ok(yes)
}

/// Writes the decision; what stands then. If it cannot be written nothing was committed, and nobody but us could: the
/// attempt ends, and whoever asks later has *aborted* written.
fn record(monitor: &Monitor, move_id: &MoveId, wanted: Decision) -> Decision {
    let decisions = Decisions::new(&monitor.store.places.var);
    let start = Instant::now();
    let stands = decisions.record(move_id, wanted).unwrap_or_else(|e| {
        monitor.complain(&format!("the record could not be written, so the pod is given up: {e}"));
        // A write that failed half way must not be found committed.
        decisions.record(move_id, Decision::Aborted).unwrap_or(Decision::Aborted)
    });
    tell_slow(monitor, "writing the record", start.elapsed());
    stands
}

fn tell_slow(monitor: &Monitor, what: &str, took: Duration) {
    if took >= SLOW {
        monitor.complain(&format!("{what} took {} ms", took.as_millis()));
    }
}

/// The pod's clocks must not be behind what it has seen: waits the difference out (normally none).
fn wait_for_clocks(monitor: &Monitor, arrival: &Arrival) {
    let Some(pod) = &monitor.pod else { return };
    let now = |clock, offset: i64| {
        nix::time::clock_gettime(clock)
            .map_or(i64::MAX, |t| t.tv_sec() * 1_000_000_000 + t.tv_nsec() + offset)
    };
    loop {
        let short = [
            arrival.clocks.0 - now(nix::time::ClockId::CLOCK_MONOTONIC, pod.clocks.monotonic_ns),
            arrival.clocks.1 - now(nix::time::ClockId::CLOCK_BOOTTIME, pod.clocks.boottime_ns),
        ];
        match short.into_iter().max() {
            Some(ns @ 1..) => std::thread::sleep(Duration::from_nanos(ns.unsigned_abs().min(1_000_000_000))),
            _ => return,
        }
    }
}

/// The record says committed: hold lifted, announced, sockets on, frames replayed, thawed. No error stops it.
fn activate(monitor: &mut Monitor) {
    let Some(mut incoming) = monitor.moving.arrival.take() else { return };
    let mut last = Instant::now();
    let lap = &mut |monitor: &Monitor, stages: &mut Vec<(String, u64)>, name: &str| {
        let took = last.elapsed();
        last += took;
        tell_slow(monitor, &format!("activation: {name}"), took);
        stages.push((format!("target.{name}"), u64::try_from(took.as_micros()).unwrap_or(u64::MAX)));
    };
    if let Some(arrival) = &incoming.arrival {
        wait_for_clocks(monitor, arrival);
    }
    lap(monitor, &mut incoming.stages, "clocks");
    if let Err(e) = monitor.attach_link() {
        monitor.complain(&e);
    }
    if let Some(doors) = &mut incoming.doors {
        open(monitor, doors);
    }
    lap(monitor, &mut incoming.stages, "link");
    let sockets = std::mem::take(&mut incoming.sockets);
    for e in fds::activate_all(&sockets) {
        monitor.complain(&format!("a connection could not be switched on: {e}"));
    }
    if let Some(arrival) = &incoming.arrival {
        place_socket_files(monitor, arrival);
    }
    lap(monitor, &mut incoming.stages, "sockets");
    if let Some(replayer) = incoming.doors.as_ref().and_then(|d| d.replayer.as_ref()) {
        replayer.send(&incoming.frames);
    }
    lap(monitor, &mut incoming.stages, "replay");
    if let Some(arrival) = &incoming.arrival {
        hang_up(arrival);
    }
    if let Some(pod) = &monitor.pod
        && let Err(e) = pod.cgroup.freezer().thaw()
    {
        monitor.complain(&format!("not thawed: {e}"));
    }
    lap(monitor, &mut incoming.stages, "thaw");
    incoming.haste = None;
    // Closed only now: each costs time.
    drop(sockets);
    if let Some(arrival) = &incoming.arrival {
        monitor.settle_in(arrival, incoming.cmd.take());
    }
    lap(monitor, &mut incoming.stages, "record");
    monitor.moving.arrival = Some(incoming);
}

/// Lets frames pass and tells the network at once where they have to go.
fn open(monitor: &Monitor, doors: &mut Doors) {
    if let Err(e) = doors.hold.lift() {
        monitor.complain(&format!("hold not lifted: {e}"));
    }
    if let Some(Err(e)) = doors.announcer.take().map(Announcer::send_repeatedly) {
        monitor.complain(&format!("not announced: {e}"));
    }
}

/// Commands of `exec` are told that their caller has gone. They stand still: no pid of them is anybody else's.
fn hang_up(arrival: &Arrival) {
    for pid in &arrival.hang_up {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGHUP);
    }
}

/// Unix sockets get their names: at the source they still had them until now, where both see one file system.
fn place_socket_files(monitor: &Monitor, arrival: &Arrival) {
    let (Some(pod), false) = (&monitor.pod, arrival.socket_files.is_empty()) else { return };
    let placed = std::fs::File::open(format!("/proc/{}/root", pod.init.pid))
        .map_err(|e| crate::kernel::errno_text(&e))
        .and_then(|root| fds::place(&root, &arrival.socket_files).map_err(|e| e.to_string()));
    if let Err(e) = placed {
        monitor.complain(&format!("names of unix sockets not placed: {e}"));
    }
}

fn tear_down(monitor: &mut Monitor) {
    if let (Some(pod), Some(arrival)) =
        (&monitor.pod, monitor.moving.arrival.as_ref().and_then(|i| i.arrival.as_ref()))
        && let Ok(root) = std::fs::File::open(format!("/proc/{}/root", pod.init.pid))
    {
        fds::discard(&root, &arrival.socket_files);
    }
    monitor.moving.arrival = None;
    monitor.vanish();
}

/// A connection closed.
pub fn closed(monitor: &mut Monitor, conn: ConnId) {
    if let Some(incoming) = &mut monitor.moving.arrival
        && incoming.conn == Some(conn)
    {
        incoming.conn = None;
        if let Err(e) = event(monitor, TargetEvent::WorkerGone) {
            monitor.complain(&e);
        }
    }
}

/// Past the deadline without a commit?
pub fn tick(monitor: &mut Monitor) {
    let Some(incoming) = &mut monitor.moving.arrival else { return };
    if incoming.machine == Target::Owner {
        incoming.doors = None;
        return late_locks::tick(monitor);
    }
    if !matches!(incoming.machine, Target::Incoming | Target::Prepared) {
        return;
    }
    if Instant::now() >= incoming.deadline {
        if let Err(e) = event(monitor, TargetEvent::Deadline) {
            monitor.complain(&e);
        }
    } else {
        let at = incoming.deadline;
        monitor.wake_at(at);
    }
}
