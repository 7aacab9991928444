//! What the frames of a migration say, besides pages.

use crate::base::spec::PodSpec;
use crate::state::cpu::xstate::Component;
use crate::state::{PodState, Tree};
use serde::{Deserialize, Serialize};

/// What the target must know to reserve: the definition and the facts that travel with it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// The pod's definition.
    pub spec: PodSpec,
    /// How many times the pod has changed hosts; the DNS entry is fenced by it.
    pub generation: u64,
    /// When CMD was started first, RFC 3339 UTC.
    pub started: String,
    /// CMD's pid in the pod; 0 when it is over (`forking`).
    pub cmd_pid: i32,
    /// CMD's wait status if it is over.
    pub cmd_status: Option<i32>,
    /// Name of the host the pod comes from.
    pub from: String,
    /// CLOCK_MONOTONIC and CLOCK_BOOTTIME of the pod when this was written, nanoseconds.
    pub clocks: (i64, i64),
    /// CLOCK_REALTIME when this was written, nanoseconds since the epoch.
    pub realtime_ns: i64,
    /// Memory with content, bytes: what the target should be able to hold.
    pub memory: u64,
    /// Image of the vdso of the kernel the pod comes from.
    pub vdso: Vec<u8>,
    /// State components of the CPU the pod comes from.
    pub xstate: Vec<Component>,
    /// The pod goes on at the source after this (image only): restoring needs `--takeover`.
    pub leave_running: bool,
}

/// One captured network frame (`net`): virtio header and bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetFrame {
    /// `struct virtio_net_hdr`, 10 bytes.
    pub vnet_hdr: Vec<u8>,
    /// The frame from its Ethernet header on.
    pub bytes: Vec<u8>,
}

/// A record in the stream. Order: Manifest, Tree, (pages | Tree)…, State, Frames…, End.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Record {
    /// First.
    Manifest(Box<Manifest>),
    /// Processes and mappings; a later one replaces an earlier one.
    Tree(Box<Tree>),
    /// The tree is as sent last; what follows was read while frozen.
    Frozen,
    /// Everything else; after the last page.
    State(Box<PodState>),
    /// Frames that arrived while the pod was held.
    Frames(Vec<NetFrame>),
    /// Last part of the pod's log, with all that the pod wrote before it was frozen.
    Log(Vec<u8>),
    /// Nothing follows.
    End {
        /// Page frames sent.
        page_frames: u64,
        /// Page bytes sent.
        page_bytes: u64,
    },
}
