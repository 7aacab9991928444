//! The target's records: one file per attempt, written once, on disk before anyone is told.
//!
//! The file is made complete under a temporary name and *linked* into place: link(2) fails when the name is
//! taken, so of two writers one wins and the other reads what stands, whatever dies in between.

use crate::base::{Decision, MoveId};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes temporary names unique within the process.
static TURN: AtomicU64 = AtomicU64::new(0);

/// Records are kept in `var/decisions/`.
pub struct Decisions {
    dir: PathBuf,
}

/// A record on disk under a temporary name, gone when dropped.
#[derive(Debug)]
pub struct Staged {
    temp: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // What a death leaves behind is a hidden file of ten bytes.
        let _ = std::fs::remove_file(&self.temp);
    }
}

impl Decisions {
    /// The records below the state directory `var`.
    pub fn new(var: &Path) -> Self {
        Self { dir: var.join("decisions") }
    }

    fn path(&self, id: &MoveId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    /// What stands, if anything does.
    pub fn read(&self, id: &MoveId) -> io::Result<Option<Decision>> {
        match std::fs::read(self.path(id)) {
            Ok(text) if text == b"committed\n" => Ok(Some(Decision::Committed)),
            Ok(text) if text == b"aborted\n" => Ok(Some(Decision::Aborted)),
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the record is damaged")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes a committed record that does not stand yet: [`Staged::commit`] then only puts it in place.
    pub fn stage(&self, id: &MoveId) -> io::Result<Staged> {
        Ok(Staged { temp: self.write(id, Decision::Committed)? })
    }

    fn write(&self, id: &MoveId, wanted: Decision) -> io::Result<PathBuf> {
        std::fs::create_dir_all(&self.dir)?;
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        let temp = self.dir.join(format!(".{}.{}.{turn}", id.as_str(), std::process::id()));
        let text: &[u8] = match wanted {
            Decision::Committed => b"committed\n",
            Decision::Aborted => b"aborted\n",
        };
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temp)?;
        file.write_all(text)?;
        file.sync_data()?;
        Ok(temp)
    }

    /// Puts a staged record in place unless one stands; returns what stands then, safely on disk.
    pub fn commit(&self, id: &MoveId, staged: &Staged) -> io::Result<Decision> {
        let linked = std::fs::hard_link(&staged.temp, self.path(id));
        self.settle(id, linked, Decision::Committed)
    }

    fn settle(&self, id: &MoveId, linked: io::Result<()>, wanted: Decision) -> io::Result<Decision> {
        File::open(&self.dir)?.sync_all()?;
        match linked {
            Ok(()) => Ok(wanted),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.read(id)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            }
            Err(e) => Err(e),
        }
    }

    /// Writes `wanted` unless a record stands; returns what stands then, safely on disk.
    pub fn record(&self, id: &MoveId, wanted: Decision) -> io::Result<Decision> {
        if let Some(stands) = self.read(id)? {
            return Ok(stands);
        }
        let temp = self.write(id, wanted)?;
        let linked = std::fs::hard_link(&temp, self.path(id));
        std::fs::remove_file(&temp)?;
        self.settle(id, linked, wanted)
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
    fn a_staged_record_stands_only_when_committed() {
        let dir = tempfile::tempdir().unwrap();
        let all = Decisions::new(dir.path());
        let (one, other) = (MoveId::from_bits(1), MoveId::from_bits(2));
        let staged = [all.stage(&one).unwrap(), all.stage(&other).unwrap()];
        assert_eq!(all.read(&one).unwrap(), None);
        assert_eq!(all.commit(&one, &staged[0]).unwrap(), Decision::Committed);
        assert_eq!(all.record(&other, Decision::Aborted).unwrap(), Decision::Aborted);
        assert_eq!(all.commit(&other, &staged[1]).unwrap(), Decision::Aborted);
        drop(staged);
        assert_eq!(std::fs::read_dir(dir.path().join("decisions")).unwrap().count(), 2);
        assert_eq!(all.read(&one).unwrap(), Some(Decision::Committed));
    }

    #[test]
    fn racing_writers_agree() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..50 {
            let id = MoveId::from_bits(n);
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
