//! Pipes and FIFOs with their content.

pub mod collect;
pub mod restore;

use serde::{Deserialize, Serialize};

/// One end of a pipe. Ends with the same `pipe` number share the buffer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PipeEnd {
    /// Number of the pipe within the image.
    pub pipe: u32,
    /// Path of the FIFO, if it has a name.
    pub fifo: Option<Vec<u8>>,
    /// `F_GETPIPE_SZ`.
    pub capacity: u32,
    /// Unread bytes: given once, with the first end of this pipe in the list.
    pub content: Vec<u8>,
}
