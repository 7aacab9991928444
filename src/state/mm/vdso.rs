//! A pod between two kernels: the vdso differs. Programs keep addresses of its functions, so the image a program was
//! born with stays where it is, as plain memory whose functions jump to those of the kernel it runs on; that kernel's own
//! mappings lie elsewhere in the address space. Which image is the program's is told by AT_SYSINFO_EHDR, so that the next
//! move recognises it and points it at the next kernel. Pure.
//!
//! Not covered: a signal handler that interrupted a function of the vdso in the middle and returns to it after the move.

use super::hole::TASK_END;
use super::restore::Special;
use super::{Backing, MmLayout, Vma, VmaFlags};
use crate::base::AddrRange;
use crate::base::addr::PAGE;
use std::collections::BTreeMap;

/// `AT_SYSINFO_EHDR` (getauxval(3)): where the vdso lies.
const AT_SYSINFO_EHDR: u64 = 33;
/// Section of dynamic symbols (elf(5)).
const SHT_DYNSYM: u32 = 11;
/// A function may be this far from where it jumps to (a signed 32-bit distance, with room to spare).
const REACH: u64 = 1 << 30;
/// No vdso is larger.
const LARGEST: usize = 64 << 10;

/// Functions of the vdso, and the calls that do the same (their first arguments are alike).
const CALLS: [(&str, i64); 6] = [
    ("__vdso_clock_gettime", libc::SYS_clock_gettime),
    ("__vdso_gettimeofday", libc::SYS_gettimeofday),
    ("__vdso_time", libc::SYS_time),
    ("__vdso_getcpu", libc::SYS_getcpu),
    ("__vdso_clock_getres", libc::SYS_clock_getres),
    ("__vdso_getrandom", libc::SYS_getrandom),
];

/// Functions that an image has, by name: offset and size in bytes. `None`: it is no such image.
pub fn functions(image: &[u8]) -> Option<BTreeMap<String, (u64, u64)>> {
    let number = |at: u64, len: usize| -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(image.get(at..at.checked_add(len)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    // ELF, 64 bits, little endian; Elf64_Ehdr, Elf64_Shdr, Elf64_Sym as in elf(5).
    if image.len() > LARGEST || image.get(..6)? != [0x7f, b'E', b'L', b'F', 2, 1] {
        return None;
    }
    let (sections, size, count) = (number(40, 8)?, number(58, 2)?, number(60, 2)?);
    let section = |n: u64| sections.checked_add(n.checked_mul(size)?);
    let header = (0..count).filter_map(section).find(|at| number(at + 4, 4) == Some(SHT_DYNSYM.into()))?;
    let strings = section(number(header + 40, 4)?)?;
    let (symbols, len) = (number(header + 24, 8)?, number(header + 32, 8)?);
    let names = number(strings + 24, 8)?;
    let mut found = BTreeMap::new();
    for n in 0..(len / 24).min(LARGEST as u64) {
        let at = symbols.checked_add(n * 24)?;
        let (name, info, value, size) =
            (number(at, 4)?, number(at + 4, 1)?, number(at + 8, 8)?, number(at + 16, 8)?);
        let text = image.get(usize::try_from(names.checked_add(name)?).ok()?..)?;
        let text = text.split(|b| *b == 0).next()?;
        // STT_FUNC, or weak names of one.
        if info & 15 == 2 && size > 0 && value.checked_add(size)? <= image.len() as u64 {
            found.insert(String::from_utf8_lossy(text).into_owned(), (value, size));
        }
    }
    (!found.is_empty()).then_some(found)
}

/// Bytes to write over the functions of `old`, which lies at `old_at`, so that they do what those of `new` at `new_at` do.
/// Errors: an image that cannot be read, or a function that has no room.
pub fn redirect(old: &[u8], old_at: u64, new: &[u8], new_at: u64) -> Result<Vec<(u64, Vec<u8>)>, String> {
    let no = |whose| move || format!("the vdso image of the {whose} kernel cannot be read");
    let (theirs, ours) =
        (functions(old).ok_or_else(no("source's"))?, functions(new).ok_or_else(no("target's"))?);
    let mut patches = Vec::new();
    for (name, call) in CALLS {
        let Some((offset, size)) = theirs.get(name).copied() else { continue };
        let from = old_at.wrapping_add(offset);
        // What a random generator keeps between calls is laid out by its kernel: there always the call.
        let own = ours.get(name).filter(|_| call != libc::SYS_getrandom);
        let code = match own {
            // jmp rel32
            Some((offset, _)) => {
                let distance = new_at.wrapping_add(*offset).wrapping_sub(from.wrapping_add(5)).cast_signed();
                let distance = i32::try_from(distance)
                    .map_err(|_| format!("{name} is too far from the kernel's own mappings"))?;
                [&[0xe9], &distance.to_le_bytes()[..]].concat()
            }
            // mov $call, %eax; syscall; ret
            None => {
                let number = u32::try_from(call).map_err(|_| "no such call".to_owned())?;
                [&[0xb8], &number.to_le_bytes()[..], &[0x0f, 0x05, 0xc3]].concat()
            }
        };
        if size < code.len() as u64 {
            return Err(format!("{name} of the source's vdso has no room for a jump"));
        }
        patches.push((from, code));
    }
    Ok(patches)
}

/// Where the vdso image lies that the program knows, by its auxiliary vector.
pub fn known_at(layout: &MmLayout) -> Option<u64> {
    let (words, _) = layout.borders.auxv.as_chunks::<8>();
    let pairs = words.chunks_exact(2).map(|p| (u64::from_le_bytes(p[0]), u64::from_le_bytes(p[1])));
    pairs.take_while(|(key, _)| *key != 0).find(|(key, _)| *key == AT_SYSINFO_EHDR).map(|(_, at)| at)
}

/// The image a program brought along from another kernel, as plain memory; `None`: its vdso is this kernel's.
pub fn brought(layout: &MmLayout) -> Option<AddrRange> {
    let at = known_at(layout)?;
    let vma = layout.vmas.iter().find(|v| v.range.start == at)?;
    (vma.backing == Backing::Anon).then_some(vma.range)
}

/// Another kernel's vdso, and this one's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Foreign {
    /// Image of the kernel a pod comes from.
    theirs: Vec<u8>,
    /// Image of this kernel.
    ours: Vec<u8>,
    /// This kernel's mappings as offsets from the first.
    block: Special,
}

impl Foreign {
    /// Of the image that a pod brings and this kernel's, whose mappings lie at `here` in some process. `None`: they are
    /// the same. Errors: this kernel's mappings are not in one row.
    pub fn new(theirs: &[u8], ours: &[u8], here: Special) -> Result<Option<Self>, String> {
        if theirs == ours || theirs.is_empty() {
            return Ok(None);
        }
        let start = here.ranges().map(|r| r.start).min().unwrap_or(0);
        let end = here.ranges().map(|r| r.end).max().unwrap_or(0);
        if here.vdso.is_none() || end - start != here.size() {
            return Err("this kernel's vdso and its data are not in one row".to_owned());
        }
        let shift = |r: AddrRange| AddrRange::new(r.start - start, r.end - start);
        let block = Special {
            vvar: here.vvar.map(shift),
            vclock: here.vclock.map(shift),
            vdso: here.vdso.map(shift),
        };
        Ok(Some(Self { theirs: theirs.to_vec(), ours: ours.to_vec(), block }))
    }

    /// The layout as it can be here: the program's image as plain memory, this kernel's mappings at `at` or, where that
    /// is taken, at a place near the image. Also where that is. A program without a vdso is left as it is.
    /// Errors: no room, or a source's mapping that makes no sense.
    pub fn adapt(&self, layout: &MmLayout, at: Option<u64>) -> Result<(MmLayout, Option<u64>), String> {
        let (Some(image), Some(kernels)) = (known_at(layout), Special::of(layout).vdso) else {
            return Ok((layout.clone(), None));
        };
        let special = |v: &Vma| matches!(v.backing, Backing::Vdso | Backing::Vvar | Backing::VvarVclock);
        let mut vmas: Vec<Vma> = layout.vmas.iter().filter(|v| !special(v)).cloned().collect();
        let put = |vmas: &mut Vec<Vma>, range: AddrRange, flags, backing| {
            let n = vmas.partition_point(|v| v.range.start < range.start);
            vmas.insert(n, Vma { range, flags, backing, name: None });
        };
        let code = VmaFlags::READ | VmaFlags::EXEC;
        if image == kernels.start {
            if kernels.len() < self.theirs.len() as u64 {
                return Err("the source's vdso image is larger than its mapping".to_owned());
            }
            put(&mut vmas, kernels, code, Backing::Anon);
        } else if !vmas.iter().any(|v| v.range.start == image && v.backing == Backing::Anon) {
            return Err("its vdso is neither the source kernel's nor in plain memory".to_owned());
        }
        let size = self.block.size();
        let free = |at: u64| {
            let range = AddrRange::new(at, at.saturating_add(size));
            range.end <= TASK_END && !vmas.iter().any(|v| v.range.overlaps(&range))
        };
        let near = |at: &u64| at.abs_diff(image) < REACH;
        let gaps = vmas.iter().map(|v| v.range.end + PAGE);
        let at = at
            .filter(|at| free(*at) && near(at))
            .or_else(|| gaps.clone().filter(|at| *at > image).find(|at| free(*at) && near(at)))
            .or_else(|| {
                let below = vmas.iter().filter(|v| v.range.start <= image).rev();
                let below = below.filter_map(|v| v.range.start.checked_sub(size + PAGE));
                below.into_iter().find(|at| *at >= PAGE && free(*at) && near(at))
            })
            .ok_or("there is no room for this kernel's vdso near the program's")?;
        for (range, flags, backing) in [
            (self.block.vvar, VmaFlags::READ, Backing::Vvar),
            (self.block.vclock, VmaFlags::READ, Backing::VvarVclock),
            (self.block.vdso, code, Backing::Vdso),
        ] {
            if let Some(r) = range {
                put(&mut vmas, AddrRange::new(at + r.start, at + r.end), flags, backing);
            }
        }
        Ok((MmLayout { vmas, ..layout.clone() }, Some(at)))
    }

    /// What is to be written in a process whose layout was `before`, with this kernel's mappings at `at`; `image` reads
    /// the image that the program brought.
    /// Errors: an image that cannot be read, functions without room.
    pub fn writes(
        &self,
        before: &MmLayout,
        at: u64,
        image: impl FnOnce(AddrRange) -> Result<Vec<u8>, String>,
    ) -> Result<Vec<(u64, Vec<u8>)>, String> {
        let Some(known) = known_at(before) else { return Ok(Vec::new()) };
        let new_at = at + self.block.vdso.map_or(0, |r| r.start);
        match brought(before) {
            Some(range) => redirect(&image(range)?, known, &self.ours, new_at),
            None => {
                let mut whole = self.theirs.clone();
                for (at, code) in redirect(&self.theirs, known, &self.ours, new_at)? {
                    let at = (at - known) as usize;
                    whole[at..at + code.len()].copy_from_slice(&code);
                }
                Ok(vec![(known, whole)])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::vdso::own;
    use crate::state::mm::{Borders, MapFileId, MmId};

    const HERE: u64 = 0x7f00_0000_0000;

    fn special(at: u64) -> Special {
        let r = |from: u64, to: u64| Some(AddrRange::new(at + from * PAGE, at + to * PAGE));
        Special { vvar: r(0, 4), vclock: r(4, 6), vdso: r(6, 8) }
    }

    fn layout(special: Special, ehdr: u64, more: &[AddrRange]) -> MmLayout {
        let vma = |range, backing| Vma { range, flags: VmaFlags::READ, backing, name: None };
        let mut vmas: Vec<Vma> = more.iter().map(|r| vma(*r, Backing::Anon)).collect();
        for (range, backing) in [
            (special.vvar, Backing::Vvar),
            (special.vclock, Backing::VvarVclock),
            (special.vdso, Backing::Vdso),
        ] {
            vmas.extend(range.map(|r| vma(r, backing)));
        }
        vmas.sort_by_key(|v| v.range.start);
        let auxv = [33, ehdr, 0, 0].iter().flat_map(|n: &u64| n.to_le_bytes()).collect();
        let borders = Borders { auxv, ..Borders::default() };
        MmLayout { mm: MmId(5), vmas, borders, exe: MapFileId(0) }
    }

    /// An image like ours whose functions are known to be others.
    fn other() -> Vec<u8> {
        let mut image = own().unwrap();
        *image.last_mut().unwrap() ^= 1;
        image
    }

    #[test]
    fn the_kernels_own_image_has_the_functions_that_programs_use() {
        let found = functions(&own().unwrap()).unwrap();
        for name in ["__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time", "__vdso_getcpu"] {
            assert!(found.contains_key(name), "{found:?}");
        }
    }

    #[test]
    fn a_damaged_image_is_none_and_no_panic() {
        let image = own().unwrap();
        for cut in [0, 3, 5, 63, 64, 200, image.len() / 2] {
            let _ = functions(&image[..cut]);
        }
        for at in 0..64 {
            let mut bad = image.clone();
            bad[at] = 0xff;
            let _ = functions(&bad);
        }
        assert_eq!(functions(&[0; 100]), None);
    }

    #[test]
    fn a_program_of_another_kernel_goes_there_and_on_and_back() {
        let (ours, theirs) = (own().unwrap(), other());
        assert_eq!(Foreign::new(&ours, &ours, special(HERE)), Ok(None));
        let foreign = Foreign::new(&theirs, &ours, special(HERE)).unwrap().unwrap();
        let base = 0x7ffe_0000_0000;
        let source = Special { vclock: None, ..special(base) };
        let image_at = source.vdso.unwrap().start;
        let before = layout(source, image_at, &[AddrRange::new(0x1000, 0x9000)]);
        let (after, at) = foreign.adapt(&before, None).unwrap();
        let at = at.unwrap();
        assert_eq!((known_at(&after), brought(&after)), (Some(image_at), source.vdso));
        assert_eq!(Special::of(&after).vdso.unwrap().start, at + 6 * PAGE);
        assert!(after.vmas.windows(2).all(|w| w[0].range.end <= w[1].range.start));
        // The same place again, as long as it is free.
        assert_eq!(foreign.adapt(&before, Some(at)).unwrap(), (after.clone(), Some(at)));
        let mut crowded = before.clone();
        crowded.vmas.push(Vma {
            range: AddrRange::new(at, at + PAGE),
            flags: VmaFlags::READ,
            backing: Backing::Anon,
            name: None,
        });
        crowded.vmas.sort_by_key(|v| v.range.start);
        assert_ne!(foreign.adapt(&crowded, Some(at)).unwrap().1, Some(at));

        let writes = foreign.writes(&before, at, |_| unreachable!()).unwrap();
        assert_eq!((writes.len(), writes[0].0, writes[0].1.len()), (1, image_at, theirs.len()));
        let (offset, _) = functions(&theirs).unwrap()["__vdso_time"];
        let code = &writes[0].1[offset as usize..];
        let distance = i32::from_le_bytes(code[1..5].try_into().unwrap());
        let lands = (image_at + offset + 5).wrapping_add_signed(distance.into());
        assert_eq!((code[0], lands), (0xe9, at + 6 * PAGE + functions(&ours).unwrap()["__vdso_time"].0));

        // Onwards: the image is plain memory by now and stays, what the kernel had is left behind.
        let next = Foreign::new(&ours, &theirs, special(0x5000_0000)).unwrap().unwrap();
        let (third, place) = next.adapt(&after, None).unwrap();
        assert_eq!(third.vmas.iter().filter(|v| v.backing == Backing::Vdso).count(), 1);
        assert_eq!(brought(&third), source.vdso);
        let image = writes[0].1.clone();
        let again = next.writes(&after, place.unwrap(), |r| {
            assert_eq!(Some(r), source.vdso);
            Ok(image)
        });
        assert!(again.unwrap().iter().all(|(a, code)| *a > image_at && code.len() <= 8));
    }

    #[test]
    fn what_the_kernel_lacks_becomes_a_call() {
        let (old, new) = (own().unwrap(), own().unwrap());
        let patches = redirect(&old, HERE, &new, HERE + (1 << 20)).unwrap();
        assert!(patches.iter().all(|(_, code)| matches!(code[0], 0xe9 | 0xb8)));
        assert!(redirect(&old, HERE, &new, HERE + (1 << 40)).unwrap_err().contains("too far"));
        assert!(redirect(&[], HERE, &new, HERE).is_err());
    }
}
