//! Layouts of real programs, compared with what the programs themselves say and with `smaps`.

use super::*;
use crate::state::mm::files::FileTable;
use crate::state::object::ObjectKind;
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

/// A Python program that says `ready` (or more) line by line, and goes on at each line it is given.
struct Program {
    child: Child,
    out: BufReader<ChildStdout>,
    input: ChildStdin,
}

/// mmap(2) and madvise(2) by ctypes: Python's own module lacks half of the flags.
const PRELUDE: &str = r#"
import ctypes, os, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = libc.mprotect.argtypes = libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PRIVATE, SHARED, FIXED, ANON, GROWSDOWN, NORESERVE = 2, 1, 0x10, 0x20, 0x100, 0x4000
K = 4096
def mmap(pages, flags, fd=-1, off=0, prot=3, at=None):
    a = libc.mmap(at, pages * K, prot, flags, fd, off)
    assert a != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    return a
def ok(r): assert r == 0, os.strerror(ctypes.get_errno())
def say(*w): os.write(1, (" ".join(map(str, w)) + "\n").encode())
def wait(): return sys.stdin.readline().strip()
"#;

impl Program {
    fn start(code: &str) -> Self {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-I", "-c", &format!("{PRELUDE}\n{code}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let input = child.stdin.take().unwrap();
        Self { child, out, input }
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the program ended");
        line.trim().to_owned()
    }

    /// A line of hexadecimal numbers.
    fn addresses(&mut self) -> Vec<u64> {
        self.line().split(' ').map(|w| u64::from_str_radix(w, 16).unwrap()).collect()
    }

    /// Waits, bounded, until it sleeps: what it does after a line is over.
    fn quiet(&self) {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while stat_of(&Proc::open(self.pid()).unwrap()).state != b'S' {
            assert!(std::time::Instant::now() < end, "it does not come to rest");
            std::thread::yield_now();
        }
    }

    fn go_on(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a pass over one process finds.
struct Pass {
    layout: Option<MmLayout>,
    files: FileTable,
    objects: ObjectTable,
    found: Vec<Blocker>,
}

fn stat_of(proc: &Proc) -> Stat {
    Stat::parse(&proc.read("stat").unwrap()).unwrap()
}

/// Compares without printing a page of mappings.
fn same(a: &Known, b: &Known) {
    let differ = a.seen.iter().zip(&b.seen).find(|(a, b)| a != b);
    assert!(a == b, "{} and {} mappings, first unlike: {differ:?}", a.seen.len(), b.seen.len());
}

fn known(pid: i32, before: Option<&Known>) -> Known {
    let proc = Proc::open(pid).unwrap();
    let status = crate::kernel::procfs::Status::parse(&proc.read("status").unwrap()).unwrap();
    read_mappings(&proc, &stat_of(&proc), status.locked_kib, before, &mut Vec::new()).unwrap()
}

fn pass(pid: i32, private: HashSet<u64>) -> Pass {
    let proc = Proc::open(pid).unwrap();
    let init = Arc::new(Proc::open(pid).unwrap());
    let mut files = FileTable::new(init);
    let mut objects = ObjectTable::new(private).unwrap();
    let mut found = Vec::new();
    let mut tables = Tables { files: &mut files, objects: &mut objects, found: &mut found, tracked: false };
    let layout = layout(&proc, 7, &stat_of(&proc), &known(pid, None), &mut tables).unwrap();
    Pass { layout, files, objects, found }
}

impl Pass {
    fn at(&self, addr: u64) -> &Vma {
        let layout = self.layout.as_ref().unwrap();
        layout.vmas.iter().find(|v| v.range.contains(addr)).unwrap_or_else(|| panic!("{addr:x} is missing"))
    }
}

#[test]
fn anonymous_memory_with_every_flag() {
    let mut p = Program::start(
        r#"
a = [mmap(2, PRIVATE|ANON) for _ in range(9)]
# A hole behind each, so that none is merged with another.
base = mmap(64, PRIVATE|ANON|NORESERVE, prot=0)
a = [mmap(2, PRIVATE|ANON|FIXED|f, at=base + i*4*K) for i, f in enumerate([0, NORESERVE, GROWSDOWN, 0, 0, 0, 0, 0, 0])]
for at, advice in zip(a[3:], [10, 16, 14, 15, 18, 1]): ok(libc.madvise(at, 2*K, advice))
ok(libc.mprotect(a[0], 2*K, 1))
name = ctypes.create_string_buffer(b"my heap")
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong]*4
libc.prctl(0x53564d41, 0, a[8], 2*K, ctypes.addressof(name))
say(*["%x" % x for x in a])
wait()
"#,
    );
    let a = p.addresses();
    let pass = pass(p.pid(), HashSet::new());
    assert_eq!(pass.found, []);
    use VmaFlags as F;
    let rw = F::READ | F::WRITE;
    let want = [
        F::READ,
        rw | F::NORESERVE,
        rw | F::GROWSDOWN,
        rw | F::DONTFORK,
        rw | F::DONTDUMP,
        rw | F::HUGEPAGE,
        rw | F::NOHUGEPAGE,
        rw | F::WIPEONFORK,
        rw | F::RANDOM,
    ];
    for (addr, want) in a.iter().zip(want) {
        let vma = pass.at(*addr);
        assert_eq!((vma.flags, &vma.backing), (want, &Backing::Anon), "{vma:?}");
        assert_eq!(vma.range.len(), 8192);
    }
    // A kernel without CONFIG_ANON_VMA_NAME refuses the name.
    let name = pass.at(a[8]).name.as_deref();
    assert!(matches!(name, None | Some(b"my heap")), "{name:?}");
    let layout = pass.layout.as_ref().unwrap();
    assert!(layout.vmas.windows(2).all(|w| w[0].range.end <= w[1].range.start));
    for kind in [Backing::Vdso, Backing::Vvar] {
        assert_eq!(layout.vmas.iter().filter(|v| v.backing == kind).count(), 1, "{kind:?}");
    }
    let stack = layout.vmas.iter().find(|v| v.range.contains(layout.borders.start_stack)).unwrap();
    assert!(stack.flags.contains(F::GROWSDOWN));
    // Two independent sources of the borders: AT_ENTRY lies in the code, AT_EXECFN beyond the environment.
    let entry = auxv(&layout.borders.auxv, libc::AT_ENTRY);
    assert!((layout.borders.start_code..layout.borders.end_code).contains(&entry));
    assert!(auxv(&layout.borders.auxv, libc::AT_EXECFN) >= layout.borders.env_end);
    assert_eq!(auxv(&layout.borders.auxv, libc::AT_PAGESZ), 4096);
}

fn auxv(raw: &[u8], key: u64) -> u64 {
    let word = |b: &[u8]| u64::from_ne_bytes(b.try_into().unwrap());
    raw.chunks_exact(16).find(|c| word(&c[..8]) == key).map(|c| word(&c[8..])).unwrap()
}

#[test]
fn files_and_objects_behind_mappings() {
    let mut p = Program::start(
        r#"
d = tempfile.mkdtemp()
def file(name, data=b"x" * 3 * K):
    path = os.path.join(os.fsencode(d), name)
    open(path, "wb").write(data)
    return path, os.open(path, os.O_RDWR)
odd, ofd = file(b"a\n\\012 \xff (deleted)")
gone, gfd = file(b"gone")
ro = os.open(odd, os.O_RDONLY)
mem = os.memfd_create("mem")
os.ftruncate(mem, 4*K)
shm = "/dev/shm/pmcollect%d" % os.getpid()
sfd = os.open(shm, os.O_RDWR|os.O_CREAT)
os.ftruncate(sfd, 4*K)
a = [mmap(2, PRIVATE, ofd, K), mmap(1, SHARED, ofd), mmap(1, SHARED, ro, prot=1), mmap(1, SHARED, gfd),
     mmap(2, SHARED, mem, 2*K), mmap(2, PRIVATE, mem), mmap(3, SHARED|ANON), mmap(1, SHARED, sfd),
     mmap(1, PRIVATE, os.open("/dev/zero", os.O_RDWR))]
os.unlink(gone)
say(*["%x" % x for x in a])
say(os.fsencode(d).hex())
say("%x" % os.stat(shm).st_dev)
wait()
os.unlink(shm); os.unlink(odd); os.rmdir(d)
say("bye")
"#,
    );
    let a = p.addresses();
    let dir = p.line();
    let shm = p.addresses()[0];
    let pass = pass(p.pid(), [shm].into());
    assert_eq!(pass.found, []);
    let dir: Vec<u8> =
        (0..dir.len()).step_by(2).map(|i| u8::from_str_radix(&dir[i..i + 2], 16).unwrap()).collect();
    let path = |name: &[u8]| [&dir[..], b"/", name].concat();
    let files = pass.files.files();
    let file = |i: usize| match pass.at(a[i]).backing {
        Backing::File { file, offset } => (&files[file.0 as usize], offset),
        ref other => panic!("mapping {i} is {other:?}"),
    };
    let object = |i: usize| match pass.at(a[i]).backing {
        Backing::Object { object, offset } => (pass.objects.get(object).unwrap(), object, offset),
        ref other => panic!("mapping {i} is {other:?}"),
    };
    let odd = path(b"a\n\\012 \xff (deleted)");
    let hash = xxhash_rust::xxh3::xxh3_64(&[b'x'; 3 * 4096]);
    assert_eq!((&file(0).0.path, file(0).1, file(0).0.hash), (&odd, 4096, Some(hash)));
    assert!(!file(0).0.writable && !pass.at(a[0]).flags.contains(VmaFlags::SHARED));
    assert_eq!((&file(1).0.path, file(1).0.writable, file(1).0.hash), (&odd, true, None));
    assert_eq!((&file(2).0.path, file(2).0.writable, file(2).0.size), (&odd, false, 3 * 4096));
    assert_eq!(object(3).0.kind, ObjectKind::Deleted { path: path(b"gone") });
    let memfd = object(4);
    assert!(matches!(&memfd.0.kind, ObjectKind::Memfd { name, .. } if name == b"mem"));
    assert_eq!((memfd.0.size, memfd.2), (4 * 4096, 2 * 4096));
    assert_eq!(object(5).1, memfd.1, "one object, mapped twice");
    assert!(!pass.at(a[5]).flags.contains(VmaFlags::SHARED));
    assert_eq!((&object(6).0.kind, object(6).0.size), (&ObjectKind::AnonShared, 3 * 4096));
    let shm = format!("/dev/shm/pmcollect{}", p.pid()).into_bytes();
    assert_eq!(object(7).0.kind, ObjectKind::Private { path: shm });
    assert_eq!(pass.at(a[8]).backing, Backing::Anon);
    let exe = &files[pass.layout.as_ref().unwrap().exe.0 as usize];
    let real = std::fs::read_link(format!("/proc/{}/exe", p.pid())).unwrap();
    assert_eq!(exe.path, real.as_os_str().as_encoded_bytes());
    assert_eq!(exe.hash, Some(xxhash_rust::xxh3::xxh3_64(&std::fs::read(&real).unwrap())));
    p.go_on();
    assert_eq!(p.line(), "bye");
}

#[test]
fn flags_follow_without_reading_smaps_and_are_the_same() {
    let mut p = Program::start(
        r#"
base = mmap(256, PRIVATE|ANON|NORESERVE, prot=0)
at = lambda n: base + n*K
def put(n, pages, flags=0): return mmap(pages, PRIVATE|ANON|FIXED|flags, at=at(n))
put(0, 4); put(10, 4); ok(libc.madvise(at(10), 4*K, 10)); put(20, 8); put(30, 8); put(40, 4)
ok(libc.munmap(at(4), 2*K))
say("%x" % base)
wait()
mmap(2, PRIVATE|ANON|FIXED, at=at(4))              # grown
ok(libc.munmap(at(10), K))                         # shrunk, with DONTFORK
ok(libc.munmap(at(22), 2*K))                       # a hole in the middle
say("easy")
wait()
ok(libc.madvise(at(30), 4*K, 10))                  # split by madvise: smaps must be read
put(50, 4); ok(libc.madvise(at(50), 4*K, 18))      # new
say("hard")
wait()
ok(libc.mlock(at(40), 4*K, 0))
say("locked")
wait()
"#,
    );
    p.line();
    p.quiet();
    let first = known(p.pid(), None);
    p.go_on();
    p.line();
    p.quiet();
    // What follows from `maps` alone must be what `smaps` says.
    let proc = Proc::open(p.pid()).unwrap();
    let text = proc.read("maps").unwrap();
    let lines = maps::parse(&text).unwrap();
    assert!((0..lines.len()).all(|i| first.infer(&lines, i).is_some()), "smaps would be read");
    let easy = known(p.pid(), Some(&first));
    same(&easy, &known(p.pid(), None));
    p.go_on();
    p.line();
    p.quiet();
    let text = proc.read("maps").unwrap();
    let lines = maps::parse(&text).unwrap();
    assert!((0..lines.len()).any(|i| easy.infer(&lines, i).is_none()), "a split must not go unseen");
    let hard = known(p.pid(), Some(&easy));
    same(&hard, &known(p.pid(), None));
    p.go_on();
    p.line();
    p.quiet();
    let locked = known(p.pid(), Some(&hard));
    same(&locked, &known(p.pid(), None));
    assert!(locked.mappings().iter().any(|s| s.flags.contains(VmFlags::LOCKED)));
}

#[test]
fn what_cannot_be_carried_is_named() {
    let mut p = Program::start(
        r#"
import socket
base = mmap(8, PRIVATE|ANON)
guard = libc.madvise(base + 4*K, K, 102)
# perf and io_uring may be off; a packet socket's ring is memory of the kernel's, too.
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
s.setsockopt(263, 5, (K).to_bytes(4, "little") + (1).to_bytes(4, "little") + (2048).to_bytes(4, "little") + (2).to_bytes(4, "little"))
mmap(1, SHARED, s.fileno())
libc.shmat.restype = ctypes.c_void_p
id = libc.shmget(0, 8192, 0o1600)
libc.shmat(id, None, 0)
libc.shmctl(id, 0, None)
say(guard)
wait()
"#,
    );
    let guard = p.line();
    let pass = pass(p.pid(), HashSet::new());
    let kinds: Vec<_> = pass.found.iter().map(|b| (b.kind.as_str(), b.pid)).collect();
    assert_eq!(kinds, [("sysv-shm", Some(7)), ("socket-memory", Some(7))], "{:#?}", pass.found);
    assert!(pass.found.iter().all(|b| !b.remedy.is_empty() && b.path.is_some()));
    let guards = guard_pages(p.pid(), 7, &known(p.pid(), None)).unwrap();
    assert_eq!(guards.is_some(), guard == "0" && pagemap::has_guard(), "{guards:?}");
}

#[test]
fn a_deleted_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let exe = dir.path().join("sleep");
    std::fs::copy("/bin/sleep", &exe).unwrap();
    // Another test that forks just now may hold the copy open for writing for a moment (ETXTBSY).
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut child = loop {
        match Command::new(&exe).arg("60").spawn() {
            Ok(child) => break child,
            Err(e) => {
                assert!(e.raw_os_error() == Some(libc::ETXTBSY) && std::time::Instant::now() < end, "{e}")
            }
        }
    };
    let pid = child.id().cast_signed();
    let fine = pass(pid, HashSet::new());
    assert!(fine.layout.is_some() && fine.found.is_empty(), "{:?}", fine.found);
    std::fs::remove_file(&exe).unwrap();
    let gone = pass(pid, HashSet::new());
    assert!(gone.layout.is_none());
    assert_eq!(gone.found.iter().map(|b| b.kind.as_str()).collect::<Vec<_>>(), ["executable"]);
    child.kill().unwrap();
    child.wait().unwrap();
}
