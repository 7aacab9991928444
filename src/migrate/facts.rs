//! The facts of this host, as its hello tells them.

use crate::kernel::cgroup::Freezer;
use crate::wire::hello::{Hello, VERSION};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// Reads them (under a millisecond: /proc and our own vdso).
pub fn hello() -> io::Result<Hello> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let flags = cpuinfo.lines().find_map(|l| l.strip_prefix("flags")).unwrap_or_default();
    let cpu_flags: BTreeSet<String> =
        flags.trim_start_matches([' ', '\t', ':']).split_whitespace().map(str::to_owned).collect();
    Ok(Hello {
        versions: VERSION,
        podmig: env!("CARGO_PKG_VERSION").to_owned(),
        host: hostname(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        cpu_flags,
        xsave_size: crate::kernel::cpuid::xsave_size(u64::MAX) as u32,
        vdso: vdso()?,
        realtime_ns: realtime_ns(),
        pid_max: fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse().unwrap_or(32768),
        memory: memory_available(),
    })
}

/// This host's name.
pub fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// CLOCK_REALTIME in nanoseconds.
pub fn realtime_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Size and hash of the vdso the kernel gave us: two hosts with the same one can exchange its pages' addresses.
fn vdso() -> io::Result<(u64, u64)> {
    let image = crate::kernel::vdso::own()?;
    Ok((image.len() as u64, xxhash_rust::xxh3::xxh3_64(&image)))
}

/// Memory that could be given to new pods, in bytes (`MemAvailable`).
pub fn memory_available() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}

/// Memory with content of all processes of a cgroup, in bytes, shared pages counted once a process (an upper bound).
pub fn resident(cgroup: &Freezer) -> u64 {
    let rss = |pid: i32| {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        let mut words = statm.split_whitespace().skip(1).map(|w| w.parse::<u64>().unwrap_or(0));
        let (resident, file) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
        resident.saturating_sub(file) * 4096
    };
    cgroup.procs().unwrap_or_default().into_iter().map(rss).sum()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_facts_of_this_host_are_there() {
        let hello = super::hello().unwrap();
        assert!(hello.cpu_flags.contains("sse2") && hello.vdso.0 >= 4096 && hello.xsave_size >= 512);
        assert_eq!(super::hello().unwrap().vdso, hello.vdso);
        assert!(super::memory_available() > 1 << 20);
    }
}
