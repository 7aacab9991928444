//! Credentials from `/proc/P/task/T/status`, and what seccomp filters stand over a thread.

use super::{Cred, Seccomp};
use crate::base::Blocker;
use crate::kernel::procfs::Status;
use crate::state::error::blocker;

/// The credentials in a thread's `status`. `securebits` is for the thread itself to tell (PR_GET_SECUREBITS);
/// `seccomp` likewise is what its filters were found to be.
pub fn cred(status: &Status, securebits: u32, seccomp: Seccomp) -> Cred {
    Cred {
        uids: status.uids,
        gids: status.gids,
        groups: status.groups.clone(),
        cap_inh: status.caps[0],
        cap_prm: status.caps[1],
        cap_eff: status.caps[2],
        cap_bnd: status.caps[3],
        cap_amb: status.caps[4],
        securebits,
        no_new_privs: status.no_new_privs,
        seccomp,
    }
}

/// What can be said of seccomp without stopping the thread: how many filters there may be. `walled`: the pod has
/// podmig's own profile over every process.
pub fn seccomp_by_count(status: &Status, pid: i32, walled: bool) -> Option<Blocker> {
    let allowed = u32::from(walled);
    let own = match status.seccomp {
        0 => None,
        2 if status.seccomp_filters.is_none_or(|n| n <= allowed) && walled => None,
        1 => Some("it runs in seccomp's strict mode"),
        _ => Some("it has a seccomp filter of its own"),
    };
    own.map(foreign(pid))
}

/// The blocker of a thread with a filter other than podmig's.
pub fn foreign(pid: i32) -> impl FnOnce(&str) -> Blocker {
    move |message| {
        let remedy = "turn off the program's own sandbox (for nginx, redis: the unit's SystemCallFilter)";
        blocker("seccomp", pid, format!("{message}, which cannot be carried yet"), remedy)
    }
}

/// What the filters of a thread are, from the programs read (PTRACE_SECCOMP_GET_FILTER), each as a list of
/// instructions `(code, jt, jf, k)`; `profile` is podmig's own.
pub fn seccomp<I: PartialEq>(filters: &[Vec<I>], profile: &[I]) -> Option<Seccomp> {
    match filters {
        [] => Some(Seccomp::None),
        [one] if one == profile => Some(Seccomp::PodProfile),
        _ => None,
    }
}
