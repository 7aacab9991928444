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
    /// Mount points of v1 hierarchies by controller or name (`freezer`, `memory`, `cpu`, `pids`, `systemd`, …).
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
                        let name = option.strip_prefix("name=").unwrap_or(option);
                        if !matches!(name, "rw" | "ro" | "xattr" | "") && !name.contains('=') {
                            found.v1.entry(name.to_owned()).or_insert_with(|| point.clone());
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

/// Whether a process with this `/proc/PID/cgroup` is in the root of the v1 hierarchy of `controller`.
fn in_root(cgroups: &str, controller: &str) -> bool {
    cgroups.lines().all(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        path == "/" || !names.split(',').any(|n| n == controller)
    })
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

/// v1 hierarchies a pod's group is made in: those of limits, and the one by which an older systemd finds what belongs to a session.
const JOINED: [&str; 4] = ["memory", "cpu", "pids", "systemd"];

impl Cgroup {
    /// Makes the group (and its parents) at `rel` below each root, e.g. `podmig/ID/pod`. One that is there is taken.
    pub fn create(h: &Hierarchies, rel: &Path) -> Result<Self> {
        let group = Self::at(h, rel)?;
        for dir in group.dirs() {
            fs::create_dir_all(dir).map_err(io("create", dir))?;
        }
        Ok(group)
    }

    /// As [`Cgroup::create`], in the v1 hierarchies only where one is needed: for a limit, or to get out of a group
    /// the calling process is in. Entering a v1 group costs about 10 ms where nothing else moved just before.
    pub fn create_lean(h: &Hierarchies, rel: &Path, limits: &Limits) -> Result<Self> {
        let mut group = Self::at(h, rel)?;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        group.v1.retain(|name, _| match *name {
            "memory" if limits.memory.is_some() => true,
            "cpu" if limits.cpus.is_some() => true,
            "pids" if limits.pids.is_some() => true,
            name => !in_root(&own, name),
        });
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
        for name in JOINED {
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
        write_file(&self.main.join("cgroup.procs"), &pid.to_string())?;
        for (name, dir) in &self.v1 {
            match write_file(&dir.join("cgroup.procs"), &pid.to_string()) {
                // A real-time task, and a v1 cpu group without real-time share (sched(7)): it stays where it was.
                Err(Error::Io { source, .. })
                    if *name == "cpu" && source.raw_os_error() == Some(libc::EINVAL) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Moves the calling process, which was cloned into the group (see [`Cgroup::clone_fd`]), into its v1 parts too.
    pub fn join_rest(&self) -> Result<()> {
        if !self.is_v2 {
            return self.add(0);
        }
        self.v1.values().try_for_each(|dir| write_file(&dir.join("cgroup.procs"), "0"))
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

    /// SIGKILL to every process in the group and below it, frozen or not, then waits (bounded) until it is empty.
    pub fn kill_all(&self) -> Result<()> {
        let kill = self.main.join("cgroup.kill");
        if self.is_v2 && kill.exists() {
            write_file(&kill, "1")?;
            // It misses a process whose first thread ended before the others (its SIGKILL goes to that thread alone): the loop does not.
            if wait_event(&self.main, "populated 0", Duration::from_millis(20))? {
                return Ok(());
            }
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

    /// Removes the group, and its parent if nothing else is below that.
    pub fn remove_with_parent(&self) -> Result<()> {
        self.remove()?;
        for parent in self.dirs().filter_map(|dir| dir.parent()) {
            // In use (EBUSY), or gone already.
            let _ = fs::remove_dir(parent);
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

/// How long a change may go untold.
const NOTIFIED: Duration = Duration::from_millis(15);

/// Waits until `cgroup.events` of `dir` has the line `want`; false when `patience` ran out.
fn wait_event(dir: &Path, want: &str, patience: Duration) -> Result<bool> {
    let path = dir.join("cgroup.events");
    let mut file = match File::open(&path) {
        Ok(file) => file,
        // Already removed: certainly empty.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && want == "populated 0" => return Ok(true),
        Err(e) => return Err(io("open", &path)(e)),
    };
    let start = Instant::now();
    let (soon, end) = (start + NOTIFIED, start + patience);
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
        let now = Instant::now();
        if now >= end {
            return Ok(false);
        }
        // The kernel tells of a second change only 10 ms after the first (CGROUP_FILE_NOTIFY_MIN_INTV).
        if now < soon {
            std::thread::sleep(Duration::from_micros(20));
            continue;
        }
        let timeout = PollTimeout::from(10u8);
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

    /// Asks for freezing without waiting for it (v2 only): each task traps where it would next run program code.
    pub fn ask_freeze(&self) -> Result<()> {
        debug_assert!(self.is_v2);
        write_file(&self.dir.join("cgroup.freeze"), "1")
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

mod limits;
#[cfg(test)]
mod tests;
