//! Capabilities a pod's processes may have (capabilities(7)).

use super::Error;
use caps::Capability;

/// Highest capability number a bounding set can name; dropping one the kernel does not know is harmless (EINVAL).
pub const LAST: u32 = 63;

const DEFAULT: [Capability; 13] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FSETID,
    Capability::CAP_FOWNER,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_KILL,
    Capability::CAP_AUDIT_WRITE,
];

/// The bounding set of a walled pod, one bit per capability: what Docker gives, less CAP_MKNOD (its device list is
/// what lies in `/dev`).
pub fn default_set() -> u64 {
    DEFAULT.iter().map(|c| c.bitmask()).fold(0, |a, b| a | b)
}

/// The bounding set for a pod: all when privileged, never more than the caller's own bounding set has.
pub fn bounding(privileged: bool) -> u64 {
    let wanted = if privileged { u64::MAX } else { default_set() };
    wanted & own_bounding()
}

/// Empties the calling thread's inheritable and ambient sets.
pub fn drop_inheritable() -> Result<(), Error> {
    for set in [caps::CapSet::Ambient, caps::CapSet::Inheritable] {
        caps::clear(None, set).map_err(|e| Error::Caps(e.to_string()))?;
    }
    Ok(())
}

/// The capabilities this process may hand on.
fn own_bounding() -> u64 {
    caps::read(None, caps::CapSet::Bounding)
        .map_or(0, |set| set.iter().map(|c| c.bitmask()).fold(0, |a, b| a | b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_opens_the_walls_is_in_the_default() {
        let set = default_set();
        assert_eq!(set.count_ones(), 13);
        for c in [
            Capability::CAP_SYS_ADMIN,
            Capability::CAP_SYS_PTRACE,
            Capability::CAP_SYS_MODULE,
            Capability::CAP_SYS_RAWIO,
            Capability::CAP_MKNOD,
            Capability::CAP_NET_ADMIN,
            Capability::CAP_DAC_READ_SEARCH,
            Capability::CAP_BPF,
            Capability::CAP_CHECKPOINT_RESTORE,
        ] {
            assert_eq!(set & c.bitmask(), 0, "{c}");
        }
        assert_eq!(bounding(false) & !set, 0);
    }
}
