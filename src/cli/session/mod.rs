//! A command of a pod at the caller's own terminal or pipes: input and output copied, signals passed on, its status
//! awaited. Behind `start --fg`, `attach` and `exec`.
//!
//! The pod's side never sees the caller's descriptors, only pipes made here: a move or a lost caller is the end of
//! those, nothing more.

mod signals;
mod terminal;
mod way;

pub use signals::Signals;
pub use terminal::Raw;

use crate::base::{Failure, Kind};
use crate::kernel::tty;
use crate::pod::client::Client;
use crate::pod::proto::Event;
use crate::pod::store::plain;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use way::Way;

/// Whose end is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The pod's.
    Pod,
    /// That of one `exec`.
    Session(u32),
}

/// What signals to the caller do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnSignal {
    /// They go to CMD.
    Forward,
    /// They end the session, not the command.
    Leave,
}

/// Pipes between the caller and the pod: (ours: write stdin, read stdout, read stderr; the pod's: the other ends).
pub fn pipes() -> Result<([OwnedFd; 3], [OwnedFd; 3]), Failure> {
    let failed =
        |e: Errno| Failure::new(Kind::Failed, "pipe", format!("cannot be made: {}", e.desc().to_lowercase()));
    let pair = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed);
    let (in_read, in_write) = pair()?;
    let (out_read, out_write) = pair()?;
    let (err_read, err_write) = pair()?;
    Ok(([in_write, out_read, err_read], [in_read, out_write, err_write]))
}

/// A session under way.
pub struct Session {
    client: Client,
    until: Until,
    on_signal: OnSignal,
    signals: Signals,
    ways: Vec<Way>,
    raw: Option<Raw>,
    tty: bool,
    status: Option<i32>,
}

/// The caller's own standard descriptors, as values of their own.
fn own() -> Result<[OwnedFd; 3], Failure> {
    let failed = |e: io::Error| Failure::new(Kind::Failed, "standard descriptors", plain(&e));
    Ok([
        io::stdin().as_fd().try_clone_to_owned().map_err(failed)?,
        io::stdout().as_fd().try_clone_to_owned().map_err(failed)?,
        io::stderr().as_fd().try_clone_to_owned().map_err(failed)?,
    ])
}

impl Session {
    /// A session over pipes; `tty`: the command has a terminal behind them.
    pub fn over_pipes(
        client: Client,
        ours: [OwnedFd; 3],
        tty: bool,
        signals: Signals,
    ) -> Result<Session, Failure> {
        let [stdin, stdout, stderr] = own()?;
        let [to_pod, from_out, from_err] = ours;
        let raw = if tty { Raw::of(&stdin) } else { None };
        let mut input = Way::new(stdin, to_pod);
        if raw.is_some() {
            input.watch_for_leaving();
        }
        let ways = vec![input, Way::new(from_out, stdout), Way::new(from_err, stderr)];
        Ok(Session {
            client,
            until: Until::Pod,
            on_signal: OnSignal::Leave,
            signals,
            ways,
            raw,
            tty,
            status: None,
        })
    }

    /// A session over the master of a terminal.
    pub fn over_terminal(client: Client, master: OwnedFd, signals: Signals) -> Result<Session, Failure> {
        let failed = |e: io::Error| Failure::new(Kind::Failed, "terminal", plain(&e));
        let [stdin, stdout, _] = own()?;
        let raw = Raw::of(&stdin);
        let mut input = Way::new(stdin, master.try_clone().map_err(failed)?);
        // The program reads an end of input as a key, not as a closed terminal.
        input.keep_open();
        let ways = vec![input, Way::new(master, stdout)];
        Ok(Session {
            client,
            until: Until::Pod,
            on_signal: OnSignal::Leave,
            signals,
            ways,
            raw,
            tty: true,
            status: None,
        })
    }

    /// Awaits one `exec` instead of the pod.
    #[must_use]
    pub fn until(self, until: Until) -> Session {
        Session { until, ..self }
    }

    /// The status, when the end was told already.
    #[must_use]
    pub fn ended(self, status: Option<i32>) -> Session {
        Session { status, ..self }
    }

    /// What signals to the caller do.
    #[must_use]
    pub fn on_signal(self, on_signal: OnSignal) -> Session {
        Session { on_signal, ..self }
    }

    /// Copies until the command has ended and all it wrote is out; its status. Leaving by a signal is 128+N, by
    /// ctrl-p ctrl-q 0.
    pub fn run(mut self) -> Result<i32, Failure> {
        self.resize();
        loop {
            while self.client.has_event() {
                let event = self.client.next(None)?;
                self.event(event);
            }
            if let Some(status) = self.status
                && self.drained()
            {
                return Ok(status);
            }
            self.wait()?;
            if self.ways.iter_mut().any(Way::left) {
                self.raw.take();
                eprintln!("\r");
                return Ok(0);
            }
            if let Some(code) = self.take_signals() {
                return Ok(code);
            }
        }
    }

    /// Whether nothing more is to be copied out.
    fn drained(&mut self) -> bool {
        let outputs = &mut self.ways[1..];
        match self.until {
            // The monitor closes the pipes once everything is in them.
            Until::Pod => outputs.iter().all(Way::is_over),
            // Others may hold the pipes of an ended command: what is in them now is what it wrote.
            Until::Session(_) => outputs.iter_mut().all(Way::is_empty_now),
        }
    }

    /// One round of poll.
    fn wait(&mut self) -> Result<(), Failure> {
        let mut fds: Vec<PollFd<'_>> = vec![
            PollFd::new(self.client.fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.fd(), PollFlags::POLLIN),
        ];
        let mut of: Vec<usize> = Vec::new();
        for (at, way) in self.ways.iter().enumerate() {
            for (fd, flags) in way.interests() {
                fds.push(PollFd::new(fd, flags));
                of.push(at);
            }
        }
        if self.status.is_some() {
            // The monitor has nothing more to say: its end is no event any more.
            fds[0] = PollFd::new(self.signals.fd(), PollFlags::empty());
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(Failure::new(Kind::Failed, "poll", e.desc().to_lowercase())),
        }
        let hit = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
        let monitor = hit(&fds[0]) && self.status.is_none();
        let mut ready: Vec<usize> =
            of.iter().zip(&fds[2..]).filter(|(_, fd)| hit(fd)).map(|(at, _)| *at).collect();
        ready.dedup();
        drop(fds);
        for at in ready {
            self.ways[at].step();
        }
        if monitor {
            let event = self.client.next(None);
            match event {
                Ok(event) => self.event(event),
                // It has ended, or the pod went to another host.
                Err(f) => return self.lost(f),
            }
        }
        Ok(())
    }

    /// The connection broke before an end was told.
    fn lost(&mut self, failure: Failure) -> Result<(), Failure> {
        match self.status {
            Some(_) => Ok(()),
            None => Err(failure),
        }
    }

    fn event(&mut self, event: Option<Event>) {
        match (event, self.until) {
            (Some(Event::Ended { status }), Until::Pod) => self.status = self.status.or(Some(status)),
            // Whatever ran beside CMD was killed with the pod.
            (Some(Event::Ended { .. }), Until::Session(_)) => {
                self.status = self.status.or(Some(128 + libc::SIGKILL));
            }
            (Some(Event::SessionEnded { session, status }), Until::Session(mine)) if session == mine => {
                self.status = Some(status);
            }
            _ => {}
        }
    }

    /// Passes signals on; the exit code when one ends the session.
    fn take_signals(&mut self) -> Option<i32> {
        while let Some(signal) = self.signals.next() {
            match (signal, self.on_signal) {
                (libc::SIGWINCH, _) => self.resize(),
                // If it has just ended there is nobody to tell.
                (signal, OnSignal::Forward) => drop(self.client.signal(signal)),
                (signal, OnSignal::Leave) => return Some(128 + signal),
            }
        }
        None
    }

    /// Tells the pod's terminal the size of ours.
    fn resize(&mut self) {
        if self.tty
            && let Ok((rows, cols)) = tty::size(io::stdin())
        {
            let _ = self.client.resize(rows, cols);
        }
    }
}

/// The descriptors of a triple, borrowed.
pub fn borrowed(fds: &[OwnedFd; 3]) -> [BorrowedFd<'_>; 3] {
    [fds[0].as_fd(), fds[1].as_fd(), fds[2].as_fd()]
}
