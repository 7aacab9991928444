//! Which server a host keeps its pods' names at: `dns.toml` in the configuration directory.

use super::Error;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Content of the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsConfig {
    /// The server that takes updates.
    pub server: SocketAddr,
    /// The zone the pods' names are under.
    pub zone: String,
    /// File with the TSIG key.
    pub key: PathBuf,
}

/// The configuration below `etc`; `None` when names are not kept.
pub fn load(etc: &Path) -> Result<Option<DnsConfig>, Error> {
    let path = etc.join("dns.toml");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::File { doing: "read", path: path.display().to_string(), source }),
    };
    let bad = |e: toml::de::Error| Error::Invalid {
        object: path.display().to_string(),
        reason: e.message().to_owned(),
    };
    toml::from_str(&text).map(Some).map_err(bad)
}

/// Checks the parts (zone name, key file) and writes the file.
pub fn save(etc: &Path, config: &DnsConfig) -> Result<(), Error> {
    super::serve::zone_name(&config.zone)?;
    super::key::load(&config.key)?;
    let path = etc.join("dns.toml");
    let file = |source| Error::File { doing: "write", path: path.display().to_string(), source };
    let text = toml::to_string(config).map_err(|e| file(std::io::Error::other(e)))?;
    std::fs::create_dir_all(etc).map_err(file)?;
    let temp = etc.join(format!(".dns.toml.{}", std::process::id()));
    std::fs::write(&temp, text).and_then(|()| std::fs::rename(&temp, &path)).map_err(file)
}
