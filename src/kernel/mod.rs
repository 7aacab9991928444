//! Thin typed wrappers over the kernel: one file per call family. The one room (with `remote/stub.rs`) where `unsafe` lives.
#![allow(unsafe_code)]

pub mod descr;
pub mod fdinfo;
pub mod kcmp;
pub mod pagemap;
pub mod pidfd;
pub mod rawip;
pub mod sock;
pub mod sockdiag;
pub mod tcp_repair;
pub mod thread;
pub mod uffd;
pub mod vmio;
pub mod cgroup;
pub mod cpuid;
pub mod ptrace;
pub mod status;
