//! A pod that arrives: everything but CMD, with its network held, ready for its processes to be built.

use super::Monitor;
use super::conns::ConnId;
use super::spawn::Started;
use crate::base::{Failure, Kind};
use crate::kernel::clone;
use crate::pod::proto::{Message, Reply};
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
        let made = self.surround(clocks, true).and_then(|()| self.stdio.open_pipes(true).map_err(failed));
        if let Err(f) = made {
            return self.start_failed_for(launcher, f);
        }
        self.save();
        let ends: Vec<OwnedFd> = self.take_pod_ends().into_iter().map(|(_, fd)| fd).collect();
        let info = self.info();
        self.conns.send(launcher, Message::Reply(Reply::Info(Box::new(info))), ends);
    }

    /// As `start_failed`, told to `conn`.
    pub(super) fn start_failed_for(&mut self, conn: ConnId, failure: Failure) {
        self.life_starter(conn);
        self.start_failed(failure);
    }

    /// Takes the processes built by another hand as its own: `cmd` is CMD's host pid, `None` where CMD has ended
    /// and left daemons behind (`forking`). From now on the pod's end is what its CMD's end is.
    ///
    /// # Errors
    /// There is no such process in the pod.
    pub fn adopt(&mut self, cmd: Option<i32>) -> Result<(), Failure> {
        let started = match cmd {
            Some(host_pid) => Some(find(host_pid).ok_or_else(|| {
                Failure::new(
                    Kind::Failed,
                    self.record.spec.name.as_str(),
                    format!("no process {host_pid} to take over"),
                )
            })?),
            None => None,
        };
        self.record.cmd_pid = cmd;
        self.record.init_pid = self.pod.as_ref().map(|p| p.init.pid);
        self.life_adopted(started);
        Ok(())
    }
}

/// A process by its host pid.
fn find(host_pid: i32) -> Option<Started> {
    let pidfd = clone::pidfd_open(host_pid).ok()?;
    let text = fs::read_to_string(format!("/proc/{host_pid}/status")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
    let pod_pid = line.split_whitespace().last()?.parse().ok()?;
    Some(Started { pod_pid, host_pid, pidfd })
}
