//! The walls of a pod: namespaces, mounts, capabilities, seccomp, cgroup; for start and restore alike.
