//! The definition of a pod: what `podmig start` was asked for, fully resolved. It travels with the pod.

use super::{PodId, PodName};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};

/// When `start` returns and when the pod has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum StartType {
    /// Up when CMD was exec'd; over when CMD ends.
    #[default]
    Exec,
    /// Up when CMD exited 0 leaving processes; over when the last one ends.
    Forking,
    /// Up when CMD said READY=1.
    Notify,
}

/// What happens when the pod ends by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// It stays `exited`.
    #[default]
    No,
    /// Again after a status other than 0.
    OnFailure,
    /// Again always.
    Always,
}

/// Kind of network a pod has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum NetMode {
    /// Routed veth, the same inside address in every pod, NAT.
    #[default]
    Nat,
    /// Own MAC and address on the hosts' network: `IF` a bridge (veth on it) or a link (macvlan).
    Lan(String),
    /// The host's own network.
    Host,
    /// Loopback only.
    None,
}

/// An address with its prefix length.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cidr {
    /// Address.
    pub addr: IpAddr,
    /// Prefix length in bits.
    pub prefix: u8,
}

/// One published port: host side to pod side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Publish {
    /// Host address to listen on; unspecified = all.
    pub host_ip: Option<Ipv4Addr>,
    /// Host port; 0 = any free one, replaced by the chosen one at start.
    pub host_port: u16,
    /// Port inside the pod.
    pub pod_port: u16,
    /// UDP instead of TCP.
    pub udp: bool,
}

/// The pod's network, as asked for and as resolved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct NetSpec {
    /// Kind.
    pub mode: NetMode,
    /// Own address (`lan`).
    pub ip: Option<Cidr>,
    /// Default gateway (`lan`).
    pub gateway: Option<IpAddr>,
    /// MAC of `eth0`, chosen at start, kept for life (`lan`, `nat`).
    pub mac: Option<[u8; 6]>,
    /// Published ports (`nat`).
    pub publish: Vec<Publish>,
}

/// How a volume travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeMode {
    /// Its content goes along.
    Carry,
    /// It is on storage both hosts see.
    Shared,
    /// Read-only, expected to be there.
    Ro,
}

/// One `-v`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// Directory (same path inside and outside).
    pub dir: String,
    /// How it travels.
    pub mode: VolumeMode,
}

/// Resource limits of the pod's cgroup; `None` = no limit.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct Limits {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// CPUs (1.5 = one and a half).
    pub cpus: Option<f64>,
    /// Number of tasks.
    pub pids: Option<u64>,
}

/// Who CMD runs as (resolved from `-u`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Name, if it has one.
    pub name: Option<String>,
    /// Home directory.
    pub home: Option<String>,
    /// Login shell.
    pub shell: Option<String>,
}

/// The definition of a pod.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PodSpec {
    /// Identity for life.
    pub id: PodId,
    /// Name on its host.
    pub name: PodName,
    /// Command and arguments.
    pub cmd: Vec<String>,
    /// Whole environment of CMD, `K=V` each.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Credentials of CMD.
    pub user: User,
    /// File mode creation mask.
    pub umask: u32,
    /// Resource limits of CMD: (RLIMIT number, soft, hard).
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Host name inside.
    pub hostname: String,
    /// Network.
    pub net: NetSpec,
    /// CMD has a terminal.
    pub tty: bool,
    /// When it is up and over.
    pub start_type: StartType,
    /// Time in which an early end counts as a failed start, in milliseconds.
    pub grace_ms: u64,
    /// Restart policy.
    pub restart: Restart,
    /// Remove at once when it ends.
    pub rm: bool,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Private tmpfs mounts.
    pub tmpfs: Vec<String>,
    /// Limits.
    pub limits: Limits,
    /// `--cgroup-parent` as given.
    pub cgroup_parent: Option<String>,
    /// No capability or seccomp walls.
    pub privileged: bool,
}
