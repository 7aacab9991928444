//! nf_tables by hand-made nfnetlink batches: no `nft` process, so a commit costs tens of microseconds.
//!
//! Numbers are those of linux/netfilter/nf_tables.h; where libc names them its names are used. Every batch is a
//! transaction: all of it happens or nothing.

use libc::{NFNL_SUBSYS_NFTABLES, NFT_REG_1, NFT_REG_2};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::io;
use std::net::Ipv4Addr;

/// A batch the kernel refused: the step it refused, and the errno.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct Error {
    /// The step, in words.
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

/// Protocol families of tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    Ip = libc::NFPROTO_IPV4 as isize,
    /// Frames of one device.
    Netdev = libc::NFPROTO_NETDEV as isize,
}

/// What a base chain does with a packet that no rule decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Let it pass.
    Accept,
    /// Drop it.
    Drop,
}

/// A base chain.
#[derive(Clone, Copy, Debug)]
pub struct BaseChain<'a> {
    /// Name.
    pub name: &'a str,
    /// `filter` or `nat`.
    pub kind: &'a str,
    /// Hook number of the family.
    pub hook: i32,
    /// Priority: lower runs earlier.
    pub priority: i32,
    /// Device (netdev family).
    pub dev: Option<&'a str>,
    /// Policy.
    pub policy: Policy,
}

/// A transaction under construction.
pub struct Batch {
    bytes: Vec<u8>,
    steps: Vec<String>,
}

const MSG_HEADER: usize = 16;

impl Batch {
    /// An empty transaction.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let mut batch = Self { bytes: Vec::with_capacity(4096), steps: Vec::new() };
        batch.edge(libc::NFNL_MSG_BATCH_BEGIN as u16, "begin a transaction");
        batch
    }

    fn edge(&mut self, kind: u16, step: &str) {
        let at = self.open(kind, libc::NLM_F_REQUEST as u16, libc::AF_UNSPEC as u8, step.to_owned());
        let res_id = (NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
        self.bytes[at + MSG_HEADER + 2..at + MSG_HEADER + 4].copy_from_slice(&res_id);
        self.close(at);
    }

    /// Starts a message; its sequence number is its place in `steps`.
    fn open(&mut self, kind: u16, flags: u16, family: u8, step: String) -> usize {
        let at = self.bytes.len();
        let seq = self.steps.len() as u32;
        self.steps.push(step);
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&seq.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&[family, 0, 0, 0]); // nfgenmsg: family, NFNETLINK_V0, res_id 0
        at
    }

    fn close(&mut self, at: usize) {
        let len = (self.bytes.len() - at) as u32;
        self.bytes[at..at + 4].copy_from_slice(&len.to_ne_bytes());
    }

    fn message(
        &mut self,
        op: i32,
        flags: i32,
        family: Family,
        step: String,
        body: impl FnOnce(&mut Vec<u8>),
    ) {
        let kind = ((NFNL_SUBSYS_NFTABLES << 8) | op) as u16;
        let at = self.open(kind, (libc::NLM_F_REQUEST | flags) as u16, family as u8, step);
        body(&mut self.bytes);
        self.close(at);
    }

    /// Makes a table; with `fresh` it must not exist (EEXIST).
    pub fn table(&mut self, family: Family, name: &str, fresh: bool) {
        let flags = libc::NLM_F_CREATE | if fresh { libc::NLM_F_EXCL } else { 0 };
        self.message(libc::NFT_MSG_NEWTABLE, flags, family, format!("make table {name}"), |b| {
            text(b, NFTA_TABLE_NAME, name);
            number(b, NFTA_TABLE_FLAGS, 0);
        });
    }

    /// Deletes a table with all that is in it (ENOENT: there is none).
    pub fn del_table(&mut self, family: Family, name: &str) {
        self.message(libc::NFT_MSG_DELTABLE, 0, family, format!("delete table {name}"), |b| {
            text(b, NFTA_TABLE_NAME, name);
        });
    }

    /// Makes a base chain.
    pub fn chain(&mut self, family: Family, table: &str, chain: &BaseChain<'_>) {
        let step = match chain.dev {
            Some(dev) => format!("make chain {} on {dev}", chain.name),
            None => format!("make chain {}", chain.name),
        };
        self.message(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, family, step, |b| {
            text(b, NFTA_CHAIN_TABLE, table);
            text(b, NFTA_CHAIN_NAME, chain.name);
            nest(b, NFTA_CHAIN_HOOK, |b| {
                number(b, NFTA_HOOK_HOOKNUM, chain.hook as u32);
                number(b, NFTA_HOOK_PRIORITY, chain.priority as u32);
                if let Some(dev) = chain.dev {
                    text(b, NFTA_HOOK_DEV, dev);
                }
            });
            let policy = if chain.policy == Policy::Drop { libc::NF_DROP } else { libc::NF_ACCEPT };
            number(b, NFTA_CHAIN_POLICY, policy as u32);
            text(b, NFTA_CHAIN_TYPE, chain.kind);
        });
    }

    /// Appends a rule to a chain; `why` names it in errors.
    pub fn rule(&mut self, family: Family, table: &str, chain: &str, rule: &Rule, why: &str) {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        let step = format!("add the rule \"{why}\" to {table}");
        self.message(libc::NFT_MSG_NEWRULE, flags, family, step, |b| {
            text(b, NFTA_RULE_TABLE, table);
            text(b, NFTA_RULE_CHAIN, chain);
            put(b, NFTA_RULE_EXPRESSIONS | libc::NLA_F_NESTED as u16, &rule.expressions);
        });
    }
}

/// A rule: expressions in the order they are evaluated.
#[derive(Clone, Default, Debug)]
pub struct Rule {
    expressions: Vec<u8>,
}

impl Rule {
    /// A rule that matches everything and does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    fn expr(mut self, name: &str, data: impl FnOnce(&mut Vec<u8>)) -> Self {
        nest(&mut self.expressions, NFTA_LIST_ELEM, |b| {
            text(b, NFTA_EXPR_NAME, name);
            nest(b, NFTA_EXPR_DATA, data);
        });
        self
    }

    fn load_payload(self, base: i32, offset: u32, len: u32) -> Self {
        self.expr("payload", |b| {
            number(b, NFTA_PAYLOAD_DREG, NFT_REG_1 as u32);
            number(b, NFTA_PAYLOAD_BASE, base as u32);
            number(b, NFTA_PAYLOAD_OFFSET, offset);
            number(b, NFTA_PAYLOAD_LEN, len);
        })
    }

    fn load_meta(self, key: i32) -> Self {
        self.expr("meta", |b| {
            number(b, NFTA_META_DREG, NFT_REG_1 as u32);
            number(b, NFTA_META_KEY, key as u32);
        })
    }

    fn cmp(self, op: i32, value: &[u8]) -> Self {
        self.expr("cmp", |b| {
            number(b, NFTA_CMP_SREG, NFT_REG_1 as u32);
            number(b, NFTA_CMP_OP, op as u32);
            nest(b, NFTA_CMP_DATA, |b| put(b, NFTA_DATA_VALUE, value));
        })
    }

    fn load(self, register: i32, value: &[u8]) -> Self {
        self.expr("immediate", |b| {
            number(b, NFTA_IMMEDIATE_DREG, register as u32);
            nest(b, NFTA_IMMEDIATE_DATA, |b| put(b, NFTA_DATA_VALUE, value));
        })
    }

    /// Matches IPv4 frames (needed first in a netdev table).
    #[must_use]
    pub fn is_ipv4(self) -> Self {
        self.load_meta(libc::NFT_META_PROTOCOL).cmp(libc::NFT_CMP_EQ, &(libc::ETH_P_IP as u16).to_be_bytes())
    }

    /// Matches the layer 4 protocol (IPPROTO_*).
    #[must_use]
    pub fn protocol(self, proto: i32) -> Self {
        self.load_meta(libc::NFT_META_L4PROTO).cmp(libc::NFT_CMP_EQ, &[proto as u8])
    }

    /// Matches the outgoing device.
    #[must_use]
    pub fn out_if(self, name: &str) -> Self {
        let mut padded = [0u8; libc::IFNAMSIZ];
        let len = name.len().min(libc::IFNAMSIZ - 1);
        padded[..len].copy_from_slice(&name.as_bytes()[..len]);
        self.load_meta(libc::NFT_META_OIFNAME).cmp(libc::NFT_CMP_EQ, &padded)
    }

    /// Matches four bytes of a header at `field`.
    #[must_use]
    pub fn addr(self, field: Field, addr: Ipv4Addr) -> Self {
        self.load_payload(field.base(), field.offset(), 4).cmp(libc::NFT_CMP_EQ, &addr.octets())
    }

    /// Matches an address under 127.0.0.0/8.
    #[must_use]
    pub fn loopback(self, field: Field) -> Self {
        self.load_payload(field.base(), field.offset(), 1).cmp(libc::NFT_CMP_EQ, &[127])
    }

    /// Matches a destination that is an address of this host (`fib daddr type local`).
    #[must_use]
    pub fn to_local(self) -> Self {
        let matched = self.expr("fib", |b| {
            number(b, NFTA_FIB_DREG, NFT_REG_1 as u32);
            number(b, NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
            number(b, NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR);
        });
        matched.cmp(libc::NFT_CMP_EQ, &u32::from(libc::RTN_LOCAL).to_ne_bytes())
    }

    /// Matches the destination port (after [`Rule::protocol`] TCP or UDP).
    #[must_use]
    pub fn to_port(self, port: u16) -> Self {
        self.load_payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2).cmp(libc::NFT_CMP_EQ, &port.to_be_bytes())
    }

    /// Matches the ICMP type (after [`Rule::protocol`] ICMP).
    #[must_use]
    pub fn icmp_type(self, kind: u8) -> Self {
        self.load_payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1).cmp(libc::NFT_CMP_EQ, &[kind])
    }

    /// Rewrites an address, with all the checksums it is part of.
    #[must_use]
    pub fn set_addr(self, field: Field, addr: Ipv4Addr) -> Self {
        self.load(NFT_REG_1, &addr.octets()).expr("payload", |b| {
            number(b, NFTA_PAYLOAD_SREG, NFT_REG_1 as u32);
            number(b, NFTA_PAYLOAD_BASE, field.base() as u32);
            number(b, NFTA_PAYLOAD_OFFSET, field.offset());
            number(b, NFTA_PAYLOAD_LEN, 4);
            number(b, NFTA_PAYLOAD_CSUM_TYPE, libc::NFT_PAYLOAD_CSUM_INET as u32);
            number(b, NFTA_PAYLOAD_CSUM_OFFSET, field.checksum());
            number(b, NFTA_PAYLOAD_CSUM_FLAGS, field.checksum_flags());
        })
    }

    /// Destination NAT to an address and port (chain of type nat).
    #[must_use]
    pub fn dnat(self, addr: Ipv4Addr, port: u16) -> Self {
        self.load(NFT_REG_1, &addr.octets()).load(NFT_REG_2, &port.to_be_bytes()).expr("nat", |b| {
            number(b, NFTA_NAT_TYPE, NFT_NAT_DNAT);
            number(b, NFTA_NAT_FAMILY, libc::NFPROTO_IPV4 as u32);
            number(b, NFTA_NAT_REG_ADDR_MIN, NFT_REG_1 as u32);
            number(b, NFTA_NAT_REG_PROTO_MIN, NFT_REG_2 as u32);
        })
    }

    /// Source NAT to an address (chain of type nat).
    #[must_use]
    pub fn snat(self, addr: Ipv4Addr) -> Self {
        self.load(NFT_REG_1, &addr.octets()).expr("nat", |b| {
            number(b, NFTA_NAT_TYPE, NFT_NAT_SNAT);
            number(b, NFTA_NAT_FAMILY, libc::NFPROTO_IPV4 as u32);
            number(b, NFTA_NAT_REG_ADDR_MIN, NFT_REG_1 as u32);
        })
    }

    /// Source NAT to the outgoing device's address (chain of type nat).
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.expr("masq", |_| {})
    }

    /// Decides: let the packet pass this chain.
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(libc::NF_ACCEPT)
    }

    /// Decides: drop.
    #[must_use]
    pub fn drop(self) -> Self {
        self.verdict(libc::NF_DROP)
    }

    fn verdict(self, code: i32) -> Self {
        self.expr("immediate", |b| {
            number(b, NFTA_IMMEDIATE_DREG, libc::NFT_REG_VERDICT as u32);
            nest(b, NFTA_IMMEDIATE_DATA, |b| {
                nest(b, NFTA_DATA_VERDICT, |b| number(b, NFTA_VERDICT_CODE, code as u32));
            });
        })
    }
}

/// An IPv4 address in a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// The packet's source.
    Source,
    /// The packet's destination.
    Dest,
    /// Source of the packet that an ICMP error quotes.
    QuotedSource,
    /// Destination of the packet that an ICMP error quotes.
    QuotedDest,
}

impl Field {
    fn base(self) -> i32 {
        match self {
            Field::Source | Field::Dest => libc::NFT_PAYLOAD_NETWORK_HEADER,
            Field::QuotedSource | Field::QuotedDest => libc::NFT_PAYLOAD_TRANSPORT_HEADER,
        }
    }
    fn offset(self) -> u32 {
        match self {
            Field::Source => 12,
            Field::Dest => 16,
            Field::QuotedSource => 8 + 12,
            Field::QuotedDest => 8 + 16,
        }
    }
    /// Where the checksum of the IP header it stands in lies. For a quoted header the two changes cancel out in the ICMP
    /// checksum around it.
    fn checksum(self) -> u32 {
        match self {
            Field::Source | Field::Dest => 10,
            Field::QuotedSource | Field::QuotedDest => 8 + 10,
        }
    }
    fn checksum_flags(self) -> u32 {
        match self {
            Field::Source | Field::Dest => NFT_PAYLOAD_L4CSUM_PSEUDOHDR,
            Field::QuotedSource | Field::QuotedDest => 0,
        }
    }
}

/// An nfnetlink socket in the namespace of the thread that opened it.
pub struct Nft {
    socket: Socket,
}

impl Nft {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// EPROTONOSUPPORT: no netfilter netlink in this kernel.
    pub fn open() -> Result<Self, Error> {
        let err = |source| Error { what: "open a netfilter netlink socket".to_owned(), source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(err)?;
        socket.bind_auto().map_err(err)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(err)?;
        socket.set_non_blocking(true).map_err(err)?;
        Ok(Self { socket })
    }

    /// Commits a transaction: all of it or nothing.
    ///
    /// # Errors
    /// The first step refused and its errno.
    pub fn commit(&mut self, mut batch: Batch) -> Result<(), Error> {
        batch.edge(libc::NFNL_MSG_BATCH_END as u16, "commit the transaction");
        let fail = |step: usize, source| Error {
            what: batch.steps.get(step).cloned().unwrap_or_else(|| "commit the transaction".to_owned()),
            source,
        };
        self.socket.send(&batch.bytes, 0).map_err(|e| fail(0, e))?;
        // The kernel works within send(2), and answers failures only (no step asks for an acknowledgement): when the
        // queue is empty, all went well.
        let mut first: Option<(usize, i32)> = None;
        loop {
            match self.socket.recv_from_full() {
                Ok((data, _)) => {
                    if let Some(error) = failures(&data).next() {
                        first.get_or_insert(error);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(fail(batch.steps.len() - 1, e)),
            }
        }
        match first {
            None => Ok(()),
            Some((step, errno)) => Err(fail(step, io::Error::from_raw_os_error(errno))),
        }
    }
}

/// (sequence number, errno) of each NLMSG_ERROR with an error in it.
fn failures(data: &[u8]) -> impl Iterator<Item = (usize, i32)> + '_ {
    let mut rest = data;
    std::iter::from_fn(move || {
        while rest.len() >= MSG_HEADER + 4 {
            let word =
                |at: usize| rest.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
            let (len, seq, code) = (word(0)? as usize, word(8)? as usize, word(MSG_HEADER)? as i32);
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            rest = rest.get(len.next_multiple_of(4).max(MSG_HEADER)..).unwrap_or(&[]);
            if i32::from(kind) == libc::NLMSG_ERROR && code != 0 {
                return Some((seq, -code));
            }
        }
        None
    })
}

pub(super) fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn text(bytes: &mut Vec<u8>, kind: u16, value: &str) {
    let mut with_nul = value.as_bytes().to_vec();
    with_nul.push(0);
    put(bytes, kind, &with_nul);
}

fn number(bytes: &mut Vec<u8>, kind: u16, value: u32) {
    put(bytes, kind, &value.to_be_bytes());
}

/// A number in the host's byte order (nf_tables wants big endian, conntrack filters do not).
pub(super) fn number_ne(bytes: &mut Vec<u8>, kind: u16, value: u32) {
    put(bytes, kind, &value.to_ne_bytes());
}

pub(super) fn nest(bytes: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let at = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    body(bytes);
    let len = (bytes.len() - at) as u16;
    bytes[at..at + 2].copy_from_slice(&len.to_ne_bytes());
    bytes[at + 2..at + 4].copy_from_slice(&(kind | libc::NLA_F_NESTED as u16).to_ne_bytes());
}

// linux/netfilter/nf_tables.h: attribute numbers libc does not name.
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_PAYLOAD_SREG: u16 = 5;
const NFTA_PAYLOAD_CSUM_TYPE: u16 = 6;
const NFTA_PAYLOAD_CSUM_OFFSET: u16 = 7;
const NFTA_PAYLOAD_CSUM_FLAGS: u16 = 8;
const NFT_PAYLOAD_L4CSUM_PSEUDOHDR: u32 = 1;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFT_NAT_SNAT: u32 = 0;
const NFT_NAT_DNAT: u32 = 1;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 2;
