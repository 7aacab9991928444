//! The seccomp profile of a pod: a classic BPF program, the same bytes in every pod.
//!
//! It refuses what would open the walls (mounts, namespaces, modules, kexec, bpf, perf) with EPERM and makes absent
//! (ENOSYS or as an unknown protocol) what podmig cannot carry, so that programs fall back: io_uring, MPTCP,
//! landlock, protection keys, secret memory. Everything else is allowed: the stub of a checkpoint runs behind this
//! filter (FINDINGS A7), so each call it makes must pass. `userfaultfd` passes with UFFD_USER_MODE_ONLY alone.
//! `clone3` is absent because its flags lie in memory where no filter sees them; libc falls back to `clone`.
//!
//! Calls newer than [`NEWEST`] are absent: what they open or keep is not known yet.

use libc::sock_filter;

/// Highest system call number this profile knows (Linux 6.18: file_setattr).
pub const NEWEST: u32 = 469;

/// AUDIT_ARCH_X86_64.
pub const ARCH: u32 = 0xc000_003e;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;

const NR: u32 = 0;
const ARCH_AT: u32 = 4;
/// Offset of the low half of argument `n` in `struct seccomp_data`.
const fn arg(n: u32) -> u32 {
    16 + 8 * n
}

const LD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JEQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JGT: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JSET: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RET: u16 = 0x06; // BPF_RET | BPF_K

const IPPROTO_MPTCP: u32 = 262;
const UFFD_USER_MODE_ONLY: u32 = 1;
/// Every CLONE_NEW* flag, CLONE_NEWTIME too (which shares its bit with CSIGNAL in `clone`, so not there).
const NAMESPACES: u32 = 0x7e02_0000;
const CLONE_NEWTIME: u32 = 0x80;

/// Calls that would open the walls: EPERM.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_vhangup,
];

/// Calls that look absent: ENOSYS.
const ABSENT: &[libc::c_long] = &[
    libc::SYS__sysctl,
    libc::SYS_clone3,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_lookup_dcookie,
    MAP_SHADOW_STACK,
    libc::SYS_memfd_secret,
    libc::SYS_mseal,
    libc::SYS_nfsservctl,
    libc::SYS_pkey_alloc,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
];

const OPEN_TREE_ATTR: libc::c_long = 467;
const MAP_SHADOW_STACK: libc::c_long = 453;

fn op(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn errno(e: i32) -> u32 {
    ERRNO | e.cast_unsigned()
}

fn nr(call: libc::c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

/// The program, ready for `SECCOMP_SET_MODE_FILTER`; the same instructions at every call.
pub fn profile() -> Vec<sock_filter> {
    let mut p = vec![
        op(LD, 0, 0, ARCH_AT),
        op(JEQ, 1, 0, ARCH),
        // 32-bit calls have other numbers: absent altogether.
        op(RET, 0, 0, errno(libc::ENOSYS)),
        op(LD, 0, 0, NR),
        // New calls, and the x32 ones (bit 30).
        op(JGT, 0, 1, NEWEST),
        op(RET, 0, 0, errno(libc::ENOSYS)),
    ];
    for call in REFUSED {
        p.extend([op(JEQ, 0, 1, nr(*call)), op(RET, 0, 0, errno(libc::EPERM))]);
    }
    for call in ABSENT {
        p.extend([op(JEQ, 0, 1, nr(*call)), op(RET, 0, 0, errno(libc::ENOSYS))]);
    }
    // New namespaces.
    let masked = |p: &mut Vec<sock_filter>, call: libc::c_long, mask: u32| {
        p.extend([
            op(JEQ, 0, 4, nr(call)),
            op(LD, 0, 0, arg(0)),
            op(JSET, 0, 1, mask),
            op(RET, 0, 0, errno(libc::EPERM)),
            op(RET, 0, 0, ALLOW),
        ]);
    };
    masked(&mut p, libc::SYS_clone, NAMESPACES);
    masked(&mut p, libc::SYS_unshare, NAMESPACES | CLONE_NEWTIME);
    // userfaultfd: for user mode faults only.
    p.extend([
        op(JEQ, 0, 4, nr(libc::SYS_userfaultfd)),
        op(LD, 0, 0, arg(0)),
        op(JSET, 1, 0, UFFD_USER_MODE_ONLY),
        op(RET, 0, 0, errno(libc::EPERM)),
        op(RET, 0, 0, ALLOW),
    ]);
    p.extend(sockets());
    p.push(op(RET, 0, 0, ALLOW));
    p
}

/// MPTCP, AF_ALG and AF_VSOCK as on a kernel without them.
fn sockets() -> Vec<sock_filter> {
    vec![
        op(JEQ, 0, 11, nr(libc::SYS_socket)),
        op(LD, 0, 0, arg(0)),
        op(JEQ, 1, 0, libc::AF_ALG.cast_unsigned()),
        op(JEQ, 0, 1, libc::AF_VSOCK.cast_unsigned()),
        op(RET, 0, 0, errno(libc::EAFNOSUPPORT)),
        op(JEQ, 1, 0, libc::AF_INET.cast_unsigned()),
        op(JEQ, 0, 4, libc::AF_INET6.cast_unsigned()),
        op(LD, 0, 0, arg(2)),
        op(JEQ, 0, 1, IPPROTO_MPTCP),
        op(RET, 0, 0, errno(libc::EPROTONOSUPPORT)),
        op(RET, 0, 0, ALLOW),
        op(RET, 0, 0, ALLOW),
    ]
}

/// The program as the bytes of an array of `struct sock_filter` (8 bytes each), as PTRACE_SECCOMP_GET_FILTER gives
/// a task's filter back.
pub fn bytes() -> Vec<u8> {
    encode(&profile())
}

/// Any program as bytes.
pub fn encode(program: &[sock_filter]) -> Vec<u8> {
    let mut out = Vec::with_capacity(program.len() * 8);
    for f in program {
        out.extend(f.code.to_le_bytes());
        out.extend([f.jt, f.jf]);
        out.extend(f.k.to_le_bytes());
    }
    out
}

#[cfg(test)]
mod machine;
#[cfg(test)]
mod tests;
