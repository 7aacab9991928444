//! Timers made again with their ids and armed with the time they had left (`timer_create(2)`, `setitimer(2)`).

use super::{Itimer, PosixTimer, Timers};
use crate::remote::{Arg, Data, Results};
use crate::state::script::{About, Script};

/// `PR_TIMER_CREATE_RESTORE_IDS` (Linux 6.15): `timer_create` takes the id it finds in its argument.
pub const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
/// Highest id that is reached by counting, on kernels that cannot be told one.
const COUNT_LIMIT: i32 = 4096;
const SECOND: u64 = 1_000_000_000;

/// Where each timer's id is found after the batch.
#[derive(Clone, Debug, Default)]
pub struct Made(Vec<(i32, Data)>);

/// Makes the POSIX timers, not yet armed. `ids_settable`: the kernel takes ids as told; otherwise they are counted
/// up to, which works in a process that never made a timer. Threads must be there (SIGEV_THREAD_ID).
pub fn create(s: &mut Script, t: &Timers, ids_settable: bool) -> Result<Made, String> {
    let mut made = Made::default();
    if t.posix.is_empty() {
        return Ok(made);
    }
    if let Some(bad) = t.posix.iter().find(|p| p.id < 0) {
        return Err(format!("a timer with id {} makes no sense", bad.id));
    }
    if ids_settable {
        restore_ids(s, 1);
        for p in &t.posix {
            let id = s.data(&p.id.to_le_bytes());
            create_one(s, p, id);
            made.0.push((p.id, id));
        }
        restore_ids(s, 0);
        return Ok(made);
    }
    let last = t.posix.iter().map(|p| p.id).max().unwrap_or(0);
    if last > COUNT_LIMIT {
        return Err(format!("timer id {last} cannot be reached on this kernel (it needs Linux 6.15)"));
    }
    for n in 0..=last {
        let id = s.out(4);
        if let Some(p) = t.posix.iter().find(|p| p.id == n) {
            create_one(s, p, id);
            made.0.push((n, id));
        } else {
            s.must(
                "timer_create",
                About::Number(n.into()),
                libc::SYS_timer_create,
                &[(libc::CLOCK_MONOTONIC).into(), 0u64.into(), id.into()],
            );
            s.must("timer_delete", About::Number(n.into()), libc::SYS_timer_delete, &[Arg::Int(id, 0)]);
        }
    }
    Ok(made)
}

fn restore_ids(s: &mut Script, on: u64) {
    s.must(
        "prctl(PR_TIMER_CREATE_RESTORE_IDS)",
        About::Nothing,
        libc::SYS_prctl,
        &[PR_TIMER_CREATE_RESTORE_IDS.into(), on.into(), 0u64.into(), 0u64.into(), 0u64.into()],
    );
}

fn create_one(s: &mut Script, p: &PosixTimer, id: Data) {
    // struct sigevent, 64 bytes: value, signo, notify, tid.
    let mut event = p.sigval.to_le_bytes().to_vec();
    for n in [p.signo, p.notify, p.tid] {
        event.extend(n.to_le_bytes());
    }
    event.resize(64, 0);
    let event = s.data(&event);
    s.must(
        "timer_create",
        About::Number(p.id.into()),
        libc::SYS_timer_create,
        &[p.clock.into(), event.into(), id.into()],
    );
}

/// Whether every timer got its id: the first that did not.
pub fn check(made: &Made, results: &Results) -> Result<(), String> {
    match made.0.iter().find(|(want, at)| results.int(*at, 0) != *want) {
        Some((want, at)) => Err(format!("timer {want} came out as {}", results.int(*at, 0))),
        None => Ok(()),
    }
}

/// Arms everything with the time left; the last thing a process does, so that none of it is lost.
pub fn arm(s: &mut Script, t: &Timers) {
    for p in &t.posix {
        if p.time.value_ns != 0 {
            let spec = s.words(&timespecs(p.time));
            s.must(
                "timer_settime",
                About::Number(p.id.into()),
                libc::SYS_timer_settime,
                &[p.id.into(), 0u64.into(), spec.into(), 0u64.into()],
            );
        }
    }
    for (which, timer) in (0i32..).zip(t.itimers) {
        if timer.value_ns != 0 {
            let spec = s.words(&timevals(timer));
            s.must(
                "setitimer",
                About::Number(which.into()),
                libc::SYS_setitimer,
                &[which.into(), spec.into(), 0u64.into()],
            );
        }
    }
}

/// `struct itimerspec`: interval, then value.
fn timespecs(t: Itimer) -> [u64; 4] {
    [t.interval_ns / SECOND, t.interval_ns % SECOND, t.value_ns / SECOND, t.value_ns % SECOND]
}

/// `struct itimerval` in microseconds; a value of less than one is one, since zero would disarm.
fn timevals(t: Itimer) -> [u64; 4] {
    let value = t.value_ns.div_ceil(1000);
    [t.interval_ns / SECOND, t.interval_ns % SECOND / 1000, value / (SECOND / 1000), value % (SECOND / 1000)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nanosecond_left_does_not_disarm() {
        assert_eq!(timevals(Itimer { value_ns: 1, interval_ns: 0 }), [0, 0, 0, 1]);
        assert_eq!(
            timevals(Itimer { value_ns: 1_999_999_001, interval_ns: 2_500_000_000 }),
            [2, 500_000, 2, 0]
        );
        assert_eq!(timespecs(Itimer { value_ns: 1, interval_ns: SECOND + 2 }), [1, 2, 0, 1]);
    }

    #[test]
    fn ids_out_of_reach_are_refused() {
        let timer = |id| PosixTimer {
            id,
            clock: 1,
            notify: 0,
            signo: 14,
            sigval: 0,
            tid: 0,
            time: Itimer::default(),
            overrun: 0,
        };
        let timers = |id| Timers { posix: vec![timer(id)], ..Timers::default() };
        assert!(create(&mut Script::new(), &timers(1_000_000), false).unwrap_err().contains("6.15"));
        assert!(create(&mut Script::new(), &timers(-1), true).is_err());
        let mut s = Script::new();
        create(&mut s, &timers(3), false).unwrap();
        assert_eq!(s.len(), 7);
    }
}
