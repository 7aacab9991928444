//! `userfaultfd(2)`, the asynchronous write-protect part only: a descriptor is bound to the address space that
//! made it; everything but its making works from outside. Closing the last descriptor unregisters everything.

use crate::base::AddrRange;
use linux_raw_sys::general as raw;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Flags for the `userfaultfd` call made inside the target: closed on exec; faults of user mode only, which needs
/// no privilege and is all that write protection without waiting needs.
pub const FLAGS: i32 = libc::O_CLOEXEC | raw::UFFD_USER_MODE_ONLY as i32;

/// Features asked for: writes to protected pages are noted, nobody waits, and never touched pages take part.
const FEATURES: u64 = (raw::UFFD_FEATURE_WP_ASYNC | raw::UFFD_FEATURE_WP_UNPOPULATED) as u64;

const _: () = assert!(size_of::<raw::uffdio_api>() == 24 && size_of::<raw::uffdio_register>() == 32);

mod request {
    use linux_raw_sys::general::{uffdio_api, uffdio_range, uffdio_register};
    nix::ioctl_readwrite!(api, 0xaa, 0x3f, uffdio_api);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, uffdio_register);
    nix::ioctl_read!(unregister, 0xaa, 0x01, uffdio_range);
}

/// A userfaultfd set up for asynchronous write protection.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

impl Uffd {
    /// Makes one for our own address space (probes). Errors: EPERM, ENOSYS.
    pub fn create() -> Result<Self, Errno> {
        // SAFETY: no pointers; the result is a new descriptor owned by us.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) })?;
        // SAFETY: just made, nobody else has it.
        Self::adopt(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// Takes a fresh descriptor (made with [`FLAGS`] in any process) and does the handshake.
    /// Errors: EINVAL (the kernel lacks asynchronous write protection, before 6.7; or the handshake was done before).
    pub fn adopt(fd: OwnedFd) -> Result<Self, Errno> {
        let mut api = raw::uffdio_api { api: u64::from(raw::UFFD_API), features: FEATURES, ioctls: 0 };
        // SAFETY: `api` is the struct this request reads and writes.
        unsafe { request::api(fd.as_raw_fd(), &raw mut api) }?;
        Ok(Self { fd })
    }

    /// Registers every mapping in `range` for write protection; the range may cut mappings and have gaps.
    /// Errors: ENOMEM (the address space is gone), EINVAL (nothing mapped there), EPERM (a mapping that can never
    /// be written), EBUSY (another userfaultfd has it), EOPNOTSUPP.
    pub fn register(&self, range: AddrRange) -> Result<(), Errno> {
        let mut arg = raw::uffdio_register {
            range: raw::uffdio_range { start: range.start, len: range.len() },
            mode: u64::from(raw::UFFDIO_REGISTER_MODE_WP),
            ioctls: 0,
        };
        // SAFETY: `arg` is the struct this request reads and writes.
        unsafe { request::register(self.fd.as_raw_fd(), &raw mut arg) }.map(drop)
    }

    /// Ends the registration of every mapping in `range`. Errors: as `register`.
    pub fn unregister(&self, range: AddrRange) -> Result<(), Errno> {
        let mut arg = raw::uffdio_range { start: range.start, len: range.len() };
        // SAFETY: `arg` is the struct this request reads.
        unsafe { request::unregister(self.fd.as_raw_fd(), &raw mut arg) }.map(drop)
    }
}

/// Whether this kernel tracks writes this way (Linux 6.7, CONFIG_PTE_MARKER_UFFD_WP).
pub fn has_wp_async() -> bool {
    super::pagemap::has_scan() && Uffd::create().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::addr::PAGE;
    use crate::kernel::pagemap::{PageIs, Pagemap, Query};

    #[test]
    fn a_scan_sees_exactly_the_pages_written_since_the_last() {
        if !has_wp_async() {
            assert!(
                !crate::kernel::pagemap::has_scan(),
                "PAGEMAP_SCAN without asynchronous write protection"
            );
            return; // a kernel before 6.7: nothing to try
        }
        let mut bytes = vec![1u8; 8 << 20];
        let start = (bytes.as_ptr() as u64).next_multiple_of(PAGE);
        let range = AddrRange::new(start, start + (4 << 20));
        let off = (start - bytes.as_ptr() as u64) as usize;
        let uffd = Uffd::create().unwrap();
        uffd.register(range).unwrap();
        let map = Pagemap::open(std::process::id() as i32).unwrap();
        let query = Query {
            mask: PageIs::WRITTEN,
            anyof: PageIs::PRESENT | PageIs::SWAPPED,
            ret: PageIs::WRITTEN,
            protect: true,
            ..Query::default()
        };
        let round = || {
            let mut pages = Vec::new();
            map.scan(range, &query, |r| pages.extend((r.range.start..r.range.end).step_by(PAGE as usize)))
                .unwrap();
            pages.iter().map(|a| (a - start) / PAGE).collect::<Vec<_>>()
        };
        assert_eq!(round().len(), 1024);
        assert_eq!(round(), Vec::<u64>::new());
        for page in [0usize, 5, 1023] {
            bytes[off + page * PAGE as usize] = 2;
        }
        std::hint::black_box(&bytes);
        assert_eq!(round(), [0, 5, 1023]);
        uffd.unregister(range).unwrap();
        assert_eq!(map.scan(range, &query, |_| {}), Err(Errno::EPERM));
    }
}
