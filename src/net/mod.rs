//! The pod’s network: links, NAT and published ports, the hold, capture and replay, announcements.
//!
//! "The host" here is always the network namespace of the calling thread, so several hosts fit on one machine.
//! The pod's own namespace is given as a descriptor; it is entered only on short-lived threads of our own.
//!
//! # Shapes
//!
//! - `lan` on a bridge: a veth pair, host side a port of the bridge, pod side `eth0`.
//! - `lan` on a plain link: a macvlan (bridge mode) as `eth0`.
//! - `nat`: a routed veth. Inside every pod the address is the same ([`INSIDE`] behind [`GATEWAY`]). On the host each
//!   pod has a *transit* address of its own; a stateless netdev table on the host side of the veth swaps one for the
//!   other in both directions, so the rest of the host (routes, conntrack, masquerade, DNAT of published ports) only ever
//!   sees addresses that differ, and the pod's namespace has no NAT state at all.
//! - `host`, `none`: nothing is made (`none`: `lo` goes up).
//!
//! # In a move
//!
//! Source: before the freeze [`Hold::open`], [`Capture::open`]; at the freeze [`Capture::start`], [`Hold::engage`],
//! [`Capture::since`]; then [`Capture::drain`] up to the commit, frames go along. Given back: [`Hold::lift`]. Moved away:
//! [`detach`], never a lift. Target: [`attach`] held, [`Hold::open`], [`Replayer::open`] ahead; at activation [`release`],
//! [`Hold::lift`], [`Replayer::send`], [`announce`]: all of it a few hundred microseconds. Only afterwards drop these
//! hands: closing their sockets waits for the kernel, 10 to 20 ms each, as [`detach`] waits for the link to go (15 to 50).
//! They and a macvlan's [`Link`] keep the pod's namespace alive.
//!
//! # Tried and dropped
//!
//! - One inside address for all by conntrack zones and marks on the host: needs policy routing per pod and keeps state
//!   for both halves of the swap.
//! - NAT inside the pod's namespace: its conntrack entries would be one more thing to carry in a move.
//! - A hold that stays in place and only changes its policy: making the table takes 40 to 200 µs, deleting it as much.

mod announce;
mod arp;
mod capture;
mod error;
mod hold;
mod lan;
mod link;
mod nat;
mod plan;
mod ports;
mod probe;
mod rules;
#[cfg(test)]
mod tests;

pub use announce::{Announcer, REPEATS, announce};
pub use capture::{Capture, Frame, MAX_BYTES, MAX_FRAMES, Replayed, Replayer, replay};
pub use error::Error;
pub use hold::{Engaged, Hold};
pub use link::{Link, Shape, attach, detach, release, sweep};
pub use nat::{GATEWAY, INSIDE};
pub use plan::{mac_for, plan};
pub use ports::{PublishedPort, port_free};
pub use probe::{Answer, Probe, address_answers};

/// Name of the pod's link inside.
pub const POD_IF: &str = "eth0";

/// Index of the pod's link inside: the same on every host, since programs keep it (IP_PKTINFO, scope ids). Clear of the
/// fallback tunnel devices that some kernels put into every new namespace.
pub const POD_IFINDEX: u32 = 64;
