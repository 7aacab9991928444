//! `podmig move`: move a running pod to another host.

use super::reach;
use crate::base::{Failure, Kind};
use crate::cli::request::{HostRef, Mode as Asked, MoveRequest, OnTimeout as AfterTime};
use crate::cli::{Context, out, privilege};
use crate::migrate::facts;
use crate::migrate::order::{Destination, OnTimeout, Order};
use crate::migrate::report::{Outcome, Report};
use crate::migrate::source;
use crate::policy::hosts::{Host, Via};
use crate::wire::hosts::Hosts;
use crate::wire::identity::Identity;

/// Moves it; the report goes to standard output.
pub fn run(ctx: &Context, r: MoveRequest) -> Result<i32, Failure> {
    privilege::root_for("move")?;
    let live = match r.mode {
        Asked::Warm => false,
        Asked::Live => true,
        Asked::Cold => return Err(out::not_yet("move --mode cold")),
        Asked::PostCopy => return Err(out::not_yet("move --mode post-copy")),
    };
    if r.progress {
        return Err(out::not_yet("move --progress"));
    }
    let (record, _) = reach::running(ctx, &r.pod)?;
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
    };
    let to = order.to.name();
    let mut report = Report::new(record.spec.name.as_str(), &record.spec.id, &facts::hostname(), &to, "warm");
    let name = record.spec.name.to_string();
    cancel_on_signal(name, ctx.json);
    let done = source::run(&ctx.store, &me, record, &order, &mut report);
    tell(ctx, report, done, false)
}

/// Prints the report (or the failure) and turns it into an exit code.
pub(super) fn tell(
    ctx: &Context,
    mut report: Report,
    done: Result<(), Failure>,
    to_stderr: bool,
) -> Result<i32, Failure> {
    let json = |report: &Report| if to_stderr { out::json_to_stderr(report) } else { out::json(report) };
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
        other => format!("{}: {other:?}", report.pod),
    };
    if to_stderr {
        eprintln!("{text}");
    } else {
        out::line(&text);
    }
    Ok(0)
}

/// SIGINT, SIGTERM and SIGHUP: before the commit the move is cancelled (our end is all it takes: the pod's monitor
/// takes everything back), after it they are ignored.
fn cancel_on_signal(name: String, json: bool) {
    use nix::sys::signal::{SigSet, Signal};
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    if set.thread_block().is_err() {
        return;
    }
    let _ = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(signal) = set.wait() {
            if source::committed() {
                continue;
            }
            let text = format!("the move was cancelled by {signal}; the pod runs on here");
            let failure = Failure::new(Kind::BeforeCommit, name.as_str(), text);
            out::failure(&failure, json);
            std::process::exit(failure.kind.code());
        }
    });
}

fn host(ctx: &Context, host: &HostRef) -> Result<Host, Failure> {
    match host {
        HostRef::Named(name) => Ok(Hosts::new(&ctx.places.hosts()).find(name)?),
        HostRef::Ssh { target, port } => {
            let via = Via::Ssh { target: target.clone(), port: *port };
            Ok(Host { name: via.to_string(), via })
        }
    }
}
