//! The command line: a contract with other people’s scripts (names, JSON fields, exit codes).
//!
//! `args` is what can be typed, `request` what it means, `verbs` what is done (one file each), `shape` the JSON
//! objects, `out` how anything is printed.

pub mod args;
pub mod man;
pub mod out;
pub mod privilege;
pub mod request;
pub mod shape;
pub mod table;
pub mod verbs;

use crate::base::{Failure, Kind};
use crate::migrate::progress;
use crate::pod::store::{Places, Store};
use args::Cli;
use clap::Parser;
use clap::error::ErrorKind;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;

/// What every verb has at hand.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where things lie.
    pub places: Places,
    /// The pods of this host.
    pub store: Store,
    /// One JSON object instead of text.
    pub json: bool,
}

/// Runs a command line (with the program's name); the exit code.
pub fn main(typed: &[OsString]) -> u8 {
    let typed = &bare_progress(typed);
    let code = match Cli::try_parse_from(typed) {
        Ok(cli) => run(cli, passes_status(typed)),
        Err(e) => not_understood(&e, typed),
    };
    u8::try_from(code).unwrap_or(1)
}

/// `--progress` alone asks for the line: what follows it is taken as its value only if it is one.
fn bare_progress(typed: &[OsString]) -> Vec<OsString> {
    let dashes = typed.iter().position(|w| w == "--").unwrap_or(typed.len());
    let form = |w: Option<&OsString>| w.is_some_and(|w| ["line", "json", "none"].iter().any(|f| w == f));
    let word = |(n, w): (usize, &OsString)| {
        let bare = n < dashes && w == "--progress" && !form(typed.get(n + 1));
        if bare { OsString::from("--progress=line") } else { w.clone() }
    };
    typed.iter().enumerate().map(word).collect()
}

fn run(cli: Cli, passes: bool) -> i32 {
    let json = cli.json;
    let result = log_to_stderr(carries_data(&cli.command)).and_then(|()| {
        let root = cli.root.as_deref().filter(|r| *r != Path::new(""));
        let places = Places::resolve(root);
        let store = Store::open(&places);
        let cwd = std::env::current_dir().ok().and_then(|d| d.into_os_string().into_string().ok());
        let request = request::request(cli.command, cwd.as_deref().unwrap_or("/"))?;
        verbs::run(&Context { places, store, json }, request)
    });
    match result {
        Ok(code) => code,
        Err(failure) => {
            out::failure(&failure, json);
            code(&failure, passes)
        }
    }
}

/// The exit code of a failure; a verb that passes a program's status has only three of its own.
pub(in crate::cli) fn code(failure: &Failure, passes: bool) -> i32 {
    match failure.kind {
        Kind::CannotExecute | Kind::NoSuchCommand => failure.kind.code(),
        _ if passes => 125,
        kind => kind.code(),
    }
}

fn not_understood(e: &clap::Error, typed: &[OsString]) -> i32 {
    if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        out::text(&e.render().to_string());
        return 0;
    }
    let text = e.render().to_string();
    if before_dashes(typed).any(|w| w == "--json") {
        let reason = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        out::failure(&Failure::new(Kind::Usage, "", reason), true);
    } else {
        eprint!("podmig: {}", text.trim_start_matches("error: "));
    }
    if passes_status(typed) { 125 } else { Kind::Usage.code() }
}

fn before_dashes(typed: &[OsString]) -> impl Iterator<Item = &OsString> {
    typed.iter().skip(1).take_while(|w| *w != "--")
}

/// Whether the verb passes the status of a program (`attach`, `exec`, `start --fg`).
fn passes_status(typed: &[OsString]) -> bool {
    let mut words = before_dashes(typed);
    let mut verb = None;
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--root") => drop(words.next()),
            Some(flag) if flag.starts_with('-') => {}
            other => {
                verb = other;
                break;
            }
        }
    }
    match verb {
        Some("attach" | "exec") => true,
        Some("start") => words.any(|w| w == "--fg"),
        _ => false,
    }
}

/// Whether standard error carries JSON for a script: then nothing else is written there unasked.
fn carries_data(command: &args::Command) -> bool {
    let form = match command {
        args::Command::Move(m) => m.progress.as_deref(),
        args::Command::Checkpoint(c) => c.progress.as_deref(),
        _ => None,
    };
    form == Some("json")
}

/// Diagnostics on standard error, as `PODMIG_LOG` says (error, warn, info, debug, trace; or a filter).
fn log_to_stderr(quiet: bool) -> Result<(), Failure> {
    use tracing_subscriber::EnvFilter;
    let level = std::env::var("PODMIG_LOG").unwrap_or_default();
    let level = match (level.is_empty(), quiet) {
        (false, _) => level,
        (true, false) => "warn".to_owned(),
        (true, true) => "off".to_owned(),
    };
    let filter = EnvFilter::try_new(&level).map_err(|_| {
        Failure::new(Kind::Usage, "PODMIG_LOG", "it is error, warn, info, debug, trace or a filter of those")
    })?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    // A line of progress may stand there.
    let stderr = || {
        progress::wipe();
        std::io::stderr()
    };
    let made = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(colour);
    // A second call in one process (tests) keeps the first.
    let _ = made.try_init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_takes_only_its_own_words() {
        let words = |line: &str| line.split_whitespace().map(OsString::from).collect::<Vec<_>>();
        for (typed, meant) in [
            ("podmig move --progress web b", "podmig move --progress=line web b"),
            ("podmig move web b --progress", "podmig move web b --progress=line"),
            ("podmig move --progress json web b", "podmig move --progress json web b"),
            ("podmig start -- x --progress", "podmig start -- x --progress"),
        ] {
            assert_eq!(bare_progress(&words(typed)), words(meant));
        }
    }

    #[test]
    fn which_verbs_pass_a_status() {
        let words = |line: &str| line.split_whitespace().map(OsString::from).collect::<Vec<_>>();
        for yes in
            ["podmig exec web -- x", "podmig --json --root /r attach web", "podmig start --rm --fg -- x"]
        {
            assert!(passes_status(&words(yes)), "{yes}");
        }
        for no in ["podmig start -- x --fg", "podmig ps", "podmig stop exec", "podmig"] {
            assert!(!passes_status(&words(no)), "{no}");
        }
    }
}
