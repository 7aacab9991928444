//! Descriptors handed to a process: sent over a unix socket, taken by an injected `recvmsg`.

use super::error::{Error, Result};
use crate::kernel::seqpacket::{self, MAX_FDS};
use crate::remote::{Arg, Data, Results};
use crate::state::script::{About, Script};
use std::os::fd::{BorrowedFd, OwnedFd};

/// A socket pair: `ours` here, the other end under the same number in every process that stems from init.
#[derive(Debug)]
pub struct Transport {
    /// Our end.
    pub ours: OwnedFd,
    /// Its number over there.
    pub number: i32,
}

/// Descriptors on their way into one process.
#[derive(Clone, Debug, Default)]
pub struct Coming {
    /// (control piece, its header, number of descriptors).
    parts: Vec<(Data, Data, usize)>,
}

const CONTROL_HEAD: usize = 16;

impl Coming {
    /// Appends the calls that take `count` descriptors from socket `from`.
    pub fn receive(s: &mut Script, from: Arg, count: usize) -> Self {
        let mut parts = Vec::new();
        let mut left = count;
        while left > 0 {
            let n = left.min(MAX_FDS);
            left -= n;
            let space = (CONTROL_HEAD + 4 * n).next_multiple_of(8);
            let (byte, control) = (s.out(1), s.out(space));
            let iov = s.words(&[0, 1]);
            s.pointer(iov, 0, byte, 0);
            // struct msghdr: name, namelen, iov, iovlen, control, controllen, flags.
            let header = s.words(&[0, 0, 0, 1, 0, space as u64, 0]);
            s.pointer(header, 16, iov, 0);
            s.pointer(header, 32, control, 0);
            s.must(
                "recvmsg of descriptors",
                About::Number(n as i64),
                libc::SYS_recvmsg,
                &[from, header.into(), 0u64.into()],
            );
            parts.push((control, header, n));
        }
        Self { parts }
    }

    /// The argument that stands for the `n`-th of them in later calls of the same batch.
    pub fn arg(&self, n: usize) -> Arg {
        let (control, ..) = self.parts[n / MAX_FDS];
        Arg::Int(control, CONTROL_HEAD + 4 * (n % MAX_FDS))
    }

    /// Their numbers, after the batch.
    pub fn numbers(&self, results: &Results) -> Vec<i32> {
        let mut all = Vec::new();
        for &(control, _, n) in &self.parts {
            all.extend((0..n).map(|i| results.int(control, CONTROL_HEAD + 4 * i)));
        }
        all
    }

    /// Whether all have come: the kernel stops short where the limit on open files does.
    pub fn all_came(&self, results: &Results) -> bool {
        self.parts.iter().all(|&(control, _, n)| results.word(control, 0) == (CONTROL_HEAD + 4 * n) as u64)
    }
}

/// Sends `fds` for a [`Coming::receive`] of the same number, in process `pid`.
pub fn send(transport: &Transport, pid: i32, fds: &[BorrowedFd<'_>]) -> Result<()> {
    for part in fds.chunks(MAX_FDS) {
        seqpacket::send(&transport.ours, b"d", part).map_err(|source| Error::HandOver {
            pid,
            what: "sendmsg",
            source,
        })?;
    }
    Ok(())
}

/// What has to be done with received descriptors so that they get their numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Arrangement {
    /// Where the transport has to go first, if its number is in the way.
    pub transport: Option<i32>,
    /// For each received one, lowest first, the number it arrives at.
    pub arrive: Vec<i32>,
    /// (index of a received one, number wanted), in the order in which they have to be moved.
    pub moved: Vec<(usize, i32)>,
}

/// Plans it for `wanted` (rising, all different), in a table where only `transport` is open. The kernel gives the
/// lowest free number, so the n-th arrives at or below its own place, and moving from the top never hits another.
pub fn arrange(wanted: &[i32], transport: i32) -> Arrangement {
    let count = wanted.len() as i32;
    let in_way = transport <= count || wanted.binary_search(&transport).is_ok();
    let place = wanted.last().map_or(count, |last| (last + 1).max(count + 1));
    let moved_to =
        in_way.then(|| (count + 1..place).find(|n| wanted.binary_search(n).is_err()).unwrap_or(place));
    let arrive: Vec<i32> = (0..count).collect();
    let moved = (0..wanted.len()).rev().filter(|&i| arrive[i] != wanted[i]).map(|i| (i, wanted[i])).collect();
    Arrangement { transport: moved_to, arrive, moved }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// In a model of a descriptor table.
        #[test]
        fn every_descriptor_gets_its_number(
            wanted in prop::collection::btree_set(0..600i32, 0..300),
            transport in 0..600i32,
        ) {
            let wanted: Vec<i32> = wanted.into_iter().collect();
            let plan = arrange(&wanted, transport);
            let mut table = BTreeMap::from([(transport, usize::MAX)]);
            let mut at = transport;
            if let Some(to) = plan.transport {
                prop_assert!(!wanted.contains(&to));
                table = BTreeMap::from([(to, usize::MAX)]);
                at = to;
            }
            for (i, &arrives) in plan.arrive.iter().enumerate() {
                let free = (0..).find(|n| !table.contains_key(n)).unwrap();
                prop_assert_eq!(free, arrives);
                table.insert(free, i);
            }
            for (i, to) in plan.moved {
                prop_assert!(!table.contains_key(&to), "{} is taken", to);
                let from = plan.arrive[i];
                prop_assert_eq!(table.remove(&from), Some(i));
                table.insert(to, i);
            }
            prop_assert_eq!(table.remove(&at), Some(usize::MAX));
            let got: Vec<(i32, usize)> = table.into_iter().collect();
            let want: Vec<(i32, usize)> = wanted.into_iter().enumerate().map(|(i, n)| (n, i)).collect();
            prop_assert_eq!(got, want);
        }
    }
}
