//! Processes, sessions, groups, zombies, address spaces.

use super::*;
use crate::state::object::{Object, ObjectId, ObjectKind};
use crate::state::script::{About, Script};
use crate::state::target::Error;
use std::os::unix::fs::FileExt;

#[test]
fn sessions_groups_and_orphans_are_as_they_were() {
    let pod = Pod::new();
    // A shell (5) with a job (6, 7 in its group), a child from before its setsid, a daemon whose session leader is
    // dead, an orphan of a session led from below.
    let procs = vec![
        node(5, 1, 5, 5),
        node(6, 5, 6, 5),
        node(7, 5, 6, 5),
        node(8, 6, 8, 8),
        node(9, 1, 8, 8),
        node(20, 1, 19, 19),
        node(21, 20, 19, 19),
        node(30, 1, 29, 5),
    ];
    let want: Vec<_> = procs.iter().map(|n| (n.pid, n.ppid, n.pgid, n.sid)).collect();
    let mut builder = pod.builder();
    let skeleton = builder.skeleton(&tree(&pod, procs)).unwrap();
    assert_eq!(skeleton.pids.len(), want.len());
    let got: Vec<_> = want
        .iter()
        .map(|(pid, ..)| {
            family_of(pod.init, *pid).map(|(_, ppid, pgid, sid)| (*pid, ppid, pgid, sid)).unwrap()
        })
        .collect();
    assert_eq!(got, want);
    assert_eq!(pod.cgroup.procs().unwrap().len(), want.len() + 1);
    eprintln!("{:?}", builder.stages());
    builder.abort();
    until("all but init are gone", || (pod.cgroup.procs().unwrap() == vec![pod.init]).then_some(()));
}

#[test]
fn zombies_keep_their_status() {
    let pod = Pod::new();
    let zombie = |pid, ppid, status| ProcNode {
        zombie: Some(status),
        comm: b"done".to_vec(),
        ..node(pid, ppid, 5, 5)
    };
    let procs = vec![
        node(5, 1, 5, 5),
        zombie(6, 5, 7 << 8),
        zombie(7, 5, libc::SIGTERM),
        zombie(8, 5, libc::SIGKILL),
        zombie(9, 1, 3 << 8),
    ];
    let mut builder = pod.builder();
    builder.skeleton(&tree(&pod, procs)).unwrap();
    for pid in [6, 7, 8] {
        assert_eq!(family_of(pod.init, pid), Some(('Z', 5, 5, 5)));
    }
    // The parents, which are ours, wait for them.
    let wait = |builder: &mut Builder, parent: i32, pid: i32| {
        let mut s = Script::new();
        let status = s.out(4);
        let args = [pid.into(), status.into(), libc::WNOHANG.into(), 0u64.into()];
        let call = s.must("wait4", About::Number(pid.into()), libc::SYS_wait4, &args);
        let r = builder.run(parent, &s).unwrap();
        assert_eq!(r.ret(call), Ok(pid.into()));
        r.int(status, 0)
    };
    let found = [6, 7, 8].map(|pid| wait(&mut builder, 5, pid));
    assert_eq!(found, [7 << 8, libc::SIGTERM, libc::SIGKILL]);
    assert_eq!(wait(&mut builder, 1, 9), 3 << 8);
    builder.abort();
    assert_eq!(pod.cgroup.procs().unwrap(), [pod.init]);
}

/// A mapping is where it was, with its protection, attributes and offset.
fn lies_as(v: &crate::state::mm::Vma, records: &[maps::Record<'_>], text: &[u8]) {
    use VmaFlags as F;
    let found = records.iter().find(|r| r.line.range == v.range);
    let found =
        found.unwrap_or_else(|| panic!("{:?} is not there:\n{}", v.range, String::from_utf8_lossy(text)));
    let perms = found.line.perms;
    let flags = [
        (perms.read(), F::READ),
        (perms.write(), F::WRITE),
        (perms.exec(), F::EXEC),
        (perms.shared(), F::SHARED),
    ];
    for (set, flag) in flags {
        assert_eq!(set, v.flags.contains(flag), "{v:?}");
    }
    for (theirs, ours) in [
        (maps::VmFlags::GROWSDOWN, F::GROWSDOWN),
        (maps::VmFlags::NORESERVE, F::NORESERVE),
        (maps::VmFlags::DONTFORK, F::DONTFORK),
        (maps::VmFlags::NOHUGEPAGE, F::NOHUGEPAGE),
        (maps::VmFlags::DONTDUMP, F::DONTDUMP),
    ] {
        let special = matches!(v.backing, Backing::Vdso | Backing::Vvar | Backing::VvarVclock);
        assert!(special || found.flags.contains(theirs) == v.flags.contains(ours), "{v:?} {:?}", found.flags);
    }
    match v.backing {
        Backing::File { offset, .. } | Backing::Object { offset, .. } => {
            assert_eq!(found.line.offset, offset)
        }
        _ => {}
    }
}

#[test]
fn mappings_lie_where_they_lay() {
    let pod = Pod::new();
    let path = pod.dir.path().join("data");
    std::fs::write(&path, vec![7u8; 3 * 4096]).unwrap();
    let mut shared_file = mapped_file(&path);
    (shared_file.writable, shared_file.hash) = (true, None);
    use VmaFlags as F;
    let rw = F::READ | F::WRITE;
    let mut named = vma(0x2000_0000, 4, rw, Backing::Anon);
    named.name = Some(b"pod memory".to_vec());
    let object = |n, offset| Backing::Object { object: ObjectId(n), offset };
    let more = vec![
        named,
        vma(0x2010_0000, 2, F::empty(), Backing::Anon),
        vma(0x2020_0000, 2, F::READ, file(0, 4096)),
        vma(0x2030_0000, 2, rw | F::SHARED, file(1, 4096)),
        vma(0x2040_0000, 4, rw | F::SHARED, object(0, 0)),
        vma(0x2050_0000, 1, F::READ | F::SHARED, object(1, 4096)),
        vma(0x2060_0000, 2, rw, object(2, 0)),
        vma(0x2070_0000, 512, rw | F::NORESERVE | F::DONTFORK | F::NOHUGEPAGE | F::DONTDUMP, Backing::Anon),
        vma(0x5000_0000, 3, rw, Backing::Anon),
        vma(0x7ffd_ffff_0000, 17, rw | F::GROWSDOWN, Backing::Anon),
    ];
    let make = |kind| Object { kind, size: 4 * 4096, mode: 0o600, uid: 0, gid: 0 };
    let seals = (libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK) as u32;
    let gone = pod.dir.path().join("gone").to_str().unwrap().as_bytes().to_vec();
    let mut t = tree(&pod, vec![node(5, 1, 5, 5)]);
    t.mms = vec![layout(5, more)];
    t.mms[0].borders.brk = 0x5000_2800;
    t.files.push(shared_file);
    t.objects = vec![
        make(ObjectKind::AnonShared),
        make(ObjectKind::Memfd { name: b"m".to_vec(), seals }),
        make(ObjectKind::Deleted { path: gone }),
    ];
    let mut builder = pod.builder();
    let skeleton = builder.skeleton(&t).unwrap();
    let host = skeleton.pids[&MmId(5)];
    let proc = crate::kernel::procfs::Proc::open(host).unwrap();
    let text = proc.read("smaps").unwrap();
    let records = maps::parse_smaps(&text).unwrap();
    let scratch = builder.slot.unwrap();
    for v in &t.mms[0].vmas {
        lies_as(v, &records, &text);
    }
    let ours = AddrRange::new(scratch.code(), scratch.area().end);
    let others: Vec<_> = records
        .iter()
        .filter(|r| r.line.name != b"[vsyscall]" && !t.mms[0].vmas.iter().any(|v| v.range == r.line.range))
        .map(|r| r.line.range)
        .collect();
    assert_eq!(others, [ours], "{}", String::from_utf8_lossy(&text));
    let names: Vec<_> = records.iter().map(|r| String::from_utf8_lossy(r.line.name).into_owned()).collect();
    for name in ["[heap]", "[stack]", "/dev/zero (deleted)", "/memfd:m (deleted)", "[vdso]"] {
        assert!(names.iter().any(|n| n == name), "{name}: {names:?}");
    }
    let exe = std::fs::read_link(format!("/proc/{host}/exe")).unwrap();
    assert_eq!(exe, pod.dir.path().join("program"));
    // An object is filled through its handle, and every mapping of it shows that.
    std::fs::File::from(skeleton.objects[&ObjectId(0)].try_clone().unwrap())
        .write_all_at(b"shared", 5000)
        .unwrap();
    let mut back = [0; 6];
    crate::remote::Mem::open(host).unwrap().read(0x2040_0000 + 5000, &mut back).unwrap();
    assert_eq!(&back, b"shared");
    assert!(std::fs::read_dir(format!("/proc/{host}/fd")).unwrap().count() == 1);
    builder.abort();
}

#[test]
fn a_missing_program_is_refused_by_name_and_nothing_is_left() {
    let pod = Pod::new();
    let mut t = tree(&pod, vec![node(5, 1, 5, 5), node(6, 5, 5, 5)]);
    t.files[0].path = b"/no/such/program".to_vec();
    let mut builder = pod.builder();
    match builder.skeleton(&t) {
        Err(Error::Files(blockers)) => {
            assert_eq!(blockers[0].path.as_deref(), Some("/no/such/program"));
            assert_eq!(blockers[0].kind, "missing-file");
        }
        other => panic!("{other:?}"),
    }
    drop(builder);
    until("all but init are gone", || (pod.cgroup.procs().unwrap() == vec![pod.init]).then_some(()));
    // Init is as it was: another builder can start on it.
    let text = std::fs::read_to_string(format!("/proc/{}/maps", pod.init)).unwrap();
    assert!(!text.contains("rwxp"), "{text}");
    let mut builder = pod.builder();
    builder.skeleton(&tree(&pod, vec![node(5, 1, 5, 5)])).unwrap();
    builder.abort();
}

#[test]
fn a_pid_beyond_the_limit_is_refused() {
    let pod = Pod::new();
    let far = builder_limit(&pod);
    let mut builder = pod.builder();
    assert!(matches!(builder.skeleton(&tree(&pod, vec![node(far, 1, far, far)])), Err(Error::Family(_))));
}

fn builder_limit(pod: &Pod) -> i32 {
    pod.builder().host.pid_max
}
