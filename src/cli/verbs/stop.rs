//! `podmig stop`: SIGTERM to CMD, after the time SIGKILL to all; returns when the pod has ended.

use super::reach;
use crate::base::Failure;
use crate::cli::Context;
use std::time::Duration;

/// Ends the pod; one that has ended already is no error.
pub fn run(ctx: &Context, pod: &str, time: Duration) -> Result<i32, Failure> {
    let record = reach::known(ctx, pod)?;
    if record.status.is_here() {
        let asked = reach::running(ctx, pod).and_then(|(_, mut client)| client.stop(time));
        if let Err(f) = asked
            && reach::again(ctx, record.clone()).status.is_here()
        {
            return Err(f);
        }
    }
    reach::told(ctx, record);
    Ok(0)
}
