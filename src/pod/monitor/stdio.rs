//! The pod's output and input: pipes or a terminal on one side, the log and attached callers on the other.
//!
//! Everything here is non-blocking. A caller that does not read holds the program up (its pipe fills), as a pipe
//! would; a caller that is gone is forgotten.

use super::conns::ConnId;
use super::logfile::LogFile;
use super::run::Token;
use crate::kernel::tty;
use crate::pod::logs::Stream;
use crate::pod::proto::PortAt;
use crate::state::fd::Port;
use nix::errno::Errno;
use nix::fcntl::{F_SETFL, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::unistd::{fchown, pipe2, read, write};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// How much may wait for a slow reader before the program is held up, in bytes.
const WAITING: usize = 256 << 10;
const BLOCK: usize = 64 << 10;

/// One way out of the pod.
#[derive(Debug)]
struct Output {
    port: Port,
    fd: OwnedFd,
    stream: Stream,
}

/// Bytes on their way to a descriptor.
#[derive(Debug, Default)]
struct Sink {
    fd: Option<OwnedFd>,
    waiting: Vec<u8>,
    /// Close it once all is written.
    ending: bool,
}

impl Sink {
    fn push(&mut self, bytes: &[u8]) {
        if self.fd.is_some() {
            self.waiting.extend_from_slice(bytes);
            self.flush();
        }
    }

    fn flush(&mut self) {
        while let (Some(fd), false) = (&self.fd, self.waiting.is_empty()) {
            match write(fd, &self.waiting) {
                Ok(n) => drop(self.waiting.drain(..n)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    self.fd = None;
                    self.waiting.clear();
                }
            }
        }
        if self.ending {
            self.fd = None;
        }
    }

    fn end(&mut self) {
        self.ending = true;
        self.flush();
    }
}

/// A caller that takes part in the pod's input and output.
#[derive(Debug)]
struct Attached {
    stdin: Option<OwnedFd>,
    sinks: [Sink; 2],
}

/// All of a pod's standard descriptors, seen from outside.
#[derive(Debug)]
pub(super) struct Stdio {
    pub(super) log: LogFile,
    outputs: Vec<Output>,
    input: Sink,
    input_at: Option<PortAt>,
    /// The pod is being handed over: what it has not read travels, so nothing is added to it.
    input_held: bool,
    /// The inner side of the terminal of a pod started with `-t`, held so that it does not hang up between programs.
    terminal: Option<OwnedFd>,
    attached: BTreeMap<ConnId, Attached>,
    pod_ends: Vec<(Port, OwnedFd)>,
}

/// A pipe whose end on our side does not block: (ours, the pod's).
fn pipe_out() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

fn at(port: Port, fd: impl AsFd) -> Option<PortAt> {
    let s = nix::sys::stat::fstat(fd).ok()?;
    Some(PortAt { port, dev: s.st_dev, ino: s.st_ino })
}

impl Stdio {
    pub(super) fn new(log: LogFile) -> Stdio {
        Stdio {
            log,
            outputs: Vec::new(),
            input: Sink::default(),
            input_at: None,
            input_held: false,
            terminal: None,
            attached: BTreeMap::new(),
            pod_ends: Vec::new(),
        }
    }

    /// New pipes for CMD's output, and with `stdin` for its input; [`Stdio::take_pod_ends`] gives the other ends.
    ///
    /// They belong to CMD's user, who may want to open `/dev/stdout` again.
    pub(super) fn open_pipes(&mut self, stdin: bool, uid: u32) -> io::Result<()> {
        self.close();
        for (port, stream) in [(Port::Stdout, Stream::Out), (Port::Stderr, Stream::Err)] {
            let (ours, theirs) = pipe_out()?;
            fchown(&theirs, Some(uid.into()), None)?;
            self.outputs.push(Output { port, fd: ours, stream });
            self.pod_ends.push((port, theirs));
        }
        if stdin {
            let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
            fcntl(&ours, F_SETFL(OFlag::O_NONBLOCK))?;
            fchown(&theirs, Some(uid.into()), None)?;
            self.input_at = at(Port::Stdin, &ours);
            self.input = Sink { fd: Some(ours), ..Sink::default() };
            self.pod_ends.push((Port::Stdin, theirs));
        }
        Ok(())
    }

    /// A new terminal of the pod whose root directory is at `root`; a copy of its inner side.
    pub(super) fn open_terminal(&mut self, root: &Path, uid: u32, size: (u16, u16)) -> io::Result<OwnedFd> {
        self.close();
        let pty = tty::open(&root.join("dev/pts/ptmx"))?;
        tty::set_size(&pty.master, size.0, size.1)?;
        fchown(&pty.slave, Some(uid.into()), None)?;
        fcntl(&pty.master, F_SETFL(OFlag::O_NONBLOCK))?;
        let for_cmd = pty.slave.try_clone()?;
        self.outputs.push(Output { port: Port::Stdout, fd: pty.master.try_clone()?, stream: Stream::Out });
        self.input = Sink { fd: Some(pty.master), ..Sink::default() };
        self.terminal = Some(pty.slave);
        Ok(for_cmd)
    }

    /// Lets go of everything of the pod; what it wrote is read first.
    pub(super) fn close(&mut self) {
        self.drain();
        self.log.flush();
        self.outputs.clear();
        self.pod_ends.clear();
        (self.input, self.input_at, self.terminal) = (Sink::default(), None, None);
    }

    pub(super) fn take_pod_ends(&mut self) -> Vec<(Port, OwnedFd)> {
        std::mem::take(&mut self.pod_ends)
    }

    /// The channels, by what the pod's descriptor tables show (a pipe's two ends have one inode).
    pub(super) fn ports(&self) -> Vec<PortAt> {
        if self.terminal.is_some() {
            return Vec::new();
        }
        let outputs = self.outputs.iter().filter_map(|o| at(o.port, &o.fd));
        outputs.chain(self.input_at).collect()
    }

    /// New size of the pod's terminal; `false` when it has none.
    pub(super) fn resize(&mut self, rows: u16, cols: u16) -> io::Result<bool> {
        let Some(terminal) = &self.terminal else { return Ok(false) };
        tty::set_size(terminal, rows, cols)?;
        Ok(true)
    }

    /// Takes a caller in; its pipes become non-blocking.
    pub(super) fn attach(&mut self, conn: ConnId, [stdin, out, err]: [OwnedFd; 3]) -> io::Result<()> {
        for fd in [&stdin, &out, &err] {
            fcntl(fd, F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let sink = |fd| Sink { fd: Some(fd), ..Sink::default() };
        self.attached.insert(conn, Attached { stdin: Some(stdin), sinks: [sink(out), sink(err)] });
        Ok(())
    }

    /// Lets nothing more into the pod's input. What waits for room in its pipe, and whether its end has come.
    pub(super) fn hold_input(&mut self) -> (Vec<u8>, bool) {
        self.input_held = true;
        let ended = self.input_at.is_some() && (self.input.fd.is_none() || self.input.ending);
        (self.input.waiting.clone(), ended)
    }

    /// Lets it in again.
    pub(super) fn let_input_in(&mut self) {
        self.input_held = false;
        self.input.flush();
    }

    /// Input that came at another host.
    pub(super) fn put_input(&mut self, bytes: &[u8], ended: bool) {
        self.input.push(bytes);
        if ended {
            self.input.end();
        }
    }

    /// Forgets a caller.
    pub(super) fn detach(&mut self, conn: ConnId) {
        self.attached.remove(&conn);
    }

    /// Ends the callers' streams once all is written to them: nothing more comes.
    pub(super) fn end_attached(&mut self) {
        for a in self.attached.values_mut() {
            a.stdin = None;
            a.sinks.iter_mut().for_each(Sink::end);
        }
    }

    /// Whether a caller may still write: without one, a pipe for the input would have no end.
    pub(super) fn has_caller_input(&self) -> bool {
        self.attached.values().any(|a| a.stdin.is_some())
    }

    /// Whether a caller still has bytes to come.
    pub(super) fn delivering(&self) -> bool {
        self.attached.values().flat_map(|a| &a.sinks).any(|s| s.fd.is_some() && !s.waiting.is_empty())
    }

    /// What to wait for.
    pub(super) fn interests<'a>(&'a self, set: &mut Vec<(BorrowedFd<'a>, PollFlags, Token)>) {
        let held_up = self.attached.values().flat_map(|a| &a.sinks).any(|s| s.waiting.len() >= WAITING);
        if !held_up {
            for o in &self.outputs {
                set.push((o.fd.as_fd(), PollFlags::POLLIN, Token::Output(o.port)));
            }
        }
        if let (Some(fd), false) = (&self.input.fd, self.input.waiting.is_empty() || self.input_held) {
            set.push((fd.as_fd(), PollFlags::POLLOUT, Token::Input));
        }
        for (conn, a) in &self.attached {
            if let (Some(fd), true) = (&a.stdin, self.input.waiting.len() < WAITING && !self.input_held) {
                set.push((fd.as_fd(), PollFlags::POLLIN, Token::CallerInput(*conn)));
            }
            for (i, sink) in a.sinks.iter().enumerate() {
                if let Some(fd) = &sink.fd {
                    // Without POLLOUT the reader's end is still told by POLLERR.
                    let flags = if sink.waiting.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
                    set.push((fd.as_fd(), flags, Token::CallerOutput(*conn, i)));
                }
            }
        }
    }

    /// The pod wrote, or closed, an output.
    pub(super) fn on_output(&mut self, port: Port) {
        let Some(index) = self.outputs.iter().position(|o| o.port == port) else { return };
        let output = &self.outputs[index];
        let mut block = vec![0; BLOCK];
        match read(&output.fd, &mut block) {
            Ok(0) => drop(self.outputs.remove(index)),
            Ok(n) => {
                let stream = output.stream;
                self.give(stream, &block[..n]);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // EIO: a terminal without programs.
            Err(_) => drop(self.outputs.remove(index)),
        }
    }

    fn give(&mut self, stream: Stream, bytes: &[u8]) {
        self.log.feed(stream, bytes);
        let side = usize::from(stream == Stream::Err);
        for a in self.attached.values_mut() {
            a.sinks[side].push(bytes);
        }
    }

    /// Reads all that is there now.
    pub(super) fn drain(&mut self) {
        let mut block = vec![0; BLOCK];
        for i in 0..self.outputs.len() {
            loop {
                match read(&self.outputs[i].fd, &mut block) {
                    Ok(n) if n > 0 => {
                        let stream = self.outputs[i].stream;
                        self.give(stream, &block[..n]);
                    }
                    Err(Errno::EINTR) => {}
                    _ => break,
                }
            }
        }
    }

    /// The pod's input has room.
    pub(super) fn on_input(&mut self) {
        if self.input_held {
            return;
        }
        self.input.flush();
    }

    /// A caller wrote, or ended its input.
    pub(super) fn on_caller_input(&mut self, conn: ConnId) {
        let Some(a) = self.attached.get_mut(&conn).filter(|_| !self.input_held) else { return };
        let Some(fd) = &a.stdin else { return };
        let mut block = vec![0; BLOCK];
        match read(fd, &mut block) {
            Ok(0) => {
                a.stdin = None;
                if self.terminal.is_none() {
                    self.input.end();
                }
            }
            Ok(n) => self.input.push(&block[..n]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => a.stdin = None,
        }
    }

    /// A caller has room, or is gone.
    pub(super) fn on_caller_output(&mut self, conn: ConnId, index: usize, gone: bool) {
        let Some(sink) = self.attached.get_mut(&conn).and_then(|a| a.sinks.get_mut(index)) else { return };
        if gone {
            *sink = Sink::default();
        } else {
            sink.flush();
        }
    }
}
