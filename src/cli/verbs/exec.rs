//! `podmig exec`.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Does it.
pub fn run(_ctx: &Context, _r: crate::cli::request::ExecRequest) -> Result<i32, Failure> {
    Err(out::not_yet("exec"))
}
