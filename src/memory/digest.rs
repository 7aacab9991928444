//! One number per mapping, the same at both ends when the program cannot tell the two memories apart (`--verify`).
//!
//! What is hashed (xxh3-64), page by page, as address (8 bytes, little endian) and content, by rising address; a page
//! of zeros and an absent page are both left out, so they are equal:
//! - private anonymous mappings: every populated page;
//! - private mappings of files and objects: *every* page as the program would read it, copied on write or not, since a
//!   copied page equal to the file's is no difference and a file that differs is one. Pages beyond the file's end are
//!   left out;
//! - objects: every page with data, once per object, by offset;
//! - bytes that the kernel writes as it pleases ([`Masks`]: rseq areas) count as zeros;
//! - shared mappings of files, droppable memory, vdso and vvar: not at all.
//!
//! Mappings are those of the *layout given*, so both ends must use the source's: the kernels may have split or joined
//! them differently.

use super::content::{self, Class, class};
use super::reader::is_zero;
use super::{Chunk, Error, PageSet, Reader, Space, Work};
use crate::base::AddrRange;
use crate::base::addr::PAGE;
use crate::state::Tree;
use crate::state::mm::{MmId, MmLayout};
use crate::state::object::ObjectId;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use xxhash_rust::xxh3::Xxh3Default;

/// The hash of one mapping, or of one object (then `range` is 0 to its size).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Digest {
    /// Whose.
    pub space: Space,
    /// Which mapping.
    pub range: AddrRange,
    /// Hash of its content.
    pub hash: u64,
}

/// Ranges of bytes that the kernel writes whenever a thread runs.
pub type Masks = HashMap<MmId, Vec<AddrRange>>;

/// The page with the masked bytes zero; `None` if none of them lies in it.
fn masked(masks: &[AddrRange], addr: u64, page: &[u8]) -> Option<Vec<u8>> {
    let here = AddrRange::new(addr, addr + page.len() as u64);
    let mut out: Option<Vec<u8>> = None;
    for mask in masks.iter().filter(|m| m.overlaps(&here)) {
        let own = out.get_or_insert_with(|| page.to_vec());
        let at = |a: u64| (a.clamp(here.start, here.end) - here.start) as usize;
        own[at(mask.start)..at(mask.end)].fill(0);
    }
    out
}

/// Hash of the given pages of one space.
fn hash(
    masks: &[AddrRange],
    pids: &HashMap<MmId, i32>,
    objects: &HashMap<ObjectId, OwnedFd>,
    space: Space,
    pages: PageSet,
    chunk: &mut Chunk,
) -> Result<u64, Error> {
    if pages.is_empty() {
        return Ok(Xxh3Default::new().digest());
    }
    let reader = Reader::new(pids, objects, vec![Work { space, pages, zero: PageSet::new() }])?;
    let mut state = Xxh3Default::new();
    while reader.fill(chunk)? {
        for (run, data) in chunk.pieces() {
            for (n, page) in data.chunks(PAGE as usize).enumerate() {
                let addr = run.addr + n as u64 * PAGE;
                let masked = masked(masks, addr, page);
                let page = masked.as_deref().unwrap_or(page);
                if masked.is_some() && is_zero(page) {
                    continue;
                }
                state.update(&addr.to_le_bytes());
                state.update(page);
            }
        }
    }
    Ok(state.digest())
}

/// Digests of one address space, mapping by mapping, but for the masked bytes. The process must be stopped. Errors: as
/// `Reader::fill`.
pub fn of_mm(host_pid: i32, layout: &MmLayout, masks: &[AddrRange]) -> Result<Vec<Digest>, Error> {
    let space = Space::Mm(layout.mm);
    let pids = HashMap::from([(layout.mm, host_pid)]);
    let populated = content::content_pages(host_pid, layout)?;
    let mut chunk = Chunk::new();
    let mut out = Vec::new();
    for vma in &layout.vmas {
        let pages = match class(vma) {
            Class::Anon => populated.within(vma.range),
            Class::Cow => PageSet::from_iter([vma.range]),
            Class::Object { .. } | Class::Nothing => continue,
        };
        let hash = hash(masks, &pids, &HashMap::new(), space, pages, &mut chunk)?;
        out.push(Digest { space, range: vma.range, hash });
    }
    Ok(out)
}

/// Digests of everything in the pod: address spaces in the tree's order, then objects by id.
/// Errors: `UnknownSpace` (an id without pid or handle), and as `Reader::fill`.
pub fn of_tree(
    tree: &Tree,
    pids: &HashMap<MmId, i32>,
    objects: &HashMap<ObjectId, OwnedFd>,
    masks: &Masks,
) -> Result<Vec<Digest>, Error> {
    let mut out = Vec::new();
    for layout in &tree.mms {
        let pid = *pids.get(&layout.mm).ok_or(Error::UnknownSpace(Space::Mm(layout.mm)))?;
        out.extend(of_mm(pid, layout, masks.get(&layout.mm).map_or(&[][..], Vec::as_slice))?);
    }
    let mut chunk = Chunk::new();
    for (n, object) in tree.objects.iter().enumerate() {
        let id = ObjectId(n as u32);
        let space = Space::Object(id);
        let pages = match objects.get(&id) {
            Some(fd) => content::object_pages(id, &content::reopen(id, fd, false)?)?,
            None if object.size == 0 => PageSet::new(), // gone from the pod; its number stays
            None => return Err(Error::UnknownSpace(space)),
        };
        let hash = hash(&[], pids, objects, space, pages, &mut chunk)?;
        out.push(Digest { space, range: AddrRange::new(0, object.size), hash });
    }
    Ok(out)
}

/// The first mapping in which two lists of digests differ, if any; a mapping that only one list has counts.
pub fn first_difference(source: &[Digest], target: &[Digest]) -> Option<(Space, AddrRange)> {
    let longest = source.len().max(target.len());
    (0..longest).find_map(|i| match (source.get(i), target.get(i)) {
        (Some(a), Some(b)) if a == b => None,
        (Some(a), _) => Some((a.space, a.range)),
        (None, Some(b)) => Some((b.space, b.range)),
        (None, None) => None,
    })
}
