//! What a move to a host would meet: connection, protocol, kernel, CPU, clocks, memory, and what its own probes find.

use super::facts;
use super::source::{ANSWER, meet, out_of_turn};
use crate::base::{Blocker, Failure, Kind};
use crate::kernel::features::Finding;
use crate::policy::hosts::Host;
use crate::wire::channel::Channel;
use crate::wire::hello::{self, Hello};
use crate::wire::identity::Identity;
use crate::wire::message::Message;
use std::time::{Duration, Instant};

/// What was seen of a host.
#[derive(Debug)]
pub struct Seen {
    /// How long it took to connect and to trust each other.
    pub connected: Duration,
    /// This host's facts.
    pub ours: Hello,
    /// That host's facts.
    pub theirs: Hello,
    /// Its clock minus ours, nanoseconds, known to about half the time of the answer.
    pub ahead_ns: i64,
    /// What of this host a pod may use and that one lacks.
    pub blockers: Vec<Blocker>,
    /// What was tried there.
    pub found: Vec<Finding>,
}

/// Looks at a host. Nothing is changed there.
///
/// # Errors
/// It cannot be reached, is not trusted or does not trust us, or speaks another protocol.
pub fn look(me: &Identity, host: &Host) -> Result<Seen, Failure> {
    let start = Instant::now();
    let mut channel = Channel::connect(me, host)?;
    let connected = start.elapsed();
    let ours =
        facts::hello().map_err(|e| Failure::new(Kind::Failed, "host", crate::kernel::errno_text(&e)))?;
    let theirs = meet(&mut channel, &ours)?;
    // Its worker wrote the time just before it sent it.
    let ahead_ns = theirs.realtime_ns.saturating_sub(facts::realtime_ns());
    let blockers = hello::blockers(&ours, &theirs, None);
    channel.message(&Message::Check)?;
    let found = match channel.expect(ANSWER)? {
        Message::Checked(found) => found,
        other => return Err(out_of_turn(&channel, &other)),
    };
    Ok(Seen { connected, ours, theirs: *theirs, ahead_ns, blockers, found })
}
