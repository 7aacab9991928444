//! Layout of what the monitor and pid 1 say to each other; one file, compiled into both.
#![allow(dead_code, reason = "each side uses its half")]

/// Where an order's memory file is mapped in pid 1 and its child: far from what programs use.
pub const BASE: u64 = 0x1f10_0000_0000;
/// Most descriptors beside an order's memory file.
pub const MAX_FDS: usize = 15;

/// Descriptor of the monitor's socket in pid 1.
pub const SOCKET: u64 = 3;
/// Descriptor of the signalfd for SIGCHLD in pid 1.
pub const SIGCHLD_FD: u64 = 4;
/// Descriptor of `/proc/sys/kernel/ns_last_pid` in pid 1, open for writing (closed where the kernel has none).
pub const LAST_PID: u64 = 5;

/// Order: fork, the child walks the list. The one order there is.
pub const FORK: u32 = 1;

/// Report: pid 1 runs.
pub const HELLO: u32 = 1;
/// Report: the order was obeyed; `pid` is the child (with its pidfd) or `-errno`.
pub const FORKED: u32 = 2;
/// Report: child `pid` ended with `status` (as in wait4) and was reaped; `childless` when none is left.
pub const EXITED: u32 = 3;
/// Report, before pid 1 was executed: making its surroundings failed; text follows.
pub const FAILED: u32 = 4;

/// An order; its memory file and further descriptors come beside it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// What to do.
    pub kind: u32,
    /// Chosen by the monitor, comes back in the report.
    pub id: u32,
    /// Length of the memory file in bytes.
    pub len: u64,
}

/// A report.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// What happened.
    pub kind: u32,
    /// The order it belongs to.
    pub id: u32,
    /// A pid in the pod, or `-errno`.
    pub pid: i32,
    /// A wait status.
    pub status: i32,
    /// 1 when pid 1 has no child left.
    pub childless: u32,
    /// 0.
    pub pad: u32,
}

/// Start of an order's memory file.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Where the calls lie, from the start of the file.
    pub calls_at: u64,
    /// How many.
    pub calls: u64,
}

/// One system call of a list.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Number.
    pub nr: u64,
    /// Arguments; pointers are absolute (the file lies at [`BASE`]).
    pub args: [u64; 6],
    /// Result, written by the child.
    pub ret: i64,
    /// [`MAY_FAIL`], [`FD_ARGS`].
    pub flags: u32,
    /// 1 once the child has begun it.
    pub done: u32,
}

/// The list goes on when this call fails.
pub const MAY_FAIL: u32 = 1;
/// Shifted left by n: argument n is an index into the order's further descriptors.
pub const FD_ARGS: u32 = 1 << 8;
