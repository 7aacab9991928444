//! `podmig kill`.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Does it.
pub fn run(_ctx: &Context, _pod: &str, _signal: Option<i32>) -> Result<i32, Failure> {
    Err(out::not_yet("kill"))
}
