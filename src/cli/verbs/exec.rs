//! `podmig exec`: another command in a running pod; its status is passed.

use super::reach;
use crate::base::Failure;
use crate::base::spec::User;
use crate::cli::request::ExecRequest;
use crate::cli::{Context, out, shape};
use crate::pod::define::{Caller, account, login};
use crate::pod::exec;
use crate::pod::proto::ExecSpec;
use crate::pod::store::Record;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Detached<'a> {
    schema: u32,
    name: &'a str,
    id: &'a str,
    /// Pid in the pod.
    pid: i32,
}

/// Runs it; with `-d` returns once it was executed.
pub fn run(ctx: &Context, r: ExecRequest) -> Result<i32, Failure> {
    let (record, mut client) = reach::running(ctx, &r.pod)?;
    let detach = r.detach;
    let spec = spec(&record, r)?;
    if !detach {
        return exec::command(client, &spec, false);
    }
    let session = client.exec(&spec, None)?;
    if ctx.json {
        let (name, id) = (record.spec.name.as_str(), record.spec.id.as_str());
        out::json(&Detached { schema: shape::SCHEMA, name, id, pid: session.pid });
    }
    Ok(0)
}

/// What to run: the pod's user, directory and environment unless told otherwise.
fn spec(record: &Record, r: ExecRequest) -> Result<ExecSpec, Failure> {
    let caller = Caller::here()?;
    let pod = &record.spec;
    let user: User = match &r.user {
        Some(text) => account(Some(text), &caller)?,
        None => pod.user.clone(),
    };
    let split = |item: &String| item.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    let mut env: BTreeMap<String, String> = pod.env.iter().filter_map(split).collect();
    if r.user.is_some() {
        env.extend(login(&user).map(|(k, v)| (k.to_owned(), v)));
    }
    if r.tty {
        let term = caller.env.get("TERM").cloned().unwrap_or_else(|| "xterm".to_owned());
        env.insert("TERM".to_owned(), term);
    }
    for (key, value) in &r.env {
        match value.as_ref().or_else(|| caller.env.get(key)) {
            Some(value) => drop(env.insert(key.clone(), value.clone())),
            None => drop(env.remove(key)),
        }
    }
    Ok(ExecSpec {
        cmd: r.cmd,
        env: env.into_iter().map(|(k, v)| format!("{k}={v}")).collect(),
        cwd: r.workdir.unwrap_or_else(|| pod.cwd.clone()),
        user,
        umask: pod.umask,
        tty: r.tty.then(|| exec::caller_size().unwrap_or((24, 80))),
    })
}
