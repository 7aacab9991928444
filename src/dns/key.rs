//! TSIG keys, in the file format that `nsupdate -k` and BIND read.

use super::Error;
use data_encoding::BASE64;
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_proto::rr::{Name, TSigner};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Largest clock difference accepted, seconds (RFC 8945 § 10).
pub const FUDGE: u16 = 300;

/// Reads a key file, making it first with a random HMAC-SHA256 secret if it is not there.
pub fn load_or_create(path: &Path, name: &str) -> Result<TSigner, Error> {
    if !path.exists() {
        let mut secret = [0u8; 32];
        let made =
            std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut secret)).and_then(|()| {
                if let Some(dir) = path.parent() {
                    std::fs::create_dir_all(dir)?;
                }
                let text = format!(
                    "key \"{name}\" {{\n\talgorithm hmac-sha256;\n\tsecret \"{}\";\n}};\n",
                    BASE64.encode(&secret)
                );
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)?
                    .write_all(text.as_bytes())
            });
        made.map_err(|source| Error::File {
            doing: "make the key",
            path: path.display().to_string(),
            source,
        })?;
    }
    load(path)
}

/// Reads a key file: `key "NAME" { algorithm hmac-sha256; secret "BASE64"; };`
pub fn load(path: &Path) -> Result<TSigner, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::File {
        doing: "read the key",
        path: path.display().to_string(),
        source,
    })?;
    parse(&text).map_err(|reason| Error::Invalid { object: path.display().to_string(), reason })
}

fn parse(text: &str) -> Result<TSigner, String> {
    let plain = text.replace(['{', '}', ';', '"'], " ");
    let mut words = plain.split_whitespace();
    let (mut name, mut algorithm, mut secret) = (None, None, None);
    while let Some(word) = words.next() {
        let slot = match word {
            "key" => &mut name,
            "algorithm" => &mut algorithm,
            "secret" => &mut secret,
            other => return Err(format!("'{other}' is not expected in a key file")),
        };
        *slot = Some(words.next().ok_or_else(|| format!("nothing follows '{word}'"))?);
    }
    let name = name.ok_or("it names no key")?;
    let secret =
        BASE64.decode(secret.ok_or("it has no secret")?.as_bytes()).map_err(|e| format!("secret: {e}"))?;
    let algorithm = match algorithm.unwrap_or("hmac-sha256").to_ascii_lowercase().as_str() {
        "hmac-sha256" => TsigAlgorithm::HmacSha256,
        "hmac-sha384" => TsigAlgorithm::HmacSha384,
        "hmac-sha512" => TsigAlgorithm::HmacSha512,
        other => return Err(format!("algorithm {other} is not supported (hmac-sha256, -384, -512 are)")),
    };
    let name = Name::from_ascii(name).map_err(|e| format!("key name: {e}"))?;
    TSigner::new(secret, algorithm, name, FUDGE).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let a = load_or_create(&path, "podmig").unwrap();
        let b = load_or_create(&path, "podmig").unwrap();
        assert_eq!(a.key(), b.key());
        assert_eq!(a.key().len(), 32);
        assert!(parse("key \"x\" { algorithm hmac-md5; secret \"aGk=\"; };").is_err());
        assert!(parse("key \"x\" { secret \"%%\"; };").is_err());
        assert!(parse("nonsense").is_err());
    }
}
