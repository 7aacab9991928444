//! Objects: content that belongs to the pod, is reached through a handle, and travels with it.

pub mod collect;
pub mod restore;

use serde::{Deserialize, Serialize};

/// Index into `Tree::objects`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ObjectId(pub u32);

/// Kinds of objects.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ObjectKind {
    /// `mmap(MAP_SHARED|MAP_ANONYMOUS)` or a shared map of /dev/zero; restored as a nameless memfd-like file.
    AnonShared,
    /// `memfd_create(2)`.
    Memfd {
        /// Name given at creation (without `memfd:`).
        name: Vec<u8>,
        /// `F_GET_SEALS`.
        seals: u32,
    },
    /// A regular file with no name left (`nlink` 0), made again next to `path` and unlinked.
    Deleted {
        /// Path it had, without ` (deleted)`.
        path: Vec<u8>,
    },
    /// A named file on a file system private to the pod (`/dev/shm`, `--tmpfs`).
    Private {
        /// Its path.
        path: Vec<u8>,
    },
}

impl ObjectKind {
    /// The path or name it has or had; empty for anonymous memory.
    pub fn name(&self) -> &[u8] {
        match self {
            ObjectKind::AnonShared => b"",
            ObjectKind::Memfd { name, .. } => name,
            ObjectKind::Deleted { path } | ObjectKind::Private { path } => path,
        }
    }
}

/// One object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Object {
    /// Kind.
    pub kind: ObjectKind,
    /// Size in bytes.
    pub size: u64,
    /// `st_mode` permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}
