//! The target's side: the record decides, and the monitor alone brings the pod to life.

use super::{Arrival, Reply, Request};
use crate::base::MoveId;
use crate::kernel::{sock, tcp_repair};
use crate::net::{self, Frame};
use crate::pod::decisions::Decisions;
use crate::pod::monitor::{ConnId, Monitor};
use crate::pod::store::Status;
use crate::policy::handover::{Target, TargetAction, TargetEvent, target};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A pod being built here.
pub struct Incoming {
    machine: Target,
    conn: Option<ConnId>,
    move_id: MoveId,
    deadline: Instant,
    sockets: Vec<(OwnedFd, bool)>,
    arrival: Option<Arrival>,
    frames: Vec<Frame>,
    stages: Vec<(String, u64)>,
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
    let deadline = Instant::now() + Duration::from_millis(deadline_ms);
    monitor.moving.arrival = Some(Incoming {
        machine: Target::Incoming,
        conn: Some(conn),
        move_id,
        deadline,
        sockets: Vec::new(),
        arrival: None,
        frames: Vec::new(),
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
    if let Some(incoming) = &mut monitor.moving.arrival {
        incoming.arrival = Some(arrival);
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
    let (next, actions) = target(incoming.machine, event_);
    incoming.machine = next;
    let move_id = incoming.move_id.clone();
    let mut yes = false;
    for action in actions {
        match action {
            TargetAction::Agree => yes = true,
            TargetAction::Deny | TargetAction::Tell(_) => {}
            TargetAction::Record(wanted) => {
                let stands = Decisions::new(&monitor.store.places.var).record(&move_id, wanted);
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
    for trouble in monitor.let_traffic_in() {
        monitor.complain(&trouble);
    }
    lap(&mut incoming.stages, "link");
    for (fd, reuseaddr) in incoming.sockets.drain(..) {
        if let Err(e) = switch_on(&fd, reuseaddr) {
            monitor.complain(&format!("a connection could not be switched on: {}", e.desc()));
        }
    }
    lap(&mut incoming.stages, "sockets");
    if let Some(link) = monitor.link() {
        if let Err(e) = net::replay(link, &incoming.frames) {
            monitor.complain(&format!("captured frames not replayed: {e}"));
        }
    }
    lap(&mut incoming.stages, "replay");
    if let Some(pod) = &monitor.pod {
        if let Err(e) = pod.cgroup.freezer().thaw() {
            monitor.complain(&format!("not thawed: {e}"));
        }
    }
    lap(&mut incoming.stages, "thaw");
    monitor.announce();
    if let Some(arrival) = incoming.arrival.take() {
        monitor.settle_in(&arrival);
    }
    lap(&mut incoming.stages, "record");
    monitor.moving.arrival = Some(incoming);
}

/// Repair off (its window probe tells the peer where we are); it overwrites SO_REUSEADDR, so that comes after.
fn switch_on(fd: &OwnedFd, reuseaddr: bool) -> Result<(), nix::errno::Errno> {
    tcp_repair::off(fd)?;
    sock::set_i32(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, i32::from(reuseaddr))
}

fn tear_down(monitor: &mut Monitor) {
    monitor.moving.arrival = None;
    monitor.vanish();
}

/// A connection closed.
pub fn closed(monitor: &mut Monitor, conn: ConnId) {
    if let Some(incoming) = &mut monitor.moving.arrival {
        if incoming.conn == Some(conn) {
            incoming.conn = None;
            if let Err(e) = event(monitor, TargetEvent::WorkerGone) {
                monitor.complain(&e);
            }
        }
    }
}

/// Past the deadline without a commit?
pub fn tick(monitor: &mut Monitor) {
    let Some(incoming) = &monitor.moving.arrival else { return };
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
