//! `podmig wait`: until a pod ends, is ready, listens, or has logged something.

use super::reach;
use crate::base::{Failure, Kind};
use crate::cli::request::{Until, WaitRequest};
use crate::cli::{Context, out, shape};
use crate::pod::client::Client;
use crate::pod::logs::{Reader, Stream};
use crate::pod::proto::Event;
use crate::pod::store::{Record, Status};
use serde::Serialize;
use std::time::{Duration, Instant};

/// How often what the monitor does not tell is looked at.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Serialize)]
struct Waited<'a> {
    schema: u32,
    name: &'a str,
    id: &'a str,
    r#for: String,
    exit_status: Option<i32>,
}

/// Waits; for the end prints the status. Exit 124 when time is up, 1 when the pod ends first.
pub fn run(ctx: &Context, r: &WaitRequest) -> Result<i32, Failure> {
    let record = reach::known(ctx, &r.pod)?;
    let mut waiting = Waiting {
        ctx,
        deadline: r.timeout.and_then(|t| Instant::now().checked_add(t)),
        what: text(&r.until),
        client: None,
        record,
    };
    let status = match &r.until {
        Until::Exit => Some(waiting.exit()?),
        Until::Ready => waiting.ready().map(|()| None)?,
        Until::Tcp(port) => waiting.listens(*port).map(|()| None)?,
        Until::Log(text) => waiting.logged(text).map(|()| None)?,
    };
    let spec = &waiting.record.spec;
    if ctx.json {
        out::json(&Waited {
            schema: shape::SCHEMA,
            name: spec.name.as_str(),
            id: spec.id.as_str(),
            r#for: waiting.what.clone(),
            exit_status: status,
        });
    } else if let Some(status) = status {
        out::line(&status.to_string());
    }
    Ok(0)
}

fn text(until: &Until) -> String {
    match until {
        Until::Exit => "exit".to_owned(),
        Until::Ready => "ready".to_owned(),
        Until::Tcp(port) => format!("tcp:{port}"),
        Until::Log(text) => format!("log:{text}"),
    }
}

struct Waiting<'a> {
    ctx: &'a Context,
    record: Record,
    client: Option<Client>,
    deadline: Option<Instant>,
    what: String,
}

/// What came while waiting.
enum Came {
    Event(Event),
    /// The monitor is gone, or was not there.
    Gone,
    /// Nothing, in the time given.
    Nothing,
}

impl Waiting<'_> {
    fn name(&self) -> &str {
        self.record.spec.name.as_str()
    }

    fn watch(&mut self, log: bool) {
        if self.record.status.is_here() {
            let client = Client::connect(&self.ctx.store, &self.record);
            self.client = client.and_then(|mut c| c.watch(log).map(|()| c)).ok();
        }
    }

    /// The next event before `step` is over; the user's own limit is a failure.
    fn next(&mut self, step: Option<Duration>) -> Result<Came, Failure> {
        let step = step.map(|s| Instant::now() + s);
        let until = [step, self.deadline].into_iter().flatten().min();
        let Some(client) = &mut self.client else { return Ok(Came::Gone) };
        match client.next(until) {
            Ok(Some(event)) => Ok(Came::Event(event)),
            Err(_) => Ok(Came::Gone),
            Ok(None) if self.deadline.is_some_and(|d| d <= Instant::now()) => {
                Err(Failure::new(Kind::Timeout, self.name(), format!("time is up waiting for {}", self.what)))
            }
            Ok(None) => Ok(Came::Nothing),
        }
    }

    /// The status of a pod that is over.
    fn status(&self) -> Result<i32, Failure> {
        let record = reach::known(self.ctx, self.record.spec.id.as_str())?;
        let record = if record.status.is_here() {
            reach::ended_meanwhile(self.ctx, &record).unwrap_or(record)
        } else {
            record
        };
        match (record.status, record.exit_status) {
            (Status::Exited, Some(status)) => Ok(status),
            (Status::Running | Status::Paused | Status::Incoming, _) => {
                Err(Failure::new(Kind::Failed, self.name(), "its monitor does not answer"))
            }
            _ => Err(reach::not_running(&record)),
        }
    }

    fn ended(&self, status: i32) -> Failure {
        let text = format!("it ended with status {status} while waiting for {}", self.what);
        Failure::new(Kind::Failed, self.name(), text)
    }

    /// The failure for a pod that is over, or moved away meanwhile.
    fn over(&self) -> Failure {
        match self.status() {
            Ok(status) => self.ended(status),
            Err(f) => f,
        }
    }

    fn exit(&mut self) -> Result<i32, Failure> {
        self.watch(false);
        loop {
            match self.next(None)? {
                Came::Event(Event::Ended { status }) => return Ok(status),
                Came::Gone => return self.status(),
                Came::Event(_) | Came::Nothing => {}
            }
        }
    }

    fn ready(&mut self) -> Result<(), Failure> {
        self.watch(false);
        loop {
            match self.next(None)? {
                Came::Event(Event::Ready) => return Ok(()),
                Came::Event(Event::Ended { status }) => return Err(self.ended(status)),
                Came::Gone => return Err(self.over()),
                Came::Event(_) | Came::Nothing => {}
            }
        }
    }

    /// Looks into the kernel's own list, so that the server sees no connection it did not ask for.
    fn listens(&mut self, port: u16) -> Result<(), Failure> {
        self.watch(false);
        loop {
            let now = self.ctx.store.get(&self.record.spec.id)?;
            if let Some(init) = now.as_ref().and_then(|r| r.init_pid)
                && ["tcp", "tcp6"].iter().any(|table| {
                    let path = format!("/proc/{init}/net/{table}");
                    std::fs::read_to_string(path).is_ok_and(|text| listening(&text, port))
                })
            {
                return Ok(());
            }
            match self.next(Some(LOOK))? {
                Came::Event(Event::Ended { status }) => return Err(self.ended(status)),
                Came::Gone => return Err(self.over()),
                Came::Event(_) | Came::Nothing => {}
            }
        }
    }

    fn logged(&mut self, text: &str) -> Result<(), Failure> {
        self.watch(true);
        let path = self.ctx.places.log(&self.record.spec.id);
        let mut seen = Lines::new(text, self.record.started);
        let mut reader = None;
        loop {
            if reader.is_none() {
                reader = Reader::open(&path).ok();
            }
            if reader.as_mut().is_some_and(|r| seen.found(r)) {
                return Ok(());
            }
            match self.next(None)? {
                Came::Event(Event::Ended { status }) => {
                    return if reader.as_mut().is_some_and(|r| seen.found(r)) {
                        Ok(())
                    } else {
                        Err(self.ended(status))
                    };
                }
                Came::Gone => return Err(self.over()),
                Came::Event(_) | Came::Nothing => {}
            }
        }
    }
}

/// Looks for a text in the lines of a log, those cut into several records too.
struct Lines<'a> {
    text: &'a [u8],
    since: Option<jiff::Timestamp>,
    open: [Vec<u8>; 2],
}

impl<'a> Lines<'a> {
    fn new(text: &'a str, since: Option<jiff::Timestamp>) -> Lines<'a> {
        Lines { text: text.as_bytes(), since, open: [Vec::new(), Vec::new()] }
    }

    fn found(&mut self, reader: &mut Reader) -> bool {
        while let Ok(entries) = reader.more() {
            if entries.is_empty() {
                return false;
            }
            // What the pod wrote in an earlier life does not count.
            for e in entries.into_iter().filter(|e| self.since.is_none_or(|t| e.time >= t)) {
                let line = &mut self.open[usize::from(e.stream == Stream::Err)];
                line.extend_from_slice(&e.text);
                if line.windows(self.text.len()).any(|w| w == self.text) {
                    return true;
                }
                // Of a line that goes on only as much is kept as the text could have begun in.
                let keep = if e.cut { self.text.len() - 1 } else { 0 };
                line.drain(..line.len().saturating_sub(keep));
            }
        }
        false
    }
}

/// Whether a table of `/proc/PID/net/tcp` has a listener on `port`.
fn listening(table: &str, port: u16) -> bool {
    let end = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace();
        // sl, local_address, rem_address, st (0A: TCP_LISTEN)
        fields.nth(1).is_some_and(|local| local.ends_with(&end)) && fields.nth(1) == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_from_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0\n   \
                     1: 0100007F:0050 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 8 1 0\n";
        assert!(listening(table, 8080));
        assert!(!listening(table, 80), "a connection is no listener");
        assert!(!listening(table, 40000));
    }
}
