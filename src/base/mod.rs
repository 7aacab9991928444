//! Words every room shares: identities, addresses, the pod's definition, failures. No I/O, no syscalls.

pub mod addr;
pub mod failure;
pub mod id;
pub mod spec;

pub use addr::{AddrRange, RemoteAddr};
pub use failure::{Blocker, Failure, Kind};
pub use id::{Decision, MoveId, PodId, PodName};
