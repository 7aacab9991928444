//! The target's side: the record decides, and the monitor alone brings the pod to life.

use super::{Arrival, Reply, Request};
use crate::base::{Decision, MoveId};
use crate::kernel::sched::Haste;
use crate::net::{Frame, Hold, Replayer};
use crate::pod::decisions::{Decisions, Staged};
use crate::pod::monitor::{ConnId, Monitor};
use crate::pod::store::Status;
use crate::policy::handover::{Target, TargetAction, TargetEvent, target};
use crate::state::fd::restore as fds;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// A pod being built here.
pub struct Incoming {
    machine: Target,
    conn: Option<ConnId>,
    move_id: MoveId,
    deadline: Instant,
    sockets: Vec<(OwnedFd, fds::Waking)>,
    arrival: Option<Arrival>,
    frames: Vec<Frame>,
    /// Opened before the commit, dropped when there is time: both cost more than what they do.
    doors: Option<Doors>,
    /// The record that will say *committed*.
    staged: Option<Staged>,
    /// From the last preparations to the thaw.
    haste: Option<Haste>,
    stages: Vec<(String, u64)>,
}

/// The hand on the hold, and the way for captured frames into the pod's link.
struct Doors {
    hold: Hold,
    replayer: Option<Replayer>,
}

/// A request of a worker.
pub fn handle(monitor: &mut Monitor, conn: ConnId, request: Request, fds: Vec<OwnedFd>) {
    let outcome = match request {
        Request::Arrive { move_id, deadline_ms } => arrive(monitor, conn, move_id, deadline_ms),
        Request::Query(move_id) => query(monitor, &move_id),
        _ if monitor.moving.arrival.as_ref().is_none_or(|a| a.conn != Some(conn)) => {
            Err("this connection is not building the pod".to_owned())
        }
        Request::Sockets(reuse) if reuse.len() == fds.len() => {
            if let Some(incoming) = &mut monitor.moving.arrival {
                incoming.sockets.extend(fds.into_iter().zip(reuse));
            }
            Ok(Reply::Done)
        }
        Request::Prepared(arrival) => prepared(monitor, arrival),
        Request::Own { frames } => own(monitor, frames),
        _ => Err("not a worker's request".to_owned()),
    };
    monitor.answer_move(conn, outcome.unwrap_or_else(Reply::Denied), Vec::new());
}

fn arrive(monitor: &mut Monitor, conn: ConnId, move_id: MoveId, deadline_ms: u64) -> Result<Reply, String> {
    if monitor.moving.arrival.is_some() || monitor.record.status != Status::Incoming {
        return Err("nothing is to arrive here".to_owned());
    }
    // One that cannot be written now is tried again when it is due.
    let staged = Decisions::new(&monitor.store.places.var).stage(&move_id).ok();
    let deadline = Instant::now() + Duration::from_millis(deadline_ms);
    monitor.moving.arrival = Some(Incoming {
        machine: Target::Incoming,
        conn: Some(conn),
        move_id,
        deadline,
        sockets: Vec::new(),
        arrival: None,
        frames: Vec::new(),
        doors: None,
        staged,
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
    let replayer = monitor.link().and_then(|link| match Replayer::open(link) {
        Ok(replayer) => Some(replayer),
        Err(e) => {
            monitor.complain(&format!("captured frames will not be replayed: {e}"));
            None
        }
    });
    if let Some(incoming) = &mut monitor.moving.arrival {
        incoming.arrival = Some(arrival);
        incoming.haste = Some(Haste::begin(false));
        incoming.doors = Some(Doors { hold, replayer });
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
    // Gone when all is done: removing its temporary name can wait.
    let staged = if event_ == TargetEvent::Commit { incoming.staged.take() } else { None };
    let (next, actions) = target(incoming.machine, event_);
    incoming.machine = next;
    let move_id = incoming.move_id.clone();
    let mut yes = false;
    for action in actions {
        match action {
            TargetAction::Agree => yes = true,
            TargetAction::Deny | TargetAction::Tell(_) => {}
            TargetAction::Record(wanted) => {
                let all = Decisions::new(&monitor.store.places.var);
                let stands = match &staged {
                    Some(staged) if wanted == Decision::Committed => all.commit(&move_id, staged),
                    _ => all.record(&move_id, wanted),
                };
                let stands = stands.map_err(|e| format!("the record could not be written: {e}"))?;
                yes |= event(monitor, TargetEvent::Recorded(stands))?;
            }
            TargetAction::Activate => activate(monitor),
            TargetAction::TearDown => tear_down(monitor),
        }
    }
    Ok(yes)
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

/// The record says committed: hold lifted, sockets on, frames replayed, announced, thawed. No error stops it.
fn activate(monitor: &mut Monitor) {
    let Some(mut incoming) = monitor.moving.arrival.take() else { return };
    let start = Instant::now();
    let mut last = start;
    let mut lap = |stages: &mut Vec<(String, u64)>, name: &str| {
        let now = Instant::now();
        stages.push((format!("target.{name}"), now.duration_since(last).as_micros() as u64));
        last = now;
    };
    if let Some(arrival) = &incoming.arrival {
        wait_for_clocks(monitor, arrival);
    }
    lap(&mut incoming.stages, "clocks");
    if let Err(e) = monitor.attach_link() {
        monitor.complain(&e);
    }
    if let Some(doors) = &mut incoming.doors
        && let Err(e) = doors.hold.lift()
    {
        monitor.complain(&format!("hold not lifted: {e}"));
    }
    lap(&mut incoming.stages, "link");
    let sockets = std::mem::take(&mut incoming.sockets);
    for e in fds::activate_all(&sockets) {
        monitor.complain(&format!("a connection could not be switched on: {e}"));
    }
    if let Some(arrival) = &incoming.arrival {
        place_socket_files(monitor, arrival);
    }
    lap(&mut incoming.stages, "sockets");
    if let Some(replayer) = incoming.doors.as_ref().and_then(|d| d.replayer.as_ref()) {
        replayer.send(&incoming.frames);
    }
    lap(&mut incoming.stages, "replay");
    if let Some(pod) = &monitor.pod
        && let Err(e) = pod.cgroup.freezer().thaw()
    {
        monitor.complain(&format!("not thawed: {e}"));
    }
    lap(&mut incoming.stages, "thaw");
    incoming.haste = None;
    // Closed only now: each costs time.
    drop(sockets);
    monitor.announce();
    if let Some(arrival) = incoming.arrival.take() {
        monitor.settle_in(&arrival);
    }
    lap(&mut incoming.stages, "record");
    monitor.moving.arrival = Some(incoming);
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
        return;
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
