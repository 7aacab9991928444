//! The monitor's process: how it is launched, and its one loop.

use super::birth;
use super::conns::Conns;
use super::life::Life;
use super::logfile::LogFile;
use super::spawn::Spawns;
use super::stdio::Stdio;
use super::{Monitor, complain};
use crate::base::{Failure, Kind, PodId};
use crate::pod::moving;
use crate::pod::proto;
use crate::pod::store::{Places, Record, Store, make_dir};
use crate::sandbox::space::Clocks;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, recv, setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Descriptor of the launch channel in a new monitor.
pub(in crate::pod) const LAUNCH_FD: i32 = 3;
/// How long SIGTERM to the monitor lets the pod end by itself.
const STOP: Duration = Duration::from_secs(10);
/// How long a line without its newline stays out of the log.
const LINE: Duration = Duration::from_millis(200);

/// What a monitor is launched for; the first message on its launch channel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(in crate::pod) struct Launch {
    /// [`Places`], in order etc, var, run.
    pub places: [PathBuf; 3],
    /// The pod, whose record is reserved.
    pub id: PodId,
    /// The cgroup to live beside, for `--cgroup-parent inherit`.
    pub beside: Option<PathBuf>,
    /// What to do.
    pub mode: Mode,
}

/// What a new monitor begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::pod) enum Mode {
    /// Start CMD; with `foreground`, three descriptors come along as for `Request::Attach`.
    Start {
        /// `--fg`.
        foreground: bool,
        /// Size of the terminal.
        size: Option<(u16, u16)>,
    },
    /// Make everything but CMD, held, for a pod that arrives.
    Incoming {
        /// Offset of its CLOCK_MONOTONIC.
        monotonic_ns: i64,
        /// Offset of its CLOCK_BOOTTIME.
        boottime_ns: i64,
    },
}

/// What the loop waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Token {
    Signals,
    Listener,
    Conn(u64),
    Init,
    InitEnd,
    Spawn(u32),
    Output(usize),
    Input,
    CallerInput(u64),
    CallerOutput(u64, usize),
    Notify,
}

/// `podmig __monitor`: the monitor's main function. It never returns before the pod has ended for good.
pub fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(f) => {
            eprintln!("{} {f}", jiff::Timestamp::now());
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Failure> {
    let channel = launch_channel()?;
    let failed = |what: &'static str| {
        move |e: Errno| Failure::new(Kind::Failed, "monitor", format!("cannot {what}: {}", e.desc()))
    };
    let (launch, fds) = proto::recv::<Launch>(&channel)
        .map_err(|e| Failure::new(Kind::Usage, "__monitor", format!("not launched by podmig: {e}")))?;
    let mut signals = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]
        .into_iter()
        .for_each(|s| signals.add(s));
    signals.thread_block().map_err(failed("block signals"))?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(failed("make a signalfd"))?;
    nix::fcntl::fcntl(&channel, nix::fcntl::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
        .map_err(failed("prepare a socket"))?;
    let mut monitor = Monitor::new(&launch)?;
    let starter = monitor.conns.add(channel, true);
    match monitor.prepare() {
        Err(f) => monitor.start_failed_for(starter, f),
        Ok(()) => match launch.mode {
            Mode::Start { foreground, size } => {
                if let Ok(three) = <[OwnedFd; 3]>::try_from(fds) {
                    // A failure to attach shows as an end of its streams.
                    let _ = monitor.stdio.attach(starter, three);
                }
                monitor.begin(starter, foreground, size);
            }
            Mode::Incoming { monotonic_ns, boottime_ns } => {
                monitor.arrive(starter, Clocks { monotonic_ns, boottime_ns });
            }
        },
    }
    monitor.run(&signals);
    Ok(())
}

/// The launch channel, taken from its number.
fn launch_channel() -> Result<OwnedFd, Failure> {
    let usage = || Failure::new(Kind::Usage, "__monitor", "it is launched by `podmig start`, not by hand");
    // Through /proc, so that an absent or other descriptor is an error and not ours to close.
    let is_socket = std::fs::read_link(format!("/proc/self/fd/{LAUNCH_FD}"))
        .is_ok_and(|l| l.to_string_lossy().starts_with("socket:"));
    if !is_socket {
        return Err(usage());
    }
    crate::kernel::clone::take_fd(LAUNCH_FD).map_err(|_| usage())
}

/// The socket of a `notify` pod: abstract, in the pod's own network namespace, the same name on every host.
pub(super) fn notify_socket(netns: BorrowedFd<'_>, id: &PodId) -> Result<OwnedFd, Failure> {
    let failed =
        |e: Errno| Failure::new(Kind::Failed, "notify socket", format!("cannot be made: {}", e.desc()));
    let own = File::open("/proc/self/ns/net")
        .map_err(|e| Failure::new(Kind::Failed, "/proc/self/ns/net", crate::pod::store::plain(&e)))?;
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(failed)?;
    let made = (|| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        bind(fd.as_raw_fd(), &UnixAddr::new_abstract(&crate::pod::notify_name(id).as_bytes()[1..])?)?;
        setsockopt(&fd, sockopt::PassCred, &true)?;
        Ok(fd)
    })();
    setns(own.as_fd(), CloneFlags::CLONE_NEWNET).map_err(failed)?;
    made.map_err(failed)
}

impl Monitor {
    fn new(launch: &Launch) -> Result<Monitor, Failure> {
        let [etc, var, run] = launch.places.clone();
        let store = Store::open(&Places { etc, var, run });
        let record: Record = store
            .get(&launch.id)?
            .ok_or_else(|| Failure::new(Kind::NoSuchPod, launch.id.as_str(), "no record of it"))?;
        let group = birth::group_of(&store.places, &record.spec, launch.beside.as_deref());
        let log = LogFile::new(store.places.log(&launch.id));
        Ok(Monitor {
            store,
            record,
            pod: None,
            conns: Conns::new(),
            spawns: Spawns::default(),
            stdio: Stdio::new(log),
            life: Life::new(group),
            moving: moving::State::default(),
            wake: None,
            over: false,
        })
    }

    /// Own control group, socket, record.
    fn prepare(&mut self) -> Result<(), Failure> {
        birth::join(&self.life.group.join("monitor"))?;
        let path = self.store.places.socket(&self.record.spec.id);
        if let Some(dir) = path.parent() {
            make_dir(dir)?;
        }
        self.conns.listen(&path).map_err(|e| {
            Failure::new(
                Kind::Failed,
                path.display().to_string(),
                format!("cannot listen there: {}", crate::pod::store::plain(&e)),
            )
        })?;
        self.record.monitor = Some(crate::pod::store::ProcId::me());
        self.store.save(&self.record)?;
        Ok(())
    }

    fn run(&mut self, signals: &SignalFd) {
        while !(self.over && !self.conns.delivering() && !self.stdio.delivering()) {
            let events = match self.wait(signals) {
                Ok(events) => events,
                Err(Errno::EINTR) => continue,
                Err(e) => {
                    complain(&self.record, &format!("poll: {}", e.desc()));
                    return;
                }
            };
            // Outputs from the last to the first: a closed one is removed from its list.
            for (token, flags) in events.into_iter().rev() {
                self.dispatch(token, flags, signals);
            }
            if !self.over {
                self.on_time();
            }
            if self.stdio.log.take_grown() {
                self.event(&proto::Event::Logged);
            }
            self.bury();
            if !self.over {
                moving::tick(self);
            }
        }
    }

    fn wait(&mut self, signals: &SignalFd) -> Result<Vec<(Token, PollFlags)>, Errno> {
        let mut set: Vec<(BorrowedFd<'_>, PollFlags, Token)> = Vec::new();
        set.push((signals.as_fd(), PollFlags::POLLIN, Token::Signals));
        self.conns.interests(&mut set);
        self.spawns.interests(&mut set);
        self.stdio.interests(&mut set);
        if let Some(pod) = &self.pod {
            set.push((pod.socket.as_fd(), PollFlags::POLLIN, Token::Init));
            set.push((pod.init.pidfd.as_fd(), PollFlags::POLLIN, Token::InitEnd));
        }
        if let Some(notify) = &self.life.notify {
            set.push((notify.as_fd(), PollFlags::POLLIN, Token::Notify));
        }
        let mut fds: Vec<PollFd<'_>> = set.iter().map(|(fd, flags, _)| PollFd::new(*fd, *flags)).collect();
        let times = [self.life.next_time(), self.wake.take()];
        let next = times.into_iter().flatten().min().map(|t| t.saturating_duration_since(Instant::now()));
        let line = self.stdio.log.has_rest().then_some(LINE);
        let timeout = match [next, line].into_iter().flatten().min() {
            // Rounded up: waking before the time would only turn the loop once more.
            Some(d) => PollTimeout::try_from(d + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let ready = poll(&mut fds, timeout)?;
        let mut events = Vec::with_capacity(usize::try_from(ready).unwrap_or(0));
        for (fd, (_, _, token)) in fds.iter().zip(&set) {
            if let Some(flags) = fd.revents().filter(|f| !f.is_empty()) {
                events.push((*token, flags));
            }
        }
        if events.is_empty() && line.is_some() {
            self.stdio.log.flush();
        }
        Ok(events)
    }

    fn dispatch(&mut self, token: Token, flags: PollFlags, signals: &SignalFd) {
        match token {
            Token::Signals => {
                while let Ok(Some(_)) = signals.read_signal() {}
                if !self.over {
                    self.stop(Instant::now() + STOP);
                }
            }
            Token::Listener => self.on_listener(),
            Token::Conn(id) => self.on_conn(id, flags),
            Token::Init => self.on_init(),
            Token::InitEnd => self.on_init_end(),
            Token::Spawn(id) => self.on_spawn(id),
            Token::Output(i) => self.stdio.on_output(i),
            Token::Input => self.stdio.on_input(),
            Token::CallerInput(conn) => self.stdio.on_caller_input(conn),
            Token::CallerOutput(conn, i) => {
                let gone = flags.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL);
                self.stdio.on_caller_output(conn, i, gone);
            }
            Token::Notify => self.on_notify(),
        }
    }

    fn on_notify(&mut self) {
        let mut buf = [0; 4096];
        let Some(fd) = self.life.notify.as_ref().map(AsRawFd::as_raw_fd) else { return };
        while let Ok(n) = recv(fd, &mut buf, MsgFlags::MSG_DONTWAIT) {
            if buf[..n].split(|b| *b == b'\n').any(|line| line == b"READY=1") {
                self.notified();
            }
            if n == 0 {
                return;
            }
        }
    }
}
