//! `podmig receive`: accept one pod over standard input and output.

use crate::base::Failure;
use crate::cli::{Context, privilege};
use crate::migrate::worker;
use crate::wire::channel::Channel;

/// Accept one pod over standard input and output (the caller was let in by ssh).
pub fn run(ctx: &Context) -> Result<i32, Failure> {
    privilege::root_for("receive")?;
    worker::serve(&ctx.store, Channel::stdio())?;
    Ok(0)
}
