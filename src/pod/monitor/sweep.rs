//! What is kept on disk to undo a pod whose monitor died, and the undoing.

use super::birth::{self, group_of};
use crate::base::{Failure, Kind, PodId};
use crate::kernel::cgroup::{Cgroup, Hierarchies};
use crate::net;
use crate::pod::store::{Places, Record, Store, plain, write_unsynced};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn link_path(places: &Places, id: &PodId) -> PathBuf {
    places.dir(id).join("link.json")
}

/// Writes down what was made on the host for the pod's network (which does not outlive a power cut either).
pub(super) fn keep_link(places: &Places, link: &net::Link) -> Result<(), Failure> {
    let path = link_path(places, &link.id);
    let failed = |reason: String| {
        Failure::new(Kind::Failed, path.display().to_string(), format!("cannot write: {reason}"))
    };
    let text = serde_json::to_vec(link).map_err(|e| failed(e.to_string()))?;
    write_unsynced(&path, &text).map_err(|e| failed(plain(&e)))
}

fn group_path(places: &Places, id: &PodId) -> PathBuf {
    places.dir(id).join("group")
}

/// Writes down which control group is the pod's: with `--cgroup-parent inherit` nobody else can tell.
pub(super) fn keep_group(places: &Places, id: &PodId, group: &Path) -> Result<(), Failure> {
    let path = group_path(places, id);
    write_unsynced(&path, group.as_os_str().as_bytes()).map_err(|e| {
        Failure::new(Kind::Failed, path.display().to_string(), format!("cannot write: {}", plain(&e)))
    })
}

/// What was written down.
pub fn kept_link(places: &Places, id: &PodId) -> Option<net::Link> {
    serde_json::from_slice(&fs::read(link_path(places, id)).ok()?).ok()
}

/// Forgets it again.
pub(super) fn forget_link(places: &Places, id: &PodId) {
    let _ = fs::remove_file(link_path(places, id));
}

/// Removes what a pod left on this host whose monitor is dead: processes, control groups, network, socket. Twice is
/// harmless. To be called before such a pod is removed or started again.
///
/// # Errors
/// What could not be removed; everything else is.
pub fn sweep(store: &Store, record: &Record) -> Result<(), Failure> {
    let id = &record.spec.id;
    if record.owner_alive()
        && record.monitor.as_ref().is_some_and(|m| m.pid != std::process::id().cast_signed())
    {
        return Err(Failure::new(Kind::Refused, record.spec.name.as_str(), "its monitor runs"));
    }
    let mut first = sweep_group(store, record);
    if let Some(link) = kept_link(&store.places, id) {
        match net::detach(&link) {
            Ok(()) => forget_link(&store.places, id),
            Err(e) => first = first.and(Err(e.into())),
        }
    }
    let socket = store.places.socket(id);
    match fs::remove_file(&socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            let text = format!("cannot remove it: {}", plain(&e));
            first = first.and(Err(Failure::new(Kind::Failed, socket.display().to_string(), text)));
        }
        _ => {}
    }
    first
}

/// How long a monitor that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(2);

/// As [`sweep`], for a pod whose monitor no longer answers: it may still be dying.
///
/// # Errors
/// As [`sweep`].
pub fn sweep_dead(store: &Store, record: &Record) -> Result<(), Failure> {
    let until = Instant::now() + DYING;
    while record.owner_alive() && Instant::now() < until {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    sweep(store, record)
}

fn sweep_group(store: &Store, record: &Record) -> Result<(), Failure> {
    let h = Hierarchies::detect().map_err(birth::group_failure)?;
    let kept = fs::read(group_path(&store.places, &record.spec.id)).ok();
    let group = match kept {
        Some(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        None => group_of(&store.places, &record.spec, None),
    };
    match Cgroup::open(&h, &group) {
        Ok(group) => group.kill_all().and_then(|()| group.remove()).map_err(birth::group_failure),
        // Nothing there.
        Err(_) => Ok(()),
    }
}
