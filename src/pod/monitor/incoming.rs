//! A pod that arrives: everything but CMD, with its network held, ready for its processes to be built.

use super::Monitor;
use super::conns::ConnId;
use super::spawn::Started;
use crate::base::{Failure, Kind};
use crate::kernel::pidfd::PidFd;
use crate::pod::proto::{Message, Reply};
use crate::pod::store::Status;
use crate::sandbox::space::Clocks;
use crate::state::fd::Port;
use std::fs;
use std::os::fd::OwnedFd;

/// What the builder of an arriving pod gets; `podmig::pod::launch::incoming` returns it.
#[derive(Debug)]
pub struct Prepared {
    /// What the monitor knows: host pids, ports, clocks, control group.
    pub info: crate::pod::proto::Info,
    /// The pod's ends of the channels to its monitor.
    pub ports: Vec<(Port, OwnedFd)>,
}

impl Monitor {
    /// Makes the pod without CMD and answers the launcher with [`Reply::Info`] and the pod's ends of stdout, stderr
    /// and stdin, in this order.
    pub(super) fn arrive(&mut self, launcher: ConnId, clocks: Clocks) {
        let name = self.record.spec.name.clone();
        let failed = |e: std::io::Error| {
            let text = format!("cannot make its output channels: {}", crate::pod::store::plain(&e));
            Failure::new(Kind::Failed, name.as_str(), text)
        };
        let made = self
            .surround(clocks, true)
            .and_then(|()| self.stdio.open_pipes(true, self.record.spec.user.uid).map_err(failed));
        if let Err(f) = made {
            return self.start_failed_for(launcher, f);
        }
        self.save();
        self.life_starter(launcher);
        let ends: Vec<OwnedFd> = self.take_pod_ends().into_iter().map(|(_, fd)| fd).collect();
        let info = self.info();
        self.conns.send(launcher, Message::Reply(Reply::Info(Box::new(info))), ends);
    }

    /// Connection `conn` is gone: if it launched this pod and nobody has begun to build it, nobody will.
    pub(super) fn abandoned(&mut self, conn: ConnId) {
        if self.launched_by(conn) && !self.moving.arriving() {
            self.vanish();
        }
    }

    /// As `start_failed`, told to `conn`.
    pub(super) fn start_failed_for(&mut self, conn: ConnId, failure: Failure) {
        self.life_starter(conn);
        self.start_failed(failure);
    }

    /// Whether connection `conn` launched this pod.
    pub(in crate::pod) fn launched_by(&self, conn: ConnId) -> bool {
        self.record.status == Status::Incoming && self.life_launcher() == Some(conn)
    }

    /// A process of the arriving pod, by its host pid.
    ///
    /// # Errors
    /// There is no such process.
    pub(in crate::pod) fn process(&self, host_pid: i32) -> Result<Started, Failure> {
        find(host_pid).ok_or_else(|| {
            let text = format!("no process {host_pid} to take over");
            Failure::new(Kind::Failed, self.record.spec.name.as_str(), text)
        })
    }

    /// Takes the processes built by another hand as its own: `cmd` is `None` where CMD has ended and left daemons
    /// behind (`forking`). From now on the pod's end is what its CMD's end is.
    pub(in crate::pod) fn adopt(&mut self, cmd: Option<Started>) {
        self.record.cmd_pid = cmd.as_ref().map(|c| c.host_pid);
        self.record.init_pid = self.pod.as_ref().map(|p| p.init.pid);
        self.life_adopted(cmd);
    }
}

/// A process by its host pid.
fn find(host_pid: i32) -> Option<Started> {
    let pidfd = PidFd::open(host_pid).ok()?.into();
    let text = fs::read_to_string(format!("/proc/{host_pid}/status")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
    let pod_pid = line.split_whitespace().last()?.parse().ok()?;
    Some(Started { pod_pid, host_pid, pidfd })
}
