//! Thin typed wrappers over the kernel: one file per call family. The one room (with `remote/stub.rs`) where `unsafe` lives.
#![allow(unsafe_code)]

pub mod cgroup;
pub mod kcmp;
pub mod maps;
pub mod memfd;
pub mod pagemap;
pub mod pidfd;
pub mod procfs;
pub mod sched;
pub mod seqpacket;
pub mod uffd;
pub mod vmio;
