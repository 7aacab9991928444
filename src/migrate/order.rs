//! What a user asked of a move or checkpoint, as data.

use super::progress::Form;
use crate::base::spec::Publish;
use crate::policy::hosts::Host;
use std::path::PathBuf;
use std::time::Duration;

/// Where the pod goes.
#[derive(Clone, Debug)]
pub enum Destination {
    /// To a host.
    Host(Host),
    /// Into a file.
    File(PathBuf),
    /// To standard output.
    Stdout,
}

impl Destination {
    /// As reports name it.
    pub fn name(&self) -> String {
        match self {
            Destination::Host(host) => host.name.clone(),
            Destination::File(path) => path.display().to_string(),
            Destination::Stdout => "-".to_owned(),
        }
    }
}

/// A whole order.
#[derive(Clone, Debug)]
pub struct Order {
    /// Where to.
    pub to: Destination,
    /// Only say what would be in the way.
    pub dry_run: bool,
    /// Give up after this long.
    pub timeout: Duration,
    /// Ports published at the target instead of those of the definition.
    pub publish: Option<Vec<Publish>>,
    /// The pod goes on here afterwards (image only).
    pub leave_running: bool,
    /// How progress is told.
    pub progress: Form,
}
