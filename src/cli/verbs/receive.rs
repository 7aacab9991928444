//! `podmig receive`: accept one pod over standard input and output.

use crate::base::{Failure, Kind};
use crate::cli::{Context, privilege};
use crate::migrate::worker;
use crate::wire::channel::Channel;
use std::io::IsTerminal;

/// Accept one pod over standard input and output (the caller was let in by ssh).
pub fn run(ctx: &Context) -> Result<i32, Failure> {
    privilege::root_for("receive")?;
    if std::io::stdin().is_terminal() {
        return Err(Failure::new(
            Kind::Usage,
            "receive",
            "it speaks with `podmig move`, which runs it over ssh",
        ));
    }
    worker::serve(&ctx.store, Channel::stdio())?;
    Ok(0)
}
