//! The life of a pod: CMD executed, ready, ended, started again; signals, pause, stop.

use super::spawn::{Started, shell_status};
use super::{LivePod, Monitor, complain};
use crate::base::spec::{Restart, StartType};
use crate::base::{Failure, Kind};
use crate::kernel::clone;
use crate::net;
use crate::pod::proto::{Event, Message};
use crate::pod::store::{ProcId, Status};
use crate::sandbox::space::Clocks;
use jiff::Timestamp;
use nix::errno::Errno;
use std::fs;
use std::time::{Duration, Instant};

use super::conns::ConnId;
use super::sweep::{forget_link, keep_link};

/// First pause before a pod is started again; it doubles up to [`LONGEST`].
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
/// A pod that ran this long starts again after the shortest pause.
const STEADY: Duration = Duration::from_secs(10);
/// How often an end that did not work is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Where the pod is in its life.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) cmd: Option<Started>,
    /// Up as its start type has it.
    pub(super) ready: bool,
    /// Status of the last end, as a shell gives it.
    pub(super) last_status: Option<i32>,
    pub(super) group: std::path::PathBuf,
    pub(super) link: Option<net::Link>,
    pub(super) notify: Option<std::os::fd::OwnedFd>,
    /// Who waits for the start.
    starter: Option<ConnId>,
    foreground: bool,
    /// Terminal size of the next start.
    size: (u16, u16),
    /// CMD has exited 0 and left processes (`forking`).
    daemons: bool,
    /// Wait status of the process reaped last.
    last_wait: i32,
    grace_until: Option<Instant>,
    kill_at: Option<Instant>,
    /// The user asked for the end: no restart.
    end_wanted: bool,
    /// An end that is under way, with its status.
    ending: Option<i32>,
    restart_at: Option<Instant>,
    pause: Duration,
    since: Instant,
}

impl Life {
    pub(super) fn new(group: std::path::PathBuf) -> Life {
        Life {
            cmd: None,
            ready: false,
            last_status: None,
            group,
            link: None,
            notify: None,
            starter: None,
            foreground: false,
            size: (24, 80),
            daemons: false,
            last_wait: 0,
            grace_until: None,
            kill_at: None,
            end_wanted: false,
            ending: None,
            restart_at: None,
            pause: SHORTEST,
            since: Instant::now(),
        }
    }

    /// Whether the pod is on its way out.
    pub(super) fn ending(&self) -> bool {
        self.ending.is_some()
    }

    /// When the loop has to wake up.
    pub(super) fn next_time(&self) -> Option<Instant> {
        [self.grace_until, self.kill_at, self.restart_at].into_iter().flatten().min()
    }
}

impl Monitor {
    /// Who is told if the start fails.
    pub(super) fn life_starter(&mut self, conn: ConnId) {
        self.life.starter = Some(conn);
    }

    /// Processes built by another hand are the pod's now.
    pub(super) fn life_adopted(&mut self, cmd: Option<Started>) {
        self.life.daemons = cmd.is_none();
        self.life.cmd = cmd;
        self.life.since = Instant::now();
        self.become_ready();
    }

    /// The first start: surroundings, network, CMD. What fails is told to the starter, and nothing is left.
    pub(super) fn begin(&mut self, starter: ConnId, foreground: bool, size: Option<(u16, u16)>) {
        self.life.starter = Some(starter);
        self.life.foreground = foreground;
        self.life.size = size.unwrap_or((24, 80));
        if let Err(f) = self.surround(Clocks::default(), false).and_then(|()| self.run_cmd()) {
            self.start_failed(f);
        }
    }

    fn run_cmd(&mut self) -> Result<(), Failure> {
        self.spawn_cmd(self.life.foreground, self.life.size)
    }

    /// Makes the surroundings and attaches the network; on failure nothing is left of them.
    pub(super) fn surround(&mut self, clocks: Clocks, held: bool) -> Result<(), Failure> {
        let spec = self.record.spec.clone();
        let pod = LivePod::make(&self.life.group.join("pod"), &spec, clocks)?;
        self.record.init_pid = Some(pod.init.pid);
        let netns = pod.netns.try_clone();
        self.pod = Some(pod);
        let attached = netns
            .map_err(|e| Failure::new(Kind::Failed, "network namespace", crate::pod::store::plain(&e)))
            .and_then(|netns| self.attach_net(&netns, held));
        if let Err(f) = attached {
            self.tear_down();
            return Err(f);
        }
        Ok(())
    }

    fn attach_net(&mut self, netns: &std::os::fd::OwnedFd, held: bool) -> Result<(), Failure> {
        use std::os::fd::AsFd;
        let spec = &self.record.spec;
        let link = net::attach(&spec.net, netns.as_fd(), &spec.id, held)?;
        self.record.spec.net = link.spec.clone();
        self.record.ip = link.address();
        keep_link(&self.store.places, &link)?;
        self.life.link = Some(link);
        if self.record.spec.start_type == StartType::Notify {
            self.life.notify = Some(super::run::notify_socket(netns.as_fd(), &self.record.spec.id)?);
        }
        Ok(())
    }

    /// CMD was executed, or could not be.
    pub(super) fn cmd_spawned(&mut self, child: Result<Started, Failure>, exited: Option<(i32, bool)>) {
        let cmd = match child {
            Ok(cmd) => cmd,
            Err(f) if self.life.starter.is_some() => return self.start_failed(f),
            Err(f) => {
                complain(&self.record, &f.to_string());
                return self.end(f.kind.code() << 8);
            }
        };
        let host_pid = cmd.host_pid;
        self.record.cmd_pid = Some(host_pid);
        self.record.started = Some(Timestamp::now());
        self.record.monitor = Some(ProcId::me());
        self.life.since = Instant::now();
        self.life.cmd = Some(cmd);
        self.set_status(Status::Running);
        self.event(&Event::Started { pid: host_pid });
        match self.record.spec.start_type {
            StartType::Exec if self.life.foreground || self.life.starter.is_none() => self.become_ready(),
            StartType::Exec => self.await_grace(),
            StartType::Forking | StartType::Notify => {}
        }
        if let Some((status, childless)) = exited {
            self.cmd_ended(status, childless);
        }
    }

    fn await_grace(&mut self) {
        self.life.grace_until = Some(Instant::now() + Duration::from_millis(self.record.spec.grace_ms));
    }

    pub(super) fn become_ready(&mut self) {
        self.life.grace_until = None;
        self.life.starter = None;
        if !self.life.ready {
            self.life.ready = true;
            self.event(&Event::Ready);
        }
    }

    /// READY=1 came.
    pub(super) fn notified(&mut self) {
        if self.record.spec.start_type == StartType::Notify && self.life.cmd.is_some() {
            self.become_ready();
        }
    }

    /// pid 1 reaped a process of the pod.
    pub(super) fn process_ended(&mut self, pid: i32, status: i32, childless: bool) {
        self.life.last_wait = status;
        if self.life.cmd.as_ref().is_some_and(|c| c.pod_pid == pid) {
            self.cmd_ended(status, childless);
        } else if self.life.daemons && childless {
            self.daemons_ended(status);
        }
    }

    fn cmd_ended(&mut self, status: i32, childless: bool) {
        self.life.cmd = None;
        self.record.cmd_pid = None;
        let failed = status != 0;
        match self.record.spec.start_type {
            _ if self.life.end_wanted => self.end(status),
            StartType::Forking if !failed && !childless => {
                self.life.daemons = true;
                if self.life.foreground || self.life.starter.is_none() {
                    self.become_ready();
                } else {
                    self.await_grace();
                }
            }
            StartType::Exec if self.life.starter.is_some() && !failed && childless => {
                self.become_ready();
                self.end(status);
            }
            _ if self.life.starter.is_some() && !self.life.foreground => self.too_early(status),
            _ => self.end(status),
        }
    }

    fn daemons_ended(&mut self, status: i32) {
        if self.life.starter.is_some() && !self.life.foreground && !self.life.end_wanted {
            self.too_early(status);
        } else {
            self.end(status);
        }
    }

    /// CMD (or the last process) ended before the pod was up.
    fn too_early(&mut self, wait: i32) {
        self.stdio.drain();
        self.stdio.log.flush();
        let (kind, status) = (self.record.spec.start_type, shell_status(wait));
        let how = match kind {
            StartType::Exec if wait == 0 => "exited 0 and left processes behind",
            StartType::Exec => "failed at once",
            StartType::Forking if self.life.daemons => "left processes that ended at once",
            StartType::Forking if wait == 0 => "exited 0 and left no process",
            StartType::Forking => "failed before it left processes behind",
            StartType::Notify => "ended before it said READY=1",
        };
        let mut text = format!("{how}, with status {status}");
        let lines = self.stdio.log.last_lines();
        if !lines.is_empty() {
            text += "; its last output:";
            lines.iter().for_each(|l| text += &format!("\n    {l}"));
        }
        let f = Failure::new(Kind::Failed, self.record.spec.name.as_str(), text);
        let remedy = match kind {
            StartType::Exec if wait == 0 => {
                "for a daemon that forks into the background use `--type forking`"
            }
            StartType::Forking if wait == 0 => "for a program that stays in the foreground use `--type exec`",
            _ => "",
        };
        self.start_failed(f.remedy(remedy));
    }

    /// Nothing is left of a pod that did not come up; its starter is told why.
    pub(super) fn start_failed(&mut self, failure: Failure) {
        let starter = self.life.starter.take();
        self.life.end_wanted = true;
        self.tear_down();
        self.conns.close_listener();
        if let Err(e) = self.store.give_back(&self.record) {
            complain(&self.record, &format!("reservation not given back: {e}"));
        }
        self.leave();
        if let Some(conn) = starter {
            self.conns.send(conn, Message::Event(Event::StartFailed(failure)), Vec::new());
        }
        self.stdio.end_attached();
        self.conns.answer_end();
        self.over = true;
    }

    /// The pod has ended by itself, or its end was asked for: ends what is left of it, then starts again or not.
    pub(super) fn end(&mut self, wait: i32) {
        self.life.ending = Some(wait);
        (self.life.kill_at, self.life.grace_until) = (None, None);
        if !self.tear_down() {
            self.life.kill_at = Some(Instant::now() + AGAIN);
            return;
        }
        self.life.ending = None;
        let status = shell_status(wait);
        self.life.last_status = Some(status);
        let again = match self.record.spec.restart {
            Restart::No => false,
            Restart::OnFailure => status != 0,
            Restart::Always => true,
        };
        if again && !self.life.end_wanted {
            self.life.pause = if self.life.since.elapsed() > STEADY { SHORTEST } else { self.life.pause };
            self.life.restart_at = Some(Instant::now() + self.life.pause);
            self.life.pause = (self.life.pause * 2).min(LONGEST);
            (self.record.init_pid, self.record.cmd_pid) = (None, None);
            self.save();
            return;
        }
        self.end_for_good(status);
    }

    fn end_for_good(&mut self, status: i32) {
        self.life.restart_at = None;
        self.conns.close_listener();
        self.leave();
        (self.record.init_pid, self.record.cmd_pid, self.record.monitor) = (None, None, None);
        (self.record.exit_status, self.record.ended) = (Some(status), Some(Timestamp::now()));
        self.record.status = Status::Exited;
        if self.record.spec.rm {
            if let Err(e) = self.store.remove(&self.record.spec.id) {
                complain(&self.record, &format!("not removed: {e}"));
            }
        } else {
            self.save();
        }
        self.stdio.end_attached();
        self.event(&Event::State(Status::Exited));
        self.event(&Event::Ended { status });
        self.conns.answer_end();
        self.over = true;
    }

    /// Ends all processes, reads the last output, removes network and control group. `false`: a process does not
    /// die (it hangs in the kernel); to be tried again.
    pub fn tear_down(&mut self) -> bool {
        let Some(pod) = self.pod.take() else { return true };
        if let Err(trouble) = pod.kill() {
            complain(&self.record, &trouble);
            self.pod = Some(pod);
            return false;
        }
        self.stdio.close();
        self.life.notify = None;
        self.life.cmd = None;
        self.life.daemons = false;
        self.spawns.clear();
        if let Some(link) = self.life.link.take() {
            match net::detach(&link) {
                Ok(()) => forget_link(&self.store.places, &self.record.spec.id),
                Err(e) => complain(&self.record, &format!("network not removed: {e}")),
            }
        }
        if let Err(trouble) = pod.remove() {
            complain(&self.record, &trouble);
        }
        true
    }

    /// Leaves the monitor's own control group and removes it: the last thing before the end.
    pub(super) fn leave(&mut self) {
        if let Err(e) = super::birth::leave(&self.life.group) {
            complain(&self.record, &format!("control group not removed: {e}"));
        }
    }

    /// What is due by time.
    pub(super) fn on_time(&mut self) {
        let now = Instant::now();
        let due = |t: Option<Instant>| t.is_some_and(|t| t <= now);
        if due(self.life.grace_until) {
            self.become_ready();
        }
        if due(self.life.kill_at) {
            self.life.kill_at = None;
            match self.life.ending {
                Some(wait) => self.end(wait),
                None => self.kill(),
            }
        }
        if due(self.life.restart_at) {
            self.life.restart_at = None;
            self.life.ready = false;
            if let Err(f) = self.surround(Clocks::default(), false).and_then(|()| self.run_cmd()) {
                complain(&self.record, &f.to_string());
                self.end(f.kind.code() << 8);
            }
        }
    }

    /// pid 1 is gone: everything in the pod is.
    pub(super) fn on_init_end(&mut self) {
        // What it still said comes first: CMD's status may be in it.
        self.on_init();
        if self.pod.is_none() {
            return;
        }
        let wait = if self.life.end_wanted { self.life.last_wait } else { libc::SIGKILL };
        if self.life.starter.is_some() {
            self.too_early(wait);
        } else {
            self.end(wait);
        }
    }

    /// SIGKILL to all.
    pub(super) fn kill(&mut self) {
        self.life.end_wanted = true;
        self.life.starter = None;
        match self.life.ending {
            _ if self.pod.is_none() => {
                let status = self.life.last_status.unwrap_or(128 + libc::SIGKILL);
                self.end_for_good(status);
            }
            Some(wait) => self.end(wait),
            None => self.end(libc::SIGKILL),
        }
    }

    /// SIGTERM to CMD, and to all SIGKILL at `deadline`.
    pub(super) fn stop(&mut self, deadline: Instant) {
        self.life.end_wanted = true;
        if self.pod.is_none() || Instant::now() >= deadline {
            return self.kill();
        }
        self.life.kill_at = Some(self.life.kill_at.map_or(deadline, |t| t.min(deadline)));
        if let Err(f) = self.signal(libc::SIGTERM) {
            complain(&self.record, &f.message);
        }
        // A paused pod cannot act on it.
        if self.record.status == Status::Paused
            && let Err(f) = self.resume()
        {
            complain(&self.record, &f.message);
        }
    }

    /// A signal to CMD; where CMD has left processes behind (`forking`), to the children of pid 1.
    pub(super) fn signal(&mut self, signal: i32) -> Result<(), Failure> {
        let name = self.record.spec.name.clone();
        let refuse = |text: String| Failure::new(Kind::Failed, name.as_str(), text);
        if !(1..=64).contains(&signal) {
            return Err(Failure::new(Kind::Usage, signal.to_string(), "no such signal"));
        }
        if let Some(cmd) = &self.life.cmd {
            return match clone::pidfd_signal(&cmd.pidfd, signal) {
                // It ended and its status is on its way.
                Ok(()) | Err(Errno::ESRCH) => Ok(()),
                Err(e) => Err(refuse(format!("cannot signal its command: {}", e.desc().to_lowercase()))),
            };
        }
        let Some(pod) = &self.pod else { return Err(refuse("the pod is not running".to_owned())) };
        let init = pod.init.pid;
        let text = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap_or_default();
        let mut any = false;
        for pid in text.split_whitespace().filter_map(|p| p.parse::<i32>().ok()) {
            any |= clone::pidfd_open(pid).is_ok_and(|fd| clone::pidfd_signal(&fd, signal).is_ok());
        }
        if any { Ok(()) } else { Err(refuse("no process of the pod took the signal".to_owned())) }
    }
}
