//! What a mover asks of a pod's monitor, and what the monitor does about it.
//!
//! The monitor is the one that stays when a mover dies: it watches the mover's connection ([`closed`]), and before
//! the commit point gives the pod back by itself, after it carries the move on.

use super::monitor::{ConnId, Monitor};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// What a mover asks.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Request {}

/// The monitor's answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Reply {}

/// A mover's request; whoever handles it answers by [`Monitor::reply`].
pub fn handle(_monitor: &mut Monitor, _conn: ConnId, request: Request, _fds: Vec<OwnedFd>) {
    match request {}
}

/// A connection was closed: if it was the mover's, nobody else will end what it began.
pub fn closed(_monitor: &mut Monitor, _conn: ConnId) {}

/// After every wake-up of the monitor (something happened, or the time of [`Monitor::wake_at`] came).
pub fn tick(_monitor: &mut Monitor) {}
