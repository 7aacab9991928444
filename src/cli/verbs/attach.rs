//! `podmig attach`: the input and output of a pod's command, until it ends; its status is passed.

use super::reach;
use crate::base::Failure;
use crate::cli::Context;
use crate::cli::session::{Session, Signals, borrowed, pipes};

/// Attaches. A signal, or ctrl-p ctrl-q at a terminal, leaves the pod running.
pub fn run(ctx: &Context, pod: &str) -> Result<i32, Failure> {
    let (record, mut client) = reach::running(ctx, pod)?;
    let signals = Signals::take()?;
    let (ours, theirs) = pipes()?;
    client.attach(borrowed(&theirs))?;
    drop(theirs);
    client.watch(false)?;
    Session::over_pipes(client, ours, record.spec.tty, signals)?.run()
}
