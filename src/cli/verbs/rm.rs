//! `podmig rm`: forgets a pod: record, log, name.

use super::reach;
use crate::base::{Failure, Kind};
use crate::cli::{Context, out, shape};
use crate::pod::client::Client;
use crate::pod::monitor;
use crate::pod::store::{Error, Record, Status};

/// Forgets it; with `force` a running pod is ended first, and no such pod is no error.
pub fn run(ctx: &Context, pod: &str, force: bool) -> Result<i32, Failure> {
    let record = match ctx.store.find(pod) {
        Err(Error::NoSuchPod { .. }) if force => return Ok(0),
        other => other?,
    };
    end_and_forget(ctx, &record, force)?;
    if ctx.json {
        out::json(&shape::Pod::new(&record));
    }
    Ok(0)
}

/// Forgets a pod; one that runs is ended first with `force`, else refused. One in doubt is never forgotten this way.
pub fn end_and_forget(ctx: &Context, record: &Record, force: bool) -> Result<(), Failure> {
    let name = record.spec.name.as_str();
    match record.status {
        Status::InDoubt => return Err(reach::in_doubt(record)),
        Status::Incoming => {
            return Err(Failure::new(Kind::Failed, name, "it is just arriving")
                .remedy("wait until it has, or end the move at its source"));
        }
        Status::Running | Status::Paused if !force => {
            let text = format!("it is {}", record.status);
            return Err(Failure::new(Kind::Failed, name, text)
                .remedy(format!("`podmig stop {name}` first, or `podmig rm -f {name}`")));
        }
        Status::Running | Status::Paused => end(ctx, record)?,
        // A monitor that died may have left a control group or a link.
        Status::Lost => monitor::sweep(&ctx.store, record)?,
        Status::Exited | Status::Checkpointed | Status::Moved => {}
    }
    ctx.store.remove(&record.spec.id)?;
    Ok(())
}

/// Ends a running pod; one that ends by itself meanwhile is as good.
fn end(ctx: &Context, record: &Record) -> Result<(), Failure> {
    let Err(f) = Client::connect(&ctx.store, record).and_then(|mut client| client.kill()) else {
        return Ok(());
    };
    match reach::ended_meanwhile(ctx, record) {
        Some(now) if now.status == Status::Lost => monitor::sweep(&ctx.store, &now),
        Some(_) => Ok(()),
        None => Err(f),
    }
}
