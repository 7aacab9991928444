//! Telling the lan where the pod is now: gratuitous ARP in both forms, unsolicited neighbour advertisement.

use super::arp;
use super::link::inside;
use super::{Error, Link, POD_IF, Shape};
use crate::kernel::packet::{Options, Packet};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// When an announcement is repeated, after the first.
pub const REPEATS: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(250), Duration::from_millis(1000)];

/// The announcement of one pod's address, ready to send from its own link; nothing at all but for `lan`.
pub struct Announcer {
    packet: Option<Packet>,
    frames: Vec<Vec<u8>>,
}

impl Announcer {
    /// Prepares it. `netns` is the pod's namespace.
    ///
    /// # Errors
    /// The pod has no `eth0`.
    pub fn open(link: &Link, netns: BorrowedFd<'_>) -> Result<Self, Error> {
        let (Shape::Port { .. } | Shape::Macvlan { .. }, Some(ip), Some(mac)) =
            (&link.shape, link.spec.ip, link.spec.mac)
        else {
            return Ok(Self { packet: None, frames: Vec::new() });
        };
        let packet = inside(netns, || {
            let eth0 = super::lan::look_up(&mut super::link::open_route()?, POD_IF)?;
            Packet::open(eth0.index, Options::default())
                .map_err(Error::io(format!("open a packet socket on {POD_IF}")))
        })?;
        Ok(Self { packet: Some(packet), frames: arp::announcements(ip.addr, mac) })
    }

    /// Announces once; the hold must be lifted.
    ///
    /// # Errors
    /// The link is down, away or held.
    pub fn send(&self) -> Result<(), Error> {
        let Some(packet) = &self.packet else { return Ok(()) };
        for frame in &self.frames {
            packet.send(frame).map_err(Error::io(format!("announce the pod on {POD_IF}")))?;
        }
        Ok(())
    }

    /// Announces now, and again at [`REPEATS`] from a thread of its own, since a single frame may be lost. That thread keeps
    /// the pod's namespace for the last of these times at most, and ends early when the link goes away.
    ///
    /// # Errors
    /// As [`Announcer::send`].
    pub fn send_repeatedly(self) -> Result<(), Error> {
        self.send()?;
        if self.packet.is_none() {
            return Ok(());
        }
        let repeat = move || {
            let mut before = Duration::ZERO;
            for at in REPEATS {
                std::thread::sleep(at.saturating_sub(before));
                before = at;
                if self.send().is_err() {
                    return;
                }
            }
        };
        let started = std::thread::Builder::new().name("announce".to_owned()).spawn(repeat);
        started.map(drop).map_err(Error::io("start a thread"))
    }
}

/// Opens an [`Announcer`] and has it [`Announcer::send_repeatedly`].
///
/// # Errors
/// As these.
pub fn announce(link: &Link, netns: BorrowedFd<'_>) -> Result<(), Error> {
    Announcer::open(link, netns)?.send_repeatedly()
}
