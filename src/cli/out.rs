//! How anything is printed: text, one JSON object, failures. A closed pipe on standard output is success.

use super::shape;
use crate::base::{Failure, Kind};
use serde::Serialize;
use std::io::{self, Write};

/// Prints text as it is.
pub fn text(text: &str) {
    bytes(text.as_bytes());
}

/// Prints one line.
pub fn line(text: &str) {
    bytes(format!("{text}\n").as_bytes());
}

/// Prints bytes.
pub fn bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => {}
        // Whoever read has seen enough (`podmig ps | head -1`).
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => {
            eprintln!("podmig: standard output: cannot write: {}", crate::pod::store::plain(&e));
            std::process::exit(Kind::Failed.code());
        }
    }
}

/// Prints one JSON value on one line.
pub fn json<T: Serialize>(value: &T) {
    match serde_json::to_string(value) {
        Ok(text) => line(&text),
        Err(e) => eprintln!("podmig: cannot write JSON: {e}"),
    }
}

/// Prints one JSON value for people to read.
pub fn json_pretty<T: Serialize>(value: &T) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(&text),
        Err(e) => eprintln!("podmig: cannot write JSON: {e}"),
    }
}

/// Tells a failure: text on standard error, or with `--json` one object on standard output.
pub fn failure(failure: &Failure, as_json: bool) {
    if as_json {
        json(&shape::Failed::new(failure));
    } else {
        eprintln!("podmig: {failure}");
    }
}

/// One JSON object on standard error, where standard output carries data.
pub fn json_to_stderr<T: Serialize>(value: &T) {
    match serde_json::to_string(value) {
        Ok(text) => eprintln!("{text}"),
        Err(e) => eprintln!("podmig: {e}"),
    }
}

/// Says that something went on less well than asked.
pub fn warning(text: &str) {
    eprintln!("podmig: warning: {text}");
}

/// What is not built yet: exit 2, as the contract has it.
pub fn not_yet(what: &str) -> Failure {
    Failure::new(Kind::Usage, "", format!("not yet supported: {what}"))
}
