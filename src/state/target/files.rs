//! Mapped files found again at the target, and told apart from others of the same name. Runs inside the pod's mount
//! namespace.

use crate::base::Blocker;
use crate::state::mm::MappedFile;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use xxhash_rust::xxh3::Xxh3;

/// What a file was when its content was found right: device, inode, size, times of change (ns), and the content's hash.
type Seen = (u64, u64, u64, i64, i64, u64);

/// Files whose content was compared already, so that it need not be read while a pod stands still.
#[derive(Debug, Default)]
pub struct Known(HashSet<Seen>);

/// Opens each file, reading and writing where a shared mapping writes. All that are missing or different are named.
pub fn open_all(files: &[MappedFile], known: &mut Known) -> Result<Vec<OwnedFd>, Vec<Blocker>> {
    let mut opened = Vec::with_capacity(files.len());
    let mut bad = Vec::new();
    for file in files {
        match open_one(file, known) {
            Ok(fd) => opened.push(fd.into()),
            Err((kind, message)) => bad.push(Blocker {
                kind: kind.to_owned(),
                pid: None,
                fd: None,
                path: Some(String::from_utf8_lossy(&file.path).into_owned()),
                message,
                remedy: "make the file the same on both hosts".to_owned(),
            }),
        }
    }
    if bad.is_empty() { Ok(opened) } else { Err(bad) }
}

fn open_one(file: &MappedFile, known: &mut Known) -> Result<File, (&'static str, String)> {
    let access = if file.writable { OFlag::O_RDWR } else { OFlag::O_RDONLY };
    let flags = access | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let fd = open(OsStr::from_bytes(&file.path), flags, Mode::empty()).map_err(|e| match e {
        Errno::ENOENT | Errno::ENOTDIR => ("missing-file", "a mapped file is missing here".to_owned()),
        e => ("unusable-file", format!("a mapped file cannot be opened here: {}", e.desc())),
    })?;
    let fd = File::from(fd);
    let meta =
        fd.metadata().map_err(|e| ("unusable-file", format!("a mapped file cannot be looked at: {e}")))?;
    if !meta.is_file() {
        return Err(("different-file", "a mapped file is no regular file here".to_owned()));
    }
    let differs = |what: String| ("different-file", format!("a mapped file differs here: {what}"));
    if meta.len() != file.size {
        return Err(differs(format!("{} bytes, {} at the source", meta.len(), file.size)));
    }
    match file.hash {
        Some(want) => same_content(&fd, &meta, want, known).map_err(differs)?,
        // No hash: either the file is the truth (shared and written), or its time of change has to do.
        None if !file.writable && mtime(&meta) != file.mtime_ns => {
            return Err(differs("changed at another time than at the source".to_owned()));
        }
        None => {}
    }
    Ok(fd)
}

fn mtime(meta: &Metadata) -> i64 {
    meta.mtime() * 1_000_000_000 + meta.mtime_nsec()
}

fn same_content(fd: &File, meta: &Metadata, want: u64, known: &mut Known) -> Result<(), String> {
    let changed = meta.ctime() * 1_000_000_000 + meta.ctime_nsec();
    let seen = (meta.dev(), meta.ino(), meta.len(), mtime(meta), changed, want);
    if known.0.contains(&seen) {
        return Ok(());
    }
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 1 << 18];
    let mut from = fd;
    loop {
        match from.read(&mut buffer).map_err(|e| format!("it cannot be read: {e}"))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    if hash.digest() != want {
        return Err("other content of the same size".to_owned());
    }
    known.0.insert(seen);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &std::path::Path, content: &[u8]) -> MappedFile {
        std::fs::write(path, content).unwrap();
        MappedFile {
            path: path.as_os_str().as_bytes().to_vec(),
            size: content.len() as u64,
            mtime_ns: mtime(&std::fs::metadata(path).unwrap()),
            writable: false,
            hash: Some(xxhash_rust::xxh3::xxh3_64(content)),
        }
    }

    #[test]
    fn missing_and_different_files_are_all_named() {
        let dir = tempfile::tempdir().unwrap();
        let good = file(&dir.path().join("good"), b"text");
        let other = MappedFile { hash: Some(1), ..file(&dir.path().join("other"), b"text") };
        let size = MappedFile { size: 5, ..file(&dir.path().join("size"), b"text") };
        let time = MappedFile { hash: None, mtime_ns: 1, ..file(&dir.path().join("time"), b"text") };
        let truth = MappedFile { writable: true, ..time.clone() };
        let gone = MappedFile { path: b"/no/such/file".to_vec(), ..good.clone() };
        let mut known = Known::default();
        assert_eq!(open_all(&[good.clone(), truth], &mut known).unwrap().len(), 2);
        let bad = open_all(&[other, good.clone(), size, time, gone], &mut known).unwrap_err();
        let kinds: Vec<_> = bad.iter().map(|b| b.kind.as_str()).collect();
        assert_eq!(kinds, ["different-file", "different-file", "different-file", "missing-file"]);
        assert_eq!(bad[3].path.as_deref(), Some("/no/such/file"));
    }

    #[test]
    fn a_file_changed_after_it_was_found_right_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let good = file(&path, b"text");
        let mut known = Known::default();
        open_all(std::slice::from_ref(&good), &mut known).unwrap();
        std::fs::write(&path, b"tex!").unwrap();
        assert_eq!(open_all(&[good], &mut known).unwrap_err().len(), 1);
    }
}
