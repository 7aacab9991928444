//! The frame codec: a fixed 20-byte header (magic, version, kind, length, checksum), then the body.
//!
//! The header comes first so that a stream from another version is recognised before anything is decoded,
//! and a length is checked against the limit of its kind before anything is allocated.

use super::Error;
use serde::{Serialize, de::DeserializeOwned};
use std::io::{ErrorKind, Read, Write};
use xxhash_rust::xxh3::xxh3_64;

/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"PDMG";
/// The version written.
pub const VERSION: u16 = 1;
/// The oldest version read.
pub const OLDEST: u16 = 1;
/// Header size in bytes.
pub const HEADER: usize = 20;

/// Kinds of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum FrameKind {
    /// A control message (postcard).
    Control = 1,
    /// A record of the pod's state (postcard).
    Record = 2,
    /// Pages: raw, see `memory`.
    Pages = 3,
}

impl FrameKind {
    /// Largest body in bytes.
    pub fn limit(self) -> u64 {
        match self {
            FrameKind::Control => 16 << 20,
            FrameKind::Record => 1 << 30,
            FrameKind::Pages => 4 << 20,
        }
    }
    fn from_u16(n: u16) -> Option<Self> {
        Some(match n {
            1 => FrameKind::Control,
            2 => FrameKind::Record,
            3 => FrameKind::Pages,
            _ => return None,
        })
    }
}

/// Writes one frame from up to two pieces (header part and payload part are not joined first).
///
/// `sum` false leaves the checksum out (authenticated transports); files always carry it.
pub fn write(
    out: &mut impl Write,
    kind: FrameKind,
    head: &[u8],
    body: &[u8],
    sum: bool,
) -> Result<(), Error> {
    let len = (head.len() + body.len()) as u64;
    if len > kind.limit() {
        return Err(Error::TooLarge { kind: kind as u16, len, limit: kind.limit() });
    }
    let mut h = [0u8; HEADER];
    h[..4].copy_from_slice(&MAGIC);
    h[4..6].copy_from_slice(&VERSION.to_le_bytes());
    h[6..8].copy_from_slice(&(kind as u16).to_le_bytes());
    h[8..12].copy_from_slice(&(len as u32).to_le_bytes());
    if sum {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(head);
        hash.update(body);
        h[12..20].copy_from_slice(&hash.digest().max(1).to_le_bytes());
    }
    let io = |source| Error::Io { doing: "write to the stream", source };
    out.write_all(&h).map_err(io)?;
    out.write_all(head).map_err(io)?;
    out.write_all(body).map_err(io)
}

/// Reads one frame into `buf` (reused) and says its kind; `Ok(None)` at a clean end between frames.
pub fn read(input: &mut impl Read, buf: &mut Vec<u8>) -> Result<Option<FrameKind>, Error> {
    let mut h = [0u8; HEADER];
    if !read_header(input, &mut h)? {
        return Ok(None);
    }
    if h[..4] != MAGIC {
        return Err(Error::Magic);
    }
    let u16_at = |i: usize| u16::from_le_bytes([h[i], h[i + 1]]);
    let version = u16_at(4);
    if !(OLDEST..=VERSION).contains(&version) {
        return Err(Error::Version(version));
    }
    let kind =
        FrameKind::from_u16(u16_at(6)).ok_or_else(|| Error::Damaged(format!("frame kind {}", u16_at(6))))?;
    let len = u64::from(u32::from_le_bytes([h[8], h[9], h[10], h[11]]));
    if len > kind.limit() {
        return Err(Error::TooLarge { kind: kind as u16, len, limit: kind.limit() });
    }
    read_body(input, buf, len as usize)?;
    let sum = u64::from_le_bytes(h[12..20].try_into().unwrap_or_default());
    if sum != 0 && sum != xxh3_64(buf).max(1) {
        return Err(Error::Damaged("checksum of a frame does not match".into()));
    }
    Ok(Some(kind))
}

fn read_header(input: &mut impl Read, h: &mut [u8; HEADER]) -> Result<bool, Error> {
    let mut got = 0;
    while got < HEADER {
        match input.read(&mut h[got..]) {
            Ok(0) if got == 0 => return Ok(false),
            Ok(0) => return Err(Error::Truncated("a frame header")),
            Ok(n) => got += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(source) if got == 0 && source.kind() == ErrorKind::UnexpectedEof => return Ok(false),
            Err(source) => return Err(Error::Io { doing: "read from the stream", source }),
        }
    }
    Ok(true)
}

/// Grows the buffer only as bytes arrive: a lying length costs its sender the bytes.
fn read_body(input: &mut impl Read, buf: &mut Vec<u8>, len: usize) -> Result<(), Error> {
    const STEP: usize = 4 << 20;
    let mut got = 0;
    while got < len {
        let want = (len - got).min(STEP);
        if buf.len() < got + want {
            buf.resize(got + want, 0);
        }
        match input.read_exact(&mut buf[got..got + want]) {
            Ok(()) => got += want,
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Err(Error::Truncated("a frame")),
            Err(source) => return Err(Error::Io { doing: "read from the stream", source }),
        }
    }
    buf.truncate(len);
    Ok(())
}

/// Encodes a postcard body.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    postcard::to_stdvec(value).map_err(|e| Error::Damaged(format!("cannot encode: {e}")))
}

/// Decodes a postcard body; bytes left over are damage, not ignored.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes::<T>(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Error::Damaged(format!("{} bytes left over", rest.len()))),
        Err(e) => Err(Error::Damaged(format!("cannot decode: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_comes_back_and_damage_is_seen() {
        let mut bytes = Vec::new();
        write(&mut bytes, FrameKind::Pages, b"head", b"body", true).unwrap();
        let mut buf = Vec::new();
        assert_eq!(read(&mut bytes.as_slice(), &mut buf).unwrap(), Some(FrameKind::Pages));
        assert_eq!(buf, b"headbody");
        for cut in 1..bytes.len() {
            assert!(matches!(read(&mut &bytes[..cut], &mut buf), Err(Error::Truncated(_))), "cut {cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // A flipped kind still decodes to a frame; the reader of that kind refuses its body.
            if let Ok(Some(kind)) = read(&mut bad.as_slice(), &mut buf) {
                assert!(kind != FrameKind::Pages, "bit {bit} went unseen");
            }
        }
        assert_eq!(read(&mut [].as_slice(), &mut buf).unwrap(), None);
    }

    #[test]
    fn a_lying_length_is_refused_before_allocation() {
        let mut h = Vec::new();
        write(&mut h, FrameKind::Pages, b"", b"x", false).unwrap();
        h[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(read(&mut h.as_slice(), &mut Vec::new()), Err(Error::TooLarge { .. })));
        let mut h = Vec::new();
        write(&mut h, FrameKind::Record, b"", b"x", false).unwrap();
        h[8..12].copy_from_slice(&(1u32 << 30).to_le_bytes());
        let mut buf = Vec::new();
        assert!(matches!(read(&mut h.as_slice(), &mut buf), Err(Error::Truncated(_))));
        assert!(buf.capacity() <= 8 << 20);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut input = bytes.as_slice();
            let mut buf = Vec::new();
            while let Ok(Some(_)) = read(&mut input, &mut buf) {
                let _ = decode::<super::super::record::Record>(&buf);
            }
        }
    }
}
