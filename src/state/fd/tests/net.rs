//! TCP and UDP.

use super::harness::Setup;
pub const SETUPS: &[Setup] = &[];
