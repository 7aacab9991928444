//! Memory of another process, read and written from outside: `process_vm_readv(2)`/`process_vm_writev(2)` in
//! batches, and `/proc/P/mem` for what these refuse (no read or write permission; proc_pid_mem(5)).

use crate::base::AddrRange;
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;

/// Most pieces one call takes (`IOV_MAX`).
pub const IOV_MAX: usize = 1024;

/// The first at most [`IOV_MAX`] pieces of `ranges` that lie after `skip` bytes, and their length in bytes.
fn pieces(ranges: &[AddrRange], mut skip: u64, out: &mut Vec<RemoteIoVec>) -> u64 {
    out.clear();
    let mut total = 0;
    for r in ranges {
        if skip >= r.len() {
            skip -= r.len();
            continue;
        }
        if out.len() == IOV_MAX {
            break;
        }
        let len = r.len() - skip;
        out.push(RemoteIoVec { base: (r.start + skip) as usize, len: len as usize });
        total += len;
        skip = 0;
    }
    total
}

/// Reads `ranges` of process `pid`, one after the other, into the start of `buf`, in as few calls as can be.
/// Returns the bytes read: fewer than asked when a page cannot be read (the first unread byte is in that page).
/// Errors: ESRCH (no such process), EPERM. EFAULT is not an error but an end, possibly after 0 bytes.
pub fn read(pid: i32, ranges: &[AddrRange], buf: &mut [u8]) -> Result<usize, Errno> {
    let mut remote = Vec::with_capacity(ranges.len().min(IOV_MAX));
    let mut done = 0usize;
    loop {
        let want = pieces(ranges, done as u64, &mut remote);
        let rest = buf.get_mut(done..).unwrap_or_default();
        let want = (want as usize).min(rest.len());
        if want == 0 {
            return Ok(done);
        }
        match process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(&mut rest[..want])], &remote) {
            Ok(0) | Err(Errno::EFAULT) => return Ok(done),
            Ok(n) => done += n,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Writes the start of `data` to `ranges` of process `pid`, one after the other; otherwise as [`read`].
pub fn write(pid: i32, ranges: &[AddrRange], data: &[u8]) -> Result<usize, Errno> {
    let mut remote = Vec::with_capacity(ranges.len().min(IOV_MAX));
    let mut done = 0usize;
    loop {
        let want = pieces(ranges, done as u64, &mut remote);
        let rest = data.get(done..).unwrap_or_default();
        let want = (want as usize).min(rest.len());
        if want == 0 {
            return Ok(done);
        }
        match process_vm_writev(Pid::from_raw(pid), &[IoSlice::new(&rest[..want])], &remote) {
            Ok(0) | Err(Errno::EFAULT) => return Ok(done),
            Ok(n) => done += n,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// An open `/proc/P/mem`: reaches pages whatever their protection, bound to the address space the process had
/// when it was opened. (`proc_mem.force_override` of Linux 6.12 may forbid that; then EIO.)
#[derive(Debug)]
pub struct ProcMem {
    file: File,
}

impl ProcMem {
    /// Opens it for reading, and for writing if `write`. Errors: ENOENT (no such process), EACCES.
    pub fn open(pid: i32, write: bool) -> std::io::Result<Self> {
        let file = OpenOptions::new().read(true).write(write).open(format!("/proc/{pid}/mem"))?;
        Ok(Self { file })
    }

    /// Reads at `addr`; returns the bytes read, fewer than asked before a page that cannot be read.
    /// Errors: EIO (the page at `addr` cannot be read), ESRCH (the address space is gone).
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], addr + done as u64) {
                Ok(0) if done == 0 => return Err(Errno::ESRCH),
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) if done > 0 => break,
                Err(e) => return Err(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))),
            }
        }
        Ok(done)
    }

    /// Writes at `addr`, also to mappings that are not writable (a private copy is made). Otherwise as `read`.
    pub fn write(&self, addr: u64, data: &[u8]) -> Result<usize, Errno> {
        let mut done = 0;
        while done < data.len() {
            match self.file.write_at(&data[done..], addr + done as u64) {
                Ok(0) if done == 0 => return Err(Errno::ESRCH),
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) if done > 0 => break,
                Err(e) => return Err(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))),
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::addr::PAGE;

    fn at(bytes: &[u8]) -> AddrRange {
        let start = bytes.as_ptr() as u64;
        AddrRange::new(start, start + bytes.len() as u64)
    }

    #[test]
    fn more_pieces_than_one_call_takes() {
        let me = std::process::id() as i32;
        let from: Vec<u8> = (0..3 * IOV_MAX * 16).map(|i| (i % 251) as u8).collect();
        let ranges: Vec<_> = from.chunks(16).map(at).collect();
        let mut to = vec![0; from.len()];
        assert_eq!(read(me, &ranges, &mut to), Ok(from.len()));
        assert_eq!(from, to);
        let target = vec![0u8; from.len()];
        let ranges: Vec<_> = target.chunks(16).rev().map(at).collect();
        assert_eq!(write(me, &ranges, &from), Ok(from.len()));
        let back: Vec<u8> = std::hint::black_box(&target).chunks(16).rev().flatten().copied().collect();
        assert_eq!(back, from);
    }

    #[test]
    fn a_hole_ends_the_read_and_is_not_an_error() {
        let me = std::process::id() as i32;
        let good = vec![7u8; 64];
        let mut buf = vec![0; 192];
        // The first page of the address space is never mapped.
        let ranges = [at(&good), AddrRange::new(PAGE, PAGE + 64), at(&good)];
        assert_eq!(read(me, &ranges, &mut buf), Ok(64));
        assert_eq!(read(me, &ranges[1..], &mut buf), Ok(0));
        assert_eq!(ProcMem::open(me, false).unwrap().read(PAGE, &mut buf), Err(Errno::EIO));
    }

    #[test]
    fn no_such_process() {
        let mut buf = [0; 8];
        // Above any pid_max.
        assert_eq!(read(0x7fff_fff0, &[AddrRange::new(PAGE, PAGE + 8)], &mut buf), Err(Errno::ESRCH));
    }
}
