//! Address spaces: each process takes the files it maps, drops init's mappings and makes its own, in one batch as a rule.

use super::Builder;
use super::build::close_all_but;
use super::error::{Error, Result};
use super::handover::{self, Coming};
use crate::base::AddrRange;
use crate::state::Tree;
use crate::state::mm::diff::Change;
use crate::state::mm::restore::Special;
use crate::state::mm::{Backing, MmLayout, Vma, VmaFlags, restore};
use crate::state::object;
use crate::state::script::Script;
use crate::state::task::plan::Plan;
use crate::state::task::restore::join;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Mappings made by one batch: with names and advice a few hundred bytes each, so they fit the scratch area.
const AT_ONCE: usize = 2000;

/// What lies behind a mapping, and may be handed over.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Behind {
    File(u32),
    Object(u32),
    /// Through a handle that cannot write (see `object::restore::maps_read_only`).
    Sealed(u32),
}

fn behind(tree: &Tree, vma: &Vma) -> Option<Behind> {
    match vma.backing {
        Backing::File { file, .. } => Some(Behind::File(file.0)),
        Backing::Object { object, .. } => {
            let sealed = tree.objects.get(object.0 as usize).is_some_and(object::restore::maps_read_only);
            let shared = vma.flags.contains(VmaFlags::SHARED);
            Some(if sealed && shared { Behind::Sealed(object.0) } else { Behind::Object(object.0) })
        }
        _ => None,
    }
}

/// Descriptors of what mappings are of, at hand here.
pub(super) struct Sources<'a> {
    tree: &'a Tree,
    files: &'a [OwnedFd],
    sealed: HashMap<u32, OwnedFd>,
}

/// What is to be done in one address space.
pub(super) struct Job<'a> {
    /// What it will be.
    pub layout: &'a MmLayout,
    /// The changes that make it so.
    pub changes: Vec<Change>,
    /// It is a copy of another, whose special mappings lie there: everything else goes first.
    pub copy_of: Option<Special>,
    /// Its executable changes.
    pub exe: bool,
    /// Group to join.
    pub join: Option<i32>,
}

impl Builder {
    /// What mappings are made from. `files` are those of the tree.
    pub(super) fn sources<'a>(&self, tree: &'a Tree, files: &'a [OwnedFd]) -> Result<Sources<'a>> {
        let mut sealed = HashMap::new();
        for vma in tree.mms.iter().flat_map(|m| &m.vmas) {
            if let Some(Behind::Sealed(id)) = behind(tree, vma)
                && let Some(fd) = self.objects.get(&object::ObjectId(id))
            {
                sealed.insert(id, object::restore::read_only(fd)?);
            }
        }
        Ok(Sources { tree, files, sealed })
    }

    /// Builds the address space of every live process, in the order of the tree, and lets it join its group.
    pub(super) fn spaces(&mut self, tree: &Tree, plan: &Plan, files: &[OwnedFd]) -> Result<()> {
        let joins: HashMap<i32, i32> = plan.joins.iter().copied().collect();
        let layouts: HashMap<i32, &MmLayout> = tree.mms.iter().map(|m| (m.mm.0, m)).collect();
        let sources = self.sources(tree, files)?;
        for pid in self.live.clone() {
            let layout = layouts.get(&pid).ok_or(Error::Order("build an address space"))?;
            let changes = layout.vmas.iter().cloned().map(Change::Map).collect();
            let copy_of = Some(self.host.special);
            self.space(
                &sources,
                Job { layout, changes, copy_of, exe: true, join: joins.get(&pid).copied() },
            )?;
        }
        Ok(())
    }

    /// Does one job, in one batch unless there are very many changes.
    pub(super) fn space(&mut self, sources: &Sources<'_>, job: Job<'_>) -> Result<()> {
        let pid = job.layout.mm.0;
        let (index, fds) = self.wanted(sources, &job)?;
        handover::send(self.transport.as_ref().ok_or(Error::Order("hand over files"))?, pid, &fds)?;
        let count = fds.len();
        drop(fds);
        let their_end = self.their_end()?;
        let unfit = Error::unfit(pid);

        let mut s = Script::new();
        close_all_but(&mut s, their_end);
        let coming = Coming::receive(&mut s, their_end.into(), count);
        if let Some(pgid) = job.join {
            join(&mut s, pgid);
        }
        if let Some(special) = job.copy_of {
            let slot = self.slot.ok_or(Error::Order("build an address space"))?;
            let scratch = AddrRange::new(slot.code(), slot.area().end);
            restore::clear(&mut s, special, job.layout, scratch, self.passing)
                .map_err(|e| unfit(format!("the kernel's vdso differs from the source's: {e}")))?;
        }
        let exe = index.get(&Behind::File(job.layout.exe.0)).filter(|_| job.exe);
        let exe = exe.map(|n| (coming.arg(*n), free_number(count, their_end)));
        restore::borders(&mut s, &job.layout.borders, exe).map_err(&unfit)?;
        let mut pieces = job.changes.chunks(AT_ONCE);
        let tree = sources.tree;
        let handle = |vma: &Vma| behind(tree, vma).and_then(|b| index.get(&b)).map(|n| coming.arg(*n));
        restore::change(&mut s, pieces.next().unwrap_or_default(), &handle).map_err(&unfit)?;
        if pieces.len() == 0 {
            close_all_but(&mut s, their_end);
        }
        let results = self.run(pid, &s)?;
        if !coming.all_came(&results) {
            let (what, source) = ("its limit on open files", nix::errno::Errno::EMFILE);
            return Err(Error::HandOver { pid, what, source });
        }
        let numbers = coming.numbers(&results);
        let handle = |vma: &Vma| behind(tree, vma).and_then(|b| index.get(&b)).map(|n| numbers[*n].into());
        while let Some(piece) = pieces.next() {
            let mut s = Script::new();
            restore::change(&mut s, piece, &handle).map_err(&unfit)?;
            if pieces.len() == 0 {
                close_all_but(&mut s, their_end);
            }
            self.run(pid, &s)?;
        }
        Ok(())
    }

    /// The descriptors a job needs, each once, and the place of each.
    fn wanted<'a>(
        &'a self,
        sources: &'a Sources<'_>,
        job: &Job<'_>,
    ) -> Result<(HashMap<Behind, usize>, Vec<BorrowedFd<'a>>)> {
        let mut index = HashMap::new();
        let mut fds = Vec::new();
        let exe = job.exe.then_some(Behind::File(job.layout.exe.0));
        let new = job.changes.iter().filter_map(|c| match c {
            Change::Map(vma) => behind(sources.tree, vma),
            _ => None,
        });
        for b in new.chain(exe) {
            if index.contains_key(&b) {
                continue;
            }
            let fd = match b {
                Behind::File(n) => sources.files.get(n as usize),
                Behind::Object(n) => self.objects.get(&object::ObjectId(n)),
                Behind::Sealed(n) => sources.sealed.get(&n),
            };
            index.insert(b, fds.len());
            fds.push(fd.ok_or(Error::Order("map files"))?.as_fd());
        }
        Ok((index, fds))
    }
}

/// A number that is neither one of `count` received descriptors nor the transport.
fn free_number(count: usize, their_end: i32) -> i32 {
    let first = count as i32 + 1;
    if first == their_end { first + 1 } else { first }
}

#[cfg(test)]
mod tests {
    use super::free_number;

    #[test]
    fn the_executables_number_hits_nothing() {
        for (count, end) in [(0, 6), (5, 6), (6, 6), (253, 6), (7, 8)] {
            // Received ones get the lowest numbers, the transport's left out.
            let top = if end < count as i32 { count as i32 } else { count as i32 - 1 };
            let n = free_number(count, end);
            assert!(n > top && n != end, "{count} {end}: {n}");
        }
    }
}
