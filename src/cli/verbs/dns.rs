//! `podmig dns`: names of pods.

use crate::base::Failure;
use crate::cli::{Context, out, shape};
use crate::dns::{config, serve};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::Path;

/// `dns serve`: serves a zone until SIGTERM or SIGINT; says where, and with which key updates are signed.
pub fn serve(ctx: &Context, zone: &str, listen: SocketAddr) -> Result<i32, Failure> {
    serve::run(&ctx.places.var, zone, listen, |addr, key| {
        out::line(&format!("{zone} on {addr}, updates signed with {}", key.display()));
    })?;
    Ok(0)
}

/// `dns use`: registers this host's pods at a server.
pub fn use_server(ctx: &Context, server: SocketAddr, zone: &str, key: &Path) -> Result<i32, Failure> {
    let key = std::path::absolute(key).unwrap_or_else(|_| key.to_owned());
    config::save(&ctx.places.etc, &config::DnsConfig { server, zone: zone.to_owned(), key })?;
    Ok(0)
}

#[derive(Serialize)]
struct Shown {
    schema: u32,
    server: Option<SocketAddr>,
    zone: Option<String>,
    key: Option<String>,
}

/// `dns show`: which server and zone this host uses.
pub fn show(ctx: &Context) -> Result<i32, Failure> {
    let config = config::load(&ctx.places.etc)?;
    if ctx.json {
        let (server, zone, key) = match config {
            Some(c) => (Some(c.server), Some(c.zone), Some(c.key.display().to_string())),
            None => (None, None, None),
        };
        out::json(&Shown { schema: shape::SCHEMA, server, zone, key });
        return Ok(0);
    }
    match config {
        Some(c) => out::line(&format!("{} at {}, key {}", c.zone, c.server, c.key.display())),
        None => out::line("no server: `podmig dns use ADDR:PORT --zone ZONE --key FILE`"),
    }
    Ok(0)
}
