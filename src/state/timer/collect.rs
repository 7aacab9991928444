//! Timers: what they are from `/proc/P/timers`, how much is left from the process itself.

use super::{Itimer, PosixTimer, Timers};
use crate::base::Blocker;
use crate::kernel::procfs::TimerLine;
use crate::remote::{Batch, CallIx, Data, Results};
use crate::state::error::{Error, blocker};

/// What a process was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    itimers: [(CallIx, Data); 3],
    posix: Vec<(TimerLine, CallIx, Data, CallIx)>,
}

/// Appends the questions to a batch; `lines` are those of `/proc/P/timers`, read while the process is stopped.
pub fn ask(batch: &mut Batch, lines: &[TimerLine]) -> Asked {
    let mut itimer = |which: i32| {
        let out = batch.out(32);
        (batch.call(libc::SYS_getitimer, &[which.into(), out.into()]), out)
    };
    let itimers = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF].map(|w| itimer(w as i32));
    let mut lines = lines.to_vec();
    lines.sort_by_key(|l| l.id);
    let posix = lines
        .into_iter()
        .map(|line| {
            let out = batch.out(32);
            let time = batch.call(libc::SYS_timer_gettime, &[line.id.into(), out.into()]);
            let overrun = batch.call(libc::SYS_timer_getoverrun, &[line.id.into()]);
            (line, time, out, overrun)
        })
        .collect();
    Asked { itimers, posix }
}

/// The timers of a process (host pid `host`, `pid` in the pod); `tid` translates a thread's host tid.
pub fn timers(
    asked: &Asked,
    results: &Results,
    (host, pid): (i32, i32),
    tid: impl Fn(i32) -> Option<i32>,
    found: &mut Vec<Blocker>,
) -> Result<Timers, Error> {
    let mut timers = Timers::default();
    for ((call, out), itimer) in asked.itimers.iter().zip(&mut timers.itimers) {
        results.ret(*call).map_err(Error::read(host, "getitimer(2)"))?;
        *itimer = pair(results, *out, 1000);
    }
    for (line, time, out, overrun) in &asked.posix {
        results.ret(*time).map_err(Error::read(host, "timer_gettime(2)"))?;
        let missed = results.ret(*overrun).map_err(Error::read(host, "timer_getoverrun(2)"))?;
        let thread = if line.notify & libc::SIGEV_THREAD_ID == 0 { Some(0) } else { tid(line.pid) };
        // A clock made of a descriptor (its low bits are 3) names no clock at the target.
        if line.clock < 0 && line.clock & 7 == 3 {
            let message = format!("timer {} runs on a clock of a device", line.id);
            found.push(blocker("timer", pid, message, "delete it in the program"));
            continue;
        }
        let Some(thread) = thread else {
            let message = format!("timer {} signals a thread that has ended", line.id);
            found.push(blocker("timer", pid, message, "delete it in the program"));
            continue;
        };
        timers.posix.push(PosixTimer {
            id: line.id,
            clock: line.clock,
            notify: line.notify,
            signo: line.signo,
            sigval: line.sigval,
            tid: thread,
            time: pair(results, *out, 1),
            overrun: i32::try_from(missed).unwrap_or(i32::MAX),
        });
    }
    Ok(timers)
}

/// An `itimerval` (`unit` 1000: microseconds) or `itimerspec` (1: nanoseconds): interval first, then what is left.
fn pair(results: &Results, out: Data, unit: u64) -> Itimer {
    let word = |n: usize| results.word(out, 8 * n);
    let ns =
        |n: usize| word(n).saturating_mul(1_000_000_000).saturating_add(word(n + 1).saturating_mul(unit));
    Itimer { value_ns: ns(2), interval_ns: ns(0) }
}
