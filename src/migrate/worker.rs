//! The target's end of a conversation: one worker process serves one caller.

use super::facts;
use super::names::{self, Named};
use super::source::greet;
use super::target::{Came, Request, Target};
use crate::base::{Decision, Failure, Kind, MoveId, PodId};
use crate::image::check;
use crate::image::record::Record;
use crate::kernel::descr;
use crate::pod::client::Client;
use crate::pod::decisions::Decisions;
use crate::pod::moving;
use crate::pod::store::Store;
use crate::wire::channel::{Channel, Incoming};
use crate::wire::message::Message;
use std::time::{Duration, Instant};

/// An activation that takes longer is a line in the agent's log.
const SLOW: Duration = Duration::from_secs(1);
/// How long a caller may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// Descriptors there is room for from the start.
const ROOM: u64 = 32 << 10;

/// Serves one caller until it closes. What it asked for and could not have was told to it.
pub fn serve(store: &Store, mut channel: Channel) -> Result<(), Failure> {
    let ours =
        facts::hello().map_err(|e| Failure::new(Kind::Failed, "host", crate::kernel::errno_text(&e)))?;
    greet(&mut channel, &ours)?;
    let mut name = String::new();
    let first = channel.expect(PATIENCE)?;
    let came = Came::now();
    let mut served = match first {
        Message::Reserve { move_id, manifest, publish, takeover, deadline_ms, dry_run } => {
            name = manifest.spec.name.to_string();
            let request = Request { move_id, manifest: *manifest, publish, takeover, deadline_ms, came };
            match receive(store, &mut channel, request, dry_run) {
                // The source knows already.
                Ok(Some(failure)) => return Err(failure),
                other => other.map(drop),
            }
        }
        Message::Query { move_id, pod } => answer(store, &mut channel, &move_id, &pod),
        Message::Check => Ok(channel.message(&Message::Checked(crate::kernel::features::all()))?),
        other => {
            Err(crate::wire::Error::Protocol { host: channel.peer.clone(), got: other.name().into() }.into())
        }
    };
    if let Err(failure) = &mut served {
        if failure.object.is_empty() {
            failure.object.clone_from(&name);
        }
        // The reason travels before the connection closes.
        let _ = channel.message(&Message::Refused(failure.clone()));
    }
    served
}

/// Takes a pod. Whatever fails before the commit takes down what was built (dropping the target does), but not before the
/// source knows: its copy stands still meanwhile. Such a failure, once told, is returned. A rehearsal is the same, and
/// never gets to the end.
fn receive(
    store: &Store,
    channel: &mut Channel,
    request: Request,
    rehearsal: bool,
) -> Result<Option<Failure>, Failure> {
    descr::make_room(ROOM);
    let mut target = Target::reserve(store, request)?;
    match converse(channel, &mut target, rehearsal) {
        Ok(true) => activate(store, channel, target),
        Ok(false) => {
            drop(target);
            let _ = channel.message(&Message::Aborted);
            Ok(None)
        }
        Err(failure) => {
            let _ = channel.message(&Message::Refused(failure.clone()));
            drop(target);
            Ok(Some(failure))
        }
    }
}

/// What the source says up to its `Commit` (`true`) or `Abort`.
fn converse(channel: &mut Channel, target: &mut Target<'_>, rehearsal: bool) -> Result<bool, Failure> {
    channel.message(&Message::Reserved)?;
    loop {
        let Some(incoming) = channel.next()? else {
            return Err(Failure::new(
                Kind::Unreachable,
                channel.peer.clone(),
                "the source went away before the commit",
            ));
        };
        match incoming {
            Incoming::Pages(body) => target.pages(body)?,
            Incoming::Record(record) => {
                if let Some((kept, lost)) = take_record(target, *record)? {
                    channel.message(&Message::Built { kept, lost })?;
                }
            }
            Incoming::Message(message) => match *message {
                // Frames are taken one after the other: what came before is in place.
                Message::Sync => channel.message(&Message::Synced)?,
                Message::Digest(digests) => {
                    target.verify(&digests)?;
                    channel.message(&Message::Verified)?;
                }
                Message::Seal if !rehearsal => {
                    let stages = target.prepare()?;
                    channel.message(&Message::Prepared { stages })?;
                }
                Message::Commit if !rehearsal => return Ok(true),
                Message::Abort => return Ok(false),
                other => {
                    let host = channel.peer.clone();
                    return Err(crate::wire::Error::Protocol { host, got: other.name().into() }.into());
                }
            },
        }
    }
}

/// Whether what was filled before a change of the tree is still in place, and where it is not all the same.
pub(super) type Kept = (bool, Vec<(i32, u64, u64)>);

/// Applies a record. After a tree, which is to be confirmed: whether what was filled before is still in place.
pub(super) fn take_record(target: &mut Target<'_>, record: Record) -> Result<Option<Kept>, Failure> {
    let damaged = |e: crate::image::Error| e.failure("the stream");
    match record {
        Record::Tree(tree) => {
            check::tree(&tree).map_err(damaged)?;
            target.tree(*tree).map(Some)
        }
        Record::State(state) => target.state(*state).map(|()| None),
        Record::Frames(frames) => {
            target.frames(frames);
            Ok(None)
        }
        Record::Log(log) => {
            target.log(log);
            Ok(None)
        }
        Record::Frozen => {
            target.hurry();
            Ok(None)
        }
        Record::End { .. } => Ok(None),
        Record::Manifest(_) => Err(damaged(crate::image::Error::Damaged("a second manifest".into()))),
    }
}

/// The source committed. From here on the pod is this host's whatever becomes of the caller or of us.
fn activate(store: &Store, channel: &mut Channel, target: Target<'_>) -> Result<Option<Failure>, Failure> {
    let (start, move_id) = (Instant::now(), target.move_id().clone());
    let mut owned = match target.own() {
        Ok(owned) => owned,
        Err(failure) => {
            // The record decides, whatever became of the monitor. No answer is for the source to ask again.
            if let Ok(stands) = Decisions::new(&store.places.var).record(&move_id, Decision::Aborted) {
                let _ = channel.message(&Message::Decided(stands));
            }
            return Ok(Some(failure));
        }
    };
    if start.elapsed() >= SLOW {
        tracing::warn!(took = ?start.elapsed(), "the activation was slow: see the pod's monitor.log");
    }
    let stages = std::mem::take(&mut owned.stages);
    let publish = owned.record.spec.net.publish.clone();
    channel.message(&Message::Activated { stages, dns: "none".into(), publish })?;
    let named = names::publish_once(store, &owned.record).unwrap_or(Named::Pending);
    let _ = channel.message(&Message::Named(named.as_str().into()));
    // Frames that still arrived at the source.
    while let Ok(Some(incoming)) = channel.next() {
        if let Incoming::Record(record) = incoming
            && let Record::Frames(frames) = *record
        {
            owned.late_frames(frames, store);
        }
    }
    Ok(None)
}

/// What became of an attempt? Undecided ones are aborted by the question: whoever asks has committed and lost
/// contact, or will never commit.
fn answer(store: &Store, channel: &mut Channel, move_id: &MoveId, pod: &PodId) -> Result<(), Failure> {
    let failed = |e: std::io::Error| {
        Failure::new(
            Kind::Failed,
            move_id.as_str(),
            format!("the record cannot be read: {}", crate::kernel::errno_text(&e)),
        )
    };
    let decisions = Decisions::new(&store.places.var);
    let decision = match decisions.read(move_id).map_err(failed)? {
        Some(decision) => decision,
        None => ask_monitor(store, move_id, pod)
            .map_or_else(|| decisions.record(move_id, Decision::Aborted), Ok)
            .map_err(failed)?,
    };
    channel.message(&Message::Decided(decision))?;
    Ok(())
}

/// The monitor of a pod that is arriving decides under its own lock; nobody there: nobody will ever commit.
fn ask_monitor(store: &Store, move_id: &MoveId, pod: &PodId) -> Option<Decision> {
    let record = store.get(pod).ok()??;
    let mut client = Client::connect(store, &record).ok()?;
    match client.moving(moving::Request::Query(move_id.clone())).ok()? {
        moving::Reply::Decided(decision) => Some(decision),
        _ => None,
    }
}
