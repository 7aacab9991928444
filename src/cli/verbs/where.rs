//! `podmig where`: on which host a pod lives.

use crate::base::{Failure, Kind};
use crate::cli::{Context, out, shape};
use crate::pod::store::Status;
use serde::Serialize;

#[derive(Serialize)]
struct Where<'a> {
    schema: u32,
    name: &'a str,
    id: &'a str,
    state: Status,
    /// Null: this host.
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<shape::ErrorObject<'a>>,
}

/// Prints `here` (exit 0), or the other host: exit 8 when it moved there, 6 when that is in doubt.
pub fn run(ctx: &Context, name: &str) -> Result<i32, Failure> {
    let record = ctx.store.find(name)?;
    let pod = shape::Pod::new(&record);
    let failure = match record.status {
        Status::Moved => ctx.store.find_here(name).err().map(Failure::from),
        Status::InDoubt => Some(
            Failure::new(
                Kind::InDoubt,
                pod.name,
                format!(
                    "it was being moved to {}, which has not answered yet",
                    pod.moved_to.unwrap_or("another host")
                ),
            )
            .remedy(format!("`podmig resolve {} --here|--there` if that host is gone for good", pod.name)),
        ),
        _ => None,
    };
    if ctx.json {
        out::json(&Where {
            schema: shape::SCHEMA,
            name: pod.name,
            id: pod.id,
            state: pod.state,
            host: pod.moved_to,
            error: failure.as_ref().map(shape::ErrorObject::new),
        });
    } else {
        out::line(pod.moved_to.unwrap_or("here"));
        if let Some(f) = &failure {
            out::failure(f, false);
        }
    }
    Ok(failure.map_or(0, |f| f.kind.code()))
}
