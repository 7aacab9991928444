//! Pods on this host: definition, store, launch, init, monitor, exec, logs.

pub mod store;
