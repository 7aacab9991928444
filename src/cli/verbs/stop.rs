//! `podmig stop`.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Does it.
pub fn run(_ctx: &Context, _pod: &str, _time: std::time::Duration) -> Result<i32, Failure> {
    Err(out::not_yet("stop"))
}
