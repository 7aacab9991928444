//! `podmig rm`.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Does it.
pub fn run(_ctx: &Context, _pod: &str, _force: bool) -> Result<i32, Failure> {
    Err(out::not_yet("rm"))
}
