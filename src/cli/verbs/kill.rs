//! `podmig kill`: ends a whole pod at once, or sends its command a signal.

use super::reach;
use crate::base::Failure;
use crate::cli::Context;

/// Without a signal: SIGKILL to all, returns when the pod has ended. With one: to CMD, returns at once.
pub fn run(ctx: &Context, pod: &str, signal: Option<i32>) -> Result<i32, Failure> {
    let record = match signal {
        Some(signal) => {
            let (record, mut client) = reach::running(ctx, pod)?;
            client.signal(signal)?;
            record
        }
        None => {
            let record = reach::known(ctx, pod)?;
            if record.status.is_here() {
                let asked = reach::running(ctx, pod).and_then(|(_, mut client)| client.kill());
                if let Err(f) = asked
                    && reach::again(ctx, record.clone()).status.is_here()
                {
                    return Err(f);
                }
            }
            record
        }
    };
    reach::told(ctx, record);
    Ok(0)
}
