//! The few frames we write ourselves: ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const NOBODY: Mac = [0; 6];
const ETH_P_ARP: u16 = libc::ETH_P_ARP as u16;
const ETH_P_IPV6: u16 = libc::ETH_P_IPV6 as u16;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const SOURCE_OPTION: u8 = 1;
const TARGET_OPTION: u8 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What tells everybody on the lan that `addr` is at `mac`.
pub(super) fn announcements(addr: IpAddr, mac: Mac) -> Vec<Vec<u8>> {
    match addr {
        // Some switches and hosts heed only the one form, some only the other.
        IpAddr::V4(ip) => vec![arp(REQUEST, mac, ip, NOBODY, ip), arp(REPLY, mac, ip, BROADCAST, ip)],
        IpAddr::V6(ip) => vec![advertisement(ip, mac)],
    }
}

/// What makes whoever has `addr` answer `mac`, without claiming it.
pub(super) fn question(addr: IpAddr, mac: Mac) -> Vec<u8> {
    match addr {
        IpAddr::V4(ip) => arp(REQUEST, mac, Ipv4Addr::UNSPECIFIED, NOBODY, ip),
        IpAddr::V6(ip) => solicitation(ip, mac),
    }
}

/// The kind of frames (ETH_P_*) that answers to a [`question`] come in.
pub(super) fn answer_protocol(addr: IpAddr) -> u16 {
    if addr.is_ipv4() { ETH_P_ARP } else { ETH_P_IPV6 }
}

/// If the frame shows that somebody has `addr`: who.
pub(super) fn answer(frame: &[u8], addr: IpAddr) -> Option<Mac> {
    let kind = u16::from_be_bytes(*frame.get(12..)?.first_chunk()?);
    let body = &frame[14..];
    match addr {
        IpAddr::V4(ip) if kind == ETH_P_ARP => {
            let ipv4_over_ethernet = body.get(..6)? == [0, 1, 8, 0, 6, 4];
            (ipv4_over_ethernet && body.get(14..18)? == ip.octets())
                .then(|| body.get(8..14)?.first_chunk().copied())?
        }
        IpAddr::V6(ip) if kind == ETH_P_IPV6 => {
            let icmp = (*body.get(6)? == libc::IPPROTO_ICMPV6 as u8).then(|| body.get(40..))??;
            let advertised = *icmp.first()? == NEIGHBOUR_ADVERTISEMENT && icmp.get(8..24)? == ip.octets();
            advertised.then(|| frame.get(6..12)?.first_chunk().copied())?
        }
        _ => None,
    }
}

fn ethernet(dest: Mac, source: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend_from_slice(&dest);
    frame.extend_from_slice(&source);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame
}

fn arp(op: u16, sender: Mac, sender_ip: Ipv4Addr, target: Mac, target_ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, sender, ETH_P_ARP);
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4]); // Ethernet, IPv4, their lengths
    frame.extend_from_slice(&op.to_be_bytes());
    frame.extend_from_slice(&sender);
    frame.extend_from_slice(&sender_ip.octets());
    frame.extend_from_slice(&target);
    frame.extend_from_slice(&target_ip.octets());
    frame.resize(60, 0); // shortest Ethernet frame
    frame
}

fn multicast_mac(group: Ipv6Addr) -> Mac {
    let o = group.octets();
    [0x33, 0x33, o[12], o[13], o[14], o[15]]
}

fn advertisement(addr: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let flags = [0x20, 0, 0, 0]; // override
    discovery(addr, ALL_NODES, mac, NEIGHBOUR_ADVERTISEMENT, flags, addr, Some(TARGET_OPTION))
}

fn solicitation(addr: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let o = addr.octets();
    let mut group = [0; 16];
    group[..13].copy_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff]);
    group[13..].copy_from_slice(&o[13..]);
    // From the unspecified address, without the option of our own: duplicate address detection (RFC 4862, 5.4.2).
    discovery(Ipv6Addr::UNSPECIFIED, group.into(), mac, NEIGHBOUR_SOLICITATION, [0; 4], addr, None)
}

fn discovery(
    source: Ipv6Addr,
    dest: Ipv6Addr,
    mac: Mac,
    kind: u8,
    flags: [u8; 4],
    target: Ipv6Addr,
    option: Option<u8>,
) -> Vec<u8> {
    let mut icmp = vec![kind, 0, 0, 0];
    icmp.extend_from_slice(&flags);
    icmp.extend_from_slice(&target.octets());
    if let Some(option) = option {
        debug_assert!(option == SOURCE_OPTION || option == TARGET_OPTION);
        icmp.extend_from_slice(&[option, 1]);
        icmp.extend_from_slice(&mac);
    }
    let mut pseudo = Vec::with_capacity(40 + icmp.len());
    pseudo.extend_from_slice(&source.octets());
    pseudo.extend_from_slice(&dest.octets());
    pseudo.extend_from_slice(&(icmp.len() as u32).to_be_bytes());
    pseudo.extend_from_slice(&(libc::IPPROTO_ICMPV6 as u32).to_be_bytes());
    pseudo.extend_from_slice(&icmp);
    icmp[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());

    let mut frame = ethernet(multicast_mac(dest), mac, ETH_P_IPV6);
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&(icmp.len() as u16).to_be_bytes());
    frame.extend_from_slice(&[libc::IPPROTO_ICMPV6 as u8, 255]);
    frame.extend_from_slice(&source.octets());
    frame.extend_from_slice(&dest.octets());
    frame.extend_from_slice(&icmp);
    frame
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod unit {
    use super::*;

    const MAC: Mac = [2, 1, 2, 3, 4, 5];

    #[test]
    fn an_announcement_is_an_answer_and_a_question_is_none() {
        for addr in ["192.0.2.7", "2001:db8::7"] {
            let addr: IpAddr = addr.parse().unwrap();
            let other: IpAddr =
                if addr.is_ipv4() { "192.0.2.8".parse() } else { "2001:db8::8".parse() }.unwrap();
            for frame in announcements(addr, MAC) {
                assert_eq!(answer(&frame, addr), Some(MAC), "{addr}");
                assert_eq!(answer(&frame, other), None, "{addr}");
            }
            assert_eq!(answer(&question(addr, MAC), addr), None, "{addr}");
        }
    }

    #[test]
    fn truncated_frames_are_no_answers() {
        for addr in ["192.0.2.7", "2001:db8::7"] {
            let addr: IpAddr = addr.parse().unwrap();
            let whole = announcements(addr, MAC).remove(0);
            for len in 0..38 {
                assert_eq!(answer(&whole[..len.min(whole.len())], addr).filter(|_| len < 32), None);
            }
        }
    }

    #[test]
    fn checksum_of_rfc_1071() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
