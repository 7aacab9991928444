//! Identities: a pod's id for life, its name on a host, one attempt to move it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A pod's identity for life: 16 lower-case hex digits (64 random bits), kept by move and restore.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodId(String);

/// Identity of one attempt to move a pod; commit records are filed under it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MoveId(String);

/// A pod's name: a DNS label (RFC 1123: letters, digits, inner hyphens, at most 63), lower case, unique on a host.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodName(String);

/// What became of an attempt, by the target's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Decision {
    /// The target owns the pod.
    Committed,
    /// It never will.
    Aborted,
}

fn hex16(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

macro_rules! hex_id {
    ($t:ident) => {
        impl $t {
            /// From 64 random bits (the caller supplies them: no I/O here).
            pub fn from_bits(bits: u64) -> Self {
                Self(format!("{bits:016x}"))
            }
            /// Parses 16 lower-case hex digits; anything else (a path, say) is `None`.
            pub fn parse(text: &str) -> Option<Self> {
                hex16(text).then(|| Self(text.to_owned()))
            }
            /// The text form.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
hex_id!(PodId);
hex_id!(MoveId);

impl PodName {
    /// Parses a DNS label; `Err` is the reason in words.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() || text.len() > 63 {
            return Err("a name has 1 to 63 characters");
        }
        if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Err("a name has only a-z, 0-9 and '-'");
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err("a name neither starts nor ends with '-'");
        }
        Ok(Self(text.to_owned()))
    }
    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        assert!(PodName::parse("web-1").is_ok());
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", &"x".repeat(64)] {
            assert!(PodName::parse(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn ids_are_hex_and_nothing_else() {
        let id = PodId::from_bits(0xab);
        assert_eq!(PodId::parse(id.as_str()), Some(id));
        assert_eq!(PodId::parse("../../etc/passwd"), None);
        assert_eq!(PodId::parse("00000000000000AB"), None);
    }
}
