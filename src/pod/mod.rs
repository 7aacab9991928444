//! Pods on this host: definition, store, launch, init, monitor, exec, logs.

pub mod define;
pub mod init;
pub mod logs;
pub mod store;
