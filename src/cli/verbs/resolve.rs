//! `podmig resolve`: say where a pod in doubt lives.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Say where a pod in doubt lives.
pub fn run(_ctx: &Context, _pod: &str, _here: bool) -> Result<i32, Failure> {
    Err(out::not_yet("resolve"))
}
