//! Address spaces: each process takes the files it maps, drops init's mappings and makes its own, in one batch as a rule.

use super::Builder;
use super::build::close_all_but;
use super::error::{Error, Result};
use super::handover::{self, Coming};
use crate::base::AddrRange;
use crate::remote::Arg;
use crate::state::Tree;
use crate::state::mm::{Backing, MmLayout, Vma, VmaFlags, restore};
use crate::state::object;
use crate::state::script::Script;
use crate::state::task::plan::Plan;
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

impl Builder {
    /// Builds the address space of every live process, in the order of the tree, and lets it join its group.
    pub(super) fn spaces(&mut self, tree: &Tree, plan: &Plan, files: &[OwnedFd]) -> Result<()> {
        let joins: HashMap<i32, i32> = plan.joins.iter().copied().collect();
        let layouts: HashMap<i32, &MmLayout> = tree.mms.iter().map(|m| (m.mm.0, m)).collect();
        let mut sealed = HashMap::new();
        for vma in tree.mms.iter().flat_map(|m| &m.vmas) {
            if let Some(Behind::Sealed(id)) = behind(tree, vma)
                && let Some(fd) = self.objects.get(&object::ObjectId(id))
            {
                sealed.insert(id, object::restore::read_only(fd)?);
            }
        }
        for pid in self.live.clone() {
            let layout = layouts.get(&pid).ok_or(Error::Order("build an address space"))?;
            self.space(tree, layout, joins.get(&pid).copied(), files, &sealed)?;
        }
        Ok(())
    }

    fn space(
        &mut self,
        tree: &Tree,
        layout: &MmLayout,
        join: Option<i32>,
        files: &[OwnedFd],
        sealed: &HashMap<u32, OwnedFd>,
    ) -> Result<()> {
        let pid = layout.mm.0;
        let (index, fds) = self.wanted(tree, layout, files, sealed)?;
        handover::send(self.transport.as_ref().ok_or(Error::Order("hand over files"))?, pid, &fds)?;
        let count = fds.len();
        drop(fds);
        let their_end = self.their_end()?;

        let mut s = Script::new();
        close_all_but(&mut s, their_end);
        let coming = Coming::receive(&mut s, their_end.into(), count);
        if let Some(pgid) = join {
            crate::state::task::restore::join(&mut s, pgid);
        }
        let slot = self.slot.ok_or(Error::Order("build an address space"))?;
        let scratch = AddrRange::new(slot.code(), slot.area().end);
        let unfit = Error::unfit(pid);
        restore::clear(&mut s, self.host.special, layout, scratch, self.passing)
            .map_err(|e| unfit(format!("the kernel's vdso differs from the source's: {e}")))?;
        let mut pieces = layout.vmas.chunks(AT_ONCE);
        let handle = |vma: &Vma| behind(tree, vma).and_then(|b| index.get(&b)).map(|n| coming.arg(*n));
        restore::map(&mut s, pieces.next().unwrap_or_default(), &handle).map_err(&unfit)?;
        let exe = |arg: Arg| Some((arg, free_number(count, their_end)));
        let exe_index = index.get(&Behind::File(layout.exe.0)).copied().ok_or(Error::Order("map files"))?;
        if pieces.len() == 0 {
            restore::borders(&mut s, &layout.borders, exe(coming.arg(exe_index))).map_err(&unfit)?;
            close_all_but(&mut s, their_end);
        }
        let results = self.run(pid, &s)?;
        if !coming.all_came(&results) {
            return Err(Error::HandOver {
                pid,
                what: "its limit on open files",
                source: nix::errno::Errno::EMFILE,
            });
        }
        if pieces.len() == 0 {
            return Ok(());
        }
        let numbers = coming.numbers(&results);
        let handle = |vma: &Vma| behind(tree, vma).and_then(|b| index.get(&b)).map(|n| numbers[*n].into());
        for piece in pieces {
            let mut s = Script::new();
            restore::map(&mut s, piece, &handle).map_err(&unfit)?;
            self.run(pid, &s)?;
        }
        let mut s = Script::new();
        restore::borders(&mut s, &layout.borders, exe(numbers[exe_index].into())).map_err(&unfit)?;
        close_all_but(&mut s, their_end);
        self.run(pid, &s).map(drop)
    }

    /// The descriptors a layout needs, each once, and the place of each.
    fn wanted<'a>(
        &'a self,
        tree: &Tree,
        layout: &MmLayout,
        files: &'a [OwnedFd],
        sealed: &'a HashMap<u32, OwnedFd>,
    ) -> Result<(HashMap<Behind, usize>, Vec<BorrowedFd<'a>>)> {
        let mut index = HashMap::new();
        let mut fds = Vec::new();
        let exe = Behind::File(layout.exe.0);
        for b in layout.vmas.iter().filter_map(|v| behind(tree, v)).chain([exe]) {
            if index.contains_key(&b) {
                continue;
            }
            let fd = match b {
                Behind::File(n) => files.get(n as usize),
                Behind::Object(n) => self.objects.get(&object::ObjectId(n)),
                Behind::Sealed(n) => sealed.get(&n),
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
