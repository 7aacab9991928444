//! Credentials and the walls a thread stands behind.

pub mod collect;
pub mod restore;

use serde::{Deserialize, Serialize};

/// Seccomp as met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub enum Seccomp {
    /// None.
    #[default]
    None,
    /// Exactly podmig's own profile (`sandbox::seccomp`), put on again at the target.
    PodProfile,
}

/// Credentials of one thread (`/proc/P/task/T/status`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct Cred {
    /// Real, effective, saved, file-system uid.
    pub uids: [u32; 4],
    /// Real, effective, saved, file-system gid.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable capabilities.
    pub cap_inh: u64,
    /// Permitted.
    pub cap_prm: u64,
    /// Effective.
    pub cap_eff: u64,
    /// Bounding set.
    pub cap_bnd: u64,
    /// Ambient.
    pub cap_amb: u64,
    /// `PR_GET_SECUREBITS`.
    pub securebits: u32,
    /// `no_new_privs`.
    pub no_new_privs: bool,
    /// Seccomp.
    pub seccomp: Seccomp,
}
