//! The packet rules of a `nat` pod, in two tables of its own, so that undoing them is one transaction.
//!
//! Table `podmig-ID` of family netdev, on the host side of the veth, stateless: what comes out of the pod has its source
//! [`INSIDE`] replaced by the transit address before anything else on the host sees it, what goes in has it put back;
//! also in the packet that an ICMP error quotes. Only IPv4 from the pod's own address gets out, and never to 127/8.
//! Table `podmig-ID` of family ip: published ports and masquerade.

use super::nat::{GATEWAY, INSIDE};
use super::{Error, hold};
use crate::base::PodId;
use crate::base::spec::Publish;
use crate::kernel::conntrack::{self, Which};
use crate::kernel::nfnetlink::{BaseChain, Batch, Family, Field, Nft, Policy, Rule};
use std::net::Ipv4Addr;

/// ICMP errors that quote the packet they are about (RFC 792): unreachable, time exceeded, parameter problem.
const ICMP_ERRORS: [u8; 3] = [3, 11, 12];

/// ICMP redirect: the host must never tell a pod to go another way.
const ICMP_REDIRECT: u8 = 5;

// linux/netfilter_ipv4.h: NF_IP_PRI_NAT_DST, NF_IP_PRI_NAT_SRC.
const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_SRCNAT: i32 = 100;

fn table(id: &PodId) -> String {
    format!("podmig-{id}")
}

/// Puts the rules of a pod in place.
pub(super) fn install(
    id: &PodId,
    host_if: &str,
    transit: Ipv4Addr,
    publish: &[Publish],
) -> Result<(), Error> {
    let name = table(id);
    let mut batch = Batch::new();
    swap_table(&mut batch, &name, host_if, transit);
    nat_table(&mut batch, &name, host_if, transit, publish);
    let mut nft = Nft::open().map_err(hold::explain(host_if))?;
    nft.commit(batch).map_err(hold::explain(host_if))?;
    // A client that kept asking before the port was published has an entry that NAT never looks at again.
    for port in publish.iter().filter(|p| p.udp) {
        forget(Which::PlainUdpTo(port.host_port));
    }
    Ok(())
}

/// After the rules of a pod are gone: connections to it end, instead of being steered to an address nobody has.
pub(super) fn forget_flows(transit: Ipv4Addr) {
    forget(Which::AnsweredBy(transit));
}

/// Best effort: without it clients wait for a timeout, nothing worse.
fn forget(which: Which) {
    match conntrack::forget(which) {
        Ok(count) => tracing::debug!(?which, count, "tracked connections forgotten"),
        Err(error) => tracing::warn!(?which, %error, "tracked connections not forgotten"),
    }
}

fn swap_table(batch: &mut Batch, name: &str, host_if: &str, transit: Ipv4Addr) {
    let family = Family::Netdev;
    batch.table(family, name, true);
    let chain = |name, hook, policy| BaseChain {
        name,
        kind: "filter",
        hook,
        priority: 0,
        dev: Some(host_if),
        policy,
    };
    batch.chain(family, name, &chain("from-pod", libc::NF_NETDEV_INGRESS, Policy::Drop));
    let ours = || Rule::new().is_ipv4().addr(Field::Source, INSIDE);
    let no_loopback = ours().loopback(Field::Dest).drop();
    batch.rule(family, name, "from-pod", &no_loopback, "nothing to 127/8");
    for kind in ICMP_ERRORS {
        let quoted = ours().protocol(libc::IPPROTO_ICMP).icmp_type(kind);
        let quoted = quoted.addr(Field::QuotedDest, INSIDE).set_addr(Field::QuotedDest, transit);
        batch.rule(family, name, "from-pod", &quoted, "swap in quoted packets");
    }
    let swap = ours().set_addr(Field::Source, transit).accept();
    batch.rule(family, name, "from-pod", &swap, "swap the source");

    batch.chain(family, name, &chain("to-pod", libc::NF_NETDEV_EGRESS, Policy::Accept));
    let ours = || Rule::new().is_ipv4().addr(Field::Dest, transit);
    let redirect = ours().protocol(libc::IPPROTO_ICMP).icmp_type(ICMP_REDIRECT).drop();
    batch.rule(family, name, "to-pod", &redirect, "no redirects");
    for kind in ICMP_ERRORS {
        let quoted = ours().protocol(libc::IPPROTO_ICMP).icmp_type(kind);
        let quoted = quoted.addr(Field::QuotedSource, transit).set_addr(Field::QuotedSource, INSIDE);
        batch.rule(family, name, "to-pod", &quoted, "swap in quoted packets");
    }
    let swap = ours().set_addr(Field::Dest, INSIDE).accept();
    batch.rule(family, name, "to-pod", &swap, "swap the destination");
}

fn nat_table(batch: &mut Batch, name: &str, host_if: &str, transit: Ipv4Addr, publish: &[Publish]) {
    let family = Family::Ip;
    batch.table(family, name, true);
    let chain = |name, hook, priority| BaseChain {
        name,
        kind: "nat",
        hook,
        priority,
        dev: None,
        policy: Policy::Accept,
    };
    let dnat_chains = [("prerouting", libc::NF_INET_PRE_ROUTING), ("output", libc::NF_INET_LOCAL_OUT)];
    for (chain_name, hook) in dnat_chains {
        if publish.is_empty() {
            break;
        }
        batch.chain(family, name, &chain(chain_name, hook, PRIORITY_DSTNAT));
        for port in publish {
            let to = match port.host_ip {
                Some(ip) if !ip.is_unspecified() => Rule::new().addr(Field::Dest, ip),
                _ => Rule::new().to_local(),
            };
            let proto = if port.udp { libc::IPPROTO_UDP } else { libc::IPPROTO_TCP };
            let rule = to.protocol(proto).to_port(port.host_port).dnat(transit, port.pod_port);
            batch.rule(family, name, chain_name, &rule, "publish a port");
        }
    }
    batch.chain(family, name, &chain("postrouting", libc::NF_INET_POST_ROUTING, PRIORITY_SRCNAT));
    let from_loopback = Rule::new().out_if(host_if).loopback(Field::Source).snat(GATEWAY);
    batch.rule(family, name, "postrouting", &from_loopback, "programs on 127.0.0.1 come from the gateway");
    let outbound = Rule::new().addr(Field::Source, transit).masquerade();
    batch.rule(family, name, "postrouting", &outbound, "masquerade");
}

/// What [`remove`] did.
pub(super) struct Removed {
    /// There were rules.
    pub(super) found: bool,
    /// The socket used: closing it waits until what was deleted is buried (10 to 20 ms), so it is closed last.
    _socket: Option<Nft>,
}

/// Removes the rules of a pod.
pub(super) fn remove(id: &PodId) -> Result<Removed, Error> {
    let name = table(id);
    let mut nft = match Nft::open() {
        Ok(nft) => nft,
        Err(e) if e.errno() == Some(libc::EPROTONOSUPPORT) => {
            return Ok(Removed { found: false, _socket: None });
        }
        Err(source) => return Err(Error::Rules { object: name, source }),
    };
    // In one transaction, since a second one would wait for the first one's dead to be buried.
    let mut found = delete(&mut nft, &name, &[Family::Netdev, Family::Ip])?;
    if !found {
        found = delete(&mut nft, &name, &[Family::Netdev])?;
        found |= delete(&mut nft, &name, &[Family::Ip])?;
    }
    Ok(Removed { found, _socket: Some(nft) })
}

/// Deletes tables, all or none. False: one of them was not there.
fn delete(nft: &mut Nft, name: &str, families: &[Family]) -> Result<bool, Error> {
    let mut batch = Batch::new();
    for family in families {
        batch.del_table(*family, name);
    }
    match nft.commit(batch) {
        Ok(()) => Ok(true),
        // Not there; or a kernel without nf_tables or that family, which cannot have any.
        Err(e) if matches!(e.errno(), Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
            Ok(false)
        }
        Err(source) => Err(Error::Rules { object: name.to_owned(), source }),
    }
}
