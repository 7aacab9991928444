//! Kernel state as data, one folder per kind: `mod.rs` what it is, `collect.rs` how it is read at the
//! source, `restore.rs` how it is put back at the target. A kind's halves never import each other, nor
//! the halves of another kind; `source.rs` and `target.rs` alone put the kinds together.
//!
//! Everything here is plain data with pids, descriptors and addresses *as the pod sees them*.

pub mod cpu;
pub mod cred;
pub mod error;
pub mod event;
pub mod fd;
pub mod file;
pub mod inet;
pub mod mm;
pub mod object;
pub mod pipe;
pub mod script;
pub mod signal;
pub mod source;
pub mod target;
pub mod task;
pub mod timer;
pub mod unix;

use serde::{Deserialize, Serialize};

/// What the target needs to build the skeleton: known early, sent again when it changed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct Tree {
    /// Every process of the pod but pid 1, parents before children.
    pub procs: Vec<task::ProcNode>,
    /// Address spaces, one per live process.
    pub mms: Vec<mm::MmLayout>,
    /// Files that are mapped (or are an executable), by [`mm::MapFileId`].
    pub files: Vec<mm::MappedFile>,
    /// Content owned by the pod and reached through handles: memfd, anonymous shared memory, deleted files.
    pub objects: Vec<object::Object>,
}

/// The rest, true only while everything is stopped.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct PodState {
    /// One per entry of `Tree::procs` that is not a zombie, same order.
    pub procs: Vec<task::ProcessState>,
    /// Open file descriptions, shared by descriptors of one or many processes.
    pub files: Vec<fd::OpenFile>,
    /// Last pid given out in the pod's pid namespace.
    pub last_pid: i32,
    /// CLOCK_MONOTONIC as the pod saw it at the freeze, in nanoseconds.
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME as the pod saw it at the freeze, in nanoseconds.
    pub boottime_ns: i64,
    /// CLOCK_REALTIME at the freeze, in nanoseconds.
    pub realtime_ns: i64,
    /// What was written to the pod's standard input and not read by it yet.
    pub input: Vec<u8>,
    /// Nothing more will be written to it.
    pub input_ended: bool,
}
