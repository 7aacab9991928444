//! What can be typed after `podmig start`.

use clap::Args;
use std::path::PathBuf;

/// `podmig start`.
#[derive(Args, Debug, Default, Clone)]
#[command(override_usage = "podmig start [OPTIONS] -- CMD…\n       podmig start POD")]
pub struct StartArgs {
    /// Name of the pod: a DNS label, unique on this host [default: CMD's name and random letters]
    #[arg(long, value_name = "N")]
    pub name: Option<String>,
    /// Definition file; flags win over it
    #[arg(short, long, value_name = "FILE.toml")]
    pub file: Option<PathBuf>,
    /// Network: nat, lan:IF, host or none [default: nat]
    #[arg(long)]
    pub net: Option<String>,
    /// The pod's own address (lan)
    #[arg(long, value_name = "ADDR/LEN")]
    pub ip: Option<String>,
    /// Its default gateway (lan)
    #[arg(long, value_name = "ADDR")]
    pub gateway: Option<String>,
    /// Publish a port of the pod on this host; without HOST any free one
    #[arg(short, long, value_name = "[[IP:]HOST:]POD[/udp]")]
    pub publish: Vec<String>,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Stay in the foreground: attach all three, forward signals, pass the status
    #[arg(long)]
    pub fg: bool,
    /// Environment: K=V, or K for the caller's value
    #[arg(short, long, value_name = "K[=V]")]
    pub env: Vec<String>,
    /// The caller's whole environment
    #[arg(long)]
    pub env_host: bool,
    /// Working directory [default: the caller's]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User: NAME or UID, and :GROUP or :GID [default: the caller]
    #[arg(short, long)]
    pub user: Option<String>,
    /// Host name inside [default: the pod's name]
    #[arg(long, value_name = "H")]
    pub hostname: Option<String>,
    /// A directory that travels (carry), is on shared storage, or is read-only
    #[arg(short, long, value_name = "DIR[:carry|shared|ro]")]
    pub volume: Vec<String>,
    /// Limit of memory, as 512MiB
    #[arg(long, value_name = "N")]
    pub memory: Option<String>,
    /// Limit of CPUs, as 1.5
    #[arg(long, value_name = "N")]
    pub cpus: Option<String>,
    /// Use no CPU features beyond a level, as far as libraries heed it: x86-64-v2, x86-64-v3 or x86-64-v4
    #[arg(long, value_name = "LEVEL")]
    pub cpu: Option<String>,
    /// Limit of tasks
    #[arg(long, value_name = "N")]
    pub pids: Option<String>,
    /// Forget the pod as soon as it ends
    #[arg(long)]
    pub rm: bool,
    /// A private tmpfs there; its content travels
    #[arg(long, value_name = "DIR")]
    pub tmpfs: Vec<String>,
    /// When it is up: exec (executed), forking (exited 0 leaving processes), notify (said READY=1) [default: exec]
    #[arg(long, value_name = "TYPE")]
    pub r#type: Option<String>,
    /// An end within this time is a failed start [default: 100ms]
    #[arg(long, value_name = "TIME")]
    pub grace: Option<String>,
    /// Start again when it ends: no, on-failure or always [default: no]
    #[arg(long, value_name = "WHEN")]
    pub restart: Option<String>,
    /// Parent of the pod's cgroup: a path, or `inherit` for the caller's
    #[arg(long, value_name = "PATH|inherit")]
    pub cgroup_parent: Option<String>,
    /// End and forget a pod of the same name first
    #[arg(long)]
    pub replace: bool,
    /// Without the walls of capabilities and seccomp
    #[arg(long)]
    pub privileged: bool,
    /// An ended or lost pod, to start again
    pub pod: Option<String>,
    /// The command
    #[arg(last = true, value_name = "CMD")]
    pub cmd: Vec<String>,
}
