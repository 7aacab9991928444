//! The `podmig` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if let Some(code) = podmig::pod::hidden(&args) {
        return code;
    }
    // Exit codes are 0 to 255 by contract.
    ExitCode::from(u8::try_from(podmig::cli::main()).unwrap_or(1))
}
