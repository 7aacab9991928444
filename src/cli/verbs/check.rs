//! `podmig check`: what this host can do, each feature really tried.

use crate::base::Failure;
use crate::cli::request::HostRef;
use crate::cli::{Context, out};

/// Tries every feature and prints a table.
pub fn run(_ctx: &Context, _host: Option<HostRef>) -> Result<i32, Failure> {
    Err(out::not_yet("check"))
}
