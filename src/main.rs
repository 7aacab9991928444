//! The `podmig` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let typed: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if let Some(code) = podmig::pod::hidden(&typed) {
        return code;
    }
    ExitCode::from(podmig::cli::main(&typed))
}
