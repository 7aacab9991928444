//! `podmig move`: move a running pod to another host.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Move a running pod to another host.
pub fn run(_ctx: &Context, _r: crate::cli::request::MoveRequest) -> Result<i32, Failure> {
    Err(out::not_yet("move"))
}
