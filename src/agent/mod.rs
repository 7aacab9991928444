//! The agent: accepts peers and starts one worker process for each.
//!
//! A worker is this program again with the accepted socket as its standard input (as inetd did it): it does the
//! TLS handshake, speaks the protocol and builds pods. So the agent holds no keys of a conversation and no
//! state; its death or restart touches no move under way.

mod hidden;

pub use hidden::hidden;

use crate::base::{Failure, Kind};
use crate::pod::store::Places;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// Default port.
pub const PORT: u16 = 7411;
/// Workers at once; more callers wait in the accept queue.
const WORKERS: usize = 64;

/// What can stop an agent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}")]
    Listen {
        /// Address.
        addr: SocketAddr,
        /// Cause.
        source: io::Error,
    },
    /// The runtime or a signal handler could not be set up.
    #[error("cannot start the agent")]
    Runtime(#[source] io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let message = error.to_string();
        match error {
            Error::Listen { addr, source } => {
                let kind = if source.kind() == io::ErrorKind::AddrInUse { Kind::Taken } else { Kind::Failed };
                Failure::new(
                    kind,
                    addr.to_string(),
                    format!("{message}: {}", crate::kernel::errno_text(&source)),
                )
                .remedy("choose another address with --listen")
            }
            Error::Runtime(source) => Failure::new(
                Kind::Failed,
                "agent",
                format!("{message}: {}", crate::kernel::errno_text(&source)),
            ),
        }
    }
}

/// Listens until SIGTERM or SIGINT. Workers use `places`; `ready` is called once with the address.
pub fn run(listen: SocketAddr, places: &Places, ready: impl FnOnce(SocketAddr)) -> Result<(), Error> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    runtime.block_on(serve(listen, places, ready))
}

async fn serve(listen: SocketAddr, places: &Places, ready: impl FnOnce(SocketAddr)) -> Result<(), Error> {
    let failed = |source| Error::Listen { addr: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let mut term = signal(SignalKind::terminate()).map_err(Error::Runtime)?;
    let mut int = signal(SignalKind::interrupt()).map_err(Error::Runtime)?;
    ready(listener.local_addr().map_err(failed)?);
    let mut workers = JoinSet::new();
    loop {
        tokio::select! {
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
            Some(_) = workers.join_next(), if !workers.is_empty() => {}
            accepted = listener.accept(), if workers.len() < WORKERS => match accepted {
                Ok((socket, peer)) => match start_worker(socket, places) {
                    Ok(mut child) => {
                        workers.spawn(async move {
                            let status = child.wait().await;
                            tracing::debug!(%peer, ?status, "worker ended");
                        });
                    }
                    Err(error) => tracing::error!(%peer, %error, "cannot start a worker"),
                },
                Err(error) => tracing::warn!(%error, "accept"),
            },
        }
    }
}

/// Starts a worker on the socket. It outlives the agent: its own session, and not killed when dropped.
fn start_worker(socket: TcpStream, places: &Places) -> io::Result<tokio::process::Child> {
    let socket = socket.into_std()?;
    socket.set_nonblocking(false)?;
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command.arg0("podmig");
    command.arg(hidden::SERVE).args([&places.etc, &places.var, &places.run]);
    command.stdin(Stdio::from(OwnedFd::from(socket))).stdout(Stdio::null()).kill_on_drop(false);
    command.process_group(0);
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_address_is_named() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = held.local_addr().unwrap();
        let failure = Failure::from(run(addr, &Places::resolve(None), |_| ()).unwrap_err());
        assert_eq!(failure.kind, Kind::Taken);
        assert!(failure.to_string().contains(&addr.to_string()) && !failure.to_string().contains("os error"));
    }
}
