//! `podmig receive`: accept one pod over standard input and output.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Accept one pod over standard input and output.
pub fn run(_ctx: &Context) -> Result<i32, Failure> {
    Err(out::not_yet("receive"))
}
