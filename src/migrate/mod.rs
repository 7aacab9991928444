//! Moving a pod: the two ends, the commit, the journal, the report.
//!
//! ```text
//! source (one process, `podmig move`)            target (one worker process per caller)
//! source::run                                    worker::serve
//!   reserve ── manifest ───────────────────────▶   reserve: monitor, namespaces, init, link held
//!   tree ──────────────────────────────────────▶   skeleton ── Built ──▶
//!   hold, stop all, tree again, pages, state ──▶   fill, finish, detach under freezer ── Prepared ──▶
//!   freeze cgroup, journal, Commit ────────────▶   record, activate ── Activated ──▶
//!   destroy
//! ```
//! The mover may die at any moment: until `Commit` its pod's monitor takes everything back, after it the
//! monitor asks the target what its record says (`policy::handover`).
//!
//! `sink` is where a stream goes (a host or a file), `report` what the user is told.

pub mod report;
pub mod sink;
