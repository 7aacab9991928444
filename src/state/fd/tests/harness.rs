//! Starting, stopping, reading and replacing a child that holds descriptors.

use crate::kernel::descr;
use crate::state::fd::collect::{Collected, FdContext, ProcView, Scan, preflight};
use crate::state::fd::restore::{Hands, HandsContext, Made};
use crate::state::fd::{Error, FileId, OpenFile, Port};
use crate::state::object::ObjectId;
use crate::state::object::collect::ObjectTable;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Set-ups by name: what a child holds.
pub type Setup = (&'static str, fn() -> Vec<OwnedFd>);
/// All of them.
pub const SETUPS: &[&[Setup]] = &[
    super::files::SETUPS,
    super::unix::SETUPS,
    super::net::SETUPS,
    super::refused::SETUPS,
    super::inside::SETUPS,
];

/// Number of the first descriptor a child holds.
pub const FIRST: RawFd = 10_000;

/// A directory of this test's own, the same in its children; gone when the test is.
pub fn dir() -> PathBuf {
    thread_local!(static OWN: tempfile::TempDir = tempfile::tempdir().unwrap());
    match std::env::var_os("PMFDS_DIR") {
        Some(dir) => dir.into(),
        None => OWN.with(|dir| dir.path().to_owned()),
    }
}

/// Waits until `done` says so, at most ten seconds.
pub fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: waited too long");
        std::thread::yield_now();
    }
}

/// Holds what the set-up gives from `FIRST` up, closes everything else, and waits to be killed.
pub fn be_child(setup: fn() -> Vec<OwnedFd>) -> ! {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    descr::want_descriptors(40_000);
    let place = |(n, fd): (RawFd, OwnedFd)| match fd.as_raw_fd() {
        at if at == FIRST + n => fd, // there already
        _ => descr::dup_from(&fd, FIRST + n).unwrap(),
    };
    let held: Vec<OwnedFd> = (0..).zip(setup()).map(place).collect();
    println!("ready");
    std::io::stdout().flush().unwrap();
    let open = crate::kernel::fdinfo::FdDir::open(std::process::id() as i32).unwrap().numbers().unwrap();
    for fd in open.into_iter().filter(|fd| !(FIRST..FIRST + held.len() as RawFd).contains(fd)) {
        let _ = nix::unistd::close(fd);
    }
    loop {
        nix::unistd::pause();
        std::hint::black_box(&held);
    }
}

/// A child that holds descriptors.
pub struct Holder {
    child: Child,
    /// The read end of its standard output.
    _out: BufReader<std::process::ChildStdout>,
    /// Its pid.
    pub pid: i32,
}

impl Holder {
    /// Starts one in our own namespaces.
    pub fn start(setup: &str) -> Self {
        Self::start_with(setup, Command::new(std::env::current_exe().unwrap()))
    }

    /// Starts one in a network namespace (`ip netns`).
    pub fn start_in(netns: &str, setup: &str) -> Self {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{netns}")).arg(std::env::current_exe().unwrap());
        Self::start_with(setup, command)
    }

    fn start_with(setup: &str, mut command: Command) -> Self {
        command.args(["--exact", "state::fd::tests::child", "--nocapture", "--test-threads=1"]);
        command
            .env("PMFDS_CHILD", setup)
            .env("PMFDS_DIR", dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().unwrap();
        let pid = child.id() as i32;
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert_ne!(out.read_line(&mut line).unwrap(), 0, "the child for {setup} ended");
        }
        let dir = crate::kernel::fdinfo::FdDir::open(pid).unwrap();
        let mut holder = Self { child, _out: out, pid };
        until("the child closes what it had", || {
            assert!(holder.child.try_wait().unwrap().is_none(), "the child for {setup} died");
            (dir.numbers().unwrap().first() == Some(&FIRST)).then_some(())
        });
        holder
    }

    pub fn stop(&self) {
        kill(Pid::from_raw(self.pid), Signal::SIGSTOP).unwrap();
        until("the child stops", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T').then_some(())
        });
    }

    pub fn view(&self) -> ProcView {
        ProcView { host_pid: self.pid, pod_pid: 7 }
    }

    pub fn context(&self) -> FdContext {
        FdContext { init: self.pid, ports: vec![], private: HashSet::new() }
    }

    /// Stops it and reads everything.
    pub fn collect(&self) -> (Collected, ObjectTable) {
        self.collect_as(self.view(), &self.context())
    }

    /// The same with something else to go by.
    pub fn collect_as(&self, view: ProcView, ctx: &FdContext) -> (Collected, ObjectTable) {
        self.stop();
        let mut objects = ObjectTable::new(HashSet::new()).unwrap();
        let scan = match Scan::new(&[view], ctx) {
            Ok(scan) => scan,
            Err(Error::Blocked(b)) => panic!("blocked: {b:#?}"),
            Err(e) => panic!("{e}: {:?}", std::error::Error::source(&e)),
        };
        let collected = scan.finish(&mut objects).unwrap();
        (collected, objects)
    }

    /// What a look without stopping it finds in the way.
    pub fn blockers(&self) -> Vec<crate::base::Blocker> {
        preflight(&[self.view()], &self.context()).unwrap()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Descriptors made again, found by the number they had.
pub struct Again {
    pub made: Made,
    pub collected: Collected,
}

impl Again {
    pub fn file(&self, number: RawFd) -> FileId {
        let entry = self.collected.tables[0].iter().find(|e| e.fd == FIRST + number);
        entry.unwrap_or_else(|| panic!("no descriptor {number}")).file
    }
    pub fn fd(&self, number: RawFd) -> &OwnedFd {
        &self.made.files[&self.file(number)]
    }
    pub fn open_file(&self, number: RawFd) -> &OpenFile {
        &self.collected.files[self.file(number).0 as usize]
    }
}

/// Makes everything again on a thread that `enter` brings where it has to be.
pub fn make(
    collected: Collected,
    objects: &ObjectTable,
    pids: &HashMap<i32, i32>,
    enter: impl FnOnce() + Send,
) -> Again {
    match try_make(&collected, objects, pids, &HashMap::new(), enter) {
        Ok(made) => Again { made, collected },
        Err(e) => panic!("{e}: {:?}", std::error::Error::source(&e)),
    }
}

/// The same, which may fail; with ports.
pub fn try_make(
    collected: &Collected,
    objects: &ObjectTable,
    pids: &HashMap<i32, i32>,
    ports: &HashMap<Port, OwnedFd>,
    enter: impl FnOnce() + Send,
) -> Result<Made, Error> {
    let proc = std::fs::File::open("/proc").unwrap();
    let objects: HashMap<ObjectId, OwnedFd> = (0..objects.len() as u32)
        .map(|n| (ObjectId(n), objects.handle(ObjectId(n)).unwrap().try_clone_to_owned().unwrap()))
        .collect();
    // Through the wire and back, as in life.
    let bytes = postcard::to_stdvec(&collected.files).unwrap();
    let files: Vec<OpenFile> = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(files, collected.files);
    std::thread::scope(|s| {
        let body = || {
            enter();
            let ctx = HandsContext { proc: proc.as_fd(), objects: &objects, ports, pids };
            Hands::make(&files, &ctx)
        };
        s.spawn(body).join().unwrap()
    })
}

/// Start, read, kill, make again: the whole way for one set-up.
pub fn again(setup: &str) -> Again {
    let holder = Holder::start(setup);
    let (collected, objects) = holder.collect();
    drop(holder);
    make(collected, &objects, &HashMap::new(), || {})
}

/// Time that passed and processor time this process used: the machine may be busy with others.
pub struct Clock(Instant, i64);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now(), Self::used())
    }
    fn used() -> i64 {
        descr::clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap()
    }
    /// For people.
    pub fn read(&self) -> String {
        format!(
            "{:?} (processor {:?})",
            self.0.elapsed(),
            Duration::from_nanos((Self::used() - self.1).unsigned_abs())
        )
    }
}
