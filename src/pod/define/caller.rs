//! What a pod takes over from whoever starts it: directory, mask, limits, environment, credentials.

use super::Error;
use nix::sys::resource::{Resource, getrlimit};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

/// The calling process, as far as a pod takes after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Working directory.
    pub cwd: String,
    /// File mode creation mask.
    pub umask: u32,
    /// Resource limits: (RLIMIT number, soft, hard).
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Environment (items that are not UTF-8 are left out).
    pub env: BTreeMap<String, String>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// All of Linux's resource limits, by number.
const LIMITS: [Resource; 16] = [
    Resource::RLIMIT_CPU,
    Resource::RLIMIT_FSIZE,
    Resource::RLIMIT_DATA,
    Resource::RLIMIT_STACK,
    Resource::RLIMIT_CORE,
    Resource::RLIMIT_RSS,
    Resource::RLIMIT_NPROC,
    Resource::RLIMIT_NOFILE,
    Resource::RLIMIT_MEMLOCK,
    Resource::RLIMIT_AS,
    Resource::RLIMIT_LOCKS,
    Resource::RLIMIT_SIGPENDING,
    Resource::RLIMIT_MSGQUEUE,
    Resource::RLIMIT_NICE,
    Resource::RLIMIT_RTPRIO,
    Resource::RLIMIT_RTTIME,
];

impl Caller {
    /// The calling process itself.
    pub fn here() -> Result<Caller, Error> {
        let failed = |what: &'static str| move |reason: String| Error::Caller { what, reason };
        let cwd =
            std::env::current_dir().map_err(|e| failed("the current directory")(e.kind().to_string()))?;
        let cwd = cwd
            .into_os_string()
            .into_string()
            .map_err(|_| failed("the current directory")("its name is not UTF-8".to_owned()))?;
        let mut rlimits = Vec::with_capacity(LIMITS.len());
        for limit in LIMITS {
            let (soft, hard) =
                getrlimit(limit).map_err(|e| failed("resource limits")(e.desc().to_owned()))?;
            rlimits.push((limit as u32, soft, hard));
        }
        let groups = nix::unistd::getgroups().map_err(|e| failed("groups")(e.desc().to_owned()))?;
        let text = |s: std::ffi::OsString| s.into_string().ok();
        Ok(Caller {
            cwd,
            umask: umask()?,
            rlimits,
            env: std::env::vars_os().filter_map(|(k, v)| Some((text(k)?, text(v)?))).collect(),
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        })
    }
}

/// The mask, read without setting it (umask(2) can only be read by changing it).
fn umask() -> Result<u32, Error> {
    let failed = |reason: String| Error::Caller { what: "the file mode mask", reason };
    let status =
        std::fs::read_to_string("/proc/self/status").map_err(|e| failed(crate::pod::store::plain(&e)))?;
    let line = status.lines().find_map(|l| l.strip_prefix("Umask:"));
    let line = line.ok_or_else(|| failed("no Umask line in /proc/self/status".to_owned()))?;
    u32::from_str_radix(line.trim(), 8).map_err(|e| failed(e.to_string()))
}

/// 64 random bits from the kernel.
pub fn random_bits() -> Result<u64, Error> {
    let failed =
        |e: std::io::Error| Error::Caller { what: "/dev/urandom", reason: crate::pod::store::plain(&e) };
    let mut bytes = [0u8; 8];
    File::open("/dev/urandom").map_err(failed)?.read_exact(&mut bytes).map_err(failed)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// `n` letters a to z out of random bits (`n` at most 12).
pub fn random_letters(mut bits: u64, n: usize) -> String {
    let mut out = String::with_capacity(n);
    for _ in 0..n {
        out.push(char::from(b'a' + (bits % 26) as u8));
        bits /= 26;
    }
    out
}
