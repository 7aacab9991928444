//! `podmig watch`: the states of a pod and the stages of its move as they come, until either is over.

use super::reach;
use crate::base::{Failure, Kind};
use crate::cli::{Context, out, shape};
use crate::migrate::progress;
use crate::pod::moving::Stage;
use crate::pod::proto::Event;
use crate::pod::store::{Record, Status};
use jiff::Timestamp;
use serde::Serialize;

/// One line of the stream.
#[derive(Serialize)]
struct Line<'a> {
    schema: u32,
    time: Timestamp,
    name: &'a str,
    id: &'a str,
    state: Status,
    r#move: Option<shape::Moving>,
    moved_to: Option<&'a str>,
    exit_status: Option<i32>,
}

/// Streams until the pod has ended or left (exit 0), or its move was given up before the commit (5: it runs here).
pub fn run(ctx: &Context, pod: &str) -> Result<i32, Failure> {
    let (record, mut client) =
        reach::running(ctx, pod).or_else(|f| match (f.kind, reach::doubtful(ctx, pod)) {
            (Kind::InDoubt, Some(both)) => Ok(both),
            _ => Err(f),
        })?;
    client.follow()?;
    let mut stream = Stream { ctx, state: record.status, stage: None, told: None, record };
    let mut moving = stream.state == Status::InDoubt;
    loop {
        match client.next(None) {
            Ok(Some(Event::State(state))) => stream.state = state,
            Ok(Some(Event::Move(stage))) => stream.stage = stage,
            Ok(Some(_)) => continue,
            Ok(None) => continue,
            // The monitor has ended: the record says the last word.
            Err(_) => {
                stream.refresh();
                stream.tell();
                return Ok(0);
            }
        }
        if !matches!(stream.state, Status::Running | Status::Paused | Status::InDoubt | Status::Incoming) {
            stream.refresh();
            stream.tell();
            return Ok(0);
        }
        stream.tell();
        match (moving, &stream.stage, stream.state) {
            (true, None, Status::Running | Status::Paused) => return Ok(Kind::BeforeCommit.code()),
            (false, stage, state) => moving = stage.is_some() || state == Status::InDoubt,
            _ => {}
        }
    }
}

struct Stream<'a> {
    ctx: &'a Context,
    record: Record,
    state: Status,
    stage: Option<Stage>,
    told: Option<(Status, Option<Stage>)>,
}

impl Stream<'_> {
    /// What is on disk now, for a pod that is no longer here.
    fn refresh(&mut self) {
        self.record = reach::again(self.ctx, self.record.clone());
        (self.state, self.stage) = (self.record.status, None);
    }

    fn tell(&mut self) {
        let now = (self.state, self.stage.clone());
        if self.told.as_ref() == Some(&now) {
            return;
        }
        self.told = Some(now);
        let name = self.record.spec.name.as_str();
        let left = matches!(self.state, Status::Moved | Status::InDoubt);
        let moved_to = self.record.moved_to.as_deref().filter(|_| left);
        if self.ctx.json {
            out::json(&Line {
                schema: shape::SCHEMA,
                time: Timestamp::now(),
                name,
                id: self.record.spec.id.as_str(),
                state: self.state,
                r#move: self.stage.as_ref().map(shape::Moving::from),
                moved_to,
                exit_status: self.record.exit_status.filter(|_| self.state == Status::Exited),
            });
            return;
        }
        out::line(&match (&self.stage, moved_to, self.record.exit_status) {
            (Some(stage), ..) => progress::line(name, stage),
            (None, Some(host), _) if self.state == Status::Moved => format!("{name}: moved to {host}"),
            (None, None, Some(status)) if self.state == Status::Exited => format!("{name}: exited {status}"),
            _ => format!("{name}: {}", self.state),
        });
    }
}
