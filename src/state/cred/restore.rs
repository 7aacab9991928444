//! Credentials put on in the thread itself, by raw calls (the kernel keeps them per thread, `capabilities(7)`).

use super::{Cred, Seccomp};
use crate::sandbox::seccomp;
use crate::state::script::{About, Script};

const PR_SET_SECUREBITS: u64 = libc::PR_SET_SECUREBITS as u64;
const PR_CAPBSET_DROP: u64 = libc::PR_CAPBSET_DROP as u64;
const PR_CAP_AMBIENT: u64 = libc::PR_CAP_AMBIENT as u64;
const PR_SET_NO_NEW_PRIVS: u64 = libc::PR_SET_NO_NEW_PRIVS as u64;
/// `SECBIT_NO_SETUID_FIXUP`: changes of uid leave the capabilities alone.
const NO_SETUID_FIXUP: u64 = 1 << 2;
const CAP_SETPCAP: u64 = 1 << 8;
/// `SECCOMP_FILTER_FLAG_TSYNC`, and `…_TSYNC_ESRCH`: a thread that cannot take it is an error (seccomp(2)).
const TSYNC: u64 = 1;
const TSYNC_ESRCH: u64 = 1 << 4;
const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// What the thread has before: what init has, from which every skeleton stems.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Before {
    /// Bounding set.
    pub bounding: u64,
    /// Permitted set.
    pub permitted: u64,
}

/// What of `c` cannot be given here, in words; empty when all can.
pub fn beyond(c: &Cred, before: Before) -> Vec<String> {
    let mut missing = Vec::new();
    let permitted = c.cap_prm & !before.permitted;
    if permitted != 0 {
        missing.push(format!("capabilities {permitted:#x} (permitted) are not to be had here"));
    }
    if c.cap_eff & !c.cap_prm != 0 {
        missing.push(format!(
            "effective capabilities {:#x} go beyond the permitted {:#x}",
            c.cap_eff, c.cap_prm
        ));
    }
    if c.cap_amb & !(c.cap_prm & c.cap_inh) != 0 {
        missing.push(format!("ambient capabilities {:#x} are not both permitted and inheritable", c.cap_amb));
    }
    missing
}

/// Who puts the pod's filter on a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filter {
    /// It does so itself.
    Own,
    /// It does so for every thread of its process (SECCOMP_FILTER_FLAG_TSYNC): none of them has a filter yet.
    ForAll,
    /// Another thread does.
    Another,
}

/// Takes capabilities out of the bounding set of the calling thread and those it will make.
pub fn bound(s: &mut Script, before: Before, bounding: u64) {
    for cap in bits(before.bounding & !bounding) {
        s.must(
            "prctl(PR_CAPBSET_DROP)",
            About::Number(cap as i64),
            libc::SYS_prctl,
            &[PR_CAPBSET_DROP.into(), cap.into()],
        );
    }
}

/// The calls that give a thread its credentials. It must still have CAP_SETUID, SETGID, SETPCAP and SYS_ADMIN;
/// filters do not run yet (PTRACE_O_SUSPEND_SECCOMP). Afterwards `pdeath_signal` and `dumpable` are reset.
pub fn calls(s: &mut Script, c: &Cred, before: Before, by: Filter) {
    if c.no_new_privs {
        s.must(
            "prctl(PR_SET_NO_NEW_PRIVS)",
            About::Nothing,
            libc::SYS_prctl,
            &[PR_SET_NO_NEW_PRIVS.into(), 1u64.into()],
        );
    }
    if c.seccomp == Seccomp::PodProfile && by != Filter::Another {
        filter(s, by == Filter::ForAll);
    }
    let groups: Vec<u8> = c.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    let list = s.data(&groups);
    s.must("setgroups", About::Nothing, libc::SYS_setgroups, &[c.groups.len().into(), list.into()]);
    securebits(s, NO_SETUID_FIXUP);
    let [r, e, v, f] = c.gids;
    s.must("setresgid", About::Number(r.into()), libc::SYS_setresgid, &[r.into(), e.into(), v.into()]);
    s.must("setfsgid", About::Number(f.into()), libc::SYS_setfsgid, &[f.into()]);
    let [r, e, v, f] = c.uids;
    s.must("setresuid", About::Number(r.into()), libc::SYS_setresuid, &[r.into(), e.into(), v.into()]);
    s.must("setfsuid", About::Number(f.into()), libc::SYS_setfsuid, &[f.into()]);
    bound(s, before, c.cap_bnd);
    // Ambient capabilities and securebits want SETPCAP, so it is the last to go.
    capset(
        s,
        c.cap_eff | (CAP_SETPCAP & before.permitted),
        c.cap_prm | (CAP_SETPCAP & before.permitted),
        c.cap_inh,
    );
    ambient(s, 4, 0); // PR_CAP_AMBIENT_CLEAR_ALL
    for cap in bits(c.cap_amb) {
        ambient(s, 2, cap); // PR_CAP_AMBIENT_RAISE
    }
    securebits(s, c.securebits.into());
    capset(s, c.cap_eff, c.cap_prm, c.cap_inh);
}

fn bits(set: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |n| set & (1 << n) != 0)
}

fn securebits(s: &mut Script, bits: u64) {
    s.must(
        "prctl(PR_SET_SECUREBITS)",
        About::Number(bits as i64),
        libc::SYS_prctl,
        &[PR_SET_SECUREBITS.into(), bits.into()],
    );
}

fn ambient(s: &mut Script, verb: u64, cap: u64) {
    s.must(
        "prctl(PR_CAP_AMBIENT)",
        About::Number(cap as i64),
        libc::SYS_prctl,
        &[PR_CAP_AMBIENT.into(), verb.into(), cap.into(), 0u64.into(), 0u64.into()],
    );
}

fn capset(s: &mut Script, eff: u64, prm: u64, inh: u64) {
    let mut header = LINUX_CAPABILITY_VERSION_3.to_le_bytes().to_vec();
    header.extend([0; 4]);
    let header = s.data(&header);
    let low = [eff, prm, inh].map(|set| set as u32);
    let high = [eff, prm, inh].map(|set| (set >> 32) as u32);
    let sets: Vec<u8> = low.iter().chain(&high).flat_map(|w| w.to_le_bytes()).collect();
    let sets = s.data(&sets);
    s.must("capset", About::Nothing, libc::SYS_capset, &[header.into(), sets.into()]);
}

fn filter(s: &mut Script, for_all: bool) {
    let flags = if for_all { TSYNC | TSYNC_ESRCH } else { 0 };
    let program = seccomp::bytes();
    let mut fprog = ((program.len() / 8) as u64).to_le_bytes().to_vec();
    fprog.extend([0; 8]);
    let (program, fprog) = (s.data(&program), s.data(&fprog));
    s.pointer(fprog, 8, program, 0);
    s.must(
        "seccomp(SECCOMP_SET_MODE_FILTER)",
        About::Nothing,
        libc::SYS_seccomp,
        &[u64::from(libc::SECCOMP_SET_MODE_FILTER).into(), flags.into(), fprog.into()],
    );
}
