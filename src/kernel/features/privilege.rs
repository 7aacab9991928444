//! Privileges: the capabilities podmig uses.

use super::{Finding, Need};
use caps::{CapSet, Capability};

/// One finding per capability.
pub fn all() -> Vec<Finding> {
    use Capability as C;
    let uses = [
        (C::CAP_SYS_ADMIN, Need::Pods, "namespaces and mounts", "no pod starts"),
        (
            C::CAP_NET_ADMIN,
            Need::Pods,
            "links, nf_tables, TCP repair",
            "no pod starts but with --net host or none",
        ),
        (C::CAP_SETUID, Need::Pods, "the user of a pod", "no pod starts"),
        (C::CAP_SETGID, Need::Pods, "the groups of a pod", "no pod starts"),
        (C::CAP_SETPCAP, Need::Pods, "the walls of a pod", "no pod starts"),
        (C::CAP_KILL, Need::Pods, "ending pods of other users", "pods of other users are not ended"),
        (C::CAP_CHOWN, Need::Pods, "terminals of other users", "no -t for other users"),
        (C::CAP_DAC_OVERRIDE, Need::Pods, "files of other users", "no pod of another user starts"),
        (C::CAP_SYS_CHROOT, Need::Pods, "entering mount namespaces", "no exec, no moves"),
        (C::CAP_NET_RAW, Need::Moves, "frames captured and replayed", "no moves"),
        (C::CAP_SYS_PTRACE, Need::Moves, "reading and writing processes", "no moves"),
        (C::CAP_CHECKPOINT_RESTORE, Need::Moves, "pids chosen, map_files", "CAP_SYS_ADMIN is used"),
        (C::CAP_FOWNER, Need::Some, "named sockets of other users", "their sockets are not restored"),
        (C::CAP_MKNOD, Need::Some, "device files and FIFOs", "they are not restored"),
        (
            C::CAP_SYS_RESOURCE,
            Need::Some,
            "limits raised above the caller's",
            "a pod's limits cannot exceed the caller's",
        ),
        (C::CAP_IPC_LOCK, Need::Some, "locked memory beyond the limit", "such memory is not restored"),
        (C::CAP_SYS_NICE, Need::Some, "scheduling classes", "real-time programs are not restored"),
    ];
    let finding = |(cap, need, purpose, without): (C, Need, &str, &str)| {
        let outcome = match caps::has_cap(None, CapSet::Effective, cap) {
            Ok(true) => Ok("held".to_owned()),
            Ok(false) => Err("the caller lacks it".to_owned()),
            Err(e) => Err(e.to_string()),
        };
        let name = cap.to_string().to_lowercase().replace('_', "-");
        Finding::of(&name, need, (purpose, without), outcome)
    };
    uses.into_iter().map(finding).collect()
}
