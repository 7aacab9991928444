//! Does somebody have this address already? ARP probe (RFC 5227) or neighbour solicitation, before a start or restore.

use super::capture::Neighbour;
use super::link::open_route;
use super::{Error, arp, lan};
use crate::base::spec::{NetMode, NetSpec};
use crate::kernel::packet::{Options, Packet};
use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Somebody answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The address asked for.
    pub addr: IpAddr,
    /// Who has it. The pod's own hardware address means: the same pod, running elsewhere.
    pub mac: [u8; 6],
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.mac;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Answer> for Error {
    fn from(answer: Answer) -> Self {
        Error::Answers { addr: answer.addr, mac: answer.to_string() }
    }
}

/// A question that is out on the lan; the answer can be fetched later, after other work.
pub struct Probe {
    packet: Packet,
    addr: IpAddr,
    question: Vec<u8>,
    asked: Instant,
    _from: Option<Neighbour>,
}

impl Probe {
    /// Asks who has the address of `spec`, from the host's side of the lan: the bridge itself, or a macvlan made beside the
    /// pods' own. None for a pod without an address of its own.
    ///
    /// # Errors
    /// The interface is not there or down.
    pub fn send(spec: &NetSpec) -> Result<Option<Self>, Error> {
        let (NetMode::Lan(on), Some(ip)) = (&spec.mode, spec.ip) else { return Ok(None) };
        let parent = lan::look_up(&mut open_route()?, on)?;
        let options = Options { incoming_only: true, all_multicast: true, ..Options::default() };
        let (packet, mac, from) = if parent.bridge {
            let packet = Packet::open(parent.index, options)
                .map_err(Error::io(format!("open a packet socket on {on}")))?;
            (packet, parent.mac.unwrap_or_default(), None)
        } else {
            let beside = Neighbour::beside(on)?;
            (beside.open(options)?, beside.mac, Some(beside))
        };
        packet.listen(arp::answer_protocol(ip.addr)).map_err(Error::io(format!("hear the lan on {on}")))?;
        let question = arp::question(ip.addr, mac);
        let this = Self { packet, addr: ip.addr, question, asked: Instant::now(), _from: from };
        this.ask()?;
        Ok(Some(this))
    }

    fn ask(&self) -> Result<(), Error> {
        self.packet.send(&self.question).map_err(Error::io(format!("ask the lan for {}", self.addr)))
    }

    /// The first answer within `patience` from when the question was sent; asks once more half way.
    ///
    /// # Errors
    /// The interface went away.
    pub fn answer(self, patience: Duration) -> Result<Option<Answer>, Error> {
        let mut buffer = [0u8; 2048];
        let mut again = Some(self.asked + patience / 2);
        let end = self.asked + patience;
        loop {
            let received = self.packet.recv(&mut buffer);
            match received.map_err(Error::io(format!("hear the lan about {}", self.addr)))? {
                Some(frame) => {
                    let bytes = &buffer[..frame.len.min(buffer.len())];
                    if let Some(mac) = arp::answer(bytes, self.addr) {
                        return Ok(Some(Answer { addr: self.addr, mac }));
                    }
                }
                None => {
                    let now = Instant::now();
                    if now >= end {
                        return Ok(None);
                    }
                    if again.is_some_and(|at| now >= at) {
                        again = None;
                        self.ask()?;
                    }
                    self.wait(again.unwrap_or(end).saturating_duration_since(now));
                }
            }
        }
    }

    fn wait(&self, time: Duration) {
        let mut fds = [nix::poll::PollFd::new(self.packet.as_fd(), nix::poll::PollFlags::POLLIN)];
        let millis = u16::try_from(time.as_millis() + 1).unwrap_or(u16::MAX);
        // Interrupted or failed: the caller's loop looks again.
        let _ = nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(millis));
    }
}

/// Asks and waits: who has the address of `spec`, if anybody answers within `patience`.
///
/// # Errors
/// As [`Probe::send`].
pub fn address_answers(spec: &NetSpec, patience: Duration) -> Result<Option<Answer>, Error> {
    match Probe::send(spec)? {
        Some(probe) => probe.answer(patience),
        None => Ok(None),
    }
}
