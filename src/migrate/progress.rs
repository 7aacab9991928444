//! Progress of a move on standard error: one calm line on a terminal, or JSON lines.
//!
//! Printed by a thread of its own, so that a terminal that stopped reading holds up neither rounds nor freeze. What
//! is shown never goes backwards: stages and rounds only advance, within a round the rest only shrinks.

use crate::base::PodId;
use crate::kernel::tty;
use crate::pod::moving::Stage;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two updates within one round.
const CALM: Duration = Duration::from_millis(100);
/// Between two lines within one round where lines stay (standard error is no terminal).
const SELDOM: Duration = Duration::from_secs(1);

/// Whether a line without its end stands on the terminal.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// How progress is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Form {
    /// Not at all.
    #[default]
    Off,
    /// A line for people.
    Line,
    /// One JSON object a line.
    Json,
}

/// Where a move is, as `--progress json` tells it; fields are only added.
#[derive(Serialize, Debug, PartialEq)]
struct Told<'a> {
    schema: u32,
    pod: &'a str,
    id: &'a PodId,
    to: &'a str,
    stage: &'a str,
    round: u32,
    bytes_left: u64,
    bytes_sent: u64,
    bytes_per_s: Option<u64>,
    dirty_bytes_per_s: Option<u64>,
    expected_frozen_us: Option<u64>,
    elapsed_us: u64,
}

/// Takes updates and tells them, not too often. Dropping it clears the line.
pub struct Progress {
    last: Option<(Instant, Stage)>,
    work: Option<Work>,
    tell: Option<mpsc::Sender<Stage>>,
    teller: Option<JoinHandle<()>>,
}

/// What is being sent.
struct Work {
    left: u64,
    since: Instant,
    /// On the wire before it.
    before: u64,
}

impl Progress {
    /// Progress of one move or checkpoint. A thread that cannot be started means no progress is told.
    pub fn new(form: Form, pod: &str, id: &PodId) -> Self {
        let mut progress = Self { last: None, work: None, tell: None, teller: None };
        if form == Form::Off {
            return progress;
        }
        let (tell, told) = mpsc::channel();
        let (pod, id, started) = (pod.to_owned(), id.clone(), Instant::now());
        let printer = move || match form {
            Form::Json => print_json(&told, &pod, &id, started),
            _ => print_lines(&told, &pod),
        };
        if let Ok(thread) = std::thread::Builder::new().name("progress".to_owned()).spawn(printer) {
            (progress.tell, progress.teller) = (Some(tell), Some(thread));
        }
        progress
    }

    /// So many bytes are to be sent now; `sent` are on the wire since the move began.
    pub fn begin(&mut self, bytes: u64, sent: u64) {
        self.work = Some(Work { left: bytes, since: Instant::now(), before: sent });
    }

    /// So many of them were sent: the stage as it is then.
    pub fn went(&mut self, bytes: u64, sent: u64) -> Stage {
        let mut stage = self.last.as_ref().map(|(_, last)| last.clone()).unwrap_or_default();
        if let Some(work) = &mut self.work {
            work.left = work.left.saturating_sub(bytes);
            let us = work.since.elapsed().as_micros().max(1);
            let rate = u128::from(sent.saturating_sub(work.before)) * 1_000_000 / us;
            stage.bytes_left = work.left;
            stage.rate = u64::try_from(rate).unwrap_or(u64::MAX);
        }
        Stage { bytes_sent: sent, ..stage }
    }

    /// Whether `stage` is news: another stage or round, or some time has passed. If it is, it is told, and returned
    /// as it may be shown to others.
    pub fn news(&mut self, stage: Stage) -> Option<Stage> {
        let now = Instant::now();
        let stage = match &self.last {
            Some((_, last)) => forward(last, stage),
            None => stage,
        };
        let same = |(at, last): &(Instant, Stage)| {
            last.stage == stage.stage && last.round == stage.round && now.duration_since(*at) < CALM
        };
        if self.last.as_ref().is_some_and(same) {
            return None;
        }
        self.last = Some((now, stage.clone()));
        if let Some(tell) = &self.tell {
            let _ = tell.send(stage.clone());
        }
        Some(stage)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.tell = None;
        if let Some(teller) = self.teller.take() {
            let _ = teller.join();
        }
    }
}

/// Never backwards.
fn forward(last: &Stage, now: Stage) -> Stage {
    let round = now.round.max(last.round);
    // A stage may begin before it is known how much there is to do.
    let same = now.stage == last.stage && round == last.round && last.bytes_left > 0;
    Stage {
        round,
        bytes_left: if same { now.bytes_left.min(last.bytes_left) } else { now.bytes_left },
        bytes_sent: now.bytes_sent.max(last.bytes_sent),
        ..now
    }
}

/// Unknown is 0 inside, null outside.
fn known(n: u64) -> Option<u64> {
    (n > 0).then_some(n)
}

fn print_json(told: &mpsc::Receiver<Stage>, pod: &str, id: &PodId, started: Instant) {
    for s in told {
        let line = Told {
            schema: 1,
            pod,
            id,
            to: &s.to,
            stage: &s.stage,
            round: s.round,
            bytes_left: s.bytes_left,
            bytes_sent: s.bytes_sent,
            bytes_per_s: known(s.rate),
            dirty_bytes_per_s: known(s.dirty_rate),
            expected_frozen_us: known(s.expected_frozen_us),
            elapsed_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        if let Ok(mut text) = serde_json::to_string(&line) {
            text.push('\n');
            // One write a line: lines of others do not come in between. Nobody listens: nothing to tell.
            let _ = io::stderr().lock().write_all(text.as_bytes());
        }
    }
}

fn print_lines(told: &mpsc::Receiver<Stage>, pod: &str) {
    let smart = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
    let mut last: Option<(Instant, Stage)> = None;
    for s in told {
        let text = line(pod, &s);
        if smart {
            let width = tty::size(io::stderr()).map_or(0, |(_, columns)| usize::from(columns));
            let width = if width < 20 { 80 } else { width };
            let cut: String = text.chars().take(width - 1).collect();
            SHOWN.store(true, Ordering::SeqCst);
            let _ = io::stderr().lock().write_all(format!("\r{cut}\x1b[K").as_bytes());
        } else {
            let same = |(at, l): &(Instant, Stage)| {
                l.stage == s.stage && l.round == s.round && at.elapsed() < SELDOM
            };
            if !last.as_ref().is_some_and(same) {
                let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
                last = Some((Instant::now(), s));
            }
        }
    }
    wipe();
}

/// Takes the line off the terminal, before something else is printed there.
pub fn wipe() {
    if SHOWN.swap(false, Ordering::SeqCst) {
        let _ = io::stderr().lock().write_all(b"\r\x1b[K");
    }
}

/// The line for people.
pub fn line(pod: &str, s: &Stage) -> String {
    let mut text = format!("{pod} to {}: {}", s.to, s.stage);
    if s.round > 0 {
        text += &format!(", round {}", s.round);
    }
    if s.bytes_left > 0 {
        text += &format!(", {} left", size(s.bytes_left));
    }
    if s.rate > 0 {
        text += &format!(", {}/s", size(s.rate));
    }
    if s.dirty_rate > 0 {
        text += &format!(", {}/s written by the pod", size(s.dirty_rate));
    }
    if s.expected_frozen_us > 0 {
        text += &format!(", pause about {:.0} ms", (s.expected_frozen_us as f64 / 1000.0).max(1.0));
    }
    text
}

/// A size in one unit.
fn size(bytes: u64) -> String {
    let (kib, mib, gib) = (1 << 10, 1 << 20, 1 << 30);
    match bytes {
        b if b >= 10 * gib => format!("{:.1} GiB", b as f64 / gib as f64),
        b if b >= mib => format!("{} MiB", b / mib),
        b => format!("{} KiB", b.div_ceil(kib)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(stage: &str, round: u32, left: u64) -> Stage {
        Stage { to: "b".into(), round, bytes_left: left, ..Stage::named(stage) }
    }

    #[test]
    fn nothing_goes_backwards_and_little_is_said() {
        let mut progress = Progress::new(Form::Off, "web", &PodId::from_bits(1));
        assert_eq!(progress.news(at("pre-copy", 1, 100)).unwrap().bytes_left, 100);
        assert!(progress.news(at("pre-copy", 1, 90)).is_none(), "too soon");
        assert_eq!(progress.news(at("pre-copy", 2, 40)).unwrap().bytes_left, 40);
        assert!(progress.news(at("pre-copy", 1, 10)).is_none(), "an earlier round");
        assert_eq!(progress.news(at("stop-and-copy", 0, 5)).unwrap().round, 2);
        assert_eq!(forward(&at("x", 1, 5), at("x", 1, 9)).bytes_left, 5);
    }

    #[test]
    fn what_was_sent_counts() {
        let mut progress = Progress::new(Form::Off, "web", &PodId::from_bits(1));
        progress.news(at("stop-and-copy", 2, 0));
        progress.begin(100, 1000);
        let s = progress.went(60, 1060);
        assert_eq!((s.stage.as_str(), s.bytes_left, s.bytes_sent), ("stop-and-copy", 40, 1060));
        assert!(s.rate > 0);
        assert_eq!(progress.went(60, 1120).bytes_left, 0);
    }

    #[test]
    fn the_line_says_what_is_known() {
        assert_eq!(line("web", &at("reservation", 0, 0)), "web to b: reservation");
        let s = Stage {
            rate: 1 << 30,
            dirty_rate: 1 << 19,
            expected_frozen_us: 7600,
            ..at("pre-copy", 3, 34 << 20)
        };
        assert_eq!(
            line("web", &s),
            "web to b: pre-copy, round 3, 34 MiB left, 1024 MiB/s, 512 KiB/s written by the pod, pause about 8 ms"
        );
    }
}
