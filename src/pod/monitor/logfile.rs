//! The pod's log as a file: appended to, set aside as `log.1` when it is long, its last lines kept in memory.

use crate::pod::logs::{Cutter, Stream};
use jiff::Timestamp;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Length at which the log is set aside, in bytes; with `log.1` the pod keeps at most twice that.
pub const LONG: u64 = 16 << 20;
/// Lines kept for the message of a failed start.
const LAST: usize = 10;

/// The log of one pod.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    len: u64,
    cutters: [Cutter; 2],
    last: VecDeque<String>,
    /// The error of the last write, until one works again.
    pub trouble: Option<String>,
    grown: bool,
}

impl LogFile {
    /// A log at `path`, opened with the first line.
    pub fn new(path: PathBuf) -> LogFile {
        LogFile {
            path,
            file: None,
            len: 0,
            cutters: [Cutter::new(Stream::Out), Cutter::new(Stream::Err)],
            last: VecDeque::new(),
            trouble: None,
            grown: false,
        }
    }

    /// Takes what the program wrote to one of its streams.
    pub fn feed(&mut self, stream: Stream, bytes: &[u8]) {
        let mut records = Vec::new();
        self.cutters[index(stream)].feed(Timestamp::now(), bytes, &mut records);
        self.write(&records);
    }

    /// Whether a line has begun that is not in the file yet.
    pub fn has_rest(&self) -> bool {
        self.cutters.iter().any(Cutter::has_rest)
    }

    /// Writes lines that have begun.
    pub fn flush(&mut self) {
        let mut records = Vec::new();
        for cutter in &mut self.cutters {
            cutter.flush(Timestamp::now(), &mut records);
        }
        self.write(&records);
    }

    /// Whether it has grown since the last call.
    pub fn take_grown(&mut self) -> bool {
        std::mem::take(&mut self.grown)
    }

    /// The last lines of output, oldest first.
    pub fn last_lines(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }

    fn write(&mut self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        for line in records.split(|b| *b == b'\n').filter_map(crate::pod::logs::decode) {
            if self.last.len() == LAST {
                self.last.pop_front();
            }
            let text = &line.text[..line.text.len().min(500)];
            self.last.push_back(String::from_utf8_lossy(text).into_owned());
        }
        self.grown = true;
        self.trouble = self.append(records).err().map(|e| crate::pod::store::plain(&e));
    }

    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
            self.len = file.metadata()?.len();
            self.file = Some(file);
        }
        if self.len > LONG {
            fs::rename(&self.path, aside(&self.path))?;
            self.file = None;
            return self.append(records);
        }
        if let Some(file) = &mut self.file {
            file.write_all(records)?;
            self.len += records.len() as u64;
        }
        Ok(())
    }
}

/// Where a long log is set aside.
pub fn aside(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::logs::Reader;

    #[test]
    fn lines_reach_the_file_and_a_long_log_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::new(path.clone());
        log.feed(Stream::Out, b"one\ntw");
        log.feed(Stream::Err, b"bad\n");
        assert!(log.has_rest() && log.take_grown() && !log.take_grown());
        log.flush();
        let texts: Vec<Vec<u8>> =
            Reader::open(&path).unwrap().more().unwrap().into_iter().map(|e| e.text).collect();
        assert_eq!(texts, [&b"one"[..], b"bad", b"tw"]);
        assert_eq!(log.last_lines(), ["one", "bad", "tw"]);
        let line = [b'x'; 8000];
        while fs::metadata(&path).unwrap().len() <= LONG {
            log.feed(Stream::Out, &line);
            log.feed(Stream::Out, b"\n");
        }
        log.feed(Stream::Out, b"new\n");
        assert!(fs::metadata(&path).unwrap().len() < 100);
        assert!(fs::metadata(aside(&path)).unwrap().len() > LONG);
        assert_eq!(log.trouble, None);
    }

    #[test]
    fn a_log_that_cannot_be_written_is_trouble_but_no_panic() {
        let mut log = LogFile::new(PathBuf::from("/nowhere/log"));
        log.feed(Stream::Out, b"x\n");
        assert_eq!(log.trouble.as_deref(), Some("no such file or directory"));
        assert_eq!(log.last_lines(), ["x"]);
    }
}
