//! Pure decisions: no I/O, no clock.

pub mod handover;
pub mod hosts;
pub mod rounds;
pub mod values;
