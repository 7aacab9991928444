//! The trusted hosts as read from their file (`policy::hosts` knows its form).

use super::Error;
use super::identity::Fingerprint;
use crate::policy::hosts::{self, Host, Via};
use std::path::{Path, PathBuf};

/// The hosts file.
pub struct Hosts {
    path: PathBuf,
}

impl Hosts {
    /// The file at `path`; one that is not there trusts nobody.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// All hosts in the order of the file.
    ///
    /// # Errors
    /// It cannot be read, or a line of it is wrong.
    pub fn list(&self) -> Result<Vec<Host>, Error> {
        let path = self.path.display().to_string();
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error::File { doing: "read", path, source }),
        };
        hosts::parse(&text).map_err(|reason| Error::HostsFile { path, reason })
    }

    /// The host a user means: a name of the list, or `ssh://[USER@]HOST[:PORT]`.
    ///
    /// # Errors
    /// As [`Hosts::list`]; no host of that name.
    pub fn find(&self, name: &str) -> Result<Host, Error> {
        if name.starts_with("ssh://") {
            let via =
                hosts::ssh(name).map_err(|reason| Error::HostsFile { path: name.to_owned(), reason })?;
            return Ok(Host { name: name.to_owned(), via });
        }
        let found = self.list()?.into_iter().find(|h| h.name == name);
        found.ok_or_else(|| Error::UnknownHost(name.to_owned()))
    }

    /// Keys and names of the hosts whose agents may call us.
    ///
    /// # Errors
    /// As [`Hosts::list`].
    pub fn keys(&self) -> Result<Vec<(Fingerprint, String)>, Error> {
        let key = |h: Host| match h.via {
            Via::Agent { fingerprint, .. } => Some((Fingerprint::parse(&fingerprint)?, h.name)),
            Via::Ssh { .. } => None,
        };
        Ok(self.list()?.into_iter().filter_map(key).collect())
    }
}
