//! The output log of a pod: how a line is written, and readers that stream, tail and follow.
//!
//! One record a line: `2026-11-21T22:38:00.123456789Z o text`. The letter is `o` for standard output and `e` for
//! standard error; a capital one says that the record was cut without a newline of the program's own (the text
//! goes on in the next record of that stream). Text is the program's bytes as they are; it has no newline.

use jiff::Timestamp;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Longest text of one record, in bytes; a longer line is cut into several.
pub const LONGEST: usize = 16 << 10;
const BLOCK: u64 = 64 << 10;

/// Where a program wrote to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Standard output (or the terminal).
    Out,
    /// Standard error.
    Err,
}

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// When it was read from the program.
    pub time: Timestamp,
    /// Where it was written to.
    pub stream: Stream,
    /// Whether the program's line goes on in the next record.
    pub cut: bool,
    /// The bytes, without the newline.
    pub text: Vec<u8>,
}

/// Appends one record to `out`.
pub fn encode(time: Timestamp, stream: Stream, cut: bool, text: &[u8], out: &mut Vec<u8>) {
    let letter = match (stream, cut) {
        (Stream::Out, false) => 'o',
        (Stream::Out, true) => 'O',
        (Stream::Err, false) => 'e',
        (Stream::Err, true) => 'E',
    };
    out.extend_from_slice(format!("{time:.9} {letter} ").as_bytes());
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Reads one record (without its newline); `None` for what is not one (a line torn by a crash).
pub fn decode(line: &[u8]) -> Option<Entry> {
    let space = line.iter().take(40).position(|b| *b == b' ')?;
    let time = std::str::from_utf8(&line[..space]).ok()?.parse().ok()?;
    let (stream, cut) = match line.get(space + 1)? {
        b'o' => (Stream::Out, false),
        b'O' => (Stream::Out, true),
        b'e' => (Stream::Err, false),
        b'E' => (Stream::Err, true),
        _ => return None,
    };
    match line.get(space + 2)? {
        b' ' => Some(Entry { time, stream, cut, text: line[space + 3..].to_vec() }),
        _ => None,
    }
}

/// Cuts what a program writes into records: whole lines, and what is left when told to.
#[derive(Debug)]
pub struct Cutter {
    stream: Stream,
    rest: Vec<u8>,
}

impl Cutter {
    /// A cutter for one stream of one program.
    pub fn new(stream: Stream) -> Cutter {
        Cutter { stream, rest: Vec::new() }
    }

    /// Takes bytes the program wrote; appends the records that are whole to `out`.
    pub fn feed(&mut self, time: Timestamp, bytes: &[u8], out: &mut Vec<u8>) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            match piece.split_last() {
                Some((b'\n', head)) => {
                    self.take(time, head, out);
                    let line = std::mem::take(&mut self.rest);
                    encode(time, self.stream, false, &line, out);
                }
                _ => self.take(time, piece, out),
            }
        }
    }

    fn take(&mut self, time: Timestamp, bytes: &[u8], out: &mut Vec<u8>) {
        self.rest.extend_from_slice(bytes);
        while self.rest.len() > LONGEST {
            let tail = self.rest.split_off(LONGEST);
            encode(time, self.stream, true, &self.rest, out);
            self.rest = tail;
        }
    }

    /// Whether a line has begun that no record holds yet.
    pub fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Appends what is left as a cut record (a prompt without newline, or the program is over).
    pub fn flush(&mut self, time: Timestamp, out: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            encode(time, self.stream, true, &rest, out);
        }
    }
}

/// Where a log that has become long is set aside; a new one takes its place.
pub fn aside(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// Reads a log from a point on, again and again as it grows, the part set aside before it too.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: File,
    at: u64,
    rest: Vec<u8>,
}

impl Reader {
    /// A reader from the start of the log. NotFound: nothing was written yet.
    pub fn open(path: &Path) -> io::Result<Reader> {
        let file = match File::open(aside(path)) {
            Ok(older) => older,
            Err(_) => File::open(path)?,
        };
        Ok(Reader { path: path.to_path_buf(), file, at: 0, rest: Vec::new() })
    }

    /// Goes to where the last `n` lines begin (cut records belong to the line they are part of).
    pub fn tail(&mut self, n: usize) -> io::Result<()> {
        self.rest.clear();
        let mut left = n;
        if let Ok(newer) = File::open(&self.path) {
            let (at, lines) = last_lines(&newer, n)?;
            (self.file, self.at) = (newer, at);
            left = n - lines;
        }
        if left > 0
            && let Ok(older) = File::open(aside(&self.path))
        {
            let (at, _) = last_lines(&older, left)?;
            (self.file, self.at) = (older, at);
        }
        Ok(())
    }

    /// The next records, at most a block's worth; empty at the end of the log as it is now.
    pub fn more(&mut self) -> io::Result<Vec<Entry>> {
        loop {
            let mut block = vec![0; BLOCK as usize];
            // Asked before reading: what was appended until it was set aside is read, too.
            let newer = self.newer();
            let n = self.file.read_at(&mut block, self.at)?;
            if n == 0 {
                let Some(newer) = newer else { return Ok(Vec::new()) };
                (self.file, self.at) = (newer, 0);
                self.rest.clear();
                continue;
            }
            self.at += n as u64;
            self.rest.extend_from_slice(&block[..n]);
            let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else { continue };
            let tail = self.rest.split_off(end + 1);
            let whole = std::mem::replace(&mut self.rest, tail);
            let entries: Vec<Entry> = whole.split(|b| *b == b'\n').filter_map(decode).collect();
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }

    /// The log, when what is being read was set aside.
    fn newer(&self) -> Option<File> {
        let newer = File::open(&self.path).ok()?;
        let same = |a: &Metadata, b: &Metadata| a.dev() == b.dev() && a.ino() == b.ino();
        match (newer.metadata(), self.file.metadata()) {
            (Ok(a), Ok(b)) if !same(&a, &b) => Some(newer),
            _ => None,
        }
    }
}

/// Where the last `n` lines of a file begin, and how many those are.
fn last_lines(file: &File, n: usize) -> io::Result<(u64, usize)> {
    let end = file.metadata()?.len();
    let mut block_end = end;
    let mut seen = Vec::new();
    while block_end > 0 {
        let start = block_end.saturating_sub(BLOCK);
        let mut block = vec![0; (block_end - start) as usize];
        file.read_exact_at(&mut block, start)?;
        block.extend_from_slice(&seen);
        let (at, lines) = start_of_last(&block, n, start == 0);
        if lines == n || start == 0 {
            return Ok((start + at as u64, lines));
        }
        (seen, block_end) = (block, start);
    }
    Ok((end, 0))
}

/// Where the last `n` lines of `block` begin, and how many it surely has of them whole. `whole`: the block begins where
/// the log does.
fn start_of_last(block: &[u8], n: usize, whole: bool) -> (usize, usize) {
    if n == 0 {
        return (block.len(), 0);
    }
    let ends: Vec<usize> = block.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at).collect();
    let first = if whole { Some(0) } else { ends.first().map(|e| e + 1) };
    let mut starts: Vec<usize> = first.into_iter().collect();
    starts.extend(ends.iter().map(|e| e + 1).skip(usize::from(!whole)));
    starts.retain(|s| *s < block.len());
    // A line ends with a record that is not cut; the last record of each stream counts as an end.
    let mut lines = 0;
    let mut open = [true, true];
    for at in starts.iter().rev() {
        let end = ends.get(ends.partition_point(|e| e < at)).copied().unwrap_or(block.len());
        let Some(e) = decode(&block[*at..end]) else { continue };
        let side = usize::from(e.stream == Stream::Err);
        if !e.cut || open[side] {
            if lines == n {
                return (end + 1, n);
            }
            lines += 1;
        }
        open[side] = false;
    }
    // Without one more end before them the oldest may have begun in an earlier block.
    (0, if whole { lines } else { lines.min(n - 1) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn now() -> Timestamp {
        "2026-11-21T22:38:00.5Z".parse().unwrap()
    }

    fn texts(r: &mut Reader) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let some = r.more().unwrap();
            if some.is_empty() {
                return all;
            }
            all.extend(some.into_iter().map(|e| String::from_utf8_lossy(&e.text).into_owned()));
        }
    }

    #[test]
    fn a_record_reads_back() {
        let mut out = Vec::new();
        encode(now(), Stream::Err, true, b"a \xff b", &mut out);
        assert!(out.starts_with(b"2026-11-21T22:38:00.500000000Z E a "), "{}", String::from_utf8_lossy(&out));
        let e = decode(out.strip_suffix(b"\n").unwrap()).unwrap();
        assert_eq!(e, Entry { time: now(), stream: Stream::Err, cut: true, text: b"a \xff b".to_vec() });
        for torn in [
            &b""[..],
            b"x",
            b"2026-11-21T22:38:00.5Z",
            b"2026-11-21T22:38:00.5Z o",
            b"2026-11-21T22:38:00.5Z q x",
        ] {
            assert_eq!(decode(torn), None);
        }
    }

    #[test]
    fn lines_are_cut_whole_whatever_the_pieces() {
        let mut c = Cutter::new(Stream::Out);
        let mut out = Vec::new();
        for piece in [&b"a"[..], b"b\nc\n\nd", b""] {
            c.feed(now(), piece, &mut out);
        }
        assert!(c.has_rest());
        c.flush(now(), &mut out);
        c.flush(now(), &mut out);
        let all: Vec<Entry> = out.split(|b| *b == b'\n').filter_map(decode).collect();
        let texts: Vec<&[u8]> = all.iter().map(|e| e.text.as_slice()).collect();
        assert_eq!(texts, [&b"ab"[..], b"c", b"", b"d"]);
        assert_eq!(all.iter().map(|e| e.cut).collect::<Vec<_>>(), [false, false, false, true]);
    }

    #[test]
    fn a_long_line_is_cut_and_bounded() {
        let mut c = Cutter::new(Stream::Out);
        let mut out = Vec::new();
        let line = vec![b'x'; LONGEST * 2 + 5];
        c.feed(now(), &line, &mut out);
        c.feed(now(), b"\n", &mut out);
        let all: Vec<Entry> = out.split(|b| *b == b'\n').filter_map(decode).collect();
        assert_eq!(
            all.iter().map(|e| (e.text.len(), e.cut)).collect::<Vec<_>>(),
            [(LONGEST, true), (LONGEST, true), (5, false)]
        );
    }

    #[test]
    fn tailing_and_following() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut r = Reader::open(file.path()).unwrap();
        assert!(r.more().unwrap().is_empty());
        let mut out = Vec::new();
        // Far more than a block, so that tailing crosses blocks.
        for n in 0..5000 {
            encode(
                now(),
                Stream::Out,
                false,
                format!("line {n} {}", "y".repeat(n % 90)).as_bytes(),
                &mut out,
            );
        }
        file.write_all(&out).unwrap();
        assert_eq!(texts(&mut r).len(), 5000);
        for n in [0, 1, 7, 2500, 4999, 5000, 9999] {
            r.tail(n).unwrap();
            let all = texts(&mut r);
            assert_eq!(all.len(), n.min(5000), "tail {n}");
            if let Some(first) = all.first() {
                assert!(first.starts_with(&format!("line {} ", 5000 - n.min(5000))), "tail {n}: {first}");
            }
        }
        // A record that is half written is given once it is whole.
        let mut more = Vec::new();
        encode(now(), Stream::Err, false, b"more", &mut more);
        file.write_all(&more[..10]).unwrap();
        assert!(r.more().unwrap().is_empty());
        file.write_all(&more[10..]).unwrap();
        assert_eq!(texts(&mut r), ["more"]);
    }

    #[test]
    fn what_was_set_aside_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let write = |texts: &[&str]| {
            let mut out = Vec::new();
            texts.iter().for_each(|t| encode(now(), Stream::Out, false, t.as_bytes(), &mut out));
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
            file.write_all(&out).unwrap();
        };
        write(&["1", "2"]);
        let mut follower = Reader::open(&path).unwrap();
        assert_eq!(texts(&mut follower), ["1", "2"]);
        write(&["3"]);
        std::fs::rename(&path, aside(&path)).unwrap();
        assert_eq!(texts(&mut follower), ["3"], "also while there is no new log yet");
        write(&["4", "5"]);
        assert_eq!(texts(&mut follower), ["4", "5"]);
        let mut r = Reader::open(&path).unwrap();
        assert_eq!(texts(&mut r), ["1", "2", "3", "4", "5"]);
        for (n, expected) in [(0, &[][..]), (1, &["5"]), (2, &["4", "5"]), (3, &["3", "4", "5"])] {
            r.tail(n).unwrap();
            assert_eq!(texts(&mut r), expected, "tail {n}");
        }
        r.tail(99).unwrap();
        assert_eq!(texts(&mut r).len(), 5);
    }

    #[test]
    fn a_line_in_two_records_counts_once() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut out = Vec::new();
        encode(now(), Stream::Out, false, b"one", &mut out);
        encode(now(), Stream::Out, true, b"two a", &mut out);
        encode(now(), Stream::Out, false, b"two b", &mut out);
        encode(now(), Stream::Out, true, b"three", &mut out);
        file.write_all(&out).unwrap();
        let mut r = Reader::open(file.path()).unwrap();
        r.tail(1).unwrap();
        assert_eq!(texts(&mut r), ["three"]);
        r.tail(2).unwrap();
        assert_eq!(texts(&mut r), ["two a", "two b", "three"]);
        r.tail(3).unwrap();
        assert_eq!(texts(&mut r).len(), 4);
    }
}
