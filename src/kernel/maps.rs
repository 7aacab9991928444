//! `/proc/P/maps` and `/proc/P/smaps` as bytes (proc_pid_maps(5), proc_pid_smaps(5)).
//!
//! `maps` costs microseconds. `smaps` has the flags that `maps` lacks (`VmFlags`), but walks the page tables:
//! 11 ms for a GiB of 4 KiB pages here. The names are left as the kernel writes them: newline stands as
//! `\012` and cannot be told from those four characters, so a name that matters is read from `map_files`.

use super::procfs::{hex, number};
use crate::base::AddrRange;
use bitflags::bitflags;

bitflags! {
    /// `VmFlags`, the ones podmig acts on; those it does not know are left out.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct VmFlags: u64 {
        /// `sh`: shared, and the file is open for writing.
        const SHARED = 1;
        /// `mw`: may be made writable.
        const MAY_WRITE = 1 << 1;
        /// `gd`: grows down.
        const GROWSDOWN = 1 << 2;
        /// `pf`: pages without `struct page` (device memory).
        const PFNMAP = 1 << 3;
        /// `io`: device memory.
        const IO = 1 << 4;
        /// `lo`: locked.
        const LOCKED = 1 << 5;
        /// `sr`: MADV_SEQUENTIAL.
        const SEQUENTIAL = 1 << 6;
        /// `rr`: MADV_RANDOM.
        const RANDOM = 1 << 7;
        /// `dc`: MADV_DONTFORK.
        const DONTFORK = 1 << 8;
        /// `nr`: MAP_NORESERVE.
        const NORESERVE = 1 << 9;
        /// `ht`: huge pages of hugetlbfs.
        const HUGETLB = 1 << 10;
        /// `sf`: MAP_SYNC.
        const SYNC = 1 << 11;
        /// `wf`: MADV_WIPEONFORK.
        const WIPEONFORK = 1 << 12;
        /// `dd`: MADV_DONTDUMP.
        const DONTDUMP = 1 << 13;
        /// `mm`: mixed map (driver memory).
        const MIXEDMAP = 1 << 14;
        /// `hg`: MADV_HUGEPAGE.
        const HUGEPAGE = 1 << 15;
        /// `nh`: MADV_NOHUGEPAGE.
        const NOHUGEPAGE = 1 << 16;
        /// `mg`: MADV_MERGEABLE.
        const MERGEABLE = 1 << 17;
        /// `um`: userfaultfd, missing pages.
        const UFFD_MISSING = 1 << 18;
        /// `uw`: userfaultfd, write protection.
        const UFFD_WP = 1 << 19;
        /// `ui`: userfaultfd, minor faults.
        const UFFD_MINOR = 1 << 20;
        /// `ss`: shadow stack.
        const SHADOW_STACK = 1 << 21;
        /// `sl`: sealed by mseal(2).
        const SEALED = 1 << 22;
        /// `dp`: MAP_DROPPABLE.
        const DROPPABLE = 1 << 23;
        /// `gu`: may hold guard pages (kernels that tell).
        const GUARD = 1 << 24;
    }
}

impl VmFlags {
    /// Parses the value of a `VmFlags:` line.
    pub fn parse(value: &[u8]) -> Self {
        let mut all = Self::empty();
        for word in value.split(|&b| b == b' ') {
            all |= match word {
                b"sh" => Self::SHARED,
                b"mw" => Self::MAY_WRITE,
                b"gd" => Self::GROWSDOWN,
                b"pf" => Self::PFNMAP,
                b"io" => Self::IO,
                b"lo" => Self::LOCKED,
                b"sr" => Self::SEQUENTIAL,
                b"rr" => Self::RANDOM,
                b"dc" => Self::DONTFORK,
                b"nr" => Self::NORESERVE,
                b"ht" => Self::HUGETLB,
                b"sf" => Self::SYNC,
                b"wf" => Self::WIPEONFORK,
                b"dd" => Self::DONTDUMP,
                b"mm" => Self::MIXEDMAP,
                b"hg" => Self::HUGEPAGE,
                b"nh" => Self::NOHUGEPAGE,
                b"mg" => Self::MERGEABLE,
                b"um" => Self::UFFD_MISSING,
                b"uw" => Self::UFFD_WP,
                b"ui" => Self::UFFD_MINOR,
                b"ss" => Self::SHADOW_STACK,
                b"sl" => Self::SEALED,
                b"dp" => Self::DROPPABLE,
                b"gu" => Self::GUARD,
                _ => Self::empty(),
            };
        }
        all
    }
}

/// Permissions of a line: read, write, execute, shared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Perms(pub [u8; 4]);

impl Perms {
    /// `r`.
    pub fn read(self) -> bool {
        self.0[0] == b'r'
    }
    /// `w`.
    pub fn write(self) -> bool {
        self.0[1] == b'w'
    }
    /// `x`.
    pub fn exec(self) -> bool {
        self.0[2] == b'x'
    }
    /// `s`: MAP_SHARED.
    pub fn shared(self) -> bool {
        self.0[3] == b's'
    }
}

/// One line of `maps`: a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line<'a> {
    /// Where.
    pub range: AddrRange,
    /// Permissions.
    pub perms: Perms,
    /// Offset in the file in bytes.
    pub offset: u64,
    /// Major and minor number of the file's device, 0 without a file (or for a file system without one).
    pub dev: (u32, u32),
    /// Inode number, 0 without a file.
    pub inode: u64,
    /// Path, or `[heap]` and the like, or nothing; as the kernel writes it.
    pub name: &'a [u8],
}

impl<'a> Line<'a> {
    /// Parses one line without its newline; `None` if it is not one of a mapping.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut rest = line;
        let mut word = || {
            let end = rest.iter().position(|&b| b == b' ').unwrap_or(rest.len());
            let (head, tail) = rest.split_at(end);
            rest = tail.get(1..).unwrap_or_default();
            head
        };
        let range = word();
        let dash = range.iter().position(|&b| b == b'-')?;
        let (start, end) = (hex(&range[..dash])?, hex(&range[dash + 1..])?);
        let perms = Perms(word().try_into().ok()?);
        let offset = hex(word())?;
        let dev = word();
        let colon = dev.iter().position(|&b| b == b':')?;
        let dev = (u32::try_from(hex(&dev[..colon])?).ok()?, u32::try_from(hex(&dev[colon + 1..])?).ok()?);
        let inode = number(word())?;
        // Padding stands before a name; a name of blanks only cannot be told from none, and is none.
        let pad = rest.iter().position(|&b| b != b' ').unwrap_or(rest.len());
        if start >= end {
            return None;
        }
        let range = AddrRange::new(start, end);
        Some(Self { range, perms, offset, dev, inode, name: &rest[pad..] })
    }

    /// Whether a file lies behind it.
    pub fn has_file(&self) -> bool {
        self.inode != 0 || self.dev != (0, 0)
    }
}

/// The mappings of a `maps` file, in order; `None` if a line is not understood.
pub fn parse(text: &[u8]) -> Option<Vec<Line<'_>>> {
    text.split(|&b| b == b'\n').filter(|l| !l.is_empty()).map(Line::parse).collect()
}

/// One record of `smaps`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// The mapping.
    pub line: Line<'a>,
    /// Its flags.
    pub flags: VmFlags,
    /// Its protection key, 0 where there are none.
    pub pkey: u32,
}

/// The records of an `smaps` file, in order; `None` if it is not understood.
pub fn parse_smaps(text: &[u8]) -> Option<Vec<Record<'_>>> {
    let mut out: Vec<Record<'_>> = Vec::new();
    for line in text.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
        // A field begins with a capital letter, a mapping with a lower-case hex digit.
        if !line[0].is_ascii_uppercase() {
            out.push(Record { line: Line::parse(line)?, flags: VmFlags::empty(), pkey: 0 });
            continue;
        }
        let record = out.last_mut()?;
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            record.flags = VmFlags::parse(flags);
        } else if let Some(key) = line.strip_prefix(b"ProtectionKey:") {
            record.pkey = number(key)?;
        }
    }
    Some(out)
}

/// The part of the beginning of an `smaps` file that holds whole records only.
pub fn whole_records(text: &[u8]) -> &[u8] {
    // A record's last line is its flags.
    let mut end = text.len();
    while let Some(newline) = text[..end].iter().rposition(|&b| b == b'\n') {
        let start = text[..newline].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        if text[start..newline].starts_with(b"VmFlags:") {
            return &text[..newline + 1];
        }
        end = newline;
    }
    &[]
}

/// Whether the beginning of an `smaps` file has the whole record of the mapping that ends at `end`, or one beyond.
pub fn smaps_reach(text: &[u8], end: u64) -> bool {
    let lines = whole_records(text).rsplit(|&b| b == b'\n').filter(|l| !l.is_empty());
    let mut headers = lines.filter(|l| !l[0].is_ascii_uppercase());
    headers.next().and_then(Line::parse).is_some_and(|l| l.range.end >= end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_kind() {
        let text = b"7ffd-7ffe rw-p 00000000 00:00 0                          [stack]\n\
            1000-3000 r-xs 00001000 fe:10 325843                     /a b\\012 \xff (deleted)\n\
            4000-5000 ---p 00000000 00:00 0 \n";
        let lines = parse(text).unwrap();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].name, b"[stack]");
        assert!(!lines[0].has_file() && lines[0].perms.write() && !lines[0].perms.shared());
        assert_eq!(lines[1].name, b"/a b\\012 \xff (deleted)");
        assert_eq!((lines[1].dev, lines[1].inode, lines[1].offset), ((0xfe, 0x10), 325_843, 0x1000));
        assert!(lines[1].perms.shared() && lines[1].perms.exec() && lines[1].has_file());
        assert_eq!(lines[1].range, AddrRange::new(0x1000, 0x3000));
        assert_eq!(lines[2].name, b"");
        for bad in
            [&b"x"[..], b"5-4 rw-p 0 0:0 0", b"1-2 rwp 0 0:0 0", b"1-2 rw-p 0 00 0", b"1-2 rw-p 0 0:0 x"]
        {
            assert_eq!(Line::parse(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn our_own_smaps_has_the_mappings_of_maps() {
        let maps = std::fs::read("/proc/self/maps").unwrap();
        let smaps = std::fs::read("/proc/self/smaps").unwrap();
        let (maps, smaps) = (parse(&maps).unwrap(), parse_smaps(&smaps).unwrap());
        // Other test threads map and unmap meanwhile: compare what cannot change.
        for name in [&b"[stack]"[..], b"[vdso]", b"[vvar]"] {
            let line = maps.iter().find(|l| l.name == name).unwrap();
            let record = smaps.iter().find(|r| r.line.name == name).unwrap();
            assert_eq!(line.range.end, record.line.range.end);
            let grows = record.flags.contains(VmFlags::GROWSDOWN);
            assert_eq!(grows, name == b"[stack]");
            assert_eq!(record.flags.contains(VmFlags::PFNMAP), name == b"[vvar]");
        }
    }

    #[test]
    fn a_piece_of_smaps_ends_with_a_whole_record() {
        let one = b"1000-2000 rw-p 00000000 00:00 0 \nSize: 4 kB\nVmFlags: rd wr nr \n";
        let two = b"3000-4000 rw-p 00000000 00:00 0 [heap]\nSize: 4 kB\nVmFlags: rd \n";
        let all = [&one[..], two].concat();
        for cut in 0..all.len() {
            let whole = if cut < one.len() { 0 } else { one.len() };
            assert_eq!(whole_records(&all[..cut]).len(), whole, "cut at {cut}");
            assert_eq!(smaps_reach(&all[..cut], 0x2000), cut >= one.len());
            assert!(!smaps_reach(&all[..cut], 0x4000));
        }
        assert!(smaps_reach(&all, 0x4000));
        let records = parse_smaps(&all).unwrap();
        assert_eq!(records[0].flags, VmFlags::NORESERVE);
        assert_eq!((records[1].flags, records[1].line.name), (VmFlags::empty(), &b"[heap]"[..]));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(text: Vec<u8>) {
            let _ = smaps_reach(&text, 1);
            let _ = parse(&text);
            let _ = parse_smaps(&text);
        }
    }
}
