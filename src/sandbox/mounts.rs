//! The mounts of a pod: the host's files as they are, and the pod's own `/proc`, `/sys`, `/dev`, `/dev/pts`,
//! `/dev/shm`, `/dev/mqueue`, cgroup view and tmpfs directories over them (mount(2), proc(5), pts(4)).
//!
//! Runs in the process that becomes pid 1, alone in its new namespaces. Mounts of the host that come or go later
//! are seen (slave propagation); nothing mounted here is seen outside.

use super::Error;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// What a pod mounts beyond the fixed set.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mounts {
    /// No masks: the host's `/dev`, everything in `/proc` and `/sys` writable.
    pub privileged: bool,
    /// Directories that get an empty tmpfs of their own.
    pub tmpfs: Vec<String>,
    /// Directories that are read-only in the pod.
    pub read_only: Vec<String>,
}

/// Devices of a walled pod: name, major, minor. Beside them only terminals.
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links of a walled pod's `/dev`.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// Entries of `/proc` that show or steer the host.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Entries of `/proc` that may be read.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const NOTHING: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// What pid 1 keeps of `/proc` from before it was masked.
#[derive(Debug)]
pub struct Kept {
    /// `ns_last_pid`, open for writing, where the kernel has it.
    pub last_pid: Option<OwnedFd>,
}

/// Makes all mounts of the pod in the calling process's mount namespace, which must be its own.
///
/// # Errors
/// Which mount failed, and why.
pub fn make(wanted: &Mounts) -> Result<Kept, Error> {
    umask(Mode::empty());
    let all = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, all, None::<&str>).map_err(failed("/"))?;
    // Read while the host's `/proc` is there: it shows our own mounts.
    let before = mount_table();
    let log = log_socket();
    drop_hosts(&before, wanted.privileged);
    new("proc", "/proc", NOTHING, None)?;
    let last_pid = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/proc/sys/kernel/ns_last_pid")
        .ok()
        .map(OwnedFd::from);
    let read_only = if wanted.privileged { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    sys(&before, read_only)?;
    dev(wanted.privileged, log.as_deref())?;
    if !wanted.privileged {
        for path in MASKED {
            mask(path)?;
        }
        for path in READ_ONLY {
            make_read_only(path)?;
        }
    }
    for path in &wanted.tmpfs {
        let data = like(path)?;
        new("tmpfs", path, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(&data))?;
    }
    for path in &wanted.read_only {
        make_read_only(path)?;
    }
    Ok(Kept { last_pid })
}

fn failed(path: &str) -> impl Fn(Errno) -> Error + '_ {
    move |errno| Error::Mount { path: path.to_owned(), errno }
}

fn new(kind: &str, path: &str, flags: MsFlags, data: Option<&str>) -> Result<(), Error> {
    mount(Some(kind), path, Some(kind), flags, data).map_err(failed(path))
}

/// Mode and owner for a tmpfs over the directory `path`: as the directory's own.
fn like(path: &str) -> Result<String, Error> {
    use std::os::unix::fs::MetadataExt;
    let of = |e: std::io::Error| failed(path)(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)));
    let m = fs::metadata(path).map_err(of)?;
    Ok(format!("mode={:o},uid={},gid={}", m.mode() & 0o7777, m.uid(), m.gid()))
}

fn mask(path: &str) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(m) if m.is_dir() => new("tmpfs", path, NOTHING | MsFlags::MS_RDONLY, Some("size=0")),
        Ok(_) => bind("/dev/null", path),
    }
}

fn bind(from: &str, to: &str) -> Result<(), Error> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed(to))
}

fn make_read_only(path: &str) -> Result<(), Error> {
    if !Path::new(path).exists() && path.starts_with("/proc/") {
        return Ok(());
    }
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(path), path, None::<&str>, flags, None::<&str>).map_err(failed(path))?;
    let mut kept = MsFlags::empty();
    let stat = nix::sys::statvfs::statvfs(path).map_err(failed(path))?;
    use nix::sys::statvfs::FsFlags;
    // A remount without the flags the mount has would take them away.
    for (has, flag) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        kept.set(flag, stat.flags().contains(has));
    }
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | kept;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>).map_err(failed(path))
}

/// `/sys` of the pod's own network namespace, and in it the cgroup tree from the pod's own group down.
fn sys(before: &[Mount], read_only: MsFlags) -> Result<(), Error> {
    let groups = cgroup_mounts(before);
    new("sysfs", "/sys", NOTHING | read_only, None)?;
    for (path, kind, options) in groups {
        let path = path.as_str();
        if path == "/sys/fs/cgroup" && kind == "tmpfs" {
            new("tmpfs", path, NOTHING, Some("mode=755,size=64k"))?;
            continue;
        }
        if fs::create_dir_all(path).is_err() {
            continue;
        }
        // A controller in use elsewhere, or one that this kernel gives to v2 only, is left out.
        let _ = new(&kind, path, NOTHING | read_only, options.as_deref());
    }
    Ok(())
}

/// A mount as `/proc/self/mountinfo` has it.
struct Mount {
    path: String,
    kind: String,
}

fn mount_table() -> Vec<Mount> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let path = left.split(' ').nth(4)?.to_owned();
        Some(Mount { path, kind: right.split(' ').next()?.to_owned() })
    };
    text.lines().filter_map(parse).collect()
}

/// Lets go of mounts that are the host's own affair: what the pod gets its own of (no privilege brings it back), and
/// handles on namespaces, which would live as long as the pod. Best effort: what stays is covered.
fn drop_hosts(before: &[Mount], privileged: bool) {
    let mut gone = vec!["/proc", "/sys"];
    if !privileged {
        gone.push("/dev");
    }
    gone.extend(before.iter().filter(|m| m.kind == "nsfs").map(|m| m.path.as_str()));
    for path in gone {
        // One may lie over another.
        for _ in 0..before.iter().filter(|m| m.path == path).count() {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

/// The host's cgroup mounts below `/sys/fs/cgroup` that tell a program its limits: (path, type, controller).
fn cgroup_mounts(before: &[Mount]) -> Vec<(String, String, Option<String>)> {
    const TELLING: [&str; 6] = ["cpu", "cpuacct", "cpu,cpuacct", "memory", "pids", "cpuset"];
    let mut found = Vec::new();
    for m in before.iter().filter(|m| m.path.starts_with("/sys/fs/cgroup")) {
        let name = m.path.rsplit('/').next().unwrap_or_default();
        match m.kind.as_str() {
            "tmpfs" | "cgroup2" => found.push((m.path.clone(), m.kind.clone(), None)),
            "cgroup" if TELLING.contains(&name) => {
                found.push((m.path.clone(), m.kind.clone(), Some(name.to_owned())));
            }
            _ => {}
        }
    }
    found
}

/// `/dev` and what is mounted in it.
fn dev(privileged: bool, log: Option<&Path>) -> Result<(), Error> {
    if !privileged {
        new("tmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some("mode=755,size=64k"))?;
        nodes()?;
        if let Some(target) = log {
            let _ = symlink(target, "/dev/log");
        }
    }
    for dir in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        if let Err(e) = fs::create_dir(dir)
            && e.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(failed(dir)(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))));
        }
    }
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    new("devpts", "/dev/pts", quiet, Some("newinstance,ptmxmode=0666,mode=0620,gid=5"))?;
    if privileged && fs::symlink_metadata("/dev/ptmx").is_ok_and(|m| !m.is_symlink()) {
        bind("/dev/pts/ptmx", "/dev/ptmx")?;
    }
    new("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=1777"))?;
    // Where the kernel has POSIX message queues.
    match new("mqueue", "/dev/mqueue", NOTHING, None) {
        Err(Error::Mount { errno: Errno::ENODEV, .. }) => Ok(()),
        other => other,
    }
}

fn nodes() -> Result<(), Error> {
    for (name, major, minor) in DEVICES {
        let path = format!("/dev/{name}");
        mknod(path.as_str(), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
            .map_err(failed(&path))?;
    }
    for (name, target) in LINKS {
        let path = format!("/dev/{name}");
        symlink(target, &path)
            .map_err(|e| failed(&path)(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))))?;
    }
    Ok(())
}

/// Where the host's `/dev/log` leads, if outside `/dev`: then a link there serves the pod too.
fn log_socket() -> Option<PathBuf> {
    let target = fs::read_link("/dev/log").ok()?;
    (target.is_absolute() && !target.starts_with("/dev")).then_some(target)
}

/// Whether `path` may be used for [`Mounts::tmpfs`] or [`Mounts::read_only`] of a pod; the reason if not.
pub fn check_dir(path: &str) -> Result<(), String> {
    let p = Path::new(path);
    if !p.is_absolute() || p.components().any(|c| c == std::path::Component::ParentDir) {
        return Err("not an absolute path".to_owned());
    }
    for own in ["/proc", "/sys", "/dev"] {
        if p.starts_with(own) {
            return Err(format!("{own} is the pod's own"));
        }
    }
    match File::open(p).and_then(|f| f.metadata()) {
        Ok(m) if m.is_dir() => Ok(()),
        Ok(m) => Err(format!("not a directory (mode {:o})", m.permissions().mode())),
        Err(e) => Err(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)).desc().to_lowercase()),
    }
}
