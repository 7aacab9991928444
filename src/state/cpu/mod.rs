//! A thread's registers, extended state, and the per-thread kernel pointers set up by its C library.

pub mod collect;
pub mod restore;
pub mod xstate;

use serde::{Deserialize, Serialize};

/// General purpose registers, in the order of `struct user_regs_struct` (x86-64, `sys/user.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
#[allow(missing_docs)]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

/// Registration of restartable sequences (`PTRACE_GET_RSEQ_CONFIGURATION`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rseq {
    /// Address of the thread's `struct rseq`.
    pub addr: u64,
    /// Registered length in bytes.
    pub len: u32,
    /// Signature before abort handlers.
    pub sig: u32,
    /// Flags of the registration.
    pub flags: u32,
}

/// Everything a thread needs to go on at its next instruction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CpuState {
    /// Registers **to be written back exactly as they are**, `orig_rax` included. They are rewound for restart already
    /// (DESIGN 3): a call that was interrupted by the stop alone is made again. A call that a waiting signal will
    /// interrupt keeps its number in `orig_rax`, and the kernel decides about it.
    pub regs: Regs,
    /// XSAVE area as `NT_X86_XSTATE` gives it.
    pub xstate: Vec<u8>,
    /// rseq registration, if any.
    pub rseq: Option<Rseq>,
    /// `get_robust_list`: head address and length, 0 if none.
    pub robust_list: (u64, u64),
    /// `PR_GET_TID_ADDRESS` (clear_child_tid), 0 if none.
    pub tid_address: u64,
}
