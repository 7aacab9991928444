//! What a command line means: pure functions from what was typed to requests with parsed values.

mod moves;
mod start;

pub use moves::{CheckpointRequest, HostRef, Mode, MoveRequest, OnTimeout, RestoreRequest};
pub use start::{StartRequest, start};

use super::args::{
    Command, DnsCommand, ExecArgs, GenerateCommand, HostCommand, ImageCommand, LogsArgs, WaitArgs,
};
use crate::base::{Failure, Kind};
use crate::policy::hosts::{self, Host, Via};
use crate::policy::values;
use jiff::Timestamp;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// `start`.
    Start(Box<StartRequest>),
    /// `ps`.
    Ps {
        /// Ended ones too.
        all: bool,
        /// Names alone.
        quiet: bool,
    },
    /// `inspect`.
    Inspect(String),
    /// `where`.
    Where(String),
    /// `port`.
    Port(String),
    /// `logs`.
    Logs(LogsRequest),
    /// `attach`.
    Attach(String),
    /// `exec`.
    Exec(ExecRequest),
    /// `wait`.
    Wait(WaitRequest),
    /// `pause`.
    Pause(String),
    /// `resume`.
    Resume(String),
    /// `stop`: pod, time to end.
    Stop(String, Duration),
    /// `kill`: pod, signal; none: the whole pod.
    Kill(String, Option<i32>),
    /// `rm`: pod, force.
    Rm(String, bool),
    /// `checkpoint`.
    Checkpoint(CheckpointRequest),
    /// `restore`.
    Restore(Box<RestoreRequest>),
    /// `move`.
    Move(Box<MoveRequest>),
    /// `watch`.
    Watch(String),
    /// `cancel`.
    Cancel(String),
    /// `resolve`: pod, whether it lives here.
    Resolve(String, bool),
    /// `agent`: where to listen.
    Agent(SocketAddr),
    /// `receive`.
    Receive,
    /// `check`.
    Check(Option<HostRef>),
    /// `image show` (false) or `image verify` (true).
    Image(PathBuf, bool),
    /// `generate man`.
    GenerateMan,
    /// `generate completions`.
    GenerateCompletions(Option<String>),
    /// `generate systemd`.
    GenerateSystemd(Option<String>),
    /// `version`.
    Version,
    /// `host id`.
    HostId,
    /// `host add`.
    HostAdd(Host),
    /// `host ls`.
    HostLs,
    /// `host rm`.
    HostRm(String),
    /// `dns serve`: zone, where to listen.
    DnsServe(String, SocketAddr),
    /// `dns use`.
    DnsUse {
        /// The server.
        server: SocketAddr,
        /// The zone.
        zone: String,
        /// The key file.
        key: PathBuf,
    },
    /// `dns show`.
    DnsShow,
    /// `drain` (reserved).
    Drain,
}

/// `podmig logs`.
#[derive(Debug, Clone, PartialEq)]
pub struct LogsRequest {
    /// The pod.
    pub pod: String,
    /// Go on until it ends.
    pub follow: bool,
    /// Only the last lines.
    pub tail: Option<usize>,
    /// Only what is younger.
    pub since: Option<Since>,
}

/// A point in time as typed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Since {
    /// A date.
    Date(Timestamp),
    /// So long ago.
    Ago(Duration),
}

/// `podmig exec`.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecRequest {
    /// The pod.
    pub pod: String,
    /// With a terminal.
    pub tty: bool,
    /// Return at once.
    pub detach: bool,
    /// Environment items.
    pub env: Vec<(String, Option<String>)>,
    /// Working directory, absolute; the pod's when not given.
    pub workdir: Option<String>,
    /// User.
    pub user: Option<String>,
    /// The command.
    pub cmd: Vec<String>,
}

/// `podmig wait`.
#[derive(Debug, Clone, PartialEq)]
pub struct WaitRequest {
    /// The pod.
    pub pod: String,
    /// For what.
    pub until: Until,
    /// How long at most.
    pub timeout: Option<Duration>,
}

/// What to wait for.
#[derive(Debug, Clone, PartialEq)]
pub enum Until {
    /// The pod is over.
    Exit,
    /// It is up as its type says.
    Ready,
    /// It listens on this TCP port.
    Tcp(u16),
    /// Its log has a line with this text.
    Log(String),
}

/// A usage failure about one value.
pub(super) fn usage(object: impl Into<String>, reason: impl Into<String>) -> Failure {
    Failure::new(Kind::Usage, object, reason)
}

/// Parses a flag's value; the failure names flag and value.
pub(super) fn flag<T>(
    name: &str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, Failure> {
    parse(text).map_err(|reason| usage(format!("{name} {text}"), reason))
}

/// Parses a flag's value if it was given.
pub(super) fn maybe<T>(
    name: &str,
    text: Option<&String>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, Failure> {
    text.map(|t| flag(name, t, parse)).transpose()
}

/// Parses every value of a repeated flag.
pub(super) fn each<T>(
    name: &str,
    list: &[String],
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, Failure> {
    list.iter().map(|t| flag(name, t, &parse)).collect()
}

/// The request a command line means; relative directories are taken from `cwd`.
pub fn request(command: Command, cwd: &str) -> Result<Request, Failure> {
    Ok(match command {
        Command::Start(args) => Request::Start(Box::new(start(&args, cwd)?)),
        Command::Ps { all, quiet } => Request::Ps { all, quiet },
        Command::Inspect(p) => Request::Inspect(p.pod),
        Command::Where(p) => Request::Where(p.pod),
        Command::Port(p) => Request::Port(p.pod),
        Command::Logs(args) => Request::Logs(logs(args)?),
        Command::Attach(p) => Request::Attach(p.pod),
        Command::Exec(args) => Request::Exec(exec(args, cwd)?),
        Command::Wait(args) => Request::Wait(wait(args)?),
        Command::Pause(p) => Request::Pause(p.pod),
        Command::Resume(p) => Request::Resume(p.pod),
        Command::Stop { pod, time } => Request::Stop(pod, flag("--time", &time, values::duration)?),
        Command::Kill { pod, signal } => {
            Request::Kill(pod, maybe("--signal", signal.as_ref(), values::signal)?)
        }
        Command::Rm { pod, force } => Request::Rm(pod, force),
        Command::Checkpoint(args) => Request::Checkpoint(moves::checkpoint(args)?),
        Command::Restore(args) => Request::Restore(Box::new(moves::restore(&args)?)),
        Command::Move(args) => Request::Move(Box::new(moves::carry(&args)?)),
        Command::Watch(p) => Request::Watch(p.pod),
        Command::Cancel(p) => Request::Cancel(p.pod),
        Command::Resolve(args) => Request::Resolve(args.pod, args.here),
        Command::Agent { listen } => Request::Agent(flag("--listen", &listen, agent_listen)?),
        Command::Receive => Request::Receive,
        Command::Check { host } => {
            Request::Check(host.map(|h| flag("check", &h, moves::host_ref)).transpose()?)
        }
        Command::Image { command: ImageCommand::Show { file } } => Request::Image(file, false),
        Command::Image { command: ImageCommand::Verify { file } } => Request::Image(file, true),
        Command::Generate { command } => generate(command),
        Command::Version => Request::Version,
        Command::Host { command } => host(command)?,
        Command::Dns { command } => dns(command)?,
        Command::Drain => Request::Drain,
    })
}

fn generate(command: GenerateCommand) -> Request {
    match command {
        GenerateCommand::Man => Request::GenerateMan,
        GenerateCommand::Completions { shell } => Request::GenerateCompletions(shell),
        GenerateCommand::Systemd { pod } => Request::GenerateSystemd(pod),
    }
}

fn logs(args: LogsArgs) -> Result<LogsRequest, Failure> {
    let lines = |t: &str| match t {
        "all" => Ok(None),
        n => n.parse::<usize>().map(Some).map_err(|_| "it is a number of lines".to_owned()),
    };
    let tail = maybe("--tail", args.tail.as_ref(), lines)?.flatten();
    Ok(LogsRequest {
        since: maybe("--since", args.since.as_ref(), since)?,
        pod: args.pod,
        follow: args.follow,
        tail,
    })
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(date) = text.parse::<Timestamp>() {
        return Ok(Since::Date(date));
    }
    values::duration(text)
        .map(Since::Ago)
        .map_err(|_| "it is a date as 2026-11-21T22:38:00Z or an age as 10m".to_owned())
}

fn exec(args: ExecArgs, cwd: &str) -> Result<ExecRequest, Failure> {
    if args.cmd.iter().any(|a| a.contains('\0')) || args.cmd.first().is_none_or(String::is_empty) {
        return Err(usage("exec", "the command is empty"));
    }
    Ok(ExecRequest {
        env: each("--env", &args.env, values::env_item)?,
        workdir: maybe("--workdir", args.workdir.as_ref(), |d| values::directory(d, cwd))?,
        pod: args.pod,
        tty: args.tty,
        detach: args.detach,
        user: args.user,
        cmd: args.cmd,
    })
}

fn wait(args: WaitArgs) -> Result<WaitRequest, Failure> {
    Ok(WaitRequest {
        until: flag("--for", &args.r#for, until)?,
        timeout: maybe("--timeout", args.timeout.as_ref(), values::duration)?,
        pod: args.pod,
    })
}

fn until(text: &str) -> Result<Until, String> {
    match text.split_once(':') {
        None if text == "exit" => Ok(Until::Exit),
        None if text == "ready" => Ok(Until::Ready),
        Some(("tcp", port)) => match port.parse::<u16>() {
            Ok(n) if n > 0 => Ok(Until::Tcp(n)),
            _ => Err("the port is a number from 1 to 65535".to_owned()),
        },
        Some(("log", text)) if !text.is_empty() => Ok(Until::Log(text.to_owned())),
        _ => Err("wait for exit, ready, tcp:PORT or log:TEXT".to_owned()),
    }
}

/// Where an agent listens: `ADDR:PORT`, `ADDR` or `:PORT`.
fn agent_listen(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix(':') {
        return listen(&format!("0.0.0.0:{port}"));
    }
    match text.parse::<std::net::IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, hosts::AGENT_PORT)),
        Err(_) => listen(text),
    }
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "it is written as ADDR:PORT, as 0.0.0.0:7411".to_owned())
}

fn host(command: HostCommand) -> Result<Request, Failure> {
    Ok(match command {
        HostCommand::Id => Request::HostId,
        HostCommand::Ls => Request::HostLs,
        HostCommand::Rm { name } => Request::HostRm(name),
        HostCommand::Add { name, addr, fingerprint, ssh } => {
            let name = flag("host add", &name, hosts::name)?;
            let via = match (addr, fingerprint, ssh) {
                (_, _, Some(target)) => flag("--ssh", &target, hosts::ssh)?,
                (Some(addr), Some(print), None) => Via::Agent {
                    addr: flag("host add", &addr, hosts::agent_addr)?,
                    fingerprint: flag("host add", &print, hosts::fingerprint)?,
                },
                _ => {
                    return Err(usage(
                        "host add",
                        "it needs ADDR:PORT and FINGERPRINT, or --ssh [USER@]HOST",
                    ));
                }
            };
            Request::HostAdd(Host { name, via })
        }
    })
}

fn dns(command: DnsCommand) -> Result<Request, Failure> {
    let zone = |text: &str| {
        let zone = text.trim_end_matches('.').to_ascii_lowercase();
        let label = |l: &str| {
            !l.is_empty()
                && l.len() < 64
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        match zone.len() < 190 && zone.split('.').all(label) {
            true => Ok(zone),
            false => Err("it is not the name of a zone, as pods.example.org".to_owned()),
        }
    };
    Ok(match command {
        DnsCommand::Serve { zone: z, listen: l } => {
            Request::DnsServe(flag("--zone", &z, zone)?, flag("--listen", &l, listen)?)
        }
        DnsCommand::Use { server, zone: z, key } => Request::DnsUse {
            server: flag("dns use", &server, listen)?,
            zone: flag("--zone", &z, zone)?,
            key,
        },
        DnsCommand::Show => Request::DnsShow,
    })
}

#[cfg(test)]
mod tests;
