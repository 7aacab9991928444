//! `/proc/P/fd` and `/proc/P/fdinfo` (proc_pid_fdinfo(5)): what a process's descriptors are, without touching them.

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstatat};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

/// What fdinfo tells of one descriptor.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FdInfo {
    /// Position in bytes.
    pub pos: u64,
    /// Status flags and access mode, without O_CLOEXEC.
    pub flags: i32,
    /// FD_CLOEXEC of this descriptor.
    pub cloexec: bool,
    /// Mount it was opened through.
    pub mnt_id: i32,
    /// Locks held through this description, or (POSIX) by this process through it.
    pub locks: Vec<Lock>,
    /// What only its kind has.
    pub extra: Extra,
}

/// The lines that only some kinds have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Extra {
    /// None known.
    #[default]
    None,
    /// eventfd: counter; EFD_SEMAPHORE, which kernels before 6.5 do not tell.
    Event {
        /// Counter.
        count: u64,
        /// Semaphore.
        semaphore: Option<bool>,
    },
    /// epoll: entries in the kernel's order (by address of the file, then number).
    Epoll(Vec<EpollEntry>),
    /// signalfd: mask.
    Signal(u64),
    /// timerfd.
    Timer(TimerInfo),
}

/// One `tfd:` line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpollEntry {
    /// Number under which it was added.
    pub tfd: RawFd,
    /// Events and flags.
    pub events: u32,
    /// User data.
    pub data: u64,
    /// Inode of the file watched.
    pub ino: u64,
    /// Device of that inode as the kernel keeps it (`major << 20 | minor`).
    pub sdev: u64,
}

/// The lines of a timerfd.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TimerInfo {
    /// Clock id.
    pub clock: i32,
    /// Expirations not yet read.
    pub ticks: u64,
    /// Flags of the last `timerfd_settime`.
    pub settime_flags: i32,
    /// Time left in nanoseconds, 0 = not running.
    pub value_ns: u64,
    /// Interval in nanoseconds.
    pub interval_ns: u64,
}

/// Which call made a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockType {
    /// `flock(2)`.
    Flock,
    /// `fcntl(F_SETLK)`.
    Posix,
    /// `fcntl(F_OFD_SETLK)`.
    Ofd,
    /// A lease, a delegation, or something newer.
    Other,
}

/// One `lock:` line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lock {
    /// Kind.
    pub kind: LockType,
    /// Write lock.
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Last byte, `None` = to the end.
    pub end: Option<u64>,
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

/// `(seconds, nanoseconds)` as fdinfo writes it.
fn timespec_ns(text: &str) -> Option<u64> {
    let (s, ns) = text.trim().strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    let (s, ns): (u64, u64) = (s.trim().parse().ok()?, ns.trim().parse().ok()?);
    s.checked_mul(1_000_000_000)?.checked_add(ns)
}

fn lock(text: &str) -> Option<Lock> {
    // "1: POSIX  ADVISORY  WRITE 1234 fe:00:5678 0 EOF"
    let f: Vec<&str> = text.split_whitespace().collect();
    let kind = match *f.get(1)? {
        "FLOCK" => LockType::Flock,
        "POSIX" => LockType::Posix,
        "OFDLCK" => LockType::Ofd,
        _ => LockType::Other,
    };
    let end = match *f.get(7)? {
        "EOF" => None,
        n => Some(n.parse().ok()?),
    };
    Some(Lock { kind, exclusive: *f.get(3)? == "WRITE", start: f.get(6)?.parse().ok()?, end })
}

fn epoll_entry(text: &str) -> Option<EpollEntry> {
    // "tfd:        5 events:       19 data:                5  pos:0 ino:61af sdev:7", `tfd:` taken off already.
    let mut words = text.split_whitespace();
    let tfd = words.next()?.parse().ok()?;
    let mut entry = EpollEntry { tfd, events: 0, data: 0, ino: 0, sdev: 0 };
    while let Some(word) = words.next() {
        let (key, mut value) = word.split_once(':')?;
        if value.is_empty() {
            value = words.next()?;
        }
        match key {
            "events" => entry.events = u32::try_from(hex(value)?).ok()?,
            "data" => entry.data = hex(value)?,
            "ino" => entry.ino = hex(value)?,
            "sdev" => entry.sdev = hex(value)?,
            _ => {}
        }
    }
    Some(entry)
}

impl FdInfo {
    /// Parses the text of one fdinfo file; unknown lines are passed over, `None` if a known one is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let mut info = Self::default();
        let mut epoll = Vec::new();
        let mut timer: Option<TimerInfo> = None;
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key {
                "pos" => info.pos = value.parse::<i64>().ok()?.max(0).unsigned_abs(),
                "flags" => {
                    let flags = i32::from_str_radix(value, 8).ok()?;
                    info.cloexec = flags & libc::O_CLOEXEC != 0;
                    info.flags = flags & !libc::O_CLOEXEC;
                }
                "mnt_id" => info.mnt_id = value.parse().ok()?,
                "lock" => info.locks.push(lock(value)?),
                "tfd" => epoll.push(epoll_entry(value)?),
                "eventfd-count" => {
                    info.extra = Extra::Event { count: hex(value)?, semaphore: None };
                }
                "eventfd-semaphore" => {
                    if let Extra::Event { semaphore, .. } = &mut info.extra {
                        *semaphore = Some(value != "0");
                    }
                }
                "sigmask" => info.extra = Extra::Signal(hex(value)?),
                "clockid" => timer = Some(TimerInfo { clock: value.parse().ok()?, ..TimerInfo::default() }),
                "ticks" => timer.as_mut()?.ticks = value.parse().ok()?,
                "settime flags" => timer.as_mut()?.settime_flags = i32::from_str_radix(value, 8).ok()?,
                "it_value" => timer.as_mut()?.value_ns = timespec_ns(value)?,
                "it_interval" => timer.as_mut()?.interval_ns = timespec_ns(value)?,
                _ => {}
            }
        }
        if let Some(timer) = timer {
            info.extra = Extra::Timer(timer);
        } else if !epoll.is_empty() {
            info.extra = Extra::Epoll(epoll);
        }
        Some(info)
    }
}

/// The two directories of one process, kept open.
#[derive(Debug)]
pub struct FdDir {
    fd: OwnedFd,
    info: OwnedFd,
    pid: i32,
    /// `stat` of a socket of ours: all lie on one file system.
    socket: Option<FileStat>,
}

impl FdDir {
    /// Opens `/proc/PID/fd` and `/proc/PID/fdinfo`. Errors: ENOENT (gone), EACCES.
    pub fn open(pid: i32) -> Result<Self, Errno> {
        let dir = |name: &str| {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            open(format!("/proc/{pid}/{name}").as_str(), flags, Mode::empty())
        };
        let socket = super::sock::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).and_then(nix::sys::stat::fstat);
        Ok(Self { fd: dir("fd")?, info: dir("fdinfo")?, pid, socket: socket.ok() })
    }

    /// The numbers in use, rising. Errors: ESRCH.
    pub fn numbers(&self) -> Result<Vec<RawFd>, Errno> {
        let dir = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).map_err(errno)?;
        let mut all = Vec::new();
        for entry in dir {
            let name = entry.map_err(errno)?.file_name();
            all.extend(name.to_str().and_then(|n| n.parse::<RawFd>().ok()));
        }
        all.sort_unstable();
        Ok(all)
    }

    /// What the kernel calls the file behind `fd`: a path (octets) or `type:[inode]`. Errors: ENOENT (closed).
    pub fn link(&self, fd: RawFd) -> Result<Vec<u8>, Errno> {
        readlinkat(&self.fd, fd.to_string().as_str()).map(OsStringExt::into_vec)
    }

    /// `stat` of the file behind `fd`. Errors: ENOENT (closed).
    pub fn stat(&self, fd: RawFd) -> Result<FileStat, Errno> {
        fstatat(&self.fd, fd.to_string().as_str(), AtFlags::empty())
    }

    /// [`link`](Self::link) and [`stat`](Self::stat) together. Of a socket only device, inode and type are true: its
    /// name tells them, and a call is saved.
    pub fn link_and_stat(&self, fd: RawFd) -> Result<(Vec<u8>, FileStat), Errno> {
        let link = self.link(fd)?;
        let number = link.strip_prefix(b"socket:[").and_then(|n| n.strip_suffix(b"]"));
        let number = number.and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
        let st = match (number, &self.socket) {
            (Some(ino), Some(like)) => {
                let mut st = *like;
                st.st_ino = ino;
                st
            }
            _ => self.stat(fd)?,
        };
        Ok((link, st))
    }

    /// The fdinfo of `fd`. Errors: ENOENT (closed), EBADMSG (not understood).
    pub fn info(&self, fd: RawFd) -> Result<FdInfo, Errno> {
        let file =
            openat(&self.info, fd.to_string().as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut text = Vec::with_capacity(512);
        let mut chunk = [0u8; 4096];
        loop {
            let n = nix::unistd::read(&file, &mut chunk)?;
            text.extend_from_slice(&chunk[..n]);
            // The kernel fills the buffer while it has more.
            if n < chunk.len() {
                break;
            }
        }
        std::str::from_utf8(&text).ok().and_then(FdInfo::parse).ok_or(Errno::EBADMSG)
    }
}

fn errno(e: std::io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn lines_of_each_kind() {
        let ep = FdInfo::parse(
            "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1057\n\
             tfd:        5 events: 8000001d data: ffffffff00000005  pos:0 ino:61af sdev:7\n",
        )
        .unwrap();
        assert!(ep.cloexec);
        assert_eq!(ep.flags, libc::O_RDWR);
        let entry =
            EpollEntry { tfd: 5, events: 0x8000_001d, data: 0xffff_ffff_0000_0005, ino: 0x61af, sdev: 7 };
        assert_eq!(ep.extra, Extra::Epoll(vec![entry]));
        let t = FdInfo::parse(
            "pos:\t0\nflags:\t02\nmnt_id:\t15\nclockid: 1\nticks: 3\nsettime flags: 01\n\
             it_value: (5, 7)\nit_interval: (1, 0)\n",
        )
        .unwrap();
        let want = TimerInfo {
            clock: 1,
            ticks: 3,
            settime_flags: 1,
            value_ns: 5_000_000_007,
            interval_ns: 1_000_000_000,
        };
        assert_eq!(t.extra, Extra::Timer(want));
        let l = FdInfo::parse("pos:\t10\nflags:\t0100001\nlock:\t1: POSIX  ADVISORY  WRITE 1 fe:00:5678 7 9\nlock:\t2: FLOCK  ADVISORY  READ 1 fe:00:1 0 EOF\n").unwrap();
        assert_eq!(l.pos, 10);
        let posix = Lock { kind: LockType::Posix, exclusive: true, start: 7, end: Some(9) };
        assert_eq!(l.locks, [posix, Lock { kind: LockType::Flock, exclusive: false, start: 0, end: None }]);
        for bad in ["pos:\tx", "flags:\t9", "tfd: x events: 1", "lock:\t1: POSIX", "it_value: (1, 1)"] {
            assert_eq!(FdInfo::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_kernel_writes_what_we_read() {
        let me = FdDir::open(std::process::id() as i32).unwrap();
        let event = nix::sys::eventfd::EventFd::from_value_and_flags(
            7,
            nix::sys::eventfd::EfdFlags::EFD_SEMAPHORE | nix::sys::eventfd::EfdFlags::EFD_CLOEXEC,
        )
        .unwrap();
        let fd = event.as_raw_fd();
        assert!(me.numbers().unwrap().contains(&fd));
        assert_eq!(me.link(fd).unwrap(), b"anon_inode:[eventfd]");
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (_, quick) = me.link_and_stat(socket.as_raw_fd()).unwrap();
        let full = me.stat(socket.as_raw_fd()).unwrap();
        assert_eq!((quick.st_dev, quick.st_ino, quick.st_mode), (full.st_dev, full.st_ino, full.st_mode));
        let info = me.info(fd).unwrap();
        assert!(matches!(info.extra, Extra::Event { count: 7, semaphore: Some(true) | None }), "{info:?}");
        assert!(info.cloexec);
        assert_eq!(me.info(1_000_000).unwrap_err(), Errno::ENOENT);
    }
}
