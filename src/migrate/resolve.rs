//! What became of a commit whose answer was lost: the target's record is asked, and the pod's monitor told.

use super::facts;
use super::source::{ANSWER, greet, out_of_turn};
use crate::base::{Decision, Failure, Kind, PodId};
use crate::pod::client::Client;
use crate::pod::moving;
use crate::pod::proto::Event;
use crate::pod::store::{self, Status, Store};
use crate::wire::channel::Channel;
use crate::wire::hosts::Hosts;
use crate::wire::identity::Identity;
use crate::wire::message::Message;
use std::time::{Duration, Instant};

/// Asks the target of the pod's written commit and settles with the pod's monitor.
///
/// # Errors
/// There is no such commit, or the target does not answer.
pub fn ask(store: &Store, id: &PodId) -> Result<(), Failure> {
    let none = || Failure::new(Kind::NoSuchPod, id.as_str(), "no move of it is in doubt here");
    let record = store.get(id)?.ok_or_else(none)?;
    let mark = record.moving.clone().ok_or_else(none)?;
    let me = Identity::load(&store.places.key())?;
    let host = Hosts::new(&store.places.hosts()).find(&mark.to)?;
    let mut channel = Channel::connect(&me, &host)?;
    let ours =
        facts::hello().map_err(|e| Failure::new(Kind::Failed, "host", crate::kernel::errno_text(&e)))?;
    greet(&mut channel, &ours)?;
    channel.message(&Message::Query { move_id: mark.move_id, pod: id.clone() })?;
    let decision = match channel.expect(ANSWER)? {
        Message::Decided(decision) => decision,
        other => return Err(out_of_turn(&channel, &other)),
    };
    settle(store, id, decision)
}

/// Tells the pod's monitor what the record says.
///
/// # Errors
/// The monitor is gone.
pub fn settle(store: &Store, id: &PodId, decision: Decision) -> Result<(), Failure> {
    let record = store.get(id)?.ok_or_else(|| Failure::new(Kind::NoSuchPod, id.as_str(), "no such pod"))?;
    if let Ok(mut client) = Client::connect(store, &record) {
        return client.moving(moving::Request::Settle(decision)).map(|_| ());
    }
    // The host has restarted, or the monitor was killed: then its copy lies frozen, and nobody will ever thaw it.
    crate::pod::monitor::sweep_dead(store, &record)?;
    let (status, moved_to) = match decision {
        Decision::Committed => (Status::Moved, record.moved_to.clone()),
        Decision::Aborted => (Status::Lost, None),
    };
    Ok(store.save(&store::Record { status, moved_to, moving: None, ..record })?)
}

/// Waits until the monitor knows what became of the commit, at most `limit`. `None`: still in doubt.
pub(super) fn wait(store: &Store, id: &PodId, limit: Duration) -> Option<Decision> {
    let until = Instant::now() + limit;
    let verdict = |status: Status| match status {
        Status::Moved => Some(Decision::Committed),
        Status::Running | Status::Paused => Some(Decision::Aborted),
        _ => None,
    };
    let record = store.get(id).ok()??;
    let mut client = match Client::connect(store, &record) {
        Ok(client) => client,
        Err(_) => return verdict(store.get(id).ok()??.status),
    };
    client.watch(false).ok()?;
    while Instant::now() < until {
        match client.next(Some(until)) {
            Ok(Some(Event::State(status))) => {
                if let Some(decision) = verdict(status) {
                    return Some(decision);
                }
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    verdict(store.get(id).ok()??.status)
}
