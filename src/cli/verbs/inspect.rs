//! `podmig inspect`: everything known about a pod, as one JSON object.

use super::reach;
use crate::base::spec::{Limits, StartType, User, Volume};
use crate::base::{Failure, Kind};
use crate::cli::{Context, out, shape};
use crate::pod::moving::Stage;
use crate::pod::store::Record;
use jiff::Timestamp;
use serde::Serialize;
use std::path::PathBuf;

/// The object of `ps`, and more.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    pod: shape::Pod<'a>,
    hostname: &'a str,
    mac: Option<String>,
    gateway: Option<std::net::IpAddr>,
    env: &'a [String],
    workdir: &'a str,
    user: &'a User,
    umask: u32,
    tty: bool,
    r#type: StartType,
    grace_us: u64,
    rm: bool,
    volumes: &'a [Volume],
    tmpfs: &'a [String],
    limits: &'a Limits,
    cgroup_parent: Option<&'a str>,
    privileged: bool,
    created: Timestamp,
    ended: Option<Timestamp>,
    generation: u64,
    init_pid: Option<i32>,
    monitor_pid: Option<i32>,
    log: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<shape::ErrorObject<'a>>,
}

/// Prints it; a pod that moved away is shown as known here, with exit 8.
pub fn run(ctx: &Context, name: &str) -> Result<i32, Failure> {
    let record = ctx.store.find(name)?;
    let away = ctx.store.find_here(name).err().map(Failure::from).filter(|f| f.kind == Kind::Elsewhere);
    let stage = reach::stage(ctx, &record);
    let whole = whole(ctx, &record, stage.as_ref(), away.as_ref());
    if ctx.json {
        out::json(&whole);
    } else {
        out::json_pretty(&whole);
        if let Some(f) = &away {
            out::failure(f, false);
        }
    }
    Ok(away.map_or(0, |f| f.kind.code()))
}

fn whole<'a>(ctx: &Context, r: &'a Record, stage: Option<&Stage>, away: Option<&'a Failure>) -> Whole<'a> {
    let here = r.status.is_here();
    let mac = r.spec.net.mac.map(|m| m.map(|b| format!("{b:02x}")).join(":"));
    Whole {
        pod: shape::Pod::moving(r, stage),
        hostname: &r.spec.hostname,
        mac,
        gateway: r.spec.net.gateway,
        env: &r.spec.env,
        workdir: &r.spec.cwd,
        user: &r.spec.user,
        umask: r.spec.umask,
        tty: r.spec.tty,
        r#type: r.spec.start_type,
        grace_us: r.spec.grace_ms.saturating_mul(1000),
        rm: r.spec.rm,
        volumes: &r.spec.volumes,
        tmpfs: &r.spec.tmpfs,
        limits: &r.spec.limits,
        cgroup_parent: r.spec.cgroup_parent.as_deref(),
        privileged: r.spec.privileged,
        created: r.created,
        ended: r.ended,
        generation: r.generation,
        init_pid: r.init_pid.filter(|_| here),
        monitor_pid: r.monitor.as_ref().map(|m| m.pid).filter(|_| here),
        log: ctx.places.log(&r.spec.id),
        error: away.map(shape::ErrorObject::new),
    }
}
