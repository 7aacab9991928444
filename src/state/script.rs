//! A batch whose calls know what they are for, so that a failure names the object and not just a number.

use crate::remote::{Arg, Batch, CallIx, Data, Results};
use nix::errno::Errno;
use std::fmt;

/// What a call is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum About {
    /// Only the verb matters.
    Nothing,
    /// A number: signal, descriptor, pid, limit.
    Number(i64),
    /// An address in the process.
    Addr(u64),
    /// A path.
    Path(Vec<u8>),
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            About::Nothing => Ok(()),
            About::Number(n) => write!(f, " {n}"),
            About::Addr(a) => write!(f, " at {a:#x}"),
            About::Path(p) => write!(f, " {}", String::from_utf8_lossy(p)),
        }
    }
}

/// A call that did not do what it was for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}{about}")]
pub struct Failed {
    /// What it was to do, with the call's name.
    pub what: &'static str,
    /// On what.
    pub about: About,
    /// Why not.
    #[source]
    pub errno: Errno,
}

#[derive(Clone, Debug)]
struct Note {
    call: CallIx,
    what: &'static str,
    about: About,
    must: bool,
}

/// A batch under construction.
#[derive(Clone, Debug, Default)]
pub struct Script {
    batch: Batch,
    notes: Vec<Note>,
}

impl Script {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A call that has to succeed; the rest is skipped when it fails.
    pub fn must(&mut self, what: &'static str, about: About, nr: libc::c_long, args: &[Arg]) -> CallIx {
        self.note(what, about, nr, args, true)
    }

    /// A call whose failure is only told.
    pub fn may(&mut self, what: &'static str, about: About, nr: libc::c_long, args: &[Arg]) -> CallIx {
        self.note(what, about, nr, args, false)
    }

    fn note(
        &mut self,
        what: &'static str,
        about: About,
        nr: libc::c_long,
        args: &[Arg],
        must: bool,
    ) -> CallIx {
        let call = if must { self.batch.must(nr, args) } else { self.batch.call(nr, args) };
        self.notes.push(Note { call, what, about, must });
        call
    }

    /// Input bytes ([`Batch::data`]).
    pub fn data(&mut self, bytes: &[u8]) -> Data {
        self.batch.data(bytes)
    }

    /// Input as the kernel's little-endian words.
    pub fn words(&mut self, words: &[u64]) -> Data {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.batch.data(&bytes)
    }

    /// A C string ([`Batch::path`]).
    pub fn path(&mut self, bytes: &[u8]) -> Data {
        self.batch.path(bytes)
    }

    /// Zeroed room for output ([`Batch::out`]).
    pub fn out(&mut self, len: usize) -> Data {
        self.batch.out(len)
    }

    /// Address of one piece inside another ([`Batch::pointer`]).
    pub fn pointer(&mut self, at: Data, offset: usize, to: Data, to_offset: usize) {
        self.batch.pointer(at, offset, to, to_offset);
    }

    /// The batch itself, to append calls that need no name.
    pub fn batch(&mut self) -> &mut Batch {
        &mut self.batch
    }

    /// The batch itself, to run it.
    pub fn as_batch(&self) -> &Batch {
        &self.batch
    }

    /// True without calls.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Number of calls.
    pub fn len(&self) -> usize {
        self.batch.len()
    }

    /// After running: the first call that had to succeed and did not, else the failures that are only told.
    pub fn check(&self, results: &Results) -> Result<Vec<Failed>, Failed> {
        let mut told = Vec::new();
        for n in &self.notes {
            if let Err(errno) = results.ret(n.call) {
                let failed = Failed { what: n.what, about: n.about.clone(), errno };
                if n.must {
                    return Err(failed);
                }
                told.push(failed);
            }
        }
        Ok(told)
    }
}
