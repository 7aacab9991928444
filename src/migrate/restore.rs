//! `restore`: a migration whose peer was a file. The same target, fed from an image; the commit is local.

use super::clone;
use super::report::{Outcome, Report};
use super::target::{Came, Owned, Request, Target};
use super::worker::take_record;
use crate::base::spec::{Cidr, NetMode, Publish};
use crate::base::{Failure, Kind, MoveId, PodId, PodName};
use crate::image::file::{ImageReader, Item};
use crate::image::record::{Manifest, Record};
use crate::net;
use crate::pod::store::{Status, Store};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Time for the building of a pod from a file, after which its monitor gives up.
const DEADLINE: Duration = Duration::from_secs(3600);
/// How long a living original may take to answer for its address.
const ADDRESS: Duration = Duration::from_millis(300);

/// What a user asked.
#[derive(Clone, Debug, Default)]
pub struct RestoreOrder {
    /// The image; `None` is standard input.
    pub file: Option<PathBuf>,
    /// Name to come back under.
    pub name: Option<PodName>,
    /// As a new pod.
    pub clone: bool,
    /// The original is dead.
    pub takeover: bool,
    /// Ports.
    pub publish: Vec<Publish>,
    /// Network.
    pub net: Option<NetMode>,
    /// Address.
    pub ip: Option<Cidr>,
    /// Gateway.
    pub gateway: Option<IpAddr>,
    /// Host name inside.
    pub hostname: Option<String>,
}

impl RestoreOrder {
    /// As reports name the image.
    pub fn source(&self) -> String {
        self.file.as_ref().map_or_else(|| "-".to_owned(), |f| f.display().to_string())
    }
    /// A new pod, not the same one coming back.
    fn is_clone(&self, manifest: &Manifest) -> bool {
        self.clone || self.name.as_ref().is_some_and(|n| *n != manifest.spec.name)
    }
}

/// Reads an image and brings its pod to life here. A file is checked as a whole before anything is made of it.
///
/// # Errors
/// `Failed` for a damaged image, `Refused` when the pod lives here or its address answers, `Taken` for its name or
/// ports; nothing runs and nothing is left behind.
pub fn run(store: &Store, order: &RestoreOrder, report: &mut Report) -> Result<Owned, Failure> {
    bring_back(store, order, report).map_err(|f| {
        let object = if f.object.is_empty() { report.pod.clone() } else { f.object };
        Failure { object, ..f }
    })
}

fn bring_back(store: &Store, order: &RestoreOrder, report: &mut Report) -> Result<Owned, Failure> {
    let name = order.source();
    let failed = |e: crate::image::Error| e.failure(&name);
    let mut reader = match &order.file {
        Some(path) => {
            crate::image::file::verify(path).map_err(failed)?;
            ImageReader::open(path).map_err(failed)?
        }
        None => ImageReader::new(Box::new(std::io::stdin())),
    };
    let manifest = first(&mut reader, &name)?;
    report.pod = manifest.spec.name.to_string();
    report.id = manifest.spec.id.clone();
    let (clone, before) = (order.is_clone(&manifest), manifest.spec.net.ip.map(|c| c.addr));
    let request = request(store, order, manifest)?;
    let after = request.manifest.spec.net.ip.map(|c| c.addr);
    report.pod = request.manifest.spec.name.to_string();
    report.id = request.manifest.spec.id.clone();
    let mut target = Target::reserve(store, request)?;
    let mut ended = false;
    while let Some(item) = reader.next().map_err(failed)? {
        match item {
            Item::Pages(body) => target.pages(body)?,
            Item::Record(mut record) => {
                if let Record::State(state) = &mut *record
                    && clone
                {
                    report.connections.lost = clone::connections(state, before, after);
                }
                ended |= matches!(*record, Record::End { .. });
                // Log and frames of the original are not the clone's.
                if !(clone && matches!(*record, Record::Frames(_) | Record::Log(_))) {
                    take_record(&mut target, *record)?;
                }
            }
        }
    }
    if !ended {
        return Err(failed(crate::image::Error::Truncated("the image")));
    }
    report.add_stages(&target.prepare()?);
    let owned = target.own()?;
    report.add_stages(&owned.stages);
    report.warnings.clone_from(&owned.warnings);
    report.outcome = Outcome::Restored;
    Ok(owned)
}

fn first(reader: &mut ImageReader, name: &str) -> Result<Manifest, Failure> {
    match reader.next().map_err(|e| e.failure(name))? {
        Some(Item::Record(record)) => match *record {
            Record::Manifest(manifest) => Ok(*manifest),
            _ => Err(crate::image::Error::Damaged("it does not begin with a manifest".into()).failure(name)),
        },
        _ => Err(crate::image::Error::Truncated("the image").failure(name)),
    }
}

/// The manifest as it will be here, after the rules about what may come back.
fn request(store: &Store, order: &RestoreOrder, mut manifest: Manifest) -> Result<Request, Failure> {
    let clone = order.is_clone(&manifest);
    if clone {
        clone::identity(&mut manifest, order.name.as_ref())?;
        let lan = matches!(order.net.as_ref().unwrap_or(&manifest.spec.net.mode), NetMode::Lan(_));
        if lan && order.ip.is_none() {
            return Err(Failure::new(
                Kind::Usage,
                manifest.spec.name.as_str(),
                "a new pod on a lan needs its own address",
            )
            .remedy("give --ip ADDR/LEN"));
        }
    }
    let spec = &mut manifest.spec;
    if let Some(hostname) = &order.hostname {
        spec.hostname.clone_from(hostname);
    }
    if let Some(mode) = &order.net {
        spec.net.mode = mode.clone();
    }
    if order.ip.is_some() {
        (spec.net.ip, spec.net.gateway) = (order.ip, order.gateway);
    }
    let publish = (!order.publish.is_empty()).then(|| order.publish.clone());
    if !clone {
        alone(store, order, &manifest)?;
    }
    Ok(Request {
        move_id: MoveId::from_bits(super::source::random()),
        manifest,
        publish,
        takeover: order.takeover,
        deadline_ms: u64::try_from(DEADLINE.as_millis()).unwrap_or(u64::MAX),
        came: Came::now(),
    })
}

/// A restore is the same pod coming back: not while it lives, as far as that can be known here.
fn alone(store: &Store, order: &RestoreOrder, manifest: &Manifest) -> Result<(), Failure> {
    let spec = &manifest.spec;
    let refused = |message: String, remedy: &str| {
        Failure::new(Kind::Refused, spec.name.as_str(), message).remedy(remedy)
    };
    if let Some(record) = store.get(&spec.id)?
        && record.status.is_here()
    {
        return Err(refused(
            format!("it is here already ({})", record.status),
            "`--clone` makes a new pod of the image",
        ));
    }
    if manifest.leave_running && !order.takeover {
        let text = "the image was taken with --leave-running: the original may still run".to_owned();
        return Err(refused(text, "if it is dead for certain, say so with --takeover"));
    }
    if let Some(record) = store.get(&spec.id)?
        && record.status == Status::Moved
        && !order.takeover
    {
        let to = record.moved_to.unwrap_or_default();
        return Err(refused(
            format!("it moved to {to} after this image was taken"),
            "--takeover, if it is dead there",
        ));
    }
    match net::address_answers(&spec.net, ADDRESS)? {
        Some(answer) if !order.takeover => {
            let text =
                format!("its address is in use on the network ({answer:?}): it may live on another host");
            Err(refused(text, "stop it there first; --takeover, if that is another machine's mistake"))
        }
        _ => Ok(()),
    }
}

/// An id for reports of restores that failed before the image was read.
pub fn no_id() -> PodId {
    PodId::from_bits(0)
}
