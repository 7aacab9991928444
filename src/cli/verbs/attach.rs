//! `podmig attach`: the input and output of a pod's command, until it ends; its status is passed.

use super::reach;
use crate::base::Failure;
use crate::cli::Context;
use crate::pod::exec;

/// Attaches. A signal, or ctrl-p ctrl-q at a terminal, leaves the pod running.
pub fn run(ctx: &Context, pod: &str) -> Result<i32, Failure> {
    let (record, client) = reach::running(ctx, pod)?;
    exec::attach(client, record.spec.tty)
}
