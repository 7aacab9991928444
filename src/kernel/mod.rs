//! Thin typed wrappers over the kernel: one file per call family. The one room (with `remote/stub.rs`) where `unsafe` lives.
#![allow(unsafe_code)]

pub mod errno;
pub mod features;
pub use errno::errno_text;
pub mod anon;
pub mod bpf;
pub mod cgroup;
pub mod clone;
pub mod conntrack;
pub mod cpuid;
pub mod descr;
pub mod fdinfo;
pub mod kcmp;
pub mod maps;
pub mod memfd;
pub mod netlink;
pub mod nfnetlink;
pub mod packet;
pub mod pagemap;
pub mod pidfd;
pub mod procfs;
pub mod ptrace;
pub mod rawip;
pub mod sched;
pub mod seqpacket;
pub mod sock;
pub mod sockdiag;
pub mod status;
pub mod tcp_repair;
pub mod thread;
pub mod tty;
pub mod uffd;
pub mod vdso;
pub mod vmio;
