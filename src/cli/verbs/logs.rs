//! `podmig logs`: what a pod has written to its output.

use super::reach;
use crate::base::{Failure, Kind};
use crate::cli::request::{LogsRequest, Since};
use crate::cli::{Context, out, shape};
use crate::pod::client::Client;
use crate::pod::logs::{Entry, Reader, Stream};
use crate::pod::proto::Event;
use crate::pod::store::plain;
use jiff::Timestamp;
use serde::Serialize;
use std::io::{self, Write};

#[derive(Serialize)]
struct Line<'a> {
    schema: u32,
    time: Timestamp,
    /// `stdout` or `stderr`.
    stream: &'static str,
    text: std::borrow::Cow<'a, str>,
    /// Whether the line goes on in the next object of this stream.
    cut: bool,
}

/// Prints it: what went to standard error goes there, too. With `--json` one object a line on standard output.
pub fn run(ctx: &Context, r: &LogsRequest) -> Result<i32, Failure> {
    let record = ctx.store.find_here(&r.pod)?;
    // Before the log is read, so that nothing is missed in between.
    let mut watch = match r.follow && record.status.is_here() {
        true => Client::connect(&ctx.store, &record).and_then(|mut c| c.watch(true).map(|()| c)).ok(),
        false => None,
    };
    let path = ctx.places.log(&record.spec.id);
    let failed = |e: io::Error| {
        Failure::new(Kind::Failed, path.display().to_string(), format!("cannot read it: {}", plain(&e)))
    };
    let mut reader = match Reader::open(&path) {
        Ok(reader) => Some(reader),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(failed(e)),
    };
    if let (Some(reader), Some(n)) = (&mut reader, r.tail) {
        reader.tail(n).map_err(failed)?;
    }
    let from = r.since.map(|s| match s {
        Since::Date(date) => date,
        Since::Ago(age) => Timestamp::now().checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH),
    });
    loop {
        if reader.is_none() {
            reader = Reader::open(&path).ok();
        }
        if let Some(reader) = &mut reader {
            print_all(ctx, reader, from).map_err(failed)?;
        }
        if !more(&mut watch) {
            break;
        }
    }
    // The pod wrote its last words before its end was told.
    if let Some(reader) = &mut reader {
        print_all(ctx, reader, from).map_err(failed)?;
    }
    if r.follow {
        reach::known(ctx, record.spec.id.as_str()).map(drop).or_else(|f| match f.kind {
            Kind::NoSuchPod => Ok(()),
            _ => Err(f),
        })?;
    }
    Ok(0)
}

/// Waits until the log has grown; `false`: nothing more comes.
fn more(watch: &mut Option<Client>) -> bool {
    let Some(client) = watch else { return false };
    loop {
        match client.next(None) {
            Ok(Some(Event::Logged)) => return true,
            Ok(Some(Event::Ended { .. })) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}

fn print_all(ctx: &Context, reader: &mut Reader, from: Option<Timestamp>) -> io::Result<()> {
    loop {
        let entries = reader.more()?;
        if entries.is_empty() {
            return Ok(());
        }
        entries.iter().filter(|e| from.is_none_or(|t| e.time >= t)).for_each(|e| print(ctx, e));
    }
}

fn print(ctx: &Context, e: &Entry) {
    let text = String::from_utf8_lossy(&e.text);
    if ctx.json {
        let stream = if e.stream == Stream::Out { "stdout" } else { "stderr" };
        out::json(&Line { schema: shape::SCHEMA, time: e.time, stream, text, cut: e.cut });
        return;
    }
    let mut bytes = e.text.clone();
    if !e.cut {
        bytes.push(b'\n');
    }
    match e.stream {
        Stream::Out => out::bytes(&bytes),
        // Nobody left to tell if this fails.
        Stream::Err => drop(io::stderr().write_all(&bytes)),
    }
}
