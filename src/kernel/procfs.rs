//! `/proc/P`: a process's directory held open, and parsers that work on bytes.
//!
//! The `procfs` crate serves where text is UTF-8 by nature and time does not matter (limits, mountinfo,
//! namespaces). Here is what it lacks or gets wrong (names that are not UTF-8, `timers`), and what is read
//! while a pod stands still: one `openat`, one `read`, one pass over the bytes.

use nix::NixPath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::unistd::read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// The directory of a process or thread. It stays that task's: once the task is gone every call fails with
/// ESRCH or ENOENT, even if another took its number.
#[derive(Debug)]
pub struct Proc {
    dir: OwnedFd,
    pid: i32,
}

impl Proc {
    /// Opens `/proc/PID` (of our own mount namespace, so `pid` is a host pid). ENOENT: no such process.
    pub fn open(pid: i32) -> Result<Self, Errno> {
        let path = format!("/proc/{pid}");
        let dir = nix::fcntl::open(path.as_str(), Self::flags(), Mode::empty())?;
        Ok(Self { dir, pid })
    }

    /// Opens `/proc/PID/task/TID`.
    pub fn thread(&self, tid: i32) -> Result<Self, Errno> {
        let path = format!("task/{tid}");
        let dir = openat(&self.dir, path.as_str(), Self::flags(), Mode::empty())?;
        Ok(Self { dir, pid: tid })
    }

    fn flags() -> OFlag {
        OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC
    }

    /// The host pid or tid it was opened with.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The directory itself, for `*at` calls.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Reads a whole file into `buf` (its old content is dropped, its space used again).
    pub fn read_into<P: NixPath + ?Sized>(&self, name: &P, buf: &mut Vec<u8>) -> Result<(), Errno> {
        let fd = openat(&self.dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut len = 0;
        // Most files fit; zeroing more than is needed would cost as much as reading.
        buf.resize(buf.capacity().clamp(4096, 8192), 0);
        loop {
            if len == buf.len() {
                buf.resize(len * 2, 0);
            }
            match read(&fd, &mut buf[len..]) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(Errno::EINTR) => {}
                Err(e) => {
                    buf.clear();
                    return Err(e);
                }
            }
        }
        buf.truncate(len);
        Ok(())
    }

    /// Reads a file piece by piece (the kernel gives at most a few records at a time) until `enough` says so.
    pub fn read_until<P: NixPath + ?Sized>(
        &self,
        name: &P,
        buf: &mut Vec<u8>,
        enough: impl Fn(&[u8]) -> bool,
    ) -> Result<(), Errno> {
        let fd = openat(&self.dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        buf.clear();
        loop {
            let len = buf.len();
            buf.resize(len + 4096, 0);
            let result = read(&fd, &mut buf[len..]);
            buf.truncate(len + result.unwrap_or(0));
            match result {
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
                Ok(0) => return Ok(()),
                Ok(_) if enough(buf) => return Ok(()),
                Ok(_) => {}
            }
        }
    }

    /// Reads a whole file.
    pub fn read<P: NixPath + ?Sized>(&self, name: &P) -> Result<Vec<u8>, Errno> {
        let mut buf = Vec::new();
        self.read_into(name, &mut buf)?;
        Ok(buf)
    }

    /// What a symbolic link (`exe`, `cwd`, `ns/pid`, `fd/3`, `map_files/…`) shows.
    pub fn link<P: NixPath + ?Sized>(&self, name: &P) -> Result<Vec<u8>, Errno> {
        readlinkat(&self.dir, name).map(OsStringExt::into_vec)
    }

    /// `stat(2)` of what a link leads to.
    pub fn stat<P: NixPath + ?Sized>(&self, name: &P) -> Result<FileStat, Errno> {
        fstatat(&self.dir, name, AtFlags::empty())
    }

    /// `lstat` of a name under it: of a link itself.
    pub fn lstat<P: NixPath + ?Sized>(&self, name: &P) -> Result<FileStat, Errno> {
        fstatat(&self.dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// Opens what a link leads to, for reading (never blocks, closed on exec).
    pub fn open_at<P: NixPath + ?Sized>(&self, name: &P) -> Result<OwnedFd, Errno> {
        openat(
            &self.dir,
            name,
            OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY,
            Mode::empty(),
        )
    }

    /// The numbers that name the entries of a directory (`task`, `fd`), rising.
    pub fn numbers(&self, name: &str) -> Result<Vec<i32>, Errno> {
        let mut dir = Dir::openat(
            &self.dir,
            name,
            OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY,
            Mode::empty(),
        )?;
        let mut out = Vec::new();
        for entry in dir.iter() {
            if let Some(n) = number(entry?.file_name().to_bytes()) {
                out.push(n);
            }
        }
        out.sort_unstable();
        Ok(out)
    }
}

/// Parses a decimal number that is the whole of `bytes`.
pub fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.trim_ascii().parse().ok()
}

/// Parses a hexadecimal number (without prefix) that is the whole of `bytes`.
pub fn hex(bytes: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(bytes).ok()?.trim_ascii(), 16).ok()
}

/// `/proc/P/stat`, the fields podmig uses (proc_pid_stat(5) numbers them).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stat {
    /// 2: name, raw bytes.
    pub comm: Vec<u8>,
    /// 3: state letter.
    pub state: u8,
    /// 4: parent, host pid.
    pub ppid: i32,
    /// 20: number of threads.
    pub threads: u32,
    /// 22: start time in clock ticks since boot; with the pid it names a process for good.
    pub start_time: u64,
    /// 38: signal to the parent at exit.
    pub exit_signal: i32,
    /// 26, 27: program text.
    pub code: (u64, u64),
    /// 28: bottom of the stack.
    pub start_stack: u64,
    /// 45, 46: initialised data.
    pub data: (u64, u64),
    /// 47: where the heap begins.
    pub start_brk: u64,
    /// 48, 49: arguments.
    pub args: (u64, u64),
    /// 50, 51: environment.
    pub env: (u64, u64),
    /// 52: wait status.
    pub exit_code: i32,
}

impl Stat {
    /// Parses the file; `None` if it is not what the kernel writes.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|&b| b == b'(')?;
        let close = text.iter().rposition(|&b| b == b')')?;
        let comm = text.get(open + 1..close)?.to_vec();
        // Index 0 is field 3.
        let mut f = [&b""[..]; 50];
        let mut fields = text.get(close + 2..)?.split(|&b| b == b' ');
        for slot in &mut f {
            *slot = fields.next()?;
        }
        let u = |n: usize| number::<u64>(f[n - 3]);
        Some(Self {
            comm,
            state: *f[0].first()?,
            ppid: number(f[1])?,
            threads: number(f[17])?,
            start_time: u(22)?,
            exit_signal: number(f[35])?,
            code: (u(26)?, u(27)?),
            start_stack: u(28)?,
            data: (u(45)?, u(46)?),
            start_brk: u(47)?,
            args: (u(48)?, u(49)?),
            env: (u(50)?, u(51)?),
            exit_code: number(f[49])?,
        })
    }
}

/// `/proc/P/status` or `/proc/P/task/T/status`, the fields podmig uses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Mask for new files (`Umask`); `None` for a zombie.
    pub umask: Option<u32>,
    /// State letter.
    pub state: u8,
    /// Who traces it (host pid), 0 = nobody.
    pub tracer: i32,
    /// Real, effective, saved, file-system uid.
    pub uids: [u32; 4],
    /// Real, effective, saved, file-system gid.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Thread group's pid in each pid namespace, the reader's first, its own last.
    pub ns_tgid: Vec<i32>,
    /// Task's id likewise.
    pub ns_pid: Vec<i32>,
    /// Process group likewise.
    pub ns_pgid: Vec<i32>,
    /// Session likewise.
    pub ns_sid: Vec<i32>,
    /// Kernel thread.
    pub kernel_thread: bool,
    /// Locked memory in KiB.
    pub locked_kib: u64,
    /// Signals pending for the thread.
    pub pending: u64,
    /// Signals pending for the process.
    pub shared_pending: u64,
    /// Blocked signals (a temporary mask of `ppoll` and the like included).
    pub blocked: u64,
    /// Capabilities: inheritable, permitted, effective, bounding, ambient.
    pub caps: [u64; 5],
    /// `no_new_privs`.
    pub no_new_privs: bool,
    /// Seccomp mode: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Number of seccomp filters, where the kernel tells (5.9).
    pub seccomp_filters: Option<u32>,
    /// `Speculation_Store_Bypass` and `SpeculationIndirectBranch`, as text.
    pub speculation: [Vec<u8>; 2],
}

impl Status {
    /// Parses the file; `None` if it is not what the kernel writes.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut s = Self::default();
        for line in text.split(|&b| b == b'\n') {
            let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
            let value = line[colon + 1..].trim_ascii();
            match &line[..colon] {
                b"Umask" => s.umask = Some(u32::from_str_radix(std::str::from_utf8(value).ok()?, 8).ok()?),
                b"State" => s.state = *value.first()?,
                b"TracerPid" => s.tracer = number(value)?,
                b"Uid" => s.uids = list(value)?.try_into().ok()?,
                b"Gid" => s.gids = list(value)?.try_into().ok()?,
                b"Groups" => s.groups = list(value)?,
                b"NStgid" => s.ns_tgid = list(value)?,
                b"NSpid" => s.ns_pid = list(value)?,
                b"NSpgid" => s.ns_pgid = list(value)?,
                b"NSsid" => s.ns_sid = list(value)?,
                b"Kthread" => s.kernel_thread = value == b"1",
                b"VmLck" => s.locked_kib = number(value.strip_suffix(b"kB")?)?,
                b"SigPnd" => s.pending = hex(value)?,
                b"ShdPnd" => s.shared_pending = hex(value)?,
                b"SigBlk" => s.blocked = hex(value)?,
                b"CapInh" => s.caps[0] = hex(value)?,
                b"CapPrm" => s.caps[1] = hex(value)?,
                b"CapEff" => s.caps[2] = hex(value)?,
                b"CapBnd" => s.caps[3] = hex(value)?,
                b"CapAmb" => s.caps[4] = hex(value)?,
                b"NoNewPrivs" => s.no_new_privs = value == b"1",
                b"Seccomp" => s.seccomp = number(value)?,
                b"Seccomp_filters" => s.seccomp_filters = Some(number(value)?),
                b"Speculation_Store_Bypass" => s.speculation[0] = value.to_vec(),
                b"SpeculationIndirectBranch" => s.speculation[1] = value.to_vec(),
                _ => {}
            }
        }
        (!s.ns_pid.is_empty() && s.state != 0).then_some(s)
    }

    /// The task's id in its own pid namespace.
    pub fn pid(&self) -> i32 {
        self.ns_pid.last().copied().unwrap_or(0)
    }
}

/// Numbers separated by blanks.
fn list<T: std::str::FromStr>(value: &[u8]) -> Option<Vec<T>> {
    value.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty()).map(number).collect()
}

/// One entry of `/proc/P/timers` (proc_pid_timers(5)): a timer of `timer_create(2)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerLine {
    /// Kernel id.
    pub id: i32,
    /// Signal number.
    pub signo: i32,
    /// `sigev_value`.
    pub sigval: u64,
    /// `sigev_notify`: SIGEV_SIGNAL, SIGEV_NONE or SIGEV_THREAD, with SIGEV_THREAD_ID added for `tid.N`.
    pub notify: i32,
    /// For SIGEV_THREAD_ID the thread, else the process; in the reader's pid namespace.
    pub pid: i32,
    /// Clock.
    pub clock: i32,
}

impl TimerLine {
    /// Parses the file; `None` if it is not what the kernel writes.
    pub fn parse(text: &[u8]) -> Option<Vec<Self>> {
        let mut out = Vec::new();
        let mut lines = text.split(|&b| b == b'\n').filter(|l| !l.is_empty());
        while let Some(line) = lines.next() {
            let id = number(line.strip_prefix(b"ID:")?)?;
            let signal = lines.next()?.strip_prefix(b"signal:")?;
            let slash = signal.iter().position(|&b| b == b'/')?;
            let notify = lines.next()?.strip_prefix(b"notify:")?.trim_ascii();
            let slash2 = notify.iter().position(|&b| b == b'/')?;
            let dot = notify.iter().rposition(|&b| b == b'.')?;
            let how = match &notify[..slash2] {
                b"signal" => libc::SIGEV_SIGNAL,
                b"none" => libc::SIGEV_NONE,
                b"thread" => libc::SIGEV_THREAD,
                _ => return None,
            };
            let thread = if &notify[slash2 + 1..dot] == b"tid" { libc::SIGEV_THREAD_ID } else { 0 };
            let clock = number(lines.next()?.strip_prefix(b"ClockID:")?)?;
            out.push(Self {
                id,
                signo: number(&signal[..slash])?,
                // %px: hex without prefix, the pointer whole.
                sigval: hex(&signal[slash + 1..])?,
                notify: how | thread,
                pid: number(&notify[dot + 1..])?,
                clock,
            });
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_agrees_with_the_procfs_crate() {
        let pid = std::process::id();
        let own = Proc::open(pid.cast_signed()).unwrap();
        let ours = Stat::parse(&own.read("stat").unwrap()).unwrap();
        let theirs = procfs::process::Process::myself().unwrap().stat().unwrap();
        assert_eq!(ours.comm, theirs.comm.as_bytes());
        assert_eq!(ours.ppid, theirs.ppid);
        assert_eq!(ours.start_time, theirs.starttime);
        assert_eq!(Some(ours.exit_signal), theirs.exit_signal);
        assert_eq!(ours.code, (theirs.startcode, theirs.endcode));
        assert_eq!(ours.start_stack, theirs.startstack);
        assert_eq!(ours.data, (theirs.start_data.unwrap(), theirs.end_data.unwrap()));
        assert_eq!(ours.start_brk, theirs.start_brk.unwrap());
        assert_eq!(ours.args, (theirs.arg_start.unwrap(), theirs.arg_end.unwrap()));
        assert_eq!(ours.env, (theirs.env_start.unwrap(), theirs.env_end.unwrap()));
        assert_eq!(ours.exit_code, theirs.exit_code.unwrap());
    }

    #[test]
    fn status_agrees_with_the_procfs_crate() {
        let ours = Proc::open(std::process::id().cast_signed()).unwrap();
        let ours = Status::parse(&ours.read("status").unwrap()).unwrap();
        let theirs = procfs::process::Process::myself().unwrap().status().unwrap();
        assert_eq!(ours.umask, theirs.umask);
        assert_eq!(ours.tracer, theirs.tracerpid);
        assert_eq!(ours.uids, [theirs.ruid, theirs.euid, theirs.suid, theirs.fuid]);
        assert_eq!(ours.gids, [theirs.rgid, theirs.egid, theirs.sgid, theirs.fgid]);
        assert_eq!(ours.groups, theirs.groups);
        assert_eq!(Some(ours.ns_pid.clone()), theirs.nspid);
        assert_eq!(Some(ours.ns_sid.clone()), theirs.nssid);
        assert_eq!(Some(ours.ns_pgid.clone()), theirs.nspgid);
        assert_eq!(ours.caps[..4], [theirs.capinh, theirs.capprm, theirs.capeff, theirs.capbnd.unwrap()]);
        assert_eq!(Some(ours.seccomp), theirs.seccomp);
        assert_eq!(ours.pid(), std::process::id().cast_signed());
    }

    #[test]
    fn a_name_may_hold_anything() {
        let tail = "S 1 2 3 4 -1 6 7 8 9 10 11 12 13 14 15 16 17 18 2 20 77 22 23 24 25 26 27 28 29 30 31 32 33 34 35 17 \
             37 38 39 40 41 42 43 44 45 46 47 48 49 50 9\n";
        let mut text = b"12 (a) (\xff\n b) ".to_vec();
        text.extend_from_slice(tail.as_bytes());
        let stat = Stat::parse(&text);
        assert_eq!(stat.as_ref().unwrap().comm, b"a) (\xff\n b");
        assert_eq!(stat.unwrap().state, b'S');
    }

    #[test]
    fn timers_of_every_kind() {
        let text = b"ID: 3\nsignal: 14/0000000000000000\nnotify: signal/pid.9\nClockID: 0\n\
            ID: 2\nsignal: 34/deadbeefcafe1234\nnotify: signal/tid.10\nClockID: -6\n\
            ID: 1\nsignal: 0/0000000000000001\nnotify: none/pid.9\nClockID: 1\n";
        let timers = TimerLine::parse(text).unwrap();
        let line =
            |id, signo, sigval, notify, pid, clock| TimerLine { id, signo, sigval, notify, pid, clock };
        assert_eq!(
            timers,
            [
                line(3, 14, 0, libc::SIGEV_SIGNAL, 9, 0),
                line(2, 34, 0xdead_beef_cafe_1234, libc::SIGEV_THREAD_ID, 10, -6),
                line(1, 0, 1, libc::SIGEV_NONE, 9, 1),
            ]
        );
        assert_eq!(TimerLine::parse(b"").unwrap(), []);
        assert_eq!(TimerLine::parse(b"ID: 3\n"), None);
    }

    #[test]
    fn a_directory_never_becomes_another_process() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let held = Proc::open(child.id().cast_signed()).unwrap();
        assert!(held.read("status").is_ok());
        assert_eq!(held.numbers("task").unwrap(), [child.id().cast_signed()]);
        assert!(held.link("exe").unwrap().ends_with(b"sleep"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(held.read("status"), Err(Errno::ESRCH | Errno::ENOENT)));
        assert_eq!(Proc::open(child.id().cast_signed()).unwrap_err(), Errno::ENOENT);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(text: Vec<u8>) {
            let _ = Stat::parse(&text);
            let _ = Status::parse(&text);
            let _ = TimerLine::parse(&text);
        }
    }
}
