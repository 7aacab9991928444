//! Page content: which pages have any, reading them at the source, putting them in place at the target, and which
//! were written in between.
//!
//! A page is addressed by (space, address), where a space is an address space or an object (shared content with a
//! handle, addressed by offset). What counts as content is decided in [`content`]:
//!
//! | mapping | content |
//! |---|---|
//! | private anonymous | populated pages (present or swapped) but the page of zeros and guards |
//! | private, of a file or object | copied-on-write pages only; the rest comes from the file or object |
//! | shared, of a file | never: the file is the truth |
//! | shared, of an object | through the object's handle, once per object |
//! | droppable, vdso, vvar | never |
//!
//! [`reader::Reader`] turns sets of pages into [`chunk::Chunk`]s; [`filler::Filler`] applies them, whatever they
//! hold (they come from a peer). [`dirty`] finds what was written between two looks. [`digest`] is the same number
//! at both ends when the program cannot tell the two memories apart.

pub mod chunk;
pub mod content;
pub mod digest;
pub mod dirty;
pub mod feed;
pub mod filler;
pub mod reader;
pub mod set;

pub use chunk::{Chunk, Run};
pub use content::Work;
pub use filler::{Filler, populate_plan};
pub use reader::{Reader, all_content};
pub use set::PageSet;

use crate::base::{AddrRange, Failure, Kind};
use crate::kernel::errno::errno_text;
use crate::state::mm::MmId;
use crate::state::object::ObjectId;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// What a page address is relative to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Space {
    /// A process's address space; addresses as the program sees them.
    Mm(MmId),
    /// An object; addresses are offsets in bytes from its start.
    Object(ObjectId),
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Space::Mm(MmId(pid)) => write!(f, "memory of pid {pid}"),
            Space::Object(ObjectId(n)) => write!(f, "shared object {n}"),
        }
    }
}

/// What can go wrong with page content.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process ended, or its address space was replaced by exec.
    #[error("process {pid} (host pid) is gone or runs another program now")]
    Gone {
        /// Pid on this host.
        pid: i32,
    },
    /// A process being filled ended: nobody ends it but the kernel, for want of memory, or a person.
    #[error("process {pid} (host pid) was killed while its memory was filled")]
    Killed {
        /// Pid on this host.
        pid: i32,
    },
    /// A file under /proc could not be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The page map could not be walked.
    #[error("cannot scan pages {range:?} of process {pid} (host pid)")]
    Scan {
        /// Pid on this host.
        pid: i32,
        /// Where.
        range: AddrRange,
        /// Why.
        source: Errno,
    },
    /// Pages could not be read.
    #[error("cannot read memory of process {pid} (host pid) at {addr:#x}")]
    Read {
        /// Pid on this host.
        pid: i32,
        /// First address not read.
        addr: u64,
        /// Why.
        source: Errno,
    },
    /// Pages could not be written.
    #[error("cannot write memory of process {pid} (host pid) at {addr:#x}")]
    Write {
        /// Pid on this host.
        pid: i32,
        /// First address not written.
        addr: u64,
        /// Why.
        source: Errno,
    },
    /// An object's content could not be read or written.
    #[error("cannot {act} shared object {} at offset {offset:#x}", object.0)]
    Object {
        /// `read`, `write` or `scan`.
        act: &'static str,
        /// Which.
        object: ObjectId,
        /// Where.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
    /// Pages for a space that is not part of this pod.
    #[error("page data for {0}, which is not part of this pod")]
    UnknownSpace(Space),
    /// Pages outside of what the layout allows.
    #[error("page data for {space} at {addr:#x}+{len:#x}: {why}")]
    Refused {
        /// Whose.
        space: Space,
        /// First address or offset.
        addr: u64,
        /// Length in bytes.
        len: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A chunk's header makes no sense.
    #[error("malformed page header: {0}")]
    Malformed(&'static str),
    /// Writes cannot be tracked in this process.
    #[error("cannot track writes of process {pid} (host pid): {what}")]
    Track {
        /// Pid on this host.
        pid: i32,
        /// What failed.
        what: &'static str,
        /// Why.
        source: Errno,
    },
    /// A batch could not be run in a process.
    #[error("cannot make process {pid} (host pid) set up tracking of its writes")]
    Inject {
        /// Pid on this host.
        pid: i32,
        /// Why.
        source: Box<crate::remote::Error>,
    },
    /// This kernel cannot track writes in the way asked for.
    #[error("this kernel cannot track writes: {0}")]
    NoTracker(&'static str),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let mut message = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(s) = source {
            let words = match (s.downcast_ref::<std::io::Error>(), s.downcast_ref::<Errno>()) {
                (Some(io), _) => errno_text(io),
                (_, Some(errno)) => errno.desc().to_owned(),
                _ => s.to_string(),
            };
            message = format!("{message}: {words}");
            source = s.source();
        }
        let failure = Failure::new(Kind::Failed, "memory", message);
        match e {
            Error::NoTracker(_) => failure.remedy("use --mode warm"),
            Error::Killed { .. } | Error::Write { .. } => {
                failure.remedy("check that this host and the pod's memory limit have room for it")
            }
            _ => failure,
        }
    }
}

#[cfg(test)]
mod speed;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
