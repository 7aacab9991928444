//! `podmig move`: move a running pod to another host.

use super::{interrupt, reach};
use crate::base::Failure;
use crate::cli::request::{HostRef, Mode as Asked, MoveRequest, OnTimeout as AfterTime};
use crate::cli::{Context, out, privilege};
use crate::migrate::order::{Destination, OnTimeout, Order};
use crate::migrate::progress::Form;
use crate::migrate::report::{Outcome, Predicted, Report};
use crate::migrate::{facts, point, source};
use crate::policy::hosts::{Host, Via};
use crate::wire::hosts::Hosts;
use crate::wire::identity::Identity;
use std::io::IsTerminal;

/// Moves it; the report goes to standard output.
pub fn run(ctx: &Context, r: MoveRequest) -> Result<i32, Failure> {
    privilege::root_for("move")?;
    let live = match r.mode {
        Asked::Warm => false,
        Asked::Live => true,
        Asked::Cold => return Err(out::not_yet("move --mode cold")),
        Asked::PostCopy => return Err(out::not_yet("move --mode post-copy")),
    };
    let (record, _) = reach::movable(ctx, &r.pod)?;
    let host = host(ctx, &r.host)?;
    let me = Identity::load(&ctx.places.key())?;
    let order = Order {
        to: Destination::Host(host),
        dry_run: r.dry_run,
        live,
        max_downtime: r.max_downtime,
        bandwidth: r.bandwidth,
        verify: r.verify,
        on_timeout: match r.on_timeout {
            AfterTime::Cancel => OnTimeout::Cancel,
            AfterTime::Freeze => OnTimeout::Freeze,
        },
        timeout: r.timeout,
        publish: (!r.publish.is_empty()).then(|| r.publish.clone()),
        leave_running: false,
        progress: progress_form(ctx, r.progress),
    };
    let to = order.to.name();
    let mut report = Report::new(record.spec.name.as_str(), &record.spec.id, &facts::hostname(), &to, "warm");
    let limit = (r.on_timeout == AfterTime::Cancel).then_some((r.timeout, r.timeout_text));
    interrupt::arm(interrupt::End {
        report: report.clone(),
        json: ctx.json,
        to_stderr: false,
        part: None,
        limit,
    });
    let done = source::run(&ctx.store, &me, record, &order, &mut report);
    if r.dry_run {
        report.would_move = Some(done.is_ok());
    }
    tell(ctx, report, done, false)
}

/// What a dry run found, for people.
fn foretold(report: &Report, p: &Predicted) -> String {
    let ms = |us: u64| us as f64 / 1000.0;
    format!(
        "{} would move to {}: frozen about {:.0} ms (at most {:.0} ms), {:.0} MiB in about {:.1} s",
        report.pod,
        report.to,
        ms(p.frozen_us),
        ms(p.frozen_us_max),
        p.bytes as f64 / f64::from(1 << 20),
        ms(p.total_us) / 1000.0
    )
}

/// As asked for; else a line for whoever sits at the terminal.
pub(super) fn progress_form(ctx: &Context, asked: Option<Form>) -> Form {
    match asked {
        Some(form) => form,
        None if !ctx.json && std::io::stderr().is_terminal() => Form::Line,
        None => Form::Off,
    }
}

/// Prints the report (or the failure) and turns it into an exit code.
pub(super) fn tell(
    ctx: &Context,
    mut report: Report,
    done: Result<(), Failure>,
    to_stderr: bool,
) -> Result<i32, Failure> {
    let json = |report: &Report| if to_stderr { out::json_to_stderr(report) } else { out::json(report) };
    // From here nothing is cancelled any more. Whoever did that before tells so, and ends this process.
    while !point::pass() {
        std::thread::park();
    }
    if let Err(failure) = done {
        report.fail(&failure);
        if ctx.json {
            json(&report);
            return Ok(failure.kind.code());
        }
        return Err(failure);
    }
    if ctx.json {
        json(&report);
        return Ok(0);
    }
    for warning in &report.warnings {
        out::warning(warning);
    }
    let ms = |us: u64| us as f64 / 1000.0;
    let text = match report.outcome {
        Outcome::Moved => format!(
            "{} moved to {}: frozen {:.1} ms, {:.1} MiB in {:.1} ms",
            report.pod,
            report.to,
            ms(report.frozen_us),
            report.bytes_sent as f64 / f64::from(1 << 20),
            ms(report.total_us)
        ),
        Outcome::Checkpointed => format!(
            "{} written to {}: {:.1} MiB, frozen {:.1} ms",
            report.pod,
            report.to,
            report.bytes_sent as f64 / f64::from(1 << 20),
            ms(report.frozen_us)
        ),
        Outcome::Restored => {
            format!("{} restored from {} in {:.1} ms", report.pod, report.from, ms(report.total_us))
        }
        other => match &report.predicted {
            Some(p) => foretold(&report, p),
            None => format!("{}: {other:?}", report.pod),
        },
    };
    if to_stderr {
        eprintln!("{text}");
    } else {
        out::line(&text);
    }
    Ok(0)
}

/// The host a user means.
pub(super) fn host(ctx: &Context, host: &HostRef) -> Result<Host, Failure> {
    match host {
        HostRef::Named(name) => Ok(Hosts::new(&ctx.places.hosts()).find(name)?),
        HostRef::Ssh { target, port } => {
            let via = Via::Ssh { target: target.clone(), port: *port };
            Ok(Host { name: via.to_string(), via })
        }
    }
}
