//! Pure decisions: no I/O, no clock.

pub mod hosts;
pub mod values;
