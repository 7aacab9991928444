//! The source's side: the hold, the sockets and the freezer are given back when the mover goes; after `Commit` only
//! the target's record counts.

use super::{Reply, Request, Stage};
use crate::base::MoveId;
use crate::freeze::{self, PodTasks};
use crate::kernel::clone;
use crate::kernel::pidfd::PidFd;
use crate::kernel::sched::Haste;
use crate::net::Hold;
use crate::pod::monitor::{ConnId, LivePod, Monitor};
use crate::pod::store::{MoveMark, Record, StagedRecord, Status};
use crate::policy::handover::{Source, SourceAction, SourceEvent, source};
use crate::state::inet::collect::{self as inet, RepairedSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// Between two questions to a target that does not answer.
const AGAIN: Duration = Duration::from_millis(300);
/// How long a mover may take to end when the move is cancelled.
const PATIENCE: Duration = Duration::from_secs(2);
/// Tells a mover that its move is cancelled (it dies of it if it does not know better).
pub const CANCEL: i32 = libc::SIGUSR1;

/// What is to be taken back, and how far the move is.
pub struct Guard {
    machine: Source,
    conn: Option<ConnId>,
    move_id: MoveId,
    to: String,
    hold: Option<Hold>,
    repaired: Vec<RepairedSocket>,
    asking: Option<Child>,
    ask_at: Option<Instant>,
    /// What the commit will write down, on disk already.
    staged: Option<StagedRecord>,
    /// From the hold on, until the mover is done: our own, and that of pid 1, which has to freeze, too.
    haste: Option<[Haste; 2]>,
    /// The mover's process.
    mover: Option<PidFd>,
    cancel: Option<Cancel>,
}

/// Somebody wants the move to end before its commit.
struct Cancel {
    /// Who waits for that.
    waiting: Vec<ConnId>,
    /// When a mover that does not end by itself is killed.
    kill_at: Instant,
}

impl Guard {
    /// Whether the pod's link is held, so that it is about to be stopped, or is.
    pub(super) fn holds(&self) -> bool {
        self.hold.is_some()
    }
}

const TOO_LATE: &str = "it is too late to cancel: the move has passed its commit point";
const STRANGER: &str = "this connection is not moving the pod";

fn owns(monitor: &Monitor, conn: ConnId) -> bool {
    monitor.moving.guard.as_ref().is_some_and(|g| g.conn == Some(conn))
}

/// A request of a mover, or of the resolver (which only settles).
pub fn handle(monitor: &mut Monitor, conn: ConnId, request: Request) {
    if matches!(request, Request::Hold | Request::Frozen) {
        let reply = match request {
            _ if !owns(monitor, conn) => Err(STRANGER.to_owned()),
            Request::Hold => hold(monitor),
            _ => frozen(monitor),
        };
        return monitor.answer_move(conn, reply.unwrap_or_else(Reply::Denied), Vec::new());
    }
    if matches!(request, Request::Cancel) {
        if let Err(reason) = cancel(monitor, conn) {
            monitor.answer_move(conn, Reply::Denied(reason), Vec::new());
        }
        return;
    }
    let repairing = matches!(request, Request::Repairing(_));
    let outcome = match request {
        Request::Begin { move_id, to } => begin(monitor, conn, move_id, to),
        Request::Settle(decision) => event(monitor, SourceEvent::Verdict(decision)).map(|_| ()),
        // The target's word came first: everything has been taken back.
        Request::Abort if monitor.moving.guard.is_none() => Ok(()),
        _ if !owns(monitor, conn) => Err(STRANGER.to_owned()),
        Request::Stage(stage) => {
            monitor.set_stage(Some(stage));
            Ok(())
        }
        Request::Repairing(sockets) => {
            if let Some(guard) = &mut monitor.moving.guard {
                guard.repaired = sockets;
            }
            Ok(())
        }
        // Cancelled in time: the mover is on its way out, or hears it now.
        Request::Commit if monitor.moving.guard.as_ref().is_some_and(|g| g.cancel.is_some()) => {
            let _ = event(monitor, SourceEvent::Abort);
            Err("the move was cancelled".to_owned())
        }
        Request::Commit => agreed(event(monitor, SourceEvent::Commit)),
        Request::Abort => agreed(event(monitor, SourceEvent::Abort)),
        Request::Written => {
            let guard = monitor.moving.guard.take();
            for waiting in guard.and_then(|g| g.cancel).into_iter().flat_map(|c| c.waiting) {
                monitor.answer_move(waiting, Reply::Denied(TOO_LATE.to_owned()), Vec::new());
            }
            depart(monitor, Status::Checkpointed, None);
            Ok(())
        }
        _ => Err("not a mover's request".to_owned()),
    };
    let reply = outcome.map_or_else(Reply::Denied, |()| Reply::Done);
    monitor.answer_move(conn, reply, Vec::new());
    if repairing {
        stage(monitor);
    }
}

/// While the mover reads sockets: the record of the commit is written, so that the commit is but a rename.
fn stage(monitor: &mut Monitor) {
    let Some(guard) = &mut monitor.moving.guard else { return };
    // Should it fail, the commit writes it.
    guard.staged = monitor.store.stage(&doubtful(&monitor.record, guard)).ok();
}

fn agreed(outcome: Result<bool, String>) -> Result<(), String> {
    match outcome {
        Ok(true) => Ok(()),
        Ok(false) => Err("not at this stage of the move".to_owned()),
        Err(e) => Err(e),
    }
}

fn begin(monitor: &mut Monitor, conn: ConnId, move_id: MoveId, to: String) -> Result<(), String> {
    if monitor.moving.guard.is_some() {
        return Err("it is being moved already".to_owned());
    }
    if monitor.record.status != Status::Running {
        return Err(format!("it is {}, not running", monitor.record.status));
    }
    let (machine, actions) = source(Source::Idle, SourceEvent::Begin);
    debug_assert_eq!(actions, [SourceAction::Agree]);
    let guard = Guard {
        machine,
        conn: Some(conn),
        move_id,
        to: to.clone(),
        hold: None,
        repaired: Vec::new(),
        asking: None,
        ask_at: None,
        mover: monitor.caller(conn),
        cancel: None,
        staged: None,
        haste: None,
    };
    monitor.moving.guard = Some(guard);
    monitor.set_stage(Some(Stage { to, ..Stage::named("pre-migration") }));
    Ok(())
}

/// Ends a move before its commit: the mover is told, and everything is taken back when it is gone. Only then is
/// anybody answered, so that the pod runs when `cancel` returns.
fn cancel(monitor: &mut Monitor, conn: ConnId) -> Result<(), String> {
    let Some(guard) = &mut monitor.moving.guard else { return Err("it is not being moved".to_owned()) };
    // An image has its commit point where its file gets its name: the mover says so by its stage.
    let committing = monitor.moving.stage.as_ref().is_some_and(|s| s.stage == Stage::COMMITMENT);
    if committing || !matches!(guard.machine, Source::Moving { .. }) {
        return Err(TOO_LATE.to_owned());
    }
    let at = Instant::now() + PATIENCE;
    guard.cancel.get_or_insert_with(|| Cancel { waiting: Vec::new(), kill_at: at }).waiting.push(conn);
    if let Some(mover) = &guard.mover {
        // Gone already: its connection closes.
        let _ = clone::pidfd_signal(mover, CANCEL);
    }
    monitor.wake_at(at);
    Ok(())
}

fn hold(monitor: &mut Monitor) -> Result<Reply, String> {
    monitor.settle_orders()?;
    let Some(pod) = &monitor.pod else { return Err("it has no processes".to_owned()) };
    let mut hold = Hold::open(pod.netns.as_fd(), &monitor.record.spec.net.mode).map_err(|e| e.to_string())?;
    let haste = [Haste::begin(false), Haste::of(pod.init.pid)];
    let engaged = hold.engage().map_err(|e| e.to_string())?;
    if let Some(guard) = &mut monitor.moving.guard {
        guard.hold = Some(hold);
        guard.haste = Some(haste);
    }
    let since = engaged.since.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Reply::Held { since_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX) })
}

fn frozen(monitor: &mut Monitor) -> Result<Reply, String> {
    let Some(pod) = &monitor.pod else { return Err("it has no processes".to_owned()) };
    // Not on the mover's word: what follows rests on it.
    match pod.cgroup.freezer().is_frozen() {
        Ok(true) => {
            monitor.hear_init()?;
            // What the pod wrote goes into the log, whose end travels.
            monitor.drain_output();
            agreed(event(monitor, SourceEvent::Frozen))?;
            let (input, input_ended) = monitor.hold_input();
            Ok(Reply::Frozen { input, input_ended })
        }
        Ok(false) => Err("its control group is not frozen".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// One step of the machine and its deeds; whether it agreed.
fn event(monitor: &mut Monitor, event: SourceEvent) -> Result<bool, String> {
    let Some(guard) = &mut monitor.moving.guard else { return Err("it is not being moved".to_owned()) };
    let (next, actions) = source(guard.machine, event);
    guard.machine = next;
    let mut yes = false;
    for action in actions {
        match action {
            SourceAction::Agree => yes = true,
            SourceAction::Deny => {}
            SourceAction::JournalCommit => {
                journal(monitor)?;
                yes = true;
            }
            SourceAction::Undo => undo(monitor),
            SourceAction::Ask => ask(monitor),
            SourceAction::Destroy => {
                let to = monitor.moving.guard.take().map(|g| g.to);
                depart(monitor, Status::Moved, to);
                yes = true;
            }
        }
    }
    Ok(yes)
}

/// Lets the pod run on. Calls that the mover's stop had interrupted and that it did not live to mend are mended; if
/// that cannot be done the pod runs all the same.
fn wake(pod: &LivePod) -> Result<(), String> {
    let freezer = pod.cgroup.freezer();
    let tasks = PodTasks { cgroup: freezer.clone(), init: pod.init.pid };
    match freeze::resume(&tasks) {
        Ok(()) => Ok(()),
        Err(e) => match freezer.thaw() {
            Ok(()) => Err(format!("running, but calls may have been interrupted: {e}")),
            Err(thaw) => Err(thaw.to_string()),
        },
    }
}

/// Writes the commit to disk. If that fails nothing was committed: the machine goes back.
fn journal(monitor: &mut Monitor) -> Result<(), String> {
    let Some(guard) = &mut monitor.moving.guard else { return Ok(()) };
    let record = doubtful(&monitor.record, guard);
    let saved = match guard.staged.take() {
        Some(staged) if *staged.record() == record => staged.place(),
        _ => monitor.store.save(&record),
    };
    if let Err(e) = saved {
        guard.machine = Source::Moving { frozen: true };
        return Err(format!("the commit could not be written down: {e}"));
    }
    monitor.record = record;
    Ok(())
}

/// The pod's record once the commit is written down.
fn doubtful(record: &Record, guard: &Guard) -> Record {
    let mut record = record.clone();
    record.status = Status::InDoubt;
    record.moved_to = Some(guard.to.clone());
    record.moving = Some(MoveMark { move_id: guard.move_id.clone(), to: guard.to.clone() });
    record
}

/// Sockets out of repair, hold lifted, then thaw: a program that ran on with its sockets in repair would write into
/// nothing. Each step twice is harmless; a failure is a line in the monitor's log and the next step is still taken.
fn undo(monitor: &mut Monitor) {
    let Some(mut guard) = monitor.moving.guard.take() else { return };
    for socket in &guard.repaired {
        if let Err(e) = inet::unrepair(socket) {
            monitor
                .complain(&format!("socket of pid {} fd {} not given back: {e}", socket.host_pid, socket.fd));
        }
    }
    if let Some(hold) = &mut guard.hold
        && let Err(e) = hold.lift()
    {
        monitor.complain(&format!("hold not lifted: {e}"));
    }
    if let Some(pod) = &monitor.pod
        && let Err(e) = wake(pod)
    {
        monitor.complain(&format!("not thawed: {e}"));
    }
    end_asking(&mut guard);
    monitor.let_input_in();
    monitor.set_stage(None);
    for conn in guard.cancel.into_iter().flat_map(|c| c.waiting) {
        monitor.answer_move(conn, Reply::Done, Vec::new());
    }
    if monitor.record.status == Status::InDoubt {
        monitor.record.moved_to = None;
        monitor.record.moving = None;
        monitor.set_status(Status::Running);
    }
}

fn end_asking(guard: &mut Guard) {
    if let Some(mut child) = guard.asking.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The pod is no longer ours: the record says so first, then link, processes and namespaces go (in that order: a
/// killed server behind a lifted hold would send its FIN and lose its clients).
fn depart(monitor: &mut Monitor, status: Status, to: Option<String>) {
    monitor.record.moved_to = to;
    monitor.record.moving = None;
    monitor.moving.stage = None;
    monitor.set_status(status);
    monitor.depart();
}

/// Starts `podmig __resolve ID`: it asks the target and settles with this monitor by itself.
fn ask(monitor: &mut Monitor) {
    let id = monitor.record.spec.id.clone();
    let places = monitor.store.places.clone();
    let Some(guard) = &mut monitor.moving.guard else { return };
    guard.ask_at = None;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("__resolve")
        .args([&places.etc, &places.var, &places.run])
        .arg(id.as_str())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    match command.spawn() {
        Ok(child) => guard.asking = Some(child),
        Err(e) => {
            guard.ask_at = Some(Instant::now() + AGAIN);
            monitor.complain(&format!("cannot ask the target: {e}"));
        }
    }
    monitor.wake_at(Instant::now() + AGAIN);
}

/// A connection closed.
pub fn closed(monitor: &mut Monitor, conn: ConnId) {
    if let Some(guard) = &mut monitor.moving.guard
        && guard.conn == Some(conn)
    {
        guard.conn = None;
        guard.haste = None;
        let _ = event(monitor, SourceEvent::MoverGone);
    }
}

/// Has the resolver ended without an answer? Then again, a little later.
pub fn tick(monitor: &mut Monitor) {
    let Some(guard) = &mut monitor.moving.guard else { return };
    if let Some(cancel) = &guard.cancel {
        if Instant::now() >= cancel.kill_at {
            let _ = guard.mover.as_ref().map(|m| clone::pidfd_signal(m, libc::SIGKILL));
        } else {
            let at = cancel.kill_at;
            monitor.wake_at(at);
        }
        return;
    }
    if let Some(child) = &mut guard.asking {
        if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
            guard.asking = None;
            guard.ask_at = Some(Instant::now() + AGAIN);
        }
        monitor.wake_at(Instant::now() + AGAIN);
        return;
    }
    if let Some(at) = guard.ask_at {
        if Instant::now() >= at {
            let _ = event(monitor, SourceEvent::NoAnswer);
        } else {
            monitor.wake_at(at);
        }
    }
}
