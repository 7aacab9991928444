//! For this room's tests: a process that does to its memory what it is told, and layouts read from `/proc/P/maps`.

use crate::base::AddrRange;
use crate::base::addr::PAGE;
use crate::kernel::{maps, pidfd};
use crate::state::mm::{Backing, Borders, MapFileId, MmId, MmLayout, Vma, VmaFlags};
use crate::state::object::ObjectId;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Where tests put their mappings: far from everything else.
pub const ARENA: u64 = 0x10_0000_0000;
pub const RW: u32 = 3;
pub const ANON: u32 = 0x22;

/// A Python process; killed when dropped.
pub struct Writer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Writer {
    pub fn start() -> Self {
        let mut child = Command::new("python3")
            .args(["-c", include_str!("writer.py")])
            .env("PYTHONHASHSEED", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is needed by these tests");
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut writer = Self { child, stdin, stdout };
        writer.answer();
        writer
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends a command and does not wait.
    pub fn send(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    /// The answer to the oldest command not yet answered.
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.strip_prefix("ok").unwrap_or_else(|| panic!("the writer says {line:?}")).trim().to_owned()
    }

    pub fn run(&mut self, command: &str) -> String {
        self.send(command);
        self.answer()
    }

    /// A private anonymous mapping, read and write, at page `n` of the arena.
    pub fn map(&mut self, n: u64, pages: u64) -> AddrRange {
        let range = AddrRange::new(ARENA + n * PAGE, ARENA + (n + pages) * PAGE);
        self.run(&format!("map {} {} {RW} {ANON}", range.start, range.len()));
        range
    }

    pub fn fill(&mut self, range: AddrRange, seed: u32) {
        self.run(&format!("fill {} {} {seed}", range.start, range.len()));
    }

    /// Blocked in the read of its next command: from here its memory stands still.
    pub fn idle(&self) {
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::time::Instant::now() < limit {
            let call = std::fs::read_to_string(format!("/proc/{}/syscall", self.pid())).unwrap();
            if call.starts_with("0 0x0 ") {
                return;
            }
            std::thread::yield_now();
        }
        panic!("the writer does not come to rest");
    }

    pub fn borrow(&self, fd: &str) -> OwnedFd {
        pidfd::borrow(self.pid(), fd.parse().unwrap()).unwrap()
    }

    /// Its layout now.
    pub fn layout(&self) -> MmLayout {
        layout(self.pid())
    }

    /// Its layout, cut to the arena.
    pub fn arena(&self) -> MmLayout {
        let mut layout = self.layout();
        layout.vmas.retain(|v| (ARENA..ARENA * 2).contains(&v.range.start));
        layout
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Its children have asked to die with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The layout of a process as the kernel lists it; shared memory is object 0, whatever it is.
pub fn layout(pid: i32) -> MmLayout {
    let text = std::fs::read(format!("/proc/{pid}/maps")).unwrap();
    let vmas = maps::parse(&text).unwrap().iter().filter_map(vma).collect();
    MmLayout { mm: MmId(pid), vmas, borders: Borders::default(), exe: MapFileId(0) }
}

fn vma(line: &maps::Line<'_>) -> Option<Vma> {
    let mut flags = VmaFlags::empty();
    flags.set(VmaFlags::READ, line.perms.read());
    flags.set(VmaFlags::WRITE, line.perms.write());
    flags.set(VmaFlags::EXEC, line.perms.exec());
    flags.set(VmaFlags::SHARED, line.perms.shared());
    let backing = match line.name {
        b"[vdso]" => Backing::Vdso,
        b"[vvar]" => Backing::Vvar,
        b"[vvar_vclock]" => Backing::VvarVclock,
        b"[vsyscall]" => return None,
        name if name.starts_with(b"/memfd:") || name.starts_with(b"/dev/zero") => {
            Backing::Object { object: ObjectId(0), offset: line.offset }
        }
        _ if line.inode != 0 => Backing::File { file: MapFileId(0), offset: line.offset },
        _ => Backing::Anon,
    };
    Some(Vma { range: line.range, flags, backing, name: None })
}
