//! `podmig image`: look into an image file.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Look into an image file.
pub fn run(_ctx: &Context, _file: &std::path::Path, _verify: bool) -> Result<i32, Failure> {
    Err(out::not_yet("image"))
}
