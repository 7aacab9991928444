//! `podmig start`: a command in a new pod, or an ended pod again.

use super::{reach, rm};
use crate::base::spec::PodSpec;
use crate::base::{Failure, Kind};
use crate::cli::request::StartRequest;
use crate::cli::{Context, code, out, privilege, shape};
use crate::net;
use crate::pod::define::{Caller, Wanted, read_file, resolve};
use crate::pod::exec;
use crate::pod::launch::{self, StartIo, Started};
use crate::pod::store::{Error, Record, Status};
use crate::policy::values::net_text;
use std::path::Path;
use std::time::Duration;

/// How long the owner of an address may take to answer for it.
const PATIENCE: Duration = Duration::from_millis(100);

/// Starts it. In the background: prints the name once it is up; in the foreground: passes the status.
pub fn run(ctx: &Context, request: StartRequest) -> Result<i32, Failure> {
    match request {
        StartRequest::Again { pod, fg } => again(ctx, &pod, fg),
        StartRequest::New { wanted, file } => new(ctx, *wanted, file.as_deref()),
    }
}

fn new(ctx: &Context, wanted: Wanted, file: Option<&Path>) -> Result<i32, Failure> {
    let caller = Caller::here()?;
    let wanted = match file {
        Some(file) => over(wanted, file, &caller)?,
        None => wanted,
    };
    let fg = wanted.fg == Some(true);
    match begin_new(ctx, wanted, &caller) {
        // The file may have said `fg`, of which nobody knew before.
        Err(f) if fg => {
            out::failure(&f, ctx.json);
            Ok(code(&f, true))
        }
        done => done,
    }
}

fn begin_new(ctx: &Context, wanted: Wanted, caller: &Caller) -> Result<i32, Failure> {
    let (fg, replace) = (wanted.fg == Some(true), wanted.replace == Some(true));
    let spec = resolve(wanted, caller)?;
    privilege::root_for("start")?;
    if replace {
        make_way(ctx, &spec)?;
    }
    vacant(&spec)?;
    let tty = spec.tty;
    begin(ctx, tty, fg, |io| launch::start(&ctx.store, spec, io))
}

/// What was typed over the definition file.
fn over(wanted: Wanted, file: &Path, caller: &Caller) -> Result<Wanted, Failure> {
    let read = read_file(file, &caller.cwd)?;
    let out: Vec<&str> = wanted.overruled(&read);
    if !out.is_empty() {
        let net = wanted.net.as_ref().map(net_text).unwrap_or_default();
        out::warning(&format!(
            "{}: left out, as it does not go with --net {net}: {}",
            file.display(),
            out.join(", ")
        ));
    }
    Ok(wanted.over(read))
}

fn again(ctx: &Context, pod: &str, fg: bool) -> Result<i32, Failure> {
    let record = reach::known(ctx, pod)?;
    privilege::root_for("start")?;
    if matches!(record.status, Status::Running | Status::Paused) {
        let text = format!("it is {} already", record.status);
        return Err(Failure::new(Kind::Taken, record.spec.name.as_str(), text)
            .remedy(format!("`podmig stop {pod}` ends it first")));
    }
    let tty = record.spec.tty;
    begin(ctx, tty, fg, |io| launch::start_again(&ctx.store, &record.spec.id, io))
}

/// The address wanted on a lan must not answer already: two hosts with one address cut each other off.
fn vacant(spec: &PodSpec) -> Result<(), Failure> {
    match net::address_answers(&spec.net, PATIENCE)? {
        None => Ok(()),
        Some(answer) => {
            let addr = spec.net.ip.map_or_else(String::new, |ip| ip.addr.to_string());
            let text = format!("the address is in use on the network: {answer}");
            Err(Failure::new(Kind::Taken, addr, text).remedy("give another --ip"))
        }
    }
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
        return exec::foreground(tty, start);
    }
    let size = if tty { exec::caller_size() } else { None };
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
