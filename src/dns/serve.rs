//! `podmig dns serve`: the server, UDP and TCP, until SIGTERM or SIGINT.

use super::journal::Journal;
use super::zone::Zone;
use super::{Error, key};
use hickory_proto::rr::Name;
use hickory_server::Server;
use hickory_server::zone_handler::Catalog;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};

/// How long a TCP caller may stay silent.
const IDLE: Duration = Duration::from_secs(10);

/// Where a zone's key lies below the state directory `var`.
pub fn key_path(var: &Path, zone: &Name) -> PathBuf {
    var.join("dns").join(format!("{}.key", zone.to_ascii().trim_end_matches('.')))
}

/// Parses a zone name; it always ends at the root.
pub fn zone_name(text: &str) -> Result<Name, Error> {
    let bad = |reason: String| Error::Invalid { object: text.to_owned(), reason };
    let mut name = Name::from_ascii(text).map_err(|e| bad(e.to_string()))?;
    name.set_fqdn(true);
    if name.is_root() {
        return Err(bad("a zone needs a name".into()));
    }
    Ok(name.to_lowercase())
}

/// Serves `zone` on `listen`. Its key is made at the first start; `ready` is called once with address and key file.
pub fn run(
    var: &Path,
    zone: &str,
    listen: SocketAddr,
    ready: impl FnOnce(SocketAddr, &Path),
) -> Result<(), Error> {
    let zone = zone_name(zone)?;
    let key_file = key_path(var, &zone);
    let key = key::load_or_create(&key_file, "podmig")?;
    let journal = Journal::open(&key_file.with_extension("sqlite"))?;
    let addr = match listen.ip() {
        IpAddr::V4(a) if !a.is_unspecified() => Some(a),
        _ => None,
    };
    let zone = Zone::open(&zone, key, journal, addr)?;
    let start = |source| Error::Listen { addr: listen, source };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(start)?;
    runtime.block_on(async {
        let tcp = TcpListener::bind(listen).await.map_err(start)?;
        let bound = tcp.local_addr().map_err(start)?;
        let udp = UdpSocket::bind(bound).await.map_err(start)?;
        let mut catalog = Catalog::new();
        catalog
            .upsert(hickory_server::zone_handler::ZoneHandler::origin(&zone).clone(), vec![Arc::new(zone)]);
        let mut server = Server::new(catalog);
        server.register_socket(udp);
        server.register_listener(tcp, IDLE, 4096);
        let mut term = signal(SignalKind::terminate()).map_err(start)?;
        let mut int = signal(SignalKind::interrupt()).map_err(start)?;
        ready(bound, &key_file);
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            ended = server.block_until_done() => {
                ended.map_err(|e| start(std::io::Error::other(e.to_string())))?;
            }
        }
        Ok(())
    })
}
