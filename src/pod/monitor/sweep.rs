//! What is kept on disk to undo a pod whose monitor died, and the undoing.

use super::birth::{self, group_of};
use crate::base::{Failure, Kind, PodId};
use crate::kernel::cgroup::{Cgroup, Hierarchies};
use crate::net;
use crate::pod::store::{Places, Record, Store, plain, write_atomic};
use std::fs;
use std::path::PathBuf;

fn link_path(places: &Places, id: &PodId) -> PathBuf {
    places.dir(id).join("link.json")
}

/// Writes down what was made on the host for the pod's network.
pub(super) fn keep_link(places: &Places, link: &net::Link) -> Result<(), Failure> {
    let path = link_path(places, &link.id);
    let failed = |reason: String| {
        Failure::new(Kind::Failed, path.display().to_string(), format!("cannot write: {reason}"))
    };
    let text = serde_json::to_vec(link).map_err(|e| failed(e.to_string()))?;
    write_atomic(&path, &text).map_err(|e| failed(plain(&e)))
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
    let path = link_path(&store.places, id);
    let kept = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<net::Link>(&text).ok());
    if let Some(link) = kept {
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

fn sweep_group(store: &Store, record: &Record) -> Result<(), Failure> {
    let h = Hierarchies::detect().map_err(birth::group_failure)?;
    let group = group_of(&store.places, &record.spec, None);
    match Cgroup::open(&h, &group) {
        Ok(group) => group.kill_all().and_then(|()| group.remove()).map_err(birth::group_failure),
        // Nothing there.
        Err(_) => Ok(()),
    }
}
