//! pid 1 of a pod: a static program of its own, without libc, built by `build.rs` and embedded into podmig.
//!
//! It does two things. It reaps: every child that ended is reported to the monitor. And it forks: on an order it
//! maps the list of system calls that comes with it, forks, and the child walks the list, which ends in execve.
//! Everything else about a new process (terminal, credentials, limits, walls) is in the list, made by the monitor.
//! When the monitor's socket closes, pid 1 ends and with it, by the kernel, the pod.
//!
//! It can be stopped at any instruction: it holds no lock, keeps nothing between two messages, and restarts its
//! waits. Descriptors: 0 to 2 `/dev/null`, 3 the monitor's socket, 4 a signalfd for SIGCHLD (all signals are
//! blocked), 5 `ns_last_pid` (not used here; for whoever builds a pod's processes through pid 1).
//! The layout of messages and orders is `wire.rs`, shared with podmig itself.
#![no_std]
#![no_main]

#[path = "wire.rs"]
mod wire;

use core::arch::{asm, global_asm};
use core::ptr::{addr_of, addr_of_mut};
use wire::{BASE, Call, FD_ARGS, Header, MAX_FDS, Order, Report, SOCKET, SIGCHLD_FD, LAST_PID};

global_asm!(
    ".globl _start",
    "_start:",
    "xor %ebp, %ebp",
    "and $-16, %rsp",
    "call {main}",
    "ud2",
    // What a builder of processes runs its first and last call through.
    ".globl podmig_syscall",
    "podmig_syscall:",
    "syscall",
    "ret",
    main = sym main,
    options(att_syntax)
);

/// One system call.
fn call(nr: u64, a: [u64; 6]) -> i64 {
    let ret;
    // SAFETY: the callers below pass pointers to live memory of the size the call wants; a call from an order is the
    // monitor's to answer for.
    unsafe {
        asm!("syscall", inlateout("rax") nr => ret, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3],
            in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}

const READ: u64 = 0;
const CLOSE: u64 = 3;
const POLL: u64 = 7;
const MMAP: u64 = 9;
const MUNMAP: u64 = 11;
const SENDMSG: u64 = 46;
const RECVMSG: u64 = 47;
const CLONE: u64 = 56;
const WAIT4: u64 = 61;
const FCNTL: u64 = 72;
const PRCTL: u64 = 157;
const EXIT_GROUP: u64 = 231;
const WAITID: u64 = 247;

const EINTR: i64 = -4;
const CLONE_PIDFD: u64 = 0x1000;
const SIGCHLD: u64 = 17;
const WNOHANG: u64 = 1;
/// WEXITED | WNOWAIT.
const PEEK: u64 = 0x0100_0004;
const WALL: u64 = 0x4000_0000;

#[repr(C)]
struct PollFd {
    fd: i32,
    events: i16,
    revents: i16,
}

#[repr(C)]
struct IoVec {
    base: u64,
    len: u64,
}

#[repr(C)]
struct MsgHdr {
    name: u64,
    name_len: u64,
    iov: u64,
    iov_len: u64,
    control: u64,
    control_len: u64,
    flags: u64,
}

/// A control message that carries descriptors (SOL_SOCKET, SCM_RIGHTS).
#[repr(C)]
struct Rights {
    len: u64,
    level: i32,
    kind: i32,
    fds: [i32; MAX_FDS + 1],
}

fn exit(code: u64) -> ! {
    loop {
        call(EXIT_GROUP, [code, 0, 0, 0, 0, 0]);
    }
}

extern "C" fn main() -> ! {
    for fd in [SOCKET, SIGCHLD_FD, LAST_PID] {
        call(FCNTL, [fd, 2, 1, 0, 0, 0]); // F_SETFD, FD_CLOEXEC
    }
    // Executed by descriptor, it would be called by the descriptor or the memory file.
    call(PRCTL, [15, c"podmig-init".as_ptr() as u64, 0, 0, 0, 0]); // PR_SET_NAME
    report(wire::HELLO, 0, 1, 0, 0, None);
    let mut fds = [PollFd { fd: SOCKET as i32, events: 1, revents: 0 }, PollFd { fd: SIGCHLD_FD as i32, events: 1, revents: 0 }];
    loop {
        call(POLL, [addr_of_mut!(fds) as u64, 2, u64::MAX, 0, 0, 0]);
        if fds[1].revents != 0 {
            let mut info = [0u64; 16];
            call(READ, [SIGCHLD_FD, addr_of_mut!(info) as u64, 128, 0, 0, 0]);
            reap();
        }
        if fds[0].revents != 0 {
            obey();
        }
    }
}

/// Reaps every child that has ended.
fn reap() {
    loop {
        let mut status = 0i32;
        let pid = call(WAIT4, [u64::MAX, addr_of_mut!(status) as u64, WNOHANG | WALL, 0, 0, 0]);
        if pid == EINTR {
            continue;
        }
        if pid <= 0 {
            return;
        }
        // Whether any child is left: the kernel says ECHILD, without reaping (waitid with WNOWAIT), when none is.
        let left = call(WAITID, [0, 0, 0, PEEK | WNOHANG | WALL, 0, 0]);
        report(wire::EXITED, 0, pid as i32, status, u32::from(left < 0), None);
    }
}

/// Takes one order from the monitor.
fn obey() {
    let mut order = Order { kind: 0, id: 0, len: 0 };
    let mut rights = Rights { len: 0, level: 0, kind: 0, fds: [-1; MAX_FDS + 1] };
    let mut iov = IoVec { base: addr_of_mut!(order) as u64, len: size_of::<Order>() as u64 };
    let mut msg = MsgHdr {
        name: 0,
        name_len: 0,
        iov: addr_of_mut!(iov) as u64,
        iov_len: 1,
        control: addr_of_mut!(rights) as u64,
        control_len: size_of::<Rights>() as u64,
        flags: 0,
    };
    let got = call(RECVMSG, [SOCKET, addr_of_mut!(msg) as u64, 0x4000_0000 /* MSG_CMSG_CLOEXEC */, 0, 0, 0]);
    if got == EINTR {
        return;
    }
    if got <= 0 {
        // The monitor is gone: the pod ends.
        exit(1);
    }
    let count = if msg.control_len >= 16 { (rights.len.saturating_sub(16) / 4) as usize } else { 0 };
    let fds = &rights.fds[..if count > MAX_FDS + 1 { 0 } else { count }];
    if got as usize == size_of::<Order>() && order.kind == wire::FORK && !fds.is_empty() {
        fork(&order, fds);
    }
    for fd in fds {
        call(CLOSE, [*fd as u64, 0, 0, 0, 0, 0]);
    }
}

/// Forks; the child walks the list in the memory file `fds[0]`.
fn fork(order: &Order, fds: &[i32]) {
    const SHARED_FIXED: u64 = 0x11;
    let at = call(MMAP, [BASE, order.len, 3, SHARED_FIXED, fds[0] as u64, 0]);
    if at != BASE as i64 {
        report(wire::FORKED, order.id, at as i32, 0, 0, None);
        return;
    }
    let mut pidfd = -1i32;
    let pid = call(CLONE, [CLONE_PIDFD | SIGCHLD, 0, addr_of_mut!(pidfd) as u64, 0, 0, 0]);
    if pid == 0 {
        walk(&fds[1..]);
        exit(127);
    }
    report(wire::FORKED, order.id, pid as i32, 0, 0, if pid > 0 { Some(pidfd) } else { None });
    if pid > 0 {
        call(CLOSE, [pidfd as u64, 0, 0, 0, 0, 0]);
    }
    call(MUNMAP, [BASE, order.len, 0, 0, 0, 0]);
}

/// The child: does each call of the list, stores its result, stops at the first failure that is not allowed for.
fn walk(fds: &[i32]) {
    let header = BASE as *const Header;
    // SAFETY: the monitor laid a header and `calls` calls into the mapping of `len` bytes at BASE.
    unsafe {
        let calls = (BASE + (*header).calls_at) as *mut Call;
        for i in 0..(*header).calls as usize {
            let c = calls.add(i);
            let mut args = (*c).args;
            for (n, arg) in args.iter_mut().enumerate() {
                if (*c).flags & (FD_ARGS << n) != 0 {
                    *arg = fds.get(*arg as usize).map_or(u64::MAX, |fd| *fd as u64);
                }
            }
            (*c).done = 1;
            let ret = call((*c).nr, args);
            (*c).ret = ret;
            if ret < 0 && (*c).flags & wire::MAY_FAIL == 0 {
                return;
            }
        }
    }
}

/// Tells the monitor; blocks while it does not read.
fn report(kind: u32, id: u32, pid: i32, status: i32, childless: u32, fd: Option<i32>) {
    let message = Report { kind, id, pid, status, childless, pad: 0 };
    let mut rights = Rights { len: 20, level: 1, kind: 1, fds: [-1; MAX_FDS + 1] };
    rights.fds[0] = fd.unwrap_or(-1);
    let iov = IoVec { base: addr_of!(message) as u64, len: size_of::<Report>() as u64 };
    let msg = MsgHdr {
        name: 0,
        name_len: 0,
        iov: addr_of!(iov) as u64,
        iov_len: 1,
        control: if fd.is_some() { addr_of!(rights) as u64 } else { 0 },
        control_len: if fd.is_some() { 24 } else { 0 },
        flags: 0,
    };
    while call(SENDMSG, [SOCKET, addr_of!(msg) as u64, 0x4000 /* MSG_NOSIGNAL */, 0, 0, 0]) == EINTR {}
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(101)
}

/// The compiler may ask for these.
#[unsafe(no_mangle)]
extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the compiler passes valid memory of `len` bytes.
    unsafe { asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8, options(nostack)) };
    to
}

/// The compiler may ask for these.
#[unsafe(no_mangle)]
extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the compiler passes valid memory of `len` bytes, without overlap.
    unsafe { asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack)) };
    to
}
