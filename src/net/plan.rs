//! Checks of a network definition against this host, before anything is made.

use super::Error;
use super::ports::port_free;
use crate::base::PodId;
use crate::base::spec::{Cidr, NetMode, NetSpec, Publish};
use crate::kernel::netlink::{Iface, Route};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

/// Checks a definition (the interface is there, an address is given, the ports are free) and returns it with the
/// hardware address chosen. Makes nothing.
///
/// # Errors
/// [`Error::Usage`], [`Error::NoInterface`], [`Error::Taken`].
pub fn plan(spec: &NetSpec, id: &PodId) -> Result<NetSpec, Error> {
    let mut spec = spec.clone();
    match &spec.mode {
        NetMode::Host | NetMode::None => {
            no_address(&spec)?;
            no_ports(&spec)?;
        }
        NetMode::Nat => {
            no_address(&spec)?;
            check_ports(&spec.publish)?;
            spec.mac.get_or_insert_with(|| mac_for(id));
        }
        NetMode::Lan(name) => {
            no_ports(&spec)?;
            check_interface(name)?;
            check_address(&spec)?;
            spec.mac.get_or_insert_with(|| mac_for(id));
        }
    }
    if let Some(mac) = spec.mac
        && (mac[0] & 1 == 1 || mac == [0; 6])
    {
        return Err(Error::usage("mac", "it is not a unicast hardware address", "leave it out"));
    }
    Ok(spec)
}

/// The hardware address of a pod's link: locally administered, unicast, from the last 40 bits of the id (which is random).
pub fn mac_for(id: &PodId) -> [u8; 6] {
    let [_, _, _, a, b, c, d, e] = u64::from_str_radix(id.as_str(), 16).unwrap_or(0).to_be_bytes();
    [0x02, a, b, c, d, e]
}

fn mode_name(spec: &NetSpec) -> &'static str {
    match spec.mode {
        NetMode::Nat => "nat",
        NetMode::Lan(_) => "lan",
        NetMode::Host => "host",
        NetMode::None => "none",
    }
}

fn no_address(spec: &NetSpec) -> Result<(), Error> {
    let mode = mode_name(spec);
    let object = match (spec.ip, spec.gateway) {
        (None, None) => return Ok(()),
        (Some(_), _) => "--ip",
        (None, Some(_)) => "--gateway",
    };
    Err(Error::usage(
        object,
        format!("a pod with --net {mode} has no address of its own"),
        "use --net lan:IF",
    ))
}

fn no_ports(spec: &NetSpec) -> Result<(), Error> {
    if spec.publish.is_empty() {
        return Ok(());
    }
    let message = match spec.mode {
        NetMode::Lan(_) => "a lan pod is reached at its own address, on every port",
        NetMode::Host => "the pod listens on the host's own ports",
        _ => "a pod without network cannot publish ports",
    };
    Err(Error::usage("-p", message, "leave -p out, or use --net nat"))
}

fn check_ports(publish: &[Publish]) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for port in publish {
        if port.pod_port == 0 {
            return Err(Error::usage("-p", "port 0 inside the pod", "give the port the program listens on"));
        }
        if port.host_port == 0 {
            continue;
        }
        if !seen.insert((port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED), port.host_port, port.udp)) {
            let message = format!("host port {} is published twice", port.host_port);
            return Err(Error::usage("-p", message, "give each one a host port of its own"));
        }
        port_free(port)?;
    }
    Ok(())
}

fn check_interface(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(Error::usage("--net", "lan needs an interface", "give --net lan:IF"));
    }
    let mut route = Route::open().map_err(Error::link(name))?;
    let iface = route.iface(name).map_err(Error::link(name))?;
    let Iface { master, bridge, loopback, .. } = iface.ok_or_else(|| Error::NoInterface(name.to_owned()))?;
    if loopback {
        return Err(Error::usage(format!("lan:{name}"), "it is the loopback interface", "use --net host"));
    }
    if let (Some(index), false) = (master, bridge) {
        let master = route.iface_at(index).map_err(Error::link(name))?;
        let master = master.map_or_else(|| "its bridge".to_owned(), |m| m.name);
        let message = format!("it is a port of {master} and cannot carry a link of its own");
        return Err(Error::usage(format!("lan:{name}"), message, format!("give --net lan:{master}")));
    }
    Ok(())
}

fn check_address(spec: &NetSpec) -> Result<(), Error> {
    let Some(Cidr { addr, prefix }) = spec.ip else {
        return Err(Error::usage("--ip", "a lan pod needs an address", "give --ip ADDR/LEN"));
    };
    let bits = if addr.is_ipv4() { 32 } else { 128 };
    let object = format!("--ip {addr}/{prefix}");
    if prefix == 0 || prefix > bits {
        return Err(Error::usage(object, format!("the length is 1 to {bits}"), "give ADDR/LEN"));
    }
    let bad = addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || is_edge(addr, prefix);
    if bad {
        return Err(Error::usage(object, "no host can have this address", "give an address of the lan"));
    }
    match spec.gateway {
        Some(gateway) if gateway.is_ipv4() != addr.is_ipv4() => {
            let message = format!("the gateway is of another family than {addr}");
            Err(Error::usage(format!("--gateway {gateway}"), message, "give one of the same family"))
        }
        Some(gateway) if gateway == addr => Err(Error::usage(
            format!("--gateway {gateway}"),
            "it is the pod's own address",
            "give the router's",
        )),
        _ => Ok(()),
    }
}

/// The net's own or its broadcast address (IPv4).
fn is_edge(addr: IpAddr, prefix: u8) -> bool {
    let IpAddr::V4(v4) = addr else { return false };
    let hosts = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    let part = u32::from(v4) & hosts;
    v4.is_broadcast() || (prefix < 31 && (part == 0 || part == hosts))
}
