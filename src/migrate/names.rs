//! A pod's name follows it: what this host says to the DNS server it uses, when a pod starts, arrives or ends here.

use crate::base::{Failure, PodId};
use crate::dns::config::{self, DnsConfig};
use crate::dns::update::{Entry, Updater};
use crate::pod::store::{Record, Status, Store};
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Between two tries, growing up to the second figure.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// How long an update is tried before it is given up (the next event of the pod starts anew).
const GIVE_UP: Duration = Duration::from_secs(600);

/// What became of an update.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Named {
    /// This host keeps no names, or the pod has no address.
    None,
    /// It stands.
    Done,
    /// Not yet; it is retried.
    Pending,
}

impl Named {
    /// The word in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Named::None => "none",
            Named::Done => "done",
            Named::Pending => "pending",
        }
    }
}

/// The address of this host that others reach: the one it uses towards the DNS server.
fn own_address(config: &DnsConfig) -> Option<IpAddr> {
    let any = if config.server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    // Connecting a datagram socket sends nothing; it only picks the route.
    socket.connect(config.server).ok()?;
    socket.local_addr().ok().map(|a| a.ip())
}

fn entry(record: &Record, config: &DnsConfig) -> Option<Entry> {
    use crate::base::spec::NetMode;
    let addr = match record.spec.net.mode {
        NetMode::Lan(_) => record.ip?,
        NetMode::Nat | NetMode::Host => own_address(config)?,
        NetMode::None => return None,
    };
    let ports = record.spec.net.publish.iter().filter(|p| !p.udp).map(|p| p.host_port).collect();
    Some(Entry {
        id: record.spec.id.clone(),
        name: record.spec.name.to_string(),
        generation: record.generation,
        addr,
        ports,
    })
}

/// Tries once to make the pod's entry stand.
///
/// # Errors
/// The configuration is wrong, or the server refuses for good.
pub fn publish_once(store: &Store, record: &Record) -> Result<Named, Failure> {
    let Some(config) = config::load(&store.places.etc)? else { return Ok(Named::None) };
    let Some(entry) = entry(record, &config) else { return Ok(Named::None) };
    match Updater::new(&config)?.publish(&entry) {
        Ok(()) => Ok(Named::Done),
        Err(e) if e.passing() => Ok(Named::Pending),
        Err(e) => Err(e.into()),
    }
}

/// Follows what the pod's record says until the server agrees: published while it runs here, withdrawn when it has
/// ended here, nothing when it moved on (its new host speaks then). Run in a process of its own.
///
/// # Errors
/// As [`publish_once`].
pub fn follow(store: &Store, id: &PodId, ended: Option<Record>) -> Result<(), Failure> {
    let Some(config) = config::load(&store.places.etc)? else { return Ok(()) };
    let updater = Updater::new(&config)?;
    let start = Instant::now();
    let mut pause = AGAIN.0;
    while start.elapsed() < GIVE_UP && store.places.var.exists() {
        // Looked up each time: the pod may have moved on or come back meanwhile.
        let record = store.get(id)?.or_else(|| ended.clone());
        let Some(record) = record else { return Ok(()) };
        let Some(entry) = entry(&record, &config) else { return Ok(()) };
        let done = match record.status {
            Status::Running | Status::Paused => updater.publish(&entry),
            Status::Exited | Status::Checkpointed | Status::Lost => updater.withdraw(&entry),
            Status::Moved | Status::Incoming | Status::InDoubt => return Ok(()),
        };
        match done {
            Ok(()) => return Ok(()),
            Err(e) if e.passing() => std::thread::sleep(pause),
            Err(e) => return Err(e.into()),
        }
        pause = (pause * 2).min(AGAIN.1);
    }
    Ok(())
}
