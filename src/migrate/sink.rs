//! Where a migration's stream goes: to a peer or into an image file.

use crate::base::{Failure, Kind};
use crate::image::file::ImageWriter;
use crate::image::record::Record;
use crate::wire::channel::Channel;
use std::time::Duration;

/// A stream under way.
pub enum Sink {
    /// To the target host.
    Peer(Box<Channel>),
    /// Into a file.
    File {
        /// The image.
        image: Box<ImageWriter>,
        /// Its name, for errors.
        name: String,
    },
}

impl Sink {
    /// Sends a record.
    pub fn record(&mut self, record: &Record) -> Result<(), Failure> {
        match self {
            Sink::Peer(channel) => {
                let done = channel.record(record).and_then(|()| channel.flush());
                done.map_err(|e| said_before(channel, e))
            }
            Sink::File { image, name } => image.record(record).map_err(|e| e.failure(name)),
        }
    }

    /// Sends a page frame. A peer that refused meanwhile is heard here.
    pub fn pages(&mut self, head: &[u8], body: &[u8]) -> Result<(), Failure> {
        match self {
            Sink::Peer(channel) => {
                let done = channel.pages(head, body);
                done.map_err(|e| said_before(channel, e))?;
                if channel.wait_readable(Duration::ZERO)? {
                    // Nothing but a refusal is due in the middle of pages.
                    let got = channel.expect(Duration::from_secs(1))?;
                    let host = channel.peer.clone();
                    return Err(crate::wire::Error::Protocol { host, got: got.name().into() }.into());
                }
                Ok(())
            }
            Sink::File { image, name } => image.pages(head, body).map_err(|e| e.failure(name)),
        }
    }

    /// Gives an image its name, complete and on disk.
    pub fn finish_image(&mut self) -> Result<(), Failure> {
        match self {
            Sink::Peer(_) => Ok(()),
            Sink::File { image, name } => image.finish().map_err(|e| e.failure(name)),
        }
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        match self {
            Sink::Peer(channel) => channel.sent,
            Sink::File { image, .. } => image.written(),
        }
    }

    /// The channel, where there is one.
    pub fn channel(&mut self) -> Result<&mut Channel, Failure> {
        match self {
            Sink::Peer(channel) => Ok(channel),
            Sink::File { name, .. } => {
                Err(Failure::new(Kind::Failed, name.clone(), "an image file gives no answers"))
            }
        }
    }
}

/// When writing fails because the peer closed, its reason may already lie in our receive queue: that is the
/// error to show.
fn said_before(channel: &mut Channel, error: crate::wire::Error) -> Failure {
    match channel.wait_readable(Duration::from_millis(500)) {
        Ok(true) => match channel.expect(Duration::from_millis(500)) {
            Err(refused @ crate::wire::Error::Refused(_)) => refused.into(),
            _ => error.into(),
        },
        _ => error.into(),
    }
}
