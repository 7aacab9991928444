//! Pure decisions: no I/O, no clock.

pub mod cpu;
pub mod handover;
pub mod hosts;
pub mod rounds;
pub mod values;
