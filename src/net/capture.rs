//! Frames that reach the pod's link while it is held: captured at the source, replayed at the target.
//!
//! A dropped request costs its client the retransmission timer (200 ms); a replayed one costs the hold and no more. Frames
//! carry their offload state (virtio header), so a checksum the sender left to the device, or a large segment, survives.

use super::link::inside;
use super::{Engaged, Error, Link, POD_IF, Shape};
use crate::base::spec::NetMode;
use crate::kernel::netlink::{self, End, Route};
use crate::kernel::packet::{Options, Packet, VNET_HDR};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Frames kept by one capture, at most.
pub const MAX_FRAMES: usize = 8192;
/// Bytes kept by one capture, at most.
pub const MAX_BYTES: usize = 16 << 20;
/// The longest frame: 64 KiB of IP payload and headers.
const MAX_FRAME: usize = (64 << 10) + 256;
/// Ethernet header: destination, source, type.
const ETH_HDR: usize = 14;
/// All frames (linux/if_ether.h).
const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;

/// One captured frame.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Frame {
    /// struct virtio_net_hdr (linux/virtio_net.h): checksum and segmentation still to be done.
    pub vnet_hdr: [u8; VNET_HDR],
    /// The Ethernet frame.
    #[serde(with = "raw")]
    pub bytes: Vec<u8>,
}

/// A capture of what comes in on a pod's link; the kernel's queue is bounded, too. It keeps the pod's namespace.
///
/// In order: [`Capture::open`] before the freeze, [`Capture::start`], [`super::Hold::engage`], [`Capture::since`],
/// [`Capture::drain`] as often as wanted. Dropping it takes some 10 ms.
pub struct Capture {
    packet: Option<Packet>,
    since: Option<Engaged>,
    buffer: Vec<u8>,
    frames: usize,
    bytes: usize,
    lost: u64,
}

impl Capture {
    /// Prepares to capture on `eth0` of the pod whose namespace is `netns`. For `host` and `none` it never yields anything.
    ///
    /// # Errors
    /// There is no `eth0`; packet(7) sockets are not allowed or not built in.
    pub fn open(netns: BorrowedFd<'_>, mode: &NetMode) -> Result<Self, Error> {
        let packet = match mode {
            NetMode::Host | NetMode::None => None,
            NetMode::Nat | NetMode::Lan(_) => Some(inside(netns, open_inside)?),
        };
        Ok(Self { packet, since: None, buffer: Vec::new(), frames: 0, bytes: 0, lost: 0 })
    }

    /// Starts: microseconds. To be done *before* the hold is engaged, and not long before: what comes in fills the queue.
    ///
    /// # Errors
    /// `eth0` is gone.
    pub fn start(&self) -> Result<(), Error> {
        match &self.packet {
            Some(packet) => packet.listen(ETH_P_ALL).map_err(Error::io(format!("capture on {POD_IF}"))),
            None => Ok(()),
        }
    }

    /// From now on [`Capture::drain`] leaves out what passed before the hold stood.
    pub fn since(&mut self, engaged: Engaged) {
        self.since = Some(engaged);
    }

    /// The frames that came in since the last call, in order. Beyond [`MAX_FRAMES`] or [`MAX_BYTES`] in all they are
    /// counted and let go: their senders retransmit.
    ///
    /// # Errors
    /// recvmsg(2) failed.
    pub fn drain(&mut self) -> Result<Vec<Frame>, Error> {
        let mut frames = Vec::new();
        let Some(packet) = &self.packet else { return Ok(frames) };
        self.buffer.resize(VNET_HDR + MAX_FRAME, 0);
        loop {
            let received = match packet.recv(&mut self.buffer) {
                Ok(Some(received)) => received,
                Ok(None) => return Ok(frames),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                    self.lost += 1; // a frame whose offload state virtio cannot tell
                    continue;
                }
                // The link went down or away: nothing more will come, what is queued comes after this error.
                Err(e) if e.raw_os_error() == Some(libc::ENETDOWN) => continue,
                Err(e) => return Err(Error::io(format!("read the frames captured on {POD_IF}"))(e)),
            };
            if let (Some(at), Some(engaged)) = (received.at, self.since)
                && at < engaged.since
            {
                continue;
            }
            let len = received.len;
            let full = self.frames >= MAX_FRAMES || self.bytes + len > MAX_BYTES;
            let Some((header, body)) =
                self.buffer.get(..len).and_then(<[u8]>::split_first_chunk::<VNET_HDR>).filter(|_| !full)
            else {
                self.lost += 1;
                continue;
            };
            self.frames += 1;
            self.bytes += len;
            frames.push(Frame { vnet_hdr: *header, bytes: body.to_vec() });
        }
    }

    /// How many frames were let go, by us or by the kernel's queue, up to now.
    ///
    /// # Errors
    /// getsockopt(2) failed.
    pub fn lost(&mut self) -> Result<u64, Error> {
        if let Some(packet) = &self.packet {
            let kernel = packet.lost().map_err(Error::io("count the frames the kernel let go"))?;
            self.lost += u64::from(kernel); // reading resets it
        }
        Ok(self.lost)
    }
}

fn open_inside() -> Result<Packet, Error> {
    let mut route = super::link::open_route()?;
    let eth0 = super::lan::look_up(&mut route, POD_IF)?;
    let options = Options {
        offload: true,
        incoming_only: true,
        stamps: true,
        buffer: 2 * MAX_BYTES,
        all_multicast: false,
    };
    Packet::open(eth0.index, options).map_err(Error::io(format!("capture on {POD_IF}")))
}

/// What became of the frames of a [`replay`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Replayed {
    /// Frames sent into the pod's link.
    pub sent: usize,
    /// Frames left out: not for the pod, malformed, or the link did not take them.
    pub skipped: usize,
}

/// A way to send captured frames into a pod's link from the host side, so that they come in on `eth0` as they would have.
///
/// A veth gets them from its host side, the bridge does not see them. A macvlan gets them from a neighbour made for the
/// purpose; there only frames to the pod's own hardware address are sent, since the others would leave the host, too.
/// Opened ahead of time (a macvlan neighbour takes some 15 ms to make), dropped when there is time (10 ms).
pub struct Replayer {
    packet: Option<Packet>,
    mac: Option<[u8; 6]>,
    multicast: bool,
    _from: Option<Neighbour>,
}

impl Replayer {
    /// Prepares it; sends nothing yet.
    ///
    /// # Errors
    /// The link is gone.
    pub fn open(link: &Link) -> Result<Self, Error> {
        let options = Options { offload: true, ..Options::default() };
        let mut this = Self { packet: None, mac: link.spec.mac, multicast: true, _from: None };
        match &link.shape {
            Shape::Macvlan { parent } => {
                let side = Neighbour::beside(parent)?;
                this.packet = Some(side.open(options)?);
                this.multicast = false;
                this._from = Some(side);
            }
            Shape::Port { host_if, .. } | Shape::Nat { host_if, .. } => {
                let host = super::lan::look_up(&mut super::link::open_route()?, host_if)?;
                let packet = Packet::open(host.index, options);
                this.packet = Some(packet.map_err(Error::io(format!("replay into {host_if}")))?);
            }
            Shape::Nothing => {}
        }
        Ok(this)
    }

    /// Sends the frames, in order. Only after the hold is lifted.
    pub fn send(&self, frames: &[Frame]) -> Replayed {
        match &self.packet {
            Some(packet) => send_all(packet, self.mac, frames, self.multicast),
            None => Replayed { sent: 0, skipped: frames.len() },
        }
    }
}

/// Opens a [`Replayer`], sends the frames, closes it aside.
///
/// # Errors
/// As [`Replayer::open`].
pub fn replay(link: &Link, frames: &[Frame]) -> Result<Replayed, Error> {
    if frames.is_empty() {
        return Ok(Replayed::default());
    }
    let replayer = Replayer::open(link)?;
    let done = replayer.send(frames);
    // Nobody need wait for the socket to go; without a thread it goes here.
    let _ = std::thread::Builder::new().name("close".to_owned()).spawn(move || drop(replayer));
    Ok(done)
}

fn send_all(packet: &Packet, mac: Option<[u8; 6]>, frames: &[Frame], multicast: bool) -> Replayed {
    let mut done = Replayed::default();
    let mut buffer = Vec::new();
    let limit = Instant::now() + PATIENCE;
    for frame in frames {
        let dest = frame.bytes.first_chunk::<6>().filter(|_| frame.bytes.len() >= ETH_HDR);
        let ours = dest.is_some_and(|d| mac == Some(*d) || (multicast && d[0] & 1 == 1));
        buffer.clear();
        buffer.extend_from_slice(&frame.vnet_hdr);
        buffer.extend_from_slice(&frame.bytes);
        if ours && frame.bytes.len() <= MAX_FRAME && send_one(packet, &buffer, limit) {
            done.sent += 1;
        } else {
            done.skipped += 1;
        }
    }
    done
}

/// How long a replay may wait for room in the link, in all: a frame that is left out costs its sender a repetition, but
/// the pod stands still meanwhile.
const PATIENCE: Duration = Duration::from_millis(100);

/// Sends one frame; waits for room up to `limit`. A frame the kernel refuses is its sender's to repeat.
fn send_one(packet: &Packet, bytes: &[u8], limit: Instant) -> bool {
    loop {
        match packet.send(bytes) {
            Ok(()) => return true,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < limit => {
                wait_writable(packet)
            }
            Err(e) => {
                tracing::debug!(error = %e, len = bytes.len(), "frame not replayed");
                return false;
            }
        }
    }
}

fn wait_writable(packet: &Packet) {
    let mut fds = [nix::poll::PollFd::new(packet.as_fd(), nix::poll::PollFlags::POLLOUT)];
    // A failure shows at the next send.
    let _ = nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(5u8));
}

/// A macvlan beside the pods on a parent link, in a nameless namespace of its own: the kernel removes both when the last
/// descriptor is closed, whatever becomes of us, and nobody waits for it.
pub(super) struct Neighbour {
    netns: std::os::fd::OwnedFd,
    /// Its hardware address.
    pub(super) mac: [u8; 6],
}

impl Neighbour {
    pub(super) fn beside(parent: &str) -> Result<Self, Error> {
        let netns = netlink::new_netns().map_err(Error::link(parent))?;
        let mut route = super::link::open_route()?;
        let on = super::lan::look_up(&mut route, parent)?;
        let end = End { name: POD_IF, mac: None, index: None, netns: Some(netns.as_fd()) };
        route.add_macvlan(&end, on.index).map_err(Error::link(parent))?;
        let mac = inside(netns.as_fd(), || {
            super::link::no_v6(POD_IF)?;
            let mut route = Route::open().map_err(Error::link(POD_IF))?;
            let made = super::lan::look_up(&mut route, POD_IF)?;
            route.set_up(made.index).map_err(Error::link(POD_IF))?;
            Ok(made.mac.unwrap_or_default())
        })?;
        Ok(Self { netns, mac })
    }

    pub(super) fn open(&self, options: Options) -> Result<Packet, Error> {
        inside(self.netns.as_fd(), || {
            let made = super::lan::look_up(&mut super::link::open_route()?, POD_IF)?;
            Packet::open(made.index, options).map_err(Error::io("open a packet socket beside the pod"))
        })
    }
}

/// Byte strings as such, not element by element.
mod raw {
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    struct Bytes;
    impl Visitor<'_> for Bytes {
        type Value = Vec<u8>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the bytes of a frame")
        }
        fn visit_bytes<E: Error>(self, v: &[u8]) -> Result<Vec<u8>, E> {
            Ok(v.to_vec())
        }
        fn visit_byte_buf<E: Error>(self, v: Vec<u8>) -> Result<Vec<u8>, E> {
            Ok(v)
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        d.deserialize_byte_buf(Bytes)
    }
}
