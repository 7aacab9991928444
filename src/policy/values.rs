//! Values as users write them: sizes, durations, ports, volumes, networks, environment items.
//!
//! Every parser returns the reason of a refusal in words, without repeating the input.

use crate::base::spec::{Cidr, NetMode, Publish, Restart, StartType, Volume, VolumeMode};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Why a value is refused.
pub type Reason = String;

fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// A size in bytes: `4096`, `512MiB`, `1.5G`. `K M G T` (with or without `iB`) are powers of 1024, `kB MB GB TB` of 1000.
pub fn size(text: &str) -> Result<u64, Reason> {
    let usage = || "a size is written as 4096, 512MiB or 2G".to_owned();
    let (number, unit) = split_number(text.trim());
    let factor: u64 = match unit.trim() {
        "" | "B" | "b" => 1,
        "K" | "k" | "Ki" | "KiB" => 1 << 10,
        "M" | "m" | "Mi" | "MiB" => 1 << 20,
        "G" | "g" | "Gi" | "GiB" => 1 << 30,
        "T" | "t" | "Ti" | "TiB" => 1 << 40,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(usage()),
    };
    if let Ok(n) = number.parse::<u64>() {
        return n.checked_mul(factor).ok_or_else(|| "the size is too large".to_owned());
    }
    let n: f64 = number.parse().map_err(|_| usage())?;
    let bytes = n * factor as f64;
    if bytes.is_finite() && (0.0..9.0e18).contains(&bytes) { Ok(bytes as u64) } else { Err(usage()) }
}

/// A rate in bytes per second: a size, with or without `/s`.
pub fn rate(text: &str) -> Result<u64, Reason> {
    let usage = "a rate is written as 100MiB/s";
    let n = size(text.trim().trim_end_matches("/s")).map_err(|_| usage.to_owned())?;
    if n == 0 { Err("the rate is 0".to_owned()) } else { Ok(n) }
}

/// A duration: `100ms`, `10s`, `10m`, `1h30m`, `250us`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, Reason> {
    let usage = || "a duration is written as 100ms, 10s or 1h30m".to_owned();
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(usage());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = split_number(rest);
        let end = after.find(|c: char| c.is_ascii_digit() || c == ' ').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let second = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "" if number.len() == text.trim().len() => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(usage()),
        };
        let n: f64 = number.parse().map_err(|_| usage())?;
        let part = Duration::try_from_secs_f64(n * second).map_err(|_| usage())?;
        total = total.checked_add(part).ok_or_else(usage)?;
        rest = after.trim_start();
    }
    // Beyond a century it is a mistake, and later sums would overflow.
    if total > Duration::from_secs(100 * 365 * 86400) {
        return Err("the duration is too long".to_owned());
    }
    Ok(total)
}

/// A number of CPUs, above 0: `2`, `1.5`.
pub fn cpus(text: &str) -> Result<f64, Reason> {
    match text.trim().parse::<f64>() {
        Ok(n) if n.is_finite() && (0.01..=65536.0).contains(&n) => Ok(n),
        _ => Err("CPUs are a number of at least 0.01, as 2 or 1.5".to_owned()),
    }
}

/// A number of tasks, above 0.
pub fn pids(text: &str) -> Result<u64, Reason> {
    match text.trim().parse::<u64>() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("the number of tasks is a whole number above 0".to_owned()),
    }
}

fn port(text: &str, what: &str) -> Result<u16, Reason> {
    match text.parse::<u16>() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("the {what} port is a number from 1 to 65535")),
    }
}

/// A published port: `[[IP:]HOST:]POD[/udp|/tcp]`. Without HOST (or with 0) any free host port.
pub fn publish(text: &str) -> Result<Publish, Reason> {
    let (rest, udp) = match text.rsplit_once('/') {
        None => (text, false),
        Some((rest, "udp")) => (rest, true),
        Some((rest, "tcp")) => (rest, false),
        Some((_, other)) => return Err(format!("the protocol is udp or tcp, not {other}")),
    };
    if rest.contains('[') {
        return Err("publishing on an IPv6 host address is not yet supported".to_owned());
    }
    let parts: Vec<&str> = rest.split(':').collect();
    let (ip, host, pod) = match parts[..] {
        [pod] => (None, "", pod),
        [host, pod] => (None, host, pod),
        [ip, host, pod] => (Some(ip), host, pod),
        _ => return Err("a published port is written as [[IP:]HOST:]POD[/udp]".to_owned()),
    };
    let host_ip: Option<Ipv4Addr> = match ip {
        None => None,
        Some(ip) => Some(ip.parse().map_err(|_| "the host address is not an IPv4 address".to_owned())?),
    };
    let host_port = if host.is_empty() || host == "0" { 0 } else { port(host, "host")? };
    Ok(Publish {
        host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
        host_port,
        pod_port: port(pod, "pod")?,
        udp,
    })
}

/// A published port as users write it.
pub fn publish_text(p: &Publish) -> String {
    let ip = p.host_ip.map(|ip| format!("{ip}:")).unwrap_or_default();
    format!("{ip}{}:{}{}", p.host_port, p.pod_port, if p.udp { "/udp" } else { "" })
}

/// A network: `nat`, `lan:IF`, `host`, `none`.
pub fn net(text: &str) -> Result<NetMode, Reason> {
    match text {
        "nat" => Ok(NetMode::Nat),
        "host" => Ok(NetMode::Host),
        "none" => Ok(NetMode::None),
        _ => match text.strip_prefix("lan:") {
            Some(name) if link_name(name) => Ok(NetMode::Lan(name.to_owned())),
            Some(_) => Err("the interface after lan: is not a link name".to_owned()),
            None if text == "lan" => Err("lan needs an interface: lan:IF".to_owned()),
            None => Err("a network is nat, lan:IF, host or none".to_owned()),
        },
    }
}

/// A network as users write it.
pub fn net_text(mode: &NetMode) -> String {
    match mode {
        NetMode::Nat => "nat".to_owned(),
        NetMode::Lan(name) => format!("lan:{name}"),
        NetMode::Host => "host".to_owned(),
        NetMode::None => "none".to_owned(),
    }
}

/// Whether the kernel would take it as the name of a link.
fn link_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() < 16
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
}

/// An address with its prefix length: `10.0.0.5/24`, `fd00::5/64`.
pub fn cidr(text: &str) -> Result<Cidr, Reason> {
    let usage = || "an address is written with its prefix length, as 10.0.0.5/24".to_owned();
    let (addr, prefix) = text.split_once('/').ok_or_else(usage)?;
    let addr: IpAddr = addr.parse().map_err(|_| usage())?;
    let prefix: u8 = prefix.parse().map_err(|_| usage())?;
    if prefix == 0 || prefix > if addr.is_ipv4() { 32 } else { 128 } {
        return Err(usage());
    }
    if addr.is_unspecified() || addr.is_multicast() || addr.is_loopback() {
        return Err("it is not the address of a host".to_owned());
    }
    Ok(Cidr { addr, prefix })
}

/// An address of a host.
pub fn address(text: &str) -> Result<IpAddr, Reason> {
    text.parse().map_err(|_| "it is not an IP address".to_owned())
}

/// A volume: `DIR[:carry|shared|ro]`, `carry` when nothing is said. DIR is taken from `cwd` when relative.
pub fn volume(text: &str, cwd: &str) -> Result<Volume, Reason> {
    let (dir, mode) = match text.rsplit_once(':') {
        None => (text, VolumeMode::Carry),
        Some((dir, "carry")) => (dir, VolumeMode::Carry),
        Some((dir, "shared")) => (dir, VolumeMode::Shared),
        Some((dir, "ro")) => (dir, VolumeMode::Ro),
        Some(_) => {
            return Err("a volume is DIR[:carry|shared|ro], the same path inside and outside".to_owned());
        }
    };
    Ok(Volume { dir: directory(dir, cwd)?, mode })
}

/// A directory, made absolute from `cwd` and without `.`, `..` or double slashes.
pub fn directory(text: &str, cwd: &str) -> Result<String, Reason> {
    if text.is_empty() {
        return Err("the directory is empty".to_owned());
    }
    let whole = if text.starts_with('/') { text.to_owned() } else { format!("{cwd}/{text}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err("the directory contains `..`".to_owned()),
            other => parts.push(other),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

/// An item of `-e`: `K=V`, or `K` for the caller's value.
pub fn env_item(text: &str) -> Result<(String, Option<String>), Reason> {
    let (key, value) = match text.split_once('=') {
        Some((k, v)) => (k, Some(v.to_owned())),
        None => (text, None),
    };
    if key.is_empty() || text.contains('\0') {
        return Err("an environment item is K=V or K".to_owned());
    }
    Ok((key.to_owned(), value))
}

/// `exec`, `forking` or `notify`.
pub fn start_type(text: &str) -> Result<StartType, Reason> {
    match text {
        "exec" => Ok(StartType::Exec),
        "forking" => Ok(StartType::Forking),
        "notify" => Ok(StartType::Notify),
        _ => Err("a type is exec, forking or notify".to_owned()),
    }
}

/// `no`, `on-failure` or `always`.
pub fn restart(text: &str) -> Result<Restart, Reason> {
    match text {
        "no" => Ok(Restart::No),
        "on-failure" => Ok(Restart::OnFailure),
        "always" => Ok(Restart::Always),
        _ => Err("a restart policy is no, on-failure or always".to_owned()),
    }
}

/// A restart policy as users write it.
pub fn restart_text(restart: Restart) -> &'static str {
    match restart {
        Restart::No => "no",
        Restart::OnFailure => "on-failure",
        Restart::Always => "always",
    }
}

/// A host name for inside: 1 to 63 letters, digits, hyphens and dots.
pub fn hostname(text: &str) -> Result<String, Reason> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    if text.is_empty() || text.len() > 63 || !text.bytes().all(good) || text.starts_with(['-', '.']) {
        return Err("a host name has 1 to 63 letters, digits, hyphens and dots".to_owned());
    }
    Ok(text.to_owned())
}

/// A parent for the pod's cgroup: `inherit`, or a path below the cgroup root without `..`.
pub fn cgroup_parent(text: &str) -> Result<String, Reason> {
    if text == "inherit" {
        return Ok(text.to_owned());
    }
    directory(text, "").map_err(|_| "a cgroup parent is `inherit` or a path without `..`".to_owned())
}

/// A signal: `TERM`, `SIGTERM`, `15`, `RTMIN+2`; the number.
pub fn signal(text: &str) -> Result<i32, Reason> {
    let usage = || "a signal is a name as TERM or a number from 1 to 64".to_owned();
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(n) = name.parse::<i32>() {
        return if (1..=64).contains(&n) { Ok(n) } else { Err(usage()) };
    }
    // 34 and 64: RTMIN and RTMAX as the C library sees them (32 and 33 are its own).
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let plus: i32 = if rest.is_empty() {
            0
        } else {
            rest.strip_prefix('+').and_then(|r| r.parse().ok()).ok_or_else(usage)?
        };
        return if (0..=30).contains(&plus) { Ok(34 + plus) } else { Err(usage()) };
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let minus: i32 = if rest.is_empty() {
            0
        } else {
            rest.strip_prefix('-').and_then(|r| r.parse().ok()).ok_or_else(usage)?
        };
        return if (0..=30).contains(&minus) { Ok(64 - minus) } else { Err(usage()) };
    }
    SIGNALS.iter().position(|s| *s == name).map(|at| at as i32 + 1).ok_or_else(usage)
}

/// Names of the signals 1 to 31, in order (signal(7), x86-64).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

#[cfg(test)]
mod tests;
