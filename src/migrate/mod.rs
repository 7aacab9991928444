//! Moving a pod: the two ends, the commit, the journal, the report.
//!
//! ```text
//! source (one process, `podmig move`)            target (one worker process per caller)
//! source::run                                    worker::serve
//!   reserve ── manifest ───────────────────────▶   reserve: monitor, namespaces, init, link held
//!   tree ──────────────────────────────────────▶   skeleton ── Built ──▶
//!   rounds: look, send (live) ─────────────────▶   fill ── Synced ──▶
//!   hold, stop all, tree again, pages, state ──▶   fill, finish, detach under freezer ── Prepared ──▶
//!   freeze cgroup, journal, Commit ────────────▶   record, activate ── Activated ──▶
//!   destroy
//! ```
//! The mover may die at any moment: until `Commit` its pod's monitor takes everything back, after it the
//! monitor asks the target what its record says (`policy::handover`).
//!
//! `sink` is where a stream goes (a host or a file), `report` what the user is told at the end, `progress` meanwhile,
//! `point` the point of no return.

pub mod clone;
pub mod facts;
pub mod freeze_copy;
mod live;
pub mod names;
pub mod order;
mod pace;
pub mod peer;
pub mod point;
mod predict;
pub mod private;
pub mod progress;
pub mod report;
pub mod resolve;
pub mod restore;
pub mod sink;
pub mod source;
pub mod target;
mod verify;
pub mod worker;
