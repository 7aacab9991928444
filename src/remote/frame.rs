//! A signal frame made by hand: what `rt_sigreturn` reads to put a program back where it was (asm/sigcontext.h, asm/ucontext.h, x86-64).

use crate::kernel::cpuid;
use crate::kernel::ptrace::Regs;

/// Bytes of `struct rt_sigframe` before the extended state, rounded so that 64-alignment of the latter gives 16 for the frame.
const FRAME: usize = 448;
const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
/// No valid mode of `sigaltstack`: the kernel refuses it (EINVAL, not reported) and leaves the thread's alternate stack alone.
const NO_ALTSTACK: u64 = 7;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Software bytes in the legacy area, and the header behind it.
const SW_BYTES: usize = 464;
const HEADER: usize = 512;
/// AMX tile data: only there for a task that asked for it.
const XTILE_DATA: u64 = 1 << 18;

/// The extended state as a signal frame has it: sized by what this host's CPUID says of the features, with both magic words.
/// `xstate` is what `NT_X86_XSTATE` gave.
pub(super) fn fpstate(xstate: &[u8]) -> Vec<u8> {
    let word = |at: usize| {
        xstate.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()))
    };
    let mut features = word(SW_BYTES);
    if word(HEADER) & XTILE_DATA == 0 {
        features &= !XTILE_DATA;
    }
    let size = cpuid::xsave_size(features).min(xstate.len());
    let mut out = xstate[..size].to_vec();
    out[SW_BYTES..HEADER].fill(0);
    out[SW_BYTES..SW_BYTES + 4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
    out[SW_BYTES + 4..SW_BYTES + 8].copy_from_slice(&(size as u32 + 4).to_le_bytes());
    out[SW_BYTES + 8..SW_BYTES + 16].copy_from_slice(&features.to_le_bytes());
    out[SW_BYTES + 16..SW_BYTES + 20].copy_from_slice(&(size as u32).to_le_bytes());
    out.extend_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
    out
}

/// Bytes a frame with this extended state takes, alignment included.
pub(super) fn room(fpstate: &[u8]) -> usize {
    FRAME + fpstate.len().next_multiple_of(64) + 64
}

/// Highest address a frame of `room` bytes that ends at or below `limit` can have.
pub(super) fn place(limit: u64, fpstate: &[u8]) -> u64 {
    let fp = (limit - fpstate.len() as u64) & !63;
    fp - FRAME as u64
}

/// The frame's bytes for address `at` (from [`place`]). Its first word is `back`: where a `ret` with the stack pointer at `at` goes, with
/// the pointer then 8 past it, as `rt_sigreturn` wants it.
pub(super) fn build(at: u64, back: u64, regs: &Regs, mask: u64, fpstate: &[u8]) -> Vec<u8> {
    let mut words = Vec::with_capacity(FRAME / 8);
    words.push(back);
    words.extend([UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS, 0]);
    words.extend([0, NO_ALTSTACK, 0]);
    words.extend([regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15]);
    words.extend([regs.rdi, regs.rsi, regs.rbp, regs.rbx, regs.rdx, regs.rax, regs.rcx, regs.rsp]);
    words.extend([regs.rip, regs.eflags]);
    words.push(
        (regs.cs & 0xffff) | (regs.gs & 0xffff) << 16 | (regs.fs & 0xffff) << 32 | (regs.ss & 0xffff) << 48,
    );
    words.extend([0, 0, 0, 0]);
    words.push(at + FRAME as u64);
    words.extend([0; 8]);
    words.push(mask);
    words.resize(FRAME / 8, 0);
    let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    bytes.extend_from_slice(fpstate);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn fields_lie_where_the_c_library_has_them() {
        let regs = Regs {
            r15: 15,
            r14: 14,
            r13: 13,
            r12: 12,
            rbp: 105,
            rbx: 103,
            r11: 11,
            r10: 10,
            r9: 9,
            r8: 8,
            rax: 100,
            rcx: 102,
            rdx: 101,
            rsi: 106,
            rdi: 107,
            orig_rax: 0,
            rip: 120,
            cs: 0x33,
            eflags: 0x246,
            rsp: 104,
            ss: 0x2b,
            fs_base: 0,
            gs_base: 0,
            ds: 0,
            es: 0,
            fs: 1,
            gs: 2,
        };
        let at = 0x1_0000u64;
        let bytes = build(at, 77, &regs, 0xabcd, &[1, 2, 3]);
        let word = |o: usize| u64::from_le_bytes(bytes[o..o + 8].try_into().expect("eight"));
        let gregs = 8 + offset_of!(libc::ucontext_t, uc_mcontext);
        for (index, want) in [
            (libc::REG_R8, 8),
            (libc::REG_R15, 15),
            (libc::REG_RDI, 107),
            (libc::REG_RBP, 105),
            (libc::REG_RBX, 103),
            (libc::REG_RDX, 101),
            (libc::REG_RAX, 100),
            (libc::REG_RCX, 102),
            (libc::REG_RSP, 104),
            (libc::REG_RIP, 120),
            (libc::REG_EFL, 0x246),
            (libc::REG_CSGSFS, 0x2b_0001_0002_0033),
        ] {
            assert_eq!(word(gregs + 8 * index as usize), want, "greg {index}");
        }
        assert_eq!(word(gregs + 23 * 8), at + FRAME as u64);
        assert_eq!(word(8 + offset_of!(libc::ucontext_t, uc_sigmask)), 0xabcd);
        assert_eq!((word(0), &bytes[FRAME..]), (77, &[1, 2, 3][..]));
    }

    #[test]
    fn places_are_aligned_and_fit() {
        let fp = vec![0; 2700];
        for limit in [0x7fff_0000_1234u64, 0x7fff_0000_1000] {
            let at = place(limit, &fp);
            assert_eq!(((at + FRAME as u64) % 64, at % 16), (0, 0));
            assert!(at + (FRAME + fp.len()) as u64 <= limit && limit - at <= room(&fp) as u64);
        }
    }
}
