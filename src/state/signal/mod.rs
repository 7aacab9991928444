//! Signals: handlers, masks, queues, alternate stacks.

pub mod collect;
pub mod restore;

use serde::{Deserialize, Serialize};

/// One `rt_sigaction` entry as the kernel keeps it (`struct kernel_sigaction`, x86-64).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct SigAction {
    /// Handler address, 0 = default, 1 = ignore.
    pub handler: u64,
    /// `SA_*` flags, SA_RESTORER included.
    pub flags: u64,
    /// Address of the restorer.
    pub restorer: u64,
    /// Mask while the handler runs.
    pub mask: u64,
}

/// A queued signal: the kernel's 128 bytes of `siginfo_t`, unchanged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct QueuedSignal {
    /// `siginfo_t`, 128 bytes.
    pub info: Vec<u8>,
}

/// What all threads share.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct ProcessSignals {
    /// Actions of signals 1..=64 (index 0 is signal 1; SIGKILL and SIGSTOP stand as default).
    pub actions: Vec<SigAction>,
    /// Process-wide pending queue, in order.
    pub pending: Vec<QueuedSignal>,
}

/// What is a thread's own.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct ThreadSignals {
    /// Blocked mask.
    pub mask: u64,
    /// Pending queue of the thread, in order.
    pub pending: Vec<QueuedSignal>,
    /// Alternate stack: (ss_sp, ss_flags, ss_size) of `stack_t`.
    pub altstack: (u64, i32, u64),
}
