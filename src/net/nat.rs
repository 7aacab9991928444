//! `nat`: a routed veth. The address inside is the same in every pod; on the host a transit address stands for it.

use super::lan::{look_up, make_veth};
use super::link::{Inside, Shape, host_if_name, inside, no_v6, open_route, set_up_inside, settle};
use super::{Error, Link, detach, ports, rules};
use crate::base::PodId;
use crate::base::spec::NetSpec;
use crate::kernel::netlink::{self, NewRoute, Route};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;

/// The address of every `nat` pod, inside.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 2);

/// The gateway of every `nat` pod, inside; the host's own address on each of these links. From a range that no one routes,
/// so that it hides nothing a program may want to reach.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 90, 1);

/// Hardware address of the host side of every such link: fixed, so that a pod's neighbour entry holds on every host.
const GATEWAY_MAC: [u8; 6] = [0x02, b'p', b'o', b'd', 0x00, 0x01];

/// Transit addresses come from the first of these /16 nets that nothing on this host routes.
const TRANSIT_NETS: [[u8; 2]; 8] =
    [[10, 91], [10, 92], [10, 93], [10, 94], [10, 95], [10, 96], [172, 30], [172, 31]];

/// How many transit addresses of one net are tried.
const TRIES: u64 = 64;

/// An address with the hardware address that goes with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Transit {
    /// Network address.
    pub(super) addr: Ipv4Addr,
    /// Hardware address.
    pub(super) mac: [u8; 6],
}

/// Makes the veth, its address swap, masquerade and published ports. `spec` is planned.
pub(super) fn attach(
    mut spec: NetSpec,
    netns: BorrowedFd<'_>,
    id: &PodId,
    held: bool,
) -> Result<Link, Error> {
    let reserved = ports::reserve(&mut spec.publish)?;
    let mac = spec.mac.unwrap_or_else(|| super::mac_for(id));
    let mut route = open_route()?;
    let host_if = host_if_name(id);
    let mtu = uplink_mtu(&mut route)?;
    make_veth(netns, mac, &host_if, Some(GATEWAY_MAC), mtu)?;
    let mut link = Link::new(id, spec, Shape::Nat { host_if, transit: Ipv4Addr::UNSPECIFIED });
    match finish(&mut route, &mut link, mac, netns, held) {
        Ok(()) => {
            // Occupied only now: with the DNAT rules in place no client can end up in our own backlog.
            match ports::occupy(reserved, &link.spec.publish) {
                Ok(sockets) => link.live.keep_ports(sockets),
                Err(e) => return Err(undo(&link, e)),
            }
            Ok(link)
        }
        Err(e) => Err(undo(&link, e)),
    }
}

fn undo(link: &Link, error: Error) -> Error {
    let undone = detach(link);
    tracing::debug!(id = %link.id, ?undone, "attach failed");
    error
}

fn finish(
    route: &mut Route,
    link: &mut Link,
    mac: [u8; 6],
    netns: BorrowedFd<'_>,
    held: bool,
) -> Result<(), Error> {
    let Shape::Nat { host_if, transit } = &mut link.shape else { return Ok(()) };
    no_v6(host_if)?;
    // Replies to 127.0.0.1 come in over this link; what the pod itself aims at 127/8 is dropped by the swap table.
    let sysctl = |key: &str, value: &str| {
        netlink::sysctl(&format!("ipv4/conf/{host_if}/{key}"), value).map_err(Error::link(host_if.as_str()))
    };
    sysctl("route_localnet", "1")?;
    forwarding_on()?;
    let index = look_up(route, host_if)?.index;
    route.set_up(index).map_err(Error::link(host_if.as_str()))?;
    route.add_addr(index, IpAddr::V4(GATEWAY), 32).map_err(Error::link(host_if.as_str()))?;
    *transit = claim_transit(route, &link.id, index)?;
    route.add_neighbour(index, *transit, mac).map_err(Error::link(host_if.as_str()))?;
    rules::install(&link.id, host_if, *transit, &link.spec.publish)?;
    let neighbour = Some(Transit { addr: GATEWAY, mac: GATEWAY_MAC });
    let inner = Inside {
        addr: IpAddr::V4(INSIDE),
        prefix: 32,
        gateway: Some(IpAddr::V4(GATEWAY)),
        neighbour,
        mac,
        held,
    };
    inside(netns, || set_up_inside(&inner))?;
    settle(route, host_if)
}

/// Routes a free transit address to the link. The kernel is the register: a second route to the same address is refused.
fn claim_transit(route: &mut Route, id: &PodId, index: u32) -> Result<Ipv4Addr, Error> {
    let seed = u64::from_str_radix(id.as_str(), 16).unwrap_or(0);
    for [a, b] in TRANSIT_NETS {
        for attempt in 0..TRIES {
            let [c, d] = ((seed >> 16).wrapping_add(seed).wrapping_add(attempt) as u16).to_be_bytes();
            let addr = Ipv4Addr::new(a, b, c, d);
            let object = || Error::link(format!("transit address {addr}"));
            if matches!(d, 0 | 255) {
                continue;
            }
            match route.route_to(addr).map_err(object())? {
                None => {}
                Some(found) if found.prefix == 0 => {}
                Some(found) if found.prefix == 32 => continue, // another pod's
                Some(_) => break,                              // a net in use here
            }
            let new =
                NewRoute { dst: addr.into(), prefix: 32, via: None, oif: index, src: Some(GATEWAY.into()) };
            match route.add_route(&new) {
                Ok(()) => return Ok(addr),
                Err(e) if e.errno() == Some(libc::EEXIST) => {}
                Err(e) => return Err(object()(e)),
            }
        }
    }
    Err(Error::Taken {
        what: "every transit address tried (10.91.0.0/16 and on)".to_owned(),
        remedy: "free one of those nets on this host, or use --net lan:IF".to_owned(),
    })
}

/// The MTU of the way out, so that what leaves the pod fits; 1500 without one.
fn uplink_mtu(route: &mut Route) -> Result<u32, Error> {
    // Any address of the wide net will do: nothing is sent.
    let out = route.route_to(Ipv4Addr::new(9, 9, 9, 9)).map_err(Error::link("the way out"))?;
    let Some(index) = out.and_then(|found| found.oif) else { return Ok(1500) };
    let iface = route.iface_at(index).map_err(Error::link("the way out"))?;
    Ok(iface.filter(|i| !i.loopback).map_or(1500, |i| i.mtu.clamp(576, 65535)))
}

/// The host must forward between the pod's link and the way out.
fn forwarding_on() -> Result<(), Error> {
    let key = "ipv4/ip_forward";
    if netlink::sysctl_get(key).map_err(Error::link(key))? == "0" {
        netlink::sysctl(key, "1").map_err(Error::link(key))?;
        tracing::info!("turned on net.ipv4.ip_forward, which nat pods need");
    }
    Ok(())
}
