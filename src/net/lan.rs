//! `lan`: the pod's own hardware and network address on the hosts' network.

use super::link::{Inside, Shape, host_if_name, inside, no_v6, open_route, set_up_inside, settle};
use super::{Error, Link, POD_IF, POD_IFINDEX, detach};
use crate::base::PodId;
use crate::base::spec::NetSpec;
use crate::kernel::netlink::{self, End, Iface, Route};
use std::os::fd::{AsFd, BorrowedFd};

/// Makes a veth on the bridge `on`, or a macvlan on the link `on`. `spec` is planned.
pub(super) fn attach(
    spec: NetSpec,
    on: &str,
    netns: BorrowedFd<'_>,
    id: &PodId,
    held: bool,
) -> Result<Link, Error> {
    let mut route = open_route()?;
    let parent = look_up(&mut route, on)?;
    let (Some(ip), Some(mac)) = (spec.ip, spec.mac) else {
        return Err(Error::usage("--ip", "a lan pod needs an address", "give --ip ADDR/LEN"));
    };
    let inner =
        Inside { addr: ip.addr, prefix: ip.prefix, gateway: spec.gateway, neighbour: None, mac, held };
    let link = if parent.bridge {
        let host_if = host_if_name(id);
        // A bridge without a fixed address takes the lowest of its ports': a port that comes or goes must not change it,
        // or the neighbours of the host lose it until they ask again.
        let [_, _, b, c, d, e] = mac;
        make_veth(netns, mac, &host_if, Some([0xfe, 0xff, b, c, d, e]), parent.mtu)?;
        Link::new(id, spec, Shape::Port { host_if, bridge: on.to_owned() })
    } else {
        let eth0 = End { name: POD_IF, mac: Some(mac), index: Some(POD_IFINDEX), netns: Some(netns) };
        route.add_macvlan(&eth0, parent.index).map_err(Error::link(on))?;
        let mut link = Link::new(id, spec, Shape::Macvlan { parent: on.to_owned() });
        link.remember(Some(netns))?;
        link
    };
    match finish(&mut route, &link, &parent, &inner, netns) {
        Ok(()) => Ok(link),
        Err(e) => {
            let undone = detach(&link);
            tracing::debug!(id = %link.id, ?undone, "attach failed");
            Err(e)
        }
    }
}

fn finish(
    route: &mut Route,
    link: &Link,
    parent: &Iface,
    inner: &Inside,
    netns: BorrowedFd<'_>,
) -> Result<(), Error> {
    if let Some(host_if) = link.host_if() {
        no_v6(host_if)?;
        if inner.held && !parent.stp {
            let host = look_up(route, host_if)?;
            route.set_up(host.index).map_err(Error::link(host_if))?;
        } else {
            attach_port(route, host_if, &parent.name)?;
        }
    }
    inside(netns, || set_up_inside(inner))?;
    match link.host_if() {
        Some(host_if) => settle(route, host_if),
        None => Ok(()),
    }
}

/// Makes the host side of a veth a port of its bridge, and up.
pub(super) fn attach_port(route: &mut Route, host_if: &str, bridge: &str) -> Result<(), Error> {
    let port = look_up(route, host_if)?;
    let bridge_index = look_up(route, bridge)?.index;
    if port.master == Some(bridge_index) && port.up {
        return Ok(());
    }
    route.set_master(port.index, bridge_index).map_err(Error::link(host_if))
}

/// Makes the veth of a pod, both ends down: `eth0` in `netns`, the other end here. The request comes from the pod's side,
/// since only the near end's index can be chosen.
pub(super) fn make_veth(
    netns: BorrowedFd<'_>,
    mac: [u8; 6],
    host_if: &str,
    host_mac: Option<[u8; 6]>,
    mtu: u32,
) -> Result<(), Error> {
    let here = netlink::own_netns().map_err(Error::link("this host"))?;
    let near = End { name: POD_IF, mac: Some(mac), index: Some(POD_IFINDEX), netns: None };
    let far = End { name: host_if, mac: host_mac, index: None, netns: Some(here.as_fd()) };
    inside(netns, open_route)?.add_veth(&near, &far, mtu).map_err(|e| taken(e, host_if))
}

/// An interface that must be there.
pub(super) fn look_up(route: &mut Route, name: &str) -> Result<Iface, Error> {
    let found = route.iface(name).map_err(Error::link(name))?;
    found.ok_or_else(|| Error::NoInterface(name.to_owned()))
}

/// EEXIST on the host side's name is a link of the same pod.
fn taken(error: netlink::Error, host_if: &str) -> Error {
    if error.errno() == Some(libc::EEXIST) {
        Error::Taken {
            what: format!("link {host_if}"),
            remedy: "the pod is up on this host already, or an earlier one left its link behind: `podmig rm -f` it"
                .to_owned(),
        }
    } else {
        Error::link(host_if)(error)
    }
}
