//! Connection tracking entries: those that would keep steering packets the old way are made to be forgotten (ctnetlink).

use super::nfnetlink::{Error, nest, number_ne, put};
use libc::NFNL_SUBSYS_CTNETLINK;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::io;
use std::net::Ipv4Addr;

/// Which entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// Those whose answers come from this address, whatever NAT made of it.
    AnsweredBy(Ipv4Addr),
    /// UDP flows to this port that no NAT touches.
    PlainUdpTo(u16),
}

/// Deletes the IPv4 entries chosen, in the calling thread's namespace; returns how many. A kernel without connection
/// tracking or its netlink interface has none to delete: 0.
///
/// # Errors
/// The kernel refused the dump.
pub fn forget(which: Which) -> Result<usize, Error> {
    let fail = |source| Error { what: "forget tracked connections".to_owned(), source };
    let mut socket = match Socket::new(NETLINK_NETFILTER) {
        Ok(socket) => socket,
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(0),
        Err(e) => return Err(fail(e)),
    };
    socket.bind_auto().map_err(fail)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(fail)?;
    let dump = message(CT_GET, libc::NLM_F_DUMP, |b| filter(b, which));
    socket.send(&dump, 0).map_err(fail)?;
    let mut found = Vec::new();
    loop {
        let (data, _) = socket.recv_from_full().map_err(fail)?;
        match gather(&data, which, &mut found) {
            Progress::More => {}
            Progress::Done => break,
            Progress::Refused(libc::EOPNOTSUPP | libc::EINVAL) => return Ok(0),
            Progress::Refused(errno) => return Err(fail(io::Error::from_raw_os_error(errno))),
        }
    }
    for entry in &found {
        let delete = message(CT_DELETE, libc::NLM_F_ACK, |b| {
            put(b, CTA_TUPLE_ORIG | NESTED, &entry.original);
            if let Some(id) = &entry.id {
                put(b, CTA_ID, id); // this very entry, not one that took its place
            }
        });
        socket.send(&delete, 0).map_err(fail)?;
        socket.recv_from_full().map_err(fail)?; // gone meanwhile is as good
    }
    Ok(found.len())
}

struct Entry {
    original: Vec<u8>,
    id: Option<Vec<u8>>,
}

enum Progress {
    More,
    Done,
    Refused(i32),
}

fn message(op: u16, flags: libc::c_int, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(((NFNL_SUBSYS_CTNETLINK as u16) << 8) | op).to_ne_bytes());
    bytes.extend_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[libc::AF_INET as u8, 0, 0, 0]);
    body(&mut bytes);
    let len = (bytes.len() as u32).to_ne_bytes();
    bytes[..4].copy_from_slice(&len);
    bytes
}

/// Lets the kernel choose (5.8); an older one sends all, and [`matches`] chooses.
fn filter(bytes: &mut Vec<u8>, which: Which) {
    match which {
        Which::AnsweredBy(addr) => {
            nest(bytes, CTA_TUPLE_REPLY, |b| {
                nest(b, CTA_TUPLE_IP, |b| put(b, CTA_IP_V4_SRC, &addr.octets()));
            });
            nest(bytes, CTA_FILTER, |b| {
                number_ne(b, CTA_FILTER_ORIG_FLAGS, 0);
                number_ne(b, CTA_FILTER_REPLY_FLAGS, FILTER_IP_SRC);
            });
        }
        Which::PlainUdpTo(port) => {
            nest(bytes, CTA_TUPLE_ORIG, |b| {
                nest(b, CTA_TUPLE_PROTO, |b| {
                    put(b, CTA_PROTO_NUM, &[libc::IPPROTO_UDP as u8]);
                    put(b, CTA_PROTO_DST_PORT, &port.to_be_bytes());
                });
            });
            nest(bytes, CTA_FILTER, |b| {
                number_ne(b, CTA_FILTER_ORIG_FLAGS, FILTER_PROTO_NUM | FILTER_PROTO_DST_PORT);
                number_ne(b, CTA_FILTER_REPLY_FLAGS, 0);
            });
        }
    }
}

fn gather(data: &[u8], which: Which, found: &mut Vec<Entry>) -> Progress {
    let mut rest = data;
    while let Some(header) = rest.first_chunk::<16>() {
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = libc::c_int::from(u16::from_ne_bytes([header[4], header[5]]));
        let Some(body) = rest.get(16..len) else { return Progress::Done };
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        match kind {
            libc::NLMSG_DONE => return Progress::Done,
            libc::NLMSG_ERROR => {
                let code = body.first_chunk().map_or(-libc::EINVAL, |c| i32::from_ne_bytes(*c));
                return if code == 0 { Progress::Done } else { Progress::Refused(-code) };
            }
            _ => {
                let attributes = body.get(4..).unwrap_or(&[]);
                if let Some(original) = attribute(attributes, CTA_TUPLE_ORIG)
                    && matches(attributes, which)
                {
                    let id = attribute(attributes, CTA_ID).map(<[u8]>::to_vec);
                    found.push(Entry { original: original.to_vec(), id });
                }
            }
        }
    }
    Progress::More
}

fn matches(attributes: &[u8], which: Which) -> bool {
    let path = |steps: &[u16]| steps.iter().try_fold(attributes, |level, step| attribute(level, *step));
    match which {
        Which::AnsweredBy(addr) => {
            path(&[CTA_TUPLE_REPLY, CTA_TUPLE_IP, CTA_IP_V4_SRC]) == Some(&addr.octets()[..])
        }
        Which::PlainUdpTo(port) => {
            let status = path(&[CTA_STATUS]).and_then(<[u8]>::first_chunk).map(|b| u32::from_be_bytes(*b));
            path(&[CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_PROTO_NUM]) == Some(&[libc::IPPROTO_UDP as u8][..])
                && path(&[CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT])
                    == Some(&port.to_be_bytes()[..])
                && status.is_some_and(|s| s & (IPS_SRC_NAT | IPS_DST_NAT) == 0)
        }
    }
}

/// The payload of the first attribute of a kind.
fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    while let Some(header) = rest.first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & libc::NLA_TYPE_MASK as u16;
        let payload = rest.get(4..len)?;
        if kind == wanted {
            return Some(payload);
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    None
}

// linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h
const NESTED: u16 = libc::NLA_F_NESTED as u16;
const CT_GET: u16 = 1;
const CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const FILTER_IP_SRC: u32 = 1 << 0;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;
const IPS_SRC_NAT: u32 = 1 << 4;
const IPS_DST_NAT: u32 = 1 << 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_messages_yield_nothing() {
        let whole = message(CT_GET, 0, |b| filter(b, Which::AnsweredBy(Ipv4Addr::LOCALHOST)));
        let mut found = Vec::new();
        for len in 0..whole.len() {
            gather(&whole[..len], Which::AnsweredBy(Ipv4Addr::LOCALHOST), &mut found);
        }
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 0xff;
            gather(&bent, Which::PlainUdpTo(7), &mut found);
        }
        assert!(found.is_empty());
    }
}
