//! Thin typed wrappers over the kernel: one file per call family. The one room (with `remote/stub.rs`) where `unsafe` lives.
#![allow(unsafe_code)]

pub mod conntrack;
pub mod netlink;
pub mod nfnetlink;
pub mod packet;
