//! The definition of a pod: what was asked for (flags, a TOML file), merged and resolved into a [`PodSpec`].

mod caller;
mod file;
mod resolve;

pub use caller::{Caller, random_bits, random_letters};
pub use file::{KEYS, from_toml, read_file};
pub use resolve::{account, environment, login, resolve};

use crate::base::spec::{Cidr, NetMode, Publish, Restart, StartType, Volume};
use crate::base::{Failure, Kind, PodName};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What was asked for: every item may be unsaid.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Wanted {
    /// `--name`.
    pub name: Option<PodName>,
    /// `--net`.
    pub net: Option<NetMode>,
    /// `--ip`.
    pub ip: Option<Cidr>,
    /// `--gateway`.
    pub gateway: Option<IpAddr>,
    /// `-p`.
    pub publish: Vec<Publish>,
    /// `-t`.
    pub tty: Option<bool>,
    /// `--fg`.
    pub fg: Option<bool>,
    /// `-e`: key and value; no value: the caller's.
    pub env: Vec<(String, Option<String>)>,
    /// `--env-host`.
    pub env_host: Option<bool>,
    /// `-w`.
    pub workdir: Option<String>,
    /// `-u`.
    pub user: Option<String>,
    /// `--hostname`.
    pub hostname: Option<String>,
    /// `-v`.
    pub volumes: Vec<Volume>,
    /// `--tmpfs`.
    pub tmpfs: Vec<String>,
    /// `--memory`, bytes.
    pub memory: Option<u64>,
    /// `--cpus`.
    pub cpus: Option<f64>,
    /// `--pids`.
    pub pids: Option<u64>,
    /// `--rm`.
    pub rm: Option<bool>,
    /// `--type`.
    pub start_type: Option<StartType>,
    /// `--grace`.
    pub grace: Option<Duration>,
    /// `--restart`.
    pub restart: Option<Restart>,
    /// `--cgroup-parent`.
    pub cgroup_parent: Option<String>,
    /// `--replace`.
    pub replace: Option<bool>,
    /// `--privileged`.
    pub privileged: Option<bool>,
    /// The command.
    pub cmd: Vec<String>,
}

impl Wanted {
    /// Keys of `file` that do not go with the network wished for here, which wins: they are left out by
    /// [`Wanted::over`].
    pub fn overruled(&self, file: &Wanted) -> Vec<&'static str> {
        let Some(net) = &self.net else { return Vec::new() };
        let (nat, lan) = (*net == NetMode::Nat, matches!(net, NetMode::Lan(_)));
        let keys = [
            ("publish", !nat && !file.publish.is_empty() && self.publish.is_empty()),
            ("ip", !lan && file.ip.is_some() && self.ip.is_none()),
            ("gateway", !lan && file.gateway.is_some() && self.gateway.is_none()),
        ];
        keys.into_iter().filter(|(_, out)| *out).map(|(key, _)| key).collect()
    }

    /// These wishes over `file`'s: what is said here wins, and what of the file only goes with another kind of network
    /// is left out. Environment items are merged by key; other lists and the command replace the file's when not empty.
    #[must_use]
    pub fn over(self, mut file: Wanted) -> Wanted {
        for key in self.overruled(&file) {
            match key {
                "publish" => file.publish.clear(),
                "ip" => file.ip = None,
                _ => file.gateway = None,
            }
        }
        let mut env = file.env;
        env.retain(|(k, _)| !self.env.iter().any(|(mine, _)| mine == k));
        env.extend(self.env);
        let list = |mine: Vec<_>, theirs: Vec<_>| if mine.is_empty() { theirs } else { mine };
        Wanted {
            name: self.name.or(file.name),
            net: self.net.or(file.net),
            ip: self.ip.or(file.ip),
            gateway: self.gateway.or(file.gateway),
            publish: if self.publish.is_empty() { file.publish } else { self.publish },
            tty: self.tty.or(file.tty),
            fg: self.fg.or(file.fg),
            env,
            env_host: self.env_host.or(file.env_host),
            workdir: self.workdir.or(file.workdir),
            user: self.user.or(file.user),
            hostname: self.hostname.or(file.hostname),
            volumes: if self.volumes.is_empty() { file.volumes } else { self.volumes },
            tmpfs: list(self.tmpfs, file.tmpfs),
            memory: self.memory.or(file.memory),
            cpus: self.cpus.or(file.cpus),
            pids: self.pids.or(file.pids),
            rm: self.rm.or(file.rm),
            start_type: self.start_type.or(file.start_type),
            grace: self.grace.or(file.grace),
            restart: self.restart.or(file.restart),
            cgroup_parent: self.cgroup_parent.or(file.cgroup_parent),
            replace: self.replace.or(file.replace),
            privileged: self.privileged.or(file.privileged),
            cmd: list(self.cmd, file.cmd),
        }
    }
}

/// What can be wrong with a definition.
#[derive(thiserror::Error, Debug, PartialEq, Eq)]
pub enum Error {
    /// A definition file cannot be read.
    #[error("cannot read it: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A definition file does not say what it should.
    #[error("{reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column when known.
        reason: String,
    },
    /// A value or a combination is wrong.
    #[error("{reason}")]
    Value {
        /// Flag or value concerned.
        object: String,
        /// What is wrong.
        reason: String,
    },
    /// No such user or group.
    #[error("no such {what} on this host")]
    NoSuchAccount {
        /// As typed.
        user: String,
        /// `user` or `group`.
        what: &'static str,
    },
    /// Something of the caller cannot be read.
    #[error("cannot read {what}: {reason}")]
    Caller {
        /// What was read.
        what: &'static str,
        /// Why it failed.
        reason: String,
    },
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        let text = e.to_string();
        match e {
            Error::File { path, .. } => Failure::new(Kind::Failed, path.display().to_string(), text),
            Error::Content { path, .. } => Failure::new(Kind::Usage, path.display().to_string(), text)
                .remedy("keys are the long flags of `podmig start`, and `cmd`"),
            Error::Value { object, .. } => Failure::new(Kind::Usage, object, text),
            Error::NoSuchAccount { user, .. } => Failure::new(Kind::Failed, user, text)
                .remedy("name one that `getent passwd` (or `getent group`) lists, or give numbers: UID:GID"),
            Error::Caller { .. } => Failure::new(Kind::Failed, "", text),
        }
    }
}

/// Shorthand for a wrong value.
fn value(object: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Value { object: object.into(), reason: reason.into() }
}

#[cfg(test)]
mod tests;
