//! A host for pods of a test's own: a store in a temporary directory, and a look at its end for what was left.

use super::until;
use podmig::base::spec::{NetMode, NetSpec, PodSpec, Restart, StartType, User};
use podmig::base::{PodId, PodName};
use podmig::pod::client::Client;
use podmig::pod::launch::{self, StartIo, Started};
use podmig::pod::logs::Reader;
use podmig::pod::monitor::group_of;
use podmig::pod::proto::ExecSpec;
use podmig::pod::store::{Places, Record, Store};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const LIMIT: Duration = Duration::from_secs(20);

/// A host of its own: a store in a temporary directory. What its pods leave is found at the end, and is a failure.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub specs: Vec<PodSpec>,
    any: PodSpec,
}

impl Host {
    pub fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Places::resolve(Some(dir.path())));
        Host { dir, store, specs: Vec::new(), any: spec("any", &[]) }
    }

    pub fn spec(&self, name: &str, cmd: &[&str]) -> PodSpec {
        spec(name, cmd)
    }

    pub fn io() -> StartIo {
        StartIo { exe: Some(PathBuf::from(env!("CARGO_BIN_EXE_podmig"))), ..StartIo::default() }
    }

    pub fn start(&mut self, spec: PodSpec) -> Result<Started, podmig::base::Failure> {
        self.specs.push(spec.clone());
        launch::start(&self.store, spec, Self::io())
    }

    pub fn sh(&mut self, name: &str, script: &str) -> Result<Started, podmig::base::Failure> {
        let spec = self.spec(name, &["sh", "-c", script]);
        self.start(spec)
    }

    pub fn record(&self, name: &str) -> Record {
        self.store.find(name).unwrap()
    }

    pub fn client(&self, name: &str) -> Client {
        Client::connect(&self.store, &self.record(name)).unwrap()
    }

    pub fn log(&self, name: &str) -> String {
        let path = self.store.places.log(&self.record(name).spec.id);
        let Ok(mut reader) = Reader::open(&path) else { return String::new() };
        let mut text = String::new();
        loop {
            let entries = reader.more().unwrap();
            if entries.is_empty() {
                return text;
            }
            for e in entries {
                text += &String::from_utf8_lossy(&e.text);
                text += if e.cut { "" } else { "\n" };
            }
        }
    }

    pub fn ended(&self, name: &str) -> i32 {
        until(LIMIT, "the pod's end", || self.record(name).exit_status)
    }

    pub fn groups(&self, spec: &PodSpec) -> Vec<PathBuf> {
        let rel = group_of(&self.store.places, spec, None);
        ["unified", "memory", "cpu", "pids", ""]
            .iter()
            .map(|h| Path::new("/sys/fs/cgroup").join(h).join(&rel))
            .filter(|p| p.exists())
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for spec in &self.specs {
            if let Ok(Some(record)) = self.store.get(&spec.id)
                && let Ok(mut client) = Client::connect(&self.store, &record)
            {
                let _ = client.kill();
            }
        }
        if std::thread::panicking() {
            for spec in &self.specs {
                let log = fs::read_to_string(self.store.places.monitor_log(&spec.id)).unwrap_or_default();
                eprintln!("monitor of {}: {log}", spec.name);
            }
            return;
        }
        // Groups of this store's pods end alike, those of a pod we never heard of too.
        let any = PodId::from_bits(0);
        let leaf = group_of(&self.store.places, &PodSpec { id: any.clone(), ..self.any.clone() }, None);
        let ending = leaf.to_str().unwrap().rsplit('-').next().unwrap().to_owned();
        until(LIMIT, "the removal of stray control groups", || {
            let all = fs::read_dir("/sys/fs/cgroup/unified/podmig")
                .or_else(|_| fs::read_dir("/sys/fs/cgroup/podmig"));
            let stray = |e: fs::DirEntry| e.file_name().to_string_lossy().ends_with(&ending);
            (!all.into_iter().flatten().flatten().any(stray)).then_some(())
        });
        let root = self.dir.path().to_string_lossy().into_owned();
        for spec in &self.specs {
            until(LIMIT, "the control groups' removal", || self.groups(spec).is_empty().then_some(()));
            assert!(!self.store.places.socket(&spec.id).exists(), "socket of {} left", spec.name);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&root), "a mount is left");
    }
}

pub fn spec(name: &str, cmd: &[&str]) -> PodSpec {
    let id = PodId::from_bits(u64::from_ne_bytes(random()));
    PodSpec {
        id,
        name: PodName::parse(name).unwrap(),
        cmd: cmd.iter().map(|s| (*s).to_owned()).collect(),
        env: vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()],
        cwd: "/".to_owned(),
        user: User::default(),
        umask: 0o22,
        rlimits: Vec::new(),
        hostname: name.to_owned(),
        net: NetSpec { mode: NetMode::None, ..NetSpec::default() },
        tty: false,
        start_type: StartType::Exec,
        grace_ms: 40,
        restart: Restart::No,
        rm: false,
        volumes: Vec::new(),
        tmpfs: Vec::new(),
        limits: podmig::base::spec::Limits::default(),
        cgroup_parent: None,
        privileged: false,
    }
}

fn random() -> [u8; 8] {
    let mut bytes = [0; 8];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

pub fn pipes() -> ([OwnedFd; 3], File, File, File) {
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let ((in_r, in_w), (out_r, out_w), (err_r, err_w)) = (pipe(), pipe(), pipe());
    ([in_r, out_w, err_w], in_w.into(), out_r.into(), err_r.into())
}

/// A command to be run in a pod, without a terminal.
pub fn exec_spec(cmd: &[&str]) -> ExecSpec {
    ExecSpec {
        cmd: cmd.iter().map(|s| (*s).to_owned()).collect(),
        env: vec!["PATH=/usr/bin:/bin".to_owned(), "X=y".to_owned()],
        cwd: "/tmp".to_owned(),
        user: User::default(),
        umask: 0o22,
        tty: None,
    }
}
