//! The record of what was made for a pod, and the verbs on it: attach, release, detach, sweep.

use super::nat::Transit;
use super::{Error, POD_IF, POD_IFINDEX, lan, nat, plan, rules};
use crate::base::PodId;
use crate::base::spec::{NetMode, NetSpec};
use crate::kernel::netlink::{self, NewRoute, Route};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What was made on the host for a pod. It can be stored and read back, and then still undone.
///
/// Held in memory it also owns the reserved host ports, and for macvlan a descriptor of the pod's namespace: drop it (and
/// any [`super::Hold`], [`super::Capture`]) before the namespace is to vanish.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Link {
    /// Whose it is.
    pub id: PodId,
    /// The network as resolved: hardware address chosen, host ports no longer 0.
    pub spec: NetSpec,
    /// What it consists of.
    pub shape: Shape,
    #[serde(skip)]
    pub(super) live: Live,
}

/// What a link consists of on the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Shape {
    /// Nothing (`host`, `none`).
    Nothing,
    /// A veth whose host side is, or becomes at [`release`], a port of a bridge.
    Port {
        /// Host side.
        host_if: String,
        /// The bridge.
        bridge: String,
    },
    /// A macvlan inside the pod's namespace, nothing on the host.
    Macvlan {
        /// Its parent.
        parent: String,
    },
    /// A routed veth with its address swap and NAT tables.
    Nat {
        /// Host side.
        host_if: String,
        /// The address that stands for the pod on this host.
        transit: Ipv4Addr,
    },
}

/// What only the running process has.
#[derive(Clone, Default, Debug)]
pub(super) struct Live {
    reserved: Arc<Mutex<Vec<OwnedFd>>>,
    netns: Option<Arc<OwnedFd>>,
}

impl Live {
    /// Keeps the sockets that occupy the published host ports.
    pub(super) fn keep_ports(&self, sockets: Vec<OwnedFd>) {
        *self.reserved.lock().unwrap_or_else(PoisonError::into_inner) = sockets;
    }
}

impl Link {
    pub(super) fn new(id: &PodId, spec: NetSpec, shape: Shape) -> Self {
        Self { id: id.clone(), spec, shape, live: Live::default() }
    }

    /// The pod's address as others on the hosts' network (`lan`) or programs on this host (`nat`) reach it.
    pub fn address(&self) -> Option<IpAddr> {
        match &self.shape {
            Shape::Nat { transit, .. } => Some(IpAddr::V4(*transit)),
            Shape::Port { .. } | Shape::Macvlan { .. } => self.spec.ip.map(|cidr| cidr.addr),
            Shape::Nothing => None,
        }
    }

    /// Name of the host side of the veth, if there is one.
    pub fn host_if(&self) -> Option<&str> {
        match &self.shape {
            Shape::Nat { host_if, .. } | Shape::Port { host_if, .. } => Some(host_if),
            Shape::Macvlan { .. } | Shape::Nothing => None,
        }
    }

    /// After reading a stored record back: occupies the published ports again and, given the pod's namespace, remembers it
    /// so that a macvlan can be deleted.
    ///
    /// # Errors
    /// A port was taken meanwhile.
    pub fn adopt(&mut self, netns: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        self.remember(netns)?;
        if matches!(self.shape, Shape::Nat { .. }) {
            let reserved = super::ports::reserve(&mut self.spec.publish)?;
            self.live.keep_ports(super::ports::occupy(reserved, &self.spec.publish)?);
        }
        Ok(())
    }

    pub(super) fn remember(&mut self, netns: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        self.live.netns = match netns {
            Some(fd) => {
                Some(Arc::new(fd.try_clone_to_owned().map_err(Error::io("keep the pod's namespace"))?))
            }
            None => None,
        };
        Ok(())
    }
}

/// Makes the pod's link: `eth0` in `netns` with hardware address, address and routes, up; `lo` up. With `held` the
/// [`super::Hold`] is engaged before `eth0` goes up, and a bridge port is not attached before [`release`] (unless the
/// bridge runs the spanning tree protocol: then at once, since the port would wait; the hold stands all the same).
/// Without `held` a `lan` pod is announced, too.
///
/// # Errors
/// As [`plan`], and what the kernel refuses; nothing is left behind then.
pub fn attach(spec: &NetSpec, netns: BorrowedFd<'_>, id: &PodId, held: bool) -> Result<Link, Error> {
    let spec = plan(spec, id)?;
    match &spec.mode {
        NetMode::Host => Ok(Link::new(id, spec, Shape::Nothing)),
        NetMode::None => {
            inside(netns, || loopback_up(&mut open_route()?))?;
            Ok(Link::new(id, spec, Shape::Nothing))
        }
        NetMode::Lan(on) => {
            let on = on.clone();
            let link = lan::attach(spec, &on, netns, id, held)?;
            if !held && let Err(error) = super::announce(&link, netns) {
                tracing::warn!(%error, "the lan learns of the pod only when it asks");
            }
            Ok(link)
        }
        NetMode::Nat => nat::attach(spec, netns, id, held),
    }
}

/// Lets a held link take part: attaches the bridge port (nothing to do for other shapes). The hold itself is lifted by
/// [`super::Hold::lift`]. Harmless when done already.
///
/// # Errors
/// The link or the bridge is gone.
pub fn release(link: &Link) -> Result<(), Error> {
    match &link.shape {
        Shape::Port { host_if, bridge } => lan::attach_port(&mut open_route()?, host_if, bridge),
        _ => Ok(()),
    }
}

/// Undoes [`attach`]: link, NAT rules, reserved ports. Harmless when done already or half done; goes on after a failure
/// and returns the first one.
///
/// # Errors
/// The kernel refused to delete something.
pub fn detach(link: &Link) -> Result<(), Error> {
    link.live.keep_ports(Vec::new());
    let mut first = Ok(());
    let mut note = |result: Result<(), Error>| {
        if first.is_ok() {
            first = result;
        }
    };
    let rules = match &link.shape {
        // The rules first: a device without hooks goes in half the time.
        Shape::Nat { .. } => Some(rules::remove(&link.id)),
        _ => None,
    };
    if let Some(host_if) = link.host_if() {
        note(delete(host_if).map(drop));
    }
    match &link.shape {
        Shape::Nat { transit, .. } => rules::forget_flows(*transit),
        Shape::Macvlan { .. } => {
            if let Some(netns) = &link.live.netns {
                note(inside(netns.as_fd(), || delete(POD_IF)).map(drop));
            }
        }
        Shape::Port { .. } | Shape::Nothing => {}
    }
    note(rules.transpose().map(drop));
    first
}

/// Removes whatever an earlier life of the pod `id` left on this host, by name, when no record exists. True: there was
/// something. (A macvlan lives in the pod's own namespace and goes with it.)
///
/// # Errors
/// The kernel refused to delete something.
pub fn sweep(id: &PodId) -> Result<bool, Error> {
    let tables = rules::remove(id);
    let link = delete(&host_if_name(id));
    Ok(link? | tables?.found)
}

/// Name of the host side of the pod's veth: at most 15 characters (IFNAMSIZ), from the first 48 bits of the id.
pub(super) fn host_if_name(id: &PodId) -> String {
    format!("pm{}", &id.as_str()[..12])
}

fn delete(name: &str) -> Result<bool, Error> {
    open_route()?.del_link(name).map_err(Error::link(name))
}

/// How long a new veth may take to be ready, at most; microseconds as a rule.
const SETTLE: Duration = Duration::from_millis(100);

pub(super) fn open_route() -> Result<Route, Error> {
    Route::open().map_err(Error::link("this host"))
}

/// Runs `f` inside the pod's namespace.
pub(super) fn inside<T: Send>(
    netns: BorrowedFd<'_>,
    f: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    netlink::in_netns(netns, f).map_err(Error::link("the pod's namespace"))?
}

/// After both ends of a veth are up: the end that came first may lag, and what it sends first would be lost.
pub(super) fn settle(route: &mut Route, host_if: &str) -> Result<(), Error> {
    let host = super::lan::look_up(route, host_if)?;
    if !route.settle(host.index, SETTLE).map_err(Error::link(host_if))? {
        tracing::warn!(host_if, "the link is not ready; its first packets may be lost");
    }
    Ok(())
}

fn loopback_up(route: &mut Route) -> Result<(), Error> {
    route.set_up(1).map_err(Error::link("lo"))
}

/// The pod's side of a link: what [`set_up_inside`] does to an `eth0` that is there and down.
pub(super) struct Inside {
    /// Address and prefix length.
    pub(super) addr: IpAddr,
    /// Prefix length.
    pub(super) prefix: u8,
    /// Default gateway.
    pub(super) gateway: Option<IpAddr>,
    /// Fixed neighbour.
    pub(super) neighbour: Option<Transit>,
    /// Hardware address, for the v6 link-local address.
    pub(super) mac: [u8; 6],
    /// Hold before up.
    pub(super) held: bool,
}

/// Configures and brings up `eth0`; to be run inside the pod's namespace.
pub(super) fn set_up_inside(what: &Inside) -> Result<(), Error> {
    let mut route = open_route()?;
    loopback_up(&mut route)?;
    quiet_v6(POD_IF)?;
    if what.held {
        super::Hold::here()?.engage()?;
    }
    let index = POD_IFINDEX;
    route.set_up(index).map_err(Error::link(POD_IF))?;
    if what.addr.is_ipv6() {
        // Routers and neighbours expect every v6 node to have one; the kernel makes none (addr_gen_mode none).
        let local = IpAddr::V6(link_local(what.mac));
        route.add_addr(index, local, 64).map_err(Error::link(POD_IF))?;
    }
    route.add_addr(index, what.addr, what.prefix).map_err(Error::link(POD_IF))?;
    if let Some(n) = &what.neighbour {
        route.add_neighbour(index, n.addr, n.mac).map_err(Error::link(POD_IF))?;
    }
    if let Some(gateway) = what.gateway {
        let any = match gateway {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        let default = NewRoute { dst: any, prefix: 0, via: Some(gateway), oif: index, src: None };
        route.add_route(&default).map_err(Error::link(format!("gateway {gateway}")))?;
    }
    Ok(())
}

/// No v6 address of the kernel's own making on a device, no waiting for duplicate address detection: what the pod has is
/// what was configured, on every host. Nothing to do where v6 is not built in.
fn quiet_v6(name: &str) -> Result<(), Error> {
    for (key, value) in [("addr_gen_mode", "1"), ("accept_dad", "0"), ("accept_ra", "0"), ("autoconf", "0")] {
        ignore_missing(netlink::sysctl(&format!("ipv6/conf/{name}/{key}"), value), name)?;
    }
    Ok(())
}

/// No v6 at all on a device (host side of a veth).
pub(super) fn no_v6(name: &str) -> Result<(), Error> {
    ignore_missing(netlink::sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1"), name)
}

fn ignore_missing(result: Result<(), netlink::Error>, name: &str) -> Result<(), Error> {
    match result {
        Err(e) if e.source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::link(name)),
    }
}

/// fe80::/64 with the modified EUI-64 of a hardware address (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> std::net::Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let id = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&id);
    octets.into()
}
