//! A skeleton that follows its source: mappings and processes come and go, content stays.

use super::finish::{DATA, PAUSE, PAUSE_AT, data_page, process, state_of, thread};
use super::*;
use crate::remote::Mem;
use crate::state::object::{Object, ObjectId, ObjectKind};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

const HEAP: u64 = 0x5000_0000;
const STACK_END: u64 = 0x7ffe_0000_0000;
const RW: VmaFlags = VmaFlags::READ.union(VmaFlags::WRITE);

fn stack(pages: u64) -> Vma {
    vma(STACK_END - pages * 4096, pages, RW | VmaFlags::GROWSDOWN, Backing::Anon)
}

/// Protection of every page but those of our scratch.
fn pages(host: i32, builder: &Builder) -> BTreeMap<u64, i32> {
    let text = std::fs::read(format!("/proc/{host}/maps")).unwrap();
    let scratch = builder.slot.unwrap().code();
    let mut found = BTreeMap::new();
    for l in
        maps::parse(&text).unwrap().iter().filter(|l| l.name != b"[vsyscall]" && l.range.start != scratch)
    {
        let bit = |on: bool, n: i32| if on { n } else { 0 };
        let prot = bit(l.perms.read(), 1) | bit(l.perms.write(), 2) | bit(l.perms.exec(), 4);
        (l.range.start..l.range.end).step_by(4096).for_each(|at| {
            found.insert(at, prot);
        });
    }
    found
}

fn wanted(layout: &MmLayout) -> BTreeMap<u64, i32> {
    let mut all = BTreeMap::new();
    for v in &layout.vmas {
        let prot = crate::state::mm::restore::protection(v.flags);
        (v.range.start..v.range.end).step_by(4096).for_each(|at| {
            all.insert(at, prot);
        });
    }
    all
}

#[test]
fn content_stays_where_the_memory_stays() {
    let pod = Pod::new();
    let mut first = tree(&pod, vec![node(5, 1, 5, 5), node(6, 5, 5, 5), node(9, 5, 9, 5)]);
    let of = |pid, heap, stack_pages, more: Vec<Vma>| {
        let mut all = vec![data_page(), vma(HEAP, heap, RW, Backing::Anon), stack(stack_pages)];
        all.extend(more);
        let mut l = layout(pid, all);
        l.borders.brk = HEAP + heap * 4096;
        l
    };
    let gone = vma(0x3000_0000, 2, RW, Backing::Anon);
    let hardened = |flags| vma(0x3100_0000, 2, flags, Backing::Anon);
    first.mms[0] = of(5, 3, 2, vec![gone, hardened(RW | VmaFlags::DONTFORK)]);
    let mut builder = pod.builder();
    let before = builder.skeleton(&first).unwrap();
    let host = before.pids[&MmId(5)];
    let write = |host: i32, at: u64, text: &[u8]| Mem::open(host).unwrap().write(at, text).unwrap();
    write(host, DATA, b"data");
    write(host, HEAP + 0x2000, b"heap");
    write(host, STACK_END - 16, b"stack");
    write(host, 0x3100_0000, b"hard");

    // 6 is gone, 9 a zombie; 7 is new with a child of its own, and a memfd is there.
    let ended = ProcNode { zombie: Some(3 << 8), ..node(9, 5, 9, 5) };
    let mut second = tree(&pod, vec![node(5, 1, 5, 5), ended, node(7, 5, 7, 5), node(8, 7, 7, 5)]);
    second.files = first.files.clone();
    second.objects = vec![Object {
        kind: ObjectKind::Memfd { name: b"new".to_vec(), seals: 0 },
        size: 8192,
        mode: 0o600,
        uid: 0,
        gid: 0,
    }];
    let memfd =
        vma(0x3200_0000, 2, RW | VmaFlags::SHARED, Backing::Object { object: ObjectId(0), offset: 0 });
    let program = vma(0x3300_0000, 1, VmaFlags::READ, file(0, 0));
    second.mms[0] = of(5, 7, 9, vec![hardened(VmaFlags::READ), memfd.clone(), program]);
    second.mms[1] = of(7, 1, 1, vec![memfd]);
    second.mms[2] = layout(8, vec![data_page()]);
    let after = builder.update(&second).unwrap();
    eprintln!("{:?}", builder.stages());
    assert_eq!(after.pids[&MmId(5)], host, "it is still the same process");
    for l in &second.mms {
        assert_eq!(pages(after.pids[&l.mm], &builder), wanted(l), "process {}", l.mm.0);
    }
    let read = |at: u64, len: usize| {
        let mut back = vec![0; len];
        Mem::open(host).unwrap().read(at, &mut back).unwrap();
        String::from_utf8(back).unwrap()
    };
    let kept = [read(DATA, 4), read(HEAP + 0x2000, 4), read(STACK_END - 16, 5), read(0x3100_0000, 4)];
    assert_eq!(kept, ["data", "heap", "stack", "hard"]);
    let mut empty = [1; 8];
    Mem::open(after.pids[&MmId(7)]).unwrap().read(DATA, &mut empty).unwrap();
    assert_eq!(empty, [0; 8], "a newborn has nothing of its parent");
    std::fs::File::from(after.objects[&ObjectId(0)].try_clone().unwrap()).write_all_at(b"both", 0).unwrap();
    assert_eq!(read(0x3200_0000, 4), "both");
    assert_eq!(family_of(pod.init, 6), None);
    assert_eq!(family_of(pod.init, 9), Some(('Z', 5, 9, 5)));
    assert_eq!(family_of(pod.init, 8).map(|(_, ppid, pgid, sid)| (ppid, pgid, sid)), Some((7, 7, 5)));

    runs_when_finished(builder, &pod, &second, after.pids.values().copied().collect(), host);
}

/// It can be finished and run.
fn runs_when_finished(mut builder: Builder, pod: &Pod, second: &Tree, hosts: Vec<i32>, host: i32) {
    let write = |host: i32, at: u64, text: &[u8]| Mem::open(host).unwrap().write(at, text).unwrap();
    let xstate = builder.bodies[&5].threads[0].1.xstate().unwrap();
    for host in hosts {
        write(host, PAUSE_AT, &PAUSE);
    }
    let procs = [5, 7, 8].map(|pid| process(pid, vec![thread(pid, PAUSE_AT, 0, &xstate)]));
    builder.finish(second, &state_of(procs.into())).unwrap();
    builder.detach_frozen().unwrap();
    pod.freezer().thaw().unwrap();
    until("it sleeps in pause(2)", || {
        let call = std::fs::read_to_string(format!("/proc/{host}/syscall")).unwrap();
        call.starts_with("34 ").then_some(())
    });
}

#[test]
fn what_cannot_be_changed_is_built_anew() {
    let pod = Pod::new();
    let mut builder = pod.builder();
    let before = builder.skeleton(&tree(&pod, vec![node(5, 1, 5, 5), node(6, 5, 5, 5)])).unwrap();
    // 6 has a session of its own now, and 5 executed another program.
    let mut second = tree(&pod, vec![node(5, 1, 5, 5), node(6, 5, 6, 6)]);
    second.mms[0].borders.start_stack += 4096;
    let after = builder.update(&second).unwrap();
    assert_ne!(after.pids[&MmId(5)], before.pids[&MmId(5)]);
    assert_eq!(family_of(pod.init, 6).map(|(_, ppid, pgid, sid)| (ppid, pgid, sid)), Some((5, 6, 6)));
    let mut nodes = vec![node(5, 1, 5, 5)];
    nodes[0].ppid = 99;
    assert!(builder.update(&tree(&pod, nodes)).is_err());
    builder.abort();
    assert_eq!(pod.cgroup.procs().unwrap(), [pod.init]);
}
