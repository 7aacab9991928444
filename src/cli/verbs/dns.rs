//! `podmig dns`: names of pods.

use crate::base::Failure;
use crate::cli::{Context, out};
use std::net::SocketAddr;
use std::path::Path;

/// `dns serve`: serves a zone.
pub fn serve(_ctx: &Context, _zone: &str, _listen: SocketAddr) -> Result<i32, Failure> {
    Err(out::not_yet("dns serve"))
}

/// `dns use`: registers this host's pods at a server.
pub fn use_server(_ctx: &Context, _server: SocketAddr, _zone: &str, _key: &Path) -> Result<i32, Failure> {
    Err(out::not_yet("dns use"))
}

/// `dns show`: what is registered.
pub fn show(_ctx: &Context) -> Result<i32, Failure> {
    Err(out::not_yet("dns show"))
}
