//! Starting a pod: its name reserved, its monitor launched, its start awaited.

use super::client::Client;
use super::monitor::{LAUNCH_FD, Launch, Mode, Prepared};
use super::proto::{self, Error, Event, Message, Reply};
use super::store::{Record, Store, make_dir, plain};
use crate::base::spec::PodSpec;
use crate::base::{Failure, Kind, PodId};
use crate::kernel::{clone, seqpacket};
use crate::sandbox::space::Clocks;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// How a start is to be done.
#[derive(Debug, Default)]
pub struct StartIo {
    /// `--fg`: pipes of the caller's own for stdin (the monitor reads), stdout, stderr (it writes); see
    /// [`super::exec`].
    pub attach: Option<[OwnedFd; 3]>,
    /// Size of the terminal (rows, columns) with `-t`.
    pub size: Option<(u16, u16)>,
    /// The podmig to run as monitor; this one if unset.
    pub exe: Option<PathBuf>,
}

/// A pod that is up.
#[derive(Debug)]
pub struct Started {
    /// A connection to its monitor that has watched from the beginning.
    pub client: Client,
    /// Its record, as it is now.
    pub record: Record,
    /// Its status, if it has ended already.
    pub ended: Option<i32>,
}

/// Starts a new pod and returns when it is up as its start type has it (with `attach`: when CMD was executed).
///
/// # Errors
/// `Taken`, `Elsewhere` (the name), `NoSuchCommand` and `CannotExecute` (127, 126), `Failed` with CMD's status and
/// last output when it ended within its grace; nothing is left then.
pub fn start(store: &Store, spec: PodSpec, io: StartIo) -> Result<Started, Failure> {
    start_reserved(store, store.reserve(&spec)?, io)
}

/// Starts an ended or lost pod again from its stored definition.
///
/// # Errors
/// As [`start`]; what was known of the pod before is kept then.
pub fn start_again(store: &Store, id: &PodId, io: StartIo) -> Result<Started, Failure> {
    let record = store.reserve_again(id)?;
    start_reserved(store, record, io)
}

/// Starts a pod whose record was reserved by the caller.
///
/// # Errors
/// As [`start`].
pub fn start_reserved(store: &Store, record: Record, io: StartIo) -> Result<Started, Failure> {
    let mode = Mode::Start { foreground: io.attach.is_some(), size: io.size };
    let fds: Vec<BorrowedFd<'_>> = io.attach.iter().flatten().map(AsFd::as_fd).collect();
    let channel = launch(store, &record, mode, &fds, io.exe)?;
    // The monitor has its own copies: an end of its must be seen as an end.
    drop(fds);
    drop(io.attach);
    let mut client = Client::of_starter(channel, record.spec.name.clone());
    loop {
        let event = match client.next(None) {
            Ok(event) => event,
            Err(_) => return Err(monitor_died(store, &record)),
        };
        match event {
            Some(Event::StartFailed(f)) => return Err(f),
            Some(Event::Ready) => return Ok(Started { record: now(store, record), client, ended: None }),
            Some(Event::Ended { status }) => {
                return Ok(Started { record: now(store, record), client, ended: Some(status) });
            }
            _ => {}
        }
    }
}

fn now(store: &Store, record: Record) -> Record {
    store.get(&record.spec.id).ok().flatten().unwrap_or(record)
}

/// Launches a monitor for a pod that arrives, whose record was reserved by [`Store::reserve_incoming`]: everything but
/// CMD is made, the network held. The connection is the mover's: its end is seen by the monitor.
///
/// # Errors
/// What could not be made; nothing is left then.
pub fn incoming(
    store: &Store,
    record: &Record,
    clocks: Clocks,
    exe: Option<PathBuf>,
) -> Result<(Client, Prepared), Failure> {
    let Clocks { monotonic_ns, boottime_ns } = clocks;
    let channel = launch(store, record, Mode::Incoming { monotonic_ns, boottime_ns }, &[], exe)?;
    loop {
        match proto::recv::<Message>(&channel) {
            Ok((Message::Reply(Reply::Info(info)), fds)) => {
                use crate::state::fd::Port;
                let ports = [Port::Stdout, Port::Stderr, Port::Stdin].into_iter().zip(fds).collect();
                let client = Client::of_starter(channel, record.spec.name.clone());
                return Ok((client, Prepared { info: *info, ports }));
            }
            Ok((Message::Event(Event::StartFailed(f)), _)) => return Err(f),
            Ok(_) => {}
            Err(Error::Closed) => return Err(monitor_died(store, record)),
            Err(e) => {
                return Err(Failure::new(Kind::Failed, record.spec.name.as_str(), e.to_string()));
            }
        }
    }
}

/// Runs the monitor and hands it its task; the reservation is given back when that fails.
fn launch(
    store: &Store,
    record: &Record,
    mode: Mode,
    fds: &[BorrowedFd<'_>],
    exe: Option<PathBuf>,
) -> Result<OwnedFd, Failure> {
    let launched = (|| {
        let channel = run_monitor(store, record, exe)?;
        let places = &store.places;
        let beside = super::monitor::own_group();
        let places = [places.etc.clone(), places.var.clone(), places.run.clone()];
        let message = Launch { places, id: record.spec.id.clone(), beside, mode };
        proto::send(&channel, &message, fds)
            .map_err(|e| Failure::new(Kind::Failed, record.spec.name.as_str(), e.to_string()))?;
        Ok(channel)
    })();
    if launched.is_err() {
        let _ = store.give_back(record);
    }
    launched
}

fn run_monitor(store: &Store, record: &Record, exe: Option<PathBuf>) -> Result<OwnedFd, Failure> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: std::io::Error| {
            Failure::new(Kind::Failed, record.spec.name.as_str(), format!("cannot {what}: {}", plain(&e)))
        }
    };
    let id = &record.spec.id;
    make_dir(&store.places.dir(id))?;
    let log = store.places.monitor_log(id);
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log)
        .map_err(failed("open the monitor's log"))?;
    let null = fs::File::open("/dev/null").map_err(failed("open /dev/null"))?;
    let (ours, theirs) = seqpacket::pair().map_err(failed("make a socket pair"))?;
    let exe = exe.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let exe = CString::new(exe.as_os_str().as_bytes()).map_err(|e| failed("run the monitor")(e.into()))?;
    let argv = [c"podmig".into(), c"__monitor".into(), CString::new(id.as_str()).unwrap_or_default()];
    let env = [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()];
    let fds = [null.as_fd(), log.as_fd(), log.as_fd(), theirs.as_fd()];
    debug_assert_eq!(fds.len() - 1, LAUNCH_FD as usize);
    clone::spawn_detached(&exe, &argv, &env, &fds).map_err(failed("run the monitor"))?;
    Ok(ours)
}

/// The monitor ended without a word: what it said last stands in its log. What is left of the pod is removed.
fn monitor_died(store: &Store, record: &Record) -> Failure {
    let log = fs::read_to_string(store.places.monitor_log(&record.spec.id)).unwrap_or_default();
    let last = log.lines().last().unwrap_or("it was killed").to_owned();
    let _ = super::monitor::sweep(store, record);
    let _ = store.give_back(record);
    Failure::new(
        Kind::Failed,
        record.spec.name.as_str(),
        format!("its monitor ended during the start: {last}"),
    )
}
