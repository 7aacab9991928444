//! Memory of a traced process through `/proc/P/mem`: also what the process itself may not write (text, the stub).

use super::{Error, Result};
use crate::base::RemoteAddr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

/// An open `/proc/P/mem`; it stays with the address space it was opened on, whatever the process execs.
#[derive(Debug)]
pub struct Mem {
    tid: i32,
    file: File,
}

impl Mem {
    /// Opens the memory of thread `tid`'s process.
    pub fn open(tid: i32) -> Result<Self> {
        let path = format!("/proc/{tid}/mem");
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(Error::proc(tid, "mem"))?;
        Ok(Self { tid, file })
    }

    /// Fills `buffer` from `addr`; all of it or an error.
    pub fn read(&self, addr: u64, buffer: &mut [u8]) -> Result<()> {
        let len = buffer.len();
        self.file.read_exact_at(buffer, addr).map_err(|source| self.error("read", addr, len, source))
    }

    /// Writes `bytes` at `addr`; all of it or an error.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, addr).map_err(|source| self.error("write", addr, bytes.len(), source))
    }

    /// The u64 at `addr`.
    pub fn word(&self, addr: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn error(&self, op: &'static str, addr: u64, len: usize, source: std::io::Error) -> Error {
        Error::Mem { tid: self.tid, op, addr: RemoteAddr(addr), len, source }
    }
}
