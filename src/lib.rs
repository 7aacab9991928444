//! podmig: puts any unmodified program into a pod and moves it, running, to another host.
//!
//! # The map
//!
//! One folder is one room; a room may import only the rooms its line names (`tests/tidy.rs` reads these
//! lines and fails on any other import, and on any ring).
//!
//! ```text
//! arrows
//! base     ->                                       shared words, no I/O
//! kernel   -> base                                  thin typed syscalls, /proc, netlink; one probe per feature
//! sandbox  -> base kernel                           the walls: namespaces, mounts, capabilities, seccomp, cgroup
//! remote   -> base kernel                           act inside another process: tracees, batches, the stub
//! freeze   -> base kernel remote                    all tasks stopped or none, then the cgroup freezer over them
//! state    -> base kernel remote freeze sandbox     every kind of kernel state: data, collect, restore
//! memory   -> base kernel state                     page sets, dirty trackers, reader, filler
//! image    -> base kernel state                     records, frame codec, whole-graph check, image files
//! wire     -> base kernel image policy                     identity, TLS, ssh, hello, channels
//! net      -> base kernel                           links, NAT and ports, the hold, capture and replay
//! dns      -> base kernel                           the zone server and signed updates
//! volume   -> base kernel                           files that travel
//! policy   -> base                                  pure decisions
//! pod      -> base kernel sandbox remote freeze state net policy    spec, store, launch, init, monitor, exec, logs
//! migrate  -> base kernel sandbox remote freeze state memory image wire net dns volume policy pod    source, target, commit, report
//! agent    -> base kernel wire pod migrate          accept peers, one worker process per peer
//! cli      -> base kernel sandbox remote freeze state memory image wire net dns volume policy pod migrate agent    the contract with users
//! ```
//!
//! Data flows one way: freeze → state/collect → image → wire → state/restore. Adding a kind of state is one
//! folder under `state` and one workload under `tests/workloads`.
//!
//! `unsafe` is allowed in `kernel` and in `remote/stub.rs`, nowhere else.

pub mod agent;
pub mod base;
pub mod cli;
pub mod dns;
pub mod freeze;
pub mod image;
pub mod kernel;
pub mod memory;
pub mod migrate;
pub mod net;
pub mod pod;
pub mod policy;
pub mod remote;
pub mod sandbox;
pub mod state;
pub mod volume;
pub mod wire;
