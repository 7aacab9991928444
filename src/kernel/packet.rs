//! Raw frames of one device: AF_PACKET sockets (packet(7)), with the virtio header that keeps offload state
//! (partial checksums, segmentation) across capture and replay.

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, setsockopt, socket, sockopt,
};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Size of the virtio-net header in front of each frame of a socket with [`Options::offload`], in bytes.
pub const VNET_HDR: usize = 10;

/// How a packet socket is opened.
#[derive(Clone, Copy, Default, Debug)]
pub struct Options {
    /// Each frame has a virtio-net header in front, both ways (PACKET_VNET_HDR).
    pub offload: bool,
    /// Only frames that come in (PACKET_IGNORE_OUTGOING, 4.20).
    pub incoming_only: bool,
    /// Stamp each frame with its time of arrival (SO_TIMESTAMPNS).
    pub stamps: bool,
    /// Receive buffer in bytes, kernel overhead included (SO_RCVBUFFORCE); 0 = default.
    pub buffer: usize,
    /// Receive all multicast frames, too.
    pub all_multicast: bool,
}

/// One received frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Bytes in the buffer, virtio header included.
    pub len: usize,
    /// Time of arrival, if stamps were asked for.
    pub at: Option<SystemTime>,
}

/// A packet socket bound to one device, non-blocking.
///
/// Dropping it waits for the kernel to have no user of it left (synchronize_net): some 10 ms.
#[derive(Debug)]
pub struct Packet {
    fd: OwnedFd,
    index: u32,
}

impl Packet {
    /// Opens a socket on the device `index` of the calling thread's namespace, to send with. It receives nothing before
    /// [`Packet::listen`].
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW; ENODEV; ENOPROTOOPT on old kernels.
    pub fn open(index: u32, options: Options) -> io::Result<Self> {
        // Protocol 0 until bind(2): a socket made with a protocol hears every device at once.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        let this = Self { fd, index };
        if options.offload {
            this.set(libc::PACKET_VNET_HDR, 1)?;
        }
        if options.incoming_only {
            this.set(libc::PACKET_IGNORE_OUTGOING, 1)?;
        }
        if options.stamps {
            setsockopt(&this.fd, sockopt::ReceiveTimestampns, &true)?;
        }
        if options.buffer > 0 {
            setsockopt(&this.fd, sockopt::RcvBufForce, &(options.buffer / 2))?; // the kernel doubles it
        }
        if options.all_multicast {
            this.join_all_multicast(index)?;
        }
        this.bind(0)?;
        Ok(this)
    }

    fn set(&self, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let size = std::mem::size_of_val(&value) as libc::socklen_t;
        // SAFETY: the pointer and size are those of `value`, alive through the call.
        let rc = unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), libc::SOL_PACKET, name, (&raw const value).cast(), size)
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn join_all_multicast(&self, index: u32) -> io::Result<()> {
        let request = libc::packet_mreq {
            mr_ifindex: index as libc::c_int,
            mr_type: libc::PACKET_MR_ALLMULTI as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        let size = std::mem::size_of_val(&request) as libc::socklen_t;
        // SAFETY: the pointer and size are those of `request`, alive through the call.
        let rc = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                (&raw const request).cast(),
                size,
            )
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Begins to receive frames of the kind `protocol`, an ETH_P_* number (3 = all); a matter of microseconds.
    ///
    /// # Errors
    /// ENODEV: the device is gone.
    pub fn listen(&self, protocol: u16) -> io::Result<()> {
        self.bind(protocol)
    }

    fn bind(&self, protocol: u16) -> io::Result<()> {
        let addr = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol.to_be(),
            sll_ifindex: self.index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let size = std::mem::size_of_val(&addr) as libc::socklen_t;
        // SAFETY: the pointer and size are those of `addr`, alive through the call.
        let rc = unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const addr).cast(), size) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next frame, if one is queued. A frame longer than `buffer` has `len > buffer.len()`.
    ///
    /// # Errors
    /// recvmsg(2) failed (ENETDOWN: the device went down or away; EINVAL: this frame's offload state cannot be told).
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let mut control = nix::cmsg_space!(libc::timespec);
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        let message = match recvmsg::<()>(self.fd.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Ok(message) => message,
            Err(nix::errno::Errno::EAGAIN) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let at = message.cmsgs()?.find_map(|c| match c {
            ControlMessageOwned::ScmTimestampns(t) => {
                Some(UNIX_EPOCH + Duration::new(t.tv_sec() as u64, t.tv_nsec() as u32))
            }
            _ => None,
        });
        Ok(Some(Received { len: message.bytes, at }))
    }

    /// Sends one frame, with its virtio header in front if the socket was opened so.
    ///
    /// # Errors
    /// ENETDOWN, EMSGSIZE (longer than the MTU and no segmentation in the header), EINVAL (bad virtio header), ENOBUFS.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        nix::sys::socket::send(self.fd.as_raw_fd(), frame, MsgFlags::empty())?;
        Ok(())
    }

    /// Frames the kernel threw away for lack of buffer since the last call.
    ///
    /// # Errors
    /// getsockopt(2) failed.
    pub fn lost(&self) -> io::Result<u32> {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut size = std::mem::size_of_val(&stats) as libc::socklen_t;
        // SAFETY: the pointers are those of `stats` and `size`, alive through the call; `size` bounds the write.
        let rc = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut size,
            )
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(stats.tp_drops) }
    }
}

impl AsFd for Packet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
