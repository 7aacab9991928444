//! `podmig pause` and `podmig resume`.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Pauses.
pub fn pause(_ctx: &Context, _pod: &str) -> Result<i32, Failure> {
    Err(out::not_yet("pause"))
}

/// Resumes.
pub fn resume(_ctx: &Context, _pod: &str) -> Result<i32, Failure> {
    Err(out::not_yet("resume"))
}
