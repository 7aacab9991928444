//! A batch: syscalls with a data area, as plain data. Encoding and decoding are pure; running is `run.rs`'s.
//!
//! Layout at `area` (all u64 little-endian; the stub in `stub.rs` reads it):
//! ```text
//! 0   mark, 16 bytes       16  number of calls     24  calls done
//! 32  tgid  40 tid  48 marker signal               56  0
//! 64  calls, 72 bytes each: nr, arg0..arg5, ret, flags
//!     data pieces, 16-aligned
//! ```

use nix::errno::Errno;

/// First bytes of every area: what recognises an orphan.
pub const MARK: [u8; 16] = *b"podmig scratch 1";
/// Offset of the marker signal's number in an area.
pub(super) const MARKER_AT: u64 = 48;
const HEADER: usize = 64;
const CALL: usize = 72;
const RET: usize = 56;
const FLAG_WORD: u64 = 1;
const FLAG_STOP: u64 = 0x100;
const FLAG_INT: u64 = 0x1_0000;

/// A piece of the data area of the batch that made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Data(usize);

/// A call of the batch that made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallIx(usize);

/// An argument of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arg {
    /// A plain value.
    Val(u64),
    /// Address of a data piece plus an offset in bytes.
    Data(Data, usize),
    /// Result of an earlier call (a descriptor just opened, say).
    Ret(CallIx),
    /// The i32 found in a data piece at an offset when the call is made (what `pipe2` or `socketpair` wrote).
    Int(Data, usize),
}

macro_rules! arg_from {
    ($($t:ty => |$v:ident| $e:expr),* $(,)?) => {$(
        impl From<$t> for Arg {
            fn from($v: $t) -> Self {
                $e
            }
        }
    )*};
}
arg_from! {
    u64 => |v| Arg::Val(v),
    u32 => |v| Arg::Val(u64::from(v)),
    usize => |v| Arg::Val(v as u64),
    i64 => |v| Arg::Val(v as u64),
    i32 => |v| Arg::Val(i64::from(v) as u64),
    Data => |v| Arg::Data(v, 0),
    CallIx => |v| Arg::Ret(v),
}

#[derive(Clone, Debug)]
struct Call {
    nr: i64,
    args: [Arg; 6],
    stop_on_error: bool,
}

#[derive(Clone, Debug)]
struct Pointer {
    at: Data,
    offset: usize,
    to: Data,
    to_offset: usize,
}

/// A list of syscalls to be made in another process with one stop.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    calls: Vec<Call>,
    data: Vec<Vec<u8>>,
    pointers: Vec<Pointer>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Places bytes in the data area (16-aligned); calls may change them, [`Results::bytes`] reads them back.
    pub fn data(&mut self, bytes: &[u8]) -> Data {
        self.data.push(bytes.to_vec());
        Data(self.data.len() - 1)
    }

    /// Places a C string (a zero byte is appended).
    pub fn path(&mut self, bytes: &[u8]) -> Data {
        let mut text = bytes.to_vec();
        text.push(0);
        self.data.push(text);
        Data(self.data.len() - 1)
    }

    /// Zeroed room for `len` bytes of output.
    pub fn out(&mut self, len: usize) -> Data {
        self.data.push(vec![0; len]);
        Data(self.data.len() - 1)
    }

    /// Writes, when encoded, the address of `to + to_offset` into `at` at `offset` (an iovec's base, say).
    ///
    /// # Panics
    /// When the eight bytes do not lie inside `at`: a mistake of the caller.
    pub fn pointer(&mut self, at: Data, offset: usize, to: Data, to_offset: usize) {
        assert!(offset + 8 <= self.data[at.0].len(), "pointer outside its data");
        self.pointers.push(Pointer { at, offset, to, to_offset });
    }

    /// Appends a call with at most six arguments.
    ///
    /// # Panics
    /// With more than six arguments, or one that names a later call: a mistake of the caller.
    pub fn call(&mut self, nr: libc::c_long, args: &[Arg]) -> CallIx {
        let mut all = [Arg::Val(0); 6];
        all[..args.len()].copy_from_slice(args);
        let earlier = args.iter().all(|a| !matches!(a, Arg::Ret(ix) if ix.0 >= self.calls.len()));
        assert!(earlier, "an argument names a later call");
        self.calls.push(Call { nr, args: all, stop_on_error: false });
        CallIx(self.calls.len() - 1)
    }

    /// Later calls are skipped when this one fails.
    pub fn stop_on_error(&mut self, ix: CallIx) {
        self.calls[ix.0].stop_on_error = true;
    }

    /// [`Batch::call`] and [`Batch::stop_on_error`] in one.
    pub fn must(&mut self, nr: libc::c_long, args: &[Arg]) -> CallIx {
        let ix = self.call(nr, args);
        self.stop_on_error(ix);
        ix
    }

    /// Number of calls so far.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// True without calls.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Bytes it needs in the area.
    pub fn size(&self) -> usize {
        self.data_offsets().1
    }

    /// Every call as (number, arguments as far as they are known before it runs), for seccomp.
    pub(super) fn planned(&self, area: u64) -> impl Iterator<Item = (i64, [u64; 6])> + '_ {
        let (offsets, _) = self.data_offsets();
        self.calls
            .iter()
            .map(move |call| (call.nr, call.args.map(|arg| encode_arg(arg, 0, area, &offsets).0)))
    }

    fn data_offsets(&self) -> (Vec<usize>, usize) {
        let mut at = (HEADER + CALL * self.calls.len()).next_multiple_of(16);
        let offsets = self
            .data
            .iter()
            .map(|piece| {
                let here = at;
                at = (at + piece.len()).next_multiple_of(16);
                here
            })
            .collect();
        (offsets, at)
    }

    /// The bytes to write at `area`. `ids` are (tgid, tid) as the task itself sees them, `marker` the end signal.
    pub(super) fn encode(&self, area: u64, ids: (i32, i32), marker: i32) -> Vec<u8> {
        let (offsets, size) = self.data_offsets();
        let mut image = vec![0; size];
        put_bytes(&mut image, 0, &MARK);
        put(&mut image, 16, self.calls.len() as u64);
        put(&mut image, 32, i64::from(ids.0) as u64);
        put(&mut image, 40, i64::from(ids.1) as u64);
        put(&mut image, 48, i64::from(marker) as u64);
        for (ix, call) in self.calls.iter().enumerate() {
            let at = HEADER + CALL * ix;
            put(&mut image, at, call.nr as u64);
            let mut flags = if call.stop_on_error { FLAG_STOP } else { 0 };
            for (n, &arg) in call.args.iter().enumerate() {
                let (value, flag) = encode_arg(arg, n, area, &offsets);
                put(&mut image, at + 8 + 8 * n, value);
                flags |= flag;
            }
            put(&mut image, at + 64, flags);
        }
        for (piece, &at) in self.data.iter().zip(&offsets) {
            put_bytes(&mut image, at, piece);
        }
        for p in &self.pointers {
            let to = area + (offsets[p.to.0] + p.to_offset) as u64;
            put(&mut image, offsets[p.at.0] + p.offset, to);
        }
        image
    }

    /// Results from the bytes found at the area afterwards.
    pub(super) fn decode(&self, image: Vec<u8>) -> Results {
        let (offsets, size) = self.data_offsets();
        debug_assert_eq!(image.len(), size);
        let done = (get(&image, 24) as usize).min(self.calls.len());
        let pieces = offsets.into_iter().zip(self.data.iter().map(Vec::len)).collect();
        Results { image, done, pieces, calls: self.calls.iter().map(|c| c.nr).collect() }
    }
}

fn encode_arg(arg: Arg, n: usize, area: u64, offsets: &[usize]) -> (u64, u64) {
    match arg {
        Arg::Val(v) => (v, 0),
        Arg::Data(d, offset) => (area + (offsets[d.0] + offset) as u64, 0),
        Arg::Ret(ix) => (area + (HEADER + CALL * ix.0 + RET) as u64, FLAG_WORD << n),
        Arg::Int(d, offset) => (area + (offsets[d.0] + offset) as u64, FLAG_INT << n),
    }
}

fn put(image: &mut [u8], at: usize, value: u64) {
    put_bytes(image, at, &value.to_le_bytes());
}

fn put_bytes(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn get(image: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(image[at..at + 8].try_into().unwrap_or_default())
}

/// What a batch brought back.
#[derive(Clone, Debug)]
pub struct Results {
    image: Vec<u8>,
    done: usize,
    pieces: Vec<(usize, usize)>,
    calls: Vec<i64>,
}

impl Results {
    /// The call's return value, -4095..=-1 as an error. A call that was skipped is ECANCELED.
    pub fn ret(&self, ix: CallIx) -> Result<i64, Errno> {
        if !self.done(ix) {
            return Err(Errno::ECANCELED);
        }
        match self.raw(ix) {
            e @ -4095..=-1 => Err(Errno::from_raw(-e as i32)),
            value => Ok(value),
        }
    }

    /// The raw return value (0 for a call that was skipped).
    pub fn raw(&self, ix: CallIx) -> i64 {
        get(&self.image, HEADER + CALL * ix.0 + RET) as i64
    }

    /// Whether the call was made.
    pub fn done(&self, ix: CallIx) -> bool {
        ix.0 < self.done
    }

    /// Content of a data piece after the batch.
    pub fn bytes(&self, data: Data) -> &[u8] {
        let (at, len) = self.pieces[data.0];
        &self.image[at..at + len]
    }

    /// The i32 at `offset` in a data piece.
    ///
    /// # Panics
    /// When it does not lie inside: a mistake of the caller.
    pub fn int(&self, data: Data, offset: usize) -> i32 {
        let bytes = &self.bytes(data)[offset..offset + 4];
        i32::from_le_bytes(bytes.try_into().unwrap_or_default())
    }

    /// The u64 at `offset` in a data piece.
    ///
    /// # Panics
    /// When it does not lie inside: a mistake of the caller.
    pub fn word(&self, data: Data, offset: usize) -> u64 {
        get(self.bytes(data), offset)
    }

    /// The first call that failed, with its syscall number.
    pub fn first_error(&self) -> Option<(CallIx, i64, Errno)> {
        (0..self.done).map(CallIx).find_map(|ix| self.ret(ix).err().map(|e| (ix, self.calls[ix.0], e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn arguments_become_addresses() {
        let mut b = Batch::new();
        let d = b.data(b"0123456789abcdef0");
        let o = b.out(16);
        let first = b.must(libc::SYS_openat, &[(-100).into(), d.into(), Arg::Data(o, 8)]);
        let second = b.call(libc::SYS_close, &[first.into(), Arg::Int(o, 4)]);
        b.pointer(o, 8, d, 1);
        let image = b.encode(0x1000, (7, 8), 23);
        assert_eq!(image.len(), b.size());
        assert_eq!(&image[..16], MARK);
        let data_at = (64 + 2 * 72usize).next_multiple_of(16);
        assert_eq!(get(&image, 64 + 8) as i64, -100);
        assert_eq!(get(&image, 64 + 16), 0x1000 + data_at as u64);
        assert_eq!(get(&image, 64 + 24), 0x1000 + data_at as u64 + 32 + 8);
        assert_eq!(get(&image, 64 + 64), 0x100);
        assert_eq!(get(&image, 64 + 72 + 8), 0x1000 + 64 + 56);
        assert_eq!(get(&image, 64 + 72 + 64), 0x1 | 0x20000);
        assert_eq!(get(&image, data_at + 32 + 8), 0x1000 + data_at as u64 + 1);
        assert_eq!((get(&image, 32), get(&image, 40), get(&image, 48)), (7, 8, 23));
        let r = b.decode(image);
        assert!(!r.done(first) && !r.done(second));
        assert_eq!(r.ret(second), Err(Errno::ECANCELED));
    }

    #[test]
    fn results_tell_errors_from_values() {
        let mut b = Batch::new();
        let a = b.call(1, &[]);
        let c = b.call(2, &[]);
        let e = b.call(3, &[]);
        let mut image = b.encode(0, (1, 1), 1);
        put(&mut image, 24, 2);
        put(&mut image, 64 + 56, 0x7fff_ffff_f000);
        put(&mut image, 64 + 72 + 56, -13i64 as u64);
        let r = b.decode(image);
        assert_eq!(
            (r.ret(a), r.ret(c), r.ret(e)),
            (Ok(0x7fff_ffff_f000), Err(Errno::EACCES), Err(Errno::ECANCELED))
        );
        assert_eq!(r.first_error(), Some((c, 2, Errno::EACCES)));
    }

    proptest! {
        #[test]
        fn pieces_never_overlap(sizes in prop::collection::vec(0usize..5000, 0..20), calls in 0usize..50) {
            let mut b = Batch::new();
            let pieces: Vec<Data> =
                sizes.iter().enumerate().map(|(i, &n)| b.data(&vec![i as u8 + 1; n])).collect();
            for _ in 0..calls {
                b.call(libc::SYS_getpid, &[]);
            }
            let image = b.encode(0x10_0000, (1, 1), 23);
            let r = b.decode(image);
            for (i, (&d, &n)) in pieces.iter().zip(&sizes).enumerate() {
                prop_assert_eq!(r.bytes(d), &vec![i as u8 + 1; n][..]);
            }
        }
    }
}
