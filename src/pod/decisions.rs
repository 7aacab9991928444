//! The target's records: one file per attempt, decided once, on disk before anyone is told.
//!
//! The file is made complete under a temporary name and *linked* into place (link(2) fails when the name is taken), as
//! `undecided` when an attempt begins and as what was decided otherwise. An undecided one is overwritten in place under
//! a lock: of two writers one wins and the other reads what stands, whatever dies in between. Overwriting ten bytes needs
//! one fdatasync(2) and no new block or name, so a commit neither waits for the file system's journal nor meets a full
//! disk.

use crate::base::{Decision, MoveId};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes temporary names unique within the process.
static TURN: AtomicU64 = AtomicU64::new(0);

/// Of one length, so that one can be written over another.
const UNDECIDED: &[u8; 10] = b"undecided\n";
const COMMITTED: &[u8; 10] = b"committed\n";
const ABORTED: &[u8; 10] = b"aborted  \n";

fn text(decision: Decision) -> &'static [u8; 10] {
    match decision {
        Decision::Committed => COMMITTED,
        Decision::Aborted => ABORTED,
    }
}

/// Records are kept in `var/decisions/`.
pub struct Decisions {
    dir: PathBuf,
}

impl Decisions {
    /// The records below the state directory `var`.
    pub fn new(var: &Path) -> Self {
        Self { dir: var.join("decisions") }
    }

    fn path(&self, id: &MoveId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    /// What stands, if anything does. Waits for a writer: what is told is on disk.
    pub fn read(&self, id: &MoveId) -> io::Result<Option<Decision>> {
        match File::open(self.path(id)) {
            Ok(file) => {
                let file = lock(file, FlockArg::LockShared)?;
                stands(&file)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes the record of an attempt that begins, undecided, so that [`Decisions::record`] is quick and finds room.
    pub fn begin(&self, id: &MoveId) -> io::Result<()> {
        self.create(id, UNDECIDED).map(drop)
    }

    /// Writes `wanted` unless a decision stands; returns what stands then, safely on disk.
    pub fn record(&self, id: &MoveId, wanted: Decision) -> io::Result<Decision> {
        let file = match self.open(id) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if self.create(id, text(wanted))? {
                    return Ok(wanted);
                }
                self.open(id)?
            }
            other => other?,
        };
        let file = lock(file, FlockArg::LockExclusive)?;
        if let Some(stands) = stands(&file)? {
            return Ok(stands);
        }
        match file.write_all_at(text(wanted), 0).and_then(|()| file.sync_data()) {
            Ok(()) => Ok(wanted),
            // Whoever asks reads this file: what it says now is what counts, even if the disk may not keep it.
            Err(e) => match stands(&file) {
                Ok(Some(stands)) => Ok(stands),
                _ => Err(e),
            },
        }
    }

    fn open(&self, id: &MoveId) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path(id))
    }

    /// Whether it was made; `false`: there was one.
    fn create(&self, id: &MoveId, text: &[u8]) -> io::Result<bool> {
        std::fs::create_dir_all(&self.dir)?;
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        let temp = self.dir.join(format!(".{}.{}.{turn}", id.as_str(), std::process::id()));
        let linked = (|| {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temp)?;
            file.write_all(text)?;
            file.sync_data()?;
            std::fs::hard_link(&temp, self.path(id))
        })();
        let removed = std::fs::remove_file(&temp);
        match linked {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(e) => return Err(e),
        }
        removed?;
        File::open(&self.dir)?.sync_all()?;
        Ok(true)
    }
}

fn lock(file: File, how: FlockArg) -> io::Result<Flock<File>> {
    let mut file = file;
    loop {
        match Flock::lock(file, how) {
            Ok(locked) => return Ok(locked),
            Err((back, nix::errno::Errno::EINTR)) => file = back,
            Err((_, e)) => return Err(e.into()),
        }
    }
}

fn stands(file: &File) -> io::Result<Option<Decision>> {
    let mut bytes = [0; 16];
    let len = file.read_at(&mut bytes, 0)?;
    match bytes[..len].trim_ascii_end() {
        b"committed" => Ok(Some(Decision::Committed)),
        b"aborted" => Ok(Some(Decision::Aborted)),
        b"undecided" => Ok(None),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the record is damaged")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_record_stands() {
        let dir = tempfile::tempdir().unwrap();
        let all = Decisions::new(dir.path());
        let id = MoveId::from_bits(1);
        assert_eq!(all.read(&id).unwrap(), None);
        assert_eq!(all.record(&id, Decision::Aborted).unwrap(), Decision::Aborted);
        assert_eq!(all.record(&id, Decision::Committed).unwrap(), Decision::Aborted);
        assert_eq!(all.read(&id).unwrap(), Some(Decision::Aborted));
    }

    #[test]
    fn one_that_was_begun_is_undecided_until_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let all = Decisions::new(dir.path());
        let id = MoveId::from_bits(1);
        all.begin(&id).unwrap();
        assert_eq!(all.read(&id).unwrap(), None);
        assert_eq!(all.record(&id, Decision::Committed).unwrap(), Decision::Committed);
        all.begin(&id).unwrap();
        assert_eq!(all.record(&id, Decision::Aborted).unwrap(), Decision::Committed);
        assert_eq!(std::fs::read_dir(dir.path().join("decisions")).unwrap().count(), 1);
        // Of an earlier version.
        let old = MoveId::from_bits(2);
        std::fs::write(all.path(&old), "aborted\n").unwrap();
        assert_eq!(all.record(&old, Decision::Committed).unwrap(), Decision::Aborted);
        std::fs::write(all.path(&old), "commi").unwrap();
        assert!(all.read(&old).is_err() && all.record(&old, Decision::Aborted).is_err());
    }

    #[test]
    fn racing_writers_agree() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..50 {
            let id = MoveId::from_bits(n);
            if n % 2 == 0 {
                Decisions::new(dir.path()).begin(&id).unwrap();
            }
            let answers: Vec<Decision> = std::thread::scope(|s| {
                let one = |d| {
                    let (id, dir) = (&id, dir.path());
                    s.spawn(move || Decisions::new(dir).record(id, d).unwrap())
                };
                let handles = [one(Decision::Committed), one(Decision::Aborted)];
                handles.into_iter().map(|h| h.join().unwrap()).collect()
            });
            assert_eq!(answers[0], answers[1], "two records of one attempt");
        }
    }
}
