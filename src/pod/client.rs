//! A caller's side of a pod's monitor: requests and their answers, events in between.

use super::proto::{self, Error, Event, ExecSpec, Info, Message, Reply, Request};
use super::store::{Record, Store};
use crate::base::{Failure, Kind, PodName};
use crate::kernel::seqpacket;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// A connection to the monitor of one pod.
#[derive(Debug)]
pub struct Client {
    fd: OwnedFd,
    name: PodName,
    events: VecDeque<Event>,
}

/// A command that runs in a pod by [`Client::exec`].
#[derive(Debug)]
pub struct Session {
    /// Its number.
    pub number: u32,
    /// Its pid in the pod.
    pub pid: i32,
    /// Its terminal, if it has one.
    pub master: Option<OwnedFd>,
}

impl Client {
    /// Connects to the pod's monitor.
    ///
    /// # Errors
    /// It does not run (the pod has ended), or speaks another protocol.
    pub fn connect(store: &Store, record: &Record) -> Result<Client, Failure> {
        Client::dial(store, record, None)
    }

    fn dial(store: &Store, record: &Record, limit: Option<Duration>) -> Result<Client, Failure> {
        let name = record.spec.name.clone();
        let path = store.places.socket(&record.spec.id);
        let fd = seqpacket::dial(&path).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT | libc::ECONNREFUSED) => {
                let status =
                    if record.status.is_here() { "has no monitor any more" } else { record.status.as_str() };
                let text = format!("the pod is not running: it {}", verb(status));
                Failure::new(Kind::Failed, name.as_str(), text)
                    .remedy(format!("`podmig start {name}` starts it again"))
            }
            Some(libc::EACCES) => {
                Failure::new(Kind::Failed, name.as_str(), "its monitor cannot be reached: permission denied")
                    .remedy("run podmig as the user who started the pod, or as root")
            }
            _ => Failure::new(
                Kind::Failed,
                path.display().to_string(),
                format!("cannot connect: {}", super::store::plain(&e)),
            ),
        })?;
        let client = Client { fd, name, events: VecDeque::new() };
        if let Some(limit) = limit {
            let time = TimeVal::new(
                i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
                i64::from(limit.subsec_micros()),
            );
            // Without it a monitor that hangs is waited for.
            let _ = setsockopt(&client.fd, sockopt::ReceiveTimeout, &time);
        }
        proto::offer(&client.fd).and_then(|()| proto::accepted(&client.fd)).map_err(|e| client.failed(e))?;
        Ok(client)
    }

    /// From now on no answer is waited for longer than `limit`; one that does not come is an error.
    pub fn patience(&self, limit: Duration) {
        let limit = nix::sys::time::TimeVal::new(limit.as_secs().cast_signed(), 0);
        let _ = nix::sys::socket::setsockopt(&self.fd, nix::sys::socket::sockopt::ReceiveTimeout, &limit);
    }

    /// The same; every later answer that takes longer than `limit` is an error.
    ///
    /// # Errors
    /// As [`Client::connect`], and when the monitor does not greet in time.
    pub fn connect_within(store: &Store, record: &Record, limit: Duration) -> Result<Client, Failure> {
        Client::dial(store, record, Some(limit))
    }

    /// Ends the conversation: the monitor sees the caller as gone.
    pub fn hang_up(&self) {
        use std::os::fd::AsRawFd;
        let _ = nix::sys::socket::shutdown(self.fd.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }

    /// The starter's connection, which has watched from the beginning.
    pub(super) fn of_starter(fd: OwnedFd, name: PodName) -> Client {
        Client { fd, name, events: VecDeque::new() }
    }

    fn failed(&self, e: Error) -> Failure {
        let f = Failure::new(Kind::Failed, self.name.as_str(), e.to_string());
        match e {
            Error::Version { .. } => {
                f.remedy("its monitor is of another podmig; use that one, or restart the pod")
            }
            _ => f,
        }
    }

    /// Whose monitor it is.
    pub(super) fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The failure for whoever was joined to a pod that has moved away.
    pub(super) fn elsewhere(&self) -> Failure {
        let name = self.name.as_str();
        Failure::new(Kind::Elsewhere, name, "the pod has moved to another host")
            .remedy(format!("`podmig where {name}` says to which one"))
    }

    /// The descriptor to poll for [`Client::next`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// One request and its answer with its descriptors; events that come before it are kept.
    ///
    /// # Errors
    /// The monitor's refusal, or the connection broke.
    pub fn request(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        proto::send(&self.fd, request, fds).map_err(|e| self.failed(e))?;
        loop {
            match proto::recv::<Message>(&self.fd).map_err(|e| self.failed(e))? {
                (Message::Event(event), _) => self.events.push_back(event),
                (Message::Reply(Reply::Failed(f)), _) => return Err(f),
                (Message::Reply(reply), fds) => return Ok((reply, fds)),
            }
        }
    }

    fn done(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        match self.request(request, fds)? {
            (Reply::Done, _) => Ok(()),
            _ => Err(self.failed(Error::Garbage("an answer to something else"))),
        }
    }

    /// What the monitor knows.
    pub fn info(&mut self) -> Result<Info, Failure> {
        match self.request(&Request::Info, &[])? {
            (Reply::Info(info), _) => Ok(*info),
            _ => Err(self.failed(Error::Garbage("an answer to something else"))),
        }
    }

    /// Runs a command in the pod. `stdio`: stdin, stdout, stderr (pipes of the caller's own; none: `/dev/null`);
    /// with a terminal in `spec` none are taken and the session has its master. Its end comes as
    /// [`Event::SessionEnded`].
    ///
    /// # Errors
    /// `NoSuchCommand` (127), `CannotExecute` (126), or the pod is paused or ending.
    pub fn exec(&mut self, spec: &ExecSpec, stdio: Option<[BorrowedFd<'_>; 3]>) -> Result<Session, Failure> {
        let fds: &[BorrowedFd<'_>] = stdio.as_ref().map_or(&[], |three| three);
        match self.request(&Request::Exec(spec.clone()), fds)? {
            (Reply::Exec { session, pid }, fds) => {
                Ok(Session { number: session, pid, master: fds.into_iter().next() })
            }
            _ => Err(self.failed(Error::Garbage("an answer to something else"))),
        }
    }

    /// Sends a signal to CMD.
    pub fn signal(&mut self, signal: i32) -> Result<(), Failure> {
        self.done(&Request::Signal { signal }, &[])
    }

    /// Sends a signal to a command run by [`Client::exec`].
    pub fn signal_session(&mut self, session: u32, signal: i32) -> Result<(), Failure> {
        self.done(&Request::SignalSession { session, signal }, &[])
    }

    /// Freezes all tasks.
    pub fn pause(&mut self) -> Result<(), Failure> {
        self.done(&Request::Pause, &[])
    }

    /// Thaws them.
    pub fn resume(&mut self) -> Result<(), Failure> {
        self.done(&Request::Resume, &[])
    }

    /// SIGTERM to CMD and SIGKILL to all after `timeout`; returns when the pod has ended.
    pub fn stop(&mut self, timeout: Duration) -> Result<(), Failure> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.done(&Request::Stop { timeout_ms }, &[])
    }

    /// SIGKILL to all; returns when the pod has ended.
    pub fn kill(&mut self) -> Result<(), Failure> {
        self.done(&Request::Kill, &[])
    }

    /// Takes part in CMD's input and output by pipes: stdin (the monitor reads), stdout, stderr (it writes).
    pub fn attach(&mut self, stdio: [BorrowedFd<'_>; 3]) -> Result<(), Failure> {
        self.done(&Request::Attach, &stdio)
    }

    /// New size of the terminal: that of this connection's last session, else CMD's.
    pub fn resize(&mut self, rows: u16, cols: u16) -> Result<(), Failure> {
        self.done(&Request::Resize { rows, cols }, &[])
    }

    /// Asks for events from now on: the state at once, `Ready` too when it is up, `Ended` when it is over; with
    /// `log`, a hint whenever the log has grown.
    pub fn watch(&mut self, log: bool) -> Result<(), Failure> {
        self.done(&Request::Watch { log }, &[])
    }

    /// As [`Client::watch`] without the log, and where a move under way is: at once and whenever it gets further.
    pub fn follow(&mut self) -> Result<(), Failure> {
        self.done(&Request::Follow, &[])
    }

    /// The next event; `None` when none comes before `deadline`.
    ///
    /// # Errors
    /// The connection broke: the monitor has ended.
    pub fn next(&mut self, deadline: Option<Instant>) -> Result<Option<Event>, Failure> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        if !self.readable(deadline)? {
            return Ok(None);
        }
        match proto::recv::<Message>(&self.fd).map_err(|e| self.failed(e))? {
            (Message::Event(event), _) => Ok(Some(event)),
            (Message::Reply(_), _) => Err(self.failed(Error::Garbage("an answer to nothing"))),
        }
    }

    /// Whether an event was kept while a request was answered, so that [`Client::next`] returns at once.
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    fn readable(&self, deadline: Option<Instant>) -> Result<bool, Failure> {
        loop {
            let timeout = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                Some(left) => {
                    PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
                }
                None => PollTimeout::NONE,
            };
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(self.failed(Error::Io("wait for the monitor", e))),
            }
        }
    }
}

fn verb(status: &str) -> String {
    match status {
        "has no monitor any more" => status.to_owned(),
        status => format!("is {status}"),
    }
}
