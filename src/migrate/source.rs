//! The source's end: a mover takes a pod through the stages, into a peer or into an image file.
//!
//! Contract of [`run`]: `Ok`: the pod no longer runs here and never will again (or goes on here, for an image with
//! `--leave-running`). `Err` before the commit point: it runs here as before. `Err` of kind `InDoubt`: only the
//! target's record knows, and the pod's monitor goes on asking.
//!
//! The mover holds nothing that its death could leave half done: what it changes in the pod it tells the pod's
//! monitor first, and the monitor takes it back when the connection closes.

use super::facts;
use super::order::{Destination, Order};
use super::private;
use super::progress::Progress;
use super::report::{Outcome, Report, Stopwatch};
use super::resolve;
use super::sink::Sink;
use super::verify::Digests;
use crate::base::{Blocker, Decision, Failure, Kind, MoveId};
use crate::image::file::ImageWriter;
use crate::image::record::{Manifest, Record};
use crate::kernel::cgroup::{Cgroup, Freezer, Hierarchies};
use crate::pod::client::Client;
use crate::pod::moving::{self, Stage};
use crate::pod::proto::Info;
use crate::pod::store::{self, Status, Store};
use crate::policy::cpu::Level;
use crate::state::Tree;
use crate::state::error::Error as StateError;
use crate::state::source::{PodView, Source};
use crate::wire::channel::Channel;
use crate::wire::hello::{self, Hello};
use crate::wire::identity::Identity;
use crate::wire::message::Message;
use std::time::{Duration, Instant};

/// How long the target may take for an answer that needs little work.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// How much of the log travels, bytes.
pub(super) const LOG_TAIL: u64 = 64 << 10;

/// How often what is in the way is looked at again, and how long after.
const LOOKS: usize = 2;
const LOOK: Duration = Duration::from_millis(20);

/// A mover at work.
pub(super) struct Mover<'a> {
    pub(super) order: &'a Order,
    pub(super) store: &'a Store,
    pub(super) pod: store::Record,
    pub(super) client: Client,
    pub(super) info: Info,
    pub(super) cgroup: Freezer,
    pub(super) sink: Sink,
    pub(super) move_id: MoveId,
    pub(super) report: &'a mut Report,
    pub(super) watch: Stopwatch,
    /// When the first thread was stopped.
    pub(super) frozen: Option<Instant>,
    /// When the link was held.
    pub(super) held: Option<Instant>,
    /// Page frames and bytes sent.
    pub(super) pages: (u64, u64),
    /// Where the user is told how far we are.
    pub(super) progress: Progress,
    /// Hashes of all memory, where they were asked for.
    pub(super) digests: Option<Digests>,
    /// The target has another kernel, or may have.
    pub(super) other_kernel: bool,
}

/// Moves or checkpoints `pod` (a running one). The report is filled as far as things got.
///
/// # Errors
/// See the module's contract; `Refused` lists the blockers, nothing was frozen.
pub fn run(
    store: &Store,
    me: &Identity,
    pod: store::Record,
    order: &Order,
    report: &mut Report,
) -> Result<(), Failure> {
    let watch = Stopwatch::start("source");
    // The pod has not been touched: it runs here, and that is what the exit code says.
    let mut sink = open(me, order).map_err(|f| match f.kind {
        Kind::Failed => Failure { kind: Kind::BeforeCommit, ..f },
        _ => f,
    })?;
    let ours =
        facts::hello().map_err(|e| Failure::new(Kind::Failed, "host", crate::kernel::errno_text(&e)))?;
    let (blockers, other_kernel) = match &mut sink {
        Sink::Peer(channel) => {
            let theirs = meet(channel, &ours)?;
            let blockers = hello::blockers(&ours, &theirs, Level::of(&pod.spec.env));
            (blockers, theirs.vdso != ours.vdso)
        }
        Sink::File { .. } => (Vec::new(), true),
    };
    let mut client = Client::connect(store, &pod)?;
    let info = client.info()?;
    let cgroup = freezer_of(&info)?;
    let move_id = MoveId::from_bits(random());
    client.moving(moving::Request::Begin { move_id: move_id.clone(), to: order.to.name() })?;
    let (frozen, held, pages, digests) = (None, None, (0, 0), None);
    let progress = Progress::new(order.progress, pod.spec.name.as_str(), &pod.spec.id);
    let mut mover = Mover {
        order,
        store,
        pod,
        client,
        info,
        cgroup,
        sink,
        move_id,
        report,
        watch,
        frozen,
        held,
        pages,
        progress,
        digests,
        other_kernel,
    };
    mover.watch.lap("connect");
    let done = mover.stages(blockers);
    mover.close_report();
    match done {
        Err(failure) if failure.kind != Kind::InDoubt => Err(mover.take_back(failure)),
        done => done,
    }
}

/// 64 random bits.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    let _ =
        std::fs::File::open("/dev/urandom").and_then(|mut f| std::io::Read::read_exact(&mut f, &mut bytes));
    u64::from_ne_bytes(bytes)
}

/// The freezer of the pod's control group.
pub(super) fn freezer_of(info: &Info) -> Result<Freezer, Failure> {
    let failed = |e: crate::kernel::cgroup::Error| Failure::new(Kind::Failed, "control group", e.to_string());
    let hierarchies = Hierarchies::detect().map_err(failed)?;
    Ok(Cgroup::open(&hierarchies, std::path::Path::new(&info.cgroup)).map_err(failed)?.freezer())
}

fn open(me: &Identity, order: &Order) -> Result<Sink, Failure> {
    match &order.to {
        Destination::Host(host) => Ok(Sink::Peer(Box::new(Channel::connect(me, host)?))),
        Destination::File(path) => {
            let name = path.display().to_string();
            let image = ImageWriter::create(path).map_err(|e| e.failure(&name))?;
            Ok(Sink::File { image: Box::new(image), name })
        }
        Destination::Stdout => Ok(Sink::File { image: Box::new(ImageWriter::stdout()), name: "-".into() }),
    }
}

/// Exchanges hellos.
///
/// # Errors
/// No version in common, or the peer is gone.
pub(super) fn greet(channel: &mut Channel, ours: &Hello) -> Result<(), Failure> {
    meet(channel, ours).map(drop)
}

/// Exchanges hellos; the peer's is returned.
///
/// # Errors
/// As [`greet`].
pub(super) fn meet(channel: &mut Channel, ours: &Hello) -> Result<Box<Hello>, Failure> {
    // TLS 1.3: a caller whose key is unknown there learns of it only by the closed connection.
    let ssh = channel.is_ssh();
    let turned_away = |e| match e {
        crate::wire::Error::Lost { host, .. } if ssh => crate::wire::Error::Ssh { host },
        crate::wire::Error::Lost { host, .. } => crate::wire::Error::Untrusted {
            host,
            reason: "it closed the connection at once; it may not know this host's key".into(),
        },
        other => other,
    };
    channel.message(&Message::Hello(Box::new(ours.clone()))).map_err(turned_away)?;
    let first = channel.expect(ANSWER).map_err(turned_away)?;
    let theirs = match first {
        Message::Hello(hello) => hello,
        other => return Err(out_of_turn(channel, &other)),
    };
    if hello::agree(ours.versions, theirs.versions).is_none() {
        let host = channel.peer.clone();
        return Err(crate::wire::Error::Version { host, theirs: theirs.versions, ours: ours.versions }.into());
    }
    Ok(theirs)
}

/// What stands in the way of the pod. Its programs run on while they are looked at: what is in the way only because one
/// of them was just about to start or end another is not there any more at the next look.
fn settled_preflight(source: &mut Source) -> Result<Vec<Blocker>, Failure> {
    let mut found = source.preflight()?;
    for _ in 0..LOOKS {
        if found.is_empty() {
            break;
        }
        std::thread::sleep(LOOK);
        let again = source.preflight()?;
        found.retain(|b| again.contains(b));
        if found.is_empty() {
            found = again;
        }
    }
    Ok(found)
}

/// The tree of the running pod; as [`settled_preflight`], what is in the way must stay to count.
///
/// # Errors
/// `Refused` with what stays in the way, and what cannot be read.
pub(super) fn settled_tree(source: &mut Source) -> Result<Tree, Failure> {
    let mut looks = 3 * LOOKS;
    loop {
        match source.prepare() {
            Err(StateError::Refused(_)) if looks > 0 => looks -= 1,
            other => return Ok(other?),
        }
        std::thread::sleep(LOOK);
    }
}

/// The peer said something that does not fit here.
pub(super) fn out_of_turn(channel: &Channel, got: &Message) -> Failure {
    crate::wire::Error::Protocol { host: channel.peer.clone(), got: got.name().into() }.into()
}

impl Mover<'_> {
    pub(super) fn name(&self) -> String {
        self.pod.spec.name.to_string()
    }

    /// Says to the user, and to whoever asks `ps` or `watch`, where we are. May be called for every chunk: what is
    /// told too soon after the last word of the same stage and round goes no further.
    ///
    /// # Errors
    /// The monitor is gone, or the move was cancelled.
    pub(super) fn stage(&mut self, stage: Stage) -> Result<(), Failure> {
        let stage = Stage { to: self.order.to.name(), ..stage };
        match self.progress.news(stage) {
            Some(stage) => self.client.moving(moving::Request::Stage(stage)).map(|_| ()),
            None => Ok(()),
        }
    }

    /// So many bytes of memory more were sent.
    pub(super) fn went(&mut self, bytes: u64) -> Result<(), Failure> {
        let stage = self.progress.went(bytes, self.sink.sent());
        self.stage(stage)
    }

    fn stages(&mut self, mut blockers: Vec<Blocker>) -> Result<(), Failure> {
        let mut source = Source::new(self.view())?;
        blockers.extend(settled_preflight(&mut source)?);
        self.watch.lap("preflight");
        if !blockers.is_empty() {
            return Err(Failure::refused(self.name(), blockers));
        }
        self.stage(Stage::named("reservation"))?;
        self.reserve()?;
        self.watch.lap("reserve");
        // What would take long in the freeze and can be known now.
        for pid in self.cgroup.procs().unwrap_or_default() {
            crate::remote::look_ahead(pid);
        }
        let tree = settled_tree(&mut source)?;
        let left = private::left_behind(source.view().init, &self.pod.spec, &tree);
        if !left.is_empty() {
            return Err(Failure::refused(self.name(), left));
        }
        self.report.warnings.extend(private::warnings(&self.pod.spec));
        self.send_tree(&tree)?;
        self.watch.lap("skeleton");
        if self.order.dry_run {
            return self.foretell(&source, &tree);
        }
        let (tree, mut pre) = match self.order.live {
            true => self.precopy(&mut source, tree)?,
            false => (tree, None),
        };
        let capture = self.stop_and_copy(&mut source, &tree, pre.as_mut())?;
        self.commit(capture)
    }

    fn view(&self) -> PodView {
        PodView {
            init: self.info.init_pid.unwrap_or(0),
            cgroup: self.cgroup.clone(),
            ports: self.info.ports.iter().map(|p| (p.port, (p.dev, p.ino))).collect(),
            walled: !self.pod.spec.privileged,
            tracked: false,
        }
    }

    /// Asks the target for a place, or writes the manifest.
    fn reserve(&mut self) -> Result<(), Failure> {
        let manifest = Box::new(self.manifest()?);
        let message = Message::Reserve {
            move_id: self.move_id.clone(),
            manifest: manifest.clone(),
            publish: self.order.publish.clone(),
            takeover: false,
            deadline_ms: u64::try_from(self.order.deadline().as_millis()).unwrap_or(u64::MAX),
            dry_run: self.order.dry_run,
        };
        match &mut self.sink {
            Sink::File { .. } => self.sink.record(&Record::Manifest(manifest)),
            Sink::Peer(channel) => {
                channel.message(&message)?;
                match channel.expect(ANSWER)? {
                    Message::Reserved => Ok(()),
                    other => Err(out_of_turn(channel, &other)),
                }
            }
        }
    }

    fn manifest(&self) -> Result<Manifest, Failure> {
        let clock = |id, offset: i64| {
            nix::time::clock_gettime(id).map_or(0, |t| t.tv_sec() * 1_000_000_000 + t.tv_nsec() + offset)
        };
        use nix::time::ClockId;
        Ok(Manifest {
            spec: self.pod.spec.clone(),
            generation: self.pod.generation,
            started: self.pod.started.map(|t| t.to_string()).unwrap_or_default(),
            cmd_pid: self.info.cmd_pod_pid.unwrap_or(0),
            cmd_status: None,
            from: facts::hostname(),
            clocks: (
                clock(ClockId::CLOCK_MONOTONIC, self.info.monotonic_offset_ns),
                clock(ClockId::CLOCK_BOOTTIME, self.info.boottime_offset_ns),
            ),
            realtime_ns: facts::realtime_ns(),
            memory: facts::resident(&self.cgroup),
            vdso: crate::kernel::vdso::own()
                .map_err(|e| Failure::new(Kind::Failed, "host", crate::kernel::errno_text(&e)))?,
            xstate: crate::kernel::cpuid::xsave_components(),
            leave_running: self.order.leave_running,
        })
    }

    /// Before commit: everything back as it was; the failure then says that the pod runs here.
    fn take_back(&mut self, failure: Failure) -> Failure {
        // First the pod: it may be standing still. No `Commit` was sent, or the target's record says aborted.
        let back = self.client.moving(moving::Request::Abort);
        if let Sink::Peer(channel) = &mut self.sink {
            channel.patience(ANSWER);
            let _ = channel.message(&Message::Abort);
        }
        let kind = match failure.kind {
            Kind::Refused | Kind::Unreachable | Kind::Taken => failure.kind,
            _ => Kind::BeforeCommit,
        };
        let object = if failure.object.is_empty() { self.name() } else { failure.object };
        let mut failure = Failure { kind, object, ..failure };
        if let Err(trouble) = back {
            failure.remedy = match self.without_monitor() {
                Ok(Status::Exited) => "the pod has ended meanwhile".to_owned(),
                Ok(_) => {
                    let name = self.name();
                    format!("its monitor was killed meanwhile, and the pod with it: `podmig start {name}`")
                }
                Err(_) => {
                    format!("{} (the pod's monitor did not confirm: {})", failure.remedy, trouble.message)
                }
            };
        }
        failure
    }

    /// The monitor does not answer: removes what it left, if it is dead, and says what became of the pod.
    fn without_monitor(&self) -> Result<Status, Failure> {
        let id = &self.pod.spec.id;
        crate::pod::monitor::sweep_dead(self.store, &self.pod)?;
        let status = |store: &Store| Ok::<_, Failure>(store.get(id)?.map_or(Status::Lost, |r| r.status));
        if status(self.store)? == Status::InDoubt {
            // It died with the commit written down. No `Commit` was sent, so the target never had it.
            resolve::settle(self.store, id, Decision::Aborted)?;
        }
        status(self.store)
    }

    fn close_report(&mut self) {
        self.report.total_us = self.watch.total_us();
        self.report.bytes_sent = self.sink.sent();
        let own = std::mem::take(&mut self.watch.stages);
        self.report.stages.extend(own);
        let us = |since: Option<Instant>| since.map_or(0, |t| t.elapsed().as_micros() as u64);
        if self.report.outcome != Outcome::Moved && self.report.outcome != Outcome::Checkpointed {
            self.report.frozen_us = us(self.frozen);
            self.report.downtime_us = us(self.held);
        }
    }
}

/// The last part of a file, from a line's beginning.
pub(super) fn tail(path: &std::path::Path, limit: u64) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let Ok(file) = std::fs::File::open(path) else { return Vec::new() };
    let len = file.metadata().map_or(0, |m| m.len());
    let from = len.saturating_sub(limit);
    let mut bytes = vec![0; usize::try_from(len - from).unwrap_or(0)];
    if file.read_exact_at(&mut bytes, from).is_err() {
        return Vec::new();
    }
    match (from, bytes.iter().position(|b| *b == b'\n')) {
        (0, _) => bytes,
        (_, Some(at)) => bytes.split_off(at + 1),
        (_, None) => Vec::new(),
    }
}
