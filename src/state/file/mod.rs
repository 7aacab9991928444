//! Files with a name: regular files, directories, harmless devices.

pub mod collect;
pub mod restore;

use serde::{Deserialize, Serialize};

/// Character devices that hold no state: (major, minor, path).
pub(crate) const DEVICES: [(u32, u32, &str); 5] = [
    (1, 3, "/dev/null"),
    (1, 5, "/dev/zero"),
    (1, 7, "/dev/full"),
    (1, 8, "/dev/random"),
    (1, 9, "/dev/urandom"),
];

/// What kind of inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Inode {
    /// Regular file.
    Regular,
    /// Directory.
    Dir,
    /// Character device with (major, minor) that holds no state (null, zero, full, random, urandom).
    Char(u32, u32),
    /// Anything else, held by O_PATH only (a symbolic link, a socket's file, …).
    Handle,
}

/// An open file found again by its path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PathFile {
    /// Path in the pod's mount namespace.
    pub path: Vec<u8>,
    /// Kind.
    pub inode: Inode,
    /// Position in bytes.
    pub pos: u64,
    /// Size in bytes when it was looked at.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// flock(2) and POSIX locks held: (kind `F`lock / `P`osix / `O`fd, exclusive, start, length; pid for POSIX).
    pub locks: Vec<FileLock>,
}

/// A lock held through this description.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileLock {
    /// Which call made it.
    pub kind: LockKind,
    /// Exclusive (write) lock.
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Length in bytes, 0 = to the end.
    pub len: u64,
    /// Pod pid of the holder (POSIX), else 0.
    pub pid: i32,
}

/// Kinds of file locks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LockKind {
    /// `flock(2)`.
    Flock,
    /// `fcntl(F_SETLK)`.
    Posix,
    /// `fcntl(F_OFD_SETLK)`.
    Ofd,
}
