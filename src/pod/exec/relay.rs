//! Copies between the caller's streams and a pod's command, passes signals and sizes on, and waits for the end.

use super::super::client::Client;
use super::super::proto::Event;
use super::super::store::Status;
use super::caller_size;
use super::screen::{Raw, Signals};
use crate::base::Failure;
use nix::errno::Errno;
use nix::fcntl::{F_SETFL, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use std::io::{self, stderr, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What is written at once to the caller's own descriptors, which block: a pipe that polls writable takes as much.
const PIECE: usize = 4096;
const BLOCK: usize = 64 << 10;
/// What is read at most of a stream whose command has ended: more than a pipe holds.
const DRAINED: usize = 1 << 20;

/// Our ends of the channels to the command.
#[derive(Debug)]
pub(super) struct Remote {
    input: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
}

impl Remote {
    pub(super) fn pipes(input: OwnedFd, out: OwnedFd, err: OwnedFd) -> io::Result<Remote> {
        fcntl(&input, F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Remote { input: Some(input), outputs: [Some(out), Some(err)] })
    }
    pub(super) fn terminal(master: OwnedFd) -> io::Result<Remote> {
        fcntl(&master, F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        Ok(Remote { input: Some(master.try_clone()?), outputs: [Some(master), None] })
    }
}

/// What the caller waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The pod's end.
    Pod {
        /// Whether the caller's signals are the command's.
        pass_signals: bool,
    },
    /// That of a command run beside it.
    Session(u32),
}

/// Ctrl-P Ctrl-Q in what is typed.
#[derive(Debug, Default)]
struct Leaving {
    begun: bool,
}

impl Leaving {
    /// Whether the sequence is complete; a begun one is held back from `bytes`.
    fn seen(&mut self, bytes: &mut Vec<u8>) -> bool {
        let mut kept = Vec::with_capacity(bytes.len() + 1);
        for b in bytes.drain(..) {
            match (self.begun, b) {
                (true, 0x11) => return true,
                (true, 0x10) => kept.push(0x10),
                (true, b) => {
                    self.begun = false;
                    kept.extend([0x10, b]);
                }
                (false, 0x10) => self.begun = true,
                (false, b) => kept.push(b),
            }
        }
        *bytes = kept;
        false
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    Signals,
    Monitor,
    Typed,
    Input,
    Output(usize),
    Shown(usize),
}

/// One caller joined to one command.
pub(super) struct Relay {
    client: Client,
    signals: Signals,
    remote: Remote,
    terminal: bool,
    end: End,
    status: Option<i32>,
    typed_open: bool,
    to_input: Vec<u8>,
    to_show: [Vec<u8>; 2],
    leaving: Leaving,
    left: bool,
}

impl Relay {
    pub(super) fn new(
        client: Client,
        signals: Signals,
        remote: Remote,
        terminal: bool,
        end: End,
        status: Option<i32>,
    ) -> Relay {
        Relay {
            client,
            signals,
            remote,
            terminal,
            end,
            status,
            typed_open: true,
            to_input: Vec::new(),
            to_show: [Vec::new(), Vec::new()],
            leaving: Leaving::default(),
            left: false,
        }
    }

    /// Until the end; the status.
    pub(super) fn run(mut self) -> Result<i32, Failure> {
        let _raw = if self.terminal { Raw::enter() } else { None };
        while !self.over() {
            for (token, flags) in self.wait() {
                self.dispatch(token, flags)?;
            }
        }
        Ok(self.status.unwrap_or(0))
    }

    /// The end was told and everything written is shown.
    fn over(&self) -> bool {
        let shown = self.to_show.iter().all(Vec::is_empty);
        // Streams of a session that someone else still holds were ended by `drain`.
        let closed = self.remote.outputs.iter().all(Option::is_none);
        self.left || (self.status.is_some() && shown && closed)
    }

    fn wait(&mut self) -> Vec<(Token, PollFlags)> {
        let (input, out, err) = (stdin(), stdout(), stderr());
        let mut set: Vec<(BorrowedFd<'_>, PollFlags, Token)> =
            vec![(self.signals.fd(), PollFlags::POLLIN, Token::Signals)];
        if self.status.is_none() {
            set.push((self.client.fd(), PollFlags::POLLIN, Token::Monitor));
        }
        if self.typed_open && self.to_input.is_empty() && self.remote.input.is_some() {
            set.push((input.as_fd(), PollFlags::POLLIN, Token::Typed));
        }
        if let Some(fd) = &self.remote.input {
            let flags = if self.to_input.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            set.push((fd.as_fd(), flags, Token::Input));
        }
        for (i, shown) in [out.as_fd(), err.as_fd()].into_iter().enumerate() {
            match &self.remote.outputs[i] {
                _ if !self.to_show[i].is_empty() => set.push((shown, PollFlags::POLLOUT, Token::Shown(i))),
                Some(fd) => set.push((fd.as_fd(), PollFlags::POLLIN, Token::Output(i))),
                None => {}
            }
        }
        let mut fds: Vec<PollFd<'_>> = set.iter().map(|(fd, flags, _)| PollFd::new(*fd, *flags)).collect();
        let timeout = if self.client.has_event() { PollTimeout::ZERO } else { PollTimeout::NONE };
        let mut events: Vec<(Token, PollFlags)> = match poll(&mut fds, timeout) {
            Err(_) => Vec::new(),
            Ok(_) => {
                let ready =
                    fds.iter().zip(&set).filter_map(|(fd, (_, _, token))| Some((*token, fd.revents()?)));
                ready.filter(|(_, flags)| !flags.is_empty()).collect()
            }
        };
        if self.client.has_event() && !events.iter().any(|(t, _)| *t == Token::Monitor) {
            events.push((Token::Monitor, PollFlags::POLLIN));
        }
        events
    }

    fn dispatch(&mut self, token: Token, flags: PollFlags) -> Result<(), Failure> {
        match token {
            Token::Signals => {
                while let Some(signal) = self.signals.next() {
                    self.signal(signal)?;
                }
            }
            Token::Monitor => self.heard()?,
            Token::Typed => self.typed(),
            Token::Input => self.feed(flags),
            Token::Output(i) => self.output(i),
            Token::Shown(i) => self.show(i)?,
        }
        Ok(())
    }

    fn heard(&mut self) -> Result<(), Failure> {
        let status = match (self.client.next(None)?, self.end) {
            // Of the command nothing more is heard here.
            (Some(Event::State(Status::Moved)), End::Pod { .. }) => return Err(self.client.elsewhere()),
            (Some(Event::Ended { status }), End::Pod { .. }) => status,
            (Some(Event::SessionEnded { session, status }), End::Session(mine)) if session == mine => status,
            _ => return Ok(()),
        };
        self.status = Some(status);
        self.remote.input = None;
        if matches!(self.end, End::Session(_)) {
            self.drain();
        }
        Ok(())
    }

    /// A session's streams may be held open by what its command left behind: what is in them now is all.
    fn drain(&mut self) {
        let mut block = vec![0; BLOCK];
        for (output, shown) in self.remote.outputs.iter_mut().zip(&mut self.to_show) {
            let mut left = DRAINED;
            while let Some(fd) = output {
                let mut set = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                let some = left > 0 && matches!(poll(&mut set, PollTimeout::ZERO), Ok(n) if n > 0);
                match if some { read(&*fd, &mut block) } else { Ok(0) } {
                    Ok(n) if n > 0 => {
                        shown.extend_from_slice(&block[..n]);
                        left = left.saturating_sub(n);
                    }
                    Err(Errno::EINTR) => {}
                    _ => *output = None,
                }
            }
        }
    }

    fn signal(&mut self, signal: i32) -> Result<(), Failure> {
        if signal == libc::SIGWINCH {
            if let (true, Some((rows, cols))) = (self.terminal, caller_size()) {
                // A pod without a terminal of its own has no size.
                let _ = self.client.resize(rows, cols);
            }
            return Ok(());
        }
        if self.status.is_some() {
            return Ok(());
        }
        match self.end {
            End::Pod { pass_signals: true } => self.client.signal(signal),
            End::Session(session) => self.client.signal_session(session, signal),
            End::Pod { .. } => {
                self.left = true;
                Ok(())
            }
        }
    }

    fn typed(&mut self) {
        let mut block = vec![0; BLOCK];
        match read(stdin(), &mut block) {
            Err(Errno::EINTR | Errno::EAGAIN) => return,
            Ok(n) if n > 0 => self.to_input.extend_from_slice(&block[..n]),
            // Its end (EIO: a terminal that hung up).
            _ => {
                self.typed_open = false;
                if !self.terminal {
                    self.remote.input = None;
                }
                return;
            }
        }
        if self.terminal && matches!(self.end, End::Pod { .. }) && self.leaving.seen(&mut self.to_input) {
            self.left = true;
        }
        self.feed(PollFlags::POLLOUT);
    }

    fn feed(&mut self, flags: PollFlags) {
        let Some(fd) = &self.remote.input else { return };
        if flags.contains(PollFlags::POLLERR) {
            self.remote.input = None;
            return;
        }
        match write(fd, &self.to_input) {
            Ok(n) => drop(self.to_input.drain(..n)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => {
                self.to_input.clear();
                self.remote.input = None;
            }
        }
    }

    fn output(&mut self, i: usize) {
        let Some(fd) = &self.remote.outputs[i] else { return };
        let mut block = vec![0; BLOCK];
        match read(fd, &mut block) {
            Ok(n) if n > 0 => self.to_show[i].extend_from_slice(&block[..n]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // EIO: the last program left the terminal.
            _ => self.remote.outputs[i] = None,
        }
    }

    fn show(&mut self, i: usize) -> Result<(), Failure> {
        let piece = &self.to_show[i][..self.to_show[i].len().min(PIECE)];
        let written = if i == 0 { write(stdout(), piece) } else { write(stderr(), piece) };
        match written {
            Ok(n) => drop(self.to_show[i].drain(..n)),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => {
                // Nobody reads any more: the command is to learn it as it would from a pipe.
                self.to_show[i].clear();
                self.remote.outputs[i] = None;
                match self.end {
                    End::Pod { pass_signals: true } if self.status.is_none() => {
                        self.client.signal(libc::SIGPIPE)?
                    }
                    End::Pod { .. } => self.left = true,
                    End::Session(_) => {}
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_is_found_in_any_pieces() {
        let typed = |pieces: &[&[u8]]| {
            let mut leaving = Leaving::default();
            let mut all = Vec::new();
            for piece in pieces {
                let mut bytes = piece.to_vec();
                if leaving.seen(&mut bytes) {
                    return None;
                }
                all.extend(bytes);
            }
            Some(all)
        };
        assert_eq!(typed(&[b"a\x10\x11"]), None);
        assert_eq!(typed(&[b"a\x10", b"\x11"]), None);
        assert_eq!(typed(&[b"a\x10", b"b", b"\x10\x10x"]).unwrap(), b"a\x10b\x10\x10x");
        assert_eq!(typed(&[b"\x11\x10"]).unwrap(), b"\x11");
    }
}
