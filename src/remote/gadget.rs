//! What is already in a program: its mappings, and two instruction sequences to borrow before any code of ours is there.

use super::mem::Mem;
use super::{Error, Result};
use crate::base::AddrRange;
use std::collections::HashMap;
use std::sync::Mutex;

/// One line of `/proc/P/maps`, as far as needed here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mapping {
    pub range: AddrRange,
    pub readable: bool,
    pub executable: bool,
    pub private: bool,
    pub offset: u64,
    /// "major:minor" of the file system and inode; inode 0 = no file.
    pub file: (String, u64),
    pub name: String,
}

/// The mappings of thread `tid`'s process, in order.
pub(super) fn mappings(tid: i32) -> Result<Vec<Mapping>> {
    let text = std::fs::read(format!("/proc/{tid}/maps")).map_err(Error::proc(tid, "maps"))?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mapping> {
    let mut parts = line.splitn(6, ' ');
    let (start, end) = parts.next()?.split_once('-')?;
    let hex = |t: &str| u64::from_str_radix(t, 16).ok();
    let perms = parts.next()?.as_bytes();
    let offset = hex(parts.next()?)?;
    let dev = parts.next()?.to_owned();
    let inode = parts.next()?.parse().ok()?;
    Some(Mapping {
        range: AddrRange::new(hex(start)?, hex(end)?),
        readable: perms.first() == Some(&b'r'),
        executable: perms.get(2) == Some(&b'x'),
        private: perms.get(3) == Some(&b'p'),
        offset,
        file: (dev, inode),
        name: parts.next().unwrap_or("").trim_start().to_owned(),
    })
}

/// Addresses of borrowed code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gadgets {
    /// `syscall; ret`.
    pub syscall_ret: u64,
    /// `mov $15, %eax` (or %rax) `; syscall`: rt_sigreturn.
    pub sigreturn: u64,
}

const SYSCALL_RET: &[u8] = &[0x0f, 0x05, 0xc3];
/// The two encodings C libraries use for their signal restorer.
const SIGRETURN: [&[u8]; 2] =
    [&[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05], &[0xb8, 15, 0, 0, 0, 0x0f, 0x05]];

/// Offsets of the two inside one piece of text.
type Offsets = (Option<u64>, Option<u64>);
/// A piece of a file: file system, inode, offset, length.
type Piece = (String, u64, u64, u64);

/// Text seen before. Files of programs do not change while mapped (ETXTBSY) but may under the same inode later: a hit is verified.
static SEEN: Mutex<Option<HashMap<Piece, Offsets>>> = Mutex::new(None);

/// Finds both sequences in the executable mappings of a process.
pub(super) fn find(pid: i32, mem: &Mem, maps: &[Mapping]) -> Result<Gadgets> {
    let mut found = (None, None);
    for map in maps.iter().filter(|m| m.executable && m.readable && m.name != "[vsyscall]") {
        let here = offsets(mem, map)?;
        found.0 = found.0.or(here.0.map(|o| map.range.start + o));
        found.1 = found.1.or(here.1.map(|o| map.range.start + o));
        if let (Some(syscall_ret), Some(sigreturn)) = found {
            return Ok(Gadgets { syscall_ret, sigreturn });
        }
    }
    let what = if found.0.is_none() { "`syscall; ret`" } else { "a call of rt_sigreturn" };
    Err(Error::NoGadget { pid, what })
}

/// Looks for the sequences in a running process and remembers where they are, so that no session has to search
/// program text while a pod stands still.
pub fn look_ahead(pid: i32) {
    if let (Ok(mem), Ok(maps)) = (Mem::open(pid), mappings(pid)) {
        // A process that has none is told when a session is opened.
        let _ = find(pid, &mem, &maps);
    }
}

fn offsets(mem: &Mem, map: &Mapping) -> Result<Offsets> {
    let key = (map.file.0.clone(), map.file.1, map.offset, map.range.len());
    let known = lock(|seen| seen.get(&key).copied());
    if let Some(offsets) = known
        && holds(mem, map.range.start, offsets)?
    {
        return Ok(offsets);
    }
    let offsets = scan(mem, map.range)?;
    if map.file.1 != 0 {
        lock(|seen| seen.insert(key, offsets));
    }
    Ok(offsets)
}

fn lock<T>(act: impl FnOnce(&mut HashMap<Piece, Offsets>) -> T) -> T {
    // A panic while holding it cannot leave the map half-changed.
    let mut guard = SEEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    act(guard.get_or_insert_default())
}

fn holds(mem: &Mem, base: u64, offsets: Offsets) -> Result<bool> {
    let mut bytes = [0; 9];
    if let Some(at) = offsets.0 {
        mem.read(base + at, &mut bytes[..3])?;
        if bytes[..3] != *SYSCALL_RET {
            return Ok(false);
        }
    }
    if let Some(at) = offsets.1 {
        mem.read(base + at, &mut bytes)?;
        return Ok(SIGRETURN.iter().any(|s| bytes.starts_with(s)));
    }
    Ok(true)
}

fn scan(mem: &Mem, range: AddrRange) -> Result<Offsets> {
    const CHUNK: u64 = 1 << 20;
    // Longest sequence minus one: pieces overlap by it so that none is cut.
    const OVERLAP: u64 = 8;
    let mut found: Offsets = (None, None);
    let mut at = range.start;
    let mut buffer = Vec::new();
    while at < range.end && (found.0.is_none() || found.1.is_none()) {
        let len = (range.end - at).min(CHUNK);
        buffer.resize(len as usize, 0);
        // A file shorter than its mapping faults past its end: what lies there is no code.
        if mem.read(at, &mut buffer).is_err() {
            break;
        }
        let here = |needle: &[u8]| {
            buffer.windows(needle.len()).position(|w| w == needle).map(|o| at - range.start + o as u64)
        };
        found.0 = found.0.or_else(|| here(SYSCALL_RET));
        found.1 = found.1.or_else(|| SIGRETURN.iter().find_map(|s| here(s)));
        at += if len == CHUNK { CHUNK - OVERLAP } else { len };
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_parse() {
        let maps = parse(
            "55d0c0a00000-55d0c0a01000 r-xp 00001000 fd:01 1234 /usr/bin/a b\n\
             7ffd4a5e0000-7ffd4a601000 rw-p 00000000 00:00 0                          [stack]\nrubbish\n",
        );
        assert_eq!(maps.len(), 2);
        assert_eq!((maps[0].name.as_str(), maps[0].executable, maps[0].file.1), ("/usr/bin/a b", true, 1234));
        assert_eq!(
            (maps[1].name.as_str(), maps[1].executable, maps[1].range.len()),
            ("[stack]", false, 0x21000)
        );
    }

    #[test]
    fn our_own_libc_has_both() {
        let me = std::process::id() as i32;
        let (mem, maps) = (Mem::open(me).expect("mem"), mappings(me).expect("maps"));
        let first = find(me, &mem, &maps).expect("gadgets");
        assert_eq!(find(me, &mem, &maps).expect("again, from memory"), first);
        let mut bytes = [0; 3];
        mem.read(first.syscall_ret, &mut bytes).expect("read");
        assert_eq!(bytes, SYSCALL_RET);
    }
}
