//! The builder against the real kernel: a pod of its own for each test, with a tiny pid 1.

mod family;
mod finish;
mod round;
mod update;

use super::{Builder, TargetCtx};
use crate::base::AddrRange;
use crate::kernel::cgroup::{Cgroup, Freezer, Hierarchies};
use crate::kernel::maps;
use crate::state::Tree;
use crate::state::mm::{Backing, Borders, MapFileId, MappedFile, MmId, MmLayout, Vma, VmaFlags};
use crate::state::task::ProcNode;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const INIT: &str = include_str!("init.c");
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Waits for a state, bounded.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// Compiles a C program into `dir`.
fn compile(dir: &Path, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let (c, out) = (dir.join(format!("{name}.c")), dir.join(name));
    std::fs::write(&c, source).unwrap();
    let done =
        Command::new("gcc").args(["-O1", "-w"]).args(flags).arg("-o").arg(&out).arg(&c).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    out
}

/// A pod with an init and nothing else, in namespaces and a cgroup of its own.
struct Pod {
    dir: tempfile::TempDir,
    child: Child,
    told: BufReader<ChildStdout>,
    init: i32,
    cgroup: Cgroup,
}

impl Pod {
    fn new() -> Self {
        Self::start(tempfile::tempdir().unwrap(), &[], None)
    }

    /// A pod that runs `program`, whose output goes to `output`.
    fn start(dir: tempfile::TempDir, program: &[&str], output: Option<OwnedFd>) -> Self {
        let init = compile(dir.path(), "init", INIT, &["-static", "-nostdlib"]);
        let name = format!("pmbuild-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = Cgroup::create(&Hierarchies::detect().unwrap(), Path::new(&name)).unwrap();
        let mut command = Command::new("unshare");
        command.args(["-f", "-p", "-m", "-n", "-i", "-u", "-T", "--mount-proc", "--kill-child"]);
        // Descriptor 3 of init: through a shell, for lack of a way to say so here.
        if let Some(fd) = output {
            let script = "exec 3>&2 2>/dev/null; exec \"$@\"";
            command.args(["sh", "-c", script, "sh"]).stderr(fd);
        } else {
            command.stderr(Stdio::null());
        }
        let mut child =
            command.arg(&init).args(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        let pid = child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let init = children.trim().parse().unwrap();
        cgroup.add(init).unwrap();
        child.stdin.take().unwrap().write_all(b"g").unwrap();
        Self { dir, child, told, init, cgroup }
    }

    fn freezer(&self) -> Freezer {
        self.cgroup.freezer()
    }

    fn builder(&self) -> Builder {
        let ctx = TargetCtx {
            vdso: Vec::new(),
            xstate: Vec::new(),
            init: self.init,
            syscall_at: self.borrowed(),
            cgroup: self.freezer(),
            ports: HashMap::new(),
        };
        Builder::new(ctx).unwrap()
    }

    /// Address of `syscall; ret` in init.
    fn borrowed(&self) -> u64 {
        let text = std::fs::read(format!("/proc/{}/maps", self.init)).unwrap();
        let lines = maps::parse(&text).unwrap();
        let mem = crate::remote::Mem::open(self.init).unwrap();
        for line in lines.iter().filter(|l| l.perms.exec() && l.has_file()) {
            let mut code = vec![0; line.range.len() as usize];
            mem.read(line.range.start, &mut code).unwrap();
            if let Some(at) = code.windows(3).position(|w| w == [0x0f, 0x05, 0xc3]) {
                return line.range.start + at as u64;
            }
        }
        panic!("init has no syscall instruction");
    }

    /// The next end of a child that init tells of: (pid in the pod, wait status).
    fn ended(&mut self) -> (i32, i32) {
        let mut line = String::new();
        self.told.read_line(&mut line).unwrap();
        let (pid, status) = line.trim().split_once(' ').unwrap();
        (pid.parse().unwrap(), status.parse().unwrap())
    }

    /// A program the pod's processes can map: a file of a few pages.
    fn program(&self) -> MappedFile {
        let path = self.dir.path().join("program");
        if !path.exists() {
            std::fs::copy(self.dir.path().join("init"), &path).unwrap();
        }
        mapped_file(&path)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.cgroup.kill_all();
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.cgroup.wait_empty();
        self.cgroup.remove().unwrap();
    }
}

fn mapped_file(path: &Path) -> MappedFile {
    let meta = std::fs::metadata(path).unwrap();
    MappedFile {
        path: path.to_str().unwrap().as_bytes().to_vec(),
        size: meta.len(),
        mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
        writable: false,
        hash: Some(xxhash_rust::xxh3::xxh3_64(&std::fs::read(path).unwrap())),
    }
}

/// A process that ends in nothing special.
fn node(pid: i32, ppid: i32, pgid: i32, sid: i32) -> ProcNode {
    ProcNode {
        pid,
        ppid,
        pgid,
        sid,
        exit_signal: libc::SIGCHLD,
        tids: vec![pid],
        zombie: None,
        comm: b"skeleton".to_vec(),
    }
}

const CODE: u64 = 0x1000_0000;

/// A layout with a page of code, the vdso at a place of its own, and whatever `more` says.
fn layout(pid: i32, more: Vec<Vma>) -> MmLayout {
    let own = std::fs::read("/proc/self/maps").unwrap();
    let mut vmas = vec![
        vma(0x40_0000, 1, VmaFlags::READ | VmaFlags::EXEC, file(0, 0)),
        vma(CODE, 1, VmaFlags::READ | VmaFlags::WRITE | VmaFlags::EXEC, Backing::Anon),
    ];
    let mut at = 0x7fff_0000_0000;
    for (name, backing) in
        [(&b"[vvar]"[..], Backing::Vvar), (b"[vvar_vclock]", Backing::VvarVclock), (b"[vdso]", Backing::Vdso)]
    {
        if let Some(line) = maps::parse(&own).unwrap().iter().find(|l| l.name == name) {
            let exec = if backing == Backing::Vdso { VmaFlags::EXEC } else { VmaFlags::empty() };
            vmas.push(Vma {
                range: AddrRange::new(at, at + line.range.len()),
                flags: VmaFlags::READ | exec,
                backing,
                name: None,
            });
            at += line.range.len();
        }
    }
    vmas.extend(more);
    vmas.sort_by_key(|v| v.range);
    let borders = Borders {
        start_code: 0x40_0000,
        end_code: 0x40_1000,
        start_data: 0x40_0000,
        end_data: 0x40_1000,
        start_brk: 0x5000_0000,
        brk: 0x5000_0000,
        start_stack: 0x7ffe_0000_0000,
        arg_start: 0x40_0000,
        arg_end: 0x40_0010,
        env_start: 0x40_0010,
        env_end: 0x40_0020,
        auxv: vec![0; 32],
    };
    MmLayout { mm: MmId(pid), vmas, borders, exe: MapFileId(0) }
}

fn file(file: u32, offset: u64) -> Backing {
    Backing::File { file: MapFileId(file), offset }
}

fn vma(start: u64, pages: u64, flags: VmaFlags, backing: Backing) -> Vma {
    Vma { range: AddrRange::new(start, start + pages * 4096), flags, backing, name: None }
}

/// A tree of these processes, each with the same small address space.
fn tree(pod: &Pod, procs: Vec<ProcNode>) -> Tree {
    let mms = procs.iter().filter(|n| n.zombie.is_none()).map(|n| layout(n.pid, vec![])).collect();
    Tree { procs, mms, files: vec![pod.program()], objects: vec![] }
}

/// Fields 4, 5, 6 of `/proc/P/stat` (parent, group, session) and the state letter, as the pod sees them.
fn family_of(init: i32, pid: i32) -> Option<(char, i32, i32, i32)> {
    let pid = pid.to_string();
    let shown = Command::new("nsenter")
        .args(["-t", &init.to_string(), "-p", "-m", "cat", &format!("/proc/{pid}/stat")])
        .output()
        .unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    let rest = text.rsplit_once(") ")?.1;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let mut number = || fields.next().and_then(|f| f.parse().ok());
    Some((state, number()?, number()?, number()?))
}
