//! Where things lie on this host: definitions, what survives a reboot, sockets.

use super::Error;
use crate::base::PodId;
use std::env;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The three trees podmig uses on a host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    /// Configuration: `hosts`, `pods/*.toml` (`/etc/podmig`).
    pub etc: PathBuf,
    /// What survives a reboot: key, pods, journals, logs (`/var/lib/podmig`).
    pub var: PathBuf,
    /// What does not: sockets (`/run/podmig`).
    pub run: PathBuf,
}

impl Places {
    /// The places by `--root` (or `PODMIG_ROOT`, which clap reads into the same flag): under it `etc/podmig`,
    /// `var/lib/podmig`, `run/podmig`. Without it the system's, or, for another user than root, the XDG ones.
    /// A relative root is taken from the current directory, so that helpers started elsewhere agree.
    pub fn resolve(root: Option<&Path>) -> Places {
        if let Some(root) = root {
            let root = std::path::absolute(root).unwrap_or_else(|_| root.to_path_buf());
            return Self::under(&root);
        }
        if nix::unistd::geteuid().is_root() {
            return Self::under(Path::new("/"));
        }
        let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_else(|| PathBuf::from("/"));
        let or = |key: &str, fallback: PathBuf| {
            let path = env::var_os(key).map(PathBuf::from).filter(|p| p.is_absolute());
            path.unwrap_or(fallback).join("podmig")
        };
        let uid = nix::unistd::geteuid();
        Places {
            etc: or("XDG_CONFIG_HOME", home.join(".config")),
            var: or("XDG_STATE_HOME", home.join(".local/state")),
            run: or("XDG_RUNTIME_DIR", PathBuf::from(format!("/run/user/{uid}"))),
        }
    }

    fn under(root: &Path) -> Places {
        Places {
            etc: root.join("etc/podmig"),
            var: root.join("var/lib/podmig"),
            run: root.join("run/podmig"),
        }
    }

    /// What a pod leaves on disk: record, log, journal.
    pub fn dir(&self, id: &PodId) -> PathBuf {
        self.var.join("pods").join(id.as_str())
    }
    /// The pod's record (JSON).
    pub fn record(&self, id: &PodId) -> PathBuf {
        self.dir(id).join("record.json")
    }
    /// The pod's output log.
    pub fn log(&self, id: &PodId) -> PathBuf {
        self.dir(id).join("log")
    }
    /// The pod's journal (moves: what was done and decided).
    pub fn journal(&self, id: &PodId) -> PathBuf {
        self.dir(id).join("journal")
    }
    /// The monitor's own log (diagnostics, not the pod's output).
    pub fn monitor_log(&self, id: &PodId) -> PathBuf {
        self.dir(id).join("monitor.log")
    }
    /// The monitor's socket.
    pub fn socket(&self, id: &PodId) -> PathBuf {
        self.run.join("pods").join(format!("{id}.sock"))
    }
    /// The list of trusted hosts.
    pub fn hosts(&self) -> PathBuf {
        self.etc.join("hosts")
    }
    /// This host's private key.
    pub fn key(&self) -> PathBuf {
        self.var.join("key")
    }
}

/// Makes a directory and its parents, mode 0700 for those it makes.
pub fn make_dir(path: &Path) -> Result<(), Error> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| Error::Io { what: "make the directory", path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_moves_all_three() {
        let p = Places::resolve(Some(Path::new("/srv/a")));
        assert_eq!(p.etc, Path::new("/srv/a/etc/podmig"));
        assert_eq!(p.var, Path::new("/srv/a/var/lib/podmig"));
        assert_eq!(p.run, Path::new("/srv/a/run/podmig"));
        let id = PodId::from_bits(1);
        assert_eq!(p.socket(&id), Path::new("/srv/a/run/podmig/pods/0000000000000001.sock"));
        assert_eq!(p.log(&id), Path::new("/srv/a/var/lib/podmig/pods/0000000000000001/log"));
    }

    #[test]
    fn a_relative_root_becomes_absolute() {
        let p = Places::resolve(Some(Path::new("some/where")));
        assert!(p.var.is_absolute() && p.var.ends_with("some/where/var/lib/podmig"));
    }
}
