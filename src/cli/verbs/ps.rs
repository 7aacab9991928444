//! `podmig ps`: the pods of this host.

use super::reach;
use crate::base::Failure;
use crate::cli::{Context, out, shape, table};
use crate::pod::moving::Stage;
use crate::pod::store::{Record, Status};
use crate::policy::values;
use jiff::Timestamp;

/// Lists them; `all`: ended, moved and lost ones too; `quiet`: names alone.
pub fn run(ctx: &Context, all: bool, quiet: bool) -> Result<i32, Failure> {
    let mut pods = ctx.store.list()?;
    pods.retain(|r| all || r.status.is_here());
    if ctx.json {
        let stages: Vec<_> = pods.iter().map(|r| reach::stage(ctx, r)).collect();
        let both = pods.iter().zip(&stages);
        out::json(&both.map(|(r, stage)| shape::Pod::moving(r, stage.as_ref())).collect::<Vec<_>>());
    } else if quiet {
        out::text(&pods.iter().map(|r| format!("{}\n", r.spec.name)).collect::<String>());
    } else {
        let now = Timestamp::now();
        let rows = pods.iter().map(|r| row(r, reach::stage(ctx, r), now)).collect();
        out::text(&table::table(&["NAME", "STATE", "PID", "STARTED", "NET", "IP", "PORTS", "COMMAND"], rows));
    }
    Ok(0)
}

fn row(r: &Record, stage: Option<Stage>, now: Timestamp) -> Vec<String> {
    let pod = shape::Pod::new(r);
    let state = match (r.status, pod.exit_status, pod.moved_to) {
        (Status::Running, ..) if stage.is_some() => moving(&stage.unwrap_or_default()),
        (Status::Exited, Some(status), _) => format!("exited {status}"),
        (status, _, Some(host)) => format!("{status} {host}"),
        (status, ..) => status.to_string(),
    };
    vec![
        pod.name.to_owned(),
        state,
        pod.pid.map_or_else(String::new, |p| p.to_string()),
        pod.started.map_or_else(String::new, |s| format!("{} ago", table::age(s, now))),
        pod.net,
        pod.ip.map_or_else(String::new, |ip| ip.to_string()),
        r.spec.net.publish.iter().map(values::publish_text).collect::<Vec<_>>().join(" "),
        table::command(pod.cmd, 40),
    ]
}

/// A pod being moved runs; the table says where it is on its way to.
fn moving(s: &Stage) -> String {
    let round = if s.round > 0 { format!(" {}", s.round) } else { String::new() };
    format!("running, to {}: {}{round}", s.to, s.stage)
}
