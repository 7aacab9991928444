//! `podmig check`: what this host can do, each feature really tried.

use crate::base::Failure;
use crate::cli::request::HostRef;
use crate::cli::{Context, out, shape, table};
use crate::kernel::features::{self, Finding, Need};
use serde::Serialize;

#[derive(Serialize)]
struct Row<'a> {
    schema: u32,
    name: &'a str,
    works: bool,
    /// What misses it: `pods`, `moves`, `live`, `some`.
    needed_for: &'static str,
    detail: &'a str,
}

/// Tries every feature and prints a table; exit 1 when pods or moves miss one.
pub fn run(ctx: &Context, host: Option<HostRef>) -> Result<i32, Failure> {
    if host.is_some() {
        return Err(out::not_yet("check of another host"));
    }
    let found = features::all();
    if ctx.json {
        let row = |f| Row {
            schema: shape::SCHEMA,
            name: name(f),
            works: f.works,
            needed_for: word(f.need),
            detail: &f.detail,
        };
        out::json(&found.iter().map(row).collect::<Vec<_>>());
    } else {
        let row = |f: &Finding| {
            let works = if f.works { "yes" } else { "no" };
            vec![f.name.clone(), works.to_owned(), word(f.need).to_owned(), f.detail.clone()]
        };
        out::text(&table::table(
            &["FEATURE", "WORKS", "NEEDED FOR", "DETAIL"],
            found.iter().map(row).collect(),
        ));
        out::line("");
        out::line(&verdict(&found));
    }
    Ok(i32::from(found.iter().any(|f| !f.works && matches!(f.need, Need::Pods | Need::Moves))))
}

fn name(f: &Finding) -> &str {
    &f.name
}

fn word(need: Need) -> &'static str {
    match need {
        Need::Pods => "pods",
        Need::Moves => "moves",
        Need::Live => "live",
        Need::Some => "some",
    }
}

/// What works here, in one line.
fn verdict(found: &[Finding]) -> String {
    let missing =
        |need: Need| found.iter().filter(|f| f.need == need && !f.works).map(name).collect::<Vec<_>>();
    let (pods, moves) = (missing(Need::Pods), missing(Need::Moves));
    let tracker = found.iter().find(|f| f.need == Need::Live && f.works);
    match (pods.is_empty(), moves.is_empty(), tracker) {
        (false, ..) => format!("Pods cannot start here: {} missing", pods.join(", ")),
        (_, false, _) => format!("Pods start here but cannot be moved: {} missing", moves.join(", ")),
        (.., None) => "Pods start and move here, not in mode live: no way to track pages".to_owned(),
        (.., Some(f)) => format!("Pods start and move here; pages are tracked by {}", f.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_names_what_is_missing() {
        let f = |name: &str, need, works| Finding { name: name.into(), need, works, detail: String::new() };
        let all = |pods, moves, live| {
            verdict(&[
                f("a", Need::Pods, pods),
                f("b", Need::Moves, moves),
                f("c", Need::Live, live),
                f("d", Need::Some, false),
            ])
        };
        assert!(all(false, true, true).contains("cannot start here: a missing"));
        assert!(all(true, false, true).contains("cannot be moved: b missing"));
        assert!(all(true, true, false).contains("not in mode live"));
        assert!(all(true, true, true).contains("tracked by c"));
    }
}
