//! The monitor of a pod: a small process on the host, parent of the pod's pid 1, one poll loop.
//!
//! It makes the pod's surroundings, has pid 1 run CMD, keeps the output log and the exit status, serves its socket
//! (`super::proto`), freezes and ends the pod, starts it again by its policy. It survives whoever started it; when
//! it dies itself, pid 1 sees the end of its socket and the pod ends (`lost`).
//!
//! - `birth`: cgroup, namespaces, pid 1, network, and all of it undone
//! - `spawn`: orders to pid 1 and what became of them
//! - `conns`: connections, requests, replies, events
//! - `stdio`, `logfile`: the pod's output and input, the log
//! - `life`: started, ready, ended, started again
//! - `pausing`: frozen and thawed
//! - `sweep`: what a dead monitor left
//! - `incoming`: a pod without CMD, for one that arrives
//! - `handing`: what leaving and arriving need of it

mod birth;
mod conns;
mod handing;
mod incoming;
mod life;
mod logfile;
mod pausing;
mod run;
mod spawn;
mod stdio;
mod sweep;

pub use super::logs::aside;
pub use birth::{LivePod, group_of};
pub(super) use birth::{monitor_dirs, own_group};
pub use conns::ConnId;
pub use incoming::Prepared;
pub use run::main;
pub(super) use run::{LAUNCH_FD, Launch, Mode};
pub(super) use spawn::Started;
pub use sweep::{kept_link, sweep, sweep_dead};

use super::proto::{Event, Message, PortAt};
use super::store::{Record, Status, Store};
use crate::base::Failure;
use crate::state::fd::Port;
use conns::Conns;
use life::Life;
use spawn::Spawns;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use stdio::Stdio;

/// One pod's monitor.
pub struct Monitor {
    /// Where records lie.
    pub store: Store,
    /// What this host knows of the pod; [`Monitor::save`] writes it.
    pub record: Record,
    /// The pod's processes and surroundings, while there are any.
    pub pod: Option<LivePod>,
    conns: Conns,
    spawns: Spawns,
    stdio: Stdio,
    life: Life,
    /// The move under way, if there is one.
    pub moving: super::moving::State,
    wake: Option<Instant>,
    over: bool,
}

impl Monitor {
    /// Answers a request of connection `conn` (each request exactly once).
    pub fn reply(&mut self, conn: ConnId, reply: super::proto::Reply, fds: Vec<OwnedFd>) {
        self.conns.send(conn, Message::Reply(reply), fds);
    }

    /// Answers with success or with what went wrong.
    pub fn answer(&mut self, conn: ConnId, outcome: Result<(), Failure>) {
        let reply = match outcome {
            Ok(()) => super::proto::Reply::Done,
            Err(f) => super::proto::Reply::Failed(f),
        };
        self.reply(conn, reply, Vec::new());
    }

    /// Tells everyone who watches.
    pub fn event(&mut self, event: &Event) {
        self.conns.broadcast(event);
    }

    /// Sets the state, writes the record and tells everyone. What says that the pod does not live here is safe from a
    /// power cut when this returns; that it runs here, a little later. A record that cannot be written is a line in
    /// the monitor's log: the pod does not end for it.
    pub fn set_status(&mut self, status: Status) {
        self.record.status = status;
        if matches!(status, Status::Running | Status::Paused) {
            self.save();
            self.life.secure_at = Some(Instant::now() + Duration::from_secs(1));
        } else if let Err(f) = self.secure() {
            complain(&self.record, &f.to_string());
        }
        self.event(&Event::State(status));
    }

    /// Writes the record: all of it or nothing, and soon, but not yet safe from a power cut (see [`Monitor::secure`]).
    pub fn save(&mut self) {
        if let Err(e) = self.store.save_unsynced(&self.record) {
            complain(&self.record, &format!("record not written: {e}"));
        }
    }

    /// Writes the record so that it outlives a power cut; takes a disk's time.
    ///
    /// # Errors
    /// The disk refused.
    pub fn secure(&mut self) -> Result<(), Failure> {
        Ok(self.store.save(&self.record)?)
    }

    /// Asks for [`super::moving::tick`] not later than at `when` (the earliest wish counts).
    pub fn wake_at(&mut self, when: Instant) {
        self.wake = Some(self.wake.map_or(when, |w| w.min(when)));
    }

    /// Ends the monitor after this turn of its loop, as it is: what is to be undone has been.
    pub fn finish(&mut self) {
        self.over = true;
    }

    /// The channels between pod and monitor, by what the pod's descriptor tables show of them.
    pub fn ports(&self) -> Vec<PortAt> {
        let mut ports = self.stdio.ports();
        ports.extend(self.spawns.ports());
        ports
    }

    /// Reads what the pod has written and the log does not have yet. To be called when the pod is frozen: its
    /// output pipes are empty afterwards.
    pub fn drain_output(&mut self) {
        self.stdio.drain();
    }

    /// Lets nothing more into the pod's standard input until [`Monitor::let_input_in`]. Returns what came for it and did not
    /// fit into its pipe, and whether its end has come.
    pub(super) fn hold_input(&mut self) -> (Vec<u8>, bool) {
        self.stdio.hold_input()
    }

    /// Lets input in again.
    pub(super) fn let_input_in(&mut self) {
        self.stdio.let_input_in();
    }

    /// Standard input as it was at another host.
    pub(super) fn put_input(&mut self, bytes: &[u8], ended: bool) {
        self.stdio.put_input(bytes, ended);
    }

    /// The pod's ends of new output channels, for a pod that arrives (the monitor keeps no copy of them).
    pub fn take_pod_ends(&mut self) -> Vec<(Port, OwnedFd)> {
        self.stdio.take_pod_ends()
    }
}

/// A line in the monitor's own log, which is its standard error.
fn complain(record: &Record, text: &str) {
    eprintln!("{} {}: {text}", jiff::Timestamp::now(), record.spec.name);
}
