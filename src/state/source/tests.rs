//! Real programs in a pod, read from outside, compared with what they say of themselves.

use super::fixture::{Pod, until};
use crate::base::Blocker;
use crate::state::error::Error;
use crate::state::object::ObjectKind;

fn kinds(found: &[Blocker]) -> Vec<(&str, Option<i32>)> {
    found.iter().map(|b| (b.kind.as_str(), b.pid)).collect()
}

#[test]
fn a_family_with_sessions_groups_threads_and_zombies() {
    let mut pod = Pod::start(
        r#"
def leader():
    os.setsid()
    def member():
        os.setpgid(0, 0)
        for _ in range(3): threading.Thread(target=pause, daemon=True).start()
        fork(lambda: os._exit(7))
        say("member", *os.sched_getaffinity(0))
        say(*sorted(int(t) for t in os.listdir("/proc/self/task")))
        pause()
    child = fork(member)
    pause()
pid = fork(leader)
say(pid)
pause()
"#,
    );
    let leader: i32 = pod.line().parse().unwrap();
    pod.line();
    let tids: Vec<i32> = pod.line().split(' ').map(|t| t.parse().unwrap()).collect();
    let member = tids[0];
    let tree = until("the zombie", || {
        let tree = pod.source().prepare().unwrap();
        tree.procs.iter().any(|p| p.zombie.is_some()).then_some(tree)
    });
    let node = |pid: i32| tree.procs.iter().find(|p| p.pid == pid).unwrap();
    let (l, m) = (node(leader), node(member));
    assert_eq!((l.ppid, l.pgid, l.sid, l.zombie), (1, leader, leader, None));
    assert_eq!((m.ppid, m.pgid, m.sid, &m.tids), (leader, member, leader, &tids));
    let zombie = tree.procs.iter().find(|p| p.zombie.is_some()).unwrap();
    assert_eq!((zombie.ppid, zombie.pgid, zombie.sid, zombie.zombie), (member, member, leader, Some(7 << 8)));
    assert_eq!((zombie.exit_signal, zombie.comm.as_slice()), (libc::SIGCHLD, &b"python3"[..]));
    assert_eq!(tree.procs.iter().map(|p| p.pid).collect::<Vec<_>>(), [leader, member, zombie.pid]);
    assert_eq!(tree.mms.iter().map(|m| m.mm.0).collect::<Vec<_>>().len(), 2);
}

#[test]
fn objects_keep_their_ids_and_are_read_through_handles() {
    let mut pod = Pod::start(
        r#"
def work():
    fd = os.memfd_create("only an fd")
    os.write(fd, b"content")
    path = "/dev/shm/named"
    open(path, "w").write("x" * 100)
    shm = open(path)
    say("ready")
    wait()
    more = os.memfd_create("later")
    say("more")
    pause()
fork(work)
pause()
"#,
    );
    pod.line();
    let mut source = pod.source();
    let tree = source.prepare().unwrap();
    let find = |tree: &crate::state::Tree, f: &dyn Fn(&ObjectKind) -> bool| {
        tree.objects.iter().position(|o| f(&o.kind)).unwrap()
    };
    let memfd = |name: &'static [u8]| move |k: &ObjectKind| matches!(k, ObjectKind::Memfd { name: n, .. } if n == name);
    let at = find(&tree, &memfd(b"only an fd"));
    let shm = find(&tree, &|k| *k == ObjectKind::Private { path: b"/dev/shm/named".to_vec() });
    assert_eq!((tree.objects[at].size, tree.objects[shm].size), (7, 100));
    pod.go_on();
    pod.line();
    let again = source.prepare().unwrap();
    assert_eq!(again.objects[..tree.objects.len()], tree.objects[..], "ids must not change");
    let later = find(&again, &memfd(b"later"));
    assert_eq!(later, tree.objects.len());
    let handles = source.handles().unwrap();
    assert_eq!(handles.len(), again.objects.len());
    let id = crate::state::object::ObjectId(u32::try_from(at).unwrap());
    let mut buf = [0; 16];
    let n = nix::sys::uio::pread(&handles[&id], &mut buf, 0).unwrap();
    assert_eq!(&buf[..n], b"content");
}

#[test]
fn everything_in_the_way_is_listed_at_once() {
    let mut pod = Pod::start(
        r#"
def nested():
    libc.unshare(0x4000000)  # CLONE_NEWUTS
    say("a", os.getpid()); pause()
def strict():
    libc.prctl(38, 1, 0, 0, 0)
    class F(ctypes.Structure): _fields_ = [("n", ctypes.c_ushort), ("p", ctypes.c_char_p)]
    libc.prctl(22, 2, ctypes.byref(F(1, b"\x06\0\0\0\0\0\xff\x7f")))  # allow all
    say("b", os.getpid()); pause()
def lost():
    os.mkdir("/tmp/pmcollect-lost"); os.chdir("/tmp/pmcollect-lost"); os.rmdir("/tmp/pmcollect-lost")
    libc.shmget(0, 4096, 0o1600)
    say("c", os.getpid()); pause()
def thread():
    def apart(): libc.unshare(0x400); say("d", os.getpid()); pause()   # CLONE_FILES
    threading.Thread(target=apart, daemon=True).start(); pause()
def traced(): say("e", os.getpid()); pause()
for f in (nested, strict, lost, thread, traced): fork(f)
pause()
"#,
    );
    let mut pid = std::collections::HashMap::new();
    for _ in 0..5 {
        let line = pod.line();
        let (name, number) = line.split_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        pid.insert(name.to_owned(), number.parse::<i32>().unwrap());
    }
    let host = pod.host(pid["e"]);
    let mut strace = std::process::Command::new("strace")
        .args(["-q", "-o", "/dev/null", "-p", &host.to_string()])
        .spawn()
        .unwrap();
    let found = until("strace", || {
        let found = pod.source().preflight().unwrap();
        found.iter().any(|b| b.kind == "traced").then_some(found)
    });
    strace.kill().unwrap();
    strace.wait().unwrap();
    let mut want = [
        ("sysv-shm", None),
        ("namespace", Some(pid["a"])),
        ("seccomp", Some(pid["b"])),
        ("directory", Some(pid["c"])),
        ("thread-apart", Some(pid["d"])),
        ("traced", Some(pid["e"])),
    ];
    want.sort_by_key(|w| w.1);
    assert_eq!(kinds(&found), want, "{found:#?}");
    assert!(found.iter().all(|b| !b.message.is_empty() && !b.remedy.is_empty()));
    assert!(found.iter().any(|b| b.message.contains("strace")));
    assert!(matches!(pod.source().prepare(), Err(Error::Refused(all)) if all.len() >= 5));
}

#[test]
fn shared_memory_without_threads_is_refused_and_a_spawn_is_not() {
    let mut pod = Pod::start(
        r#"
CLONE = 0x100|0x400|17   # CLONE_VM|CLONE_FILES|SIGCHLD
stack = ctypes.create_string_buffer(65536)
def work():
    f = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: (pause(), 0)[1])
    libc.clone(libc.pause, ctypes.c_void_p(ctypes.addressof(stack) + 65520), CLONE, None)
    say("ready"); pause()
fork(work)
pause()
"#,
    );
    pod.line();
    let found = pod.source().preflight().unwrap();
    let shared: Vec<_> = found.iter().filter(|b| b.kind == "shared").map(|b| b.message.clone()).collect();
    assert_eq!(shared.len(), 2, "{found:#?}");
    assert!(shared[0].contains("memory") && shared[1].contains("descriptor table"), "{shared:?}");
}
