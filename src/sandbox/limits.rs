//! Resource limits of podmig's own processes (getrlimit(2)).

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Lifts every resource limit of the calling process as far as it may: a monitor started from a shell with `ulimit -t`
/// or `-v` must not die of it, nor a restored process meet a bound its definition does not have. Limits that cannot be
/// lifted stay as they are.
pub fn lift() {
    for resource in [
        Resource::RLIMIT_AS,
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_CPU,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_MEMLOCK,
        Resource::RLIMIT_MSGQUEUE,
        Resource::RLIMIT_NOFILE,
        Resource::RLIMIT_NPROC,
        Resource::RLIMIT_RSS,
        Resource::RLIMIT_SIGPENDING,
        Resource::RLIMIT_STACK,
    ] {
        let Ok((_, hard)) = getrlimit(resource) else { continue };
        // Above the hard limit only with CAP_SYS_RESOURCE; the number of descriptors never without bound.
        if setrlimit(resource, RLIM_INFINITY, RLIM_INFINITY).is_err() {
            let _ = setrlimit(resource, hard, hard);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limits_reach_the_hard_ones() {
        lift();
        for resource in [Resource::RLIMIT_NOFILE, Resource::RLIMIT_CORE, Resource::RLIMIT_CPU] {
            let (soft, hard) = getrlimit(resource).unwrap();
            assert_eq!(soft, hard, "{resource:?}");
        }
    }
}
