//! Address spaces: mappings and their borders. Page *content* is the business of the `memory` room.

pub mod collect;
pub mod diff;
pub mod files;
pub mod hole;
pub mod restore;
pub mod vdso;

use super::object::ObjectId;
use crate::base::AddrRange;
use bitflags::bitflags;
use serde::{Deserialize, Serialize};

/// Address space id: the pod pid of the process that has it (one process, one address space).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct MmId(pub i32);

/// Index into `Tree::files`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct MapFileId(pub u32);

bitflags! {
    /// Protection and attributes of a mapping.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
    pub struct VmaFlags: u32 {
        /// Readable.
        const READ = 1;
        /// Writable.
        const WRITE = 2;
        /// Executable.
        const EXEC = 4;
        /// MAP_SHARED.
        const SHARED = 8;
        /// MAP_GROWSDOWN (`gd`).
        const GROWSDOWN = 16;
        /// mlocked (`lo`).
        const LOCKED = 32;
        /// MAP_NORESERVE (`nr`).
        const NORESERVE = 64;
        /// MADV_DONTFORK (`dc`).
        const DONTFORK = 128;
        /// MADV_DONTDUMP (`dd`).
        const DONTDUMP = 256;
        /// MADV_MERGEABLE (`mg`).
        const MERGEABLE = 512;
        /// MADV_HUGEPAGE (`hg`).
        const HUGEPAGE = 1024;
        /// MADV_NOHUGEPAGE (`nh`).
        const NOHUGEPAGE = 2048;
        /// MADV_WIPEONFORK (`wf`).
        const WIPEONFORK = 4096;
        /// MADV_SEQUENTIAL (`sr`).
        const SEQUENTIAL = 8192;
        /// MADV_RANDOM (`rr`).
        const RANDOM = 16384;
        /// MAP_STACK has no VmFlag; MAP_DROPPABLE (`dp`).
        const DROPPABLE = 32768;
    }
}

/// What lies behind a mapping.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Backing {
    /// Private anonymous memory (heap and stacks, too).
    Anon,
    /// A file on a file system; private or shared by `VmaFlags::SHARED`.
    File {
        /// Which file.
        file: MapFileId,
        /// Offset in bytes.
        offset: u64,
    },
    /// Content owned by the pod: shared anonymous memory, memfd, a deleted file.
    Object {
        /// Which object.
        object: ObjectId,
        /// Offset in bytes.
        offset: u64,
    },
    /// The kernel's code page.
    Vdso,
    /// The kernel's data page(s); never read, moved as a whole.
    Vvar,
    /// The second data mapping of 6.13+ kernels.
    VvarVclock,
}

/// One mapping.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vma {
    /// Where.
    pub range: AddrRange,
    /// Protection and attributes.
    pub flags: VmaFlags,
    /// What it maps.
    pub backing: Backing,
    /// Name given by PR_SET_VMA_ANON_NAME, if any.
    pub name: Option<Vec<u8>>,
}

impl Vma {
    /// Whether it is the kernel's own: vdso or vvar.
    pub fn is_special(&self) -> bool {
        matches!(self.backing, Backing::Vdso | Backing::Vvar | Backing::VvarVclock)
    }
}

/// Borders the kernel keeps (`struct prctl_mm_map`), and the auxiliary vector.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
#[allow(missing_docs)]
pub struct Borders {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    /// `/proc/P/auxv`, raw.
    pub auxv: Vec<u8>,
}

/// A process's address space without its content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MmLayout {
    /// Whose.
    pub mm: MmId,
    /// Mappings by rising address, without overlap.
    pub vmas: Vec<Vma>,
    /// Borders. `brk` is true only when read while stopped.
    pub borders: Borders,
    /// The executable.
    pub exe: MapFileId,
}

/// A file that is mapped or executed, as the pod's mount namespace names it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MappedFile {
    /// Path in the pod's mount namespace.
    pub path: Vec<u8>,
    /// Size in bytes at the source.
    pub size: u64,
    /// Modification time in nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Opened for writing by a shared mapping.
    pub writable: bool,
    /// xxh3-64 over the whole file (programs and libraries; `None` for shared writable maps, where the file is the truth).
    pub hash: Option<u64>,
}
