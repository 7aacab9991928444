//! The zone: lookups by hickory's in-memory store, updates under one lock (authorise, replay check, prerequisites,
//! change, journal), so that of two racing compare-and-swaps exactly one wins.
//!
//! hickory's own SQLite store checks prerequisites outside the change, accepts replays within the fudge window and
//! lets `delete apex ANY` remove SOA and NS; hence this handler around it, with no journal of its own.

use super::Error;
use super::journal::Journal;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::tsig::TsigError;
use hickory_proto::rr::rdata::{A, NS, SOA};
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType, TSigResponseContext, TSigner};
use hickory_server::dnssec::NxProofKind;
use hickory_server::net::runtime::TokioRuntimeProvider;
use hickory_server::server::{Request, RequestInfo};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::store::sqlite::SqliteZoneHandler;
use hickory_server::zone_handler::{
    AuthLookup, AxfrPolicy, LookupControlFlow, LookupOptions, Nsec3QueryInfo, UpdateRequest, ZoneHandler,
    ZoneType,
};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use tokio::sync::Mutex;

/// TTL of SOA, NS and the server's own address, seconds.
const TTL: u32 = 300;

type Inner = SqliteZoneHandler<TokioRuntimeProvider>;
type Updated = (Result<bool, ResponseCode>, Option<TSigResponseContext>);

/// A zone that pods' hosts may update.
pub struct Zone {
    inner: Inner,
    origin: Name,
    key: TSigner,
    journal: Journal,
    /// Signatures seen, with the time after which they are too old to be accepted anyway.
    seen: Mutex<HashMap<Vec<u8>, u64>>,
}

impl Zone {
    /// The zone as its journal has it; a new one gets SOA, NS and, if `addr` is given, the name server's address.
    pub fn open(
        origin: &Name,
        key: TSigner,
        journal: Journal,
        addr: Option<Ipv4Addr>,
    ) -> Result<Self, Error> {
        let mut memory =
            InMemoryZoneHandler::empty(origin.clone(), ZoneType::Primary, AxfrPolicy::Deny, None);
        let mut records = journal.load()?;
        if records.is_empty() {
            records = seed(origin, addr)?;
            journal.store(records.iter())?;
        }
        let serial = records.iter().find_map(|r| match &r.data {
            RData::SOA(soa) => Some(soa.serial),
            _ => None,
        });
        for record in records {
            memory.upsert_mut(record, serial.unwrap_or(1));
        }
        let inner = SqliteZoneHandler::new(memory, AxfrPolicy::Deny, true, false);
        Ok(Self { inner, origin: origin.clone(), key, journal, seen: Mutex::default() })
    }

    /// Who signed, and is it fresh? `Err` carries the answer.
    fn authorise(&self, request: &Request, now: u64) -> Result<(Vec<u8>, u64), Updated> {
        let refused = |code, context| Err((Err(code), context));
        let Some(tsig) = request.signature() else { return refused(ResponseCode::Refused, None) };
        if tsig.name != *self.key.signer_name() {
            let context = TSigResponseContext::unknown_key(request.id(), now, tsig.name.clone());
            return refused(ResponseCode::NotAuth, Some(context));
        }
        let Ok((mac, time, _)) = self.key.verify_message_byte(request.as_slice(), None, true) else {
            let context = TSigResponseContext::bad_signature(request.id(), now, self.key.clone());
            return refused(ResponseCode::NotAuth, Some(context));
        };
        // Our own fudge counts, not the caller's.
        if time.abs_diff(now) > u64::from(super::key::FUDGE) {
            let context = self.context(request, now, Some(TsigError::BadTime));
            return refused(ResponseCode::NotAuth, context);
        }
        Ok((mac, time + u64::from(super::key::FUDGE)))
    }

    fn context(&self, request: &Request, now: u64, error: Option<TsigError>) -> Option<TSigResponseContext> {
        let mac = request.signature()?.data.mac.clone();
        Some(TSigResponseContext::new(request.id(), now, self.key.clone(), mac, error))
    }

    /// Names under the zone only, and neither its SOA nor its NS, whatever class and type say.
    fn allowed(&self, record: &Record) -> bool {
        let guarded = matches!(record.record_type(), RecordType::SOA | RecordType::NS);
        self.origin.zone_of(&record.name) && record.name != self.origin && !guarded
    }

    async fn change(&self, request: &Request) -> Result<bool, ResponseCode> {
        if !request.updates().iter().all(|r| self.allowed(r)) {
            return Err(ResponseCode::Refused);
        }
        self.inner.verify_prerequisites(request.prerequisites()).await?;
        self.inner.pre_scan(request.updates()).await?;
        let before: Vec<Record> = self.all().await;
        let changed = self.inner.update_records(request.updates(), true).await?;
        if changed {
            let after = self.all().await;
            if let Err(error) = self.journal.store(after.iter()) {
                tracing::error!(%error, "update taken back");
                self.put_back(before).await;
                return Err(ResponseCode::ServFail);
            }
        }
        Ok(changed)
    }

    async fn all(&self) -> Vec<Record> {
        let sets = self.inner.records().await;
        sets.values().flat_map(|set| set.records_without_rrsigs().cloned().collect::<Vec<_>>()).collect()
    }

    async fn put_back(&self, records: Vec<Record>) {
        self.inner.records_mut().await.clear();
        let serial = records.iter().find_map(|r| match &r.data {
            RData::SOA(soa) => Some(soa.serial),
            _ => None,
        });
        for record in records {
            self.inner.upsert(record, serial.unwrap_or(1)).await;
        }
    }
}

fn seed(origin: &Name, addr: Option<Ipv4Addr>) -> Result<Vec<Record>, Error> {
    let name = |label: &str| {
        origin
            .prepend_label(label)
            .map_err(|e| Error::Invalid { object: origin.to_string(), reason: e.to_string() })
    };
    let ns = name("ns")?;
    let soa = SOA::new(ns.clone(), name("hostmaster")?, 1, 3600, 600, 86_400, 5);
    let mut records = vec![
        Record::from_rdata(origin.clone(), TTL, RData::SOA(soa)),
        Record::from_rdata(origin.clone(), TTL, RData::NS(NS(ns.clone()))),
    ];
    records.extend(addr.map(|a| Record::from_rdata(ns, TTL, RData::A(A(a)))));
    Ok(records)
}

#[async_trait::async_trait]
impl ZoneHandler for Zone {
    fn zone_type(&self) -> ZoneType {
        ZoneType::Primary
    }
    fn axfr_policy(&self) -> AxfrPolicy {
        AxfrPolicy::Deny
    }
    async fn update(&self, request: &Request, now: u64) -> Updated {
        let (mac, until) = match self.authorise(request, now) {
            Ok(ok) => ok,
            Err(answer) => return answer,
        };
        let context = self.context(request, now, None);
        let mut seen = self.seen.lock().await;
        seen.retain(|_, until| *until >= now);
        if seen.insert(mac, until).is_some() {
            return (Err(ResponseCode::Refused), context);
        }
        // `seen` stays locked: it is also the lock that makes check and change one.
        (self.change(request).await, context)
    }
    fn origin(&self) -> &LowerName {
        self.inner.origin()
    }
    async fn lookup(
        &self,
        name: &LowerName,
        rtype: RecordType,
        info: Option<&RequestInfo<'_>>,
        options: LookupOptions,
    ) -> LookupControlFlow<AuthLookup> {
        self.inner.lookup(name, rtype, info, options).await
    }
    async fn search(
        &self,
        request: &Request,
        options: LookupOptions,
    ) -> (LookupControlFlow<AuthLookup>, Option<TSigResponseContext>) {
        self.inner.search(request, options).await
    }
    async fn nsec_records(&self, name: &LowerName, options: LookupOptions) -> LookupControlFlow<AuthLookup> {
        self.inner.nsec_records(name, options).await
    }
    async fn nsec3_records(
        &self,
        info: Nsec3QueryInfo<'_>,
        options: LookupOptions,
    ) -> LookupControlFlow<AuthLookup> {
        self.inner.nsec3_records(info, options).await
    }
    fn nx_proof_kind(&self) -> Option<&NxProofKind> {
        None
    }
}
