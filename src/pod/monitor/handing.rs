//! What `pod::moving` needs of a monitor when its pod leaves for another host or arrives from one.

use super::{Monitor, complain};
use crate::kernel::clone;
use crate::net;
use crate::pod::moving::Arrival;
use crate::pod::proto::Event;
use crate::pod::store::{ProcId, Status, write_atomic};
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

    /// Attaches the held link to the host's network and lifts the hold; what went wrong is returned in words.
    pub(in crate::pod) fn let_traffic_in(&mut self) -> Vec<String> {
        let mut trouble = Vec::new();
        let Some(pod) = &self.pod else { return vec!["there is no pod".to_owned()] };
        if let Some(link) = &self.life.link
            && let Err(e) = net::release(link)
        {
            trouble.push(format!("link not attached: {e}"));
        }
        let lifted =
            net::Hold::open(pod.netns.as_fd(), &self.record.spec.net.mode).and_then(|mut hold| hold.lift());
        if let Err(e) = lifted {
            trouble.push(format!("hold not lifted: {e}"));
        }
        trouble
    }

    /// Tells the network where the pod now is.
    pub(in crate::pod) fn announce(&self) {
        if let (Some(pod), Some(link)) = (&self.pod, &self.life.link)
            && let Err(e) = net::announce(link, pod.netns.as_fd())
        {
            self.complain(&format!("not announced: {e}"));
        }
    }

    /// The pod runs here: log, record, events, CMD's end watched.
    pub(in crate::pod) fn settle_in(&mut self, arrival: &Arrival) {
        if !arrival.log_tail.is_empty()
            && let Err(e) = write_atomic(&self.store.places.log(&self.record.spec.id), &arrival.log_tail)
        {
            self.complain(&format!("log of the former host not kept: {e}"));
        }
        self.record.monitor = Some(ProcId::me());
        self.record.started = arrival.started;
        self.record.previous = None;
        self.record.moved_to = None;
        let cmd = (arrival.cmd_host_pid > 0).then_some(arrival.cmd_host_pid);
        if let Err(e) = self.adopt(cmd) {
            self.complain(&e.to_string());
        }
        self.set_status(Status::Running);
    }

    /// The pod has left for good: link first (a killed server behind a lifted hold would end its connections), then
    /// processes and namespaces. The record says so already.
    pub(in crate::pod) fn depart(&mut self) {
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
