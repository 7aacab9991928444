//! Connections to the monitor: greeting, requests, replies and events in order, slow readers.

use super::run::Token;
use super::{Monitor, complain};
use crate::base::{Failure, Kind};
use crate::kernel::pidfd::PidFd;
use crate::kernel::{seqpacket, tty};
use crate::pod::moving;
use crate::pod::proto::{self, Error, Event, Info, Message, Reply, Request};
use crate::pod::store::Status;
use nix::poll::PollFlags;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A connection's number, never used twice by one monitor.
pub type ConnId = u64;

/// Messages that may wait for a reader before its connection is dropped.
const WAITING: usize = 4096;

/// What a connection wants to hear.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Watch {
    log: bool,
    moves: bool,
}

#[derive(Debug)]
struct Conn {
    fd: OwnedFd,
    greeted: bool,
    watch: Option<Watch>,
    waiting: VecDeque<(Message, Vec<OwnedFd>)>,
    /// Waits for the pod's end with its reply (`stop`, `kill`).
    wants_end: bool,
    dead: bool,
}

/// All connections and the socket they come in by.
#[derive(Debug)]
pub(super) struct Conns {
    listener: Option<(OwnedFd, PathBuf)>,
    next: ConnId,
    all: BTreeMap<ConnId, Conn>,
    /// Asked while the pod was being handed over.
    deferred: VecDeque<(ConnId, Request, Vec<OwnedFd>)>,
}

impl Conns {
    pub(super) fn new() -> Conns {
        Conns { listener: None, next: 1, all: BTreeMap::new(), deferred: VecDeque::new() }
    }

    /// Listens at `path`; what lies there is a dead monitor's and removed.
    pub(super) fn listen(&mut self, path: &Path) -> io::Result<()> {
        let _ = fs::remove_file(path);
        self.listener = Some((seqpacket::listener(path)?, path.to_path_buf()));
        Ok(())
    }

    /// Stops listening and removes the socket.
    pub(super) fn close_listener(&mut self) {
        if let Some((_, path)) = self.listener.take() {
            let _ = fs::remove_file(path);
        }
    }

    /// Takes in a connection; `greeted` for the starter's, which speaks our version for sure.
    pub(super) fn add(&mut self, fd: OwnedFd, greeted: bool) -> ConnId {
        let id = self.next;
        self.next += 1;
        let watch = greeted.then_some(Watch { log: false, moves: false });
        let waiting = VecDeque::new();
        self.all.insert(id, Conn { fd, greeted, watch, waiting, wants_end: false, dead: false });
        id
    }

    pub(super) fn send(&mut self, conn: ConnId, message: Message, fds: Vec<OwnedFd>) {
        if let Some(c) = self.all.get_mut(&conn) {
            c.waiting.push_back((message, fds));
            c.flush();
        }
    }

    pub(super) fn broadcast(&mut self, event: &Event) {
        let log = *event == Event::Logged;
        let moves = matches!(event, Event::Move(_));
        let wanted = |w: Watch| (w.log || !log) && (w.moves || !moves);
        for c in self.all.values_mut().filter(|c| c.watch.is_some_and(wanted)) {
            // One hint that the log has grown is enough.
            if log && c.waiting.iter().any(|(m, _)| *m == Message::Event(Event::Logged)) {
                continue;
            }
            c.waiting.push_back((Message::Event(event.clone()), Vec::new()));
            c.flush();
        }
    }

    /// Answers everyone who waits for the pod's end.
    pub(super) fn answer_end(&mut self) {
        for c in self.all.values_mut().filter(|c| c.wants_end) {
            c.wants_end = false;
            c.waiting.push_back((Message::Reply(Reply::Done), Vec::new()));
            c.flush();
        }
    }

    /// Whether messages are still on their way.
    pub(super) fn delivering(&self) -> bool {
        self.all.values().any(|c| !c.dead && !c.waiting.is_empty())
    }

    pub(super) fn interests<'a>(&'a self, set: &mut Vec<(BorrowedFd<'a>, PollFlags, Token)>) {
        if let Some((fd, _)) = &self.listener {
            set.push((fd.as_fd(), PollFlags::POLLIN, Token::Listener));
        }
        for (id, c) in &self.all {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, !c.waiting.is_empty());
            set.push((c.fd.as_fd(), flags, Token::Conn(*id)));
        }
    }

    fn dead(&mut self) -> Vec<ConnId> {
        let dead: Vec<ConnId> = self.all.iter().filter(|(_, c)| c.dead).map(|(id, _)| *id).collect();
        dead.iter().for_each(|id| drop(self.all.remove(id)));
        dead
    }
}

impl Conn {
    fn flush(&mut self) {
        while let Some((message, fds)) = self.waiting.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match proto::send(&self.fd, message, &fds) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(Error::WouldBlock) if self.waiting.len() <= WAITING => return,
                Err(_) => {
                    self.dead = true;
                    self.waiting.clear();
                }
            }
        }
    }

    fn next(&mut self) -> Result<Option<(Request, Vec<OwnedFd>)>, Error> {
        if !self.greeted {
            proto::welcome(&self.fd)?;
            self.greeted = true;
            return Ok(None);
        }
        proto::recv(&self.fd).map(Some)
    }
}

impl Monitor {
    /// Somebody knocks. Only root and the monitor's own user are let in.
    pub(super) fn on_listener(&mut self) {
        let Some((listener, _)) = &self.conns.listener else { return };
        match seqpacket::accept(listener) {
            Ok(Some(fd)) => {
                let me = nix::unistd::geteuid().as_raw();
                let allowed = seqpacket::peer(&fd).is_ok_and(|p| p.uid() == 0 || p.uid() == me);
                if allowed {
                    self.conns.add(fd, false);
                }
            }
            Ok(None) => {}
            Err(e) => complain(&self.record, &format!("cannot accept a connection: {e}")),
        }
    }

    /// A connection has something to read or room to write.
    pub(super) fn on_conn(&mut self, id: ConnId, events: PollFlags) {
        let Some(c) = self.conns.all.get_mut(&id) else { return };
        if events.contains(PollFlags::POLLOUT) {
            c.flush();
        }
        if events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            match c.next() {
                Ok(Some((request, fds))) => self.request(id, request, fds),
                Ok(None) | Err(Error::WouldBlock) => {}
                Err(Error::Closed) => c.dead = true,
                Err(e) => {
                    c.dead = true;
                    complain(&self.record, &format!("connection dropped: {e}"));
                }
            }
        }
        self.bury();
    }

    /// Forgets connections that are closed, and what they held.
    pub(super) fn bury(&mut self) {
        for id in self.conns.dead() {
            self.stdio.detach(id);
            self.spawns.forget(id);
            moving::closed(self, id);
            self.abandoned(id);
        }
    }

    fn request(&mut self, conn: ConnId, request: Request, fds: Vec<OwnedFd>) {
        if !matches!(request, Request::Info | Request::Watch { .. } | Request::Follow | Request::Move(_)) {
            if let Some(outcome) = self.past(&request) {
                return self.answer(conn, outcome);
            }
            // A matter of milliseconds: obeyed if the pod stays, refused if it is gone by then.
            if self.moving.handing_over() {
                return self.conns.deferred.push_back((conn, request, fds));
            }
        } else if self.over && matches!(request, Request::Move(_)) {
            let f = Failure::new(Kind::Failed, self.record.spec.name.as_str(), "the pod has ended");
            return self.answer(conn, Err(f));
        }
        match request {
            Request::Info => {
                let info = self.info();
                self.reply(conn, Reply::Info(Box::new(info)), Vec::new());
            }
            Request::Exec(spec) => {
                if let Err(f) = self.exec(conn, spec, fds) {
                    self.answer(conn, Err(f));
                }
            }
            Request::Signal { signal } => {
                let outcome = self.signal(signal);
                self.answer(conn, outcome);
            }
            Request::SignalSession { session, signal } => {
                let outcome = self.signal_session(session, signal);
                self.answer(conn, outcome);
            }
            Request::Pause => {
                let outcome = self.pause();
                self.answer(conn, outcome);
            }
            Request::Resume => {
                let outcome = self.resume();
                self.answer(conn, outcome);
            }
            Request::Stop { timeout_ms } => {
                self.want_end(conn);
                self.stop(Instant::now() + Duration::from_millis(timeout_ms));
            }
            Request::Kill => {
                self.want_end(conn);
                self.kill();
            }
            Request::Attach => {
                let outcome = self.attach(conn, fds);
                self.answer(conn, outcome);
            }
            Request::Resize { rows, cols } => {
                let outcome = self.resize(conn, rows, cols);
                self.answer(conn, outcome);
            }
            Request::Watch { log } => {
                self.answer(conn, Ok(()));
                self.watch(conn, Watch { log, moves: false });
            }
            Request::Follow => {
                self.answer(conn, Ok(()));
                self.watch(conn, Watch { log: false, moves: true });
            }
            Request::Move(request) => moving::handle(self, conn, request, fds),
        }
    }

    /// The answer to a request that comes too late: the pod has ended, has left, or may have.
    fn past(&self, request: &Request) -> Option<Result<(), Failure>> {
        let name = self.record.spec.name.as_str();
        let host = self.record.moved_to.as_deref().unwrap_or("another host");
        match self.record.status {
            Status::InDoubt => {
                let text = format!("it was handed over to {host}, which has not confirmed yet");
                let f = Failure::new(Kind::InDoubt, name, text);
                Some(Err(
                    f.remedy(format!("`podmig resolve {name} --here|--there` if {host} is gone for good"))
                ))
            }
            Status::Moved => {
                Some(Err(Failure::new(Kind::Elsewhere, name, format!("the pod lives on {host}"))))
            }
            _ if !self.over => None,
            _ if matches!(request, Request::Stop { .. } | Request::Kill) => Some(Ok(())),
            _ => Some(Err(Failure::new(Kind::Failed, name, "the pod has ended"))),
        }
    }

    /// What was asked while the pod was being handed over, once that is decided.
    pub(super) fn take_up(&mut self) {
        while !self.moving.handing_over() {
            let Some((conn, request, fds)) = self.conns.deferred.pop_front() else { return };
            self.request(conn, request, fds);
        }
    }

    /// SIGTERM: as `stop`, asked by nobody.
    pub(super) fn told_to_end(&mut self, timeout: Duration) {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.request(0, Request::Stop { timeout_ms }, Vec::new());
    }

    /// The process at the other end of a connection.
    pub(in crate::pod) fn caller(&self, conn: ConnId) -> Option<PidFd> {
        let c = self.conns.all.get(&conn)?;
        PidFd::open(seqpacket::peer(&c.fd).ok()?.pid()).ok()
    }

    fn want_end(&mut self, conn: ConnId) {
        if let Some(c) = self.conns.all.get_mut(&conn) {
            c.wants_end = true;
        }
    }

    fn watch(&mut self, conn: ConnId, watch: Watch) {
        let state = self.record.status;
        let (ready, ended) = (self.life.ready, self.life.last_status.filter(|_| self.pod.is_none()));
        let Some(c) = self.conns.all.get_mut(&conn) else { return };
        c.watch = Some(watch);
        let mut events = vec![Event::State(state)];
        events.extend(watch.moves.then(|| Event::Move(self.moving.stage.clone())));
        events.extend(ready.then_some(Event::Ready));
        events.extend(ended.map(|status| Event::Ended { status }));
        for event in events {
            self.conns.send(conn, Message::Event(event), Vec::new());
        }
    }

    fn attach(&mut self, conn: ConnId, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let name = self.record.spec.name.clone();
        let three: [OwnedFd; 3] = fds
            .try_into()
            .map_err(|_| Failure::new(Kind::Usage, name.as_str(), "attaching takes three descriptors"))?;
        self.stdio.attach(conn, three).map_err(|e| {
            Failure::new(
                Kind::Failed,
                name.as_str(),
                format!("cannot attach: {}", crate::pod::store::plain(&e)),
            )
        })
    }

    fn resize(&mut self, conn: ConnId, rows: u16, cols: u16) -> Result<(), Failure> {
        let name = self.record.spec.name.as_str();
        let failed = |e: io::Error| {
            Failure::new(
                Kind::Failed,
                name,
                format!("cannot set the terminal's size: {}", crate::pod::store::plain(&e)),
            )
        };
        if let Some(master) = self.spawns.terminal_of(conn) {
            return tty::set_size(master, rows, cols).map_err(failed);
        }
        match self.stdio.resize(rows, cols).map_err(failed)? {
            true => Ok(()),
            false => Err(Failure::new(Kind::Failed, name, "the pod has no terminal")
                .remedy("start it with `-t` to give it one")),
        }
    }

    /// What a caller may know of the pod.
    pub fn info(&self) -> Info {
        let pod = self.pod.as_ref();
        let clocks = pod.map(|p| p.clocks).unwrap_or_default();
        Info {
            id: self.record.spec.id.clone(),
            state: self.record.status,
            monitor_pid: std::process::id().cast_signed(),
            init_pid: pod.map(|p| p.init.pid),
            cmd_pid: self.life.cmd.as_ref().map(|c| c.host_pid),
            cmd_pod_pid: self.life.cmd.as_ref().map(|c| c.pod_pid),
            ready: self.life.ready,
            ports: self.ports(),
            monotonic_offset_ns: clocks.monotonic_ns,
            boottime_offset_ns: clocks.boottime_ns,
            cgroup: pod.map(|p| p.cgroup.rel().display().to_string()).unwrap_or_default(),
            moving: self.moving.stage.clone(),
        }
    }
}
