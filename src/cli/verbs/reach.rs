//! How verbs reach a pod: its record, its monitor, and what stands in the way.

use crate::base::{Blocker, Failure, Kind};
use crate::cli::{Context, out, shape};
use crate::kernel::pidfd::PidFd;
use crate::pod::client::Client;
use crate::pod::moving::Stage;
use crate::pod::store::{Record, Status};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::time::Duration;

/// How long a monitor that stopped listening may take to end, in milliseconds.
const PATIENCE: u16 = 5000;
/// How long a monitor may take to say whether its pod is being moved.
const ANSWER: Duration = Duration::from_millis(250);

/// The pod by name or id, unless it lives on another host (8) or that is in doubt (6).
pub fn known(ctx: &Context, name: &str) -> Result<Record, Failure> {
    let record = ctx.store.find_here(name)?;
    match record.status {
        Status::InDoubt => Err(in_doubt(&record)),
        _ => Ok(record),
    }
}

/// The failure for a pod whose move has not been decided.
pub fn in_doubt(record: &Record) -> Failure {
    let name = record.spec.name.as_str();
    let host = record.moved_to.as_deref().unwrap_or("another host");
    Failure::new(Kind::InDoubt, name, format!("it was being moved to {host}, which has not answered yet"))
        .remedy(format!("`podmig resolve {name} --here|--there` if that host is gone for good"))
}

/// The pod and its monitor; a pod that does not run is an error.
pub fn running(ctx: &Context, name: &str) -> Result<(Record, Client), Failure> {
    let record = known(ctx, name)?;
    if !record.status.is_here() {
        return Err(not_running(&record));
    }
    match Client::connect(&ctx.store, &record) {
        Ok(client) => Ok((record, client)),
        Err(f) => match ended_meanwhile(ctx, &record) {
            Some(now) => Err(not_running(&now)),
            None => Err(f),
        },
    }
}

/// As [`running`], for what cannot be done to a paused pod: refused by name (4).
pub fn movable(ctx: &Context, name: &str) -> Result<(Record, Client), Failure> {
    let (record, client) = running(ctx, name)?;
    if record.status != Status::Paused {
        return Ok((record, client));
    }
    let blocker = Blocker {
        kind: "paused".to_owned(),
        pid: None,
        fd: None,
        path: None,
        message: "the pod is paused, and would not be after it".to_owned(),
        remedy: format!("`podmig resume {}` first", record.spec.name),
    };
    Err(Failure::refused(record.spec.name.as_str(), vec![blocker]))
}

/// For a pod whose monitor does not answer: it may be about to end. Waits for that, bounded; the record then, `None`
/// when the pod still counts as running.
pub fn ended_meanwhile(ctx: &Context, record: &Record) -> Option<Record> {
    if let Some(monitor) = record.monitor.as_ref().filter(|m| m.alive())
        && let Ok(pidfd) = PidFd::open(monitor.pid)
    {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        // Interrupted or not: the record tells.
        let _ = poll(&mut fds, PollTimeout::from(PATIENCE));
    }
    let now = again(ctx, record.clone());
    (!now.status.is_here()).then_some(now)
}

/// A pod whose move has not been decided, and its monitor.
pub fn doubtful(ctx: &Context, name: &str) -> Option<(Record, Client)> {
    let record = ctx.store.find_here(name).ok().filter(|r| r.status == Status::InDoubt)?;
    let client = Client::connect(&ctx.store, &record).ok()?;
    Some((record, client))
}

/// The move of a pod that is under way, as its monitor knows it. A monitor that does not answer at once is not
/// waited for: `None`.
pub fn stage(ctx: &Context, record: &Record) -> Option<Stage> {
    if !matches!(record.status, Status::Running | Status::Paused | Status::InDoubt) {
        return None;
    }
    let mut client = Client::connect_within(&ctx.store, record, ANSWER).ok()?;
    client.info().ok()?.moving
}

/// The failure for a pod that does not run.
pub fn not_running(record: &Record) -> Failure {
    let name = record.spec.name.as_str();
    let text = match (record.status, record.exit_status) {
        (Status::Exited, Some(status)) => format!("it is not running: it ended with status {status}"),
        (status, _) => format!("it is not running: it is {status}"),
    };
    let f = Failure::new(Kind::Failed, name, text);
    if record.status.is_ended() { f.remedy(format!("`podmig start {name}` starts it again")) } else { f }
}

/// The pod's record as it is now; what is forgotten already (`--rm`) is told as it was last.
pub fn again(ctx: &Context, record: Record) -> Record {
    match ctx.store.get(&record.spec.id) {
        Ok(Some(now)) => now,
        _ => Record { status: Status::Exited, monitor: None, init_pid: None, cmd_pid: None, ..record },
    }
}

/// With `--json` the pod as it is now; otherwise silence is success.
pub fn told(ctx: &Context, record: Record) {
    if ctx.json {
        out::json(&shape::Pod::new(&again(ctx, record)));
    }
}
