//! `podmig agent`: accept pods from trusted hosts.

use crate::base::Failure;
use crate::cli::{Context, out};

/// Accept pods from trusted hosts.
pub fn run(_ctx: &Context, _listen: std::net::SocketAddr) -> Result<i32, Failure> {
    Err(out::not_yet("agent"))
}
