//! The subcommands podmig runs itself with, beside those of a pod: a worker for one caller, a question to a target.

use crate::base::{Failure, PodId};
use crate::migrate::{names, resolve, worker};
use crate::pod::store::{Places, Store};
use crate::wire::channel::Channel;
use crate::wire::hosts::Hosts;
use crate::wire::identity::Identity;
use std::ffi::OsString;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

/// A worker: `__serve ETC VAR RUN`, the accepted socket as standard input.
pub(super) const SERVE: &str = "__serve";
/// A pod's name brought up to date: `__name ETC VAR RUN ID`, its record as JSON on standard input if it may be gone.
const NAME: &str = "__name";
/// A question: `__resolve ETC VAR RUN ID`.
const RESOLVE: &str = "__resolve";

/// `Some` when `args` (with the program's name) is one of them, after it has run.
pub fn hidden(args: &[OsString]) -> Option<ExitCode> {
    let verb = args.get(1)?.to_str()?;
    let path = |n: usize| args.get(n).map(PathBuf::from);
    let places = || Some(Places { etc: path(2)?, var: path(3)?, run: path(4)? });
    let done = match verb {
        SERVE => serve(&places()?),
        RESOLVE => {
            // The monitor's group is removed before it can answer us.
            leave_group();
            let id = PodId::parse(args.get(5)?.to_str()?)?;
            resolve::ask(&Store::open(&places()?), &id)
        }
        NAME => {
            leave_group();
            let id = PodId::parse(args.get(5)?.to_str()?)?;
            let record = serde_json::from_reader(std::io::stdin()).ok();
            names::follow(&Store::open(&places()?), &id, record)
        }
        _ => return None,
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("podmig: {failure}");
            ExitCode::FAILURE
        }
    })
}

/// Out of the control group of the monitor that started us, which is removed when its pod ends, and open to signals.
fn leave_group() {
    // The monitor takes its signals by a descriptor and so has them blocked; we do not.
    let _ = nix::sys::signal::SigSet::all().thread_unblock();
    // Every hierarchy that is mounted in the usual places, v1 and v2; what is not there is not left.
    let below = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path());
    for root in below.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let _ = std::fs::OpenOptions::new()
            .write(true)
            .open(root.join("cgroup.procs"))
            .and_then(|mut f| std::io::Write::write_all(&mut f, b"0"));
    }
}

/// Serves the caller at standard input. Only hosts of the list get through the handshake.
fn serve(places: &Places) -> Result<(), Failure> {
    let me = Identity::load(&places.key())?;
    let known = Hosts::new(&places.hosts()).keys()?;
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let socket = input.map_err(|e| {
        Failure::new(
            crate::base::Kind::Failed,
            "worker",
            format!("no socket: {}", crate::kernel::errno_text(&e)),
        )
    })?;
    let socket = TcpStream::from(socket);
    // Whoever connects and leaves without a word (a port check) is no news.
    let _ = socket.set_read_timeout(Some(std::time::Duration::from_secs(10)));
    if matches!(socket.peek(&mut [0]), Ok(0)) {
        return Ok(());
    }
    let trusted = known.iter().map(|(key, _)| *key).collect();
    let (mut channel, key) = Channel::accept(&me, trusted, socket)?;
    if let Some((_, name)) = known.into_iter().find(|(k, _)| *k == key) {
        channel.peer = name;
    }
    worker::serve(&Store::open(places), channel)
}
