//! Pods on this host: definition, store, launch, init, monitor, exec, logs.

pub mod client;
pub mod decisions;
pub mod define;
pub mod exec;
pub mod init;
pub mod launch;
pub mod logs;
pub mod monitor;
pub mod moving;
pub mod proto;
pub mod store;

use crate::base::PodId;
use std::ffi::OsString;
use std::process::ExitCode;

/// The hidden subcommands podmig runs itself with: `Some` when `args` (with the program's name) is one of them, after
/// it has run. To be asked before the command line is parsed.
pub fn hidden(args: &[OsString]) -> Option<ExitCode> {
    match args.get(1)?.to_str()? {
        "__monitor" => Some(monitor::main()),
        _ => None,
    }
}

/// `NOTIFY_SOCKET` of a pod of type `notify`: an abstract socket, the same on every host the pod comes to.
pub fn notify_name(id: &PodId) -> String {
    format!("@podmig/{id}/notify")
}
