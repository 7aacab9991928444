//! Thin typed wrappers over the kernel: one file per call family. The one room (with `remote/stub.rs`) where `unsafe` lives.
#![allow(unsafe_code)]

pub mod cgroup;
pub mod clone;
pub mod memfd;
pub mod seqpacket;
pub mod tty;
