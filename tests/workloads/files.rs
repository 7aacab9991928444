//! Files: positions, shared and separate descriptions, append, deleted files, directories, cwd, umask, devices.

use crate::{pattern, wait};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

pub fn run() {
    let dir = PathBuf::from(crate::own_path("dir"));
    std::fs::create_dir(&dir).expect("mkdir");
    std::env::set_current_dir(&dir).expect("chdir");
    std::fs::write("data", pattern(1, 10_000)).expect("write");
    let mut reader = File::open("data").expect("open");
    reader.seek(SeekFrom::Start(100)).expect("seek");
    let mut shared = reader.try_clone().expect("dup");
    let mut apart = File::open("data").expect("open");
    let mut log = OpenOptions::new().append(true).create(true).open("log").expect("open");
    log.write_all(b"one\n").expect("write");
    let mut gone =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open("gone").expect("open");
    gone.write_all(&pattern(2, 3_000_000)).expect("write");
    std::fs::remove_file("gone").expect("unlink");
    let folder = File::open(&dir).expect("open directory");
    let mut null = OpenOptions::new().write(true).open("/dev/null").expect("null");
    let mut random = File::open("/dev/urandom").expect("urandom");
    let high = fcntl(&log, FcntlArg::F_DUPFD_CLOEXEC(700)).expect("dup high");
    wait();
    let mut some = [0u8; 50];
    reader.read_exact(&mut some).expect("read");
    assert_eq!(some[..], pattern(1, 10_000)[100..150], "position");
    shared.read_exact(&mut some).expect("read");
    assert_eq!(some[..], pattern(1, 10_000)[150..200], "a dup shares its position");
    apart.read_exact(&mut some).expect("read");
    assert_eq!(some[..], pattern(1, 10_000)[..50], "another open does not");
    log.write_all(b"two\n").expect("write");
    assert_eq!(std::fs::read_to_string("log").expect("log by relative name"), "one\ntwo\n");
    let flags = OFlag::from_bits_retain(fcntl(&log, FcntlArg::F_GETFL).expect("flags"));
    assert!(flags.contains(OFlag::O_APPEND), "O_APPEND");
    assert_eq!(high, 700);
    assert!(std::fs::read_link("/proc/self/fd/700").expect("fd 700").ends_with("log"));
    let mut whole = vec![0; 3_000_000];
    gone.read_exact_at(&mut whole, 0).expect("deleted file");
    assert_eq!(whole, pattern(2, 3_000_000), "deleted file's content");
    assert_eq!(gone.stream_position().expect("position"), 3_000_000);
    assert_eq!(gone.metadata().expect("stat").nlink(), 0);
    assert!(!dir.join("gone").exists());
    assert!(folder.metadata().expect("stat").is_dir());
    null.write_all(b"x").expect("null");
    random.read_exact(&mut some).expect("urandom");
    assert_eq!(std::env::current_dir().expect("cwd"), dir);
    std::fs::remove_dir_all(&dir).expect("clean");
}
