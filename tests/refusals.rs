//! Bad input to checkpoint, restore and move: each a clear message and its exit code, the pod runs on, nothing is left.

mod common;

use common::footprint::{as_before, settled};
use common::lab::{Host, Lab, PODMIG};
use common::steps::{self, Running};
use common::{full, until};
use serde_json::Value;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A program that counts into its log, so that whether it runs can be seen.
const COUNT: [&str; 3] = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.02; done"];

/// Starts `cmd` in a pod on the first host.
fn start(lab: &Lab, name: &str, net: &[&str], cmd: &[&str]) {
    let args = [&["start", "--name", name, "-w", "/"], net, &["--"], cmd].concat();
    steps::run(lab, &lab.a, &args, 0).unwrap_or_else(|e| panic!("{e}"));
}

/// `podmig ARGS --json` must fail with `code`; its `error` object, checked for what every one must have.
#[track_caller]
fn refused(lab: &Lab, host: &Host, args: &[&str], code: i32) -> Value {
    let mut all = args.to_vec();
    all.insert(all.iter().position(|a| *a == "--").unwrap_or(all.len()), "--json");
    error_of(lab, host.podmig(&all), &all, code)
}

#[track_caller]
fn error_of(lab: &Lab, command: Command, args: &[&str], code: i32) -> Value {
    let out = steps::bounded(command).unwrap_or_else(|e| panic!("{e}\n{}", steps::scene(lab)));
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let told = format!("podmig {}: {}\n{stdout}\n{stderr}", args.join(" "), out.status);
    assert_eq!(out.status.code(), Some(code), "{told}\n{}", steps::scene(lab));
    let all: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {told}"));
    let error = &all["error"];
    assert_eq!(error["code"], code, "{told}");
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    assert!(!text("object").is_empty() && !text("message").is_empty(), "{told}");
    assert!(!text("message").contains("os error") && !text("message").contains("panicked"), "{told}");
    let blockers = error["blockers"].as_array().cloned().unwrap_or_default();
    let remedies = blockers.iter().all(|b| !b["remedy"].as_str().unwrap_or_default().is_empty());
    let remedy = !text("remedy").is_empty() || (!blockers.is_empty() && remedies);
    assert!(remedy, "no remedy: {told}");
    error.clone()
}

/// The pod runs on: its log grows.
#[track_caller]
fn runs(lab: &Lab, host: &Host, pod: &str) {
    let last = || {
        let log = steps::run(lab, host, &["logs", "--tail", "1", pod], 0).unwrap_or_else(|e| panic!("{e}"));
        log.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok())
    };
    let before = last();
    until(Duration::from_secs(10), &format!("{pod} counts on"), || (last() > before).then_some(()));
}

fn text(value: &Value) -> String {
    value.to_string()
}

#[test]
fn pods_and_hosts_that_are_not_there() {
    let mut lab = Lab::new();
    start(&lab, "count", &["--net", "none"], &COUNT);
    let before = settled(&lab);
    let error = refused(&lab, &lab.a, &["move", "nobody", "hostb", "--mode", "warm"], 3);
    assert_eq!(error["object"], "nobody");
    let error = refused(&lab, &lab.a, &["checkpoint", "nobody", "-o", "/dev/null"], 3);
    assert_eq!(error["object"], "nobody");
    let error = refused(&lab, &lab.a, &["move", "count", "nowhere", "--mode", "warm"], 7);
    assert!(text(&error).contains("nowhere"), "{error}");
    runs(&lab, &lab.a, "count");
    // An address nobody has, and one where nobody listens.
    let id = lab.b.ok(&["host", "id"]);
    let key = id.split_whitespace().last().expect("fingerprint");
    lab.a.ok(&["host", "add", "gone", "10.77.0.77:7411", key]);
    lab.a.ok(&["host", "add", "silent", "10.77.0.2:7412", key]);
    for host in ["gone", "silent"] {
        let error = refused(&lab, &lab.a, &["move", "count", host, "--mode", "warm"], 7);
        assert!(text(&error).contains(host), "{error}");
    }
    // The right address with another key; then the right key, but we are not known there.
    let mine = lab.a.ok(&["host", "id"]);
    lab.a.ok(&["host", "add", "forged", "10.77.0.2:7411", mine.split_whitespace().last().expect("key")]);
    let error = refused(&lab, &lab.a, &["move", "count", "forged", "--mode", "warm"], 7);
    assert!(text(&error).contains("host add"), "{error}");
    lab.b.ok(&["host", "rm", "hosta"]);
    let error = refused(&lab, &lab.a, &["move", "count", "hostb", "--mode", "warm"], 7);
    assert!(text(&error).contains("trust"), "{error}");
    runs(&lab, &lab.a, "count");
    as_before(&lab, &before);
    lab.b.kill_agent();
    refused(&lab, &lab.a, &["move", "count", "hostb", "--mode", "warm"], 7);
    runs(&lab, &lab.a, "count");
    as_before(&lab, &before);
    assert_eq!(lab.a.state("count").as_deref(), Some("running"));
    assert_eq!(lab.b.state("count"), None);
}

#[test]
fn names_addresses_and_ports_that_are_taken() {
    let lab = Lab::new();
    let holder = lab.a.ns.within(|| TcpListener::bind("0.0.0.0:8080").expect("bind"));
    let before = settled(&lab);
    let error = refused(&lab, &lab.a, &["start", "--name", "p", "-p", "8080:80", "--", "sleep", "100"], 9);
    assert!(text(&error).contains("8080"), "{error}");
    assert_eq!(lab.a.state("p"), None, "nothing is left of it");
    as_before(&lab, &before);
    drop(holder);
    start(&lab, "p", &["-p", "8080:80"], &COUNT);
    let before = settled(&lab);
    // Taken at the target: the port, the name, the address.
    let holder = lab.b.ns.within(|| TcpListener::bind("0.0.0.0:8080").expect("bind"));
    let error = refused(&lab, &lab.a, &["move", "p", "hostb", "--mode", "warm"], 9);
    assert!(text(&error).contains("8080"), "{error}");
    runs(&lab, &lab.a, "p");
    as_before(&lab, &before);
    assert_eq!(lab.b.state("p"), None, "nothing is left there");
    drop(holder);
    lab.b.ok(&["start", "--name", "p", "--", "sleep", "100"]);
    let before = settled(&lab);
    let error = refused(&lab, &lab.a, &["move", "p", "hostb", "--mode", "warm"], 9);
    assert!(text(&error).contains('p'), "{error}");
    runs(&lab, &lab.a, "p");
    as_before(&lab, &before);
    lab.b.ok(&["rm", "-f", "p"]);
    start(&lab, "lan", &["--net", "lan:br0", "--ip", "10.77.0.60/24"], &COUNT);
    let before = settled(&lab);
    let same = ["start", "--name", "q", "--net", "lan:br0", "--ip", "10.77.0.60/24", "--", "sleep", "9"];
    let error = refused(&lab, &lab.b, &same, 9);
    assert!(text(&error).contains("10.77.0.60"), "{error}");
    as_before(&lab, &before);
    steps::move_pod(&lab, "p", &lab.a, &lab.b).unwrap_or_else(|e| panic!("{e}"));
    runs(&lab, &lab.b, "p");
    // It lives elsewhere now: every verb says so.
    for args in
        [&["start", "p"][..], &["stop", "p"], &["move", "p", "hostb", "--mode", "warm"], &["pause", "p"]]
    {
        let error = refused(&lab, &lab.a, args, 8);
        assert!(text(&error).contains("hostb"), "{error}");
    }
    for host in [&lab.a, &lab.b] {
        host.run(&["rm", "-f", "p"]);
        host.run(&["rm", "-f", "lan"]);
    }
}

/// An agent on the second host that sees another file system: `hide` is run before it, in a mount namespace of its own.
fn blinkered_agent(lab: &mut Lab, hide: &str) -> Running {
    lab.b.kill_agent();
    let script = format!("{hide}\nexec \"$@\"");
    let mut command = lab.b.ns.command("unshare");
    let listen = format!("{}:7411", lab.b.addr);
    command.args(["-m", "sh", "-ec", &script, "sh", PODMIG, "agent", "--listen", &listen]);
    command.env("PODMIG_ROOT", &lab.b.root).stdin(Stdio::null());
    let agent = Running::start(command);
    let addr = std::net::SocketAddr::from((lab.b.addr, 7411));
    until(Duration::from_secs(10), "the agent listens", || {
        lab.b.ns.within(|| std::net::TcpStream::connect_timeout(&addr, Duration::from_secs(1)).ok())
    });
    agent
}

/// Kills what `blinkered_agent` started.
fn end(mut agent: Running) {
    let _ = agent.child.kill();
    let _ = agent.end();
}

#[test]
fn a_target_without_a_mapped_file_or_without_memory() {
    let mut lab = Lab::new();
    // A program that is there on one host only.
    let hidden = lab.dir().join("hidden");
    std::fs::create_dir(&hidden).expect("directory");
    let program = hidden.join("program");
    std::fs::copy("/bin/sh", &program).expect("copy");
    let program = program.to_str().expect("path").to_owned();
    start(&lab, "count", &["--net", "none"], &[&program, COUNT[1], COUNT[2]]);
    let agent = blinkered_agent(&mut lab, &format!("mount -t tmpfs none {}", hidden.display()));
    let before = settled(&lab);
    let error = refused(&lab, &lab.a, &["move", "count", "hostb", "--mode", "warm"], 4);
    assert!(text(&error).contains(&program), "{error}");
    runs(&lab, &lab.a, "count");
    as_before(&lab, &before);
    assert_eq!(lab.b.state("count"), None, "nothing is left there");
    end(agent);
    // A target that has no memory to give.
    let little = lab.dir().join("meminfo");
    std::fs::write(&little, "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 10 kB\n").expect("file");
    let agent = blinkered_agent(&mut lab, &format!("mount --bind {} /proc/meminfo", little.display()));
    let before = settled(&lab);
    let error = refused(&lab, &lab.a, &["move", "count", "hostb", "--mode", "warm"], 4);
    assert_eq!(error["blockers"][0]["kind"], "memory", "{error}");
    runs(&lab, &lab.a, "count");
    as_before(&lab, &before);
    end(agent);
    // One whose disk is full: there is no room for the record that decides.
    let var = lab.b.root.join("var/lib/podmig");
    let (var, key) = (var.display(), lab.dir().join("key"));
    let (key, size) = (key.display(), "size=8k");
    let full = format!(
        "cp -r {var} {key}; mount -t tmpfs -o {size} none {var}; cp -r {key}/. {var}/\n\
         cat /dev/zero > {var}/full 2>/dev/null || true"
    );
    let agent = blinkered_agent(&mut lab, &full);
    let before = settled(&lab);
    let error = refused(&lab, &lab.a, &["move", "count", "hostb", "--mode", "warm"], 5);
    assert!(text(&error).to_lowercase().contains("space"), "{error}");
    runs(&lab, &lab.a, "count");
    as_before(&lab, &before);
    end(agent);
    lab.b.start_agent();
    steps::move_pod(&lab, "count", &lab.a, &lab.b).unwrap_or_else(|e| panic!("{e}"));
    runs(&lab, &lab.b, "count");
}

/// An image of a counting pod that no longer is anywhere; the pod's name.
fn image(lab: &Lab) -> (PathBuf, Vec<u8>) {
    start(lab, "count", &["--net", "none"], &COUNT);
    steps::run(lab, &lab.a, &["wait", "count", "--for", "log:tick 2", "--timeout", "10s"], 0)
        .unwrap_or_else(|e| panic!("{e}"));
    let file = lab.dir().join("image");
    let path = file.to_str().expect("path");
    steps::json(lab, &lab.a, &["checkpoint", "count", "-o", path], 0).unwrap_or_else(|e| panic!("{e}"));
    let mode = std::fs::metadata(&file).expect("image").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "an image holds memory: for its owner only");
    let bytes = std::fs::read(&file).expect("image");
    (file, bytes)
}

#[test]
fn damaged_images() {
    let lab = Lab::new();
    let (file, whole) = image(&lab);
    let bad = lab.dir().join("bad");
    let path = bad.to_str().expect("path");
    let before = settled(&lab);
    let damaged = |what: String, bytes: &[u8]| {
        std::fs::write(&bad, bytes).expect("write");
        let checked = podmig::image::file::verify(&bad);
        assert!(checked.is_err(), "{what}: passes the check");
        let error = refused(&lab, &lab.a, &["restore", path], 1);
        assert!(text(&error).contains(path), "{what}: the file is not named: {error}");
        assert_eq!(lab.a.state("count").as_deref(), Some("checkpointed"), "{what}: something was built");
    };
    let lengths =
        [0, 1, 19, 20, 21, 100, whole.len() / 3, whole.len() / 2, whole.len() - 21, whole.len() - 1];
    for len in lengths {
        damaged(format!("cut to {len} bytes"), &whole[..len]);
    }
    damaged("text".into(), b"this is no image at all, however long it may be; not at all\n");
    let mut longer = whole.clone();
    longer.extend(b"more");
    damaged("with something after its end".into(), &longer);
    // Flips of one bit anywhere; the head of the file more often than its share.
    let mut x = 0x1234_5678_9abc_def1u64;
    let mut random = |limit: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 16) as usize % limit
    };
    for n in 0..if full() { 300 } else { 25 } {
        let at = if n % 2 == 0 { random(whole.len()) } else { random(5000.min(whole.len())) };
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << random(8);
        damaged(format!("bit flipped in byte {at}"), &bytes);
    }
    let missing = lab.dir().join("no-such-image");
    let error = refused(&lab, &lab.a, &["restore", missing.to_str().expect("path")], 1);
    assert!(text(&error).contains("no-such-image"), "{error}");
    as_before(&lab, &before);
    // The whole one is still good, and the pod takes up where it was.
    steps::json(&lab, &lab.a, &["restore", file.to_str().expect("path")], 0)
        .unwrap_or_else(|e| panic!("{e}"));
    runs(&lab, &lab.a, "count");
    let error = refused(&lab, &lab.a, &["restore", file.to_str().expect("path")], 4);
    assert!(text(&error).contains("count"), "it lives: {error}");
}

/// Frames of an image: kind, body.
fn frames(bytes: &[u8]) -> Vec<(podmig::image::frame::FrameKind, Vec<u8>)> {
    let mut input = bytes;
    let mut frames = Vec::new();
    let mut body = Vec::new();
    while let Some(kind) = podmig::image::frame::read(&mut input, &mut body).expect("frame") {
        frames.push((kind, body.clone()));
    }
    frames
}

/// A liar's image: every checksum fits, what is said does not. Whatever comes of it, the tool answers; it never panics.
#[test]
fn images_made_by_a_liar() {
    let lab = Lab::new();
    let (_, whole) = image(&lab);
    let good = frames(&whole);
    let bad = lab.dir().join("lie");
    let mut x = 0x0dd0_5eed_1234_5679u64;
    let mut random = |limit: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 16) as usize % limit.max(1)
    };
    let (mut refusals, rounds) = (0, if full() { 400 } else { 60 });
    let before = settled(&lab);
    for n in 0..rounds {
        let mut lie = good.clone();
        let records: Vec<usize> = (0..lie.len()).filter(|i| lie[*i].1.len() < 1 << 20).collect();
        let (_, body) = &mut lie[records[random(records.len())]];
        for _ in 0..=random(3) {
            let at = random(body.len());
            match random(3) {
                0 => body[at] ^= 1 << random(8),
                1 => body[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                _ => body.truncate(at.max(1)),
            }
        }
        let mut out = Vec::new();
        for (kind, body) in &lie {
            podmig::image::frame::write(&mut out, *kind, &[], body, true).expect("frame");
        }
        std::fs::write(&bad, &out).expect("write");
        let path = bad.to_str().expect("path");
        let name = format!("lie{n}");
        let run = steps::bounded(lab.a.podmig(&["restore", path, "--name", &name, "--json"]));
        let run = run.unwrap_or_else(|e| panic!("{e}"));
        told(&lab, n, &run);
        refusals += u32::from(!run.status.success());
        // What it built, if it was no lie that matters, goes; what it refused left nothing.
        let left = lab.a.ok(&["ps", "-q"]);
        if !run.status.success() {
            assert_eq!(
                left,
                "",
                "lie {n}: something runs after the refusal\n{}\n{}",
                said(&run),
                steps::scene(&lab)
            );
        }
        for pod in left.lines() {
            lab.a.ok(&["rm", "-f", pod]);
        }
        if run.status.success() {
            // Its program may have ended at once, of what it was made to believe.
            lab.a.ok(&["rm", "-f", &name]);
        }
        as_before(&lab, &before);
    }
    println!("{refusals} of {rounds} were refused");
    assert!(refusals > 0);
}

fn said(run: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr))
}

fn told(lab: &Lab, n: usize, run: &Output) {
    let said = said(run);
    let code = run.status.code();
    assert!(matches!(code, Some(0 | 1 | 4 | 9)), "lie {n}: {}\n{said}\n{}", run.status, steps::scene(lab));
    assert!(!said.contains("panicked"), "lie {n}: {said}");
}

#[test]
fn a_full_disk_under_the_checkpoint() {
    let lab = Lab::new();
    start(&lab, "count", &["--net", "none"], &COUNT);
    let before = settled(&lab);
    let place = lab.dir().join("small");
    std::fs::create_dir(&place).expect("directory");
    let dir = place.display();
    // In a mount namespace of its own: gone with the command. What is left on the disk is printed.
    let script = format!(
        "mount -t tmpfs -o size=64k none {dir}; echo old > {dir}/image\n\
         \"$@\" checkpoint count -o {dir}/image --json && exit 99; code=$?\n\
         test \"$(cat {dir}/image)\" = old || {{ echo 'the old file is gone' >&2; exit 98; }}\n\
         test \"$(ls -A {dir})\" = image || {{ ls -A {dir} >&2; exit 97; }}\n\
         exit $code"
    );
    let mut command = lab.a.ns.command("unshare");
    command.args(["-m", "sh", "-c", &script, "sh", PODMIG]).env("PODMIG_ROOT", &lab.a.root);
    let error = error_of(&lab, command, &["checkpoint to a full disk"], 5);
    assert!(text(&error).to_lowercase().contains("space"), "{error}");
    runs(&lab, &lab.a, "count");
    assert_eq!(lab.a.state("count").as_deref(), Some("running"));
    let error = refused(&lab, &lab.a, &["checkpoint", "count", "-o", "/no/such/place/image"], 5);
    assert!(text(&error).contains("/no/such/place"), "{error}");
    runs(&lab, &lab.a, "count");
    as_before(&lab, &before);
    let file = lab.dir().join("good");
    let path = file.to_str().expect("path");
    steps::json(&lab, &lab.a, &["checkpoint", "count", "-o", path], 0).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_traced_process() {
    let lab = Lab::new();
    start(&lab, "count", &["--net", "none"], &COUNT);
    let inspected = lab.a.json(&["inspect", "count"], 0);
    let pid = nix::unistd::Pid::from_raw(inspected["pid"].as_i64().expect("pid") as i32);
    let before = settled(&lab);
    nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty()).expect("seize");
    for args in [
        &["move", "count", "hostb", "--mode", "warm"][..],
        &["checkpoint", "count", "-o", "/dev/null"],
        &["move", "count", "hostb", "--mode", "warm", "--dry-run"],
    ] {
        let error = refused(&lab, &lab.a, args, 4);
        let blocker = &error["blockers"][0];
        assert!(blocker["pid"].is_number() && text(blocker).contains("trac"), "{error}");
    }
    as_before(&lab, &before);
    // Let it go: a signal's stop is needed first.
    nix::sys::ptrace::interrupt(pid).expect("interrupt");
    nix::sys::wait::waitpid(pid, None).expect("stop");
    nix::sys::ptrace::detach(pid, None).expect("detach");
    runs(&lab, &lab.a, "count");
    steps::move_pod(&lab, "count", &lab.a, &lab.b).unwrap_or_else(|e| panic!("{e}"));
}

/// Opens what cannot be carried (yet), says so, counts on.
const ODD: &str = r"
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
fds = {'inotify': lambda: libc.inotify_init1(0),
       'fanotify': lambda: libc.fanotify_init(0, 0),
       'packet': lambda: __import__('socket').socket(17, 3, 0).detach(),
       'netlink': lambda: __import__('socket').socket(16, 3, 0).detach(),
       'userfaultfd': lambda: libc.syscall(323, 1),
       'pidfd': lambda: os.pidfd_open(os.getpid()),
       'pty': lambda: os.openpty()[0]}
for kind in sys.argv[1:]:
    assert fds[kind]() > 2, kind
n = 0
while True:
    n += 1
    print('tick', n, flush=True)
    time.sleep(0.02)
";

/// Each kind is refused by name, with its number, or carried; nothing in between.
#[test]
fn descriptors_that_cannot_be_carried() {
    let lab = Lab::new();
    let script = lab.dir().join("odd.py");
    std::fs::File::create(&script).and_then(|mut f| f.write_all(ODD.as_bytes())).expect("script");
    let script = script.to_str().expect("path");
    let mut refusals = Vec::new();
    for kind in ["inotify", "fanotify", "packet", "netlink", "userfaultfd", "pidfd", "pty"] {
        let args = [
            "start",
            "--name",
            kind,
            "-w",
            "/",
            "--net",
            "none",
            "--privileged",
            "--",
            "python3",
            script,
            kind,
        ];
        steps::run(&lab, &lab.a, &args, 0).unwrap_or_else(|e| panic!("{e}"));
        steps::run(&lab, &lab.a, &["wait", kind, "--for", "log:tick", "--timeout", "10s"], 0)
            .unwrap_or_else(|e| panic!("{e}"));
        let before = settled(&lab);
        let out = lab.a.run(&["move", kind, "hostb", "--mode", "warm", "--json"]);
        if out.status.success() {
            println!("{kind}: carried");
            runs(&lab, &lab.b, kind);
        } else {
            let error = refused(&lab, &lab.a, &["move", kind, "hostb", "--mode", "warm"], 4);
            let blocker = &error["blockers"][0];
            assert!(blocker["pid"].is_number() && blocker["fd"].is_number(), "{kind}: {error}");
            println!("{kind}: {}", blocker["message"]);
            runs(&lab, &lab.a, kind);
            as_before(&lab, &before);
            refusals.push(kind);
        }
        steps::forget(&lab, kind).unwrap_or_else(|e| panic!("{e}"));
    }
    assert!(!refusals.is_empty(), "everything is carried now: this test needs another kind");
    // Several at once: all are listed.
    let several = &refusals[..refusals.len().min(3)];
    let head =
        ["start", "--name", "several", "-w", "/", "--net", "none", "--privileged", "--", "python3", script];
    steps::run(&lab, &lab.a, &[&head[..], several].concat(), 0).unwrap_or_else(|e| panic!("{e}"));
    steps::run(&lab, &lab.a, &["wait", "several", "--for", "log:tick", "--timeout", "10s"], 0)
        .unwrap_or_else(|e| panic!("{e}"));
    let error = refused(&lab, &lab.a, &["move", "several", "hostb", "--mode", "warm", "--dry-run"], 4);
    assert!(error["blockers"].as_array().is_some_and(|b| b.len() >= several.len()), "{error}");
    runs(&lab, &lab.a, "several");
}

#[test]
fn without_root() {
    let lab = Lab::new();
    start(&lab, "count", &["--net", "none"], &COUNT);
    let before = settled(&lab);
    // Where everybody may execute it.
    let dir =
        tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir().expect("dir");
    let program = dir.path().join("podmig");
    std::fs::copy(PODMIG, &program).expect("copy");
    let nobody = |args: &[&str], root: &Path| {
        let mut command = Command::new(&program);
        command.args(args).arg("--json").env("PODMIG_ROOT", root).uid(65534).gid(65534).current_dir("/");
        command
    };
    let own = dir.path().join("own");
    std::fs::create_dir(&own).expect("directory");
    std::os::unix::fs::chown(&own, Some(65534), Some(65534)).expect("chown");
    for args in [&["start", "--name", "x"][..], &["restore", "/etc/hostname"]] {
        let mut all = args.to_vec();
        if args[0] == "start" {
            all.extend(["--net", "none"]);
        }
        let mut command = nobody(&all, &own);
        if args[0] == "start" {
            command.args(["--", "true"]);
        }
        let error = error_of(&lab, command, args, 1);
        assert!(text(&error).contains("root"), "{error}");
    }
    // Nor may anybody act on the pods of root.
    for args in [
        &["move", "count", "hostb", "--mode", "warm"][..],
        &["checkpoint", "count", "-o", "/tmp/x"],
        &["stop", "count"],
    ] {
        let out = steps::bounded(nobody(args, &lab.a.root)).unwrap_or_else(|e| panic!("{e}"));
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            !out.status.success() && said.contains("error") && !said.contains("os error"),
            "{args:?}: {said}"
        );
    }
    runs(&lab, &lab.a, "count");
    as_before(&lab, &before);
}
