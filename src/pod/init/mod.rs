//! pid 1 of a pod, as podmig sees it: the program's image, and the orders and reports it exchanges with the monitor.
//!
//! The program itself is `program.rs`, a binary of its own (see there what it does); `wire.rs` is compiled into
//! both. An order is a list of system calls with its data in a memory file, which pid 1's child walks: [`Plan`].

pub mod command;
pub mod wire;

use crate::kernel::{memfd, seqpacket};
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use wire::{BASE, Call, FD_ARGS, Header, MAY_FAIL, Order, Report};

/// The program, a static ELF file of a few KiB.
pub static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podmig-init"));

/// Address in pid 1 of the instructions `syscall; ret`: it is mapped where it was linked, never elsewhere.
///
/// # Panics
/// Never with the image this podmig was built with (a test holds that).
pub fn syscall_address() -> u64 {
    find_syscall(IMAGE).expect("the embedded pid 1 has `syscall; ret` in its text")
}

/// `syscall; ret` (0f 05 c3) in an executable segment of a static ELF file, as a virtual address.
fn find_syscall(elf: &[u8]) -> Option<u64> {
    let word = |at: usize| Some(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?));
    let size = |n: u64| usize::try_from(n).ok();
    let headers = size(word(32)?)?;
    let count = usize::from(u16::from_le_bytes(elf.get(56..58)?.try_into().ok()?));
    for at in (0..count).map(|i| headers + 56 * i) {
        let kind_flags = word(at)?;
        let (load, executable) = (kind_flags & 0xffff_ffff == 1, kind_flags >> 32 & 1 == 1);
        if !load || !executable {
            continue;
        }
        let (offset, address, len) = (size(word(at + 8)?)?, word(at + 16)?, size(word(at + 32)?)?);
        let text = elf.get(offset..offset + len)?;
        if let Some(i) = text.windows(3).position(|w| w == [0x0f, 0x05, 0xc3]) {
            return Some(address + i as u64);
        }
    }
    None
}

/// The program in a sealed memory file, to be executed.
pub fn image() -> io::Result<OwnedFd> {
    memfd::sealed(c"podmig-init", IMAGE, true)
}

/// An argument of a call in a [`Plan`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arg {
    /// A number, or an address from [`Plan::bytes`].
    Val(u64),
    /// The n-th of the descriptors that go with the order.
    Fd(u64),
}

impl From<u64> for Arg {
    fn from(n: u64) -> Arg {
        Arg::Val(n)
    }
}

/// A list of system calls for a new child of pid 1, with their data.
#[derive(Debug, Default)]
pub struct Plan {
    data: Vec<u8>,
    calls: Vec<(Call, &'static str)>,
}

/// How far a child came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The last call it began did not return: it was executed (or killed while it was).
    Executed,
    /// It stopped at this call.
    Failed {
        /// What the call was to do.
        what: &'static str,
        /// Why it failed; for the last of several tries to execute, the most telling one.
        errno: Errno,
    },
}

const HEAD: usize = size_of::<Header>();
/// What `ret` is before a call returned.
const NOT_RETURNED: i64 = i64::MAX;

impl Plan {
    /// An empty list.
    pub fn new() -> Plan {
        Plan::default()
    }

    /// Places bytes, 8-aligned; their address in the child.
    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let at = self.data.len();
        self.data.extend_from_slice(bytes);
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        BASE + (HEAD + at) as u64
    }

    /// Places a string with its NUL.
    ///
    /// # Errors
    /// It has a NUL inside.
    pub fn string(&mut self, text: &str) -> Result<u64, &'static str> {
        if text.contains('\0') {
            return Err("a NUL character inside");
        }
        Ok(self.bytes(&[text.as_bytes(), b"\0"].concat()))
    }

    /// Places strings and the null-terminated array of their addresses, as execve wants it.
    ///
    /// # Errors
    /// One has a NUL inside.
    pub fn strings(&mut self, list: &[String]) -> Result<u64, &'static str> {
        let mut array = Vec::with_capacity(8 * list.len() + 8);
        for text in list {
            array.extend(self.string(text)?.to_le_bytes());
        }
        array.extend(0u64.to_le_bytes());
        Ok(self.bytes(&array))
    }

    /// Appends a call; the list ends when it fails. `what` names it in messages (`set the limits`).
    pub fn call(&mut self, what: &'static str, nr: libc::c_long, args: &[Arg]) {
        self.push(what, nr, args, 0);
    }

    /// Appends a call that may fail.
    pub fn try_call(&mut self, what: &'static str, nr: libc::c_long, args: &[Arg]) {
        self.push(what, nr, args, MAY_FAIL);
    }

    fn push(&mut self, what: &'static str, nr: libc::c_long, args: &[Arg], mut flags: u32) {
        let mut numbers = [0; 6];
        for (i, (to, arg)) in numbers.iter_mut().zip(args).enumerate() {
            *to = match arg {
                Arg::Val(n) => *n,
                Arg::Fd(n) => {
                    flags |= FD_ARGS << i;
                    *n
                }
            };
        }
        let call = Call { nr: nr.cast_unsigned(), args: numbers, ret: NOT_RETURNED, flags, done: 0 };
        self.calls.push((call, what));
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + self.data.len() + self.calls.len() * size_of::<Call>());
        out.extend(((HEAD + self.data.len()) as u64).to_le_bytes());
        out.extend((self.calls.len() as u64).to_le_bytes());
        out.extend(&self.data);
        for (c, _) in &self.calls {
            out.extend(c.nr.to_le_bytes());
            c.args.iter().for_each(|a| out.extend(a.to_le_bytes()));
            out.extend(c.ret.to_le_bytes());
            out.extend(c.flags.to_le_bytes());
            out.extend(c.done.to_le_bytes());
        }
        out
    }

    /// Sends the list to pid 1 as order `id` with its descriptors; the memory file tells later how far it came.
    ///
    /// # Errors
    /// No memory, pid 1 gone, or (`InvalidInput`) too many descriptors.
    pub fn send(&self, to: impl AsFd, id: u32, fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
        if fds.len() > wire::MAX_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one order"));
        }
        let content = self.encode();
        let file = memfd::create(c"podmig-order", false)?;
        let file = File::from(file);
        file.write_all_at(&content, 0)?;
        let order = Order { kind: wire::FORK, id, len: content.len() as u64 };
        let mut bytes = [0; size_of::<Order>()];
        bytes[..4].copy_from_slice(&order.kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&order.id.to_le_bytes());
        bytes[8..].copy_from_slice(&order.len.to_le_bytes());
        let mut all = vec![file.as_fd()];
        all.extend_from_slice(fds);
        seqpacket::send(to, &bytes, &all)?;
        Ok(file.into())
    }

    /// How far the child came, once it executed or ended; `file` is what [`Plan::send`] gave.
    ///
    /// # Errors
    /// The memory file cannot be read.
    pub fn outcome(&self, file: impl AsFd) -> io::Result<Outcome> {
        let file = File::from(file.as_fd().try_clone_to_owned()?);
        let mut bytes = vec![0; self.calls.len() * size_of::<Call>()];
        file.read_exact_at(&mut bytes, (HEAD + self.data.len()) as u64)?;
        let mut worst = Outcome::Failed { what: "begin", errno: Errno::EINTR };
        for (i, (call, what)) in self.calls.iter().enumerate() {
            let at = i * size_of::<Call>();
            let ret = i64::from_le_bytes(bytes[at + 56..at + 64].try_into().unwrap_or_default());
            let begun = bytes[at + 68] != 0;
            if !begun {
                break;
            }
            if ret == NOT_RETURNED {
                return Ok(Outcome::Executed);
            }
            if ret >= 0 || (call.flags & MAY_FAIL != 0 && call.nr != libc::SYS_execve.cast_unsigned()) {
                continue;
            }
            let errno = Errno::from_raw(i32::try_from(-ret).unwrap_or(0));
            let not_found = matches!(errno, Errno::ENOENT | Errno::ENOTDIR);
            // Of several tries to execute, one that found the file says more than one that did not.
            if !(not_found && matches!(worst, Outcome::Failed { what: w, .. } if w == *what)) {
                worst = Outcome::Failed { what, errno };
            }
        }
        Ok(worst)
    }
}

/// A report of pid 1, decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    /// It runs.
    Hello,
    /// Order `id` was obeyed: the child's pid in the pod, or why there is none.
    Forked {
        /// The order.
        id: u32,
        /// Pid in the pod.
        child: Result<i32, Errno>,
    },
    /// A child ended and was reaped.
    Exited {
        /// Pid in the pod.
        pid: i32,
        /// As in wait4.
        status: i32,
        /// No child of pid 1 is left, so no process of the pod.
        childless: bool,
    },
    /// Making the pod's surroundings failed before pid 1 was executed.
    Failed(String),
}

/// Decodes a report; `None` for anything else.
pub fn said(bytes: &[u8]) -> Option<Said> {
    let n = |i: usize| Some(i32::from_le_bytes(bytes.get(4 * i..4 * i + 4)?.try_into().ok()?));
    let (kind, id, pid, status, childless) =
        (n(0)?.cast_unsigned(), n(1)?.cast_unsigned(), n(2)?, n(3)?, n(4)?);
    let text = bytes.get(size_of::<Report>()..)?;
    Some(match kind {
        wire::HELLO => Said::Hello,
        wire::FORKED if pid > 0 => Said::Forked { id, child: Ok(pid) },
        wire::FORKED => Said::Forked { id, child: Err(Errno::from_raw(-pid)) },
        wire::EXITED => Said::Exited { pid, status, childless: childless != 0 },
        wire::FAILED => Said::Failed(String::from_utf8_lossy(text).into_owned()),
        _ => return None,
    })
}

/// The report [`Said::Failed`] in bytes, sent by the child that was to become pid 1.
pub fn failed(text: &str) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<Report>()];
    bytes[..4].copy_from_slice(&wire::FAILED.to_le_bytes());
    bytes.extend(text.bytes().take(2000));
    bytes
}

#[cfg(test)]
mod tests;
