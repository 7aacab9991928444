//! What a verb needs of whoever calls it, named when it is missing.

use crate::base::{Failure, Kind};
use caps::{CapSet, Capability};

/// What building or taking apart a pod needs.
const NEEDED: [Capability; 12] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_KILL,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_SYS_CHROOT,
];

/// Fails (exit 1) unless the caller may build pods; the capabilities missing are named.
pub fn root_for(verb: &str) -> Result<(), Failure> {
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|c| !caps::has_cap(None, CapSet::Effective, **c).unwrap_or(false))
        .map(ToString::to_string)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(
            Failure::new(Kind::Failed, verb, "it needs root").remedy("run it as root (`sudo podmig …`)")
        );
    }
    Err(Failure::new(Kind::Failed, verb, format!("root lacks capabilities here: {}", missing.join(" ")))
        .remedy("run it outside a container, or give the container these capabilities"))
}
