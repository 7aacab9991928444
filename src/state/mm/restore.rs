//! An address space built in a skeleton by the skeleton itself: old mappings gone, the kernel's special ones moved, the
//! program's made with their final protection, empty. Content is the `memory` room's business.

use super::hole::all_but;
use super::{Backing, Borders, MmLayout, Vma, VmaFlags};
use crate::base::AddrRange;
use crate::remote::Arg;
use crate::state::script::{About, Script};

const PR_SET_MM: u64 = libc::PR_SET_MM as u64;
const PR_SET_MM_MAP: u64 = libc::PR_SET_MM_MAP as u64;
/// `struct prctl_mm_map`.
const MM_MAP: usize = 104;
/// More than any kernel keeps.
const AUXV_MOST: usize = 1024;
const MAP_DROPPABLE: i32 = 8;
const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: u64 = 0;

/// Where the kernel's special mappings lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Special {
    /// `[vvar]`.
    pub vvar: Option<AddrRange>,
    /// `[vvar_vclock]`.
    pub vclock: Option<AddrRange>,
    /// `[vdso]`.
    pub vdso: Option<AddrRange>,
}

impl Special {
    /// Those of a layout.
    pub fn of(layout: &MmLayout) -> Self {
        let find = |kind: Backing| layout.vmas.iter().find(|v| v.backing == kind).map(|v| v.range);
        Self { vvar: find(Backing::Vvar), vclock: find(Backing::VvarVclock), vdso: find(Backing::Vdso) }
    }

    fn named(&self) -> [(&'static str, Option<AddrRange>); 3] {
        [("[vvar]", self.vvar), ("[vvar_vclock]", self.vclock), ("[vdso]", self.vdso)]
    }

    /// All that are there.
    pub fn ranges(&self) -> impl Iterator<Item = AddrRange> {
        self.named().into_iter().filter_map(|(_, range)| range)
    }

    /// Bytes they take together.
    pub fn size(&self) -> u64 {
        self.ranges().map(|r| r.len()).sum()
    }
}

/// Moves, in order, that bring the special mappings from `now` to `then`: (from, length, to). Those not wanted are in
/// the second list. `passing` is a free place of [`Special::size`] bytes, used when old and new places overlap.
pub fn moves(now: Special, then: Special, passing: u64) -> Result<(Vec<Move>, Vec<AddrRange>), String> {
    let mut wanted = Vec::new();
    let mut gone = Vec::new();
    for ((name, from), (_, to)) in now.named().into_iter().zip(then.named()) {
        match (from, to) {
            (Some(from), Some(to)) if from.len() == to.len() => wanted.push((from, to.start)),
            (Some(from), Some(to)) => {
                return Err(format!("{name} has {} bytes here and {} at the source", from.len(), to.len()));
            }
            (None, Some(_)) => return Err(format!("there is no {name} here")),
            (Some(from), None) => gone.push(from),
            (None, None) => {}
        }
    }
    wanted.retain(|(from, to)| from.start != *to);
    let crowded = wanted.iter().any(|(from, to)| {
        let new = AddrRange::new(*to, *to + from.len());
        now.ranges().any(|old| old.overlaps(&new))
    });
    let mut list = Vec::new();
    let mut at = passing;
    for (from, _) in wanted.iter_mut().filter(|_| crowded) {
        list.push(Move { from: from.start, len: from.len(), to: at });
        let len = from.len();
        *from = AddrRange::new(at, at + len);
        at += len;
    }
    list.extend(wanted.into_iter().map(|(from, to)| Move { from: from.start, len: from.len(), to }));
    Ok((list, gone))
}

/// One `mremap`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// Old address.
    pub from: u64,
    /// Length in bytes.
    pub len: u64,
    /// New address.
    pub to: u64,
}

/// Takes away everything but the special mappings and `scratch`, and moves the former to where `layout` has them.
/// `passing`: see [`moves`].
pub fn clear(
    s: &mut Script,
    now: Special,
    layout: &MmLayout,
    scratch: AddrRange,
    passing: u64,
) -> Result<(), String> {
    let (moves, gone) = moves(now, Special::of(layout), passing)?;
    for range in all_but(now.ranges().chain([scratch])).into_iter().chain(gone) {
        unmap(s, range);
    }
    for m in moves {
        s.must(
            "mremap of a kernel mapping",
            About::Addr(m.to),
            libc::SYS_mremap,
            &[
                m.from.into(),
                m.len.into(),
                m.len.into(),
                (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED).into(),
                m.to.into(),
            ],
        );
    }
    Ok(())
}

/// One `munmap`.
pub fn unmap(s: &mut Script, range: AddrRange) {
    s.must("munmap", About::Addr(range.start), libc::SYS_munmap, &[range.start.into(), range.len().into()]);
}

/// Protection as mmap(2) takes it.
pub fn protection(flags: VmaFlags) -> i32 {
    let bit = |flag, prot| if flags.contains(flag) { prot } else { 0 };
    bit(VmaFlags::READ, libc::PROT_READ)
        | bit(VmaFlags::WRITE, libc::PROT_WRITE)
        | bit(VmaFlags::EXEC, libc::PROT_EXEC)
}

fn mapping_flags(vma: &Vma) -> Result<i32, String> {
    let anon = vma.backing == Backing::Anon;
    let shared = vma.flags.contains(VmaFlags::SHARED);
    if anon && shared {
        return Err(format!("mapping {:?} is shared and anonymous, but names no object", vma.range));
    }
    let kind = match () {
        () if vma.flags.contains(VmaFlags::DROPPABLE) => MAP_DROPPABLE,
        () if shared => libc::MAP_SHARED,
        () => libc::MAP_PRIVATE,
    };
    let bit = |on: bool, flag| if on { flag } else { 0 };
    Ok(libc::MAP_FIXED_NOREPLACE
        | kind
        | bit(anon, libc::MAP_ANONYMOUS)
        | bit(vma.flags.contains(VmaFlags::GROWSDOWN), libc::MAP_GROWSDOWN)
        | bit(vma.flags.contains(VmaFlags::NORESERVE), libc::MAP_NORESERVE))
}

/// Makes mappings, with final protection, advice and name. `handle` gives the descriptor (in the skeleton) of the
/// file or object behind one. Special mappings are passed over, [`clear`] has put them in place.
pub fn map(s: &mut Script, vmas: &[Vma], handle: &impl Fn(&Vma) -> Option<Arg>) -> Result<(), String> {
    for vma in vmas {
        let offset = match vma.backing {
            Backing::Vdso | Backing::Vvar | Backing::VvarVclock => continue,
            Backing::Anon => 0,
            Backing::File { offset, .. } | Backing::Object { offset, .. } => offset,
        };
        let fd = match vma.backing {
            Backing::Anon => Arg::from(-1),
            _ => handle(vma).ok_or_else(|| format!("mapping {:?} names no file that is known", vma.range))?,
        };
        s.must(
            "mmap",
            About::Addr(vma.range.start),
            libc::SYS_mmap,
            &[
                vma.range.start.into(),
                vma.range.len().into(),
                protection(vma.flags).into(),
                mapping_flags(vma)?.into(),
                fd,
                offset.into(),
            ],
        );
        advise(s, vma.range, vma.flags);
        if let Some(name) = &vma.name {
            let text = s.path(name);
            // Needs CONFIG_ANON_VMA_NAME; the name is for people only.
            s.may(
                "prctl(PR_SET_VMA_ANON_NAME)",
                About::Addr(vma.range.start),
                libc::SYS_prctl,
                &[
                    PR_SET_VMA.into(),
                    PR_SET_VMA_ANON_NAME.into(),
                    vma.range.start.into(),
                    vma.range.len().into(),
                    text.into(),
                ],
            );
        }
    }
    Ok(())
}

/// madvise(2) for every flag that is set.
pub fn advise(s: &mut Script, range: AddrRange, flags: VmaFlags) {
    let must = [
        (VmaFlags::DONTFORK, libc::MADV_DONTFORK),
        (VmaFlags::DONTDUMP, libc::MADV_DONTDUMP),
        (VmaFlags::WIPEONFORK, libc::MADV_WIPEONFORK),
        (VmaFlags::SEQUENTIAL, libc::MADV_SEQUENTIAL),
        (VmaFlags::RANDOM, libc::MADV_RANDOM),
    ];
    // A kernel built without huge pages or KSM knows no such advice, and needs none.
    let may = [
        (VmaFlags::MERGEABLE, libc::MADV_MERGEABLE),
        (VmaFlags::HUGEPAGE, libc::MADV_HUGEPAGE),
        (VmaFlags::NOHUGEPAGE, libc::MADV_NOHUGEPAGE),
    ];
    let args = |advice: i32| [range.start.into(), range.len().into(), advice.into()];
    for (_, advice) in must.into_iter().filter(|(flag, _)| flags.contains(*flag)) {
        s.must("madvise", About::Addr(range.start), libc::SYS_madvise, &args(advice));
    }
    for (_, advice) in may.into_iter().filter(|(flag, _)| flags.contains(*flag)) {
        s.may("madvise", About::Addr(range.start), libc::SYS_madvise, &args(advice));
    }
}

/// mlock(2) of what was locked; it faults in what is still missing, so content comes first.
pub fn lock(s: &mut Script, layout: &MmLayout) {
    for vma in layout.vmas.iter().filter(|v| v.flags.contains(VmaFlags::LOCKED)) {
        s.must(
            "mlock",
            About::Addr(vma.range.start),
            libc::SYS_mlock,
            &[vma.range.start.into(), vma.range.len().into()],
        );
    }
}

/// Borders, auxiliary vector and executable. `exe`: a descriptor in the skeleton, and a free number for it; none: the
/// executable stays. No mapping of the former executable may be left when it changes. (PR_SET_MM_EXE_FILE would ask
/// for CAP_SYS_RESOURCE; the map asks for CAP_CHECKPOINT_RESTORE only.)
pub fn borders(s: &mut Script, b: &Borders, exe: Option<(Arg, i32)>) -> Result<(), String> {
    if b.auxv.len() % 16 != 0 || b.auxv.len() > AUXV_MOST {
        return Err(format!("an auxiliary vector of {} bytes makes no sense", b.auxv.len()));
    }
    if let Some((fd, number)) = exe {
        s.must("dup3", About::Nothing, libc::SYS_dup3, &[fd, number.into(), 0u64.into()]);
    }
    let words = [
        b.start_code,
        b.end_code,
        b.start_data,
        b.end_data,
        b.start_brk,
        b.brk,
        b.start_stack,
        b.arg_start,
        b.arg_end,
        b.env_start,
        b.env_end,
        0,
    ];
    let mut map: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    map.extend((b.auxv.len() as u32).to_le_bytes());
    map.extend(exe.map_or(-1, |(_, number)| number).to_le_bytes());
    debug_assert_eq!(map.len(), MM_MAP);
    let (auxv, at) = (s.data(&b.auxv), s.data(&map));
    if !b.auxv.is_empty() {
        s.pointer(at, 88, auxv, 0);
    }
    s.must(
        "prctl(PR_SET_MM_MAP)",
        About::Nothing,
        libc::SYS_prctl,
        &[PR_SET_MM.into(), PR_SET_MM_MAP.into(), at.into(), MM_MAP.into(), 0u64.into()],
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special(vvar: u64, vclock: u64, vdso: u64) -> Special {
        let at = |start: u64, pages: u64| Some(AddrRange::new(start, start + pages * 4096));
        Special { vvar: at(vvar, 4), vclock: at(vclock, 2), vdso: at(vdso, 2) }
    }

    #[test]
    fn special_mappings_step_aside_when_places_overlap() {
        let now = special(0x10000, 0x14000, 0x16000);
        let (far, gone) = moves(now, special(0x50000, 0x54000, 0x56000), 0x90000).unwrap();
        assert_eq!((far.len(), gone.len()), (3, 0));
        let (near, _) = moves(now, special(0x12000, 0x16000, 0x18000), 0x90000).unwrap();
        assert_eq!(near.len(), 6);
        assert_eq!(near[0], Move { from: 0x10000, len: 0x4000, to: 0x90000 });
        assert_eq!(near[5], Move { from: 0x96000, len: 0x2000, to: 0x18000 });
        assert_eq!(moves(now, now, 0x90000).unwrap().0, vec![]);
    }

    #[test]
    fn another_kernels_vdso_is_refused() {
        let now = special(0x10000, 0x14000, 0x16000);
        let wider = Special { vdso: Some(AddrRange::new(0x56000, 0x59000)), ..special(0x50000, 0x54000, 0) };
        assert!(moves(now, wider, 0).unwrap_err().contains("[vdso]"));
        assert!(moves(Special::default(), now, 0).is_err());
        let (list, gone) = moves(now, Special::default(), 0).unwrap();
        assert_eq!((list.len(), gone.len()), (0, 3));
    }

    #[test]
    fn shared_memory_without_an_object_is_refused() {
        let vma = Vma {
            range: AddrRange::new(0x1000, 0x2000),
            flags: VmaFlags::READ | VmaFlags::SHARED,
            backing: Backing::Anon,
            name: None,
        };
        assert!(map(&mut Script::new(), &[vma], &|_| None).is_err());
    }

    #[test]
    fn an_odd_auxiliary_vector_is_refused() {
        let with = |len| Borders { auxv: vec![0; len], ..Borders::default() };
        assert!(borders(&mut Script::new(), &with(336), None).is_ok());
        assert!(borders(&mut Script::new(), &with(5), None).is_err());
        assert!(borders(&mut Script::new(), &with(4096), None).is_err());
    }
}
