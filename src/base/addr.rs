//! Addresses inside another process, kept apart from our own by type.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Size of a base page in bytes (x86-64).
pub const PAGE: u64 = 4096;

/// An address in some other process; never dereferenced here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct RemoteAddr(pub u64);

impl fmt::Debug for RemoteAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl RemoteAddr {
    /// The address `n` bytes further on (wrapping, as registers do).
    #[must_use]
    pub fn add(self, n: u64) -> Self {
        Self(self.0.wrapping_add(n))
    }
}

/// A half-open range of addresses `[start, end)` in another process, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AddrRange {
    /// First address inside.
    pub start: u64,
    /// First address after it.
    pub end: u64,
}

impl fmt::Debug for AddrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.start, self.end)
    }
}

impl AddrRange {
    /// A range; `start <= end` is the caller's promise.
    pub fn new(start: u64, end: u64) -> Self {
        debug_assert!(start <= end);
        Self { start, end }
    }
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }
    /// True when nothing is inside.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
    /// Whether the two ranges share a byte.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }
    /// Whether `addr` lies inside.
    pub fn contains(&self, addr: u64) -> bool {
        self.start <= addr && addr < self.end
    }
}
