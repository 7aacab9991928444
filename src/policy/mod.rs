//! Pure decisions: no I/O, no clock.

pub mod handover;
