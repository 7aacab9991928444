//! The pods of this host on disk: one directory each, names reserved under a lock, records saved atomically.
//!
//! After a start the pod's monitor alone writes its record; everyone else only reads. Names are taken and given
//! back under one lock (`pods/.lock`, flock), so two starts with one name never both go on.

mod places;
mod record;

pub use places::{Places, make_dir};
pub use record::{MoveMark, ProcId, Record, SCHEMA, Status};

use crate::base::spec::PodSpec;
use crate::base::{Failure, Kind, PodId, PodName};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What can go wrong with the store.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// No pod of that name or id.
    #[error("no such pod on this host")]
    NoSuchPod {
        /// As typed.
        pod: String,
    },
    /// The name is in use.
    #[error("the name is taken by a pod that is {status}")]
    NameTaken {
        /// The name.
        name: PodName,
        /// State of its owner.
        status: Status,
    },
    /// The same pod (by id) is here and cannot come back or start again.
    #[error("the pod is {status} on this host")]
    Here {
        /// Its name.
        name: PodName,
        /// Its state.
        status: Status,
    },
    /// The pod lives on another host.
    #[error("the pod {} {host}", if *.in_doubt { "may live on" } else { "lives on" })]
    Elsewhere {
        /// Its name.
        name: PodName,
        /// The other host.
        host: String,
        /// Whether that host has not confirmed yet.
        in_doubt: bool,
    },
    /// A file operation failed.
    #[error("cannot {what}: {}", plain(.source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A record cannot be read.
    #[error("the record is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// An I/O error in words, without `(os error N)`.
pub fn plain(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(n) => nix::errno::Errno::from_raw(n).desc().to_lowercase(),
        None => e.to_string(),
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        let text = e.to_string();
        match e {
            Error::NoSuchPod { pod } => {
                Failure::new(Kind::NoSuchPod, pod, text).remedy("`podmig ps -a` lists the pods of this host")
            }
            Error::NameTaken { name, .. } => Failure::new(Kind::Taken, name.as_str(), text)
                .remedy(format!("choose another name, or give `--replace`, or `podmig rm -f {name}` first")),
            Error::Here { name, status } if status.is_ended() => {
                Failure::new(Kind::Failed, name.as_str(), text)
                    .remedy(format!("`podmig start {name}` starts it again"))
            }
            Error::Here { name, status: Status::Checkpointed } => {
                Failure::new(Kind::Failed, name.as_str(), text).remedy("`podmig restore FILE` brings it back")
            }
            Error::Here { name, .. } => {
                Failure::new(Kind::Refused, name.as_str(), text).remedy(format!("`podmig stop {name}` first"))
            }
            Error::Elsewhere { name, host, in_doubt } => {
                let f = Failure::new(Kind::Elsewhere, name.as_str(), text);
                if in_doubt {
                    f.remedy(format!(
                        "`podmig resolve {name} --here|--there` once you know what became of {host}"
                    ))
                } else {
                    f.remedy(format!("use it there, or `podmig rm {name}` to forget it here"))
                }
            }
            Error::Io { ref path, ref source, .. } => {
                let f = Failure::new(Kind::Failed, path.display().to_string(), text);
                match source.kind() {
                    io::ErrorKind::PermissionDenied => f.remedy("run as root, or give `--root DIR`"),
                    io::ErrorKind::StorageFull => f.remedy("make room on that file system"),
                    _ => f,
                }
            }
            Error::Damaged { path, .. } => Failure::new(Kind::Failed, path.display().to_string(), text),
        }
    }
}

/// The pods of one host.
#[derive(Clone, Debug)]
pub struct Store {
    /// Where they lie.
    pub places: Places,
}

/// The lock on names; given back when dropped.
pub struct NamesLock(#[allow(dead_code)] Flock<File>);

impl Store {
    /// A store over `places`; nothing is made before the first write.
    pub fn open(places: &Places) -> Store {
        Store { places: places.clone() }
    }

    fn pods(&self) -> PathBuf {
        self.places.var.join("pods")
    }

    /// Every pod known here, by name; damaged records are left out with a warning in our log.
    pub fn list(&self) -> Result<Vec<Record>, Error> {
        let mut found: Vec<Record> = Vec::new();
        for id in self.ids()? {
            match self.read(&id) {
                Ok(r) => found.extend(r.and_then(Record::settled)),
                Err(e) => tracing::warn!(pod = %id, "left out: {e}"),
            }
        }
        found.sort_by(|a, b| a.spec.name.cmp(&b.spec.name).then(a.created.cmp(&b.created)));
        Ok(found)
    }

    fn ids(&self) -> Result<Vec<PodId>, Error> {
        let dir = self.pods();
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_error("list", &dir))?,
        };
        Ok(entries.flatten().filter_map(|e| PodId::parse(e.file_name().to_str()?)).collect())
    }

    fn read(&self, id: &PodId) -> Result<Option<Record>, Error> {
        let path = self.places.record(id);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error("read", &path))?,
        };
        decode(&text, &path).map(Some)
    }

    /// The pod of that id, if known here.
    pub fn get(&self, id: &PodId) -> Result<Option<Record>, Error> {
        Ok(self.read(id)?.and_then(Record::settled))
    }

    /// The pod by name or id. A checkpointed pod gave its name back: it is found by name only when no other has it.
    pub fn find(&self, name_or_id: &str) -> Result<Record, Error> {
        let none = || Error::NoSuchPod { pod: name_or_id.to_owned() };
        if let Some(id) = PodId::parse(name_or_id) {
            return self.get(&id)?.ok_or_else(none);
        }
        let mut found = self.list()?;
        found.retain(|r| r.spec.name.as_str() == name_or_id);
        found.sort_by_key(|r| r.status == Status::Checkpointed);
        found.into_iter().next().ok_or_else(none)
    }

    /// As [`Store::find`], and refused (exit 8) when the pod lives on another host.
    pub fn find_here(&self, name_or_id: &str) -> Result<Record, Error> {
        let record = self.find(name_or_id)?;
        match elsewhere(&record) {
            Some(e) if record.status == Status::Moved => Err(e),
            _ => Ok(record),
        }
    }

    /// Writes a record so that a reader or a crash sees the old or the new one, never a part of it (mode 0600).
    pub fn save(&self, record: &Record) -> Result<(), Error> {
        make_dir(&self.places.dir(&record.spec.id))?;
        let path = self.places.record(&record.spec.id);
        let text = serde_json::to_vec_pretty(record)
            .map_err(|e| Error::Damaged { path: path.clone(), reason: e.to_string() })?;
        write_atomic(&path, &text).map_err(io_error("write", &path))
    }

    /// Writes a record to disk without giving it its place: [`StagedRecord::place`] does that, and little else.
    pub fn stage(&self, record: &Record) -> Result<StagedRecord, Error> {
        let path = self.places.record(&record.spec.id);
        let text = serde_json::to_vec_pretty(record)
            .map_err(|e| Error::Damaged { path: path.clone(), reason: e.to_string() })?;
        let temp = path.with_file_name(format!(".staged.{}", std::process::id()));
        let staged = StagedRecord { record: record.clone(), path, temp };
        let written = || {
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&staged.temp)?;
            file.write_all(&text)?;
            file.sync_all()
        };
        written().map_err(io_error("write", &staged.temp))?;
        Ok(staged)
    }

    /// As [`Store::save`], without waiting for the disk: a reader sees the old or the new one, a power cut may leave
    /// the old one. For what a power cut ends anyway.
    pub fn save_unsynced(&self, record: &Record) -> Result<(), Error> {
        make_dir(&self.places.dir(&record.spec.id))?;
        let path = self.places.record(&record.spec.id);
        let text = serde_json::to_vec_pretty(record)
            .map_err(|e| Error::Damaged { path: path.clone(), reason: e.to_string() })?;
        write_unsynced(&path, &text).map_err(io_error("write", &path))
    }

    /// Makes what [`Store::save_unsynced`] wrote last outlive a power cut.
    pub fn sync(&self, id: &PodId) -> Result<(), Error> {
        let path = self.places.record(id);
        let synced = || {
            File::open(&path)?.sync_all()?;
            File::open(self.places.dir(id))?.sync_all()
        };
        gone(synced()).map_err(io_error("write", &path))
    }

    /// Takes the lock on names; waits for whoever has it (they hold it for a few file operations).
    pub fn lock_names(&self) -> Result<NamesLock, Error> {
        make_dir(&self.pods())?;
        let path = self.pods().join(".lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(io_error("open", &path))?;
        let mut file = file;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(NamesLock(lock)),
                Err((f, nix::errno::Errno::EINTR)) => file = f,
                Err((_, e)) => return Err(io_error("lock", &path)(e.into())),
            }
        }
    }

    /// Takes the pod's name and writes its record as `running` (being started), owned by the calling process
    /// until a monitor writes itself in. If the caller dies before, the reservation is void by itself.
    ///
    /// # Errors
    /// `NameTaken` (exit 9), `Elsewhere` (exit 8) when a pod of that name moved away.
    pub fn reserve(&self, spec: &PodSpec) -> Result<Record, Error> {
        let _lock = self.lock_names()?;
        self.sweep_void()?;
        self.name_free(&spec.name, &spec.id)?;
        let record = Record::new(spec.clone(), Status::Running);
        self.save_unsynced(&record)?;
        Ok(record)
    }

    /// Takes the name and id for a pod that arrives (move, restore): as [`Store::reserve`], but the same id may
    /// be known here as long as it does not live here; what was known is kept in `previous`.
    pub fn reserve_incoming(&self, spec: &PodSpec, generation: u64) -> Result<Record, Error> {
        let _lock = self.lock_names()?;
        self.sweep_void()?;
        self.name_free(&spec.name, &spec.id)?;
        let before = self.get(&spec.id)?;
        if let Some(b) = &before
            && !matches!(b.status, Status::Moved | Status::Checkpointed | Status::Exited | Status::Lost)
        {
            return Err(Error::Here { name: b.spec.name.clone(), status: b.status });
        }
        let mut record = Record::new(spec.clone(), Status::Incoming);
        record.generation = generation;
        record.previous = before.map(|b| Box::new(Record { previous: None, ..b }));
        self.save(&record)?;
        Ok(record)
    }

    /// Takes an ended or lost pod up again from its stored definition: `running`, owned by the caller.
    pub fn reserve_again(&self, id: &PodId) -> Result<Record, Error> {
        let _lock = self.lock_names()?;
        let before = self.get(id)?.ok_or_else(|| Error::NoSuchPod { pod: id.to_string() })?;
        if let Some(e) = elsewhere(&before) {
            return Err(e);
        }
        if before.status == Status::Checkpointed {
            return Err(Error::Here { name: before.spec.name, status: before.status });
        }
        if !before.status.is_ended() {
            return Err(Error::NameTaken { name: before.spec.name, status: before.status });
        }
        let mut record = Record::new(before.spec.clone(), Status::Running);
        record.generation = before.generation;
        record.previous = Some(Box::new(Record { previous: None, ..before }));
        self.save(&record)?;
        Ok(record)
    }

    /// Gives a reservation back: what was known of the id before is taken up again, else nothing is left.
    pub fn give_back(&self, record: &Record) -> Result<(), Error> {
        match &record.previous {
            Some(previous) => self.save(previous),
            None => self.remove(&record.spec.id),
        }
    }

    /// As [`Store::give_back`], for a reservation for an arriving pod whose monitor is dead, unless it is void already.
    pub fn give_back_dead(&self, record: &Record) -> Result<(), Error> {
        let _lock = self.lock_names()?;
        match self.read(&record.spec.id)? {
            Some(found) if found.status == Status::Incoming && found.created == record.created => {
                self.give_back(&found)
            }
            _ => Ok(()),
        }
    }

    /// Removes the record of a pod, and so frees its name; what else there is of it stays until [`Store::remove`].
    pub fn forget(&self, id: &PodId) -> Result<(), Error> {
        let record = self.places.record(id);
        gone(fs::remove_file(&record)).map_err(io_error("remove", &record))
    }

    /// Removes all this host knows of a pod: record, log, journal, socket. Twice is harmless.
    pub fn remove(&self, id: &PodId) -> Result<(), Error> {
        let socket = self.places.socket(id);
        gone(fs::remove_file(&socket)).map_err(io_error("remove", &socket))?;
        // The record first: a crash between leaves a directory without a pod, not a pod without a log.
        self.forget(id)?;
        let dir = self.places.dir(id);
        gone(fs::remove_dir_all(&dir)).map_err(io_error("remove", &dir))
    }

    fn name_free(&self, name: &PodName, id: &PodId) -> Result<(), Error> {
        for r in self.list()? {
            if r.spec.name != *name || r.spec.id == *id || r.status == Status::Checkpointed {
                continue;
            }
            return Err(elsewhere(&r).unwrap_or(Error::NameTaken { name: name.clone(), status: r.status }));
        }
        Ok(())
    }

    /// Removes what starters that died left; only under the names lock.
    fn sweep_void(&self) -> Result<(), Error> {
        for id in self.ids()? {
            if let Ok(Some(r)) = self.read(&id)
                && r.started.is_none()
                && matches!(r.status, Status::Running | Status::Incoming)
                && !r.owner_alive()
            {
                self.give_back(&r)?;
            }
        }
        Ok(())
    }
}

fn elsewhere(r: &Record) -> Option<Error> {
    let in_doubt = match r.status {
        Status::Moved => false,
        Status::InDoubt => true,
        _ => return None,
    };
    let host = r.moved_to.clone().unwrap_or_else(|| "another host".to_owned());
    Some(Error::Elsewhere { name: r.spec.name.clone(), host, in_doubt })
}

fn decode(text: &[u8], path: &Path) -> Result<Record, Error> {
    let damaged = |reason: String| Error::Damaged { path: path.to_path_buf(), reason };
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
    match value.get("schema").and_then(serde_json::Value::as_u64) {
        Some(s) if s <= u64::from(SCHEMA) => {}
        Some(s) => return Err(damaged(format!("schema {s} is newer than this podmig's ({SCHEMA})"))),
        None => return Err(damaged("no schema number".to_owned())),
    }
    serde_json::from_value(value).map_err(|e| damaged(e.to_string()))
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::Io { what, path: path.to_path_buf(), source }
}

fn gone(r: io::Result<()>) -> io::Result<()> {
    match r {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A record on disk under another name (see [`Store::stage`]), gone when dropped.
#[derive(Debug)]
pub struct StagedRecord {
    record: Record,
    path: PathBuf,
    temp: PathBuf,
}

impl StagedRecord {
    /// What it says.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Makes it the pod's record, safe from a power cut.
    pub fn place(self) -> Result<(), Error> {
        let placed = || {
            fs::rename(&self.temp, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        placed().map_err(io_error("write", &self.path))
    }
}

impl Drop for StagedRecord {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temp);
    }
}

/// Writes a file whole or not at all: temporary file beside it, fsync, rename, fsync of the directory (mode 0600).
pub fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    write_whole(path, content, true)
}

/// As [`write_atomic`], without the fsyncs.
pub fn write_unsynced(path: &Path, content: &[u8]) -> io::Result<()> {
    write_whole(path, content, false)
}

fn write_whole(path: &Path, content: &[u8], sync: bool) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let tmp = dir.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&tmp)?;
        file.write_all(content)?;
        if sync {
            file.sync_all()?;
        }
        fs::rename(&tmp, path)?;
        if sync { File::open(dir)?.sync_all() } else { Ok(()) }
    })();
    if written.is_err() {
        let _ = fs::remove_file(&tmp);
    }
    written
}

#[cfg(test)]
mod tests;
