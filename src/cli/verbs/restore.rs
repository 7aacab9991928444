//! `podmig restore`: bring a pod back from a file.

use crate::base::Failure;
use crate::cli::request::RestoreRequest;
use crate::cli::{Context, privilege};
use crate::migrate::facts;
use crate::migrate::report::Report;
use crate::migrate::restore::{self, RestoreOrder};
use std::time::Instant;

/// Restores it; the report goes to standard output.
pub fn run(ctx: &Context, r: RestoreRequest) -> Result<i32, Failure> {
    privilege::root_for("restore")?;
    let order = RestoreOrder {
        file: r.file,
        name: r.name,
        clone: r.clone,
        takeover: r.takeover,
        publish: r.publish,
        net: r.net,
        ip: r.ip,
        gateway: r.gateway,
        hostname: r.hostname,
    };
    let start = Instant::now();
    let mut report = Report::new("", &restore::no_id(), &order.source(), &facts::hostname(), "warm");
    let done = restore::run(&ctx.store, &order, &mut report).map(|_| ());
    report.total_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    super::r#move::tell(ctx, report, done, false)
}
