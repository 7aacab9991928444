//! `podmig attach`.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Does it.
pub fn run(_ctx: &Context, _pod: &str) -> Result<i32, Failure> {
    Err(out::not_yet("attach"))
}
