//! `podmig pause` and `podmig resume`: all tasks of a pod stopped in their tracks, and let run on.

use super::reach;
use crate::base::Failure;
use crate::cli::Context;

/// Stops all tasks; no system call of the program ends early by it.
pub fn pause(ctx: &Context, pod: &str) -> Result<i32, Failure> {
    let (record, mut client) = reach::running(ctx, pod)?;
    client.pause()?;
    reach::told(ctx, record);
    Ok(0)
}

/// Lets them run on.
pub fn resume(ctx: &Context, pod: &str) -> Result<i32, Failure> {
    let (record, mut client) = reach::running(ctx, pod)?;
    client.resume()?;
    reach::told(ctx, record);
    Ok(0)
}
