//! The trusted hosts: a file of lines `NAME ADDR:PORT FINGERPRINT` or `NAME ssh://[USER@]HOST[:PORT]`.

use super::Error;
use super::identity::Fingerprint;
use std::path::{Path, PathBuf};

/// How a host is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// Its agent, with the key pinned.
    Agent {
        /// `ADDR:PORT` or `NAME:PORT`.
        addr: String,
        /// Its key.
        fingerprint: Fingerprint,
    },
    /// `ssh` and `podmig receive` there.
    Ssh {
        /// `[USER@]HOST`.
        target: String,
        /// Port, if not the usual one.
        port: Option<u16>,
    },
}

/// One trusted host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// Its name here.
    pub name: String,
    /// How it is reached.
    pub route: Route,
}

impl Route {
    /// The address as shown and stored.
    pub fn address(&self) -> String {
        match self {
            Route::Agent { addr, .. } => addr.clone(),
            Route::Ssh { target, port: None } => format!("ssh://{target}"),
            Route::Ssh { target, port: Some(p) } => format!("ssh://{target}:{p}"),
        }
    }
    /// Parses `ssh://[USER@]HOST[:PORT]`.
    pub fn parse_ssh(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("ssh://")?;
        let (target, port) = match rest.rsplit_once(':') {
            Some((t, p)) if !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) => {
                (t, Some(p.parse().ok()?))
            }
            _ => (rest, None),
        };
        // A target that begins with '-' would be read by ssh as an option.
        let sane = !target.is_empty() && !target.starts_with('-') && !target.contains(char::is_whitespace);
        sane.then(|| Route::Ssh { target: target.to_owned(), port })
    }
}

/// The hosts file.
pub struct Hosts {
    path: PathBuf,
}

impl Hosts {
    /// The file in the configuration directory `etc`.
    pub fn new(etc: &Path) -> Self {
        Self { path: etc.join("hosts") }
    }

    fn text(&self) -> Result<String, Error> {
        match std::fs::read_to_string(&self.path) {
            Ok(text) => Ok(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(Error::File { doing: "read", path: self.path.display().to_string(), source }),
        }
    }

    /// All hosts in the order of the file; a wrong line is an error with its number.
    pub fn list(&self) -> Result<Vec<Host>, Error> {
        let mut hosts = Vec::new();
        for (n, line) in self.text()?.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let wrong =
                |reason| Error::HostsFile { path: self.path.display().to_string(), line: n + 1, reason };
            hosts.push(parse(line).map_err(wrong)?);
        }
        Ok(hosts)
    }

    /// The host of that name, or a route given as `ssh://…`.
    pub fn find(&self, name: &str) -> Result<Host, Error> {
        if let Some(route) = Route::parse_ssh(name) {
            return Ok(Host { name: name.to_owned(), route });
        }
        let found = self.list()?.into_iter().find(|h| h.name == name);
        found.ok_or_else(|| Error::UnknownHost(name.to_owned()))
    }

    /// Name of the host with that key, if it is trusted.
    pub fn by_key(&self, key: &Fingerprint) -> Result<Option<String>, Error> {
        let has = |h: &Host| matches!(&h.route, Route::Agent { fingerprint, .. } if fingerprint == key);
        Ok(self.list()?.into_iter().find(has).map(|h| h.name))
    }

    /// Adds a host, replacing one of the same name.
    pub fn add(&self, host: &Host) -> Result<(), Error> {
        let mut hosts = self.list()?;
        hosts.retain(|h| h.name != host.name);
        hosts.push(host.clone());
        self.write(&hosts)
    }

    /// Removes a host.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let mut hosts = self.list()?;
        let before = hosts.len();
        hosts.retain(|h| h.name != name);
        if hosts.len() == before {
            return Err(Error::UnknownHost(name.to_owned()));
        }
        self.write(&hosts)
    }

    fn write(&self, hosts: &[Host]) -> Result<(), Error> {
        let mut text = String::from("# NAME ADDR:PORT FINGERPRINT, or NAME ssh://[USER@]HOST[:PORT]\n");
        for h in hosts {
            text += &match &h.route {
                Route::Agent { addr, fingerprint } => format!("{} {addr} {fingerprint}\n", h.name),
                ssh => format!("{} {}\n", h.name, ssh.address()),
            };
        }
        let put = || -> std::io::Result<()> {
            if let Some(dir) = self.path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            let temp = self.path.with_extension(format!("{}.tmp", std::process::id()));
            std::fs::write(&temp, &text)?;
            std::fs::File::open(&temp)?.sync_all()?;
            std::fs::rename(&temp, &self.path)
        };
        put().map_err(|source| Error::File { doing: "write", path: self.path.display().to_string(), source })
    }
}

/// Parses one line; the error is the reason.
fn parse(line: &str) -> Result<Host, &'static str> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        [name, ssh] => {
            let route =
                Route::parse_ssh(ssh).ok_or("expected NAME ADDR:PORT FINGERPRINT or NAME ssh://HOST")?;
            Ok(Host { name: name.to_owned(), route })
        }
        [name, addr, key] => {
            check_addr(addr)?;
            let fingerprint = Fingerprint::parse(key).ok_or("the fingerprint is not 64 hex digits")?;
            Ok(Host { name: name.to_owned(), route: Route::Agent { addr: addr.to_owned(), fingerprint } })
        }
        _ => Err("expected NAME ADDR:PORT FINGERPRINT"),
    }
}

/// Checks the form `ADDR:PORT`.
pub fn check_addr(addr: &str) -> Result<(), &'static str> {
    let port = addr.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
    match port.and_then(|p| p.parse::<u16>().ok()) {
        Some(1..) => Ok(()),
        _ => Err("the address is not ADDR:PORT"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_kept_and_wrong_lines_named() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = Hosts::new(dir.path());
        assert!(hosts.list().unwrap().is_empty());
        let b = Host {
            name: "b".into(),
            route: Route::Agent { addr: "10.0.0.2:7411".into(), fingerprint: Fingerprint([7; 32]) },
        };
        hosts.add(&b).unwrap();
        hosts.add(&b).unwrap();
        assert_eq!(hosts.list().unwrap(), vec![b.clone()]);
        assert_eq!(hosts.by_key(&Fingerprint([7; 32])).unwrap().as_deref(), Some("b"));
        assert!(matches!(hosts.find("c"), Err(Error::UnknownHost(_))));
        assert!(matches!(hosts.find("ssh://u@c:22").unwrap().route, Route::Ssh { port: Some(22), .. }));
        assert!(Route::parse_ssh("ssh://-oProxyCommand=x").is_none());
        std::fs::write(dir.path().join("hosts"), "\n# x\nb 10.0.0.2 00\n").unwrap();
        assert!(matches!(hosts.list(), Err(Error::HostsFile { line: 3, .. })));
    }
}
