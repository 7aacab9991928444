//! What each verb does, one file each; a verb returns its exit code or what failed.

mod agent;
mod attach;
mod cancel;
mod check;
mod checkpoint;
mod dns;
mod exec;
mod generate;
mod host;
mod image;
mod inspect;
mod interrupt;
mod kill;
mod logs;
mod r#move;
mod pause;
mod port;
mod ps;
mod reach;
mod receive;
mod resolve;
mod restore;
mod rm;
mod start;
mod stop;
mod version;
mod wait;
mod watch;
mod r#where;

use super::Context;
use super::request::Request;
use crate::base::Failure;

/// Does what is asked; the exit code.
pub fn run(ctx: &Context, request: Request) -> Result<i32, Failure> {
    match request {
        Request::Start(r) => start::run(ctx, *r),
        Request::Ps { all, quiet } => ps::run(ctx, all, quiet),
        Request::Inspect(pod) => inspect::run(ctx, &pod),
        Request::Where(pod) => r#where::run(ctx, &pod),
        Request::Port(pod) => port::run(ctx, &pod),
        Request::Logs(r) => logs::run(ctx, &r),
        Request::Attach(pod) => attach::run(ctx, &pod),
        Request::Exec(r) => exec::run(ctx, r),
        Request::Wait(r) => wait::run(ctx, &r),
        Request::Pause(pod) => pause::pause(ctx, &pod),
        Request::Resume(pod) => pause::resume(ctx, &pod),
        Request::Stop(pod, time) => stop::run(ctx, &pod, time),
        Request::Kill(pod, signal) => kill::run(ctx, &pod, signal),
        Request::Rm(pod, force) => rm::run(ctx, &pod, force),
        Request::Checkpoint(r) => checkpoint::run(ctx, r),
        Request::Restore(r) => restore::run(ctx, *r),
        Request::Move(r) => r#move::run(ctx, *r),
        Request::Watch(pod) => watch::run(ctx, &pod),
        Request::Cancel(pod) => cancel::run(ctx, &pod),
        Request::Resolve(pod, here) => resolve::run(ctx, &pod, here),
        Request::Agent(listen) => agent::run(ctx, listen),
        Request::Receive => receive::run(ctx),
        Request::Check(host) => check::run(ctx, host),
        Request::Image(file, verify) => image::run(ctx, &file, verify),
        Request::GenerateMan => generate::man(),
        Request::GenerateCompletions(shell) => generate::completions(shell.as_deref()),
        Request::GenerateSystemd(pod) => generate::systemd(ctx, pod.as_deref()),
        Request::Version => version::run(ctx),
        Request::HostId => host::id(ctx),
        Request::HostAdd(host) => host::add(ctx, &host),
        Request::HostLs => host::ls(ctx),
        Request::HostRm(name) => host::rm(ctx, &name),
        Request::DnsServe(zone, listen) => dns::serve(ctx, &zone, listen),
        Request::DnsUse { server, zone, key } => dns::use_server(ctx, server, &zone, &key),
        Request::DnsShow => dns::show(ctx),
        Request::Drain => Err(super::out::not_yet("drain")),
    }
}
