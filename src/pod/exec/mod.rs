//! A caller in the foreground: its terminal or streams joined to a pod's command until one of them ends.
//!
//! The caller's own descriptors never enter the pod, which could not move with them: pipes (or the master of a
//! terminal) lie between, and [`relay`] copies.

mod relay;
mod screen;

use super::client::Client;
use super::launch::{StartIo, Started};
use super::proto::ExecSpec;
use super::store::plain;
use crate::base::{Failure, Kind};
use crate::kernel::tty;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use relay::{End, Relay, Remote};
use screen::Signals;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The size of the caller's terminal (rows, columns), if it has one.
pub fn caller_size() -> Option<(u16, u16)> {
    tty::size(io::stdin()).or_else(|_| tty::size(io::stdout())).ok().filter(|s| *s != (0, 0))
}

/// `start --fg`: `start` gets the channels to start with; the command's status. Signals that this process gets are
/// the command's.
///
/// # Errors
/// What `start` gives, or the monitor died.
pub fn foreground(
    terminal: bool,
    start: impl FnOnce(StartIo) -> Result<Started, Failure>,
) -> Result<i32, Failure> {
    // Before anything is started: a signal that comes early is the command's, too.
    let signals = Signals::take()?;
    let (theirs, remote) = channels()?;
    let size = if terminal { caller_size() } else { None };
    let started = start(StartIo { attach: Some(theirs), size, exe: None })?;
    Relay::new(started.client, signals, remote, terminal, End::Pod { pass_signals: true }, started.ended)
        .run()
}

/// `attach`: takes part in the command's input and output until it ends (its status) or the caller leaves by
/// Ctrl-P Ctrl-Q or by the end of its output (0).
///
/// # Errors
/// The monitor died.
pub fn attach(mut client: Client, terminal: bool) -> Result<i32, Failure> {
    let signals = Signals::take()?;
    let (theirs, remote) = channels()?;
    let [i, o, e] = &theirs;
    client.attach([i.as_fd(), o.as_fd(), e.as_fd()])?;
    drop(theirs);
    client.watch(false)?;
    if let (true, Some((rows, cols))) = (terminal, caller_size()) {
        client.resize(rows, cols)?;
    }
    Relay::new(client, signals, remote, terminal, End::Pod { pass_signals: terminal }, None).run()
}

/// `exec`: runs a command in the pod and joins the caller to it; its status. `detached`: returns 0 once it was
/// executed, its streams are `/dev/null`.
///
/// # Errors
/// `NoSuchCommand` (127), `CannotExecute` (126), or the monitor died.
pub fn command(mut client: Client, spec: &ExecSpec, detached: bool) -> Result<i32, Failure> {
    if detached {
        client.exec(&ExecSpec { tty: None, ..spec.clone() }, None)?;
        return Ok(0);
    }
    let signals = Signals::take()?;
    if spec.tty.is_some() {
        let session = client.exec(spec, None)?;
        let master =
            session.master.ok_or_else(|| Failure::new(Kind::Failed, "terminal", "the monitor gave none"))?;
        let remote = Remote::terminal(master).map_err(|e| failed(&e))?;
        return Relay::new(client, signals, remote, true, End::Session(session.number), None).run();
    }
    let (theirs, remote) = channels()?;
    let [i, o, e] = &theirs;
    let session = client.exec(spec, Some([i.as_fd(), o.as_fd(), e.as_fd()]))?;
    drop(theirs);
    Relay::new(client, signals, remote, false, End::Session(session.number), None).run()
}

/// Three pipes: the pod's ends (stdin, stdout, stderr), and ours.
fn channels() -> Result<([OwnedFd; 3], Remote), Failure> {
    let make = || -> io::Result<([OwnedFd; 3], Remote)> {
        let pipe = || pipe2(OFlag::O_CLOEXEC);
        let ((in_r, in_w), (out_r, out_w), (err_r, err_w)) = (pipe()?, pipe()?, pipe()?);
        Ok(([in_r, out_w, err_w], Remote::pipes(in_w, out_r, err_r)?))
    };
    make().map_err(|e| failed(&e))
}

fn failed(e: &io::Error) -> Failure {
    Failure::new(Kind::Failed, "streams", format!("cannot be joined: {}", plain(e)))
}
