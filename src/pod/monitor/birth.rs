//! Making a pod's surroundings (control group, clocks, namespaces, pid 1, network), and undoing them.

use crate::base::spec::{Limits, PodSpec, VolumeMode};
use crate::base::{Failure, Kind, PodId};
use crate::kernel::cgroup::{self, Cgroup, Hierarchies};
use crate::kernel::clone::{self, Child};
use crate::kernel::seqpacket;
use crate::pod::init::{self, Said};
use crate::pod::store::Places;
use crate::sandbox::mounts::{self, Mounts};
use crate::sandbox::space::{self, Clocks, Space};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// How long the new process may take to become pid 1 (it mounts; it does not wait for anybody).
const PATIENCE_MS: u16 = 20_000;

/// A pod's processes and surroundings.
#[derive(Debug)]
pub struct LivePod {
    /// pid 1, our child.
    pub init: Child,
    /// To pid 1.
    pub socket: OwnedFd,
    /// The pod's control group.
    pub cgroup: Cgroup,
    /// What its clocks add to the host's.
    pub clocks: Clocks,
    /// Its network namespace (the host's for `--net host`).
    pub netns: OwnedFd,
}

/// The pod's directory in the cgroup trees: `podmig/ID`, below it `pod` and `monitor`. Another store than the
/// system's on the same machine has names of its own, since a pod may be moved from one to the other.
pub fn group_of(places: &Places, spec: &PodSpec, inherited: Option<&Path>) -> PathBuf {
    let parent = match (spec.cgroup_parent.as_deref(), inherited) {
        (Some("inherit"), Some(path)) => path.to_path_buf(),
        (Some(path), _) if path != "inherit" => PathBuf::from(path.trim_matches('/')),
        _ => PathBuf::new(),
    };
    parent.join("podmig").join(leaf(places, &spec.id))
}

fn leaf(places: &Places, id: &PodId) -> String {
    if places.var == Path::new("/var/lib/podmig") {
        return id.to_string();
    }
    let hash = blake3::hash(places.var.as_os_str().as_encoded_bytes());
    format!("{id}-{}", &hash.to_hex()[..8])
}

/// The v2 group of the calling process, relative to the root; `None` where there is no v2.
pub(in crate::pod) fn own_group() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|l| l.strip_prefix("0::/"))?;
    Some(PathBuf::from(path))
}

/// The v2 directories of a monitor's group, from the outermost one that podmig makes; none where there is no v2. Each
/// monitor has a group of its own (`monitor-…`): the last one of a pod may still be leaving when the next comes.
pub(in crate::pod) fn monitor_dirs(group: &Path, name: &str) -> Result<Vec<CString>, Failure> {
    let h = Hierarchies::detect().map_err(group_failure)?;
    let Some(root) = h.v2 else { return Ok(Vec::new()) };
    let mut dir = root;
    let mut dirs = Vec::new();
    for part in group.components().chain([Component::Normal(name.as_ref())]) {
        dir.push(part);
        let path = CString::new(dir.as_os_str().as_bytes());
        dirs.push(path.map_err(|e| Failure::new(Kind::Usage, "--cgroup-parent", e.to_string()))?);
    }
    Ok(dirs)
}

/// The calling monitor's group, entered in the hierarchies it was not cloned into.
pub(super) fn monitor_group(group: &Path, name: &str) -> Result<Cgroup, Failure> {
    let h = Hierarchies::detect().map_err(group_failure)?;
    let own = Cgroup::create_lean(&h, &group.join(name), &Limits::default()).map_err(group_failure)?;
    own.join_rest().map_err(group_failure)?;
    Ok(own)
}

/// Moves the calling process to the root of the hierarchies and removes its group; the pod's own too, unless it is in
/// use again.
pub(super) fn leave(own: &Cgroup) -> Result<(), Failure> {
    own.leave().and_then(|()| own.remove_with_parent()).map_err(group_failure)
}

/// As [`leave`], for a monitor that was never told whose it is.
pub(super) fn leave_own() {
    let Some(own) =
        own_group().filter(|g| g.file_name().is_some_and(|n| n.to_string_lossy().starts_with("monitor-")))
    else {
        return;
    };
    if let Ok(group) = Hierarchies::detect().and_then(|h| Cgroup::open(&h, &own)) {
        let _ = leave(&group);
    }
}

pub(in crate::pod) fn group_failure(e: cgroup::Error) -> Failure {
    let mut text = e.to_string();
    let mut source = std::error::Error::source(&e);
    while let Some(s) = source {
        text = format!("{text}: {s}");
        source = s.source();
    }
    let f = Failure::new(Kind::Failed, "control group", text);
    match e {
        cgroup::Error::NoHierarchy => f.remedy(
            "mount cgroup2 at /sys/fs/cgroup; `ip netns exec` hides it, `nsenter --net=FILE` does not",
        ),
        _ => f,
    }
}

fn mounts_of(spec: &PodSpec) -> Result<Mounts, Failure> {
    let read_only: Vec<String> =
        spec.volumes.iter().filter(|v| v.mode == VolumeMode::Ro).map(|v| v.dir.clone()).collect();
    for dir in spec.tmpfs.iter().chain(&read_only) {
        mounts::check_dir(dir).map_err(|reason| {
            Failure::new(Kind::Failed, dir, format!("cannot be mounted over: {reason}"))
                .remedy("give a directory that is there, outside /proc, /sys and /dev")
        })?;
    }
    Ok(Mounts { privileged: spec.privileged, tmpfs: spec.tmpfs.clone(), read_only })
}

impl LivePod {
    /// Makes a pod with nothing but pid 1 in it. On failure nothing is left.
    pub(super) fn make(group: &Path, spec: &PodSpec, clocks: Clocks) -> Result<LivePod, Failure> {
        let space = Space {
            hostname: spec.hostname.clone(),
            net: spec.net.mode.clone(),
            mounts: mounts_of(spec)?,
            clocks,
        };
        let h = Hierarchies::detect().map_err(group_failure)?;
        let cgroup = Cgroup::create_lean(&h, group, &spec.limits).map_err(group_failure)?;
        let made = cgroup
            .set_limits(&spec.limits)
            .map_err(group_failure)
            .and_then(|()| space::set_clocks(clocks).map_err(Failure::from))
            .and_then(|()| Self::bear(&space, &cgroup))
            .and_then(|born| space::own_clocks().map(|()| born).map_err(Failure::from));
        match made {
            Ok((init, socket)) => Self::with_netns(init, socket, cgroup, clocks),
            Err(f) => {
                let _ = cgroup.kill_all().and_then(|()| cgroup.remove_with_parent());
                Err(f)
            }
        }
    }

    fn with_netns(init: Child, socket: OwnedFd, cgroup: Cgroup, clocks: Clocks) -> Result<LivePod, Failure> {
        let path = format!("/proc/{}/ns/net", init.pid);
        match File::open(&path) {
            Ok(netns) => Ok(LivePod { init, socket, cgroup, clocks, netns: netns.into() }),
            Err(e) => {
                let _ = cgroup.kill_all().and_then(|()| cgroup.remove_with_parent());
                reap(&init);
                Err(Failure::new(
                    Kind::Failed,
                    path,
                    format!("cannot open it: {}", crate::pod::store::plain(&e)),
                ))
            }
        }
    }

    /// The child that becomes pid 1, up to its first word.
    fn bear(space: &Space, cgroup: &Cgroup) -> Result<(Child, OwnedFd), Failure> {
        let plain = |what: &'static str| {
            move |e: std::io::Error| {
                Failure::new(Kind::Failed, "pod", format!("cannot {what}: {}", crate::pod::store::plain(&e)))
            }
        };
        let (ours, theirs) = seqpacket::pair().map_err(plain("make a socket pair"))?;
        let image = init::image().map_err(plain("make pid 1's memory file"))?;
        let group = cgroup.clone_fd().map_err(group_failure)?;
        let child = clone::fork_with(space.flags(), group.as_ref().map(AsFd::as_fd), || {
            let error = space.enter(cgroup, theirs.as_fd(), image.as_fd());
            let _ = seqpacket::send(&theirs, &init::failed(&Failure::from(error).message), &[]);
            1
        });
        let child = child.map_err(plain("make the pod's namespaces"))?;
        drop(theirs);
        match first_word(&ours) {
            Ok(()) => {
                nix::fcntl::fcntl(&ours, nix::fcntl::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
                    .map_err(|e| plain("prepare a socket")(e.into()))?;
                Ok((child, ours))
            }
            Err(text) => {
                let _ = clone::pidfd_signal(&child.pidfd, libc::SIGKILL);
                reap(&child);
                Err(Failure::new(Kind::Failed, "pod", text))
            }
        }
    }

    /// Ends every process of the pod and waits for that; twice is harmless.
    ///
    /// # Errors
    /// One does not die: it hangs in the kernel.
    pub(super) fn kill(&self) -> Result<(), String> {
        // pid 1 of a pid namespace takes all others along, frozen or not; the group has those that entered from
        // outside, too.
        let _ = clone::pidfd_signal(&self.init.pidfd, libc::SIGKILL);
        self.cgroup.kill_all().map_err(|e| group_failure(e).to_string())?;
        reap(&self.init);
        Ok(())
    }

    /// Removes the control group of a pod that was killed.
    pub(super) fn remove(self) -> Result<(), String> {
        self.cgroup.remove_with_parent().map_err(|e| group_failure(e).to_string())
    }
}

/// Waits for a child that was killed; twice is harmless.
pub(super) fn reap(child: &Child) {
    while let Err(Errno::EINTR) = waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED) {}
}

/// Waits for pid 1 to say that it runs.
fn first_word(socket: &OwnedFd) -> Result<(), String> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::from(PATIENCE_MS)) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(format!("cannot wait for pid 1: {}", e.desc())),
            Ok(0) => return Err(format!("pid 1 did not come up within {} s", PATIENCE_MS / 1000)),
            Ok(_) => break,
        }
    }
    let mut buf = [0; 4096];
    match seqpacket::recv(socket, &mut buf) {
        Ok((n, _)) => match init::said(&buf[..n]) {
            Some(Said::Hello) => Ok(()),
            Some(Said::Failed(text)) => Err(text),
            _ => Err("pid 1 ended before it ran".to_owned()),
        },
        Err(e) => Err(format!("cannot hear pid 1: {}", e.desc())),
    }
}
