//! One way of copying: from a descriptor, through a bounded buffer, to another.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How much is written at once: as much as a pipe surely takes when poll says that it takes some (pipe(7)).
const PIECE: usize = 4096;
/// How much is read at once.
const BLOCK: usize = 32 << 10;
/// The keys that leave a terminal without ending the command: ctrl-p ctrl-q.
const LEAVE: [u8; 2] = [0x10, 0x11];

/// One way.
#[derive(Debug)]
pub struct Way {
    from: Option<OwnedFd>,
    to: Option<OwnedFd>,
    waiting: Vec<u8>,
    keep_open: bool,
    leaving: Option<Leaving>,
}

/// How far the keys for leaving have come.
#[derive(Debug, Default)]
struct Leaving {
    first: bool,
    done: bool,
}

impl Way {
    /// Copies from `from` to `to`; `to` is closed at the end of `from`.
    pub fn new(from: OwnedFd, to: OwnedFd) -> Way {
        Way { from: Some(from), to: Some(to), waiting: Vec::new(), keep_open: false, leaving: None }
    }

    /// Keeps `to` open at the end of `from`.
    pub fn keep_open(&mut self) {
        self.keep_open = true;
    }

    /// Looks for the keys that leave.
    pub fn watch_for_leaving(&mut self) {
        self.leaving = Some(Leaving::default());
    }

    /// Whether they were pressed.
    pub fn left(&mut self) -> bool {
        self.leaving.as_ref().is_some_and(|l| l.done)
    }

    /// Whether nothing comes any more and everything is out.
    pub fn is_over(&self) -> bool {
        self.to.is_none() || (self.from.is_none() && self.waiting.is_empty())
    }

    /// Whether nothing is there to be copied at this moment.
    pub fn is_empty_now(&mut self) -> bool {
        if self.is_over() {
            return true;
        }
        if !self.waiting.is_empty() {
            return false;
        }
        let Some(from) = &self.from else { return true };
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
    }

    /// What to poll for.
    pub fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        match (&self.from, &self.to) {
            (_, Some(to)) if !self.waiting.is_empty() => vec![(to.as_fd(), PollFlags::POLLOUT)],
            (Some(from), Some(_)) => vec![(from.as_fd(), PollFlags::POLLIN)],
            _ => Vec::new(),
        }
    }

    /// Copies what can be copied without waiting.
    pub fn step(&mut self) {
        if self.waiting.is_empty() {
            self.fill();
        } else {
            self.empty();
        }
    }

    fn fill(&mut self) {
        let Some(from) = &self.from else { return };
        let mut block = vec![0; BLOCK];
        match read(from, &mut block) {
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // EIO: the last program at the other side of a terminal is gone.
            Ok(0) | Err(_) => self.end(),
            Ok(n) => {
                block.truncate(n);
                self.keys(&mut block);
                self.waiting = block;
                self.empty();
            }
        }
    }

    fn end(&mut self) {
        self.from = None;
        if !self.keep_open {
            self.to = None;
        }
    }

    /// Writes a piece, if it is taken at once.
    fn empty(&mut self) {
        let Some(to) = &self.to else { return };
        if self.waiting.is_empty() {
            return;
        }
        let mut fds = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
        if !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0) {
            return;
        }
        match write(to, &self.waiting[..self.waiting.len().min(PIECE)]) {
            Ok(n) => drop(self.waiting.drain(..n)),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // Nobody reads any more: the writer is to learn that from its pipe.
            Err(_) => {
                (self.from, self.to) = (None, None);
                self.waiting.clear();
            }
        }
    }

    /// Takes the keys for leaving out of what was typed: ctrl-p waits for the next key.
    fn keys(&mut self, typed: &mut Vec<u8>) {
        let Some(leaving) = &mut self.leaving else { return };
        let mut out = Vec::with_capacity(typed.len() + 1);
        for &key in typed.iter() {
            match (leaving.first, key) {
                (true, k) if k == LEAVE[1] => {
                    leaving.done = true;
                    break;
                }
                (false, k) if k == LEAVE[0] => leaving.first = true,
                (true, k) => {
                    out.extend([LEAVE[0], k]);
                    leaving.first = false;
                }
                (false, k) => out.push(k),
            }
        }
        *typed = out;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write, pipe};

    #[test]
    fn everything_arrives_and_the_end_too() {
        let (from, mut source) = pipe().unwrap();
        let (mut sink, to) = pipe().unwrap();
        let mut way = Way::new(from.into(), to.into());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            sink.read_to_end(&mut all).unwrap();
            all
        });
        let writer = std::thread::spawn(move || source.write_all(&vec![7; 1 << 20]).unwrap());
        while !way.is_over() {
            let interests = way.interests();
            let mut fds: Vec<PollFd<'_>> =
                interests.iter().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
            poll(&mut fds, PollTimeout::from(10_000u16)).unwrap();
            way.step();
        }
        drop(way);
        writer.join().unwrap();
        assert_eq!(reader.join().unwrap(), vec![7; 1 << 20]);
    }

    #[test]
    fn a_reader_that_is_gone_ends_the_way() {
        let (from, mut source) = pipe().unwrap();
        let (sink, to) = pipe().unwrap();
        let mut way = Way::new(from.into(), to.into());
        drop(sink);
        source.write_all(b"x").unwrap();
        way.step();
        assert!(way.is_over());
        assert!(source.write_all(b"y").is_err(), "the writer learns it");
    }

    #[test]
    fn two_keys_leave() {
        let (from, _source) = pipe().unwrap();
        let (_sink, to) = pipe().unwrap();
        let mut way = Way::new(from.into(), to.into());
        way.watch_for_leaving();
        let typed = |way: &mut Way, keys: &[u8]| {
            let mut keys = keys.to_vec();
            way.keys(&mut keys);
            keys
        };
        assert_eq!(typed(&mut way, b"ab\x10"), b"ab");
        assert_eq!(typed(&mut way, b"c\x11"), b"\x10c\x11");
        assert!(!way.left());
        assert_eq!(typed(&mut way, b"\x10"), b"");
        assert_eq!(typed(&mut way, b"\x11rest"), b"");
        assert!(way.left());
    }
}
