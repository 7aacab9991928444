//! `podmig check [HOST]`: what this host can do, each feature really tried; what a move to HOST would meet.

use super::r#move::host as resolve;
use crate::base::{Failure, Kind};
use crate::cli::request::HostRef;
use crate::cli::{Context, out, shape, table};
use crate::kernel::features::{self, Finding, Need};
use crate::migrate::peer::{self, Seen};
use crate::wire::identity::Identity;
use serde::Serialize;

/// A difference of clocks that programs notice, nanoseconds.
const CLOCKS: i64 = 1_000_000_000;

/// One row; of `host` where that is not this one.
#[derive(Serialize, Debug)]
struct Row {
    schema: u32,
    host: Option<String>,
    name: String,
    works: bool,
    /// What misses it: `pods`, `moves`, `live`, `some`.
    needed_for: &'static str,
    purpose: String,
    without: String,
    detail: String,
}

impl Row {
    fn of(host: Option<&str>, f: Finding) -> Row {
        let host = host.map(str::to_owned);
        let Finding { name, need, works, purpose, without, detail } = f;
        Row { schema: shape::SCHEMA, host, name, works, needed_for: word(need), purpose, without, detail }
    }

    /// Whether something that every pod or every move needs is not there.
    fn fatal(&self) -> bool {
        !self.works && matches!(self.needed_for, "pods" | "moves")
    }
}

/// Tries every feature and prints a table; exit 1 when pods or moves miss one, 7 when HOST is not reached.
pub fn run(ctx: &Context, host: Option<HostRef>) -> Result<i32, Failure> {
    let mut rows: Vec<Row> = features::all().into_iter().map(|f| Row::of(None, f)).collect();
    let mut verdicts = vec![verdict("here", &rows)];
    let mut code = i32::from(rows.iter().any(Row::fatal));
    if let Some(host) = host {
        let host = resolve(ctx, &host)?;
        let (there, failure) = match peer::look(&Identity::load(&ctx.places.key())?, &host) {
            Ok(seen) => (compared(&host.name, seen), None),
            Err(f) => (vec![unreached(&host.name, &f)], Some(f)),
        };
        verdicts.push(verdict_of(&host.name, &there));
        code = match failure {
            Some(f) if f.kind != Kind::Failed => f.kind.code(),
            _ if there.iter().any(Row::fatal) => 1,
            _ => code,
        };
        rows.extend(there);
    }
    if ctx.json {
        out::json(&rows);
        return Ok(code);
    }
    // What works on another host is of little interest.
    let shown = |r: &&Row| r.host.is_none() || !r.works || r.name.starts_with("peer-");
    let cells = |r: &Row| {
        let works = if r.works { "yes" } else { "no" };
        let name = r.host.as_ref().map_or_else(|| r.name.clone(), |h| format!("{h}: {}", r.name));
        vec![name, works.to_owned(), r.needed_for.to_owned(), r.purpose.clone(), r.detail.clone()]
    };
    out::text(&table::table(
        &["FEATURE", "WORKS", "NEEDED FOR", "WHAT FOR", "DETAIL"],
        rows.iter().filter(shown).map(cells).collect(),
    ));
    for row in rows.iter().filter(|r| !r.works && !r.without.is_empty()) {
        let host = row.host.as_ref().map(|h| format!("{h}: ")).unwrap_or_default();
        out::line(&format!("{host}without {}: {}", row.name, row.without));
    }
    out::line("");
    verdicts.iter().for_each(|v| out::line(v));
    Ok(code)
}

fn word(need: Need) -> &'static str {
    match need {
        Need::Pods => "pods",
        Need::Moves => "moves",
        Need::Live => "live",
        Need::Some => "some",
    }
}

/// A row about the way to `host`.
fn of_peer(
    host: &str,
    name: &str,
    need: Need,
    purpose: &str,
    without: &str,
    outcome: Result<String, String>,
) -> Row {
    let works = outcome.is_ok();
    let (Ok(detail) | Err(detail)) = outcome;
    let (purpose, without) = (purpose.to_owned(), without.to_owned());
    Row::of(Some(host), Finding { name: name.to_owned(), need, works, purpose, without, detail })
}

fn unreached(host: &str, f: &Failure) -> Row {
    let text = if f.remedy.is_empty() { f.message.clone() } else { format!("{} ({})", f.message, f.remedy) };
    of_peer(host, "peer-connect", Need::Moves, "reached and trusted, both ways", "no move there", Err(text))
}

/// What a move there would meet.
fn compared(host: &str, seen: Seen) -> Vec<Row> {
    let row = |name: &str, need, purpose: &str, without: &str, outcome| {
        of_peer(host, name, need, purpose, without, outcome)
    };
    let blocked = |kind: &str| {
        let found: Vec<&str> =
            seen.blockers.iter().filter(|b| b.kind == kind).map(|b| b.message.as_str()).collect();
        (!found.is_empty()).then(|| found.join("; "))
    };
    let told = |kind: &str, fine: String| blocked(kind).map_or(Ok(fine), Err);
    let ms = seen.connected.as_secs_f64() * 1e3;
    let clock = format!("{:+.1} ms to ours", seen.ahead_ns as f64 / 1e6);
    let (ours, theirs) = (&seen.ours, &seen.theirs);
    let mut rows = vec![
        row(
            "peer-connect",
            Need::Moves,
            "reached and trusted, both ways",
            "no move there",
            Ok(format!("in {ms:.1} ms")),
        ),
        row(
            "peer-protocol",
            Need::Moves,
            "a protocol version in common",
            "no move there",
            Ok(format!("version {}, podmig {}", theirs.versions.1.min(ours.versions.1), theirs.podmig)),
        ),
        row(
            "peer-kernel",
            Need::Moves,
            "a kernel that pods of this host can go on with",
            "no move there",
            told("kernel", theirs.kernel.clone()),
        ),
        row(
            "peer-cpu",
            Need::Moves,
            "every CPU feature pods of this host may use",
            "no move there",
            told("cpu", format!("{} flags, xstate of {} bytes", theirs.cpu_flags.len(), theirs.xsave_size)),
        ),
        row(
            "peer-clock",
            Need::Some,
            "the same time of day",
            "programs see the time of day jump",
            if seen.ahead_ns.abs() < CLOCKS { Ok(clock) } else { Err(clock) },
        ),
        row(
            "peer-memory",
            Need::Some,
            "memory for pods",
            "larger pods are refused",
            Ok(format!("{} MiB to give", theirs.memory >> 20)),
        ),
    ];
    let other = seen.blockers.iter().filter(|b| b.kind != "kernel" && b.kind != "cpu");
    let other = other
        .map(|b| row(&format!("peer-{}", b.kind), Need::Moves, "", "no move there", Err(b.message.clone())));
    rows.extend(other.collect::<Vec<_>>());
    rows.extend(seen.found.into_iter().map(|f| Row::of(Some(host), f)));
    rows
}

fn missing<'a>(rows: &'a [Row], need: &str) -> Vec<&'a str> {
    rows.iter().filter(|r| r.needed_for == need && !r.works).map(|r| r.name.as_str()).collect()
}

/// What works on this host, in one line.
fn verdict(place: &str, rows: &[Row]) -> String {
    let (pods, moves) = (missing(rows, "pods"), missing(rows, "moves"));
    let tracker = rows.iter().find(|r| r.needed_for == "live" && r.works);
    match (pods.is_empty(), moves.is_empty(), tracker) {
        (false, ..) => format!("Pods cannot start {place}: {} missing", pods.join(", ")),
        (_, false, _) => format!("Pods start {place} but cannot be moved: {} missing", moves.join(", ")),
        (.., None) => format!("Pods start and move {place}, not in mode live: no way to track pages"),
        (.., Some(r)) => format!("Pods start and move {place}; pages are tracked by {}", r.name),
    }
}

/// Whether pods can move to a host, in one line.
fn verdict_of(host: &str, rows: &[Row]) -> String {
    let why: Vec<String> =
        rows.iter().filter(|r| r.fatal()).map(|r| format!("{}: {}", r.name, r.detail)).collect();
    if why.is_empty() {
        format!("Pods can move to {host}")
    } else {
        format!("Pods cannot move to {host}: {}", why.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(all: &[(&str, Need, bool)]) -> Vec<Row> {
        let finding = |(name, need, works): &(&str, Need, bool)| Finding {
            name: (*name).to_owned(),
            need: *need,
            works: *works,
            purpose: String::new(),
            without: String::new(),
            detail: "why".to_owned(),
        };
        all.iter().map(|f| Row::of(None, finding(f))).collect()
    }

    #[test]
    fn the_verdict_names_what_is_missing() {
        let all = |pods, moves, live| {
            let all = [
                ("a", Need::Pods, pods),
                ("b", Need::Moves, moves),
                ("c", Need::Live, live),
                ("d", Need::Some, false),
            ];
            (verdict("here", &rows(&all)), verdict_of("x", &rows(&all)))
        };
        assert!(all(false, true, true).0.contains("cannot start here: a missing"));
        assert!(all(true, false, true).0.contains("cannot be moved: b missing"));
        assert!(all(true, true, false).0.contains("not in mode live"));
        assert!(all(true, true, true).0.contains("tracked by c"));
        assert_eq!(all(true, false, true).1, "Pods cannot move to x: b: why");
        assert_eq!(all(true, true, false).1, "Pods can move to x");
    }
}
