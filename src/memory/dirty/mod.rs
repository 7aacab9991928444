//! x
pub mod sent;
