//! The hold: while it is engaged not one frame passes the pod's link, in or out, ARP and neighbour discovery included.
//!
//! A netdev table on `eth0` in the pod's own namespace, with two empty base chains (ingress, egress) of policy drop. An
//! `inet` table would still let ARP be answered, and macvlan passes it by. It is state of the kernel: it stays when we die.
//! The deletion of the link while it is engaged takes the traffic with it, so nothing ever slips out after.

use super::{Error, POD_IF};
use crate::base::spec::NetMode;
use crate::kernel::netlink;
use crate::kernel::nfnetlink::{self, BaseChain, Batch, Family, Nft, Policy};
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

const TABLE: &str = "podmig-hold";

/// Before every other chain on the device.
const PRIORITY: i32 = -500;

/// How long a frame may take from its time stamp (at the host's own device) to the pod's link.
const IN_TRANSIT: Duration = Duration::from_micros(500);

/// A hand on the hold of one pod: a netfilter netlink socket in its network namespace (which it keeps alive).
///
/// Dropping it changes nothing: an engaged hold stays.
pub struct Hold {
    nft: Option<Nft>,
}

/// Proof of an engaged hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Engaged {
    /// Frames stamped earlier have certainly passed: they need no replay.
    pub since: SystemTime,
}

impl Hold {
    /// Opens the hold of the pod whose namespace is `netns`. For `host` and `none` it does nothing, ever. To be called
    /// before the freeze: it starts a thread, [`Hold::engage`] is one message.
    ///
    /// # Errors
    /// No nf_tables in the kernel; no permission.
    pub fn open(netns: BorrowedFd<'_>, mode: &NetMode) -> Result<Self, Error> {
        match mode {
            NetMode::Host | NetMode::None => Ok(Self { nft: None }),
            NetMode::Nat | NetMode::Lan(_) => {
                netlink::in_netns(netns, Self::here).map_err(Error::link("the pod's namespace"))?
            }
        }
    }

    /// The hold of the calling thread's own namespace.
    pub(super) fn here() -> Result<Self, Error> {
        Ok(Self { nft: Some(Nft::open().map_err(explain(POD_IF))?) })
    }

    /// Stops every frame. Harmless when engaged already.
    ///
    /// # Errors
    /// [`Error::Feature`] names what the kernel lacks; ENOENT when there is no `eth0`.
    pub fn engage(&mut self) -> Result<Engaged, Error> {
        let now = SystemTime::now();
        let since = now.checked_sub(IN_TRANSIT).unwrap_or(now);
        let Some(nft) = &mut self.nft else { return Ok(Engaged { since }) };
        let mut batch = Batch::new();
        batch.table(Family::Netdev, TABLE, false);
        chains(&mut batch);
        match nft.commit(batch) {
            // There is one, and this kernel does not let its chains be said again: replace it, without a gap (12 ms).
            Err(e) if matches!(e.errno(), Some(libc::EEXIST | libc::EBUSY | libc::EOPNOTSUPP)) => {
                let mut again = Batch::new();
                again.table(Family::Netdev, TABLE, false);
                again.del_table(Family::Netdev, TABLE);
                again.table(Family::Netdev, TABLE, true);
                chains(&mut again);
                nft.commit(again)
            }
            other => other,
        }
        .map_err(explain(POD_IF))?;
        Ok(Engaged { since })
    }

    /// Lets frames pass again. Only for the side that owns the pod. Harmless when lifted already.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn lift(&mut self) -> Result<(), Error> {
        let Some(nft) = &mut self.nft else { return Ok(()) };
        let mut batch = Batch::new();
        batch.del_table(Family::Netdev, TABLE);
        match nft.commit(batch) {
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(()),
            other => other.map_err(explain(POD_IF)),
        }
    }
}

fn chains(batch: &mut Batch) {
    for (name, hook) in [("in", libc::NF_NETDEV_INGRESS), ("out", libc::NF_NETDEV_EGRESS)] {
        let chain = BaseChain {
            name,
            kind: "filter",
            hook,
            priority: PRIORITY,
            dev: Some(POD_IF),
            policy: Policy::Drop,
        };
        batch.chain(Family::Netdev, TABLE, &chain);
    }
}

/// Names the missing kernel feature behind a refused step, where that is what the errno means.
pub(super) fn explain(object: &str) -> impl FnOnce(nfnetlink::Error) -> Error {
    let object = object.to_owned();
    move |source| {
        let feature = match source.errno() {
            Some(libc::EPROTONOSUPPORT) => Some("nf_tables (CONFIG_NF_TABLES)"),
            Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP) if source.what.contains("chain") => {
                Some("the netdev egress hook (CONFIG_NETFILTER_EGRESS, Linux 5.16)")
            }
            Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => {
                Some("the nf_tables netdev family (CONFIG_NF_TABLES_NETDEV)")
            }
            _ => None,
        };
        match feature {
            Some(feature) => Error::Feature { feature, source },
            None => Error::Rules { object, source },
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::base::Failure;

    #[test]
    fn a_missing_feature_is_named() {
        let refused = |what: &str, errno| {
            let source = std::io::Error::from_raw_os_error(errno);
            Failure::from(explain(POD_IF)(nfnetlink::Error { what: what.to_owned(), source })).to_string()
        };
        assert!(refused("make chain out on eth0", libc::EOPNOTSUPP).contains("NETFILTER_EGRESS"));
        assert!(refused("make table podmig-hold", libc::EAFNOSUPPORT).contains("NF_TABLES_NETDEV"));
        assert!(refused("open a netfilter netlink socket", libc::EPROTONOSUPPORT).contains("nf_tables"));
        let other = refused("make chain in on eth0", libc::EPERM);
        assert!(other.contains("eth0") && other.contains("chain in"), "{other}");
    }
}
