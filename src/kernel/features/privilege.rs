//! Privileges: the capabilities podmig uses.

use super::{Finding, Need};
use caps::{CapSet, Capability};

/// One finding per capability.
pub fn all() -> Vec<Finding> {
    use Capability as C;
    let uses = [
        (C::CAP_SYS_ADMIN, Need::Pods, "namespaces, mounts"),
        (C::CAP_NET_ADMIN, Need::Pods, "links, nf_tables, TCP repair"),
        (C::CAP_SETUID, Need::Pods, "the user of a pod"),
        (C::CAP_SETGID, Need::Pods, "the groups of a pod"),
        (C::CAP_SETPCAP, Need::Pods, "the walls of a pod"),
        (C::CAP_KILL, Need::Pods, "ending pods of other users"),
        (C::CAP_CHOWN, Need::Pods, "terminals of other users"),
        (C::CAP_DAC_OVERRIDE, Need::Pods, "files of other users"),
        (C::CAP_SYS_CHROOT, Need::Pods, "entering mount namespaces"),
        (C::CAP_NET_RAW, Need::Moves, "frames captured and replayed"),
        (C::CAP_SYS_PTRACE, Need::Moves, "reading and writing processes"),
        (C::CAP_CHECKPOINT_RESTORE, Need::Moves, "pids chosen, map_files"),
        (C::CAP_FOWNER, Need::Some, "named sockets of other users"),
        (C::CAP_MKNOD, Need::Some, "device files, FIFOs"),
        (C::CAP_SYS_RESOURCE, Need::Some, "limits raised, prctl of mappings"),
        (C::CAP_IPC_LOCK, Need::Some, "locked memory beyond the limit"),
        (C::CAP_SYS_NICE, Need::Some, "scheduling classes"),
    ];
    let finding = |(cap, need, what): (C, Need, &str)| {
        let outcome = match caps::has_cap(None, CapSet::Effective, cap) {
            Ok(true) => Ok(what.to_owned()),
            Ok(false) => Err(format!("the caller lacks it ({what})")),
            Err(e) => Err(e.to_string()),
        };
        Finding::of(&cap.to_string().to_lowercase().replace('_', "-"), need, outcome)
    };
    uses.into_iter().map(finding).collect()
}
