//! The verbs on real pods, as scripts use them: what is printed, what is returned, what is left.

mod common;

use common::lab::Netns;
use common::until;
use podmig::base::spec::NetMode;
use podmig::pod::store::{Places, Record, Status, Store};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PODMIG: &str = env!("CARGO_BIN_EXE_podmig");
const LIMIT: Duration = Duration::from_secs(20);

/// A host of its own under one directory; its pods end with it.
struct Host {
    dir: tempfile::TempDir,
    netns: Option<Netns>,
}

impl Host {
    fn new() -> Host {
        Host { dir: tempfile::tempdir().unwrap(), netns: None }
    }

    /// One with a network of its own, for pods of `nat`.
    fn with_network(name: &str) -> Host {
        let netns = Netns::new(format!("pmcli-{name}-{}", std::process::id()));
        Host { dir: tempfile::tempdir().unwrap(), netns: Some(netns) }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = match &self.netns {
            Some(netns) => netns.command(PODMIG),
            None => Command::new(PODMIG),
        };
        command.args(args).env("PODMIG_ROOT", self.dir.path()).env_remove("PODMIG_LOG").stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().unwrap())
    }

    /// Starts `sh -c SCRIPT` without a network.
    fn sh(&self, name: &str, script: &str) -> Run {
        self.run(&["start", "--net", "none", "--name", name, "--", "sh", "-c", script])
    }

    fn pod(&self, name: &str) -> Value {
        self.run(&["inspect", "--json", name]).exits(0).json()
    }

    fn store(&self) -> Store {
        Store::open(&Places::resolve(Some(self.dir.path())))
    }

    /// A record as a move leaves it.
    fn leave_record(&self, name: &str, status: Status) -> Record {
        self.sh(name, "sleep 1000").exits(0);
        self.run(&["kill", name]).exits(0);
        let mut record = self.store().find(name).unwrap();
        record.status = status;
        record.moved_to = Some("hostb".into());
        self.store().save(&record).unwrap();
        record
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for record in self.store().list().unwrap_or_default() {
            if record.status.is_here() {
                let _ = self.command(&["kill", record.spec.id.as_str()]).output();
            }
        }
    }
}

/// What a command left.
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Run {
    fn of(output: Output) -> Run {
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        Run { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    fn exits(self, code: i32) -> Run {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.out.lines().count(), 1, "not one line: {}", self.out);
        serde_json::from_str(&self.out).unwrap()
    }
}

/// Waits for a child, bounded; its exit code.
fn ends(child: &mut Child) -> i32 {
    until(LIMIT, "the end of podmig", || child.try_wait().unwrap()).code().unwrap()
}

#[test]
fn a_pods_life() {
    let h = Host::new();
    let run = h.sh("web", "echo hello; exec sleep 1000").exits(0);
    assert_eq!((run.out.as_str(), run.err.as_str()), ("web\n", ""), "the name alone");
    let list = h.run(&["ps", "--json"]).exits(0).json();
    let pod = &list.as_array().unwrap()[0];
    let fields: Vec<&str> = pod.as_object().unwrap().keys().map(String::as_str).collect();
    for field in "schema name id state exit_status pid started net ip ports cmd restart move moved_to"
        .split_whitespace()
    {
        assert!(fields.contains(&field), "{field} is not in {fields:?}");
    }
    assert_eq!(
        (&pod["state"], &pod["net"], &pod["restart"]),
        (&"running".into(), &"none".into(), &"no".into())
    );
    assert_eq!(
        (&pod["exit_status"], &pod["move"], &pod["moved_to"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert!(pod["started"].as_str().unwrap().ends_with('Z'));
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", pod["pid"])).unwrap();
    assert_eq!(comm, "sleep\n", "pid is the command's on this host");
    let id = pod["id"].as_str().unwrap().to_owned();
    assert_eq!(h.run(&["ps", "-q"]).out, "web\n");
    assert_eq!(h.run(&["where", "web"]).exits(0).out, "here\n");

    let paused = h.run(&["pause", &id, "--json"]).exits(0).json();
    assert_eq!(paused["state"], "paused", "a pod is found by its id, too");
    let run = h.run(&["exec", "web", "--", "true"]).exits(125);
    assert!(run.err.contains("resume"), "{}", run.err);
    h.run(&["resume", "web"]).exits(0);
    assert_eq!(h.pod("web")["state"], "running");

    let run = h.run(&["rm", "web"]).exits(1);
    assert!(run.err.contains("it is running") && run.err.contains("podmig stop web"), "{}", run.err);
    assert_eq!(h.run(&["stop", "web"]).exits(0).out, "");
    h.run(&["stop", "web"]).exits(0);
    assert_eq!(h.run(&["ps", "-q"]).out, "");
    let pod = h.pod("web");
    assert_eq!(
        (&pod["state"], &pod["exit_status"], &pod["pid"]),
        (&"exited".into(), &143.into(), &Value::Null)
    );
    assert_eq!(h.run(&["logs", "web"]).out, "hello\n", "the log is kept");

    assert_eq!(h.run(&["start", "web"]).exits(0).out, "web\n");
    assert_eq!(h.pod("web")["id"], id.as_str(), "the same pod");
    assert_eq!(h.run(&["start", "web"]).exits(9).out, "");
    h.run(&["rm", "-f", "web"]).exits(0);
    h.run(&["inspect", "web"]).exits(3);
    h.run(&["rm", "-f", "web"]).exits(0);
    assert_eq!(h.run(&["ps", "-a", "--json"]).out, "[]\n");
}

#[test]
fn of_two_racing_starts_one_wins() {
    let h = Host::new();
    for round in 0..5 {
        let name = format!("race-{round}");
        let start = |n: u32| {
            let n = n.to_string();
            h.command(&[
                "--json",
                "start",
                "--net",
                "none",
                "--name",
                &name,
                "--",
                "sleep",
                &format!("100{n}"),
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
        };
        let runs = [start(1), start(2), start(3)].map(|c| Run::of(c.wait_with_output().unwrap()));
        let mut codes: Vec<i32> = runs.iter().map(|r| r.code).collect();
        codes.sort_unstable();
        assert_eq!(codes, [0, 9, 9]);
        let taken = runs.iter().find(|r| r.code == 9).unwrap().json();
        assert_eq!(taken["error"]["kind"], "taken");
        assert_eq!(taken["error"]["object"], name.as_str());
    }
    assert_eq!(h.run(&["ps", "-q"]).out.lines().count(), 5);
}

#[test]
fn a_failed_start_says_why_and_leaves_nothing() {
    let h = Host::new();
    let run = h.sh("a", "echo last words >&2; exit 3").exits(1);
    assert!(
        run.err.contains("a: ") && run.err.contains("3") && run.err.contains("last words"),
        "{}",
        run.err
    );
    assert!(
        h.run(&["start", "--net", "none", "--", "no-such-command"])
            .exits(127)
            .err
            .contains("no-such-command")
    );
    assert!(h.run(&["start", "--net", "none", "--", "/etc/passwd"]).exits(126).err.contains("/etc/passwd"));
    let run = h.run(&["start", "--net", "none", "-u", "no-such-user", "--", "true"]).exits(1);
    assert!(run.err.contains("no-such-user: no such user on this host"), "{}", run.err);
    let run = h.run(&["start", "--net", "none", "-w", "/no/such/dir", "--", "true"]);
    assert!(run.code != 0 && run.err.contains("/no/such/dir"), "{}", run.err);
    assert!(!run.err.contains("os error"), "{}", run.err);
    assert_eq!(h.run(&["ps", "-a", "--json"]).out, "[]\n");
}

#[test]
fn in_the_foreground_the_status_is_passed() {
    let h = Host::new();
    let fg = |args: &[&str]| h.command(&[&["start", "--fg", "--rm", "--net", "none"], args].concat());
    let run = Run::of(fg(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"]).output().unwrap()).exits(7);
    assert_eq!((run.out.as_str(), run.err.as_str()), ("out\n", "err\n"));
    Run::of(fg(&["--", "sh", "-c", "kill -9 $$"]).output().unwrap()).exits(137);
    Run::of(fg(&["--", "no-such-command"]).output().unwrap()).exits(127);
    Run::of(fg(&["--name", "UPPER", "--", "true"]).output().unwrap()).exits(125);
    // Standard input is the command's, to its end.
    let mut child = fg(&["--", "sort"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"b\na\n").unwrap();
    assert_eq!(Run::of(child.wait_with_output().unwrap()).exits(0).out, "a\nb\n");
    // Signals are the command's, too.
    let script = "trap 'echo got it; exit 9' TERM; echo up; sleep 1000 & wait";
    let mut child = fg(&["--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut up = [0; 3];
    out.read_exact(&mut up).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::SIGTERM)
        .unwrap();
    assert_eq!(ends(&mut child), 9);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got it\n");
    // Nobody reads any more: the command ends as it would in a pipe.
    let mut child = fg(&["--", "yes"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(ends(&mut child), 141);
    assert_eq!(h.run(&["ps", "-a", "--json"]).out, "[]\n", "--rm");
}

#[test]
fn exec_runs_as_asked() {
    let h = Host::new();
    h.run(&["start", "--net", "none", "--name", "a", "-e", "OWN=1", "-w", "/usr", "--", "sleep", "1000"])
        .exits(0);
    let exec = |args: &[&str]| h.run(&[&["exec"], args].concat());
    let run =
        exec(&["a", "--", "sh", "-c", "echo $OWN $PODMIG_POD $container; pwd; id -u; echo err >&2; exit 5"]);
    let run = run.exits(5);
    assert_eq!((run.out.as_str(), run.err.as_str()), ("1 a podmig\n/usr\n0\n", "err\n"));
    let script = ["sh", "-c", "echo $A $OWN $USER; pwd; id -un"];
    let run =
        exec(&[&["-u", "nobody", "-e", "A=x", "-e", "OWN=2", "-w", "/", "a", "--"], &script[..]].concat());
    assert_eq!(run.exits(0).out, "x 2 nobody\n/\nnobody\n");
    let mut child = h.command(&["exec", "a", "--", "cat"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&vec![b'x'; 300_000]).unwrap();
    assert_eq!(Run::of(child.wait_with_output().unwrap()).exits(0).out.len(), 300_000);
    // What it leaves behind does not hold its caller.
    assert_eq!(exec(&["a", "--", "sh", "-c", "sleep 1000 & echo done"]).exits(0).out, "done\n");
    assert!(exec(&["--json", "-d", "a", "--", "sleep", "1000"]).exits(0).json()["pid"].as_i64().unwrap() > 1);
    exec(&["a", "--", "no-such-command"]).exits(127);
    exec(&["a", "--", "/etc/passwd"]).exits(126);
    exec(&["-u", "no-such-user", "a", "--", "true"]).exits(125);
    let mut child = h.command(&["exec", "a", "--", "sleep", "1000"]).spawn().unwrap();
    until(LIMIT, "the command", || {
        exec(&["a", "--", "pgrep", "-fx", "sleep 1000"]).out.lines().nth(3).map(drop)
    });
    h.run(&["kill", "a"]).exits(0);
    assert_eq!(ends(&mut child), 137);
    let run = exec(&["a", "--", "true"]).exits(125);
    assert!(run.err.contains("it ended with status 137"), "{}", run.err);
}

#[test]
fn waiting() {
    let h = Host::new();
    h.sh("a", "echo one; read x; exit 6").exits(1);
    let fifo = h.dir.path().join("fifo");
    let path = fifo.to_str().unwrap();
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    h.sh("a", &format!("printf 'half '; sleep 0.3; echo line; read x <{path}; exit 6")).exits(0);
    assert_eq!(h.run(&["wait", "a", "--for", "ready"]).exits(0).out, "");
    h.run(&["wait", "a", "--for", "log:half line", "--timeout", "20s"]).exits(0);
    let began = Instant::now();
    let run = h.run(&["wait", "a", "--timeout", "50ms", "--json"]).exits(124);
    assert_eq!(run.json()["error"]["kind"], "timeout");
    assert!(began.elapsed() < Duration::from_secs(5));
    h.run(&["wait", "a", "--for", "log:no such line", "--timeout", "50ms"]).exits(124);
    h.run(&["wait", "a", "--for", "tcp:9", "--timeout", "50ms"]).exits(124);
    let child = h.command(&["wait", "a", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut other =
        h.command(&["wait", "a", "--for", "log:no such line"]).stderr(Stdio::piped()).spawn().unwrap();
    std::fs::write(&fifo, "\n").unwrap();
    let waited = Run::of(child.wait_with_output().unwrap()).exits(0).json();
    assert_eq!((&waited["exit_status"], &waited["for"]), (&6.into(), &"exit".into()));
    assert_eq!(ends(&mut other), 1, "it ended without that line");
    assert_eq!(h.run(&["wait", "a"]).exits(0).out, "6\n", "of an ended pod, too");
    h.run(&["wait", "a", "--for", "ready"]).exits(1);
    // A server that listens, seen without a connection of ours.
    let listen = "import socket,time; s=socket.socket(); s.bind(('127.0.0.1',4321)); time.sleep(.2); s.listen(); s.accept()";
    h.run(&["start", "--net", "none", "--name", "b", "--", "python3", "-c", listen]).exits(0);
    h.run(&["wait", "b", "--for", "tcp:4321", "--timeout", "20s"]).exits(0);
    assert_eq!(h.pod("b")["state"], "running", "accept() has not returned");
}

#[test]
fn logs_are_shown_as_asked() {
    let h = Host::new();
    let fifo = h.dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!("echo one; echo two >&2; echo three; read x <{}; echo four", fifo.display());
    h.sh("a", &script).exits(0);
    h.run(&["wait", "a", "--for", "log:three"]).exits(0);
    let run = h.run(&["logs", "a"]).exits(0);
    assert_eq!((run.out.as_str(), run.err.as_str()), ("one\nthree\n", "two\n"));
    assert_eq!(h.run(&["logs", "a", "--since", "2100-01-01T00:00:00Z"]).out, "");
    assert_eq!(h.run(&["logs", "a", "--since", "1h", "--tail", "0"]).out, "");
    let child = h.command(&["logs", "-f", "a", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    std::fs::write(&fifo, "\n").unwrap();
    let out = Run::of(child.wait_with_output().unwrap()).exits(0).out;
    let lines: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let mut texts: Vec<&str> = lines.iter().map(|l| l["text"].as_str().unwrap()).collect();
    assert_eq!(texts.pop(), Some("four"), "followed to the end");
    texts.sort_unstable();
    assert_eq!(texts, ["one", "three", "two"]);
    assert!(lines.iter().all(|l| l["schema"] == 1 && l["time"].as_str().unwrap().ends_with('Z')));
    assert_eq!(lines.iter().filter(|l| l["stream"] == "stderr").count(), 1);
    assert_eq!(h.run(&["logs", "a", "--tail", "1"]).out, "four\n");
    h.run(&["logs", "-f", "a"]).exits(0);
}

#[test]
fn a_moved_pod_is_known_and_never_started_here() {
    let h = Host::new();
    let record = h.leave_record("web", Status::Moved);
    for verb in ["start", "inspect", "where", "port", "logs", "wait", "pause", "resume", "stop", "kill"] {
        let run = h.run(&[verb, "web"]).exits(8);
        assert!(run.err.contains("web") && run.err.contains("hostb"), "{verb}: {}", run.err);
        let v = h.run(&[verb, "--json", record.spec.id.as_str()]).exits(8).json();
        assert_eq!((&v["error"]["code"], &v["error"]["kind"]), (&8.into(), &"elsewhere".into()), "{verb}");
    }
    h.sh("web", "true").exits(8);
    h.run(&["start", "--replace", "--net", "none", "--name", "web", "--", "true"]).exits(8);
    h.run(&["exec", "web", "--", "true"]).exits(125);
    h.run(&["start", "--fg", "web"]).exits(125);
    assert_eq!(h.run(&["where", "web"]).out, "hostb\n");
    let v = h.run(&["where", "web", "--json"]).json();
    assert_eq!((&v["state"], &v["host"]), (&"moved".into(), &"hostb".into()));
    assert_eq!(h.run(&["ps", "--json"]).out, "[]\n");
    let list = h.run(&["ps", "-a", "--json"]).json();
    assert_eq!((&list[0]["state"], &list[0]["moved_to"]), (&"moved".into(), &"hostb".into()));
    assert!(h.run(&["ps", "-a"]).out.contains("moved hostb"));
    h.run(&["rm", "web"]).exits(0);
    h.sh("web", "sleep 1000").exits(0);
}

#[test]
fn a_pod_in_doubt_is_left_alone() {
    let h = Host::new();
    h.leave_record("web", Status::InDoubt);
    for args in
        [&["stop", "web"][..], &["kill", "web"], &["rm", "-f", "web"], &["pause", "web"], &["where", "web"]]
    {
        let run = h.run(args).exits(6);
        assert!(run.err.contains("podmig resolve web"), "{args:?}: {}", run.err);
    }
    h.run(&["start", "web"]).exits(6);
    assert_eq!(h.run(&["ps", "--json"]).json()[0]["state"], "in-doubt");
    assert_eq!(h.store().find("web").unwrap().status, Status::InDoubt);
}

#[test]
fn a_pod_without_its_monitor_is_lost_and_starts_again() {
    let h = Host::new();
    h.sh("a", "exec sleep 1000").exits(0);
    let pod = h.pod("a");
    let monitor = i32::try_from(pod["monitor_pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), nix::sys::signal::SIGKILL).unwrap();
    let lost = until(LIMIT, "the state lost", || Some(h.pod("a")).filter(|p| p["state"] == "lost"));
    assert_eq!(lost["pid"], Value::Null);
    let run = h.run(&["wait", "a"]).exits(1);
    assert!(run.err.contains("it is lost") && run.err.contains("podmig start a"), "{}", run.err);
    h.run(&["start", "a"]).exits(0);
    assert_eq!((&h.pod("a")["state"], &h.pod("a")["id"]), (&"running".into(), &pod["id"]));
    assert!(!std::path::Path::new(&format!("/proc/{}", pod["pid"])).exists(), "one copy");
}

#[test]
fn what_a_command_gets() {
    let h = Host::new();
    let mut command = h
        .command(&["start", "--fg", "--rm", "--net", "none", "--name", "a", "-e", "GIVEN", "--", "sh", "-c"]);
    command.arg("env | sort; pwd; umask; hostname; ulimit -n");
    command.env_clear().env("PODMIG_ROOT", h.dir.path()).envs([
        ("PATH", "/usr/bin:/bin"),
        ("SECRET", "1"),
        ("GIVEN", "2"),
        ("LC_ALL", "C"),
        ("TERM", "xterm"),
    ]);
    command.current_dir("/usr");
    let run = Run::of(command.output().unwrap()).exits(0);
    let mut lines: Vec<&str> = run.out.lines().collect();
    // What the shell adds by itself.
    lines.retain(|l| !["OLDPWD=", "PWD=", "SHLVL=", "_="].iter().any(|p| l.starts_with(p)));
    let expected = "GIVEN=2 HOME=/root LC_ALL=C LOGNAME=root PATH=/usr/bin:/bin PODMIG_POD=a SHELL=/bin/bash USER=root \
                    container=podmig /usr 0022 a";
    let expected: Vec<&str> = expected.split_whitespace().collect();
    let ulimit = lines.pop().unwrap();
    assert_eq!(lines, expected);
    let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    assert_eq!(ulimit, soft.to_string());
}

#[test]
fn ports_of_the_host_are_published_once() {
    let h = Host::with_network("port");
    let start = |name: &str, port: &str| h.run(&["start", "--name", name, "-p", port, "--", "sleep", "1000"]);
    start("a", "80").exits(0);
    let ports = h.run(&["port", "a", "--json"]).exits(0).json();
    let host_port = ports["ports"][0]["host_port"].as_u64().unwrap();
    assert!(host_port > 0);
    assert_eq!((&ports["ports"][0]["pod_port"], &ports["ports"][0]["protocol"]), (&80.into(), &"tcp".into()));
    assert_eq!(h.run(&["port", "a"]).out, format!("80/tcp 0.0.0.0:{host_port}\n"));
    let pod = h.pod("a");
    assert_eq!((&pod["net"], &pod["ports"]), (&"nat".into(), &ports["ports"]));
    assert!(pod["ip"].as_str().unwrap().parse::<std::net::IpAddr>().is_ok());
    let run = start("b", &format!("{host_port}:80")).exits(9);
    assert!(run.err.contains(&host_port.to_string()), "{}", run.err);
    h.run(&["inspect", "b"]).exits(3);
    h.run(&["rm", "-f", "a"]).exits(0);
    start("b", &format!("{host_port}:80")).exits(0);
}

#[test]
fn definitions_names_and_replacing() {
    let h = Host::new();
    let file = h.dir.path().join("x.toml");
    std::fs::write(
        &file,
        "name = 'from-file'\nnet = 'none'\nenv = ['A=1']\ncmd = ['sh', '-c', 'echo $A; exec sleep 1000']\n",
    )
    .unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(h.run(&["start", "-f", path]).exits(0).out, "from-file\n");
    assert_eq!(h.run(&["start", "-f", path, "--name", "other", "-e", "A=2"]).exits(0).out, "other\n");
    h.run(&["wait", "other", "--for", "log:2", "--timeout", "20s"]).exits(0);
    assert_eq!(h.run(&["logs", "from-file"]).out, "1\n");
    h.run(&["start", "-f", path]).exits(9);
    let old = h.pod("other")["id"].clone();
    h.run(&["start", "-f", path, "--name", "other", "--replace"]).exits(0);
    assert_ne!(h.pod("other")["id"], old);
    let name = h.run(&["start", "--net", "none", "--", "/bin/sleep", "1000"]).exits(0).out;
    let letters = name.trim_end().strip_prefix("sleep-").unwrap();
    assert!(letters.len() == 5 && letters.bytes().all(|b| b.is_ascii_lowercase()), "{name}");
    assert_eq!(h.store().find(name.trim_end()).unwrap().spec.net.mode, NetMode::None);
}

#[test]
fn without_root_it_says_what_is_needed() {
    let h = Host::new();
    // Where the user may reach it, wherever the build is.
    let copy = h.dir.path().join("podmig");
    std::fs::copy(PODMIG, &copy).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(h.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(&copy);
        command
            .args(args)
            .uid(65534)
            .gid(65534)
            .current_dir("/")
            .env("HOME", "/nonexistent")
            .env_remove("PODMIG_ROOT");
        Run::of(command.output().unwrap())
    };
    let failed = run(&["start", "--", "true"]).exits(1);
    assert!(failed.err.contains("start: it needs root"), "{}", failed.err);
    run(&["start", "--fg", "--", "true"]).exits(125);
    assert_eq!(run(&["ps", "--json"]).exits(0).out, "[]\n");
    run(&["inspect", "nobody"]).exits(3);
    let checked = run(&["check", "--json"]).exits(1);
    assert!(
        checked
            .json()
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["name"] == "cap-sys-admin" && r["works"] == false)
    );
}
