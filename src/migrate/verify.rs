//! `--verify`: hashes of all memory, mapping by mapping, taken at the source while the pod stands still and compared at
//! the target before the commit.

use crate::base::AddrRange;
use crate::memory::digest::{self, Masks};
use crate::memory::{Error, Space};
use crate::state::mm::{MmId, vdso};
use crate::state::object::ObjectId;
use crate::state::{PodState, Tree};
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// Name of a space and mapping, and hash.
pub(super) type Digests = Vec<(String, u64)>;

/// The bytes that may differ: the rseq area of each thread, which the kernel writes by itself, and a vdso brought along
/// from another kernel, which leads to the one it runs on.
pub(super) fn masks(tree: &Tree, state: &PodState) -> Masks {
    let areas = |threads: &[crate::state::task::ThreadState]| -> Vec<AddrRange> {
        let rseqs = threads.iter().filter_map(|t| t.cpu.rseq.as_ref());
        rseqs.map(|r| AddrRange::new(r.addr, r.addr.saturating_add(r.len.into()))).collect()
    };
    let mut masks: Masks = state.procs.iter().map(|p| (MmId(p.pid), areas(&p.threads))).collect();
    for mm in &tree.mms {
        if let Some(range) = vdso::brought(mm) {
            masks.entry(mm.mm).or_default().push(range);
        }
    }
    masks
}

/// Hashes of everything in the pod. The pod stands still. Errors: memory that cannot be read.
pub(super) fn digests(
    tree: &Tree,
    pids: &HashMap<MmId, i32>,
    objects: &HashMap<ObjectId, OwnedFd>,
    masks: &Masks,
) -> Result<Digests, Error> {
    let name = |space: Space, r: AddrRange| format!("{space}, {:#x}-{:#x}", r.start, r.end);
    let all = digest::of_tree(tree, pids, objects, masks)?;
    Ok(all.into_iter().map(|d| (name(d.space, d.range), d.hash)).collect())
}

/// The first mapping that is not the same at both ends.
pub(super) fn difference(theirs: &Digests, ours: &Digests) -> Option<String> {
    let longest = theirs.len().max(ours.len());
    let differ = (0..longest).find(|i| theirs.get(*i) != ours.get(*i))?;
    theirs.get(differ).or(ours.get(differ)).map(|(name, _)| name.clone())
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn the_first_difference_is_named() {
        let list = |hashes: &[u64]| hashes.iter().map(|h| (format!("at {h}"), *h)).collect();
        assert_eq!(difference(&list(&[1, 2]), &list(&[1, 2])), None);
        assert_eq!(difference(&list(&[1, 2]), &list(&[1, 3])).as_deref(), Some("at 2"));
        assert_eq!(difference(&list(&[1]), &list(&[1, 3])).as_deref(), Some("at 3"));
    }
}
