//! Files on file systems that only the pod sees (`/dev/shm`, `--tmpfs`): what is open or mapped travels as an object;
//! the rest cannot yet, and is named before anything freezes.

use crate::base::Blocker;
use crate::base::spec::{PodSpec, VolumeMode};
use crate::state::Tree;
use crate::state::object::ObjectKind;
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Enough to tell; a directory may hold thousands.
const MOST: usize = 20;

/// What lies in the pod's own file systems and is not among the objects of its tree.
pub fn left_behind(init: i32, spec: &PodSpec, tree: &Tree) -> Vec<Blocker> {
    let known: HashSet<&[u8]> = tree
        .objects
        .iter()
        .filter_map(|o| match &o.kind {
            ObjectKind::Private { path, .. } => Some(path.as_slice()),
            _ => None,
        })
        .collect();
    let root = PathBuf::from(format!("/proc/{init}/root"));
    let mut found = Vec::new();
    for dir in spec.tmpfs.iter().map(String::as_str).chain(["/dev/shm"]) {
        let below = root.join(dir.trim_start_matches('/'));
        for entry in std::fs::read_dir(below).into_iter().flatten().flatten() {
            let path = Path::new(dir).join(entry.file_name());
            if found.len() < MOST && !known.contains(path.as_os_str().as_bytes()) {
                found.push(blocker(&path));
            }
        }
    }
    found
}

fn blocker(path: &Path) -> Blocker {
    Blocker {
        kind: "private-file".to_owned(),
        pid: None,
        fd: None,
        path: Some(path.display().to_string()),
        message: "it lies on a file system that only the pod sees, and no process has it open or mapped"
            .to_owned(),
        remedy: "files that are not open do not travel yet: remove it, or keep it open".to_owned(),
    }
}

/// What the user should know about volumes.
pub fn warnings(spec: &PodSpec) -> Vec<String> {
    let carried = spec.volumes.iter().filter(|v| v.mode == VolumeMode::Carry);
    carried
        .map(|v| format!("the content of {} does not travel yet: the target's own was used", v.dir))
        .collect()
}
