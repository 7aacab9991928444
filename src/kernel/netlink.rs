//! Route netlink: links, addresses, routes, neighbours; and work inside another network namespace.
//!
//! A [`Route`] socket belongs to the namespace of the thread that opened it, for good (netlink(7)). The messages come from
//! netlink-packet-route; this file is the only one that knows that crate.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoMacVlan, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    MacVlanMode, State,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// A netlink request that failed: what was asked, and the errno.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct Error {
    /// What was asked for, on which object.
    pub what: String,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl Error {
    /// The errno, if the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// Runs `f` on a thread of its own inside the network namespace `netns` (setns(2), CLONE_NEWNET); the caller's thread never
/// leaves its own. `/proc/sys/net` means the inner namespace within `f`.
///
/// # Errors
/// The thread or setns(2) failed (CAP_SYS_ADMIN in the namespace's owner is needed).
pub fn in_netns<R: Send>(netns: BorrowedFd<'_>, f: impl FnOnce() -> R + Send) -> Result<R, Error> {
    let err = |what: &str, source| Error { what: what.to_owned(), source };
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(|e| err("enter the network namespace", e.into()))?;
            Ok(f())
        });
        let worker = worker.map_err(|e| err("start a thread", e))?;
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A new, empty network namespace; it lives as long as a descriptor, a socket or a device user of it.
///
/// # Errors
/// unshare(2) failed.
pub fn new_netns() -> Result<OwnedFd, Error> {
    let err = |what: &str, source| Error { what: what.to_owned(), source };
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(|e| err("make a network namespace", e.into()))?;
            own_netns()
        });
        let worker = worker.map_err(|e| err("start a thread", e))?;
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A descriptor of the calling thread's network namespace.
///
/// # Errors
/// `/proc` is not there.
pub fn own_netns() -> Result<OwnedFd, Error> {
    let path = "/proc/thread-self/ns/net";
    let file = std::fs::File::open(path).map_err(|source| Error { what: format!("open {path}"), source })?;
    Ok(file.into())
}

/// Writes a network sysctl of the calling thread's namespace: `sysctl("ipv4/ip_forward", "1")`.
///
/// # Errors
/// The file is not there (NotFound: the protocol is not built in) or refused the value.
pub fn sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/net/{name}");
    std::fs::write(&path, value).map_err(|source| Error { what: format!("write {value} to {path}"), source })
}

/// Reads a network sysctl of the calling thread's namespace, trimmed.
///
/// # Errors
/// The file is not there.
pub fn sysctl_get(name: &str) -> Result<String, Error> {
    let path = format!("/proc/sys/net/{name}");
    let text =
        std::fs::read_to_string(&path).map_err(|source| Error { what: format!("read {path}"), source })?;
    Ok(text.trim().to_owned())
}

/// A network device as the kernel describes it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Iface {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Hardware address, if it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Administratively up.
    pub up: bool,
    /// Its other end is there, and it may send (IF_OPER_UP; devices that cannot tell count as such).
    pub ready: bool,
    /// A loopback device.
    pub loopback: bool,
    /// The device it is a port of.
    pub master: Option<u32>,
    /// A bridge.
    pub bridge: bool,
    /// A bridge that runs the spanning tree protocol (a new port waits before it forwards).
    pub stp: bool,
}

/// What to make as one end of a new link.
#[derive(Clone, Debug)]
pub struct End<'a> {
    /// Name.
    pub name: &'a str,
    /// Hardware address, random if none.
    pub mac: Option<[u8; 6]>,
    /// Wanted index.
    pub index: Option<u32>,
    /// Namespace to put it in; none: the socket's.
    pub netns: Option<BorrowedFd<'a>>,
}

/// A route to add: `dst/prefix`, on-link at `oif` or by way of `via`.
#[derive(Clone, Debug)]
pub struct NewRoute {
    /// Destination; prefix 0 = default.
    pub dst: IpAddr,
    /// Prefix length.
    pub prefix: u8,
    /// Gateway, taken as on-link whatever the addresses say.
    pub via: Option<IpAddr>,
    /// Device.
    pub oif: u32,
    /// Source address to prefer.
    pub src: Option<IpAddr>,
}

/// The longest route that matches an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Match {
    /// Prefix length of the entry.
    pub prefix: u8,
    /// Device it leads to.
    pub oif: Option<u32>,
}

/// A route netlink socket in the namespace of the thread that opened it.
pub struct Route {
    socket: Socket,
    seq: u32,
}

impl Route {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// socket(2) failed.
    pub fn open() -> Result<Self, Error> {
        let err = |source| Error { what: "open a route netlink socket".to_owned(), source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(err)?;
        socket.bind_auto().map_err(err)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(err)?;
        Ok(Self { socket, seq: 0 })
    }

    /// Sends one request and gathers the answers up to the acknowledgement.
    fn talk(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: &dyn Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let fail = |source| Error { what: what(), source };
        self.seq += 1;
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = flags | NLM_F_REQUEST | NLM_F_ACK;
        packet.header.sequence_number = self.seq;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(fail)?;
        let mut answers = Vec::new();
        loop {
            let (data, _) = self.socket.recv_from_full().map_err(fail)?;
            let mut rest = &data[..];
            while rest.len() >= 16 {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|e| fail(io::Error::new(io::ErrorKind::InvalidData, e.to_string())))?;
                let len = (answer.header.length as usize).next_multiple_of(4).clamp(16, rest.len());
                rest = &rest[len..];
                if answer.header.sequence_number != self.seq {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(e) => {
                        return match e.code {
                            None => Ok(answers),
                            Some(code) => Err(fail(io::Error::from_raw_os_error(-code.get()))),
                        };
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(m) => answers.push(m),
                    _ => {}
                }
            }
        }
    }

    fn get_link(&mut self, message: LinkMessage, what: &dyn Fn() -> String) -> Result<Option<Iface>, Error> {
        match self.talk(RouteNetlinkMessage::GetLink(message), 0, what) {
            Ok(answers) => Ok(answers.into_iter().find_map(|m| match m {
                RouteNetlinkMessage::NewLink(link) => Some(describe(&link)),
                _ => None,
            })),
            Err(e) if e.errno() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The device of that name, if there is one.
    ///
    /// # Errors
    /// The request failed.
    pub fn iface(&mut self, name: &str) -> Result<Option<Iface>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get_link(message, &|| format!("look up interface {name}"))
    }

    /// The device of that index, if there is one.
    ///
    /// # Errors
    /// The request failed.
    pub fn iface_at(&mut self, index: u32) -> Result<Option<Iface>, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get_link(message, &|| format!("look up interface number {index}"))
    }

    /// Makes a veth pair, both ends down, in one request. The kernel heeds an index wanted for `far` only when `near` has
    /// one, too.
    ///
    /// # Errors
    /// EEXIST: a name or index is taken.
    pub fn add_veth(&mut self, near: &End<'_>, far: &End<'_>, mtu: u32) -> Result<(), Error> {
        let mut peer = end_message(far);
        peer.attributes.push(LinkAttribute::Mtu(mtu));
        let mut message = end_message(near);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.talk(RouteNetlinkMessage::NewLink(message), flags, &|| {
            format!("make veth {} and {}", near.name, far.name)
        })?;
        Ok(())
    }

    /// Makes a macvlan in bridge mode on `parent`, down.
    ///
    /// # Errors
    /// EBUSY/EINVAL: the parent cannot carry one (it is a port of a bridge, or wireless); EEXIST: name taken.
    pub fn add_macvlan(&mut self, end: &End<'_>, parent: u32) -> Result<(), Error> {
        let mut message = end_message(end);
        message.attributes.push(LinkAttribute::Link(parent));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::MacVlan),
            LinkInfo::Data(InfoData::MacVlan(vec![InfoMacVlan::Mode(MacVlanMode::Bridge)])),
        ]));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let what = || format!("make macvlan {} on interface number {parent}", end.name);
        self.talk(RouteNetlinkMessage::NewLink(message), flags, &what)?;
        Ok(())
    }

    /// Makes a bridge without spanning tree, up.
    ///
    /// # Errors
    /// EEXIST: name taken.
    pub fn add_bridge(&mut self, name: &str) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.talk(RouteNetlinkMessage::NewLink(message), flags, &|| format!("make bridge {name}"))?;
        Ok(())
    }

    /// Deletes a device by name. False: there was none.
    ///
    /// # Errors
    /// The kernel refused (EOPNOTSUPP: a physical device).
    pub fn del_link(&mut self, name: &str) -> Result<bool, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.talk(RouteNetlinkMessage::DelLink(message), 0, &|| format!("delete interface {name}")) {
            Ok(_) => Ok(true),
            Err(e) if e.errno() == Some(libc::ENODEV) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Brings a device up.
    ///
    /// # Errors
    /// EBUSY: a macvlan whose hardware address another one on the same parent has.
    pub fn set_up(&mut self, index: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.talk(RouteNetlinkMessage::SetLink(message), 0, &|| {
            format!("bring up interface number {index}")
        })?;
        Ok(())
    }

    /// Waits until a device that is up may send, `limit` at most: after its other end came up the kernel lets it only by and
    /// by (link watch), and drops what is sent before. Since 6.8 the question itself makes it so. False: it may not yet.
    ///
    /// # Errors
    /// The device is gone.
    pub fn settle(&mut self, index: u32, limit: Duration) -> Result<bool, Error> {
        let end = Instant::now() + limit;
        loop {
            match self.iface_at(index)? {
                Some(iface) if iface.ready => return Ok(true),
                Some(_) if Instant::now() >= end => return Ok(false),
                Some(_) => std::thread::sleep(Duration::from_micros(200)),
                None => {
                    let what = format!("wait for interface number {index}");
                    return Err(Error { what, source: io::Error::from_raw_os_error(libc::ENODEV) });
                }
            }
        }
    }

    /// Makes `index` a port of the bridge `master` and brings it up, in one request; 0 takes it out.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn set_master(&mut self, index: u32, master: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::Controller(master));
        let what = || format!("make interface number {index} a port of {master}");
        self.talk(RouteNetlinkMessage::SetLink(message), 0, &what)?;
        Ok(())
    }

    /// Adds an address; v6 addresses skip duplicate address detection (IFA_F_NODAD).
    ///
    /// # Errors
    /// EEXIST: it is there; EACCES: v6 is off on the device.
    pub fn add_addr(&mut self, index: u32, addr: IpAddr, prefix: u8) -> Result<(), Error> {
        let mut message = AddressMessage::default();
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.header.family = family(addr);
        message.attributes.push(AddressAttribute::Local(addr));
        message.attributes.push(AddressAttribute::Address(addr));
        match addr {
            IpAddr::V4(v4) if prefix < 31 => {
                let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                let broadcast = Ipv4Addr::from(u32::from(v4) | host_bits);
                message.attributes.push(AddressAttribute::Broadcast(broadcast));
            }
            IpAddr::V4(_) => {}
            IpAddr::V6(v6) => {
                message.header.flags = AddressHeaderFlags::Nodad;
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
                if v6.is_unicast_link_local() {
                    message.header.scope = netlink_packet_route::address::AddressScope::Link;
                }
            }
        }
        let what = || format!("add address {addr}/{prefix} to interface number {index}");
        self.talk(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, &what)?;
        Ok(())
    }

    /// Adds a route to the main table.
    ///
    /// # Errors
    /// EEXIST: such a route is there.
    pub fn add_route(&mut self, route: &NewRoute) -> Result<(), Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(route.dst);
        message.header.destination_prefix_length = route.prefix;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        let on_link_scope = route.via.is_none() && route.dst.is_ipv4();
        message.header.scope = if on_link_scope { RouteScope::Link } else { RouteScope::Universe };
        if route.prefix > 0 {
            message.attributes.push(RouteAttribute::Destination(route_address(route.dst)));
        }
        if let Some(via) = route.via {
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(route_address(via)));
        }
        if let Some(src) = route.src {
            message.attributes.push(RouteAttribute::PrefSource(route_address(src)));
        }
        message.attributes.push(RouteAttribute::Oif(route.oif));
        let what = || format!("add a route to {}/{}", route.dst, route.prefix);
        self.talk(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL, &what)?;
        Ok(())
    }

    /// A neighbour entry that never ages: no ARP is needed for it.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn add_neighbour(&mut self, index: u32, addr: Ipv4Addr, mac: [u8; 6]) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        let what = || format!("add neighbour {addr} on interface number {index}");
        self.talk(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE, &what)?;
        Ok(())
    }

    /// The routing entry that would serve `addr`; none: no route.
    ///
    /// # Errors
    /// The request failed.
    pub fn route_to(&mut self, addr: Ipv4Addr) -> Result<Option<Match>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 32;
        message.header.flags = RouteFlags::FibMatch;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(addr)));
        let what = || format!("look up the route to {addr}");
        let answers = match self.talk(RouteNetlinkMessage::GetRoute(message), 0, &what) {
            Ok(answers) => answers,
            Err(e) if matches!(e.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok(answers.into_iter().find_map(|m| match m {
            RouteNetlinkMessage::NewRoute(r) => Some(Match {
                prefix: r.header.destination_prefix_length,
                oif: r.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                }),
            }),
            _ => None,
        }))
    }
}

impl AsFd for Route {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn family(addr: IpAddr) -> AddressFamily {
    if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn route_address(addr: IpAddr) -> RouteAddress {
    match addr {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

fn end_message(end: &End<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = end.index.unwrap_or(0);
    message.attributes.push(LinkAttribute::IfName(end.name.to_owned()));
    if let Some(mac) = end.mac {
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    }
    if let Some(netns) = end.netns {
        message.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    }
    message
}

fn describe(link: &LinkMessage) -> Iface {
    let mut iface = Iface {
        index: link.header.index,
        up: link.header.flags.contains(LinkFlags::Up),
        loopback: link.header.flags.contains(LinkFlags::Loopback),
        ..Iface::default()
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => iface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => iface.mtu = *mtu,
            LinkAttribute::Address(mac) => iface.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::OperState(state) => iface.ready = matches!(state, State::Up | State::Unknown),
            LinkAttribute::Controller(master) => iface.master = Some(*master),
            LinkAttribute::LinkInfo(infos) => describe_kind(&mut iface, infos),
            _ => {}
        }
    }
    iface
}

fn describe_kind(iface: &mut Iface, infos: &[LinkInfo]) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => iface.bridge = *kind == InfoKind::Bridge,
            LinkInfo::Data(InfoData::Bridge(data)) => {
                iface.stp = data.iter().any(|d| matches!(d, InfoBridge::StpState(s) if u32::from(*s) != 0));
            }
            _ => {}
        }
    }
}
