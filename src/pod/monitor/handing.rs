//! What `pod::moving` needs of a monitor when its pod leaves for another host or arrives from one.

use super::spawn::Started;
use super::{Monitor, complain};
use crate::kernel::clone;
use crate::net;
use crate::pod::moving::Arrival;
use crate::pod::proto::Event;
use crate::pod::store::{ProcId, Status, write_unsynced};
use std::os::fd::AsFd;

impl Monitor {
    /// A line in the monitor's own log.
    pub(in crate::pod) fn complain(&self, text: &str) {
        complain(&self.record, text);
    }

    /// What was made on the host for the pod's network.
    pub(in crate::pod) fn link(&self) -> Option<&net::Link> {
        self.life.link.as_ref()
    }

    /// Attaches the held link to the host's network.
    pub(in crate::pod) fn attach_link(&self) -> Result<(), String> {
        match &self.life.link {
            Some(link) => net::release(link).map_err(|e| format!("link not attached: {e}")),
            None => Ok(()),
        }
    }

    /// What tells the network where the pod now is, opened ahead of time.
    pub(in crate::pod) fn announcer(&self) -> Option<net::Announcer> {
        let (pod, link) = (self.pod.as_ref()?, self.life.link.as_ref()?);
        net::Announcer::open(link, pod.netns.as_fd())
            .inspect_err(|e| self.complain(&format!("it will not be announced: {e}")))
            .ok()
    }

    /// The pod runs here: state, record, CMD's end watched. Waits for nothing.
    pub(in crate::pod) fn settle_in(&mut self, arrival: &Arrival, cmd: Option<Started>) {
        self.record.monitor = Some(ProcId::me());
        self.record.started = arrival.started;
        self.record.previous = None;
        self.record.moved_to = None;
        self.adopt(cmd);
        self.set_status(Status::Running);
    }

    /// The rest, once the source knows: log, name.
    pub(in crate::pod) fn move_in(&mut self, arrival: &Arrival) {
        if !arrival.log_tail.is_empty()
            && let Err(e) = write_unsynced(&self.store.places.log(&self.record.spec.id), &arrival.log_tail)
        {
            self.complain(&format!("log of the former host not kept: {e}"));
        }
        self.tell_name();
    }

    /// Starts the process that brings the pod's name up to date; it outlives us and tries until the server agrees.
    pub(super) fn tell_name(&self) {
        let places = &self.store.places;
        if !places.etc.join("dns.toml").exists() {
            return;
        }
        let mut command = std::process::Command::new("/proc/self/exe");
        command.arg("__name").args([&places.etc, &places.var, &places.run]).arg(self.record.spec.id.as_str());
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
        use std::os::unix::process::CommandExt;
        command.process_group(0);
        match command.spawn() {
            Ok(mut child) => {
                if let Some(mut stdin) = child.stdin.take() {
                    let _ = serde_json::to_writer(&mut stdin, &self.record);
                }
            }
            Err(e) => self.complain(&format!("its name is not kept: {e}")),
        }
    }

    /// The pod has left for good: link first (a killed server behind a lifted hold would end its connections), then
    /// processes and namespaces. The record says so already.
    pub(in crate::pod) fn depart(&mut self) {
        // Before their processes are killed here.
        self.sessions_left();
        if let Some(link) = self.life.link.take() {
            match net::detach(&link) {
                Ok(()) => super::sweep::forget_link(&self.store.places, &self.record.spec.id),
                Err(e) => {
                    self.complain(&format!("network not removed: {e}"));
                    self.life.link = Some(link);
                }
            }
        }
        self.tear_down();
        self.conns.close_listener();
        self.leave();
        (self.record.init_pid, self.record.cmd_pid, self.record.monitor) = (None, None, None);
        self.save();
        self.stdio.end_attached();
        self.event(&Event::State(self.record.status));
        self.conns.answer_end();
        self.over = true;
    }

    /// Nothing came of an arrival: everything that was made goes, and what this host knew before is known again.
    pub(in crate::pod) fn vanish(&mut self) {
        if let Some(pod) = &self.pod {
            // Frozen skeletons die with their pid 1.
            let _ = clone::pidfd_signal(&pod.init.pidfd, libc::SIGKILL);
        }
        self.tear_down();
        self.conns.close_listener();
        self.leave();
        if let Err(e) = self.store.give_back(&self.record) {
            self.complain(&format!("record not given back: {e}"));
        }
        self.conns.answer_end();
        self.over = true;
    }
}
