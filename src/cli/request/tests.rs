//! Tests: what command lines mean.

use super::*;
use crate::base::spec::{NetMode, Restart, StartType};
use crate::cli::args::Cli;
use clap::{CommandFactory, Parser};

fn meant(line: &[&str]) -> Result<Request, Failure> {
    let cli = Cli::try_parse_from([&["podmig"], line].concat()).map_err(|e| usage("clap", e.to_string()))?;
    request(cli.command, "/home/me")
}

fn refused(line: &[&str]) -> String {
    let f = meant(line).expect_err(&format!("{line:?} passed"));
    assert_eq!(f.kind, Kind::Usage);
    f.to_string()
}

#[test]
fn the_definition_of_the_flags_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn start_with_every_flag() {
    let line = "start --name web --net nat -p 8080:80 -p 53/udp -t --fg -e A=1 -e B --env-host -w sub -u www-data \
                --hostname h -v /d:ro -v rel --memory 1G --cpus 2 --pids 9 --tmpfs /t --type notify --grace 1s \
                --restart always --cgroup-parent inherit --replace --privileged -f x.toml --json -- cmd --json -x";
    let words: Vec<&str> = line.split_whitespace().collect();
    let Request::Start(start) = meant(&words).unwrap() else { panic!() };
    let StartRequest::New { wanted: w, file } = *start else { panic!() };
    assert_eq!(file.unwrap(), PathBuf::from("x.toml"));
    assert_eq!(w.name.unwrap().as_str(), "web");
    assert_eq!(w.net, Some(NetMode::Nat));
    assert_eq!((w.publish.len(), w.tty, w.fg, w.env_host), (2, Some(true), Some(true), Some(true)));
    assert_eq!(w.env, vec![("A".into(), Some("1".into())), ("B".into(), None)]);
    assert_eq!(w.workdir.as_deref(), Some("/home/me/sub"));
    assert_eq!(w.volumes[1].dir, "/home/me/rel");
    assert_eq!((w.memory, w.cpus, w.pids), (Some(1 << 30), Some(2.0), Some(9)));
    assert_eq!((w.start_type, w.restart), (Some(StartType::Notify), Some(Restart::Always)));
    assert_eq!(w.grace, Some(Duration::from_secs(1)));
    assert_eq!(w.cgroup_parent.as_deref(), Some("inherit"));
    assert_eq!((w.replace, w.privileged, w.rm), (Some(true), Some(true), None));
    assert_eq!(w.cmd, ["cmd", "--json", "-x"]);
}

#[test]
fn a_command_always_follows_two_dashes() {
    let Request::Start(s) = meant(&["start", "web"]).unwrap() else { panic!() };
    assert_eq!(*s, StartRequest::Again { pod: "web".into(), fg: false });
    assert!(refused(&["start", "ls", "-l"]).contains("-l"));
    assert!(refused(&["start", "web", "--", "ls"]).contains("after `--`"));
    assert!(refused(&["start", "web", "--rm"]).contains("podmig start -- web"));
    assert!(refused(&["start"]).contains("nothing to start"));
    assert!(refused(&["start", "--name", "x"]).contains("nothing to start"));
    refused(&["exec", "web", "ls"]);
    refused(&["exec", "web", "--"]);
}

#[test]
fn bad_values_name_the_flag() {
    for (line, part) in [
        (&["start", "--name", "A_B", "--", "x"][..], "--name A_B"),
        (&["start", "--net", "bridge", "--", "x"], "--net bridge"),
        (&["start", "-p", "x", "--", "x"], "--publish x"),
        (&["start", "--memory", "lots", "--", "x"], "--memory lots"),
        (&["stop", "--time", "soon", "web"], "--time soon"),
        (&["kill", "-s", "NOPE", "web"], "--signal NOPE"),
        (&["wait", "web", "--for", "rain"], "--for rain"),
        (&["wait", "web", "--for", "tcp:0"], "tcp:0"),
        (&["logs", "web", "--since", "then"], "--since then"),
        (&["logs", "web", "--tail", "-1"], "-1"),
        (&["move", "web", "hostb", "--mode", "hot"], "--mode hot"),
        (&["move", "web", "Host_B"], "Host_B"),
        (&["move", "web", "ssh://-oX"], "ssh://-oX"),
        (&["move", "web", "b", "--bandwidth", "0"], "--bandwidth 0"),
        (&["agent", "--listen", "here"], "--listen here"),
        (&["host", "add", "b", "10.0.0.2:7411", "short"], "fingerprint"),
        (&["host", "add", "b"], "ADDR:PORT"),
        (&["resolve", "web"], "--here"),
        (&["resolve", "web", "--here", "--there"], "--here"),
        (&["dns", "serve", "--zone", "a..b", "--listen", "127.0.0.1:53"], "--zone a..b"),
        (&["checkpoint", "web"], "--output"),
        (&["nonsense"], "nonsense"),
    ] {
        let text = refused(line);
        assert!(text.contains(part), "{line:?}: {text}");
    }
}

#[test]
fn a_move_with_every_flag() {
    let line = "move web ssh://root@b:2222 --mode warm --dry-run --max-downtime 50ms --bandwidth 100MiB/s --timeout 1m \
                --on-timeout freeze --verify -p 81:80 --progress json";
    let Request::Move(m) = meant(&line.split_whitespace().collect::<Vec<_>>()).unwrap() else { panic!() };
    assert_eq!(m.host, HostRef::Ssh { target: "root@b".into(), port: Some(2222) });
    assert_eq!(
        (m.mode, m.on_timeout, m.dry_run, m.verify, m.progress),
        (Mode::Warm, OnTimeout::Freeze, true, true, Some(crate::migrate::progress::Form::Json))
    );
    assert_eq!((m.max_downtime, m.timeout), (Duration::from_millis(50), Duration::from_secs(60)));
    assert_eq!(m.bandwidth, Some(100 << 20));
    let Request::Move(m) = meant(&["move", "web", "b"]).unwrap() else { panic!() };
    assert_eq!((m.mode, m.on_timeout), (Mode::Live, OnTimeout::Cancel));
    assert_eq!((m.max_downtime, m.timeout), (Duration::from_millis(100), Duration::from_secs(600)));
}

#[test]
fn images() {
    let Request::Checkpoint(c) = meant(&["checkpoint", "web", "-o", "-", "--leave-running"]).unwrap() else {
        panic!()
    };
    assert_eq!((c.output, c.leave_running), (None, true));
    let Request::Restore(r) = meant(&["restore", "f", "--clone", "-p", "80"]).unwrap() else { panic!() };
    assert_eq!((r.file.clone(), r.clone, r.publish.len()), (Some("f".into()), true, 1));
    refused(&["restore", "f", "--clone", "--takeover"]);
    refused(&["restore", "f", "--net", "nat", "--ip", "10.0.0.1/8"]);
    assert_eq!(meant(&["image", "verify", "f"]).unwrap(), Request::Image("f".into(), true));
}

#[test]
fn the_other_verbs() {
    let pod = || "web".to_owned();
    for (line, request) in [
        (&["ps", "-a", "-q"][..], Request::Ps { all: true, quiet: true }),
        (&["inspect", "web"], Request::Inspect(pod())),
        (&["where", "web"], Request::Where(pod())),
        (&["port", "web"], Request::Port(pod())),
        (&["attach", "web"], Request::Attach(pod())),
        (&["pause", "web"], Request::Pause(pod())),
        (&["resume", "web"], Request::Resume(pod())),
        (&["stop", "web"], Request::Stop(pod(), Duration::from_secs(10))),
        (&["kill", "web"], Request::Kill(pod(), None)),
        (&["kill", "-s", "HUP", "web"], Request::Kill(pod(), Some(1))),
        (&["rm", "-f", "web"], Request::Rm(pod(), true)),
        (&["watch", "web"], Request::Watch(pod())),
        (&["cancel", "web"], Request::Cancel(pod())),
        (&["resolve", "web", "--there"], Request::Resolve(pod(), false)),
        (&["agent"], Request::Agent("0.0.0.0:7411".parse().unwrap())),
        (&["agent", "--listen", "10.0.0.1"], Request::Agent("10.0.0.1:7411".parse().unwrap())),
        (&["receive"], Request::Receive),
        (&["check"], Request::Check(None)),
        (&["check", "b"], Request::Check(Some(HostRef::Named("b".into())))),
        (&["version"], Request::Version),
        (&["generate", "man"], Request::GenerateMan),
        (&["generate", "completions"], Request::GenerateCompletions(None)),
        (&["generate", "systemd", "web"], Request::GenerateSystemd(Some(pod()))),
        (&["host", "id"], Request::HostId),
        (&["host", "ls"], Request::HostLs),
        (&["host", "rm", "b"], Request::HostRm("b".into())),
        (&["dns", "show"], Request::DnsShow),
        (&["drain"], Request::Drain),
    ] {
        assert_eq!(meant(line).unwrap(), request, "{line:?}");
    }
    let Request::HostAdd(h) = meant(&["host", "add", "b", "--ssh", "root@b"]).unwrap() else { panic!() };
    assert_eq!(h.to_string(), "b ssh://root@b");
    let Request::Wait(w) = meant(&["wait", "web", "--for", "log:a:b", "--timeout", "5s"]).unwrap() else {
        panic!()
    };
    assert_eq!((w.until, w.timeout), (Until::Log("a:b".into()), Some(Duration::from_secs(5))));
    let Request::Logs(l) = meant(&["logs", "web", "-f", "--tail", "3", "--since", "10m"]).unwrap() else {
        panic!()
    };
    assert_eq!((l.follow, l.tail, l.since), (true, Some(3), Some(Since::Ago(Duration::from_secs(600)))));
    let Request::Exec(e) =
        meant(&["exec", "-t", "-e", "A", "-w", "d", "web", "--", "sh", "-c", "x"]).unwrap()
    else {
        panic!()
    };
    assert_eq!((e.tty, e.workdir.as_deref(), e.cmd.len()), (true, Some("/home/me/d"), 3));
}

#[test]
fn keys_of_a_definition_file_are_the_long_flags() {
    let command = Cli::command();
    let start = command.find_subcommand("start").unwrap();
    let mut flags: Vec<&str> =
        start.get_arguments().filter_map(clap::Arg::get_long).filter(|f| *f != "file").collect();
    flags.push("cmd");
    flags.sort_unstable();
    let mut keys = crate::pod::define::KEYS.to_vec();
    keys.sort_unstable();
    assert_eq!(flags, keys);
    // The list itself is true: each key is known to the file reader, whatever its value.
    for key in keys {
        let e = crate::pod::define::from_toml(&format!("{key} = [[[]]]\n"), "/").unwrap_err().to_string();
        assert!(!e.contains("unknown field"), "{key}: {e}");
    }
}
