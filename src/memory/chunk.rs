//! A chunk: a list of runs and the bytes of those that are not zero, the unit that is read, sent and applied.

use super::{Error, Space};
use crate::base::AddrRange;
use crate::base::addr::PAGE;
use crate::state::mm::MmId;
use crate::state::object::ObjectId;
use serde::{Deserialize, Serialize};

/// Most bytes of page data in one chunk.
pub const MAX_DATA: usize = 1 << 20;
/// Most runs in one chunk.
pub const MAX_RUNS: usize = 2048;
/// Size of one run in an encoded header.
const RUN_BYTES: usize = 24;

/// Pages in a row. Their bytes follow in the chunk's data unless all are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Whose.
    pub space: Space,
    /// First address (or offset), a multiple of a page.
    pub addr: u64,
    /// Length in bytes, a multiple of a page, not 0.
    pub len: u64,
    /// All zero (or gone): no data.
    pub zero: bool,
}

impl Run {
    /// Where it lies.
    pub fn range(&self) -> AddrRange {
        AddrRange::new(self.addr, self.addr + self.len)
    }
    /// Bytes of data it has in the chunk.
    pub fn data_len(&self) -> usize {
        if self.zero { 0 } else { self.len as usize }
    }
}

/// Runs with the bytes of those that are not zero, in their order, nothing between. A buffer meant to be used again
/// and again: [`Chunk::clear`] keeps its memory, and old bytes are not wiped.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    /// Header.
    pub runs: Vec<Run>,
    buf: Vec<u8>,
    used: usize,
}

impl Chunk {
    /// An empty chunk, as a constant.
    pub(super) const EMPTY: Self = Self { runs: Vec::new(), buf: Vec::new(), used: 0 };

    /// An empty chunk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.used = 0;
    }

    /// Data of the runs.
    pub fn data(&self) -> &[u8] {
        &self.buf[..self.used]
    }

    /// Makes the data `len` bytes long (at most [`MAX_DATA`], or `Malformed`) for the caller to overwrite, say from
    /// a socket; what it holds before is unspecified.
    pub fn data_mut(&mut self, len: usize) -> Result<&mut [u8], Error> {
        if len > MAX_DATA {
            return Err(Error::Malformed("more data than a chunk may hold"));
        }
        if self.buf.len() < len {
            self.buf.resize(len, 0);
        }
        self.used = len;
        Ok(&mut self.buf[..len])
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Bytes of memory it describes, zero runs included.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|r| r.len).sum()
    }

    /// The data, to be written by the reader.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        &mut self.buf[..self.used]
    }

    /// Appends a run of zeros, joined to the last run if it goes on from there.
    pub fn push_zero(&mut self, space: Space, range: AddrRange) {
        self.push_run(Run { space, addr: range.start, len: range.len(), zero: true });
    }

    /// Appends a run header, joined to the last one where possible; the caller puts its data into the buffer.
    pub(super) fn push_run(&mut self, run: Run) {
        match self.runs.last_mut() {
            Some(last)
                if last.space == run.space && last.zero == run.zero && last.addr + last.len == run.addr =>
            {
                last.len += run.len;
            }
            _ => self.runs.push(run),
        }
    }

    /// Each run with its bytes (none for zero runs).
    pub fn pieces(&self) -> impl Iterator<Item = (&Run, &[u8])> {
        let mut at = 0;
        self.runs.iter().map(move |run| {
            let from = at;
            at += run.data_len();
            (run, self.data().get(from..at).unwrap_or_default())
        })
    }

    /// Appends the encoded runs (24 bytes each, little endian: kind u8, zero u8, 0 u16, id u32, addr u64, len u64).
    pub fn encode_header(&self, out: &mut Vec<u8>) {
        out.reserve(self.runs.len() * RUN_BYTES);
        for run in &self.runs {
            let (kind, id) = match run.space {
                Space::Mm(MmId(pid)) => (0u8, pid.cast_unsigned()),
                Space::Object(ObjectId(n)) => (1, n),
            };
            out.extend_from_slice(&[kind, u8::from(run.zero), 0, 0]);
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&run.addr.to_le_bytes());
            out.extend_from_slice(&run.len.to_le_bytes());
        }
    }

    /// Reads encoded runs from a peer into `runs` (emptied first) and returns how many bytes of data belong to them,
    /// at most [`MAX_DATA`]. Every run is page-aligned, not empty, and does not wrap. Errors: `Malformed`.
    pub fn decode_header(header: &[u8], runs: &mut Vec<Run>) -> Result<usize, Error> {
        runs.clear();
        let (records, rest) = header.as_chunks::<RUN_BYTES>();
        if !rest.is_empty() {
            return Err(Error::Malformed("length is not a multiple of a run"));
        }
        if records.len() > MAX_RUNS {
            return Err(Error::Malformed("too many runs"));
        }
        let mut data = 0usize;
        for record in records {
            let run = decode_run(record)?;
            data = data.saturating_add(run.data_len());
            if data > MAX_DATA {
                return Err(Error::Malformed("more data than a chunk may hold"));
            }
            runs.push(run);
        }
        Ok(data)
    }
}

fn decode_run(record: &[u8; RUN_BYTES]) -> Result<Run, Error> {
    let word = |at: usize| {
        let mut bytes = [0u8; 8];
        bytes.copy_from_slice(&record[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let id = (word(0) >> 32) as u32;
    let space = match record[0] {
        0 => Space::Mm(MmId(id.cast_signed())),
        1 => Space::Object(ObjectId(id)),
        _ => return Err(Error::Malformed("unknown kind of space")),
    };
    if record[1] > 1 || record[2] != 0 || record[3] != 0 {
        return Err(Error::Malformed("unknown flags"));
    }
    let run = Run { space, addr: word(8), len: word(16), zero: record[1] == 1 };
    check_run(&run)?;
    Ok(run)
}

/// Page-aligned, not empty, no wrap.
pub(super) fn check_run(run: &Run) -> Result<(), Error> {
    if !run.addr.is_multiple_of(PAGE) || !run.len.is_multiple_of(PAGE) || run.len == 0 {
        return Err(Error::Malformed("a run is not whole pages"));
    }
    if run.addr.checked_add(run.len).is_none() {
        return Err(Error::Malformed("a run goes beyond the end of addresses"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run() -> impl Strategy<Value = Run> {
        (any::<bool>(), any::<u32>(), 0..1u64 << 35, 1..20u64, any::<bool>()).prop_map(
            |(mm, id, page, pages, zero)| {
                let space = if mm { Space::Mm(MmId(id.cast_signed())) } else { Space::Object(ObjectId(id)) };
                Run { space, addr: page * PAGE, len: pages * PAGE, zero }
            },
        )
    }

    proptest! {
        #[test]
        fn headers_survive_the_trip(runs in proptest::collection::vec(run(), 0..12)) {
            let chunk = Chunk { runs, ..Chunk::new() };
            let (mut bytes, mut back) = (Vec::new(), Vec::new());
            chunk.encode_header(&mut bytes);
            let data = Chunk::decode_header(&bytes, &mut back).unwrap();
            prop_assert_eq!(&back, &chunk.runs);
            prop_assert_eq!(data, chunk.runs.iter().map(Run::data_len).sum::<usize>());
        }

        #[test]
        fn hostile_headers_give_an_error_or_sane_runs(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut runs = Vec::new();
            if let Ok(data) = Chunk::decode_header(&bytes, &mut runs) {
                prop_assert!(data <= MAX_DATA);
                for r in runs {
                    prop_assert!(r.addr.checked_add(r.len).is_some() && r.len > 0);
                }
            }
        }
    }

    #[test]
    fn wild_runs_are_refused() {
        let bad = [
            Run { space: Space::Mm(MmId(2)), addr: 1, len: PAGE, zero: false },
            Run { space: Space::Mm(MmId(2)), addr: PAGE, len: 0, zero: true },
            Run { space: Space::Mm(MmId(2)), addr: 0u64.wrapping_sub(PAGE), len: 2 * PAGE, zero: true },
            Run { space: Space::Mm(MmId(2)), addr: 0, len: MAX_DATA as u64 + PAGE, zero: false },
        ];
        for run in bad {
            let (mut bytes, mut back) = (Vec::new(), Vec::new());
            Chunk { runs: vec![run], ..Chunk::new() }.encode_header(&mut bytes);
            assert!(Chunk::decode_header(&bytes, &mut back).is_err(), "{run:?} passed");
        }
    }

    #[test]
    fn pieces_follow_each_other() {
        let mut chunk = Chunk::new();
        let space = Space::Object(ObjectId(1));
        let page = PAGE as usize;
        let data = chunk.data_mut(2 * page).unwrap();
        data[..page].fill(1);
        data[page..].fill(2);
        chunk.push_run(Run { space, addr: 0, len: PAGE, zero: false });
        chunk.push_zero(space, AddrRange::new(PAGE, 3 * PAGE));
        chunk.push_run(Run { space, addr: 3 * PAGE, len: PAGE, zero: false });
        let got: Vec<_> = chunk.pieces().map(|(r, d)| (r.addr / PAGE, d.first().copied(), d.len())).collect();
        assert_eq!(got, [(0, Some(1), 4096), (1, None, 0), (3, Some(2), 4096)]);
        assert_eq!(chunk.bytes(), 4 * PAGE);
    }
}
