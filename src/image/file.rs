//! Images on disk: the frames of a migration one after the other, mode 0600, complete or untouched.

use super::frame::{self, FrameKind};
use super::record::{Manifest, Record};
use super::{Error, check};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Writes an image next to its final place and renames it there when it is complete and on disk.
pub struct ImageWriter {
    out: BufWriter<Box<dyn Write + Send>>,
    place: Option<(PathBuf, PathBuf, File)>,
    written: u64,
}

/// Where this process writes the image of `path` until it is complete; `None` if that names no file.
pub fn part_of(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?;
    Some(path.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id())))
}

impl ImageWriter {
    /// Starts an image at `path`; nothing is there until [`ImageWriter::finish`].
    pub fn create(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { doing: "create the image", source };
        let temp = part_of(path).ok_or_else(|| Error::Damaged("the image needs a file name".into()))?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp).map_err(io)?;
        let out: Box<dyn Write + Send> = Box::new(file.try_clone().map_err(io)?);
        Ok(Self {
            out: BufWriter::with_capacity(1 << 20, out),
            place: Some((temp, path.to_owned(), file)),
            written: 0,
        })
    }
    /// Writes to standard output.
    pub fn stdout() -> Self {
        Self { out: BufWriter::with_capacity(1 << 20, Box::new(std::io::stdout())), place: None, written: 0 }
    }
    /// Adds a record.
    pub fn record(&mut self, record: &Record) -> Result<(), Error> {
        let body = frame::encode(record)?;
        self.written += (frame::HEADER + body.len()) as u64;
        frame::write(&mut self.out, FrameKind::Record, &[], &body, true)
    }
    /// Adds pages: header of runs, then their bytes.
    pub fn pages(&mut self, head: &[u8], body: &[u8]) -> Result<(), Error> {
        self.written += (frame::HEADER + head.len() + body.len()) as u64;
        frame::write(&mut self.out, FrameKind::Pages, head, body, true)
    }
    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }
    /// Flushes, syncs and gives the image its name.
    pub fn finish(&mut self) -> Result<(), Error> {
        let io = |source| Error::Io { doing: "finish the image", source };
        self.out.flush().map_err(io)?;
        if let Some((temp, path, file)) = self.place.take() {
            let done = file.sync_all().and_then(|()| std::fs::rename(&temp, &path));
            if done.is_err() {
                let _ = std::fs::remove_file(&temp);
            }
            done.map_err(io)?;
            if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
                File::open(dir).and_then(|d| d.sync_all()).map_err(io)?;
            }
        }
        Ok(())
    }
}

impl Drop for ImageWriter {
    fn drop(&mut self) {
        if let Some((temp, ..)) = &self.place {
            let _ = std::fs::remove_file(temp);
        }
    }
}

/// Reads an image frame by frame.
pub struct ImageReader {
    input: BufReader<Box<dyn std::io::Read + Send>>,
    buf: Vec<u8>,
}

/// One frame of an image.
pub enum Item<'a> {
    /// A record.
    Record(Box<Record>),
    /// A page frame's body.
    Pages(&'a [u8]),
}

impl ImageReader {
    /// Opens an image file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::Io { doing: "open the image", source })?;
        Ok(Self::new(Box::new(file)))
    }
    /// Reads from any stream.
    pub fn new(input: Box<dyn std::io::Read + Send>) -> Self {
        Self { input: BufReader::with_capacity(1 << 20, input), buf: Vec::new() }
    }
    /// The next frame; `None` at the end of the file (an image without `End` before it is truncated: the caller sees to that).
    pub fn next(&mut self) -> Result<Option<Item<'_>>, Error> {
        match frame::read(&mut self.input, &mut self.buf)? {
            None => Ok(None),
            Some(FrameKind::Record) => Ok(Some(Item::Record(Box::new(frame::decode(&self.buf)?)))),
            Some(FrameKind::Pages) => Ok(Some(Item::Pages(&self.buf))),
            Some(FrameKind::Control) => Err(Error::Damaged("a control message inside an image".into())),
        }
    }
}

/// What [`verify`] found.
#[derive(Debug)]
pub struct Summary {
    /// The manifest.
    pub manifest: Manifest,
    /// Processes.
    pub processes: usize,
    /// Threads.
    pub threads: usize,
    /// Open files.
    pub files: usize,
    /// Page frames.
    pub page_frames: u64,
    /// Bytes of page frames.
    pub page_bytes: u64,
}

/// Reads a whole image and checks it: frames, order, ids, ranges. Nothing is built.
pub fn verify(path: &Path) -> Result<Summary, Error> {
    let mut reader = ImageReader::open(path)?;
    let (mut manifest, mut tree, mut state, mut end) = (None, None, None, None);
    let (mut frames, mut bytes) = (0u64, 0u64);
    while let Some(item) = reader.next()? {
        if end.is_some() {
            return Err(Error::Damaged("something follows the end".into()));
        }
        let record = match item {
            Item::Pages(body) => {
                frames += 1;
                bytes += body.len() as u64;
                if tree.is_none() {
                    return Err(Error::Damaged("pages before the tree".into()));
                }
                continue;
            }
            Item::Record(record) => *record,
        };
        match record {
            Record::Manifest(m) if manifest.is_none() => manifest = Some(*m),
            Record::Tree(t) if manifest.is_some() && state.is_none() => {
                check::tree(&t)?;
                tree = Some(*t);
            }
            Record::State(s) => {
                let tree = tree.as_ref().ok_or_else(|| Error::Damaged("state before the tree".into()))?;
                check::state(tree, &s)?;
                state = Some(*s);
            }
            Record::Frozen | Record::Frames(_) | Record::Log(_) => {}
            Record::End { page_frames, page_bytes } => end = Some((page_frames, page_bytes)),
            _ => return Err(Error::Damaged("records out of order".into())),
        }
    }
    let (Some(manifest), Some(tree), Some(state), Some(end)) = (manifest, tree, state, end) else {
        return Err(Error::Truncated("the image"));
    };
    if end != (frames, bytes) {
        return Err(Error::Damaged(format!(
            "{frames} page frames of {bytes} bytes, {} of {} announced",
            end.0, end.1
        )));
    }
    Ok(Summary {
        manifest,
        processes: tree.procs.len(),
        threads: tree.procs.iter().map(|p| p.tids.len()).sum(),
        files: state.files.len(),
        page_frames: frames,
        page_bytes: bytes,
    })
}
