//! What `checkpoint`, `restore` and `move` mean.

use super::{each, flag, maybe, usage};
use crate::base::spec::{Cidr, NetMode, Publish};
use crate::base::{Failure, PodName};
use crate::cli::args::{CheckpointArgs, MoveArgs, RestoreArgs};
use crate::migrate::progress::Form;
use crate::policy::{hosts, values};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A host as typed: a name of `host ls`, or reached over ssh.
#[derive(Debug, Clone, PartialEq)]
pub enum HostRef {
    /// A name of `host ls`.
    Named(String),
    /// `ssh://[USER@]HOST[:PORT]`.
    Ssh {
        /// `[USER@]HOST`.
        target: String,
        /// Port, if not ssh's own default.
        port: Option<u16>,
    },
}

/// How a pod is moved (words of the live-migration literature).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Iterative pre-copy, then freeze, copy the rest, continue.
    Live,
    /// Freeze, copy, continue.
    Warm,
    /// Stop, ship files, start again.
    Cold,
    /// Continue, fetch pages on demand.
    PostCopy,
}

/// What happens when a move takes too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnTimeout {
    /// It is cancelled.
    Cancel,
    /// The pod is frozen and the move finished.
    Freeze,
}

/// `podmig move`.
#[derive(Debug, Clone, PartialEq)]
pub struct MoveRequest {
    /// The pod.
    pub pod: String,
    /// Where to.
    pub host: HostRef,
    /// How.
    pub mode: Mode,
    /// Only tell what would happen.
    pub dry_run: bool,
    /// Longest time the pod may stand still.
    pub max_downtime: Duration,
    /// Limit of the rate, bytes per second.
    pub bandwidth: Option<u64>,
    /// Longest time of the whole move.
    pub timeout: Duration,
    /// The same as typed.
    pub timeout_text: String,
    /// What to do then.
    pub on_timeout: OnTimeout,
    /// Compare all memory before commit.
    pub verify: bool,
    /// Ports there, instead of those here.
    pub publish: Vec<Publish>,
    /// How progress is told; `None`: as standard error is.
    pub progress: Option<Form>,
}

/// `podmig checkpoint`.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointRequest {
    /// The pod.
    pub pod: String,
    /// The file; `None` is standard output.
    pub output: Option<PathBuf>,
    /// Let the pod run on.
    pub leave_running: bool,
    /// How progress is told; `None`: as standard error is.
    pub progress: Option<Form>,
}

/// `podmig restore`.
#[derive(Debug, Clone, PartialEq)]
pub struct RestoreRequest {
    /// The file; `None` is standard input.
    pub file: Option<PathBuf>,
    /// Name to come back under.
    pub name: Option<PodName>,
    /// As a new pod.
    pub clone: bool,
    /// The original is dead.
    pub takeover: bool,
    /// Ports.
    pub publish: Vec<Publish>,
    /// Network.
    pub net: Option<NetMode>,
    /// Address.
    pub ip: Option<Cidr>,
    /// Gateway.
    pub gateway: Option<IpAddr>,
    /// Host name inside.
    pub hostname: Option<String>,
}

/// A host as typed.
pub(super) fn host_ref(text: &str) -> Result<HostRef, String> {
    if text.starts_with("ssh://") {
        return match hosts::ssh(text)? {
            hosts::Via::Ssh { target, port } => Ok(HostRef::Ssh { target, port }),
            hosts::Via::Agent { .. } => Err("it is not an ssh host".to_owned()),
        };
    }
    hosts::name(text)
        .map(HostRef::Named)
        .map_err(|_| "a host is a name of `podmig host ls` or ssh://[USER@]HOST[:PORT]".to_owned())
}

fn progress(text: Option<&String>) -> Result<Option<Form>, Failure> {
    let form = |t: &str| match t {
        "line" => Ok(Form::Line),
        "json" => Ok(Form::Json),
        "none" => Ok(Form::Off),
        _ => Err("progress is told as line, json or none".to_owned()),
    };
    maybe("--progress", text, form)
}

/// `-` is standard input or output.
fn file(text: &str) -> Result<Option<PathBuf>, String> {
    match text {
        "" => Err("the file name is empty".to_owned()),
        "-" => Ok(None),
        name => Ok(Some(PathBuf::from(name))),
    }
}

pub(super) fn checkpoint(a: CheckpointArgs) -> Result<CheckpointRequest, Failure> {
    Ok(CheckpointRequest {
        output: flag("--output", &a.output, file)?,
        progress: progress(a.progress.as_ref())?,
        pod: a.pod,
        leave_running: a.leave_running,
    })
}

pub(super) fn restore(a: &RestoreArgs) -> Result<RestoreRequest, Failure> {
    let net = maybe("--net", a.net.as_ref(), values::net)?;
    if net.as_ref().is_some_and(|n| !matches!(n, NetMode::Lan(_))) && (a.ip.is_some() || a.gateway.is_some())
    {
        return Err(usage("--ip", "it goes with --net lan:IF only"));
    }
    Ok(RestoreRequest {
        file: flag("restore", &a.file, file)?,
        name: maybe("--name", a.name.as_ref(), |t| PodName::parse(t).map_err(str::to_owned))?,
        clone: a.clone,
        takeover: a.takeover,
        publish: each("--publish", &a.publish, values::publish)?,
        net,
        ip: maybe("--ip", a.ip.as_ref(), values::cidr)?,
        gateway: maybe("--gateway", a.gateway.as_ref(), values::address)?,
        hostname: maybe("--hostname", a.hostname.as_ref(), values::hostname)?,
    })
}

/// `podmig move` (a keyword of the language, hence the name).
pub(super) fn carry(a: &MoveArgs) -> Result<MoveRequest, Failure> {
    let mode = |t: &str| match t {
        "live" => Ok(Mode::Live),
        "warm" => Ok(Mode::Warm),
        "cold" => Ok(Mode::Cold),
        "post-copy" => Ok(Mode::PostCopy),
        _ => Err("a mode is live, warm, cold or post-copy".to_owned()),
    };
    let on_timeout = |t: &str| match t {
        "cancel" => Ok(OnTimeout::Cancel),
        "freeze" => Ok(OnTimeout::Freeze),
        _ => Err("on a timeout cancel or freeze".to_owned()),
    };
    Ok(MoveRequest {
        pod: a.pod.clone(),
        host: flag("move", &a.host, host_ref)?,
        mode: flag("--mode", &a.mode, mode)?,
        dry_run: a.dry_run,
        max_downtime: flag("--max-downtime", &a.max_downtime, values::duration)?,
        bandwidth: maybe("--bandwidth", a.bandwidth.as_ref(), values::rate)?,
        timeout: flag("--timeout", &a.timeout, values::duration)?,
        timeout_text: a.timeout.clone(),
        on_timeout: flag("--on-timeout", &a.on_timeout, on_timeout)?,
        verify: a.verify,
        publish: each("--publish", &a.publish, values::publish)?,
        progress: progress(a.progress.as_ref())?,
    })
}
