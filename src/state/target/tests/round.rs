//! There and back again: real programs collected in one pod and built in another, on one kernel. Pages are copied by a
//! few lines here; the `memory` room does it properly.

use super::*;
use crate::freeze::{self, PodTasks};
use crate::kernel::cgroup::Freezer;
use crate::remote::Mem;
use crate::state::fd::Port;
use crate::state::object::ObjectId;
use crate::state::source::{PodView, Source};
use std::fs::File;
use std::os::unix::fs::FileExt;

const VICTIM: &str = include_str!("victim.c");

/// A pipe: (read end, write end).
fn pipe() -> (BufReader<File>, OwnedFd) {
    let (r, w) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (BufReader::new(File::from(r)), w)
}

/// The next line, waited for within bounds.
fn line(from: &mut BufReader<File>) -> String {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    if from.buffer().is_empty() {
        let mut fds = [PollFd::new(from.get_ref().as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(30_000u16)), Ok(1), "it says nothing");
    }
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Present or swapped pages of a private mapping that are not the file's own (`/proc/P/pagemap`).
fn copy_private(from: i32, to: i32, vma: &Vma) -> usize {
    let map = File::open(format!("/proc/{from}/pagemap")).unwrap();
    let (source, target) = (Mem::open(from).unwrap(), Mem::open(to).unwrap());
    let pages = vma.range.len() / 4096;
    let mut entries = vec![0u8; pages as usize * 8];
    map.read_exact_at(&mut entries, vma.range.start / 4096 * 8).unwrap();
    let mut copied = 0;
    for (n, entry) in (0..pages).zip(entries.chunks_exact(8)) {
        let entry = u64::from_le_bytes(entry.try_into().unwrap());
        let (present, swapped, of_file) = (entry >> 63 & 1, entry >> 62 & 1, entry >> 61 & 1);
        if present + swapped > 0 && of_file == 0 {
            let mut page = [0; 4096];
            source.read(vma.range.start + n * 4096, &mut page).unwrap();
            target.write(vma.range.start + n * 4096, &page).unwrap();
            copied += 1;
        }
    }
    copied
}

fn copy_object(from: &OwnedFd, to: &OwnedFd, size: u64) {
    let (from, to) = (File::from(from.try_clone().unwrap()), File::from(to.try_clone().unwrap()));
    let mut bytes = vec![0; size as usize];
    from.read_exact_at(&mut bytes, 0).unwrap();
    to.write_all_at(&bytes, 0).unwrap();
}

/// What came of it.
struct Carried {
    stages: Vec<(&'static str, Duration)>,
    /// Mappings of process 2 when it was stopped.
    maps: Vec<(u64, u64, String)>,
}

/// Moves everything in `from` to `to`; its output goes to `output` there.
fn carry(from: Pod, ports: Vec<(Port, (u64, u64))>, to: &Pod, output: OwnedFd) -> Carried {
    let view = PodView { init: from.init, cgroup: from.freezer(), ports, walled: false, tracked: false };
    let mut source = Source::new(view).unwrap();
    assert_eq!(source.preflight().unwrap(), vec![]);
    source.prepare().unwrap();
    let tasks = PodTasks { cgroup: from.freezer(), init: from.init };
    let mut stopped = freeze::stop_all(&tasks).unwrap();
    let maps = shown(&from.freezer(), 2);
    let (tree, hosts) = source.tree(&mut stopped).unwrap();
    let state = source.collect(&stopped, &mut |_| Ok(())).unwrap().state;
    let handles = source.handles().unwrap();

    let ctx = TargetCtx {
        vdso: Vec::new(),
        xstate: Vec::new(),
        init: to.init,
        syscall_at: to.borrowed(),
        cgroup: to.freezer(),
        ports: HashMap::from([(Port::Stdout, output)]),
    };
    let mut builder = Builder::new(ctx).unwrap();
    builder.check_files(&tree).unwrap();
    let skeleton = builder.skeleton(&tree).unwrap();
    for mm in &tree.mms {
        for vma in &mm.vmas {
            let private =
                matches!(vma.backing, Backing::Anon | Backing::File { .. } | Backing::Object { .. });
            if private && !vma.flags.contains(VmaFlags::SHARED) {
                copy_private(hosts[&mm.mm], skeleton.pids[&mm.mm], vma);
            }
        }
    }
    for (n, object) in (0u32..).zip(&tree.objects) {
        copy_object(&handles[&ObjectId(n)], &skeleton.objects[&ObjectId(n)], object.size);
    }
    let finished = builder.finish(&tree, &state).unwrap();
    assert_eq!(finished.warnings, Vec::<String>::new());
    let stages = builder.stages().to_vec();
    builder.detach_frozen().unwrap();
    stopped.leave_frozen().unwrap();
    drop(from);
    let root = File::open(format!("/proc/{}/root", to.init)).unwrap();
    crate::state::fd::restore::place(&root, &finished.socket_files).unwrap();
    Carried { stages, maps }
}

fn victim() -> (Pod, Vec<(Port, (u64, u64))>, BufReader<File>) {
    running(VICTIM)
}

/// A pod with a program in it that is ready, and where its output comes out.
fn running(source: &str) -> (Pod, Vec<(Port, (u64, u64))>, BufReader<File>) {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), "victim", source, &["-pthread", "-march=native"]);
    std::fs::write(dir.path().join("data"), vec![b'd'; 3 * 4096]).unwrap();
    let (mut told, output) = pipe();
    let st = nix::sys::stat::fstat(&output).unwrap();
    let path = dir.path().to_owned();
    let pod = Pod::start(dir, &[program.to_str().unwrap(), path.to_str().unwrap()], Some(output));
    assert_eq!(line(&mut told), "ready");
    (pod, vec![(Port::Stdout, (st.st_dev, st.st_ino))], told)
}

fn host_pid(cgroup: &Freezer, pid: i32) -> i32 {
    let is = |host: &i32| crate::kernel::status::of(*host).is_ok_and(|s| s.pod_tgid() == pid);
    cgroup.procs().unwrap().into_iter().find(is).unwrap()
}

fn ask_to_end(pod: &Pod, pid: i32) {
    let host = nix::unistd::Pid::from_raw(host_pid(&pod.freezer(), pid));
    nix::sys::signal::kill(host, nix::sys::signal::SIGTERM).unwrap();
}

#[test]
fn the_victim_is_whole_when_nothing_happens_to_it() {
    let (pod, _, mut told) = victim();
    ask_to_end(&pod, 2);
    assert_eq!(line(&mut told), "whole");
}

#[test]
fn a_program_with_one_of_everything_goes_on_whole() {
    let (mut pod, mut ports, told) = victim();
    drop(told);
    let _files = std::mem::replace(&mut pod.dir, tempfile::tempdir().unwrap());
    // More than once: what was built can be carried again.
    for round in 1..=3 {
        let mut to = Pod::new();
        let (mut told, output) = pipe();
        let st = nix::sys::stat::fstat(&output).unwrap();
        let stages = carry(pod, ports, &to, output).stages;
        eprintln!("round {round}: {stages:?}");
        to.freezer().thaw().unwrap();
        if round == 3 {
            ask_to_end(&to, 2);
            let said = line(&mut told);
            assert_eq!(said, "whole", "{:?}", to.ended());
        }
        ports = vec![(Port::Stdout, (st.st_dev, st.st_ino))];
        pod = to;
    }
}

const CROWD: &str = r#"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
static volatile long turns[300];
static void *sleeper(void *arg) {
    for (;;) {
        struct timespec t = {0, 20000000};
        if (nanosleep(&t, 0)) { dprintf(1, "EINTR\n"); exit(1); }
        turns[(long)arg]++;
    }
}
int main(void) {
    pthread_t t;
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigprocmask(SIG_BLOCK, &term, 0);
    for (long n = 0; n < 300; n++) pthread_create(&t, 0, sleeper, (void *)n);
    while (!turns[299]) usleep(1000);
    dprintf(1, "ready\n");
    int n;
    sigwait(&term, &n);
    long before[300];
    for (int i = 0; i < 300; i++) before[i] = turns[i];
    for (int i = 0; i < 300; i++) while (turns[i] == before[i]) usleep(1000);
    dprintf(1, "whole\n");
    return 0;
}
"#;

#[test]
fn three_hundred_threads_sleep_on() {
    let (mut pod, ports, told) = running(CROWD);
    drop(told);
    let _files = std::mem::replace(&mut pod.dir, tempfile::tempdir().unwrap());
    let mut to = Pod::new();
    let (mut told, output) = pipe();
    eprintln!("{:?}", carry(pod, ports, &to, output).stages);
    to.freezer().thaw().unwrap();
    ask_to_end(&to, 2);
    let said = line(&mut told);
    assert_eq!(said, "whole", "{:?}", to.ended());
}

/// Every mapping, read from the kernel, before and after.
#[test]
fn the_address_space_looks_the_same() {
    let (mut pod, ports, _told) = victim();
    let _files = std::mem::replace(&mut pod.dir, tempfile::tempdir().unwrap());
    let (_read, output) = pipe();
    let to = Pod::new();
    let before = carry(pod, ports, &to, output).maps;
    assert_eq!(shown(&to.freezer(), 2), before);
}

/// Mappings of a process of a pod: (start, end, protection and name).
fn shown(pod: &Freezer, pid: i32) -> Vec<(u64, u64, String)> {
    let text = std::fs::read_to_string(format!("/proc/{}/maps", host_pid(pod, pid))).unwrap();
    let mut all: Vec<(u64, u64, String)> = Vec::new();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next().unwrap().split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let what = format!("{} {}", fields.next().unwrap(), fields.nth(3).unwrap_or(""));
        match all.last_mut() {
            // Once written, a mapping does not merge with a neighbour that was not; where both are new it does.
            Some(last) if last.1 == start && last.2 == what => last.1 = end,
            _ => all.push((start, end, what)),
        }
    }
    all
}
