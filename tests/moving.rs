//! What scripts see of a move: progress, watch, cancel, limits of time, the dry run, hosts over ssh, `check HOST`.

mod common;

use common::lab::{Host, Lab, PODMIG};
use common::steps::{Running, until_state};
use common::until;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
/// Memory of the pod that is moved, MiB: enough for a move to be met under way.
const MIB: usize = 96;

/// Starts a pod with memory of its own.
fn start(lab: &Lab, name: &str, mib: usize) {
    let program = format!(
        "import time\nb=bytearray({mib}<<20)\nfor i in range(0,len(b),4096): b[i]=1+(i>>12)%255\nprint('ready',flush=True)\n\
         while True: time.sleep(0.01)"
    );
    let ip = "10.77.0.60/24";
    lab.a.ok(&["start", "--name", name, "--net", "lan:br0", "--ip", ip, "--", "python3", "-c", &program]);
    lab.a.ok(&["wait", name, "--for", "log:ready", "--timeout", "30s"]);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    let each = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    text(bytes).lines().map(each).collect()
}

#[track_caller]
fn exits(out: &Output, code: i32) {
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "stdout: {stdout}\nstderr: {stderr}");
}

/// A move so slow that it is met under way.
fn slow(host: &Host, pod: &str, more: &[&str]) -> Running {
    let mut args = vec!["move", pod, "hostb", "--mode", "live", "--bandwidth", "20MiB/s"];
    args.extend(more);
    Running::start(host.podmig(&args))
}

fn under_way(lab: &Lab, pod: &str, stage: &str) -> Value {
    until(LIMIT, "the move is under way", || {
        let seen = lab.a.json(&["inspect", pod], 0);
        (seen["move"]["stage"] == stage && seen["move"]["bytes_left"].as_u64() > Some(0)).then_some(seen)
    })
}

#[test]
fn a_move_is_told_followed_and_shown() {
    let lab = Lab::new();
    start(&lab, "web", MIB);
    let watch = Running::start(lab.a.podmig(&["watch", "--json", "web"]));
    let people = Running::start(lab.a.podmig(&["watch", "web"]));
    let mover = slow(&lab.a, "web", &["--progress", "json", "--json"]);
    let seen = under_way(&lab, "web", "pre-copy");
    assert_eq!((&seen["state"], &seen["move"]["to"]), (&"running".into(), &"hostb".into()));
    assert!(seen["move"]["round"].as_u64() >= Some(1) && seen["move"]["expected_frozen_us"].is_null());
    let all = lab.a.json(&["ps"], 0);
    assert_eq!(all[0]["move"]["to"], "hostb");
    assert!(lab.a.ok(&["ps"]).contains("running, to hostb: pre-copy 1"));
    // Only one at a time.
    let second = lab.a.json(&["move", "web", "hostb"], 1);
    assert!(second["error"]["message"].as_str().unwrap().contains("being moved already"), "{second}");

    let out = mover.end().unwrap();
    exits(&out, 0);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&report["outcome"], &report["mode"]), (&"moved".into(), &"live".into()));
    let told = lines(&out.stderr);
    assert!(told.len() > 5, "{told:?}");
    for pair in told.windows(2) {
        let number = |v: &Value, key: &str| v[key].as_u64().unwrap();
        assert!(number(&pair[0], "round") <= number(&pair[1], "round"), "{pair:?}");
        assert!(number(&pair[0], "bytes_sent") <= number(&pair[1], "bytes_sent"), "{pair:?}");
        if pair[0]["stage"] == pair[1]["stage"] && pair[0]["round"] == pair[1]["round"] {
            assert!(number(&pair[0], "bytes_left") >= number(&pair[1], "bytes_left"), "{pair:?}");
        }
    }
    assert!(told.iter().any(|l| l["bytes_per_s"].as_u64() > Some(0)));

    let out = watch.end().unwrap();
    exits(&out, 0);
    let followed = lines(&out.stdout);
    assert_eq!((&followed[0]["state"], &followed[0]["move"]), (&"running".into(), &Value::Null));
    assert!(followed.iter().any(|l| l["move"]["stage"] == "pre-copy" && l["state"] == "running"));
    let last = followed.last().unwrap();
    assert_eq!((&last["state"], &last["moved_to"]), (&"moved".into(), &"hostb".into()), "{last}");
    let out = people.end().unwrap();
    exits(&out, 0);
    assert!(text(&out.stdout).ends_with("web: moved to hostb\n"), "{}", text(&out.stdout));
    for verb in ["watch", "cancel"] {
        lab.a.json(&[verb, "web"], 8);
    }
}

#[test]
fn a_move_is_cancelled_and_the_next_one_works() {
    let lab = Lab::new();
    start(&lab, "web", MIB);
    let none = lab.a.json(&["cancel", "web"], 1);
    assert_eq!(none["error"]["message"], "it is not being moved");
    lab.a.json(&["cancel", "nobody"], 3);

    let watch = Running::start(lab.a.podmig(&["watch", "web"]));
    let mover = slow(&lab.a, "web", &["--json"]);
    under_way(&lab, "web", "pre-copy");
    let pod = lab.a.json(&["cancel", "web"], 0);
    assert_eq!((&pod["state"], &pod["move"]), (&"running".into(), &Value::Null));
    let out = mover.end().unwrap();
    exits(&out, 5);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&report["outcome"], &report["error"]["code"]), (&"cancelled".into(), &5.into()), "{report}");
    exits(&watch.end().unwrap(), 5);

    // By signals alike.
    for signal in ["INT", "TERM", "HUP"] {
        let mover = slow(&lab.a, "web", &[]);
        under_way(&lab, "web", "pre-copy");
        // nsenter has become podmig.
        let pid = mover.child.id().to_string();
        common::lab::sh("kill", &[&format!("-{signal}"), &pid]);
        let out = mover.end().unwrap();
        exits(&out, 5);
        let said = text(&out.stderr);
        assert!(said.contains(&format!("it was cancelled by SIG{signal}; the pod runs on here")), "{said}");
    }
    // A mover that does not listen is ended all the same.
    let mover = slow(&lab.a, "web", &[]);
    under_way(&lab, "web", "pre-copy");
    let pid = mover.child.id().to_string();
    common::lab::sh("kill", &["-STOP", &pid]);
    lab.a.ok(&["cancel", "web"]);
    assert!(mover.end().unwrap().status.code().is_none());

    until(LIMIT, "the target has forgotten", || lab.b.state("web").is_none().then_some(()));
    assert_eq!(lab.a.state("web").as_deref(), Some("running"));
    lab.a.ok(&["move", "web", "hostb"]);
    until_state(&lab.b, "web", "running");
}

#[test]
fn a_checkpoint_is_cancelled_and_leaves_no_file() {
    let lab = Lab::new();
    start(&lab, "web", 32);
    let dir = lab.dir().join("images");
    fs::create_dir(&dir).unwrap();
    // Nobody reads: it stands still in the middle.
    let fifo = dir.join("pipe");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let mut command = lab.a.podmig(&["checkpoint", "web", "-o", "-", "--json"]);
    command.stdout(fs::OpenOptions::new().write(true).open(&fifo).unwrap());
    command.stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    under_way(&lab, "web", "stop-and-copy");
    lab.a.ok(&["cancel", "web"]);
    let out = child.wait_with_output().unwrap();
    exits(&out, 5);
    let report: Value = serde_json::from_slice(&out.stderr).unwrap();
    assert_eq!(report["outcome"], "cancelled");
    drop(reader);
    let file = dir.join("web.image");
    let out =
        lab.a.podmig(&["checkpoint", "web", "-o", file.to_str().unwrap(), "--progress"]).output().unwrap();
    exits(&out, 0);
    assert!(text(&out.stderr).contains("stop-and-copy"), "{}", text(&out.stderr));
    let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    lab.a.json(&["cancel", "web"], 1);
}

#[test]
fn a_move_that_takes_too_long_is_cancelled_or_finished() {
    let lab = Lab::new();
    start(&lab, "web", MIB);
    let out = slow(&lab.a, "web", &["--timeout", "500ms", "--json"]).end().unwrap();
    exits(&out, 5);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["error"]["kind"], "before-commit", "{report}");
    assert_eq!(lab.a.state("web").as_deref(), Some("running"));
    // A target that has stopped answering is not waited for either.
    let agent = lab.b.agent_pid().unwrap().to_string();
    common::lab::sh("kill", &["-STOP", &agent]);
    let out = slow(&lab.a, "web", &["--timeout", "500ms"]).end().unwrap();
    common::lab::sh("kill", &["-CONT", &agent]);
    assert!(matches!(out.status.code(), Some(5 | 7)), "{:?}", out.status);
    assert_eq!(lab.a.state("web").as_deref(), Some("running"));
    let out = slow(&lab.a, "web", &["--timeout", "500ms", "--on-timeout", "freeze"]).end().unwrap();
    exits(&out, 0);
    until_state(&lab.b, "web", "running");
}

#[test]
fn a_dry_run_foretells_and_moves_nothing() {
    let lab = Lab::new();
    start(&lab, "web", MIB);
    for mode in ["warm", "live"] {
        let report = lab.a.json(&["move", "web", "hostb", "--dry-run", "--mode", mode], 0);
        assert_eq!((&report["would_move"], &report["mode"]), (&true.into(), &mode.into()), "{report}");
        let p = &report["predicted"];
        let number = |key: &str| p[key].as_u64().unwrap_or_else(|| panic!("{key}: {report}"));
        assert!(number("bytes") >= (MIB as u64) << 20 && number("total_us") > 0, "{p}");
        assert!(number("frozen_us") > 0 && number("frozen_us_max") >= number("frozen_us"), "{p}");
        until(LIMIT, "the target has forgotten", || lab.b.state("web").is_none().then_some(()));
    }
    assert!(
        lab.a
            .ok(&["move", "web", "hostb", "--dry-run"])
            .starts_with("web would move to hostb: frozen about ")
    );
    assert_eq!(lab.a.state("web").as_deref(), Some("running"));
    // What the target lacks is named before anything is moved.
    let odd = lab.dir().join("odd");
    fs::copy("/bin/sleep", &odd).unwrap();
    lab.a.ok(&["start", "--name", "odd", "--net", "none", "--", odd.to_str().unwrap(), "1000"]);
    lab.a.ok(&["start", "--name", "tty", "--net", "none", "-t", "--", "sleep", "1000"]);
    let report = lab.a.json(&["move", "tty", "hostb", "--dry-run"], 4);
    assert_eq!((&report["would_move"], &report["outcome"]), (&false.into(), &"refused".into()), "{report}");
    assert!(!report["blockers"].as_array().unwrap().is_empty(), "{report}");
    assert_eq!(report["blockers"], report["error"]["blockers"]);
}

/// An `ssh` that runs the command on the other host of the lab.
fn fake_ssh(lab: &Lab) -> String {
    let bin = lab.dir().join("bin");
    fs::create_dir(&bin).unwrap();
    let there = &lab.b;
    let script = format!(
        "#!/bin/sh\necho \"$@\" >> {log}\necho group $(ps -o pgid= -p $$) of $$ >> {log}\nwhile [ \"$1\" != -- ]; do shift; done\nshift; target=$1; shift\n\
         [ \"$target\" = root@hostb ] || {{ echo \"ssh: cannot resolve $target\" >&2; exit 255; }}\n\
         [ \"$1\" = podmig ] && shift\n\
         exec env PODMIG_ROOT={root} nsenter --net=/run/netns/{ns} {PODMIG} \"$@\"\n",
        log = lab.dir().join("ssh.log").display(),
        root = there.root.display(),
        ns = there.ns.name,
    );
    let ssh = bin.join("ssh");
    fs::write(&ssh, script).unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default())
}

#[test]
fn a_host_over_ssh_needs_no_agent() {
    let mut lab = Lab::new();
    lab.b.kill_agent();
    let path = fake_ssh(&lab);
    start(&lab, "web", 16);
    let run = |args: &[&str], code: i32| {
        let out = lab.a.podmig(args).env("PATH", &path).output().unwrap();
        exits(&out, code);
        serde_json::from_slice::<Value>(&out.stdout).unwrap()
    };
    let rows = run(&["check", "--json", "ssh://root@hostb"], 0);
    let connect = rows.as_array().unwrap().iter().find(|r| r["name"] == "peer-connect").unwrap();
    assert_eq!((&connect["works"], &connect["host"]), (&true.into(), &"ssh://root@hostb".into()));
    let nobody = run(&["move", "web", "ssh://root@elsewhere:2222", "--json"], 7);
    assert_eq!(nobody["error"]["kind"], "unreachable", "{nobody}");
    let log = fs::read_to_string(lab.dir().join("ssh.log")).unwrap();
    assert!(log.contains("-p 2222 -- root@elsewhere"), "{log}");
    // A group of its own: ctrl-C in the middle of a move is for podmig alone.
    for line in log.lines().filter_map(|l| l.strip_prefix("group ")) {
        let (group, pid) = line.split_once(" of ").unwrap();
        assert_eq!(group, pid, "{log}");
    }
    let report = run(&["move", "web", "ssh://root@hostb", "--json"], 0);
    assert_eq!((&report["outcome"], &report["to"]), (&"moved".into(), &"ssh://root@hostb".into()));
    until_state(&lab.b, "web", "running");
    assert_eq!(lab.a.json(&["inspect", "web"], 8)["moved_to"], "ssh://root@hostb");
    // Under a name, and back: hosta's agent knows hostb.
    lab.b.ok(&["move", "web", "hosta"]);
    lab.a.ok(&["host", "rm", "hostb"]);
    lab.a.ok(&["host", "add", "hostb", "--ssh", "root@hostb"]);
    assert_eq!(run(&["move", "web", "hostb", "--json", "--mode", "warm"], 0)["outcome"], "moved");
    until_state(&lab.b, "web", "running");
}

#[test]
fn a_host_is_looked_at() {
    let mut lab = Lab::new();
    let rows = lab.a.json(&["check", "hostb"], 0);
    let of = |name: &str| {
        let row = rows.as_array().unwrap().iter().find(|r| r["name"] == name && r["host"] == "hostb");
        row.unwrap_or_else(|| panic!("{name}")).clone()
    };
    for name in ["peer-connect", "peer-protocol", "peer-kernel", "peer-cpu", "peer-clock", "peer-memory"] {
        assert_eq!(of(name)["works"], true, "{name}");
    }
    assert_eq!(of("ptrace-seize")["needed_for"], "moves");
    assert!(lab.a.ok(&["check", "hostb"]).ends_with("Pods can move to hostb\n"));
    lab.a.json(&["check", "nowhere"], 7);
    // Whoever does not know us is named.
    lab.b.ok(&["host", "rm", "hosta"]);
    let rows = lab.a.json(&["check", "hostb"], 7);
    let row = rows.as_array().unwrap().last().unwrap();
    assert_eq!((&row["name"], &row["works"]), (&"peer-connect".into(), &false.into()));
    assert!(row["detail"].as_str().unwrap().contains("not trusted"), "{row}");
    lab.b.kill_agent();
    let rows = lab.a.json(&["check", "hostb"], 7);
    let row = rows.as_array().unwrap().last().unwrap();
    assert!(row["detail"].as_str().unwrap().contains("cannot be reached: Connection refused"), "{row}");
}

#[test]
fn what_exec_runs_is_hung_up_by_a_move() {
    let lab = Lab::new();
    lab.a.ok(&["start", "--name", "web", "--net", "none", "--", "sleep", "1000"]);
    let heard = lab.dir().join("heard");
    let program = format!(
        "import signal,time,os\ndef f(n,*a):\n open({0:?},'a').write('hung up\\n'); os._exit(0)\nsignal.signal(1,f)\n\
         print('set',flush=True)\nwhile True: time.sleep(0.01)",
        heard.to_str().unwrap()
    );
    let mut beside = lab.a.podmig(&["exec", "web", "--", "python3", "-c", &program]);
    let (input, output) = (std::process::Stdio::piped(), std::process::Stdio::piped());
    let mut beside = beside.stdin(input).stdout(output).spawn().unwrap();
    let mut said = [0; 4];
    std::io::Read::read_exact(beside.stdout.as_mut().unwrap(), &mut said).unwrap();
    lab.a.ok(&["exec", "-d", "web", "--", "sleep", "2000"]);
    let report = lab.a.json(&["move", "web", "hostb"], 0);
    assert_eq!(report["outcome"], "moved");
    assert_eq!(beside.wait().unwrap().code(), Some(129), "128 + SIGHUP");
    until(LIMIT, "it hears of it", || {
        fs::read_to_string(&heard).is_ok_and(|t| t == "hung up\n").then_some(())
    });
    // Nobody was joined to this one.
    until(LIMIT, "it has ended", || {
        let all = lab.b.ok(&["exec", "web", "--", "ps", "-eo", "args"]);
        assert!(all.contains("sleep 2000"), "{all}");
        (!all.contains("signal.signal")).then_some(())
    });
}

#[test]
fn what_cannot_be_is_said_by_name() {
    let lab = Lab::new();
    lab.a.ok(&["start", "--name", "web", "--net", "none", "--", "sleep", "1000"]);
    let error = |args: &[&str], code: i32| lab.a.json(args, code)["error"].clone();
    // A host that is this one.
    let id = lab.a.ok(&["host", "id"]);
    lab.a.ok(&["host", "add", "me", "10.77.0.1", id.split_whitespace().last().unwrap()]);
    let e = error(&["move", "web", "me"], 4);
    assert!(e["message"].as_str().unwrap().contains("already (running)"), "{e}");
    lab.a.ok(&["pause", "web"]);
    for args in [&["move", "web", "hostb"][..], &["checkpoint", "web", "-o", "/nowhere/x"]] {
        let e = error(args, 4);
        assert_eq!((&e["blockers"][0]["kind"], &e["object"]), (&"paused".into(), &"web".into()), "{e}");
    }
    lab.a.ok(&["resume", "web"]);
    assert_eq!(error(&["start", "web"], 9)["message"], "it is running already");
    // A name kept there for another pod, which has moved on.
    lab.b.ok(&["start", "--name", "two", "--net", "none", "--", "sleep", "1000"]);
    lab.b.ok(&["move", "two", "hosta"]);
    lab.a.ok(&["rm", "-f", "two"]);
    lab.a.ok(&["start", "--name", "two", "--net", "none", "--", "sleep", "1000"]);
    let e = error(&["move", "two", "hostb"], 9);
    assert!(
        e["message"].as_str().unwrap().contains("keeps the name for a pod that has moved to hosta"),
        "{e}"
    );
    lab.b.ok(&["rm", "two"]);
    lab.a.ok(&["move", "two", "hostb"]);
}
