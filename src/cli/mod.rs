//! The command line: a contract with other people’s scripts (names, JSON fields, exit codes).

pub mod args;
pub mod request;
