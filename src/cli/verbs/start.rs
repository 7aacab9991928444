//! `podmig start`: a command in a new pod, or an ended pod again.

use super::{reach, rm};
use crate::base::Failure;
use crate::base::spec::PodSpec;
use crate::cli::request::StartRequest;
use crate::cli::{Context, out, privilege, shape};
use crate::kernel::tty;
use crate::pod::define::{Caller, Wanted, read_file, resolve};
use crate::pod::launch::{self, StartIo, Started};
use crate::pod::store::{Error, Record};
use std::path::Path;

/// Starts it. In the background: prints the name once it is up; in the foreground: passes the status.
pub fn run(ctx: &Context, request: StartRequest) -> Result<i32, Failure> {
    match request {
        StartRequest::Again { pod, fg } => again(ctx, &pod, fg),
        StartRequest::New { wanted, file } => new(ctx, wanted, file.as_deref()),
    }
}

fn new(ctx: &Context, wanted: Wanted, file: Option<&Path>) -> Result<i32, Failure> {
    let caller = Caller::here()?;
    let wanted = match file {
        Some(file) => wanted.over(read_file(file, &caller.cwd)?),
        None => wanted,
    };
    let (fg, replace) = (wanted.fg == Some(true), wanted.replace == Some(true));
    let spec = resolve(wanted, &caller)?;
    privilege::root_for("start")?;
    if replace {
        make_way(ctx, &spec)?;
    }
    let tty = spec.tty;
    begin(ctx, tty, fg, |io| launch::start(&ctx.store, spec, io))
}

fn again(ctx: &Context, pod: &str, fg: bool) -> Result<i32, Failure> {
    let record = reach::known(ctx, pod)?;
    privilege::root_for("start")?;
    let tty = record.spec.tty;
    begin(ctx, tty, fg, |io| launch::start_again(&ctx.store, &record.spec.id, io))
}

/// `--replace`: ends and forgets a pod of the same name; one that moved away stays known (exit 8).
fn make_way(ctx: &Context, spec: &PodSpec) -> Result<(), Failure> {
    match ctx.store.find_here(spec.name.as_str()) {
        Err(Error::NoSuchPod { .. }) => Ok(()),
        Err(e) => Err(e.into()),
        Ok(old) => rm::end_and_forget(ctx, &old, true),
    }
}

fn begin(
    ctx: &Context,
    tty: bool,
    fg: bool,
    start: impl FnOnce(StartIo) -> Result<Started, Failure>,
) -> Result<i32, Failure> {
    if fg {
        return Err(out::not_yet("start --fg"));
    }
    let size = if tty { tty::size(std::io::stdin()).ok() } else { None };
    let started = start(StartIo { size, ..StartIo::default() })?;
    up(ctx, &started.record);
    Ok(0)
}

/// It is up: the name alone, or the pod as an object.
fn up(ctx: &Context, record: &Record) {
    if ctx.json {
        out::json(&shape::Pod::new(record));
    } else {
        out::line(record.spec.name.as_str());
    }
}
