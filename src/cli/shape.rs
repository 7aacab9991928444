//! The JSON objects of the contract. Fields are only ever added.

use crate::base::spec::Publish;
use crate::base::{Blocker, Failure, Kind};
use crate::pod::moving::Stage;
use crate::pod::store::{Record, Status};
use crate::policy::values;
use jiff::Timestamp;
use serde::Serialize;
use std::net::IpAddr;

/// Version of every JSON object.
pub const SCHEMA: u32 = 1;

/// A failure.
#[derive(Serialize, Debug)]
pub struct Failed<'a> {
    /// Version.
    pub schema: u32,
    /// What failed.
    pub error: ErrorObject<'a>,
}

/// What failed.
#[derive(Serialize, Debug)]
pub struct ErrorObject<'a> {
    /// The exit code of its kind.
    pub code: i32,
    /// Its kind.
    pub kind: Kind,
    /// The object concerned.
    pub object: &'a str,
    /// What happened and why.
    pub message: &'a str,
    /// What to do.
    pub remedy: &'a str,
    /// What is in the way.
    pub blockers: &'a [Blocker],
}

impl<'a> ErrorObject<'a> {
    /// The object for a failure.
    pub fn new(f: &'a Failure) -> Self {
        Self {
            code: f.kind.code(),
            kind: f.kind,
            object: &f.object,
            message: &f.message,
            remedy: &f.remedy,
            blockers: &f.blockers,
        }
    }
}

impl<'a> Failed<'a> {
    /// The object for a failure.
    pub fn new(f: &'a Failure) -> Self {
        Self { schema: SCHEMA, error: ErrorObject::new(f) }
    }
}

/// A published port.
#[derive(Serialize, Debug, PartialEq, Eq)]
pub struct Port {
    /// Address on the host; null: all.
    pub host_ip: Option<String>,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub pod_port: u16,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
}

impl From<&Publish> for Port {
    fn from(p: &Publish) -> Port {
        Port {
            host_ip: p.host_ip.map(|ip| ip.to_string()),
            host_port: p.host_port,
            pod_port: p.pod_port,
            protocol: if p.udp { "udp" } else { "tcp" },
        }
    }
}

/// A move under way.
#[derive(Serialize, Debug, Clone, PartialEq)]
pub struct Moving {
    /// Where to.
    pub to: String,
    /// Its stage.
    pub stage: String,
    /// Round of pre-copy.
    pub round: u32,
    /// Bytes not there yet.
    pub bytes_left: u64,
    /// How long the pod would be frozen if it were now.
    pub expected_frozen_us: Option<u64>,
    /// Bytes sent so far.
    pub bytes_sent: u64,
    /// Bytes a second sent lately.
    pub bytes_per_s: Option<u64>,
    /// Bytes a second the pod writes.
    pub dirty_bytes_per_s: Option<u64>,
}

impl From<&Stage> for Moving {
    fn from(s: &Stage) -> Moving {
        // Unknown is 0 inside, null outside.
        let known = |n: u64| (n > 0).then_some(n);
        Moving {
            to: s.to.clone(),
            stage: s.stage.clone(),
            round: s.round,
            bytes_left: s.bytes_left,
            expected_frozen_us: known(s.expected_frozen_us),
            bytes_sent: s.bytes_sent,
            bytes_per_s: known(s.rate),
            dirty_bytes_per_s: known(s.dirty_rate),
        }
    }
}

/// A pod, in `ps` and `inspect`.
#[derive(Serialize, Debug)]
pub struct Pod<'a> {
    /// Version.
    pub schema: u32,
    /// Name.
    pub name: &'a str,
    /// Identity for life.
    pub id: &'a str,
    /// State.
    pub state: Status,
    /// Status of CMD once over (128+N by signal).
    pub exit_status: Option<i32>,
    /// Host pid of CMD while it runs.
    pub pid: Option<i32>,
    /// When CMD was started.
    pub started: Option<Timestamp>,
    /// Kind of network: `nat`, `lan:IF`, `host`, `none`.
    pub net: String,
    /// Address others reach it at.
    pub ip: Option<IpAddr>,
    /// Published ports.
    pub ports: Vec<Port>,
    /// Command and arguments.
    pub cmd: &'a [String],
    /// Restart policy.
    pub restart: &'static str,
    /// The move under way.
    pub r#move: Option<Moving>,
    /// Host it moved to, or is in doubt with.
    pub moved_to: Option<&'a str>,
}

impl<'a> Pod<'a> {
    /// The object for a pod whose move under way is `stage`.
    pub fn moving(r: &'a Record, stage: Option<&Stage>) -> Pod<'a> {
        Pod { r#move: stage.map(Moving::from), ..Pod::new(r) }
    }

    /// The object for a pod.
    pub fn new(r: &'a Record) -> Pod<'a> {
        let here = r.status.is_here();
        Pod {
            schema: SCHEMA,
            name: r.spec.name.as_str(),
            id: r.spec.id.as_str(),
            state: r.status,
            exit_status: r.exit_status,
            pid: r.cmd_pid.filter(|pid| here && *pid > 0),
            started: r.started,
            net: values::net_text(&r.spec.net.mode),
            ip: address(r).filter(|_| here),
            ports: r.spec.net.publish.iter().map(Port::from).collect(),
            cmd: &r.spec.cmd,
            restart: values::restart_text(r.spec.restart),
            r#move: None,
            moved_to: r.moved_to.as_deref().filter(|_| matches!(r.status, Status::Moved | Status::InDoubt)),
        }
    }
}

/// Where a pod is reached: as the host found it, else its own address on the hosts' network.
pub fn address(r: &Record) -> Option<IpAddr> {
    r.ip.or(r.spec.net.ip.map(|cidr| cidr.addr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_the_fields_of_the_contract() {
        let b = Blocker {
            kind: "io_uring".into(),
            pid: Some(7),
            fd: Some(3),
            path: None,
            message: "m".into(),
            remedy: "r".into(),
        };
        let f = Failure::refused("web", vec![b]);
        let v = serde_json::to_value(Failed::new(&f)).unwrap();
        assert_eq!(
            v,
            serde_json::json!({"schema": 1, "error": {"code": 4, "kind": "refused", "object": "web",
                "message": "1 thing cannot be carried", "remedy": "", "blockers": [{"kind": "io_uring", "pid": 7,
                "fd": 3, "path": null, "message": "m", "remedy": "r"}]}})
        );
    }
}
