//! A thread's registers and the kernel pointers set up by its C library, read from outside but for
//! `clear_child_tid`, which only the thread itself is told.

use super::{CpuState, Regs, Rseq};
use crate::base::Blocker;
use crate::kernel::sched;
use crate::remote::{self, Batch, Data, Results, Stopped};
use crate::state::error::{Error, blocker};

/// PR_GET_TID_ADDRESS (`linux/prctl.h`).
const PR_GET_TID_ADDRESS: i32 = 40;
/// `__USER_CS` of 64-bit code.
const USER_CS: u64 = 0x33;

/// What the thread was asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    tid_address: Data,
}

/// Appends the thread's questions to a batch that runs in it.
pub fn ask(batch: &mut Batch) -> Asked {
    let tid_address = batch.out(8);
    batch.call(
        libc::SYS_prctl,
        &[PR_GET_TID_ADDRESS.into(), tid_address.into(), 0.into(), 0.into(), 0.into()],
    );
    Asked { tid_address }
}

/// Everything of a stopped thread of process `pid` (as the pod sees it).
pub fn cpu(
    thread: &Stopped,
    asked: Asked,
    results: &Results,
    pid: i32,
    found: &mut Vec<Blocker>,
) -> Result<CpuState, Error> {
    let found_regs = thread.portable_regs()?;
    let rseq = thread.rseq_config()?;
    let tid = thread.tid();
    if found_regs.cs != USER_CS {
        found.push(blocker(
            "32-bit",
            pid,
            "it runs 32-bit code, which cannot be carried",
            "use a 64-bit build",
        ));
    }
    if [found_regs.ds, found_regs.es, found_regs.fs, found_regs.gs].iter().any(|s| s & 4 != 0) {
        found.push(blocker("ldt", pid, "it has segments of its own (modify_ldt(2))", "no remedy"));
    }
    Ok(CpuState {
        regs: regs(&found_regs),
        xstate: thread.xstate()?,
        rseq: rseq.map(|r| Rseq { addr: r.addr, len: r.len, sig: r.sig, flags: r.flags }),
        robust_list: sched::robust_list(tid).map_err(Error::read(tid, "get_robust_list(2)"))?,
        tid_address: results.word(asked.tid_address, 0),
    })
}

fn regs(r: &remote::Regs) -> Regs {
    Regs {
        r15: r.r15,
        r14: r.r14,
        r13: r.r13,
        r12: r.r12,
        rbp: r.rbp,
        rbx: r.rbx,
        r11: r.r11,
        r10: r.r10,
        r9: r.r9,
        r8: r.r8,
        rax: r.rax,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        orig_rax: r.orig_rax,
        rip: r.rip,
        cs: r.cs,
        eflags: r.eflags,
        rsp: r.rsp,
        ss: r.ss,
        fs_base: r.fs_base,
        gs_base: r.gs_base,
        ds: r.ds,
        es: r.es,
        fs: r.fs,
        gs: r.gs,
    }
}
