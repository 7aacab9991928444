//! Reading ahead: threads fill chunks from a [`Reader`], any number of lanes take them. The chunks go round in a
//! ring, so the memory in flight is fixed beforehand.

use super::chunk::Chunk;
use super::{Error, Reader};
use std::ops::Deref;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Chunks in flight by default: with at most 1 MiB of data each, 16 MiB.
pub const DEFAULT_CHUNKS: usize = 16;

/// A reader running ahead of its lanes. Dropping it ends the threads.
pub struct Feed {
    full: Option<Mutex<Receiver<Result<Chunk, Error>>>>,
    empty: Option<Sender<Chunk>>,
    threads: Vec<JoinHandle<()>>,
    total: u64,
}

/// A chunk on loan; dropping it gives the buffer back to be filled again.
pub struct Lease<'a> {
    chunk: Option<Chunk>,
    empty: Option<&'a Sender<Chunk>>,
}

impl Deref for Lease<'_> {
    type Target = Chunk;
    fn deref(&self) -> &Chunk {
        static NONE: Chunk = Chunk::EMPTY;
        self.chunk.as_ref().unwrap_or(&NONE)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let (Some(chunk), Some(empty)) = (self.chunk.take(), self.empty) {
            let _ = empty.send(chunk); // nobody wants it any more when all is read
        }
    }
}

fn produce(reader: &Reader, empty: &Mutex<Receiver<Chunk>>, full: &SyncSender<Result<Chunk, Error>>) {
    loop {
        let next = empty.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut chunk) = next else { return };
        let filled = match reader.fill(&mut chunk) {
            Ok(true) => full.send(Ok(chunk)),
            Ok(false) => return,
            Err(e) => {
                let _ = full.send(Err(e));
                return;
            }
        };
        if filled.is_err() {
            return;
        }
    }
}

impl Feed {
    /// Starts `threads` threads (at least one) that fill up to `chunks` chunks ahead. Errors: a thread cannot be made.
    pub fn start(reader: Arc<Reader>, threads: usize, chunks: usize) -> std::io::Result<Self> {
        let chunks = chunks.max(1);
        let (empty_in, empty_out) = channel();
        let (full_in, full_out) = sync_channel(chunks + threads);
        for _ in 0..chunks {
            let _ = empty_in.send(Chunk::new());
        }
        let empty_out = Arc::new(Mutex::new(empty_out));
        let total = reader.total_bytes();
        let (full, empty) = (Some(Mutex::new(full_out)), Some(empty_in));
        let mut feed = Self { full, empty, threads: Vec::new(), total };
        for n in 0..threads.max(1) {
            let (reader, empty, full) = (reader.clone(), empty_out.clone(), full_in.clone());
            let thread = std::thread::Builder::new().name(format!("read-pages-{n}"));
            feed.threads.push(thread.spawn(move || produce(&reader, &empty, &full))?);
        }
        Ok(feed)
    }

    /// Bytes of memory that will be looked at, all chunks together.
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// The next chunk, in no particular order; `None` when all is read or after an error was given. May be called by
    /// many lanes at once. Waits for the reader.
    pub fn next(&self) -> Option<Result<Lease<'_>, Error>> {
        let full = self.full.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let next = full.recv().ok()?;
        Some(next.map(|chunk| Lease { chunk: Some(chunk), empty: self.empty.as_ref() }))
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // Both ends closed: a producer that waits for a buffer or for room sees it and ends.
        self.empty = None;
        self.full = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
