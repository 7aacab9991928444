//! Address spaces read from `/proc/P/maps`, `smaps`, `stat` and `auxv`.
//!
//! `maps` is quick and lacks the flags (`VmFlags`); `smaps` has them and walks every page table: 11 ms for a
//! GiB of 4 KiB pages here, too much for a freeze. So flags are read while the program runs ([`Known`]), and at
//! the freeze `smaps` is read only when a mapping is there whose flags do not follow from what was known, and
//! only as far as that mapping. They follow when the mapping is unchanged, has grown (the kernel lets mappings
//! of unlike flags neither grow into one another nor merge), or has lost a part without a neighbour that could
//! be the other part of a split by madvise(2). What this cannot see: madvise over exactly a whole mapping, or a
//! mapping of the same protection and other flags made in its place, between the last look and the freeze;
//! mlock(2) is seen by `VmLck`.

use super::files::{Asked, Behind, FileTable};
use super::{Backing, Borders, MmId, MmLayout, Vma, VmaFlags};
use crate::base::{AddrRange, Blocker};
use crate::kernel::maps::{self, Line, Perms, VmFlags};
use crate::kernel::pagemap::{self, PageIs, Pagemap, Query};
use crate::kernel::procfs::{Proc, Stat};
use crate::state::error::{Error, blocker};
use crate::state::object::collect::ObjectTable;

/// One mapping with its flags, as read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Where.
    pub range: AddrRange,
    /// Permissions.
    pub perms: Perms,
    /// Offset in the file.
    pub offset: u64,
    /// Device and inode as `maps` shows them.
    pub file: ((u32, u32), u64),
    /// Name as `maps` shows it.
    pub name: Vec<u8>,
    /// Flags.
    pub flags: VmFlags,
    /// Protection key.
    pub pkey: u32,
}

impl Seen {
    fn new(line: &Line<'_>, flags: VmFlags, pkey: u32) -> Self {
        Self {
            range: line.range,
            perms: line.perms,
            offset: line.offset,
            file: (line.dev, line.inode),
            name: line.name.to_vec(),
            flags,
            pkey,
        }
    }

    /// Whether `line` can be the same mapping, or a part of it, or it grown.
    fn same_backing(&self, line: &Line<'_>) -> bool {
        self.file == (line.dev, line.inode)
            && self.name == line.name
            && self.perms.shared() == line.perms.shared()
            && (!line.has_file()
                || self.offset.wrapping_sub(self.range.start) == line.offset.wrapping_sub(line.range.start))
    }
}

/// All mappings of one address space with their flags, as they were at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Known {
    seen: Vec<Seen>,
    locked_kib: u64,
    /// Tells one program from the next that the process exec'd.
    start_stack: u64,
}

impl Known {
    /// Whether no mapping overlaps the next: a list read while the process ran may show one place twice.
    pub fn in_order(&self) -> bool {
        self.seen.windows(2).all(|w| w[0].range.end <= w[1].range.start)
    }

    /// The mappings by rising address.
    pub fn mappings(&self) -> &[Seen] {
        &self.seen
    }

    /// The flags of `lines[i]` if they follow from what is known.
    fn infer(&self, lines: &[Line<'_>], i: usize) -> Option<(VmFlags, u32)> {
        let line = &lines[i];
        let first = self.seen.partition_point(|s| s.range.end <= line.range.start);
        let over = || self.seen[first..].iter().take_while(|s| s.range.start < line.range.end);
        let old = over().find(|o| o.perms == line.perms && o.same_backing(line))?;
        if over().any(|o| (o.flags, o.pkey) != (old.flags, old.pkey)) {
            return None;
        }
        let whole = line.range.start <= old.range.start && old.range.end <= line.range.end;
        let twin = |other: Option<&Line<'_>>| {
            other.is_some_and(|o| {
                (o.range.end == line.range.start || o.range.start == line.range.end)
                    && o.range.overlaps(&old.range)
                    && o.perms == line.perms
            })
        };
        let split = !whole && (twin(i.checked_sub(1).and_then(|p| lines.get(p))) || twin(lines.get(i + 1)));
        (!split).then_some((old.flags, old.pkey))
    }
}

/// Reads all mappings of a process with their flags. With `known` (and `VmLck` as it is now), `smaps` is read only
/// as far as needed. `stat` names the program, so that an exec since then is seen.
pub fn read_mappings(
    proc: &Proc,
    stat: &Stat,
    locked_kib: u64,
    known: Option<&Known>,
    buf: &mut Vec<u8>,
) -> Result<Known, Error> {
    let fresh = |seen| Known { seen, locked_kib, start_stack: stat.start_stack };
    let Some(known) = known.filter(|k| k.locked_kib == locked_kib && k.start_stack == stat.start_stack)
    else {
        proc.read_into("smaps", buf).map_err(Error::read(proc.pid(), "smaps"))?;
        let records = maps::parse_smaps(buf).ok_or_else(Error::odd(proc.pid(), "smaps"))?;
        return Ok(fresh(records.iter().map(|r| Seen::new(&r.line, r.flags, r.pkey)).collect()));
    };
    proc.read_into("maps", buf).map_err(Error::read(proc.pid(), "maps"))?;
    let lines = maps::parse(buf).ok_or_else(Error::odd(proc.pid(), "maps"))?;
    let flags: Vec<_> = (0..lines.len()).map(|i| known.infer(&lines, i)).collect();
    let Some(last) = flags.iter().rposition(Option::is_none) else {
        return Ok(fresh(
            lines.iter().zip(flags).map(|(l, f)| seen_with(l, f.unwrap_or_default())).collect(),
        ));
    };
    let mut text = Vec::new();
    let upto = lines[last].range.end;
    proc.read_until("smaps", &mut text, |t| maps::smaps_reach(t, upto))
        .map_err(Error::read(proc.pid(), "smaps"))?;
    let records =
        maps::parse_smaps(maps::whole_records(&text)).ok_or_else(Error::odd(proc.pid(), "smaps"))?;
    let mut seen = Vec::with_capacity(lines.len());
    for (line, flags) in lines.iter().zip(flags) {
        let record = records.binary_search_by_key(&line.range.start, |r| r.line.range.start);
        seen.push(match (flags, record) {
            (_, Ok(at)) if records[at].line == *line => Seen::new(line, records[at].flags, records[at].pkey),
            (Some(f), _) => seen_with(line, f),
            // It changed between the two files: the process runs.
            (None, _) => return read_mappings(proc, stat, locked_kib, None, buf),
        });
    }
    Ok(fresh(seen))
}

fn seen_with(line: &Line<'_>, (flags, pkey): (VmFlags, u32)) -> Seen {
    Seen::new(line, flags, pkey)
}

/// The tables that all processes of the pod share.
pub struct Tables<'a> {
    /// Files with a name.
    pub files: &'a mut FileTable,
    /// Content that belongs to the pod.
    pub objects: &'a mut ObjectTable,
    /// What cannot be carried is added here.
    pub found: &'a mut Vec<Blocker>,
    /// podmig itself tracks writes by userfaultfd in this pod: its registrations are no blocker.
    pub tracked: bool,
}

/// The layout of a process (pod pid `pid`) from its mappings. `brk` is the end of the heap's mapping: put the true
/// one in when it is known. What cannot be carried is left out and told in `tables.found`.
pub fn layout(
    proc: &Proc,
    pid: i32,
    stat: &Stat,
    known: &Known,
    tables: &mut Tables<'_>,
) -> Result<Option<MmLayout>, Error> {
    let mut vmas = Vec::with_capacity(known.seen.len());
    let mut brk = stat.start_brk;
    for seen in &known.seen {
        if seen.name == b"[heap]" {
            brk = brk.max(seen.range.end);
        }
        vmas.extend(vma(proc, pid, seen, tables)?);
    }
    let auxv = proc.read("auxv").map_err(Error::read(proc.pid(), "auxv"))?;
    let borders = Borders {
        start_code: stat.code.0,
        end_code: stat.code.1,
        start_data: stat.data.0,
        end_data: stat.data.1,
        start_brk: stat.start_brk,
        brk,
        start_stack: stat.start_stack,
        arg_start: stat.args.0,
        arg_end: stat.args.1,
        env_start: stat.env.0,
        env_end: stat.env.1,
        auxv,
    };
    let exe = tables.files.executable(proc, pid, tables.found)?;
    Ok(exe.map(|exe| MmLayout { mm: MmId(pid), vmas, borders, exe }))
}

/// One mapping; `None` if it is the kernel's own business or cannot be carried.
fn vma(proc: &Proc, pid: i32, seen: &Seen, tables: &mut Tables<'_>) -> Result<Option<Vma>, Error> {
    let plain = |backing, name| Some(Vma { range: seen.range, flags: vma_flags(seen), backing, name });
    match seen.name.as_slice() {
        // Not of the process: the same for all, made by the kernel at boot.
        b"[vsyscall]" => return Ok(None),
        b"[vdso]" => return Ok(plain(Backing::Vdso, None)),
        b"[vvar]" => return Ok(plain(Backing::Vvar, None)),
        b"[vvar_vclock]" => return Ok(plain(Backing::VvarVclock, None)),
        _ => {}
    }
    if let Some((kind, message, remedy)) = refusal(seen, tables.tracked) {
        let b = blocker(kind, pid, format!("memory {:?}: {message}", seen.range), remedy);
        let path = (!seen.name.is_empty()).then(|| String::from_utf8_lossy(&seen.name).into_owned());
        tables.found.push(Blocker { path, ..b });
        return Ok(None);
    }
    let name = anon_name(&seen.name);
    if seen.file == ((0, 0), 0) {
        return Ok(plain(Backing::Anon, name));
    }
    let shared = seen.perms.shared();
    let asked = Asked {
        proc,
        pid,
        range: seen.range,
        dev: seen.file.0,
        inode: seen.file.1,
        name: &seen.name,
        shared,
        writable: shared && seen.flags.contains(VmFlags::MAY_WRITE),
    };
    let offset = seen.offset;
    Ok(match tables.files.behind(&asked, tables.objects, tables.found)? {
        Some(Behind::File(file)) => plain(Backing::File { file, offset }, name),
        Some(Behind::Object(object)) => plain(Backing::Object { object, offset }, name),
        Some(Behind::Zero) => plain(Backing::Anon, name),
        None => None,
    })
}

/// The name given by PR_SET_VMA_ANON_NAME.
fn anon_name(name: &[u8]) -> Option<Vec<u8>> {
    let inner = name.strip_prefix(b"[anon:").or_else(|| name.strip_prefix(b"[anon_shmem:"))?;
    Some(inner.strip_suffix(b"]")?.to_vec())
}

/// Why a mapping cannot be carried: (kind, reason, remedy).
fn refusal(seen: &Seen, tracked: bool) -> Option<(&'static str, &'static str, &'static str)> {
    let f = |flag| seen.flags.intersects(flag);
    let close = "close it in the program";
    let name = seen.name.as_slice();
    if name.starts_with(b"anon_inode:[io_uring]") || name.starts_with(b"io_uring") {
        return Some(("io_uring", "an io_uring ring cannot be carried", "turn io_uring off in the program"));
    }
    if name.starts_with(b"anon_inode:") {
        return Some(("kernel-memory", "memory of a kernel object cannot be carried", close));
    }
    if name.starts_with(b"socket:") {
        return Some(("socket-memory", "a socket's ring buffer cannot be carried", close));
    }
    if name.starts_with(b"/[aio]") || name.starts_with(b"[aio]") {
        return Some(("aio", "an AIO context cannot be carried", "turn native AIO off in the program"));
    }
    if name == b"/secretmem (deleted)" {
        return Some((
            "secretmem",
            "memfd_secret(2) memory cannot be read",
            "turn secret memory off in the program",
        ));
    }
    if name == b"[uprobes]" {
        return Some(("uprobes", "the program is probed by uprobes", "remove the probes"));
    }
    if f(VmFlags::HUGETLB) {
        return Some((
            "hugetlb",
            "huge page memory cannot be carried yet",
            "turn huge pages off in the program",
        ));
    }
    if f(VmFlags::SHADOW_STACK) {
        return Some((
            "shadow-stack",
            "a shadow stack cannot be carried yet",
            "run it with shadow stacks off",
        ));
    }
    if f(VmFlags::IO | VmFlags::PFNMAP | VmFlags::MIXEDMAP) {
        return Some(("device-memory", "device memory cannot be carried", close));
    }
    if f(VmFlags::SYNC) {
        return Some(("dax", "memory mapped with MAP_SYNC cannot be carried", close));
    }
    if f(VmFlags::UFFD_MISSING | VmFlags::UFFD_MINOR) || (f(VmFlags::UFFD_WP) && !tracked) {
        return Some((
            "userfaultfd",
            "its page faults are handled by userfaultfd",
            "turn userfaultfd off in the program",
        ));
    }
    if f(VmFlags::SEALED) {
        return Some(("mseal", "sealed memory cannot be carried yet", "run it without mseal(2)"));
    }
    if seen.pkey != 0 {
        return Some(("pkey", "memory with a protection key cannot be carried yet", "run it without pkeys"));
    }
    let unknown = seen.file == ((0, 0), 0)
        && name.starts_with(b"[")
        && name != b"[heap]"
        && !name.starts_with(b"[stack")
        && !name.starts_with(b"[anon:");
    unknown.then_some(("kernel-memory", "a special mapping that is not known", close))
}

/// The flags that travel.
fn vma_flags(seen: &Seen) -> VmaFlags {
    let mut flags = VmaFlags::empty();
    for (set, flag) in [
        (seen.perms.read(), VmaFlags::READ),
        (seen.perms.write(), VmaFlags::WRITE),
        (seen.perms.exec(), VmaFlags::EXEC),
        (seen.perms.shared(), VmaFlags::SHARED),
    ] {
        flags.set(flag, set);
    }
    for (theirs, ours) in [
        (VmFlags::GROWSDOWN, VmaFlags::GROWSDOWN),
        (VmFlags::LOCKED, VmaFlags::LOCKED),
        (VmFlags::NORESERVE, VmaFlags::NORESERVE),
        (VmFlags::DONTFORK, VmaFlags::DONTFORK),
        (VmFlags::DONTDUMP, VmaFlags::DONTDUMP),
        (VmFlags::MERGEABLE, VmaFlags::MERGEABLE),
        (VmFlags::HUGEPAGE, VmaFlags::HUGEPAGE),
        (VmFlags::NOHUGEPAGE, VmaFlags::NOHUGEPAGE),
        (VmFlags::WIPEONFORK, VmaFlags::WIPEONFORK),
        (VmFlags::SEQUENTIAL, VmaFlags::SEQUENTIAL),
        (VmFlags::RANDOM, VmaFlags::RANDOM),
        (VmFlags::DROPPABLE, VmaFlags::DROPPABLE),
    ] {
        flags.set(ours, seen.flags.contains(theirs));
    }
    flags
}

/// Guard pages (MADV_GUARD_INSTALL): one blocker for the process that has any. Walks page tables; for the time
/// when the program runs.
pub fn guard_pages(host_pid: i32, pid: i32, known: &Known) -> Result<Option<Blocker>, Error> {
    if !pagemap::has_guard() {
        return Ok(None);
    }
    let io = |e: std::io::Error| {
        Error::read(host_pid, "pagemap")(nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0)))
    };
    let map = Pagemap::open(host_pid).map_err(io)?;
    let query = Query { anyof: PageIs::GUARD, ret: PageIs::GUARD, ..Query::default() };
    let mut first = None;
    for seen in known.seen.iter().filter(|s| !s.flags.intersects(VmFlags::IO | VmFlags::PFNMAP)) {
        if seen.name == b"[vsyscall]" {
            continue;
        }
        map.scan(seen.range, &query, |r| first = first.or(Some(r.range)))
            .map_err(Error::read(host_pid, "pagemap"))?;
    }
    Ok(first.map(|range| {
        let message = format!("memory {range:?}: guard pages (MADV_GUARD_INSTALL) cannot be carried yet");
        blocker("guard-pages", pid, message, "run it without them")
    }))
}

#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;
