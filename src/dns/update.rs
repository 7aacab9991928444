//! What a host says about a pod's name: signed updates over TCP, each fenced by the entry it replaces.
//!
//! TCP because an update must not be sent twice behind our back: a repeated UDP update whose first answer was lost
//! reports a failed prerequisite although it succeeded.

use super::config::DnsConfig;
use super::{Error, key, serve};
use crate::base::PodId;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, TSigner};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// TTL of a pod's records, seconds: how long a client may go on to the old place.
pub const TTL: u32 = 5;
/// How long a server may take.
const WAIT: Duration = Duration::from_secs(3);

/// What a pod's name says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The pod.
    pub id: PodId,
    /// Its name (the label under the zone).
    pub name: String,
    /// How many hosts it has had; a larger one wins.
    pub generation: u64,
    /// Where it is reached.
    pub addr: IpAddr,
    /// Published ports at `addr` (`_podmig._tcp` SRV records), TCP.
    pub ports: Vec<u16>,
}

/// A server to talk to.
pub struct Updater {
    config: DnsConfig,
    zone: Name,
    key: TSigner,
}

impl Updater {
    /// Reads the key.
    pub fn new(config: &DnsConfig) -> Result<Self, Error> {
        Ok(Self {
            zone: serve::zone_name(&config.zone)?,
            key: key::load(&config.key)?,
            config: config.clone(),
        })
    }

    fn name(&self, label: &str) -> Result<Name, Error> {
        let whole = self.zone.prepend_label(label);
        whole.map_err(|e| Error::Invalid { object: label.to_owned(), reason: e.to_string() })
    }

    /// Makes the entry stand, replacing an older one of the same pod.
    pub fn publish(&self, entry: &Entry) -> Result<(), Error> {
        self.swap(entry, true)
    }

    /// Takes the entry away if it is still this generation's.
    pub fn withdraw(&self, entry: &Entry) -> Result<(), Error> {
        self.swap(entry, false)
    }

    fn swap(&self, entry: &Entry, publish: bool) -> Result<(), Error> {
        let name = self.name(&entry.name)?;
        // A prerequisite that fails means someone else changed the entry since we looked: look again.
        for _ in 0..8 {
            let stands = self.fence(&name)?;
            if let Some(text) = &stands {
                match parse_fence(text) {
                    Some((id, generation)) if id == entry.id.as_str() => {
                        if generation > entry.generation {
                            return Err(Error::Late { name: name.to_ascii() });
                        }
                    }
                    _ if publish => {
                        return Err(Error::Taken { name: name.to_ascii(), owner: text.clone() });
                    }
                    _ => return Ok(()),
                }
            } else if !publish {
                return Ok(());
            }
            match self.send(self.message(&name, entry, stands.as_deref(), publish)?)? {
                ResponseCode::NoError => return Ok(()),
                ResponseCode::NXRRSet
                | ResponseCode::YXRRSet
                | ResponseCode::NXDomain
                | ResponseCode::YXDomain => {}
                code => return Err(self.refused(&name, code)),
            }
        }
        Err(self.refused(&name, ResponseCode::YXRRSet))
    }

    fn refused(&self, name: &Name, code: ResponseCode) -> Error {
        Error::Refused {
            server: self.config.server.to_string(),
            name: name.to_ascii(),
            code: code.to_string(),
        }
    }

    fn message(
        &self,
        name: &Name,
        entry: &Entry,
        stands: Option<&str>,
        publish: bool,
    ) -> Result<Message, Error> {
        let mut message = Message::new(random_id(), MessageType::Query, OpCode::Update);
        let mut zone = Query::query(self.zone.clone(), RecordType::SOA);
        zone.set_query_class(DNSClass::IN);
        message.add_query(zone);
        message.add_answer(match stands {
            Some(text) => with_class(Record::from_rdata(name.clone(), 0, txt(text)), DNSClass::IN),
            None => with_class(Record::update0(name.clone(), 0, RecordType::TXT), DNSClass::NONE),
        });
        let srv = name.prepend_label("_tcp").and_then(|n| n.prepend_label("_podmig"));
        let srv = srv.map_err(|e| Error::Invalid { object: entry.name.clone(), reason: e.to_string() })?;
        for owner in [name, &srv] {
            message
                .add_authority(with_class(Record::update0(owner.clone(), 0, RecordType::ANY), DNSClass::ANY));
        }
        if publish {
            let data = match entry.addr {
                IpAddr::V4(a) => RData::A(A(a)),
                IpAddr::V6(a) => RData::AAAA(AAAA(a)),
            };
            message.add_authority(Record::from_rdata(name.clone(), TTL, data));
            message.add_authority(Record::from_rdata(name.clone(), TTL, txt(&fence(entry))));
            for &port in &entry.ports {
                let data = RData::SRV(SRV::new(0, 0, port, name.clone()));
                message.add_authority(Record::from_rdata(srv.clone(), TTL, data));
            }
        }
        Ok(message)
    }

    /// The fence that stands now.
    fn fence(&self, name: &Name) -> Result<Option<String>, Error> {
        let mut message = Message::new(random_id(), MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::TXT));
        let answer = self.exchange(&message)?;
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => {}
            code => return Err(self.refused(name, code)),
        }
        Ok(answer.answers.iter().find_map(|r| match &r.data {
            RData::TXT(txt) if r.name == *name => Some(txt.to_string()),
            _ => None,
        }))
    }

    fn send(&self, mut message: Message) -> Result<ResponseCode, Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let invalid = |reason: String| Error::Invalid { object: "TSIG".into(), reason };
        message.finalize(&self.key, now).map_err(|e| invalid(e.to_string()))?;
        Ok(self.exchange(&message)?.metadata.response_code)
    }

    fn exchange(&self, message: &Message) -> Result<Message, Error> {
        let server = self.config.server;
        let unreachable = |source| Error::Unreachable { server: server.to_string(), source };
        let garbage =
            || unreachable(std::io::Error::new(std::io::ErrorKind::InvalidData, "not a DNS answer"));
        let bytes = message.to_vec().map_err(|_| garbage())?;
        let mut tcp = TcpStream::connect_timeout(&server, WAIT).map_err(unreachable)?;
        tcp.set_read_timeout(Some(WAIT))
            .and_then(|()| tcp.set_write_timeout(Some(WAIT)))
            .map_err(unreachable)?;
        let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        tcp.write_all(&framed).map_err(unreachable)?;
        let mut len = [0; 2];
        tcp.read_exact(&mut len).map_err(unreachable)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
        tcp.read_exact(&mut answer).map_err(unreachable)?;
        let answer = Message::from_vec(&answer).map_err(|_| garbage())?;
        if answer.metadata.id != message.metadata.id {
            return Err(garbage());
        }
        Ok(answer)
    }
}

fn with_class(mut record: Record, class: DNSClass) -> Record {
    record.dns_class = class;
    record
}

fn txt(text: &str) -> RData {
    RData::TXT(TXT::new(vec![text.to_owned()]))
}

fn fence(entry: &Entry) -> String {
    format!("podmig id={} gen={}", entry.id, entry.generation)
}

fn parse_fence(text: &str) -> Option<(&str, u64)> {
    let rest = text.strip_prefix("podmig id=")?;
    let (id, generation) = rest.split_once(" gen=")?;
    Some((id, generation.parse().ok()?))
}

fn random_id() -> u16 {
    let mut bytes = [0; 2];
    let _ = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    u16::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Output};
    use std::sync::mpsc;

    /// A server in a thread of its own on a free port, stopped when the test process ends.
    fn server(dir: &std::path::Path) -> DnsConfig {
        let (tx, rx) = mpsc::channel();
        let var = dir.to_owned();
        std::thread::spawn(move || {
            let listen = "127.0.0.1:0".parse().unwrap();
            let tell = tx.clone();
            let ended =
                serve::run(&var, "pods.test", listen, move |a, k| tell.send(Ok((a, k.to_owned()))).unwrap());
            if let Err(e) = ended {
                let _ = tx.send(Err(e.to_string()));
            }
        });
        let (server, key) = rx.recv().unwrap().unwrap();
        DnsConfig { server, zone: "pods.test".into(), key }
    }

    fn entry(generation: u64, last: u8) -> Entry {
        Entry {
            id: PodId::from_bits(7),
            name: "web".into(),
            generation,
            addr: IpAddr::from([10, 0, 0, last]),
            ports: vec![80],
        }
    }

    fn dig(config: &DnsConfig, args: &[&str]) -> String {
        let (ip, port) = (config.server.ip().to_string(), config.server.port().to_string());
        let out = Command::new("dig")
            .arg(format!("@{ip}"))
            .args(["-p", &port, "+short"])
            .args(args)
            .output()
            .unwrap();
        String::from_utf8(out.stdout).unwrap()
    }

    fn nsupdate(config: &DnsConfig, script: &str) -> Output {
        let text = format!(
            "server {} {}\nzone pods.test\n{script}\nsend\n",
            config.server.ip(),
            config.server.port()
        );
        let file = config.key.with_extension("nsupdate");
        std::fs::write(&file, text).unwrap();
        Command::new("nsupdate").arg("-k").arg(&config.key).arg(&file).output().unwrap()
    }

    #[test]
    fn an_entry_follows_its_pod_and_late_updates_lose() {
        let dir = tempfile::tempdir().unwrap();
        let config = server(dir.path());
        let updater = Updater::new(&config).unwrap();
        updater.publish(&entry(1, 1)).unwrap();
        assert_eq!(dig(&config, &["web.pods.test", "A"]), "10.0.0.1\n");
        updater.publish(&entry(2, 2)).unwrap();
        assert_eq!(dig(&config, &["web.pods.test", "A"]), "10.0.0.2\n");
        assert_eq!(dig(&config, &["+tcp", "_podmig._tcp.web.pods.test", "SRV"]), "0 0 80 web.pods.test.\n");
        assert!(matches!(updater.publish(&entry(1, 1)), Err(Error::Late { .. })));
        assert!(matches!(updater.withdraw(&entry(1, 1)), Err(Error::Late { .. })));
        let other = Entry { id: PodId::from_bits(8), ..entry(9, 9) };
        assert!(matches!(updater.publish(&other), Err(Error::Taken { .. })));
        assert_eq!(dig(&config, &["web.pods.test", "A"]), "10.0.0.2\n");
        updater.withdraw(&entry(2, 2)).unwrap();
        assert_eq!(dig(&config, &["web.pods.test", "A"]), "");
    }

    #[test]
    fn other_tools_work_and_the_apex_is_safe() {
        let dir = tempfile::tempdir().unwrap();
        let config = server(dir.path());
        let done = nsupdate(&config, "update add x.pods.test 60 A 10.1.1.1");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(dig(&config, &["x.pods.test", "A"]), "10.1.1.1\n");
        assert!(!nsupdate(&config, "update delete pods.test").status.success());
        assert!(dig(&config, &["pods.test", "SOA"]).contains("hostmaster"));
        assert!(
            !nsupdate(&config, "prereq yxrrset y.pods.test A\nupdate add x.pods.test 60 A 1.1.1.1")
                .status
                .success()
        );
    }

    #[test]
    fn of_racing_swaps_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let config = server(dir.path());
        for round in 0..20u64 {
            let wins: usize = std::thread::scope(|s| {
                let one = |n: u64| {
                    let config = &config;
                    s.spawn(move || {
                        let me =
                            Entry { id: PodId::from_bits(n), name: format!("r{round}"), ..entry(1, n as u8) };
                        Updater::new(config).unwrap().publish(&me).is_ok()
                    })
                };
                let all: Vec<_> = (1..=8).map(one).collect();
                all.into_iter().map(|t| usize::from(t.join().unwrap())).sum()
            });
            assert_eq!(wins, 1, "round {round}");
        }
    }

    #[test]
    fn records_survive_in_the_journal_and_replays_do_not_pass() {
        let dir = tempfile::tempdir().unwrap();
        let config = server(dir.path());
        let updater = Updater::new(&config).unwrap();
        let name = updater.name("web").unwrap();
        let mut old = updater.message(&name, &entry(1, 1), None, true).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        old.finalize(&updater.key, now).unwrap();
        assert_eq!(updater.exchange(&old).unwrap().metadata.response_code, ResponseCode::NoError);
        updater.withdraw(&entry(1, 1)).unwrap();
        assert_eq!(updater.exchange(&old).unwrap().metadata.response_code, ResponseCode::Refused);
        updater.publish(&entry(3, 3)).unwrap();
        // A second server over the same state directory is what a restart sees.
        let again = server(dir.path());
        assert_eq!(dig(&again, &["web.pods.test", "A"]), "10.0.0.3\n");
    }
}
