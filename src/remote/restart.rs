//! The restart rule: a stop must not be seen by the program. Pure.
//!
//! Three kinds of registers stand at a stop inside a syscall (`orig_rax` ≥ 0):
//! * `rax` −512…−514, −516: the kernel restarts the call by itself, unless a signal with a handler comes first, in
//!   which case it decides by SA_RESTART. Left alone where the kernel still has the call ([`Verdict::Kernel`]).
//! * `rax` −EINTR from a call the kernel never restarts (`epoll_wait`, `semop`, `rt_sigtimedwait`, `io_getevents`, socket calls with a
//!   timeout …): the stop itself made it. Rewound at once, unless a signal with a handler is deliverable: then it is the program's own.
//! * Anything else is a finished call.
//!
//! Calls with a temporary mask (`epoll_pwait`, `ppoll`, `sigsuspend` …) are rewound in any case: made again, they put their mask in
//! force and see the pending signal at once, under that mask, which is the only place where it may be taken.
//! A `close` is never made again: on Linux its descriptor is gone, EINTR or not.

use crate::kernel::ptrace::Regs;

const EINTR: i64 = -4;
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
/// Not in the libc crate.
const SYS_IO_PGETEVENTS: i64 = 333;
/// What the kernel turns a −516 call into when it restarts it: the number of the call is lost, its arguments are not.
pub const RESTART_SYSCALL: i64 = 219;
/// Calls that answer −516 (kernel/futex, kernel/time, fs/select.c).
const RESTART_BLOCK: [i64; 4] =
    [libc::SYS_poll, libc::SYS_nanosleep, libc::SYS_futex, libc::SYS_clock_nanosleep];
/// Length of `syscall`.
const SYSCALL_LEN: u64 = 2;

/// Calls that answer −EINTR for a mere stop and may be made again.
const NEVER_RESTARTED: [i64; 23] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    SYS_IO_PGETEVENTS,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    // Their partial work is undone before they answer EINTR.
    libc::SYS_fallocate,
    libc::SYS_getrandom,
];

const TEMPORARY_MASK: [i64; 6] = [
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    SYS_IO_PGETEVENTS,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_rt_sigsuspend,
];

/// What stands at a stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not in a call, or the call is over: go on as found.
    Done,
    /// −EINTR made by the stop itself: to be made again, at once, unless the signal is the program's own.
    Eintr,
    /// −512, −513, −514 or −516.
    Kernel(i64),
}

/// Judges registers found at a stop.
pub fn judge(regs: &Regs) -> Verdict {
    if (regs.orig_rax as i64) < 0 {
        return Verdict::Done;
    }
    match regs.rax as i64 {
        EINTR if NEVER_RESTARTED.contains(&(regs.orig_rax as i64)) => Verdict::Eintr,
        code @ (ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK) => {
            Verdict::Kernel(code)
        }
        _ => Verdict::Done,
    }
}

/// Registers that make the call again (`rip` back on `syscall`), or `regs` with no call in them when it is done.
pub fn rewound(regs: &Regs) -> Regs {
    let mut out = *regs;
    if judge(regs) != Verdict::Done {
        out.rax = regs.orig_rax;
        out.rip = regs.rip.wrapping_sub(SYSCALL_LEN);
    }
    out.orig_rax = u64::MAX;
    out
}

/// Whether the call in `regs` runs under a mask of its own.
pub fn has_temporary_mask(regs: &Regs) -> bool {
    TEMPORARY_MASK.contains(&(regs.orig_rax as i64))
}

/// Registers for another place (the target, an image), given whether a signal with a handler waits for the thread.
///
/// Without one: rewound. With one: what the kernel would do at its delivery, where that is known (−514, −516 → EINTR, −513 → again);
/// for −512 as found, `orig_rax` kept, so that the kernel there decides by SA_RESTART as it would have here.
pub fn portable(regs: &Regs, handler_waits: bool) -> Regs {
    let unknown = regs.orig_rax as i64 == RESTART_SYSCALL && judge(regs) != Verdict::Done;
    if !unknown && (!handler_waits || has_temporary_mask(regs)) {
        return rewound(regs);
    }
    let mut out = *regs;
    match judge(regs) {
        // Not known which call it was: EINTR is an answer each of them may give.
        Verdict::Kernel(_) if regs.orig_rax as i64 == RESTART_SYSCALL => out.rax = EINTR as u64,
        Verdict::Kernel(ERESTARTSYS) => return out,
        Verdict::Kernel(ERESTARTNOINTR) => return rewound(regs),
        Verdict::Kernel(_) => out.rax = EINTR as u64,
        Verdict::Eintr | Verdict::Done => {}
    }
    out.orig_rax = u64::MAX;
    out
}

/// Which call a thread is in whose registers say `restart_syscall`: it was stopped before (by a pause, a debugger, SIGSTOP), and the kernel keeps
/// the call where nobody can read it. Found in the code (`mov $NR, %eax` before `syscall`; `code` ends there), else by its arguments:
/// `word` reads the program's memory. None when in doubt.
pub fn original_call(regs: &Regs, code: &[u8], word: impl Fn(u64) -> Option<u64>) -> Option<i64> {
    const MOV_EAX: u8 = 0xb8;
    let mut plausible: Vec<i64> = RESTART_BLOCK.into_iter().filter(|&nr| fits(nr, regs, &word)).collect();
    let loaded = code.windows(5).rev().find_map(|w| {
        let nr = i64::from(u32::from_le_bytes([w[1], w[2], w[3], w[4]]));
        (w[0] == MOV_EAX && RESTART_BLOCK.contains(&nr)).then_some(nr)
    });
    // The bare nanosleep takes least to be taken for, and C libraries no longer make it.
    if let ([_, _, ..], Some(at)) =
        (&plausible[..], plausible.iter().position(|&nr| nr == libc::SYS_nanosleep))
        && loaded != Some(libc::SYS_nanosleep)
    {
        plausible.remove(at);
    }
    let sleep_by_poll = regs.rsi == 0 && is_int(regs.rdx);
    match (loaded, plausible.as_slice()) {
        (Some(nr), all) if all.contains(&nr) => Some(nr),
        (Some(libc::SYS_poll), _) if sleep_by_poll => Some(libc::SYS_poll),
        (_, [nr]) => Some(*nr),
        // A poll of nothing, to sleep: said by few arguments, so only when it cannot be another.
        (_, []) if sleep_by_poll => Some(libc::SYS_poll),
        _ => None,
    }
}

/// An `int` of at least −1, as no pointer to a stack or heap is.
fn is_int(value: u64) -> bool {
    (value >> 32 == 0 && value as i32 >= 0) || value as i32 == -1
}

/// Whether the argument registers, and what they point to, make sense for `nr`.
fn fits(nr: i64, regs: &Regs, word: &impl Fn(u64) -> Option<u64>) -> bool {
    let time = |at: u64| {
        // A time of more than 136 years is none.
        matches!((word(at), word(at.wrapping_add(8))), (Some(s), Some(ns)) if s < 1 << 32 && ns < 1_000_000_000)
    };
    match nr {
        // man 2 poll: fds, nfds, timeout in ms.
        libc::SYS_poll => {
            let entry = |n: u64| word(regs.rdi.wrapping_add(8 * n)).is_some_and(is_pollfd);
            (1..=1 << 20).contains(&regs.rsi) && is_int(regs.rdx) && (0..regs.rsi.min(256)).all(entry)
        }
        // Only relative sleeps: an absolute one answers −514.
        libc::SYS_clock_nanosleep => regs.rdi as i32 <= 11 && regs.rsi as i32 == 0 && time(regs.rdx),
        libc::SYS_nanosleep => time(regs.rdi) && (regs.rsi == 0 || word(regs.rsi).is_some()),
        libc::SYS_futex => {
            let flags = libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME;
            let command = regs.rsi as i32 & !flags;
            let waits = matches!(command, libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET);
            waits && regs.rdi.is_multiple_of(4) && word(regs.rdi & !7).is_some() && time(regs.r10)
        }
        _ => false,
    }
}

/// `struct pollfd`: a descriptor or a negative number, events asked for, events seen.
fn is_pollfd(word: u64) -> bool {
    let (fd, events, revents) = (word as i32, (word >> 32) as u16, (word >> 48) as u16);
    fd < 1 << 20 && events < 0x4000 && revents < 0x4000
}

/// Registers in which a call of the EINTR kind that was rewound has been interrupted, when a handler waits after all.
/// `at_syscall`: the two bytes at `rip` are `syscall`. None when there is nothing to interrupt.
pub fn interrupted(regs: &Regs, at_syscall: bool) -> Option<Regs> {
    let nr = regs.rax as i64;
    if !at_syscall
        || regs.orig_rax as i64 >= 0
        || !NEVER_RESTARTED.contains(&nr)
        || TEMPORARY_MASK.contains(&nr)
    {
        return None;
    }
    let mut out = *regs;
    out.rax = EINTR as u64;
    out.rip = regs.rip.wrapping_add(SYSCALL_LEN);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nr: i64, rax: i64) -> Regs {
        let mut r = zero();
        (r.orig_rax, r.rax, r.rip) = (nr as u64, rax as u64, 0x1002);
        r
    }
    fn zero() -> Regs {
        Regs {
            r15: 0,
            r14: 0,
            r13: 0,
            r12: 0,
            rbp: 0,
            rbx: 0,
            r11: 0,
            r10: 0,
            r9: 0,
            r8: 0,
            rax: 0,
            rcx: 0,
            rdx: 0,
            rsi: 0,
            rdi: 0,
            orig_rax: 0,
            rip: 0,
            cs: 0x33,
            eflags: 0,
            rsp: 0,
            ss: 0x2b,
            fs_base: 0,
            gs_base: 0,
            ds: 0,
            es: 0,
            fs: 0,
            gs: 0,
        }
    }
    fn place(r: &Regs) -> (i64, u64, i64) {
        (r.rax as i64, r.rip, r.orig_rax as i64)
    }

    #[test]
    fn calls_are_judged() {
        assert_eq!(judge(&at(libc::SYS_epoll_wait, -4)), Verdict::Eintr);
        assert_eq!(judge(&at(libc::SYS_close, -4)), Verdict::Done);
        assert_eq!(judge(&at(libc::SYS_epoll_wait, 3)), Verdict::Done);
        assert_eq!(judge(&at(libc::SYS_futex, -512)), Verdict::Kernel(-512));
        assert_eq!(judge(&at(libc::SYS_poll, -516)), Verdict::Kernel(-516));
        assert_eq!(judge(&at(-1, -4)), Verdict::Done);
    }

    #[test]
    fn rewinding_reissues() {
        assert_eq!(place(&rewound(&at(libc::SYS_poll, -516))), (libc::SYS_poll, 0x1000, -1));
        assert_eq!(place(&rewound(&at(libc::SYS_read, 5))), (5, 0x1002, -1));
    }

    #[test]
    fn a_waiting_handler_decides() {
        assert_eq!(place(&portable(&at(libc::SYS_pause, -514), true)), (-4, 0x1002, -1));
        assert_eq!(place(&portable(&at(libc::SYS_pause, -514), false)), (libc::SYS_pause, 0x1000, -1));
        assert_eq!(place(&portable(&at(libc::SYS_read, -512), true)), (-512, 0x1002, libc::SYS_read));
        assert_eq!(place(&portable(&at(libc::SYS_epoll_wait, -4), true)), (-4, 0x1002, -1));
        let ppoll = at(libc::SYS_ppoll, -514);
        assert_eq!(place(&portable(&ppoll, true)), (libc::SYS_ppoll, 0x1000, -1));
    }

    #[test]
    fn a_restarted_call_is_found_again() {
        // Memory: a timespec and a pollfd.
        let (time, fds) = (0x7f00_0000_0100, 0x7f00_0000_0200);
        let word = |at: u64| match at {
            0x7f00_0000_0100 => Some(1),
            0x7f00_0000_0108 => Some(500),
            0x7f00_0000_0200 => Some(1 << 32 | 5),
            _ => None,
        };
        let with = |rdi: u64, rsi: u64, rdx: u64, r10: u64| {
            let mut r = at(RESTART_SYSCALL, -516);
            (r.rdi, r.rsi, r.rdx, r.r10) = (rdi, rsi, rdx, r10);
            r
        };
        let clock = with(1, 0, time, 0);
        assert_eq!(original_call(&clock, &[], word), Some(libc::SYS_clock_nanosleep));
        assert_eq!(original_call(&with(fds, 1, 50, time), &[], word), Some(libc::SYS_poll));
        assert_eq!(original_call(&with(time, 0x80, 1, time), &[], word), Some(libc::SYS_futex));
        assert_eq!(original_call(&with(time, 0, 1, time), &[], word), Some(libc::SYS_futex));
        assert_eq!(original_call(&with(time, 0, 0, 0), &[], word), Some(libc::SYS_nanosleep));
        assert_eq!(original_call(&with(0, 0, 100, 0), &[], word), Some(libc::SYS_poll), "a sleep");
        assert_eq!(original_call(&with(7, 7, time, 0), &[], word), None);
        // The code decides, if it is the call's own.
        let code = [0x90, 0xb8, libc::SYS_nanosleep as u8, 0, 0, 0, 0x90];
        assert_eq!(original_call(&with(time, 0, 1, time), &code, word), Some(libc::SYS_nanosleep));
        assert_eq!(original_call(&clock, &code, word), Some(libc::SYS_clock_nanosleep));
        // In doubt a copy answers EINTR.
        assert_eq!(place(&portable(&at(RESTART_SYSCALL, -516), false)), (-4, 0x1002, -1));
    }

    #[test]
    fn a_rewound_call_can_be_interrupted_after_all() {
        let again = rewound(&at(libc::SYS_epoll_wait, -4));
        assert_eq!(interrupted(&again, true).map(|r| place(&r)), Some((-4, 0x1002, -1)));
        assert_eq!(interrupted(&again, false).map(|r| place(&r)), None);
        assert_eq!(interrupted(&rewound(&at(libc::SYS_futex, -512)), true).map(|r| place(&r)), None);
    }
}
