//! The list of trusted hosts (`/etc/podmig/hosts`) as text, and what a HOST on the command line means.
//!
//! One host a line: `NAME ADDR:PORT FINGERPRINT`, or `NAME ssh://[USER@]HOST[:PORT]` for one without an agent.
//! `#` starts a comment. Lines are kept as they are when another is added or removed.

use crate::base::PodName;
use std::fmt;
use std::net::SocketAddr;

/// The port agents listen on when nothing else is said.
pub const AGENT_PORT: u16 = 7411;

/// How a host is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Via {
    /// Its agent, trusted by the fingerprint of its key.
    Agent {
        /// Where it listens: `ADDR:PORT`; ADDR may be a DNS name.
        addr: String,
        /// Fingerprint of its key.
        fingerprint: String,
    },
    /// `podmig receive` run there over ssh.
    Ssh {
        /// `[USER@]HOST`.
        target: String,
        /// Port, if not ssh's own default.
        port: Option<u16>,
    },
}

/// One trusted host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// Its name in commands.
    pub name: String,
    /// How it is reached.
    pub via: Via,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Via::Agent { addr, fingerprint } => write!(f, "{addr} {fingerprint}"),
            Via::Ssh { target, port: None } => write!(f, "ssh://{target}"),
            Via::Ssh { target, port: Some(p) } => write!(f, "ssh://{target}:{p}"),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.via)
    }
}

/// A host's name: a DNS label.
pub fn name(text: &str) -> Result<String, String> {
    PodName::parse(text).map(|n| n.to_string()).map_err(str::to_owned)
}

/// An agent's address `ADDR[:PORT]`, `[V6]:PORT`; the port is 7411 when not given.
pub fn agent_addr(text: &str) -> Result<String, String> {
    let usage = || "an address is written as ADDR:PORT".to_owned();
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return if addr.port() == 0 { Err(usage()) } else { Ok(addr.to_string()) };
    }
    if let Ok(ip) = text.parse::<std::net::IpAddr>() {
        return Ok(SocketAddr::new(ip, AGENT_PORT).to_string());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(usage)?),
        None => (text, AGENT_PORT),
    };
    if dns_name(host) { Ok(format!("{host}:{port}")) } else { Err(usage()) }
}

fn dns_name(text: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() < 64
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() < 254 && text.trim_end_matches('.').split('.').all(label)
}

/// The fingerprint of a key as `podmig host id` ends in it: 16 to 128 characters without spaces.
pub fn fingerprint(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b":+/=_-".contains(&b);
    if (16..=128).contains(&text.len()) && text.bytes().all(good) {
        return Ok(text.to_owned());
    }
    Err("it is not a fingerprint; `podmig host id` on the other host ends in it".to_owned())
}

/// An ssh target: `[ssh://][USER@]HOST[:PORT]`. What ssh could take as an option is refused.
pub fn ssh(text: &str) -> Result<Via, String> {
    let usage = || "an ssh host is written as [USER@]HOST or ssh://[USER@]HOST[:PORT]".to_owned();
    let rest = text.strip_prefix("ssh://").unwrap_or(text).trim_end_matches('/');
    let (target, port) = match rest.rsplit_once(':') {
        Some((t, p)) => (t, Some(p.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(usage)?)),
        None => (rest, None),
    };
    let (user, host) = target.split_once('@').unwrap_or(("x", target));
    let word = |w: &str| {
        !w.is_empty()
            && !w.starts_with('-')
            && w.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    if word(user) && word(host) { Ok(Via::Ssh { target: target.to_owned(), port }) } else { Err(usage()) }
}

/// One line of the list; `None` for an empty line or a comment.
pub fn line(text: &str) -> Result<Option<Host>, String> {
    let text = text.split('#').next().unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    let host = match words[..] {
        [] => return Ok(None),
        [n, target] if target.starts_with("ssh://") => Host { name: name(n)?, via: ssh(target)? },
        [n, addr, print] => {
            let via = Via::Agent { addr: agent_addr(addr)?, fingerprint: fingerprint(print)? };
            Host { name: name(n)?, via }
        }
        _ => return Err("a line is `NAME ADDR:PORT FINGERPRINT` or `NAME ssh://[USER@]HOST`".to_owned()),
    };
    Ok(Some(host))
}

/// The whole list. An unreadable line is an error with its number: trust is not guessed.
pub fn parse(text: &str) -> Result<Vec<Host>, String> {
    let mut hosts: Vec<Host> = Vec::new();
    for (n, l) in text.lines().enumerate() {
        let Some(host) = line(l).map_err(|e| format!("line {}: {e}", n + 1))? else { continue };
        if hosts.iter().any(|h| h.name == host.name) {
            return Err(format!("line {}: {} is there twice", n + 1, host.name));
        }
        hosts.push(host);
    }
    Ok(hosts)
}

/// The list with `host` added, or put in the place of the line of the same name.
pub fn with(text: &str, host: &Host) -> String {
    let mut out = without(text, &host.name);
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out.push_str(&format!("{host}\n"));
    out
}

/// The list without the host of that name.
pub fn without(text: &str, name: &str) -> String {
    text.lines()
        .filter(|l| l.split('#').next().unwrap_or_default().split_whitespace().next() != Some(name))
        .map(|l| format!("{l}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINT: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn lines() {
        let h = line(&format!("hostb 10.0.0.2:7411 {PRINT} # the other one")).unwrap().unwrap();
        assert_eq!(h.via, Via::Agent { addr: "10.0.0.2:7411".into(), fingerprint: PRINT.into() });
        assert_eq!(line("# nothing"), Ok(None));
        let s = line("c ssh://root@c.example:22").unwrap().unwrap();
        assert_eq!(s.via, Via::Ssh { target: "root@c.example".into(), port: Some(22) });
        for bad in
            ["a", "a b", "A 1.2.3.4:1 0123456789abcdef", "a 1.2.3.4:0 0123456789abcdef", "a 1.2.3.4:1 short"]
        {
            assert!(line(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn adding_and_removing_keep_the_rest() {
        let text = format!("# ours\na 1.1.1.1:7411 {PRINT}\nb 2.2.2.2:7411 {PRINT}\n");
        let host = Host { name: "a".into(), via: ssh("x@y").unwrap() };
        let new = with(&text, &host);
        assert_eq!(new, format!("# ours\nb 2.2.2.2:7411 {PRINT}\na ssh://x@y\n"));
        assert_eq!(parse(&new).unwrap().len(), 2);
        assert_eq!(without(&new, "a"), format!("# ours\nb 2.2.2.2:7411 {PRINT}\n"));
        assert!(parse(&format!("{text}{text}")).unwrap_err().contains("line 5"));
    }

    #[test]
    fn addresses() {
        assert_eq!(agent_addr("10.0.0.1").unwrap(), "10.0.0.1:7411");
        assert_eq!(agent_addr("[fd00::1]:9").unwrap(), "[fd00::1]:9");
        assert_eq!(agent_addr("hostb").unwrap(), "hostb:7411");
        for bad in ["", ":7411", "a b", "h:0", "h:x", "10.0.0.1:70000"] {
            assert!(agent_addr(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn an_ssh_target_is_never_an_option() {
        for bad in ["-oProxyCommand=x", "ssh://-x", "a@-b", "", "a b", "h:0", "x@y;z"] {
            assert!(ssh(bad).is_err(), "{bad:?} passed");
        }
    }
}
