//! Seccomp filters of another process, evaluated here: a batch holds only calls they allow. SUSPEND_SECCOMP ends with its tracer, so it
//! cannot protect a batch that must survive us.

use super::{Error, Result, Stopped};
use crate::kernel::ptrace::{self as kernel, BpfInsn};
use crate::kernel::status::TaskStatus;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const ACTION: u32 = 0xffff_0000;

/// All filters of a thread; empty when it has none.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters(Vec<Vec<BpfInsn>>);

impl Filters {
    /// Reads them, and makes sure that the calls that end a batch are allowed.
    pub fn of(task: &Stopped, status: &TaskStatus) -> Result<Self> {
        let (pid, tid) = (status.tgid, task.tid());
        match status.seccomp {
            0 => return Ok(Self::default()),
            1 => return Err(Error::SeccompStrict { pid }),
            _ => {}
        }
        let mut filters = Vec::new();
        while let Some(filter) = kernel::seccomp_filter(tid, filters.len())
            .map_err(Error::sys(tid, "PTRACE_SECCOMP_GET_FILTER"))?
        {
            filters.push(filter);
        }
        let filters = Self(filters);
        let own = [status.pod_tgid() as u64, status.pod_tid() as u64, libc::SIGURG as u64, 0, 0, 0];
        filters.check(pid, libc::SYS_tgkill, own, 0)?;
        filters.check(pid, libc::SYS_rt_sigreturn, [0; 6], 0)?;
        Ok(filters)
    }

    /// Whether the call is allowed by each of them. `ip` is about where it is made.
    pub fn check(&self, pid: i32, nr: i64, args: [u64; 6], ip: u64) -> Result<()> {
        let data = data(nr, args, ip);
        let allowed = |f: &Vec<BpfInsn>| matches!(evaluate(f, &data) & ACTION, RET_ALLOW | RET_LOG);
        if self.0.iter().all(allowed) { Ok(()) } else { Err(Error::Seccomp { pid, nr, call: purpose(nr) }) }
    }
}

fn purpose(nr: i64) -> &'static str {
    match nr {
        libc::SYS_mmap => "mmap for the scratch area",
        libc::SYS_munmap => "munmap of the scratch area",
        libc::SYS_mprotect => "mprotect of the scratch area",
        libc::SYS_tgkill => "tgkill to itself, which ends a batch",
        libc::SYS_rt_sigreturn => "rt_sigreturn",
        _ => "a call that reads its state",
    }
}

/// `struct seccomp_data` as the words a filter loads.
fn data(nr: i64, args: [u64; 6], ip: u64) -> [u32; 16] {
    let mut words = [0u32; 16];
    words[0] = nr as u32;
    words[1] = AUDIT_ARCH_X86_64;
    (words[2], words[3]) = (ip as u32, (ip >> 32) as u32);
    for (n, arg) in args.into_iter().enumerate() {
        (words[4 + 2 * n], words[5 + 2 * n]) = (arg as u32, (arg >> 32) as u32);
    }
    words
}

/// Runs a classic BPF program as seccomp does (man 2 seccomp, linux/filter.h). What cannot be, kills: so is a program never allowed by
/// mistake.
fn evaluate(program: &[BpfInsn], data: &[u32; 16]) -> u32 {
    let (mut a, mut x, mut m) = (0u32, 0u32, [0u32; 16]);
    let mut pc = 0;
    while let Some(insn) = program.get(pc) {
        pc += 1;
        let (k, slot) = (insn.k, insn.k as usize & 15);
        match insn.code {
            // LD W ABS; LD W LEN; LD IMM; LD MEM
            0x20 => a = data.get(k as usize / 4).copied().unwrap_or(0),
            0x80 => a = 64,
            0x00 => a = k,
            0x60 => a = m[slot],
            // LDX LEN, IMM, MEM; ST; STX; TAX; TXA
            0x81 => x = 64,
            0x01 => x = k,
            0x61 => x = m[slot],
            0x02 => m[slot] = a,
            0x03 => m[slot] = x,
            0x07 => x = a,
            0x87 => a = x,
            // RET K, RET A
            0x06 => return k,
            0x16 => return a,
            0x05 => pc += k as usize,
            code if code & 7 == 4 => match alu(code, a, if code & 8 == 0 { k } else { x }) {
                Some(value) => a = value,
                None => return RET_KILL_PROCESS,
            },
            code if code & 7 == 5 => {
                let operand = if code & 8 == 0 { k } else { x };
                let taken = match code & 0xf0 {
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    0x40 => a & operand != 0,
                    _ => return RET_KILL_PROCESS,
                };
                pc += usize::from(if taken { insn.jt } else { insn.jf });
            }
            _ => return RET_KILL_PROCESS,
        }
    }
    RET_KILL_PROCESS
}

fn alu(code: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match code & 0xf0 {
        0x00 => a.wrapping_add(operand),
        0x10 => a.wrapping_sub(operand),
        0x20 => a.wrapping_mul(operand),
        0x30 => a.checked_div(operand)?,
        0x40 => a | operand,
        0x50 => a & operand,
        0x60 => a.wrapping_shl(operand),
        0x70 => a.wrapping_shr(operand),
        0x80 => a.wrapping_neg(),
        0xa0 => a ^ operand,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insn(code: u16, jt: u8, jf: u8, k: u32) -> BpfInsn {
        BpfInsn { code, jt, jf, k }
    }

    #[test]
    fn a_denying_filter_denies_what_it_names() {
        // nr == getppid ? KILL : ALLOW, only for this architecture.
        let program = vec![
            insn(0x20, 0, 0, 4),
            insn(0x15, 0, 3, AUDIT_ARCH_X86_64),
            insn(0x20, 0, 0, 0),
            insn(0x15, 1, 0, libc::SYS_getppid as u32),
            insn(0x06, 0, 0, RET_ALLOW),
            insn(0x06, 0, 0, RET_KILL_PROCESS),
        ];
        let filters = Filters(vec![program]);
        assert!(filters.check(1, libc::SYS_getpid, [0; 6], 0).is_ok());
        assert!(matches!(
            filters.check(1, libc::SYS_getppid, [0; 6], 0),
            Err(Error::Seccomp { nr: libc::SYS_getppid, .. })
        ));
    }

    #[test]
    fn arguments_are_seen_whole_and_nonsense_kills() {
        // clone's flags & CLONE_NEWUSER ? ERRNO : ALLOW
        let program = [
            insn(0x20, 0, 0, 16),
            insn(0x45, 0, 1, libc::CLONE_NEWUSER as u32),
            insn(0x06, 0, 0, 0x0005_0001),
            insn(0x06, 0, 0, RET_ALLOW),
        ];
        let with = |flags: u64| evaluate(&program, &data(56, [flags, 0, 0, 0, 0, 0], 0));
        assert_eq!(with(libc::CLONE_NEWUSER as u64 | 0x11), 0x0005_0001);
        assert_eq!(with(0x11), RET_ALLOW);
        assert_eq!(evaluate(&[insn(0xff, 0, 0, 0)], &[0; 16]), RET_KILL_PROCESS);
        assert_eq!(evaluate(&[], &[0; 16]), RET_KILL_PROCESS);
        let high = [insn(0x20, 0, 0, 20), insn(0x16, 0, 0, 0)];
        assert_eq!(evaluate(&high, &data(1, [7 << 32, 0, 0, 0, 0, 0], 0)), 7);
    }
}
