//! File locks that could not be taken while the pod was built, because its copy at the source held them still (both hosts
//! see one file system): taken as soon as that copy is gone.

use crate::freeze;
use crate::pod::monitor::Monitor;
use crate::remote::Batch;
use crate::state::fd::restore::LateLock;
use std::time::{Duration, Instant};

/// How long they are waited for, and between two tries.
const LIMIT: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(2);

/// Tries those of the pod that has just arrived.
pub(super) fn tick(monitor: &mut Monitor) {
    let Some(incoming) = monitor.moving.arrival.as_mut().filter(|i| !i.locks.is_empty()) else { return };
    let now = Instant::now();
    let until = *incoming.locks_until.get_or_insert(now + LIMIT);
    let mut failed = Vec::new();
    let (mut left, mut inside) = (Vec::new(), Vec::new());
    for mut late in std::mem::take(&mut incoming.locks) {
        if late.of.is_some() {
            if late.is_free() {
                inside.push(late)
            } else {
                left.push(late)
            }
            continue;
        }
        match late.retry() {
            Ok(true) => {}
            Ok(false) => left.push(late),
            Err(e) => failed.push(e.to_string()),
        }
    }
    if let Err(e) = take_inside(monitor, &inside) {
        // Somebody has the pod stopped just now, as a rule: again, a little later.
        if now >= until { failed.push(e) } else { left.append(&mut inside) }
    }
    if now >= until && !left.is_empty() {
        let count: usize = left.iter().map(|l| l.locks.len()).sum();
        left.clear();
        failed.push(format!("{count} file locks are still held by somebody else, and given up"));
    }
    if !left.is_empty() {
        monitor.wake_at(now + AGAIN);
    }
    if let Some(incoming) = monitor.moving.arrival.as_mut() {
        incoming.locks = left;
    }
    failed.iter().for_each(|text| monitor.complain(text));
}

/// POSIX locks belong to a process: it is stopped for the calls that take them, which it does not see.
fn take_inside(monitor: &Monitor, locks: &[LateLock]) -> Result<(), String> {
    if locks.is_empty() {
        return Ok(());
    }
    let failed = |e: &dyn std::fmt::Display| format!("POSIX locks not taken again: {e}");
    let mut stopped = monitor
        .tasks()
        .map_err(|e| failed(&e))
        .and_then(|tasks| freeze::stop_all(&tasks).map_err(|e| failed(&e)))?;
    let mut first = Ok(());
    for proc in &mut stopped.procs {
        let mut batch = Batch::new();
        let own = locks.iter().filter(|l| {
            l.of.is_some_and(|(pid, number)| pid == proc.pod_pid && has(proc.host_pid, number, l))
        });
        let count = own.inspect(|l| l.take_inside(&mut batch)).count();
        if count == 0 {
            continue;
        }
        let done = proc.session().and_then(|(mut session, _)| {
            session.run(&batch)?;
            session.close()
        });
        if let Err(e) = done {
            first = first.and(Err(failed(&e)));
        }
    }
    stopped.release().map_err(|e| failed(&e))?;
    first
}

/// Whether a process still has the file under that number: it runs, and may have closed it.
fn has(host_pid: i32, number: i32, late: &LateLock) -> bool {
    let there = nix::sys::stat::stat(format!("/proc/{host_pid}/fd/{number}").as_str());
    let ours = nix::sys::stat::fstat(&late.fd);
    matches!((there, ours), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}
