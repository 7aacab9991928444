//! `podmig checkpoint`: write a pod to a file and stop it.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Write a pod to a file and stop it.
pub fn run(_ctx: &Context, _r: crate::cli::request::CheckpointRequest) -> Result<i32, Failure> {
    Err(out::not_yet("checkpoint"))
}
