//! The check of a whole pod as read from a peer or a file: every id resolved, every range sane, before anything is built.

use super::Error;
use crate::base::addr::PAGE;
use crate::state::fd::{FileKind, OpenFile};
use crate::state::mm::{Backing, MmLayout};
use crate::state::{PodState, Tree};
use std::collections::HashSet;

/// Highest user address + 1 (47-bit, x86-64).
const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// More of one thing than any kernel would have let the source make.
const MANY: usize = 4 << 20;
/// Largest pid + 1 (PID_MAX_LIMIT).
const PID_MAX: i32 = 4 << 20;

fn bad(what: impl Into<String>) -> Error {
    Error::Damaged(what.into())
}

/// Checks a tree: pids unique, parents before children, mappings sorted and inside user space, ids in range.
pub fn tree(tree: &Tree) -> Result<(), Error> {
    if tree.procs.len() > MANY || tree.files.len() > MANY || tree.objects.len() > MANY {
        return Err(bad("more processes, files or objects than a kernel holds"));
    }
    let mut seen: HashSet<i32> = HashSet::from([1]);
    let mut tids: HashSet<i32> = HashSet::from([1]);
    for p in &tree.procs {
        if p.pid <= 1 || p.pid >= PID_MAX || !seen.insert(p.pid) {
            return Err(bad(format!("pid {} is out of range or twice", p.pid)));
        }
        if p.ppid != 0 && !seen.contains(&p.ppid) {
            return Err(bad(format!("pid {}: parent {} is not before it", p.pid, p.ppid)));
        }
        if p.tids.first() != Some(&p.pid) {
            return Err(bad(format!("pid {}: the first thread is not the leader", p.pid)));
        }
        for &t in &p.tids {
            if t <= 1 || t >= PID_MAX || !tids.insert(t) {
                return Err(bad(format!("thread {t} is out of range or twice")));
            }
        }
    }
    let live: HashSet<i32> = tree.procs.iter().filter(|p| p.zombie.is_none()).map(|p| p.pid).collect();
    let mms: HashSet<i32> = tree.mms.iter().map(|m| m.mm.0).collect();
    if live != mms || mms.len() != tree.mms.len() {
        return Err(bad("address spaces and live processes do not match"));
    }
    tree.mms.iter().try_for_each(|m| layout(tree, m))
}

fn layout(tree: &Tree, mm: &MmLayout) -> Result<(), Error> {
    let mut end = 0;
    for vma in &mm.vmas {
        let r = vma.range;
        let sane = r.start >= end && r.start < r.end && r.end <= TASK_SIZE && (r.start | r.end) % PAGE == 0;
        if !sane {
            return Err(bad(format!("pid {}: mapping {r:?} is out of order or range", mm.mm.0)));
        }
        end = r.end;
        let known = match vma.backing {
            Backing::File { file, .. } => (file.0 as usize) < tree.files.len(),
            Backing::Object { object, .. } => (object.0 as usize) < tree.objects.len(),
            Backing::Anon | Backing::Vdso | Backing::Vvar | Backing::VvarVclock => true,
        };
        if !known {
            return Err(bad(format!("pid {}: mapping {r:?} names a file that is not in the list", mm.mm.0)));
        }
    }
    if mm.exe.0 as usize >= tree.files.len() {
        return Err(bad(format!("pid {}: its executable is not in the list", mm.mm.0)));
    }
    Ok(())
}

/// Checks the rest against its tree.
pub fn state(tree: &Tree, state: &PodState) -> Result<(), Error> {
    let live = tree.procs.iter().filter(|p| p.zombie.is_none());
    if !live.clone().map(|p| p.pid).eq(state.procs.iter().map(|p| p.pid)) {
        return Err(bad("processes of tree and state do not match"));
    }
    for (node, p) in live.zip(&state.procs) {
        if !node.tids.iter().copied().eq(p.threads.iter().map(|t| t.tid)) {
            return Err(bad(format!("pid {}: threads of tree and state do not match", p.pid)));
        }
        let mut fds = HashSet::new();
        for e in &p.fds {
            if e.fd < 0 || e.fd as usize > MANY || !fds.insert(e.fd) || e.file.0 as usize >= state.files.len()
            {
                return Err(bad(format!("pid {} fd {}: out of range or twice", p.pid, e.fd)));
            }
        }
        if p.signals.actions.len() != 64 {
            return Err(bad(format!("pid {}: {} signal actions", p.pid, p.signals.actions.len())));
        }
        let queues = p.threads.iter().map(|t| &t.signals.pending).chain([&p.signals.pending]);
        if queues.flatten().any(|q| q.info.len() != 128) {
            return Err(bad(format!("pid {}: a queued signal of the wrong size", p.pid)));
        }
    }
    state.files.iter().try_for_each(|f| file(tree, state, f))
}

fn file(tree: &Tree, state: &PodState, f: &OpenFile) -> Result<(), Error> {
    let known = |id: u32| (id as usize) < state.files.len();
    let ok = match &f.kind {
        FileKind::Object { object, .. } => (object.0 as usize) < tree.objects.len(),
        FileKind::Epoll(e) => e.items.iter().all(|i| known(i.file.0)),
        FileKind::Unix(u) => u.queue.iter().flat_map(|m| &m.fds).all(|f| known(f.0)),
        _ => true,
    };
    if ok { Ok(()) } else { Err(bad("an open file names something that is not in the list")) }
}
