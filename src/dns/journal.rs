//! The zone's records on disk: SQLite, one transaction for each update, so that a crash leaves the zone as it was
//! before or after an update, never between.

use super::Error;
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::{BinDecodable, BinEncodable};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The journal of one zone.
pub struct Journal {
    db: Mutex<Connection>,
    path: PathBuf,
}

impl Journal {
    fn fail(&self, reason: impl ToString) -> Error {
        Error::Journal { path: self.path.display().to_string(), reason: reason.to_string() }
    }

    /// Opens or makes the database.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fail =
            |e: rusqlite::Error| Error::Journal { path: path.display().to_string(), reason: e.to_string() };
        let db = Connection::open(path).map_err(fail)?;
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE IF NOT EXISTS record (wire BLOB NOT NULL);",
        )
        .map_err(fail)?;
        Ok(Self { db: Mutex::new(db), path: path.to_owned() })
    }

    /// All records.
    pub fn load(&self) -> Result<Vec<Record>, Error> {
        let db = self.db.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut query = db.prepare("SELECT wire FROM record").map_err(|e| self.fail(e))?;
        let rows = query.query_map([], |row| row.get::<_, Vec<u8>>(0)).map_err(|e| self.fail(e))?;
        rows.map(|wire| {
            let wire = wire.map_err(|e| self.fail(e))?;
            Record::from_bytes(&wire).map_err(|e| self.fail(e))
        })
        .collect()
    }

    /// Replaces the whole zone in one transaction (zones here are small: a few records a pod).
    pub fn store<'a>(&self, records: impl Iterator<Item = &'a Record>) -> Result<(), Error> {
        let mut db = self.db.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let change = db.transaction().map_err(|e| self.fail(e))?;
        change.execute("DELETE FROM record", []).map_err(|e| self.fail(e))?;
        for record in records {
            let wire = record.to_bytes().map_err(|e| self.fail(e))?;
            change.execute("INSERT INTO record (wire) VALUES (?1)", [wire]).map_err(|e| self.fail(e))?;
        }
        change.commit().map_err(|e| self.fail(e))
    }
}
