//! `podmig resolve`: say where a pod in doubt lives.

use super::reach;
use crate::base::{Decision, Failure, Kind};
use crate::cli::Context;
use crate::migrate::resolve;
use crate::pod::store::Status;

/// A person's word in place of the target's, which is gone: the pod runs on here, or never again.
pub fn run(ctx: &Context, pod: &str, here: bool) -> Result<i32, Failure> {
    let record = reach::known(ctx, pod)?;
    if record.status != Status::InDoubt {
        let text = format!("it is {}, not in doubt", record.status);
        return Err(Failure::new(Kind::Failed, record.spec.name.as_str(), text));
    }
    let decision = if here { Decision::Aborted } else { Decision::Committed };
    resolve::settle(&ctx.store, &record.spec.id, decision)?;
    reach::told(ctx, record);
    Ok(0)
}
