//! `podmig agent`: accept pods from trusted hosts.

use crate::agent;
use crate::base::Failure;
use crate::cli::{Context, privilege};
use crate::wire::identity::Identity;
use std::net::SocketAddr;

/// Accept pods from trusted hosts, until SIGTERM or SIGINT.
pub fn run(ctx: &Context, listen: SocketAddr) -> Result<i32, Failure> {
    privilege::root_for("agent")?;
    // A host that cannot prove who it is should not seem to be up.
    Identity::load(&ctx.places.key())?;
    agent::run(listen, &ctx.places, |addr| tracing::info!(%addr, "listening"))?;
    Ok(0)
}
