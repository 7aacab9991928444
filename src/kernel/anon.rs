//! Shared anonymous memory with a handle to it: what `mmap(MAP_SHARED|MAP_ANONYMOUS)` makes, reached as a descriptor.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::OwnedFd;

/// A new file of the kind behind shared anonymous memory (`/dev/zero (deleted)` in maps), `len` bytes (rounded up to
/// pages, not 0), readable and writable. It lives as long as the handle or a mapping of it.
///
/// # Errors
/// EINVAL: `len` is 0. ENOMEM. EPERM: opening `/proc/self/map_files` needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN;
/// ENOENT: `/proc` of this process's pid namespace is not mounted where the caller sees it.
pub fn shared(len: u64) -> Result<OwnedFd, Errno> {
    let len = usize::try_from(len.checked_next_multiple_of(4096).ok_or(Errno::ENOMEM)?)
        .map_err(|_| Errno::ENOMEM)?;
    // Without NORESERVE the whole size is charged at once, though most of it may never be touched.
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address the kernel chooses; nothing of ours is replaced.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let link = format!("/proc/self/map_files/{:x}-{:x}", at as usize, at as usize + len);
    let handle = open(link.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
    // SAFETY: exactly the mapping made above, which nobody else knows of.
    unsafe { libc::munmap(at, len) };
    handle
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn the_handle_outlives_the_mapping() {
        let file = File::from(shared(5000).unwrap());
        assert_eq!(file.metadata().unwrap().len(), 8192);
        file.write_at(b"abc", 4097).unwrap();
        let mut back = [0; 3];
        file.read_at(&mut back, 4097).unwrap();
        assert_eq!(&back, b"abc");
        let link =
            std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).unwrap();
        assert_eq!(link.to_str(), Some("/dev/zero (deleted)"));
        assert_eq!(shared(0).unwrap_err(), Errno::EINVAL);
    }
}
