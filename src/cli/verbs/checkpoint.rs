//! `podmig checkpoint`: write a pod to a file and stop it.

use super::r#move::{progress_form, tell};
use super::{interrupt, reach};
use crate::base::Failure;
use crate::cli::request::CheckpointRequest;
use crate::cli::{Context, privilege};
use crate::image::file::part_of;
use crate::migrate::order::{Destination, OnTimeout, Order};
use crate::migrate::report::Report;
use crate::migrate::{facts, source};
use crate::wire::identity::Identity;
use std::time::Duration;

/// Longest time a checkpoint may take before it is given up.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// Writes it; the report goes to standard output (with `-o -`: to standard error).
pub fn run(ctx: &Context, r: CheckpointRequest) -> Result<i32, Failure> {
    privilege::root_for("checkpoint")?;
    let (record, _) = reach::movable(ctx, &r.pod)?;
    let me = Identity::load(&ctx.places.key())?;
    let to_stdout = r.output.is_none();
    let order = Order {
        to: r.output.map_or(Destination::Stdout, Destination::File),
        dry_run: false,
        live: false,
        max_downtime: Duration::MAX,
        bandwidth: None,
        verify: false,
        on_timeout: OnTimeout::Cancel,
        timeout: TIMEOUT,
        publish: None,
        leave_running: r.leave_running,
        progress: progress_form(ctx, r.progress),
    };
    let (to, from) = (order.to.name(), facts::hostname());
    let mut report = Report::new(record.spec.name.as_str(), &record.spec.id, &from, &to, "warm");
    let part = match &order.to {
        Destination::File(path) => part_of(path),
        _ => None,
    };
    interrupt::arm(interrupt::End {
        report: report.clone(),
        json: ctx.json,
        to_stderr: to_stdout,
        part,
        limit: None,
    });
    let done = source::run(&ctx.store, &me, record, &order, &mut report);
    tell(ctx, report, done, to_stdout)
}
