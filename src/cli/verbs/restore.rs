//! `podmig restore`: bring a pod back from a file.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Bring a pod back from a file.
pub fn run(_ctx: &Context, _r: crate::cli::request::RestoreRequest) -> Result<i32, Failure> {
    Err(out::not_yet("restore"))
}
