//! Orders to pid 1, and what became of them: CMD and the commands run beside it.

use super::conns::ConnId;
use super::run::Token;
use super::{Monitor, complain};
use crate::base::spec::StartType;
use crate::base::{Failure, Kind};
use crate::kernel::{clone, seqpacket, tty};
use crate::pod::init::command::{Command, Stdio};
use crate::pod::init::{self, Outcome, Plan, Said};
use crate::pod::proto::{Event, ExecSpec, Message, PortAt, Reply};
use crate::state::fd::Port;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::fs::{File, read_to_string};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long an order may take to be obeyed when a move waits for it.
const SETTLING: Duration = Duration::from_secs(1);

/// A process of the pod that the monitor asked for.
#[derive(Debug)]
pub struct Started {
    /// Its pid in the pod.
    pub pod_pid: i32,
    /// Its pid on the host.
    pub host_pid: i32,
    /// Names it for good.
    pub pidfd: OwnedFd,
}

#[derive(Clone, Copy, Debug)]
enum Purpose {
    Cmd,
    Session(u32),
}

/// An order on its way.
#[derive(Debug)]
struct Spawn {
    purpose: Purpose,
    plan: Plan,
    /// The order's memory file.
    file: OwnedFd,
    /// Read end of a pipe whose write end the child loses when it executes or ends.
    done: Option<OwnedFd>,
    child: Option<Result<(i32, OwnedFd), Errno>>,
    /// Its end, if pid 1 told of it first.
    exited: Option<(i32, bool)>,
    /// What a failure is told with.
    spec: ExecSpec,
}

/// A command run beside CMD.
#[derive(Debug)]
struct Session {
    conn: Option<ConnId>,
    /// Kept for the size only; who asked for the session has the terminal.
    master: Option<OwnedFd>,
    process: Option<Started>,
    ports: Vec<PortAt>,
}

/// Orders and sessions.
#[derive(Debug, Default)]
pub(super) struct Spawns {
    next: u32,
    orders: BTreeMap<u32, Spawn>,
    sessions: BTreeMap<u32, Session>,
}

impl Spawns {
    fn take_id(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    pub(super) fn interests<'a>(&'a self, set: &mut Vec<(BorrowedFd<'a>, PollFlags, Token)>) {
        for (id, order) in &self.orders {
            if let Some(done) = &order.done {
                set.push((done.as_fd(), PollFlags::POLLIN, Token::Spawn(*id)));
            }
        }
    }

    /// A connection is gone: its sessions go on (a terminal hangs up by itself, a pipe breaks).
    pub(super) fn forget(&mut self, conn: ConnId) {
        for s in self.sessions.values_mut().filter(|s| s.conn == Some(conn)) {
            (s.conn, s.master) = (None, None);
        }
    }

    /// The terminal of the newest session of `conn`.
    pub(super) fn terminal_of(&self, conn: ConnId) -> Option<&OwnedFd> {
        self.sessions.values().rev().find(|s| s.conn == Some(conn)).and_then(|s| s.master.as_ref())
    }

    /// The sessions' channels.
    pub(super) fn ports(&self) -> Vec<PortAt> {
        self.sessions.values().flat_map(|s| s.ports.iter().copied()).collect()
    }

    /// Host pids of the sessions' commands.
    pub(super) fn session_pids(&self) -> Vec<i32> {
        self.sessions.values().filter_map(|s| Some(s.process.as_ref()?.host_pid)).collect()
    }

    /// Everything of a pod that ended; the sessions that were killed with it, and who waits for their end.
    pub(super) fn clear(&mut self) -> Vec<(u32, ConnId)> {
        self.orders.clear();
        let sessions = std::mem::take(&mut self.sessions);
        sessions.into_iter().filter_map(|(id, s)| Some((id, s.conn?))).collect()
    }
}

/// The pid on this host of the process a pidfd names.
fn host_pid(pidfd: &OwnedFd) -> Option<i32> {
    let text = read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let pid = text.lines().find_map(|l| l.strip_prefix("Pid:"))?.trim().parse().ok()?;
    (pid > 0).then_some(pid)
}

/// Status as a shell gives it: 0 to 255, 128+N by signal.
pub(super) fn shell_status(wait: i32) -> i32 {
    if libc::WIFSIGNALED(wait) { 128 + libc::WTERMSIG(wait) } else { libc::WEXITSTATUS(wait) }
}

impl Monitor {
    /// Has pid 1 run CMD.
    pub(super) fn spawn_cmd(&mut self, stdin: bool, size: (u16, u16)) -> Result<(), Failure> {
        let spec = self.record.spec.clone();
        let failed = |e: std::io::Error| {
            let text = format!("cannot make its output channels: {}", crate::pod::store::plain(&e));
            Failure::new(Kind::Failed, spec.name.as_str(), text)
        };
        let mut fds: Vec<OwnedFd> = Vec::new();
        let stdio = if spec.tty {
            fds.push(self.stdio.open_terminal(&self.root(), spec.user.uid, size).map_err(failed)?);
            Stdio::Terminal(0)
        } else {
            self.stdio.open_pipes(stdin, spec.user.uid).map_err(failed)?;
            fds.extend(self.stdio.take_pod_ends().into_iter().map(|(_, fd)| fd));
            if !stdin {
                fds.push(File::open("/dev/null").map_err(failed)?.into());
            }
            // In the order they were opened: stdout, stderr, then stdin.
            Stdio::Three([2, 0, 1])
        };
        let mut env = spec.env.clone();
        if spec.start_type == StartType::Notify {
            env.push(format!("NOTIFY_SOCKET={}", crate::pod::notify_name(&spec.id)));
        }
        let exec = ExecSpec {
            cmd: spec.cmd.clone(),
            env,
            cwd: spec.cwd.clone(),
            user: spec.user.clone(),
            umask: spec.umask,
            tty: None,
        };
        let id = self.spawns.take_id();
        self.order(id, Purpose::Cmd, exec, stdio, &fds)
    }

    /// `podmig exec`.
    pub(super) fn exec(&mut self, conn: ConnId, spec: ExecSpec, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let name = self.record.spec.name.clone();
        let refuse = |text: &str| Failure::new(Kind::Failed, name.as_str(), text.to_owned());
        if self.pod.is_none() || self.life.ending() {
            return Err(refuse("the pod is not running"));
        }
        if self.record.status != crate::pod::store::Status::Running {
            return Err(
                refuse(&format!("the pod is {}", self.record.status)).remedy("`podmig resume` it first")
            );
        }
        let failed = |e: std::io::Error| {
            refuse(&format!("cannot make the command's channels: {}", crate::pod::store::plain(&e)))
        };
        let mut session = Session { conn: Some(conn), master: None, process: None, ports: Vec::new() };
        let mut fds = fds;
        let stdio = match (spec.tty, fds.len()) {
            (Some((rows, cols)), _) => {
                let pty = tty::open(&self.root().join("dev/pts/ptmx")).map_err(failed)?;
                tty::set_size(&pty.master, rows, cols).map_err(failed)?;
                nix::unistd::fchown(&pty.slave, Some(spec.user.uid.into()), None)
                    .map_err(|e| failed(e.into()))?;
                session.master = Some(pty.master);
                fds = vec![pty.slave];
                Stdio::Terminal(0)
            }
            (None, 3) => {
                for fd in &fds {
                    // Pipes: its user may want to open `/dev/stdout` again. Anything else stays whose it is.
                    if is_pipe(fd) {
                        nix::unistd::fchown(fd, Some(spec.user.uid.into()), None)
                            .map_err(|e| failed(e.into()))?;
                    }
                }
                Stdio::Three([0, 1, 2])
            }
            (None, _) => {
                fds = vec![File::options().read(true).write(true).open("/dev/null").map_err(failed)?.into()];
                Stdio::Three([0; 3])
            }
        };
        let id = self.spawns.take_id();
        if spec.tty.is_none() && fds.len() == 3 {
            session.ports = fds.iter().filter_map(|fd| port_at(id, fd)).collect();
        }
        self.order(id, Purpose::Session(id), spec, stdio, &fds)?;
        self.spawns.sessions.insert(id, session);
        Ok(())
    }

    /// A signal to a session's command.
    pub(super) fn signal_session(&self, session: u32, signal: i32) -> Result<(), Failure> {
        let Some(process) = self.spawns.sessions.get(&session).and_then(|s| s.process.as_ref()) else {
            return Ok(());
        };
        match clone::pidfd_signal(&process.pidfd, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => {
                let text = format!("cannot be sent: {}", e.desc().to_lowercase());
                Err(Failure::new(Kind::Failed, format!("signal {signal}"), text))
            }
        }
    }

    /// The pod's root directory, seen from the host.
    fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pod.as_ref().map_or(0, |p| p.init.pid)))
    }

    fn order(
        &mut self,
        id: u32,
        purpose: Purpose,
        spec: ExecSpec,
        stdio: Stdio,
        fds: &[OwnedFd],
    ) -> Result<(), Failure> {
        let whole = self.record.spec.clone();
        let Some(pod) = &self.pod else {
            return Err(Failure::new(Kind::Failed, whole.name.as_str(), "the pod is not running"));
        };
        let plan = command(&spec, &whole.rlimits, whole.privileged, stdio).plan()?;
        let failed = |e: std::io::Error| {
            let text = format!("cannot ask pid 1 for a process: {}", crate::pod::store::plain(&e));
            Failure::new(Kind::Failed, whole.name.as_str(), text)
        };
        let (done, kept) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| failed(e.into()))?;
        let mut all: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        all.push(kept.as_fd());
        let file = plan.send(&pod.socket, id, &all).map_err(failed)?;
        let order = Spawn { purpose, plan, file, done: Some(done), child: None, exited: None, spec };
        self.spawns.orders.insert(id, order);
        Ok(())
    }

    /// Before the pod is stopped for a move: no order is left on its way to pid 1, which would obey it unseen.
    ///
    /// # Errors
    /// One takes too long, or the pod is being ended.
    pub(in crate::pod) fn settle_orders(&mut self) -> Result<(), String> {
        if self.life.ending() || self.life.end_wanted() {
            return Err("it is being ended".to_owned());
        }
        let end = Instant::now() + SETTLING;
        while !self.spawns.orders.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            let mut set = Vec::new();
            self.spawns.interests(&mut set);
            if let Some(pod) = &self.pod {
                set.push((pod.socket.as_fd(), PollFlags::POLLIN, Token::Init));
            }
            let mut fds: Vec<PollFd<'_>> =
                set.iter().map(|(fd, flags, _)| PollFd::new(*fd, *flags)).collect();
            let ready = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
            if matches!(ready, Ok(0)) {
                return Err("a command is just being started in it".to_owned());
            }
            let events: Vec<Token> =
                fds.iter().zip(&set).filter(|(fd, _)| fd.any() == Some(true)).map(|(_, s)| s.2).collect();
            for token in events {
                match token {
                    Token::Spawn(id) => self.on_spawn(id),
                    _ => self.on_init(),
                }
            }
        }
        Ok(())
    }

    /// Takes what pid 1 said before it was frozen: whether CMD still runs is to be known by then.
    ///
    /// # Errors
    /// The pod has ended.
    pub(in crate::pod) fn hear_init(&mut self) -> Result<(), String> {
        self.on_init();
        if self.pod.is_some() { Ok(()) } else { Err("its command has ended".to_owned()) }
    }

    /// pid 1 says something.
    pub(super) fn on_init(&mut self) {
        let mut buf = [0; 4096];
        loop {
            let Some(pod) = &self.pod else { return };
            match seqpacket::recv(&pod.socket, &mut buf) {
                Err(Errno::EAGAIN) => return,
                Ok((n, fds)) if n > 0 => match init::said(&buf[..n]) {
                    Some(said) => self.heard(said, fds),
                    None => complain(&self.record, "pid 1 said something unknown"),
                },
                // Its end is told by its pidfd.
                _ => return,
            }
        }
    }

    fn heard(&mut self, said: Said, fds: Vec<OwnedFd>) {
        match said {
            Said::Forked { id, child } => {
                if let Some(order) = self.spawns.orders.get_mut(&id) {
                    order.child = Some(child.and_then(|pid| {
                        let pidfd = fds.into_iter().next().ok_or(Errno::EBADF)?;
                        Ok((pid, pidfd))
                    }));
                    if matches!(order.child, Some(Err(_))) {
                        order.done = None;
                    }
                    self.settle(id);
                }
            }
            Said::Exited { pid, status, childless } => self.exited(pid, status, childless),
            Said::Hello => {}
            Said::Failed(text) => complain(&self.record, &text),
        }
    }

    /// A child executed, or ended before.
    pub(super) fn on_spawn(&mut self, id: u32) {
        if let Some(order) = self.spawns.orders.get_mut(&id) {
            order.done = None;
            self.settle(id);
        }
    }

    /// Ends an order once all is known of it.
    fn settle(&mut self, id: u32) {
        let ready = self.spawns.orders.get(&id).is_some_and(|o| o.child.is_some() && o.done.is_none());
        if !ready {
            return;
        }
        let Some(order) = self.spawns.orders.remove(&id) else { return };
        let outcome = match &order.child {
            Some(Err(errno)) => Outcome::Failed { what: "fork", errno: *errno },
            _ => order
                .plan
                .outcome(&order.file)
                .unwrap_or(Outcome::Failed { what: "read its order", errno: Errno::EIO }),
        };
        let exited = order.exited;
        let child = match (outcome, order.child) {
            (Outcome::Executed, Some(Ok((pod_pid, pidfd)))) => {
                let host_pid = host_pid(&pidfd).unwrap_or(0);
                Ok(Started { pod_pid, host_pid, pidfd })
            }
            _ => Err(command(&order.spec, &[], false, Stdio::Terminal(0)).failure(outcome)),
        };
        match order.purpose {
            Purpose::Cmd => self.cmd_spawned(child, exited),
            Purpose::Session(session) => self.session_spawned(session, child, exited),
        }
    }

    fn session_spawned(&mut self, id: u32, child: Result<Started, Failure>, exited: Option<(i32, bool)>) {
        let Some(session) = self.spawns.sessions.get_mut(&id) else { return };
        let conn = session.conn;
        match child {
            Ok(started) => {
                let pid = started.pod_pid;
                session.process = Some(started);
                let master = session.master.as_ref().and_then(|m| m.try_clone().ok());
                if let Some(conn) = conn {
                    let reply = Reply::Exec { session: id, pid };
                    self.reply(conn, reply, master.into_iter().collect());
                }
                if let Some((status, _)) = exited {
                    self.session_ended(id, status);
                }
            }
            Err(f) => {
                self.spawns.sessions.remove(&id);
                if let Some(conn) = conn {
                    self.answer(conn, Err(f));
                }
            }
        }
    }

    pub(super) fn session_ended(&mut self, id: u32, status: i32) {
        if let Some(conn) = self.spawns.sessions.remove(&id).and_then(|s| s.conn) {
            let event = Event::SessionEnded { session: id, status: shell_status(status) };
            self.conns.send(conn, Message::Event(event), Vec::new());
        }
    }

    /// The pod leaves with all it runs: whoever waits for a command of `exec` hears that it was hung up.
    pub(super) fn sessions_left(&mut self) {
        let all: Vec<u32> = self.spawns.sessions.keys().copied().collect();
        all.into_iter().for_each(|id| self.session_ended(id, libc::SIGHUP));
    }

    /// pid 1 reaped a process.
    fn exited(&mut self, pid: i32, status: i32, childless: bool) {
        let order =
            self.spawns.orders.values_mut().find(|o| matches!(&o.child, Some(Ok((p, _))) if *p == pid));
        if let Some(order) = order {
            order.exited = Some((status, childless));
            return;
        }
        let session = self
            .spawns
            .sessions
            .iter()
            .find(|(_, s)| s.process.as_ref().is_some_and(|p| p.pod_pid == pid))
            .map(|(id, _)| *id);
        if let Some(id) = session {
            self.session_ended(id, status);
        }
        self.process_ended(pid, status, childless);
    }
}

fn is_pipe(fd: &OwnedFd) -> bool {
    nix::sys::stat::fstat(fd).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFIFO)
}

fn port_at(session: u32, fd: &OwnedFd) -> Option<PortAt> {
    let s = nix::sys::stat::fstat(fd).ok()?;
    Some(PortAt { port: Port::Session(session), dev: s.st_dev, ino: s.st_ino })
}

fn command<'a>(
    spec: &'a ExecSpec,
    rlimits: &'a [(u32, u64, u64)],
    privileged: bool,
    stdio: Stdio,
) -> Command<'a> {
    Command {
        cmd: &spec.cmd,
        env: &spec.env,
        cwd: &spec.cwd,
        user: &spec.user,
        umask: spec.umask,
        rlimits,
        privileged,
        stdio,
    }
}
