//! This host's identity: one Ed25519 key, made once, kept in the state directory with mode 0600.
//!
//! A fingerprint is the whole public key in hex (64 digits): it pins the key itself, not a hash of it.

use super::Error;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// DER before the 32 key bytes of an Ed25519 SubjectPublicKeyInfo (RFC 8410).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A pinned public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Parses 64 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut key = [0u8; 32];
        for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        digits.iter().all(u8::is_ascii_hexdigit).then_some(Self(key))
    }
    /// From a SubjectPublicKeyInfo; `None` if it is not Ed25519.
    pub fn from_spki(spki: &[u8]) -> Option<Self> {
        let key = spki.strip_prefix(&SPKI_HEAD)?;
        Some(Self(key.try_into().ok()?))
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// This host's key, ready for TLS.
#[derive(Clone)]
pub struct Identity {
    pub(super) key: Arc<rustls::sign::CertifiedKey>,
    /// What other hosts pin.
    pub fingerprint: Fingerprint,
}

impl Identity {
    /// Loads the key at `path`, making it first if it is not there.
    ///
    /// # Errors
    /// It cannot be read or made, or is no Ed25519 key.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let file = |doing, source| Error::File { doing, path: path.display().to_string(), source };
        let der = match std::fs::read(path) {
            Ok(der) => der,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                create(path).map_err(|e| file("make the host key", e))?;
                std::fs::read(path).map_err(|e| file("read", e))?
            }
            Err(e) => return Err(file("read", e)),
        };
        Self::from_pkcs8(der)
    }

    fn from_pkcs8(der: Vec<u8>) -> Result<Self, Error> {
        let bad = |e: rustls::Error| Error::Key(e.to_string());
        let provider = rustls::crypto::ring::default_provider();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der));
        let signer = provider.key_provider.load_private_key(private).map_err(bad)?;
        let spki = signer.public_key().ok_or_else(|| Error::Key("it has no public half".into()))?;
        let fingerprint =
            Fingerprint::from_spki(&spki).ok_or_else(|| Error::Key("it is not an Ed25519 key".into()))?;
        let public = rustls::pki_types::CertificateDer::from(spki.to_vec());
        Ok(Self { key: Arc::new(rustls::sign::CertifiedKey::new(vec![public], signer)), fingerprint })
    }
}

/// Makes the key under a temporary name and links it in place, so that two racing processes agree on one.
fn create(path: &Path) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir)?;
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(std::io::Error::other)?;
    let temp = dir.join(format!(".host.key.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
    file.write_all(pair.serialized_der())?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&temp, path);
    std::fs::remove_file(&temp)?;
    match linked {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.key");
        let a = Identity::load(&path).unwrap();
        let b = Identity::load(&path).unwrap();
        assert_eq!(a.fingerprint, b.fingerprint);
        assert_eq!(Fingerprint::parse(&a.fingerprint.to_string()), Some(a.fingerprint));
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Fingerprint::parse("+1"), None);
    }
}
