//! Callers in the foreground, by the binary: terminals, pipes, signals, leaving and coming back.

mod common;

use common::podhost::{Host, LIMIT};
use common::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmig::kernel::tty::{self, Pty};
use podmig::pod::store::Status;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

/// A program at a terminal of its own; what it shows is read by a thread.
struct Seat {
    child: Child,
    keys: File,
    screen: Receiver<Vec<u8>>,
    text: String,
}

impl Seat {
    fn run(host: &Host, args: &[&str]) -> Seat {
        let Pty { master, slave } = tty::open(Path::new("/dev/ptmx")).unwrap();
        tty::set_size(&master, 33, 99).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let mut command = podmig(host, args);
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        drop((command, slave));
        let mut reader = File::from(master.try_clone().unwrap());
        let (send, screen) = channel();
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buf) {
                if send.send(buf[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Seat { child, keys: File::from(master), screen, text: String::new() }
    }

    /// Waits until `what` is on the screen; what came up to it is forgotten.
    fn see(&mut self, what: &str) {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.text.find(what) {
                self.text.drain(..at + what.len());
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.text += &String::from_utf8_lossy(&bytes),
                Err(e) => panic!("no {what:?} on the screen ({e}): {:?}", self.text),
            }
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn status(&mut self) -> i32 {
        let status = until(LIMIT, "its end", || self.child.try_wait().unwrap());
        status.code().unwrap_or(-1)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn podmig(host: &Host, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podmig"));
    command.arg("--root").arg(host.dir.path()).args(args).env("TERM", "vt100");
    command
}

fn known(host: &mut Host, name: &str) {
    let record = until(LIMIT, "the pod", || host.store.find(name).ok().filter(|r| r.cmd_pid.is_some()));
    host.specs.push(record.spec);
}

#[test]
fn a_terminal_in_the_foreground() {
    let mut host = Host::new();
    let script = "tty; stty size; echo $TERM; trap 'echo interrupted' INT; \
        while read line; do echo \"<$line>\"; test \"$line\" = quit && exit 5; done; exit 6";
    let args = ["start", "--fg", "-t", "--net", "none", "--name", "t", "--", "bash", "-c", script];
    let mut seat = Seat::run(&host, &args);
    seat.see("/dev/pts/0");
    seat.see("33 99");
    seat.see("vt100");
    known(&mut host, "t");
    seat.press("hello\r");
    seat.see("<hello>");
    // Raw: the pod's terminal makes the signal, not ours.
    seat.press("\x03");
    seat.see("interrupted");
    tty::set_size(&seat.keys, 40, 120).unwrap();
    // Without a session our terminal tells no size by itself.
    kill(Pid::from_raw(seat.child.id().cast_signed()), Signal::SIGWINCH).unwrap();
    let slave = format!("/proc/{}/fd/0", host.record("t").cmd_pid.unwrap());
    let inner = || tty::size(File::open(&slave).unwrap()).unwrap();
    until(LIMIT, "the new size", || (inner() == (40, 120)).then_some(()));
    // Leaves, comes back, finds it again.
    seat.press("\x10\x11");
    assert_eq!(seat.status(), 0);
    assert_eq!(host.record("t").status, Status::Running);
    let mut seat = Seat::run(&host, &["attach", "t"]);
    until(LIMIT, "the size of the terminal it came back at", || (inner() == (33, 99)).then_some(()));
    seat.press("again\r");
    seat.see("<again>");
    seat.press("quit\r");
    seat.see("<quit>");
    assert_eq!(seat.status(), 5);
    assert_eq!(host.record("t").exit_status, Some(5));
}

#[test]
fn a_terminal_for_a_command_beside() {
    let mut host = Host::new();
    host.sh("e", "sleep 100").unwrap();
    let mut seat =
        Seat::run(&host, &["exec", "-t", "e", "--", "sh", "-c", "stty size; read x; echo \"<$x>\"; exit 7"]);
    seat.see("33 99");
    seat.press("hi\r");
    seat.see("<hi>");
    assert_eq!(seat.status(), 7);
    let mut seat = Seat::run(&host, &["exec", "-t", "e", "--", "cat"]);
    seat.press("x\r");
    seat.see("x\r\nx");
    seat.press("\x04");
    assert_eq!(seat.status(), 0);
}

#[test]
fn pipes_and_statuses() {
    let mut host = Host::new();
    host.sh("p", "sleep 100").unwrap();
    let run = |host: &Host, args: &[&str], input: &[u8]| {
        let mut command = podmig(host, args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let out = child.wait_with_output().unwrap();
        writer.join().unwrap();
        (out.status.code().unwrap_or(-1), out.stdout, String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let big = vec![b'x'; 3 << 20];
    let (status, out, _) = run(&host, &["exec", "p", "--", "cat"], &big);
    assert!(status == 0 && out == big, "{status} {}", out.len());
    let fg = ["start", "--fg", "--rm", "--net", "none", "--"];
    let (status, out, err) =
        run(&host, &[&fg[..], &["sh", "-c", "cat; echo bad >&2; kill -9 $$"]].concat(), &big);
    assert!(status == 137 && out == big && err == "bad\n", "{status} {} {err}", out.len());
    for (cmd, code) in [("/nowhere", 127), ("/etc/passwd", 126)] {
        assert_eq!(run(&host, &[&fg[..], &[cmd]].concat(), b"").0, code);
        assert_eq!(run(&host, &["exec", "p", "--", cmd], b"").0, code);
    }
    assert_eq!(run(&host, &["exec", "p", "--", "sh", "-c", "exit 9"], b"").0, 9);
    // Nobody reads the output: the command is told as by a pipe.
    let mut command = podmig(&host, &[&fg[..], &["yes"]].concat());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 2];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let status = until(LIMIT, "its end", || child.try_wait().unwrap());
    assert_eq!((first, status.code()), (*b"y\n", Some(141)));
}

#[test]
fn signals_in_the_foreground_are_the_commands() {
    let mut host = Host::new();
    for (name, signal, args) in [
        ("s", Signal::SIGTERM, vec!["start", "--fg", "--net", "none", "--name", "s", "--"]),
        ("x", Signal::SIGINT, vec!["exec", "x", "--"]),
    ] {
        if name == "x" {
            host.sh("x", "sleep 100").unwrap();
        }
        let script = "trap 'echo got; exit 3' TERM INT; echo up; while :; do sleep 0.05; done";
        let mut command = podmig(&host, &[&args[..], &["sh", "-c", script]].concat());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut first = [0; 3];
        out.read_exact(&mut first).unwrap();
        known(&mut host, name);
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("got\n", Some(3)), "{name}");
    }
}

/// A descriptor that is not a pipe (here a file) may be the caller's input, too.
#[test]
fn a_file_as_input() {
    let host = Host::new();
    let path = host.dir.path().join("input");
    std::fs::write(&path, "from a file\n").unwrap();
    let input: OwnedFd = File::open(&path).unwrap().into();
    let args = ["start", "--fg", "--rm", "--net", "none", "--", "cat"];
    let out = podmig(&host, &args).stdin(Stdio::from(input)).output().unwrap();
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(0), &b"from a file\n"[..]));
}
