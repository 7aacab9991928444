//! Pipes and FIFOs: content, capacity, flags, ends in two processes, a reader asleep in read(2).

use crate::{pattern, wait};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, mkfifo, pipe2, read, unlink, write};
use std::fs::OpenOptions;
use std::io::{Read, Write};

pub fn run() {
    let (out, into) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).expect("pipe");
    fcntl(&into, FcntlArg::F_SETPIPE_SZ(1 << 20)).expect("size");
    write(&into, &pattern(1, 300_000)).expect("write");
    let path = crate::own_path("fifo");
    let _ = unlink(path.as_str());
    mkfifo(path.as_str(), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let mut both = OpenOptions::new().read(true).write(true).open(&path).expect("fifo");
    both.write_all(b"in the fifo").expect("write");
    let (answer_out, answer_in) = pipe2(OFlag::empty()).expect("pipe");
    let (ask_out, ask_in) = pipe2(OFlag::empty()).expect("pipe");
    // SAFETY: one thread.
    let child = match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            drop(ask_in);
            let mut word = [0u8; 4];
            let n = read(&ask_out, &mut word).expect("read asleep across the move");
            write(&answer_in, &word[..n]).expect("answer");
            // The other end's closing must be seen: end of file, not a sleep for ever.
            assert_eq!(read(&ask_out, &mut word), Ok(0));
            std::process::exit(3);
        }
        ForkResult::Parent { child } => child,
    };
    drop(ask_out);
    drop(answer_in);
    wait();
    let mut got = Vec::new();
    let mut some = vec![0; 70_000];
    while let Ok(n @ 1..) = read(&out, &mut some) {
        got.extend_from_slice(&some[..n]);
    }
    assert_eq!(got, pattern(1, 300_000), "content");
    assert_eq!(read(&out, &mut some), Err(nix::errno::Errno::EAGAIN), "O_NONBLOCK");
    assert_eq!(fcntl(&out, FcntlArg::F_GETPIPE_SZ), Ok(1 << 20), "capacity");
    let mut fifo = [0; 11];
    both.read_exact(&mut fifo).expect("fifo");
    assert_eq!(&fifo, b"in the fifo");
    write(&ask_in, b"ping").expect("ask");
    let mut word = [0; 4];
    assert_eq!((read(&answer_out, &mut word), &word), (Ok(4), b"ping"));
    drop(ask_in);
    assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 3)));
    unlink(path.as_str()).expect("unlink");
}
