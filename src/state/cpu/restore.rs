//! A thread's kernel pointers, set by the thread itself, and its final registers.

use super::{CpuState, Regs};
use crate::remote;
use crate::state::mm::hole::TASK_END;
use crate::state::script::{About, Script};

/// `__USER_CS` and `__USER_DS` of 64-bit code (`asm/segment.h`).
const USER_CS: u64 = 0x33;
const USER_DS: u64 = 0x2b;

/// The calls that register what hangs on the thread. rseq goes last: from then on the kernel writes to its area,
/// so memory must be in place.
pub fn calls(s: &mut Script, c: &CpuState) {
    if c.tid_address != 0 {
        s.must(
            "set_tid_address",
            About::Addr(c.tid_address),
            libc::SYS_set_tid_address,
            &[c.tid_address.into()],
        );
    }
    let (head, len) = c.robust_list;
    if head != 0 {
        s.must("set_robust_list", About::Addr(head), libc::SYS_set_robust_list, &[head.into(), len.into()]);
    }
    if let Some(r) = &c.rseq {
        let flags = u64::from(r.flags);
        s.must(
            "rseq (registration)",
            About::Addr(r.addr),
            libc::SYS_rseq,
            &[r.addr.into(), r.len.into(), flags.into(), r.sig.into()],
        );
    }
}

/// The registers to write last; why they are none a 64-bit program can have, otherwise.
pub fn registers(r: &Regs) -> Result<remote::Regs, String> {
    if r.cs != USER_CS || r.ss != USER_DS {
        return Err(format!("selectors cs {:#x} ss {:#x} are not those of 64-bit code", r.cs, r.ss));
    }
    for (name, value) in [("rip", r.rip), ("fs_base", r.fs_base), ("gs_base", r.gs_base)] {
        if value >= TASK_END {
            return Err(format!("{name} {value:#x} is not an address of a program"));
        }
    }
    Ok(remote::Regs {
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
        // Whatever the task did last is over: the kernel must not "restart" it and take 2 off the new rip.
        orig_rax: u64::MAX,
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_addresses_and_other_selectors_are_refused() {
        let good = Regs { cs: 0x33, ss: 0x2b, rip: 0x40_0000, ..Regs::default() };
        assert_eq!(registers(&good).unwrap().orig_rax, u64::MAX);
        for bad in [
            Regs { cs: 0x23, ..good },
            Regs { rip: 0xffff_8000_0000_0000, ..good },
            Regs { fs_base: TASK_END, ..good },
        ] {
            assert!(registers(&bad).is_err());
        }
    }
}
