//! Probes of the network, in network namespaces of their own.

use super::{why, why_io};
use crate::kernel::netlink::{self, End, Route};
use crate::kernel::nfnetlink::{self, BaseChain, Batch, Family, Field, Nft, Policy, Rule};
use crate::kernel::packet::{self, Packet};
use crate::kernel::sockdiag::SockDiag;
use crate::kernel::tcp_repair as repair;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::error::Error as _;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

fn reason(e: &netlink::Error) -> String {
    let cause = e.source().and_then(|s| s.downcast_ref::<std::io::Error>());
    let errno = cause.and_then(std::io::Error::raw_os_error).map(nix::errno::Errno::from_raw);
    match errno {
        Some(errno) => why(&e.to_string())(errno),
        None => e.to_string(),
    }
}

fn refused(e: &nfnetlink::Error) -> String {
    why_io(&e.what)(
        e.errno().map_or_else(|| std::io::Error::other("no reason"), std::io::Error::from_raw_os_error),
    )
}

/// Runs a probe in a new network namespace.
fn inside(probe: impl FnOnce() -> Result<String, String> + Send) -> Result<String, String> {
    let netns = netlink::new_netns().map_err(|e| reason(&e))?;
    netlink::in_netns(netns.as_fd(), probe).map_err(|e| reason(&e))?
}

fn end(name: &str) -> End<'_> {
    End { name, mac: None, index: None, netns: None }
}

fn made(what: &str, result: Result<(), netlink::Error>) -> Result<String, String> {
    result.map(|()| "made".to_owned()).map_err(|e| format!("{} (module {what})", reason(&e)))
}

/// A connection's sequence numbers can be read and set.
pub fn tcp_repair() -> Result<String, String> {
    let socket =
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(why("socket"))?;
    repair::on(&socket).map_err(why("TCP_REPAIR"))?;
    repair::choose(&socket, repair::Queue::Send).map_err(why("TCP_REPAIR_QUEUE"))?;
    repair::set_seq(&socket, 0x1234_5678).map_err(why("TCP_QUEUE_SEQ"))?;
    let seq = repair::seq(&socket).map_err(why("TCP_QUEUE_SEQ"))?;
    repair::off_quietly(&socket).map_err(why("TCP_REPAIR off"))?;
    if seq == 0x1234_5678 {
        Ok("read and set".to_owned())
    } else {
        Err("a sequence number did not read back".to_owned())
    }
}

/// Sockets are listed with their peers and queues.
pub fn sock_diag() -> Result<String, String> {
    let diag = SockDiag::open().map_err(why("NETLINK_SOCK_DIAG"))?;
    diag.unix().map_err(why("unix sockets (module unix_diag)"))?;
    diag.inet(libc::IPPROTO_TCP, u32::MAX).map_err(why("TCP sockets (module tcp_diag)"))?;
    diag.inet(libc::IPPROTO_UDP, u32::MAX).map_err(why("UDP sockets (module udp_diag)"))?;
    Ok("unix, TCP, UDP".to_owned())
}

/// Pairs of links.
pub fn veth() -> Result<String, String> {
    inside(|| {
        let mut route = Route::open().map_err(|e| reason(&e))?;
        made("veth", route.add_veth(&end("pma"), &end("pmb"), 1500))
    })
}

/// Bridges.
pub fn bridge() -> Result<String, String> {
    inside(|| made("bridge", Route::open().map_err(|e| reason(&e))?.add_bridge("pmbr")))
}

/// Links of their own MAC on another link.
pub fn macvlan() -> Result<String, String> {
    inside(|| {
        let mut route = Route::open().map_err(|e| reason(&e))?;
        route.add_veth(&end("pma"), &end("pmb"), 1500).map_err(|e| reason(&e))?;
        let parent = route.iface("pma").map_err(|e| reason(&e))?.ok_or("the link just made is not there")?;
        made("macvlan", route.add_macvlan(&end("pmv"), parent.index))
    })
}

/// Frames of one link are held: chains on its ingress and egress.
pub fn nft_netdev() -> Result<String, String> {
    inside(|| {
        let mut batch = Batch::new();
        batch.table(Family::Netdev, "podmig-check", true);
        for (name, hook) in [("in", libc::NF_NETDEV_INGRESS), ("out", libc::NF_NETDEV_EGRESS)] {
            let chain =
                BaseChain { name, kind: "filter", hook, priority: 0, dev: Some("lo"), policy: Policy::Drop };
            batch.chain(Family::Netdev, "podmig-check", &chain);
        }
        Nft::open().and_then(|mut nft| nft.commit(batch)).map_err(|e| refused(&e))?;
        Ok("ingress and egress".to_owned())
    })
}

/// Addresses are rewritten: the way in and out of `nat` pods.
pub fn nft_rewrite() -> Result<String, String> {
    inside(|| {
        let mut batch = Batch::new();
        batch.table(Family::Ip, "podmig-check", true);
        let chain = BaseChain {
            name: "in",
            kind: "nat",
            hook: libc::NF_INET_PRE_ROUTING,
            priority: -100,
            dev: None,
            policy: Policy::Accept,
        };
        batch.chain(Family::Ip, "podmig-check", &chain);
        let rule = Rule::new().protocol(libc::IPPROTO_TCP).to_port(80).dnat(Ipv4Addr::new(10, 0, 0, 1), 80);
        batch.rule(Family::Ip, "podmig-check", "in", &rule, "check");
        let chain = BaseChain { name: "raw", kind: "filter", priority: -300, ..chain };
        batch.chain(Family::Ip, "podmig-check", &chain);
        let rule = Rule::new().set_addr(Field::Dest, Ipv4Addr::new(10, 0, 0, 1));
        batch.rule(Family::Ip, "podmig-check", "raw", &rule, "check");
        Nft::open().and_then(|mut nft| nft.commit(batch)).map_err(|e| refused(&e))?;
        Ok("NAT and header rewriting".to_owned())
    })
}

/// Frames are captured and replayed with their offload state.
pub fn packet() -> Result<String, String> {
    inside(|| {
        let lo = Route::open()
            .and_then(|mut r| r.iface("lo"))
            .map_err(|e| reason(&e))?
            .ok_or("no loopback link")?;
        let options = packet::Options { offload: true, stamps: true, ..packet::Options::default() };
        Packet::open(lo.index, options).map_err(why_io("packet socket"))?;
        Ok("with offload state".to_owned())
    })
}
