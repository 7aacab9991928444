//! The tree looked over before anything is made: it may come from a damaged or hostile image.

use super::error::{Error, Result};
use crate::base::addr::PAGE;
use crate::state::mm::hole::TASK_END;
use crate::state::mm::{Backing, MmLayout, VmaFlags};
use crate::state::{PodState, Tree};
use std::collections::{HashMap, HashSet};

/// Every live process has one address space, every id names something, mappings are in order.
pub(super) fn tree(tree: &Tree) -> Result<()> {
    let live: HashSet<i32> = tree.procs.iter().filter(|n| n.zombie.is_none()).map(|n| n.pid).collect();
    let mut seen = HashSet::new();
    for mm in &tree.mms {
        let pid = mm.mm.0;
        if !live.contains(&pid) || !seen.insert(pid) {
            return Err(Error::unfit(pid)("an address space without a process of its own".to_owned()));
        }
        layout(tree, mm).map_err(Error::unfit(pid))?;
    }
    match live.difference(&seen).min() {
        Some(pid) => Err(Error::unfit(*pid)("it has no address space".to_owned())),
        None => Ok(()),
    }
}

fn layout(tree: &Tree, mm: &MmLayout) -> std::result::Result<(), String> {
    if mm.exe.0 as usize >= tree.files.len() {
        return Err("its executable is not in the list of files".to_owned());
    }
    let mut at = PAGE;
    for vma in &mm.vmas {
        let r = vma.range;
        if r.start % PAGE != 0 || r.end % PAGE != 0 || r.start < at || r.end <= r.start || r.end > TASK_END {
            return Err(format!("mapping {r:?} is out of order or out of range"));
        }
        at = r.end;
        let (known, offset) = match vma.backing {
            Backing::File { file, offset } => ((file.0 as usize) < tree.files.len(), offset),
            Backing::Object { object, offset } => ((object.0 as usize) < tree.objects.len(), offset),
            Backing::Anon if vma.flags.contains(VmaFlags::SHARED) => (false, 0),
            _ => (true, 0),
        };
        if !known || offset % PAGE != 0 || offset.checked_add(r.end - r.start).is_none() {
            return Err(format!("mapping {r:?} names no file or object"));
        }
    }
    Ok(())
}

/// State and tree are of the same processes and threads, in the same order.
pub(super) fn state(tree: &Tree, state: &PodState) -> Result<()> {
    let live: Vec<_> = tree.procs.iter().filter(|n| n.zombie.is_none()).collect();
    let mut states: HashMap<i32, usize> = HashMap::new();
    for p in &state.procs {
        *states.entry(p.pid).or_default() += 1;
    }
    for node in &live {
        if states.get(&node.pid) != Some(&1) {
            return Err(Error::unfit(node.pid)("its state is missing or given twice".to_owned()));
        }
    }
    if live.len() != state.procs.len() {
        return Err(Error::unfit(0)("there is state of processes that are not in the tree".to_owned()));
    }
    for p in &state.procs {
        let node = live.iter().find(|n| n.pid == p.pid);
        let tids: Vec<i32> = p.threads.iter().map(|t| t.tid).collect();
        if node.is_none_or(|n| n.tids != tids) || tids.first() != Some(&p.pid) {
            return Err(Error::unfit(p.pid)("its threads are not those of the tree".to_owned()));
        }
        let mut numbers = HashSet::new();
        for entry in &p.fds {
            if entry.fd < 0 || !numbers.insert(entry.fd) || entry.file.0 as usize >= state.files.len() {
                return Err(Error::unfit(p.pid)(format!("its descriptor {} makes no sense", entry.fd)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::AddrRange;
    use crate::state::mm::{Borders, MapFileId, MappedFile, MmId, Vma};
    use crate::state::task::ProcNode;

    fn good() -> Tree {
        let vma = |start, backing| Vma {
            range: AddrRange::new(start, start + PAGE),
            flags: VmaFlags::READ,
            backing,
            name: None,
        };
        let node = ProcNode {
            pid: 5,
            ppid: 1,
            pgid: 5,
            sid: 5,
            exit_signal: 17,
            tids: vec![5],
            zombie: None,
            comm: vec![],
        };
        let file = MappedFile { path: b"/x".to_vec(), size: 1, mtime_ns: 0, writable: false, hash: None };
        let vmas = vec![
            vma(0x40_0000, Backing::File { file: MapFileId(0), offset: 0 }),
            vma(0x50_0000, Backing::Anon),
        ];
        let mm = MmLayout { mm: MmId(5), vmas, borders: Borders::default(), exe: MapFileId(0) };
        Tree { procs: vec![node], mms: vec![mm], files: vec![file], objects: vec![] }
    }

    #[test]
    fn damaged_trees_are_refused() {
        assert!(tree(&good()).is_ok());
        let bad: Vec<fn(&mut Tree)> = vec![
            |t| t.files.clear(),
            |t| t.mms.clear(),
            |t| t.mms[0].mm = MmId(6),
            |t| t.mms.push(t.mms[0].clone()),
            |t| t.mms[0].vmas.swap(0, 1),
            |t| t.mms[0].vmas[1].range.end = 1 << 50,
            |t| t.mms[0].vmas[1].range.end -= 1,
            |t| t.mms[0].vmas[1].flags |= VmaFlags::SHARED,
            |t| t.mms[0].vmas[0].backing = Backing::File { file: MapFileId(9), offset: 0 },
            |t| t.mms[0].vmas[0].backing = Backing::File { file: MapFileId(0), offset: 7 },
        ];
        for (n, break_it) in bad.into_iter().enumerate() {
            let mut t = good();
            break_it(&mut t);
            assert!(tree(&t).is_err(), "case {n}");
        }
        assert!(state(&good(), &PodState::default()).is_err());
    }
}
