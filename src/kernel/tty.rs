//! Terminals: pseudo-terminal pairs of a given devpts instance, window sizes (ioctl_tty(2), pty(7)).

use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A pseudo-terminal: the master's descriptor and the other side's, both close-on-exec.
#[derive(Debug)]
pub struct Pty {
    /// Who holds it is the terminal.
    pub master: OwnedFd,
    /// What programs read and write.
    pub slave: OwnedFd,
}

/// A new pair of the devpts instance whose `ptmx` is at `ptmx` (which may lead through `/proc/PID/root`), unlocked.
///
/// # Errors
/// ENOENT, EACCES, ENOSPC (too many terminals), EIO.
pub fn open(ptmx: &Path) -> io::Result<Pty> {
    let master: File = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(ptmx)?;
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a new descriptor.
    let slave = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel just made it; nobody else owns it.
    Ok(Pty { master: master.into(), slave: unsafe { OwnedFd::from_raw_fd(slave) } })
}

/// Number of the pair a master belongs to (its name is `/dev/pts/N`).
pub fn number(master: impl AsFd) -> io::Result<u32> {
    let mut n: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int.
    Errno::result(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTN, &raw mut n) })?;
    Ok(n)
}

/// Size of a terminal as (rows, columns).
pub fn size(fd: impl AsFd) -> io::Result<(u16, u16)> {
    // SAFETY: winsize is plain numbers.
    let mut w: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes one winsize.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut w) })?;
    Ok((w.ws_row, w.ws_col))
}

/// Sets the size; the foreground group gets SIGWINCH if it changed.
pub fn set_size(fd: impl AsFd, rows: u16, cols: u16) -> io::Result<()> {
    let w = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const w) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_pair_carries_bytes_and_has_a_size() {
        let pty = open(Path::new("/dev/pts/ptmx")).or_else(|_| open(Path::new("/dev/ptmx"))).unwrap();
        set_size(&pty.master, 33, 99).unwrap();
        assert_eq!(size(&pty.slave).unwrap(), (33, 99));
        number(&pty.master).unwrap();
        File::from(pty.slave.try_clone().unwrap()).write_all(b"hello\n").unwrap();
        let mut buf = [0; 16];
        let n = File::from(pty.master).read(&mut buf).unwrap();
        assert_eq!(&buf[..n], b"hello\r\n");
    }
}
