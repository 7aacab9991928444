//! What ends a move or checkpoint before its commit: a signal, `podmig cancel`, the time limit.
//!
//! Our own end is all it takes: the pod's monitor then takes everything back, and the target tears down.

use crate::base::{Failure, Kind};
use crate::cli::out;
use crate::migrate::report::Report;
use crate::migrate::{point, progress};
use crate::pod::moving::CANCEL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How an end before the commit is told, and what is to be cleaned up then.
pub struct End {
    /// The report as it was at the beginning.
    pub report: Report,
    /// `--json`.
    pub json: bool,
    /// The report goes to standard error (standard output carries data).
    pub to_stderr: bool,
    /// Part of an image that will not be finished.
    pub part: Option<PathBuf>,
    /// When it takes too long, and how the user wrote that.
    pub limit: Option<(Duration, String)>,
}

/// From now on signals cancel: before the commit the process ends with 5, after it they are ignored. To be called
/// before any other thread is started.
pub fn arm(end: End) {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    if let Ok(cancel) = Signal::try_from(CANCEL) {
        set.add(cancel);
    }
    let Ok(signals) = set.thread_block().and_then(|()| SignalFd::new(&set)) else { return };
    let _ = std::thread::Builder::new().name("signals".to_owned()).spawn(move || watch(&signals, &end));
}

fn watch(signals: &SignalFd, end: &End) {
    let began = Instant::now();
    let mut limit = end.limit.as_ref();
    loop {
        let left = limit.map(|(time, _)| time.saturating_sub(began.elapsed()));
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            i32::try_from(left.as_millis() + 1)
                .map_or(PollTimeout::MAX, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX))
        });
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let why = match poll(&mut fds, timeout) {
            Ok(0) => match limit {
                Some((time, text)) if began.elapsed() >= *time => {
                    limit = None;
                    format!("it took longer than {text} and was cancelled")
                }
                _ => continue,
            },
            Ok(_) => match signals.read_signal() {
                Ok(Some(info)) if info.ssi_signo.cast_signed() == CANCEL => "it was cancelled".to_owned(),
                Ok(Some(info)) => {
                    let name =
                        Signal::try_from(info.ssi_signo.cast_signed()).map_or("a signal", Signal::as_str);
                    format!("it was cancelled by {name}")
                }
                _ => continue,
            },
            Err(_) => continue,
        };
        if point::cancel() {
            give_up(end, &why, began);
        }
    }
}

fn give_up(end: &End, why: &str, began: Instant) -> ! {
    progress::wipe();
    if let Some(part) = &end.part {
        let _ = std::fs::remove_file(part);
    }
    let failure =
        Failure::new(Kind::BeforeCommit, end.report.pod.as_str(), format!("{why}; the pod runs on here"));
    let mut report = end.report.clone();
    report.cancel(&failure);
    report.total_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    match (end.json, end.to_stderr) {
        (true, true) => out::json_to_stderr(&report),
        (true, false) => out::json(&report),
        (false, _) => out::failure(&failure, false),
    }
    std::process::exit(failure.kind.code())
}
