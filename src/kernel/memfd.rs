//! Anonymous memory files: made, filled, sealed (memfd_create(2), fcntl(2) F_ADD_SEALS).

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

/// A new memfd, close-on-exec, that may be sealed; `exec` says whether it will be executed
/// (MFD_EXEC / MFD_NOEXEC_SEAL since 6.3; an older kernel gets neither flag).
///
/// # Errors
/// ENOMEM, EMFILE; EACCES where `vm.memfd_noexec` is 2 and `exec` is asked for.
pub fn create(name: &CStr, exec: bool) -> io::Result<OwnedFd> {
    let base = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let kind = if exec { libc::MFD_EXEC } else { libc::MFD_NOEXEC_SEAL };
    match raw(name, base | kind) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => raw(name, base),
        other => other,
    }
}

fn raw(name: &CStr, flags: libc::c_uint) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A memfd with `content`, sealed against any change; position 0 is not promised (use pread).
pub fn sealed(name: &CStr, content: &[u8], exec: bool) -> io::Result<OwnedFd> {
    let mut file = File::from(create(name, exec)?);
    file.write_all(content)?;
    seal(&file)?;
    Ok(file.into())
}

/// Forbids writing, growing, shrinking and further sealing.
pub fn seal(fd: impl AsFd) -> io::Result<()> {
    let all =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(fd, FcntlArg::F_ADD_SEALS(all))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_sealed_file_keeps_its_content() {
        let file = File::from(sealed(c"pm-test", b"abc", false).unwrap());
        let mut buf = [0; 8];
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), 3);
        assert_eq!(&buf[..3], b"abc");
        assert_eq!(file.write_at(b"x", 0).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(file.set_len(1).is_err());
    }
}
