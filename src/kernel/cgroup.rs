//! Control groups in every layout met: v2 alone, hybrid (v2 beside v1 controllers), v1 alone.
//!
//! A [`Cgroup`] is one relative path in all hierarchies that matter here: the one that freezes and lists (v2
//! where there is one, else the v1 freezer) and those of the v1 controllers that hold limits. man 7 cgroups.

use crate::base::spec::Limits;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long freezing, killing and emptying may take before it is an error that names the group.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What went wrong with a group, and with which.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a cgroup v2 mount nor a v1 freezer is there.
    #[error("no cgroup v2 mount and no v1 freezer in /proc/self/mountinfo")]
    NoHierarchy,
    /// A relative path that would leave the hierarchy.
    #[error("cgroup path {0:?} is not a relative path of plain names")]
    BadPath(PathBuf),
    /// Reading or writing a control file failed.
    #[error("{op} {path}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// No hierarchy offers the controller a limit needs.
    #[error("limit on {what}: no cgroup hierarchy on this host has the {controller} controller")]
    NoController {
        /// The limit asked for.
        what: &'static str,
        /// The controller it needs.
        controller: &'static str,
    },
    /// A state did not come in time; tasks that are in the way are named.
    #[error("cgroup {path}: not {what} within {secs} s{tasks}")]
    TooLong {
        /// The group.
        path: PathBuf,
        /// State waited for.
        what: &'static str,
        /// Time waited, in seconds.
        secs: u64,
        /// "; still: pid (comm, state), …" or empty.
        tasks: String,
    },
}

/// Result of this file.
pub type Result<T> = std::result::Result<T, Error>;

fn io(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { op, path, source }
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    // One write: control files take a whole value at a time; never created.
    let mut file = fs::OpenOptions::new().write(true).open(path).map_err(io("open", path))?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(io("write", path))
}

/// The mounts of this host, as far as they serve us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    /// Mount point of cgroup2.
    pub v2: Option<PathBuf>,
    /// Mount points of v1 controllers by controller name (`freezer`, `memory`, `cpu`, `pids`, …).
    pub v1: BTreeMap<String, PathBuf>,
}

impl Hierarchies {
    /// Reads `/proc/self/mountinfo` (man 5 proc).
    pub fn detect() -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(io("read", path))?;
        let found = Self::parse(&text);
        if found.v2.is_none() && !found.v1.contains_key("freezer") {
            return Err(Error::NoHierarchy);
        }
        Ok(found)
    }

    fn parse(mountinfo: &str) -> Self {
        let mut found = Self { v2: None, v1: BTreeMap::new() };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (Some(point), mut tail) = (left.split(' ').nth(4), right.split(' ')) else { continue };
            let point = PathBuf::from(point.replace("\\040", " "));
            match tail.next() {
                Some("cgroup2") => found.v2 = found.v2.or(Some(point)),
                Some("cgroup") => {
                    for option in tail.nth(1).unwrap_or_default().split(',') {
                        if !matches!(option, "rw" | "ro" | "xattr" | "") && !option.contains('=') {
                            found.v1.entry(option.to_owned()).or_insert_with(|| point.clone());
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Whether the v2 root offers `controller`.
    fn v2_has(&self, controller: &str) -> bool {
        self.v2.as_ref().is_some_and(|root| {
            fs::read_to_string(root.join("cgroup.controllers"))
                .is_ok_and(|text| text.split_whitespace().any(|c| c == controller))
        })
    }
}

fn checked(rel: &Path) -> Result<&Path> {
    let plain = rel.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if plain && rel.components().next().is_some() { Ok(rel) } else { Err(Error::BadPath(rel.to_owned())) }
}

/// One group, in every hierarchy it was made in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Directory that freezes and lists: v2, else the v1 freezer's.
    main: PathBuf,
    /// `main` is cgroup v2.
    is_v2: bool,
    /// Mount point `main` lies under (never removed, bound for enabling controllers).
    root: PathBuf,
    /// Directories in v1 hierarchies by controller (without the v1 freezer when that is `main`).
    v1: BTreeMap<&'static str, PathBuf>,
    rel: PathBuf,
}

/// v1 controllers that hold limits a pod can have.
const LIMITERS: [&str; 3] = ["memory", "cpu", "pids"];

impl Cgroup {
    /// Makes the group (and its parents) at `rel` below each root, e.g. `podmig/ID/pod`. One that is there is taken.
    pub fn create(h: &Hierarchies, rel: &Path) -> Result<Self> {
        let group = Self::at(h, rel)?;
        for dir in group.dirs() {
            fs::create_dir_all(dir).map_err(io("create", dir))?;
        }
        Ok(group)
    }

    /// The group at `rel`, which must be there.
    pub fn open(h: &Hierarchies, rel: &Path) -> Result<Self> {
        let mut group = Self::at(h, rel)?;
        fs::metadata(&group.main).map_err(io("open", &group.main))?;
        group.v1.retain(|_, dir| dir.is_dir());
        Ok(group)
    }

    fn at(h: &Hierarchies, rel: &Path) -> Result<Self> {
        let rel = checked(rel)?.to_owned();
        let (root, is_v2) = match (&h.v2, h.v1.get("freezer")) {
            (Some(root), _) => (root.clone(), true),
            (None, Some(root)) => (root.clone(), false),
            (None, None) => return Err(Error::NoHierarchy),
        };
        let mut v1 = BTreeMap::new();
        for name in LIMITERS {
            if let (Some(dir), false) = (h.v1.get(name), h.v2_has(name)) {
                v1.insert(name, dir.join(&rel));
            }
        }
        Ok(Self { main: root.join(&rel), is_v2, root, v1, rel })
    }

    fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.main).chain(self.v1.values())
    }

    /// Path below the roots, as given.
    pub fn rel(&self) -> &Path {
        &self.rel
    }

    /// The directory that freezes and lists.
    pub fn path(&self) -> &Path {
        &self.main
    }

    /// A directory descriptor for `CLONE_INTO_CGROUP` (v2 only; None on v1).
    pub fn clone_fd(&self) -> Result<Option<OwnedFd>> {
        if !self.is_v2 {
            return Ok(None);
        }
        let dir = File::open(&self.main).map_err(io("open", &self.main))?;
        Ok(Some(dir.into()))
    }

    /// Moves process `pid` (0 = the caller) with all its threads into the group, in every hierarchy.
    pub fn add(&self, pid: i32) -> Result<()> {
        self.dirs().try_for_each(|dir| write_file(&dir.join("cgroup.procs"), &pid.to_string()))
    }

    /// Moves the calling process to the root of every hierarchy the group is in, so that it can be removed.
    pub fn leave(&self) -> Result<()> {
        let depth = self.rel.components().count();
        self.dirs().try_for_each(|dir| match dir.ancestors().nth(depth) {
            Some(root) => write_file(&root.join("cgroup.procs"), "0"),
            None => Err(Error::BadPath(self.rel.clone())),
        })
    }

    /// Host pids of the live processes in the group itself (zombies are not listed by the kernel).
    pub fn procs(&self) -> Result<Vec<i32>> {
        procs_of(&self.main)
    }

    /// Host pids of the live processes in the group and in groups below it.
    pub fn procs_deep(&self) -> Result<Vec<i32>> {
        let mut all = Vec::new();
        collect_deep(&self.main, &mut all)?;
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// The handle that freezes it.
    pub fn freezer(&self) -> Freezer {
        Freezer { dir: self.main.clone(), is_v2: self.is_v2 }
    }

    /// Writes the limits; `None` leaves a limit alone.
    pub fn set_limits(&self, limits: &Limits) -> Result<()> {
        if let Some(bytes) = limits.memory {
            self.limit("memory", "memory", "memory.max", "memory.limit_in_bytes", &bytes.to_string())?;
        }
        if let Some(count) = limits.pids {
            self.limit("pids", "pids", "pids.max", "pids.max", &count.to_string())?;
        }
        if let Some(cpus) = limits.cpus {
            self.set_cpus(cpus)?;
        }
        Ok(())
    }

    fn set_cpus(&self, cpus: f64) -> Result<()> {
        const PERIOD_US: u32 = 100_000;
        // 1 ms is the least quota the kernel takes (man 7 cgroups, cpu.cfs_quota_us).
        let quota = (cpus * f64::from(PERIOD_US)).round().clamp(1000.0, 1e15) as u64;
        if let Some(dir) = self.v1.get("cpu") {
            write_file(&dir.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
        }
        let v2_value = format!("{quota} {PERIOD_US}");
        if self.v1.contains_key("cpu") {
            self.limit("cpus", "cpu", "cpu.max", "cpu.cfs_quota_us", &quota.to_string())
        } else {
            self.limit("cpus", "cpu", "cpu.max", "cpu.cfs_quota_us", &v2_value)
        }
    }

    fn limit(
        &self,
        what: &'static str,
        controller: &'static str,
        v2_file: &str,
        v1_file: &str,
        value: &str,
    ) -> Result<()> {
        if let Some(dir) = self.v1.get(controller) {
            return write_file(&dir.join(v1_file), value);
        }
        if !self.is_v2 || !self.enable_v2(controller)? {
            return Err(Error::NoController { what, controller });
        }
        write_file(&self.main.join(v2_file), value)
    }

    /// Turns `controller` on for the group, from the root downwards; false if the root has none.
    fn enable_v2(&self, controller: &str) -> Result<bool> {
        let has = |dir: &Path| {
            fs::read_to_string(dir.join("cgroup.controllers"))
                .is_ok_and(|t| t.split_whitespace().any(|c| c == controller))
        };
        if !has(&self.root) {
            return Ok(false);
        }
        let mut dir = self.root.clone();
        for part in self.rel.components() {
            write_file(&dir.join("cgroup.subtree_control"), &format!("+{controller}"))?;
            dir.push(part);
        }
        Ok(has(&self.main))
    }

    /// SIGKILL to every process in the group and below it, frozen or not, then waits (bounded) until it is empty.
    pub fn kill_all(&self) -> Result<()> {
        let kill = self.main.join("cgroup.kill");
        if self.is_v2 && kill.exists() {
            write_file(&kill, "1")?;
            return self.wait_empty();
        }
        let end = Instant::now() + PATIENCE;
        loop {
            let pids = self.procs_deep()?;
            for pid in &pids {
                // ESRCH: it ended meanwhile, which is what is wanted.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL);
            }
            if pids.is_empty() {
                return Ok(());
            }
            if !self.is_v2 {
                // A v1-frozen task dies only once thawed.
                self.freezer().thaw()?;
            }
            if Instant::now() > end {
                return Err(self.too_long("empty"));
            }
            pause();
        }
    }

    /// Waits (bounded) until no live process is left in the group or below it.
    pub fn wait_empty(&self) -> Result<()> {
        if self.is_v2 {
            return wait_event(&self.main, "populated 0", PATIENCE)?
                .then_some(())
                .ok_or_else(|| self.too_long("empty"));
        }
        let end = Instant::now() + PATIENCE;
        while !self.procs_deep()?.is_empty() {
            if Instant::now() > end {
                return Err(self.too_long("empty"));
            }
            pause();
        }
        Ok(())
    }

    /// Whether a live process is in the group or below it.
    pub fn is_populated(&self) -> Result<bool> {
        Ok(!self.procs_deep()?.is_empty())
    }

    /// Removes the group and every group below it; what is gone already is fine. It must be empty of processes.
    pub fn remove(&self) -> Result<()> {
        for dir in self.dirs() {
            remove_deep(dir)?;
        }
        Ok(())
    }

    fn too_long(&self, what: &'static str) -> Error {
        too_long(&self.main, what)
    }
}

fn too_long(dir: &Path, what: &'static str) -> Error {
    let mut tasks = String::new();
    let mut pids = Vec::new();
    // Best effort: the error is about the group, the list is help.
    let _ = collect_deep(dir, &mut pids);
    for pid in pids.iter().take(8) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let name = stat.split_once(" (").map_or("", |s| s.1);
        let (comm, rest) = name.rsplit_once(')').unwrap_or(("?", ""));
        let state = rest.trim_start().chars().next().unwrap_or('?');
        tasks.push_str(if tasks.is_empty() { "; still: " } else { ", " });
        tasks.push_str(&format!("{pid} ({comm}, {state})"));
    }
    Error::TooLong { path: dir.to_owned(), what, secs: PATIENCE.as_secs(), tasks }
}

fn procs_of(dir: &Path) -> Result<Vec<i32>> {
    let path = dir.join("cgroup.procs");
    let text = fs::read_to_string(&path).map_err(io("read", &path))?;
    // 0 stands for a process outside the reader's pid namespace: none of ours to touch.
    Ok(text.lines().filter_map(|l| l.parse().ok()).filter(|&pid| pid != 0).collect())
}

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn collect_deep(dir: &Path, into: &mut Vec<i32>) -> Result<()> {
    into.extend(procs_of(dir)?);
    for sub in subdirs(dir) {
        match collect_deep(&sub, into) {
            // Removed while we looked: then nothing is in it.
            Err(Error::Io { source, .. })
                if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
            other => other?,
        }
    }
    Ok(())
}

fn remove_deep(dir: &Path) -> Result<()> {
    for sub in subdirs(dir) {
        remove_deep(&sub)?;
    }
    let end = Instant::now() + PATIENCE;
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            // The last task's exit is not finished for a moment after it left cgroup.procs.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => pause(),
            Err(e) => return Err(Error::Io { op: "remove", path: dir.to_owned(), source: e }),
        }
    }
}

fn pause() {
    std::thread::sleep(Duration::from_micros(500));
}

/// Waits until `cgroup.events` of `dir` has the line `want`; false when `patience` ran out.
fn wait_event(dir: &Path, want: &str, patience: Duration) -> Result<bool> {
    let path = dir.join("cgroup.events");
    let mut file = match File::open(&path) {
        Ok(file) => file,
        // Already removed: certainly empty.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && want == "populated 0" => return Ok(true),
        Err(e) => return Err(io("open", &path)(e)),
    };
    let end = Instant::now() + patience;
    let mut text = String::new();
    loop {
        text.clear();
        file.seek(SeekFrom::Start(0)).map_err(io("seek", &path))?;
        match file.read_to_string(&mut text) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(want == "populated 0"),
            other => other.map_err(io("read", &path))?,
        };
        if text.lines().any(|l| l == want) {
            return Ok(true);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(io("poll", &path)(e.into())),
        }
    }
}

/// Freezes and thaws a group; cheap to clone, holds no descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freezer {
    dir: PathBuf,
    is_v2: bool,
}

impl Freezer {
    /// The group's directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// True for cgroup v2, whose freezer lets a tracer seize and interrupt what is frozen, and SIGKILL through.
    pub fn is_v2(&self) -> bool {
        self.is_v2
    }

    /// Host pids of the live processes in the group and below it.
    pub fn procs(&self) -> Result<Vec<i32>> {
        let mut all = Vec::new();
        collect_deep(&self.dir, &mut all)?;
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Freezes and waits (bounded) until every task is frozen; tasks in a ptrace stop count. On failure it is thawed again.
    pub fn freeze(&self) -> Result<()> {
        let done = if self.is_v2 {
            write_file(&self.dir.join("cgroup.freeze"), "1")?;
            wait_event(&self.dir, "frozen 1", PATIENCE)?
        } else {
            write_file(&self.dir.join("freezer.state"), "FROZEN")?;
            let end = Instant::now() + PATIENCE;
            loop {
                if self.v1_state()? == "FROZEN" {
                    break true;
                }
                if Instant::now() > end {
                    break false;
                }
                pause();
            }
        };
        if done {
            return Ok(());
        }
        let error = too_long(&self.dir, "frozen");
        self.thaw()?;
        Err(error)
    }

    /// Lets everything run again (tasks in a ptrace stop stay there).
    pub fn thaw(&self) -> Result<()> {
        if self.is_v2 {
            write_file(&self.dir.join("cgroup.freeze"), "0")?;
            wait_event(&self.dir, "frozen 0", PATIENCE)?
                .then_some(())
                .ok_or_else(|| too_long(&self.dir, "thawed"))
        } else {
            write_file(&self.dir.join("freezer.state"), "THAWED")
        }
    }

    /// Whether freezing was asked for (it may still be on its way).
    pub fn is_frozen(&self) -> Result<bool> {
        if self.is_v2 {
            let path = self.dir.join("cgroup.freeze");
            Ok(fs::read_to_string(&path).map_err(io("read", &path))?.trim() == "1")
        } else {
            Ok(self.v1_state()? != "THAWED")
        }
    }

    fn v1_state(&self) -> Result<String> {
        let path = self.dir.join("freezer.state");
        Ok(fs::read_to_string(&path).map_err(io("read", &path))?.trim().to_owned())
    }
}

#[cfg(test)]
mod tests;
