//! `podmig watch`: follow the move of a pod.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Follow the move of a pod.
pub fn run(_ctx: &Context, _pod: &str) -> Result<i32, Failure> {
    Err(out::not_yet("watch"))
}
