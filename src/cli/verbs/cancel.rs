//! `podmig cancel`: cancel the move of a pod before its commit.

use super::reach;
use crate::base::{Failure, Kind};
use crate::cli::Context;
use crate::pod::moving::{Reply, Request};

/// Cancels the move (or checkpoint) under way; returns when the pod runs on here. Exit 1 when there is none or it is
/// too late.
pub fn run(ctx: &Context, pod: &str) -> Result<i32, Failure> {
    let (record, mut client) = reach::running(ctx, pod)?;
    let name = record.spec.name.as_str();
    match client.moving(Request::Cancel) {
        Ok(Reply::Done) => {}
        Ok(_) => {
            return Err(Failure::new(
                Kind::Failed,
                name,
                "the pod's monitor gave an answer that does not fit",
            ));
        }
        Err(f) => {
            // It may have left, or be in doubt, by now: that says more.
            reach::known(ctx, pod)?;
            return Err(Failure { object: name.to_owned(), ..f });
        }
    }
    reach::told(ctx, record);
    Ok(0)
}
