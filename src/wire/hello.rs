//! The hello: versions and the facts of a host, compared by pure functions before anything is sent.

use crate::base::Blocker;
use crate::policy::cpu::Level;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Protocol version spoken, and the oldest understood.
pub const VERSION: (u16, u16) = (1, 1);

/// Who speaks and what its host is like.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest and newest protocol version.
    pub versions: (u16, u16),
    /// Version of podmig.
    pub podmig: String,
    /// Host name.
    pub host: String,
    /// `uname -r`.
    pub kernel: String,
    /// CPU flags as the kernel lists them.
    pub cpu_flags: BTreeSet<String>,
    /// Size of the XSAVE area in bytes.
    pub xsave_size: u32,
    /// Size and hash of the vdso image.
    pub vdso: (u64, u64),
    /// CLOCK_REALTIME when this was written, nanoseconds.
    pub realtime_ns: i64,
    /// Largest pid + 1.
    pub pid_max: i32,
    /// Memory that could be given to new pods, bytes.
    pub memory: u64,
}

/// Highest version both speak.
pub fn agree(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let top = ours.1.min(theirs.1);
    (top >= ours.0.max(theirs.0)).then_some(top)
}

/// What of the source a pod may use and the target lacks. `level`: the pod is held to it, and uses nothing beyond.
pub fn blockers(source: &Hello, target: &Hello, level: Option<Level>) -> Vec<Blocker> {
    let mut found = Vec::new();
    let mut add = |kind: &str, message: String, remedy: &str| {
        found.push(Blocker {
            kind: kind.into(),
            pid: None,
            fd: None,
            path: None,
            message,
            remedy: remedy.into(),
        });
    };
    if let Some(level) = level {
        let missing: Vec<&str> = level.flags().filter(|f| !target.cpu_flags.contains(*f)).collect();
        if !missing.is_empty() {
            let message =
                format!("{} lacks CPU features of {}: {}", target.host, level.name(), missing.join(" "));
            add("cpu", message, "move to a host whose CPU has them");
        }
        return found;
    }
    let missing: Vec<&str> =
        source.cpu_flags.difference(&target.cpu_flags).map(String::as_str).filter(|f| matters(f)).collect();
    if !missing.is_empty() {
        let message = format!("{} lacks CPU features the pod may use: {}", target.host, missing.join(" "));
        add("cpu", message, "move to a host whose CPU has them, or start the pod with --cpu LEVEL");
    }
    // A trampoline of glibc saves the extended state in a room of the size that the source's CPU told; by XSAVE (not
    // XSAVEC) a CPU with more state writes more than that.
    if source.xsave_size < target.xsave_size && !source.cpu_flags.contains("xsavec") {
        let message = format!(
            "the XSAVE area is {} bytes here, {} on {}, and programs started here use XSAVE",
            source.xsave_size, target.xsave_size, target.host
        );
        add("cpu", message, "start the pod with --cpu LEVEL");
    }
    found
}

/// Flags that user programs can see and use (the rest describe the kernel's own use or the virtual machine).
fn matters(flag: &str) -> bool {
    const USED: &[&str] = &[
        "sse",
        "sse2",
        "pni",
        "ssse3",
        "sse4_1",
        "sse4_2",
        "popcnt",
        "aes",
        "pclmulqdq",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "bmi1",
        "bmi2",
        "movbe",
        "lzcnt",
        "abm",
        "adx",
        "sha_ni",
        "rdrand",
        "rdseed",
        "xsave",
        "xsavec",
        "fsgsbase",
        "rtm",
        "cx16",
        "vaes",
        "vpclmulqdq",
        "gfni",
        "clwb",
        "movdiri",
        "movdir64b",
        "waitpkg",
        "serialize",
        "rdpid",
        "rdtscp",
        "erms",
        "fsrm",
        "sse4a",
        "xop",
        "tbm",
        "fma4",
    ];
    USED.contains(&flag) || flag.starts_with("avx512") || flag.starts_with("avx_") || flag.starts_with("amx")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(flags: &[&str]) -> Hello {
        Hello {
            versions: VERSION,
            podmig: "x".into(),
            host: "h".into(),
            kernel: "6".into(),
            cpu_flags: flags.iter().map(|f| (*f).to_owned()).collect(),
            xsave_size: 832,
            vdso: (8192, 1),
            realtime_ns: 0,
            pid_max: 32768,
            memory: 1 << 30,
        }
    }

    #[test]
    fn versions_meet_or_do_not() {
        assert_eq!(agree((1, 2), (2, 3)), Some(2));
        assert_eq!(agree((1, 1), (2, 3)), None);
        assert_eq!(agree((3, 4), (2, 3)), Some(3));
    }

    #[test]
    fn a_missing_feature_is_named_and_a_mere_kernel_flag_is_not() {
        assert!(blockers(&host(&["avx2", "hypervisor"]), &host(&["avx2"]), None).is_empty());
        let found = blockers(&host(&["avx2", "avx512f"]), &host(&["avx2"]), None);
        assert!(found[0].message.contains("avx512f") && found[0].kind == "cpu");
        // Another kernel is no hindrance.
        let mut other = host(&["avx2"]);
        other.vdso.1 = 2;
        assert!(blockers(&host(&["avx2"]), &other, None).is_empty());
    }

    #[test]
    fn a_pod_held_to_a_level_needs_that_level_only() {
        let v3: Vec<&str> = Level::V3.flags().collect();
        let mut more = v3.clone();
        more.extend(["avx512f", "sha_ni"]);
        assert!(!blockers(&host(&more), &host(&v3), None).is_empty());
        assert!(blockers(&host(&more), &host(&v3), Some(Level::V3)).is_empty());
        let found = blockers(&host(&more), &host(&v3[1..]), Some(Level::V3));
        assert!(found[0].message.contains(v3[0]), "{found:?}");
    }

    #[test]
    fn a_larger_state_hurts_programs_that_save_it_by_xsave() {
        let (small, mut large) = (host(&["avx2"]), host(&["avx2", "avx512f"]));
        large.xsave_size = 2696;
        assert!(blockers(&small, &large, None)[0].message.contains("2696"));
        assert!(blockers(&host(&["avx2", "xsavec"]), &host(&["avx2", "xsavec"]), None).is_empty());
        large.cpu_flags.insert("xsavec".to_owned());
        let small = host(&["avx2", "xsavec"]);
        assert!(blockers(&small, &large, None).is_empty());
    }
}
