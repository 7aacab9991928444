//! From what was asked for to a whole definition: defaults, account, environment, name, address of the link.

use super::{Caller, Error, Wanted, random_bits, random_letters, value};
use crate::base::spec::{Limits, NetMode, NetSpec, PodSpec, User};
use crate::base::{PodId, PodName};
use nix::unistd::{Gid, Group, Uid};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::IpAddr;

/// The grace of a start when nothing is said, in milliseconds.
const GRACE_MS: u64 = 100;
/// The search path of a caller without one.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The whole definition. Reads the account database and `/dev/urandom`; all else comes from its arguments.
pub fn resolve(wanted: Wanted, caller: &Caller) -> Result<PodSpec, Error> {
    let Some(program) = wanted.cmd.first() else {
        return Err(value(
            "start",
            "no command: write `podmig start -- CMD…`, or `cmd = [\"…\"]` in the file",
        ));
    };
    if wanted.cmd.iter().any(|a| a.contains('\0')) || program.is_empty() {
        return Err(value(program, "it is not a command"));
    }
    let id = PodId::from_bits(random_bits()?);
    let name = match &wanted.name {
        Some(name) if PodId::parse(name.as_str()).is_some() => {
            return Err(value(name.as_str(), "16 hex digits are read as an id, not as a name"));
        }
        Some(name) => name.clone(),
        None => invented_name(program, random_bits()?)?,
    };
    let tty = wanted.tty.unwrap_or(false);
    let user = account(wanted.user.as_deref(), caller)?;
    let hostname = wanted.hostname.clone().unwrap_or_else(|| name.to_string());
    let mut env = environment(&wanted.env, wanted.env_host.unwrap_or(false), &user, caller, tty);
    env.insert("PODMIG_POD".to_owned(), name.to_string());
    env.insert("container".to_owned(), "podmig".to_owned());
    let grace_ms = wanted.grace.map_or(GRACE_MS, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    check_together(&wanted)?;
    Ok(PodSpec {
        id,
        name,
        net: network(&wanted)?,
        cwd: wanted.workdir.unwrap_or_else(|| caller.cwd.clone()),
        cmd: wanted.cmd,
        env: env.into_iter().map(|(k, v)| format!("{k}={v}")).collect(),
        user,
        umask: caller.umask,
        rlimits: caller.rlimits.clone(),
        hostname,
        tty,
        start_type: wanted.start_type.unwrap_or_default(),
        grace_ms,
        restart: wanted.restart.unwrap_or_default(),
        rm: wanted.rm.unwrap_or(false),
        volumes: wanted.volumes,
        tmpfs: wanted.tmpfs,
        limits: Limits { memory: wanted.memory, cpus: wanted.cpus, pids: wanted.pids },
        cgroup_parent: wanted.cgroup_parent,
        privileged: wanted.privileged.unwrap_or(false),
    })
}

/// Combinations that contradict themselves.
fn check_together(w: &Wanted) -> Result<(), Error> {
    use crate::base::spec::{Restart, StartType};
    if w.rm == Some(true) && w.restart.is_some_and(|r| r != Restart::No) {
        return Err(value("--rm", "a pod that is removed when it ends cannot be restarted"));
    }
    if w.tty == Some(true) && w.start_type == Some(StartType::Forking) {
        return Err(value("--tty", "a forking command gives its terminal up"));
    }
    let mut dirs: Vec<&str> =
        w.volumes.iter().map(|v| v.dir.as_str()).chain(w.tmpfs.iter().map(String::as_str)).collect();
    dirs.sort_unstable();
    if let Some(twice) = dirs.windows(2).find(|d| d[0] == d[1]) {
        return Err(value(twice[0], "the directory is given twice"));
    }
    if let Some(dir) = w.tmpfs.iter().find(|d| ["/", "/proc", "/sys", "/dev"].contains(&d.as_str())) {
        return Err(value(dir, "a tmpfs cannot hide it"));
    }
    Ok(())
}

fn network(w: &Wanted) -> Result<NetSpec, Error> {
    let mode = w.net.clone().unwrap_or_default();
    let lan = matches!(mode, NetMode::Lan(_));
    if lan && w.ip.is_none() {
        return Err(value("--net lan", "it needs the pod's address: --ip ADDR/LEN"));
    }
    if !lan && (w.ip.is_some() || w.gateway.is_some()) {
        return Err(value(
            if w.ip.is_some() { "--ip" } else { "--gateway" },
            "it goes with --net lan:IF only",
        ));
    }
    if mode != NetMode::Nat && !w.publish.is_empty() {
        return Err(value(
            "--publish",
            "it goes with --net nat only: other pods are reached at their own ports",
        ));
    }
    if let (Some(ip), Some(gateway)) = (w.ip, w.gateway) {
        gateway_fits(ip.addr, gateway)?;
    }
    for (n, p) in w.publish.iter().enumerate() {
        let clash = w.publish[..n].iter().any(|q| {
            q.udp == p.udp
                && p.host_port != 0
                && q.host_port == p.host_port
                && (q.host_ip == p.host_ip || q.host_ip.is_none() || p.host_ip.is_none())
        });
        if clash {
            return Err(value(format!("--publish {}", p.host_port), "the host port is given twice"));
        }
    }
    let mac = match mode {
        NetMode::Nat | NetMode::Lan(_) => Some(random_mac(random_bits()?)),
        NetMode::Host | NetMode::None => None,
    };
    Ok(NetSpec { mode, ip: w.ip, gateway: w.gateway, mac, publish: w.publish.clone() })
}

fn gateway_fits(ip: IpAddr, gateway: IpAddr) -> Result<(), Error> {
    if ip.is_ipv4() != gateway.is_ipv4() {
        return Err(value("--gateway", "it is of another address family than --ip"));
    }
    if ip == gateway {
        return Err(value("--gateway", "it is the pod's own address"));
    }
    Ok(())
}

/// A MAC address that is unicast and locally administered.
fn random_mac(bits: u64) -> [u8; 6] {
    let b = bits.to_ne_bytes();
    [(b[0] & 0xfc) | 0x02, b[1], b[2], b[3], b[4], b[5]]
}

/// CMD's name as a DNS label, and random letters.
pub(super) fn invented_name(program: &str, bits: u64) -> Result<PodName, Error> {
    let base = program.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let label: String =
        base.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let label = label.trim_matches('-');
    let label = if label.is_empty() { "pod" } else { label };
    let name = format!("{label}-{}", random_letters(bits, 5));
    PodName::parse(&name).map_err(|e| value(name, e))
}

/// Who CMD runs as: `NAME|UID[:GROUP|GID]`, the caller when nothing is said.
pub fn account(user: Option<&str>, caller: &Caller) -> Result<User, Error> {
    let Some(text) = user else {
        let entry = nix::unistd::User::from_uid(Uid::from_raw(caller.uid)).ok().flatten();
        let base =
            User { uid: caller.uid, gid: caller.gid, groups: caller.groups.clone(), ..User::default() };
        return Ok(with_entry(base, entry));
    };
    let (who, group) = match text.split_once(':') {
        Some((w, g)) => (w, Some(g)),
        None => (text, None),
    };
    let missing = |what| Error::NoSuchAccount { user: text.to_owned(), what };
    let entry = match who.parse::<u32>() {
        Ok(uid) => nix::unistd::User::from_uid(Uid::from_raw(uid)).ok().flatten(),
        Err(_) if who.is_empty() => return Err(value(text, "a user is written as NAME or UID[:GROUP|GID]")),
        Err(_) => Some(nix::unistd::User::from_name(who).ok().flatten().ok_or_else(|| missing("user"))?),
    };
    let gid = match group {
        None => None,
        Some(g) => Some(match g.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => Group::from_name(g).ok().flatten().ok_or_else(|| missing("group"))?.gid.as_raw(),
        }),
    };
    let uid = match (&entry, who.parse::<u32>()) {
        (_, Ok(uid)) => uid,
        (Some(e), Err(_)) => e.uid.as_raw(),
        (None, Err(_)) => return Err(missing("user")),
    };
    // As runc and podman do: a bare unknown uid runs in group 0 unless one is given.
    let own_gid = entry.as_ref().map_or(0, |e| e.gid.as_raw());
    let gid_used = gid.unwrap_or(own_gid);
    let groups = match (&entry, gid) {
        (Some(e), None) => groups_of(&e.name, e.gid),
        _ => vec![gid_used],
    };
    Ok(with_entry(User { uid, gid: gid_used, groups, ..User::default() }, entry))
}

fn groups_of(name: &str, gid: Gid) -> Vec<u32> {
    let listed = CString::new(name).ok().and_then(|n| nix::unistd::getgrouplist(&n, gid).ok());
    listed.map_or_else(|| vec![gid.as_raw()], |l| l.into_iter().map(Gid::as_raw).collect())
}

fn with_entry(user: User, entry: Option<nix::unistd::User>) -> User {
    let Some(e) = entry else { return user };
    let text = |p: std::path::PathBuf| p.into_os_string().into_string().ok().filter(|s| !s.is_empty());
    User { name: Some(e.name), home: text(e.dir), shell: text(e.shell), ..user }
}

/// The login part of an environment: HOME USER LOGNAME SHELL of an account.
pub fn login(user: &User) -> [(&'static str, String); 4] {
    let name = user.name.clone().unwrap_or_else(|| user.uid.to_string());
    [
        ("HOME", user.home.clone().unwrap_or_else(|| "/".to_owned())),
        ("USER", name.clone()),
        ("LOGNAME", name),
        ("SHELL", user.shell.clone().unwrap_or_else(|| "/bin/sh".to_owned())),
    ]
}

/// CMD's environment: clean (PATH HOME USER LOGNAME SHELL LANG LC_* TZ, TERM with a terminal), or the caller's
/// with `--env-host`; then the items of `-e`.
pub fn environment(
    items: &[(String, Option<String>)],
    host: bool,
    user: &User,
    caller: &Caller,
    tty: bool,
) -> BTreeMap<String, String> {
    let passed =
        |k: &str| matches!(k, "PATH" | "LANG" | "TZ") || k.starts_with("LC_") || (tty && k == "TERM");
    // Sockets and descriptors of the caller's own supervisor mean nothing inside.
    let private = |k: &str| k.starts_with("LISTEN_") || k == "NOTIFY_SOCKET" || k == "WATCHDOG_PID";
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    for (k, v) in &caller.env {
        if passed(k) || (host && !private(k)) {
            env.insert(k.clone(), v.clone());
        }
    }
    env.entry("PATH".to_owned()).or_insert_with(|| PATH.to_owned());
    if tty {
        env.entry("TERM".to_owned()).or_insert_with(|| "xterm".to_owned());
    }
    for (k, v) in login(user) {
        env.insert(k.to_owned(), v);
    }
    for (k, v) in items {
        match v.as_ref().or_else(|| caller.env.get(k)) {
            Some(v) => env.insert(k.clone(), v.clone()),
            None => env.remove(k),
        };
    }
    env
}
