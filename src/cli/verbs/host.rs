//! `podmig host`: this host's identity and the hosts it trusts.

use crate::base::{Failure, Kind};
use crate::cli::{Context, out, shape, table};
use crate::pod::store::{make_dir, plain, write_atomic};
use crate::policy::hosts::{self, Host, Via};
use crate::wire::identity::Identity;
use serde::Serialize;
use std::io;

#[derive(Serialize)]
struct HostObject<'a> {
    schema: u32,
    name: &'a str,
    /// `agent` or `ssh`.
    via: &'static str,
    /// `ADDR:PORT`, or the ssh target.
    address: String,
    fingerprint: Option<&'a str>,
}

impl<'a> HostObject<'a> {
    fn new(host: &'a Host) -> Self {
        let (via, address, fingerprint) = match &host.via {
            Via::Agent { addr, fingerprint } => ("agent", addr.clone(), Some(fingerprint.as_str())),
            ssh @ Via::Ssh { .. } => ("ssh", ssh.to_string(), None),
        };
        Self { schema: shape::SCHEMA, name: &host.name, via, address, fingerprint }
    }
}

/// `host id`: prints a line that ends in the fingerprint.
pub fn id(ctx: &Context) -> Result<i32, Failure> {
    let fingerprint = Identity::load(&ctx.places.key())?.fingerprint.to_string();
    let name = crate::migrate::facts::hostname();
    if ctx.json {
        out::json(&HostId { schema: shape::SCHEMA, name, fingerprint });
    } else {
        out::line(&format!("{name} {fingerprint}"));
    }
    Ok(0)
}

#[derive(Serialize)]
struct HostId {
    schema: u32,
    name: String,
    fingerprint: String,
}

/// `host add`: trusts a host; one of the same name is replaced.
pub fn add(ctx: &Context, host: &Host) -> Result<i32, Failure> {
    let text = read(ctx)?;
    check(ctx, &text)?;
    write(ctx, &hosts::with(&text, host))?;
    told(ctx, host);
    Ok(0)
}

/// `host ls`: prints the trusted hosts.
pub fn ls(ctx: &Context) -> Result<i32, Failure> {
    let list = check(ctx, &read(ctx)?)?;
    if ctx.json {
        out::json(&list.iter().map(HostObject::new).collect::<Vec<_>>());
        return Ok(0);
    }
    let rows = list.iter().map(|h| {
        let o = HostObject::new(h);
        vec![o.name.to_owned(), o.address, o.fingerprint.unwrap_or_default().to_owned()]
    });
    out::text(&table::table(&["NAME", "ADDRESS", "FINGERPRINT"], rows.collect()));
    Ok(0)
}

/// `host rm`: trusts a host no longer.
pub fn rm(ctx: &Context, name: &str) -> Result<i32, Failure> {
    let text = read(ctx)?;
    let list = check(ctx, &text)?;
    let Some(host) = list.iter().find(|h| h.name == name) else {
        return Err(Failure::new(Kind::Failed, name, "no such host")
            .remedy("`podmig host ls` lists the trusted hosts"));
    };
    write(ctx, &hosts::without(&text, name))?;
    told(ctx, host);
    Ok(0)
}

/// With `--json` the host concerned; otherwise silence is success.
fn told(ctx: &Context, host: &Host) {
    if ctx.json {
        out::json(&HostObject::new(host));
    }
}

fn failed(ctx: &Context, what: &str, reason: &str) -> Failure {
    Failure::new(Kind::Failed, ctx.places.hosts().display().to_string(), format!("cannot {what}: {reason}"))
}

fn read(ctx: &Context) -> Result<String, Failure> {
    match std::fs::read_to_string(ctx.places.hosts()) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(failed(ctx, "read it", &plain(&e))),
    }
}

fn check(ctx: &Context, text: &str) -> Result<Vec<Host>, Failure> {
    hosts::parse(text).map_err(|reason| failed(ctx, "use it", &reason))
}

fn write(ctx: &Context, text: &str) -> Result<(), Failure> {
    make_dir(&ctx.places.etc)?;
    write_atomic(&ctx.places.hosts(), text.as_bytes()).map_err(|e| failed(ctx, "write it", &plain(&e)))
}
