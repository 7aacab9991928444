//! ptrace(2), one function per request, and waitpid(2) on tracees. Types of tasks are in `remote`; here is the thin layer.
//!
//! Every request must come from the thread that seized the tracee.

use nix::errno::Errno;
use std::ffi::c_void;
use std::mem::{MaybeUninit, size_of};

/// General purpose registers as the kernel gives them (`struct user_regs_struct`).
pub type Regs = libc::user_regs_struct;
/// One `siginfo_t`, raw.
pub type SigInfo = [u8; 128];
/// Result of every call here; the tracee's id is known to the caller.
pub type Result<T> = std::result::Result<T, Errno>;

/// `PTRACE_O_*`, those used.
pub mod option {
    /// Syscall stops are told from SIGTRAP by bit 7.
    pub const TRACESYSGOOD: i32 = libc::PTRACE_O_TRACESYSGOOD;
    /// Stop after a successful exec.
    pub const TRACEEXEC: i32 = libc::PTRACE_O_TRACEEXEC;
    /// Stop when a vfork child lets its parent go on.
    pub const TRACEVFORKDONE: i32 = libc::PTRACE_O_TRACEVFORKDONE;
    /// The tracee dies with its tracer: skeletons only, never a source.
    pub const EXITKILL: i32 = libc::PTRACE_O_EXITKILL;
    /// The tracee's seccomp filters are not run while we trace it.
    pub const SUSPEND_SECCOMP: i32 = libc::PTRACE_O_SUSPEND_SECCOMP;
}

const NT_X86_XSTATE: usize = 0x202;
const PTRACE_EVENT_STOP: i32 = 128;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_PEEKSIGINFO_SHARED: u32 = 1;
const PTRACE_SYSCALL_USER_DISPATCH_ON: u64 = 1;

/// How a tracee stands, as waitpid reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// It ended; the raw wait status.
    Ended(i32),
    /// Stopped by PTRACE_INTERRUPT (or just attached by CLONE_PTRACE).
    Interrupted,
    /// Stopped by job control with this signal.
    GroupStop(i32),
    /// About to take this signal.
    Signal(i32),
    /// At the entry or exit of a syscall (PTRACE_SYSCALL with TRACESYSGOOD).
    Syscall,
    /// `PTRACE_EVENT_*` other than STOP.
    Event(i32),
}

impl Wait {
    fn from_raw(status: i32) -> Self {
        if !libc::WIFSTOPPED(status) {
            return Wait::Ended(status);
        }
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        match event {
            PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Wait::Interrupted,
            PTRACE_EVENT_STOP => Wait::GroupStop(signal),
            0 if signal == libc::SIGTRAP | 0x80 => Wait::Syscall,
            0 => Wait::Signal(signal),
            event => Wait::Event(event),
        }
    }
}

fn request(req: libc::c_uint, tid: i32, addr: *mut c_void, data: *mut c_void) -> Result<i64> {
    // SAFETY: every caller in this file passes addr and data as the request's man page asks: integers, or pointers to
    // live buffers of the size the request writes.
    Errno::result(unsafe { libc::ptrace(req as _, tid, addr, data) })
}

fn number(n: u64) -> *mut c_void {
    n as *mut c_void
}

/// Attaches without stopping (PTRACE_SEIZE). EPERM: traced already, or not allowed; ESRCH: gone.
pub fn seize(tid: i32, options: i32) -> Result<()> {
    request(libc::PTRACE_SEIZE, tid, number(0), number(options as u64)).map(drop)
}

/// Asks for a stop; it is reported by [`wait`].
pub fn interrupt(tid: i32) -> Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, number(0), number(0)).map(drop)
}

/// Runs on; `signal` (0 = none) is delivered if the stop was one of a signal.
pub fn cont(tid: i32, signal: i32) -> Result<()> {
    request(libc::PTRACE_CONT, tid, number(0), number(signal as u64)).map(drop)
}

/// Runs on to the next syscall entry or exit.
pub fn cont_to_syscall(tid: i32) -> Result<()> {
    request(libc::PTRACE_SYSCALL, tid, number(0), number(0)).map(drop)
}

/// Lets go of a stopped tracee; a group stop in force holds it again.
pub fn detach(tid: i32, signal: i32) -> Result<()> {
    request(libc::PTRACE_DETACH, tid, number(0), number(signal as u64)).map(drop)
}

/// Replaces the options of a stopped tracee.
pub fn set_options(tid: i32, options: i32) -> Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, number(0), number(options as u64)).map(drop)
}

/// The message of the last event (new pid of a fork, exit status …).
pub fn event_message(tid: i32) -> Result<u64> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, tid, number(0), (&raw mut message).cast())?;
    Ok(message)
}

/// Registers. They are meaningful for 64-bit code; see [`is_64bit`].
pub fn regs(tid: i32) -> Result<Regs> {
    let mut regs = MaybeUninit::<Regs>::zeroed();
    request(libc::PTRACE_GETREGS, tid, number(0), regs.as_mut_ptr().cast())?;
    // SAFETY: PTRACE_GETREGS filled it; all-zero is valid as well.
    Ok(unsafe { regs.assume_init() })
}

/// Writes registers. With a new `rip`, `orig_rax` must be -1, else the kernel may take 2 off it.
pub fn set_regs(tid: i32, regs: &Regs) -> Result<()> {
    request(libc::PTRACE_SETREGS, tid, number(0), (&raw const *regs).cast_mut().cast()).map(drop)
}

/// Whether these registers run 64-bit code (`__USER_CS`); compat code has another selector.
pub fn is_64bit(regs: &Regs) -> bool {
    regs.cs == 0x33
}

/// The extended state, uncompacted XSAVE layout (`NT_X86_XSTATE`).
pub fn xstate(tid: i32) -> Result<Vec<u8>> {
    let mut size = 4096;
    loop {
        let mut buffer = vec![0u8; size];
        let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: size };
        request(libc::PTRACE_GETREGSET, tid, number(NT_X86_XSTATE as u64), (&raw mut iov).cast())?;
        if iov.iov_len < size {
            buffer.truncate(iov.iov_len);
            return Ok(buffer);
        }
        size *= 2;
    }
}

/// Writes the extended state; its length must be what this host's [`xstate`] gives (else EINVAL or EFAULT).
pub fn set_xstate(tid: i32, bytes: &[u8]) -> Result<()> {
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    request(libc::PTRACE_SETREGSET, tid, number(NT_X86_XSTATE as u64), (&raw mut iov).cast()).map(drop)
}

/// The blocked mask a program set (not the temporary one of `ppoll`, `epoll_pwait`, `sigsuspend` …).
pub fn sigmask(tid: i32) -> Result<u64> {
    let mut mask = 0u64;
    request(libc::PTRACE_GETSIGMASK, tid, number(8), (&raw mut mask).cast())?;
    Ok(mask)
}

/// Replaces the blocked mask; a temporary one is forgotten.
pub fn set_sigmask(tid: i32, mask: u64) -> Result<()> {
    let mut mask = mask;
    request(libc::PTRACE_SETSIGMASK, tid, number(8), (&raw mut mask).cast()).map(drop)
}

/// `siginfo_t` of the current stop.
pub fn siginfo(tid: i32) -> Result<SigInfo> {
    let mut info = [0u8; 128];
    request(libc::PTRACE_GETSIGINFO, tid, number(0), info.as_mut_ptr().cast())?;
    Ok(info)
}

/// Replaces `siginfo_t` of a signal stop.
pub fn set_siginfo(tid: i32, info: &SigInfo) -> Result<()> {
    request(libc::PTRACE_SETSIGINFO, tid, number(0), info.as_ptr().cast_mut().cast()).map(drop)
}

/// Everything in the thread's own queue (`shared` false) or the process's queue (true), in order, not removed.
pub fn peek_siginfo(tid: i32, shared: bool) -> Result<Vec<SigInfo>> {
    const AT_ONCE: usize = 32;
    let mut all = Vec::new();
    loop {
        let mut chunk = [[0u8; 128]; AT_ONCE];
        let mut args = libc::ptrace_peeksiginfo_args {
            off: all.len() as u64,
            flags: if shared { PTRACE_PEEKSIGINFO_SHARED } else { 0 },
            nr: AT_ONCE as i32,
        };
        let got = request(libc::PTRACE_PEEKSIGINFO, tid, (&raw mut args).cast(), chunk.as_mut_ptr().cast())?
            as usize;
        all.extend_from_slice(&chunk[..got]);
        if got < AT_ONCE {
            return Ok(all);
        }
    }
}

/// A thread's rseq registration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RseqConfig {
    /// Address of its `struct rseq`.
    pub addr: u64,
    /// Registered length in bytes.
    pub len: u32,
    /// Signature before abort handlers.
    pub sig: u32,
    /// Flags.
    pub flags: u32,
}

/// The rseq registration; None when there is none. EIO: kernel older than 5.13.
pub fn rseq(tid: i32) -> Result<Option<RseqConfig>> {
    let mut conf = MaybeUninit::<libc::ptrace_rseq_configuration>::zeroed();
    let size = size_of::<libc::ptrace_rseq_configuration>();
    request(libc::PTRACE_GET_RSEQ_CONFIGURATION, tid, number(size as u64), conf.as_mut_ptr().cast())?;
    // SAFETY: plain integers; filled by the kernel or zero.
    let conf = unsafe { conf.assume_init() };
    Ok((conf.rseq_abi_pointer != 0).then_some(RseqConfig {
        addr: conf.rseq_abi_pointer,
        len: conf.rseq_abi_size,
        sig: conf.signature,
        flags: conf.flags,
    }))
}

/// One instruction of a seccomp filter (`struct sock_filter`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BpfInsn {
    /// Operation.
    pub code: u16,
    /// Jump if true.
    pub jt: u8,
    /// Jump if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Seccomp filter `index` (0 = the one attached first); None past the last. Needs CAP_SYS_ADMIN (else EACCES).
pub fn seccomp_filter(tid: i32, index: usize) -> Result<Option<Vec<BpfInsn>>> {
    let at = number(index as u64);
    let count = match request(PTRACE_SECCOMP_GET_FILTER, tid, at, number(0)) {
        // ENOENT: no such index. EINVAL: no filter at all.
        Err(Errno::ENOENT | Errno::EINVAL) => return Ok(None),
        other => other? as usize,
    };
    let mut raw = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; count];
    request(PTRACE_SECCOMP_GET_FILTER, tid, at, raw.as_mut_ptr().cast())?;
    Ok(Some(raw.iter().map(|i| BpfInsn { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect()))
}

/// Whether the thread has syscall user dispatch on (6.4; an older kernel answers EIO, taken as "off": see Errors of `remote`).
pub fn syscall_user_dispatch(tid: i32) -> Result<bool> {
    let mut config = [0u64; 4];
    match request(
        libc::PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        number(size_of::<[u64; 4]>() as u64),
        config.as_mut_ptr().cast(),
    ) {
        Ok(_) => Ok(config[0] == PTRACE_SYSCALL_USER_DISPATCH_ON),
        Err(Errno::EIO) => Ok(false),
        Err(e) => Err(e),
    }
}

/// State of `tid`, without blocking: None when nothing new is to be told. ECHILD: not our tracee.
pub fn try_wait(tid: i32) -> Result<Option<Wait>> {
    wait_raw(tid, libc::__WALL | libc::WNOHANG).map(|found| found.map(|(_, wait)| wait))
}

/// State of any tracee or child *of the calling thread* (`__WNOTHREAD`), without blocking.
pub fn try_wait_any() -> Result<Option<(i32, Wait)>> {
    wait_raw(-1, libc::__WALL | libc::WNOHANG | libc::__WNOTHREAD)
}

fn wait_raw(tid: i32, flags: i32) -> Result<Option<(i32, Wait)>> {
    let mut status = 0;
    loop {
        // SAFETY: status is a live int.
        match Errno::result(unsafe { libc::waitpid(tid, &raw mut status, flags) }) {
            Ok(0) => return Ok(None),
            Ok(pid) => return Ok(Some((pid, Wait::from_raw(status)))),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Sends `signal` to one thread (0 = only ask whether it is there). ESRCH: gone.
pub fn tgkill(pid: i32, tid: i32, signal: i32) -> Result<()> {
    // SAFETY: integers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }).map(drop)
}

/// Lets other tasks run: a stop is often there a moment later.
pub fn yield_now() {
    if super::sched::is_hasty() {
        // A yield would be to our like only, and the task we wait for may want this very processor.
        // One microsecond is over before the processor is given away.
        std::thread::sleep(std::time::Duration::from_micros(10));
        return;
    }
    // SAFETY: no arguments.
    unsafe { libc::sched_yield() };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_are_told_apart() {
        let stop = |sig: i32, event: i32| Wait::from_raw((event << 16) | (sig << 8) | 0x7f);
        assert_eq!(stop(libc::SIGTRAP, 128), Wait::Interrupted);
        assert_eq!(stop(libc::SIGTSTP, 128), Wait::GroupStop(libc::SIGTSTP));
        assert_eq!(stop(libc::SIGTRAP | 0x80, 0), Wait::Syscall);
        assert_eq!(stop(libc::SIGTRAP, 0), Wait::Signal(libc::SIGTRAP));
        assert_eq!(stop(libc::SIGTRAP, libc::PTRACE_EVENT_EXEC), Wait::Event(libc::PTRACE_EVENT_EXEC));
        assert_eq!(Wait::from_raw(0x100), Wait::Ended(0x100));
    }

    #[test]
    fn a_stranger_is_esrch() {
        assert_eq!(seize(i32::MAX, 0), Err(Errno::ESRCH));
        assert_eq!(regs(1), Err(Errno::ESRCH));
        assert_eq!(try_wait(i32::MAX), Err(Errno::ECHILD));
    }
}
