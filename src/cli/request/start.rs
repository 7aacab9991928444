//! What `podmig start` means.

use super::{each, flag, maybe, usage};
use crate::base::{Failure, PodName};
use crate::cli::args::StartArgs;
use crate::pod::define::Wanted;
use crate::policy::cpu::Level;
use crate::policy::values;
use std::path::PathBuf;

/// `podmig start`.
#[derive(Debug, Clone, PartialEq)]
pub enum StartRequest {
    /// A new pod.
    New {
        /// What the flags and the command say.
        wanted: Box<Wanted>,
        /// The definition file they win over.
        file: Option<PathBuf>,
    },
    /// An ended or lost pod again.
    Again {
        /// The pod.
        pod: String,
        /// In the foreground.
        fg: bool,
    },
}

/// The request; relative directories are taken from `cwd`.
pub fn start(args: &StartArgs, cwd: &str) -> Result<StartRequest, Failure> {
    if let Some(pod) = &args.pod {
        return again(args, pod);
    }
    if args.cmd.is_empty() && args.file.is_none() {
        return Err(usage("start", "nothing to start")
            .remedy("write `podmig start -- CMD…`, `podmig start POD` or `podmig start -f FILE.toml`"));
    }
    Ok(StartRequest::New { wanted: Box::new(wanted(args, cwd)?), file: args.file.clone() })
}

fn again(args: &StartArgs, pod: &str) -> Result<StartRequest, Failure> {
    let remedy = format!("to start a command write `podmig start -- {pod} …`");
    if !args.cmd.is_empty() {
        return Err(
            usage(pod, "either an ended POD is started again or, after `--`, a command").remedy(remedy)
        );
    }
    let bare = StartArgs { pod: Some(pod.to_owned()), fg: args.fg, ..StartArgs::default() };
    if format!("{bare:?}") != format!("{args:?}") {
        return Err(usage(
            pod,
            "a pod is started again from its stored definition, without other flags than --fg",
        )
        .remedy(remedy));
    }
    Ok(StartRequest::Again { pod: pod.to_owned(), fg: args.fg })
}

fn wanted(a: &StartArgs, cwd: &str) -> Result<Wanted, Failure> {
    let yes = |b: bool| b.then_some(true);
    let level = maybe("--cpu", a.cpu.as_ref(), Level::parse)?;
    let mut env: Vec<_> =
        level.map(Level::env).unwrap_or_default().into_iter().map(|(k, v)| (k, Some(v))).collect();
    env.extend(each("--env", &a.env, values::env_item)?);
    Ok(Wanted {
        name: maybe("--name", a.name.as_ref(), |t| PodName::parse(t).map_err(str::to_owned))?,
        net: maybe("--net", a.net.as_ref(), values::net)?,
        ip: maybe("--ip", a.ip.as_ref(), values::cidr)?,
        gateway: maybe("--gateway", a.gateway.as_ref(), values::address)?,
        publish: each("--publish", &a.publish, values::publish)?,
        tty: yes(a.tty),
        fg: yes(a.fg),
        env,
        env_host: yes(a.env_host),
        workdir: maybe("--workdir", a.workdir.as_ref(), |d| values::directory(d, cwd))?,
        user: a.user.clone(),
        hostname: maybe("--hostname", a.hostname.as_ref(), values::hostname)?,
        volumes: each("--volume", &a.volume, |t| values::volume(t, cwd))?,
        tmpfs: each("--tmpfs", &a.tmpfs, |t| values::directory(t, cwd))?,
        memory: maybe("--memory", a.memory.as_ref(), values::size)?,
        cpus: maybe("--cpus", a.cpus.as_ref(), values::cpus)?,
        pids: maybe("--pids", a.pids.as_ref(), values::pids)?,
        rm: yes(a.rm),
        start_type: maybe("--type", a.r#type.as_ref(), values::start_type)?,
        grace: maybe("--grace", a.grace.as_ref(), values::duration)?,
        restart: maybe("--restart", a.restart.as_ref(), values::restart)?,
        cgroup_parent: a
            .cgroup_parent
            .as_ref()
            .map(|t| flag("--cgroup-parent", t, values::cgroup_parent))
            .transpose()?,
        replace: yes(a.replace),
        privileged: yes(a.privileged),
        cmd: a.cmd.clone(),
    })
}
