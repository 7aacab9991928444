//! The walls of a pod, the same for a start and for a restore: capabilities, seccomp, mounts, namespaces.

pub mod caps;
pub mod seccomp;
