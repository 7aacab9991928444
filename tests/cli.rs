//! The command line as scripts see it: exit codes, JSON, standard output and error, bad input.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

const PODMIG: &str = env!("CARGO_BIN_EXE_podmig");

/// A host of its own: everything under one directory.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Host {
        Host { dir: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PODMIG);
        command
            .args(args)
            .env("PODMIG_ROOT", self.dir.path())
            .env_remove("PODMIG_LOG")
            .env("SHELL", "/bin/sh");
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().unwrap())
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

    /// The one JSON value on standard output.
    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.out.lines().count(), 1, "not one line: {}", self.out);
        serde_json::from_str(&self.out).unwrap()
    }
}

#[test]
fn failures_have_a_code_an_object_and_a_remedy() {
    let h = Host::new();
    for verb in ["inspect", "where", "port", "logs", "pause", "resume", "stop", "kill", "rm", "wait", "start"]
    {
        let run = h.run(&[verb, "nobody"]).exits(3);
        assert_eq!(run.out, "");
        assert!(run.err.starts_with("podmig: nobody: no such pod on this host\n"), "{}", run.err);
        let run = h.run(&["--json", verb, "nobody"]).exits(3);
        assert_eq!(run.err, "", "{verb}");
        let v = run.json();
        assert_eq!(v["schema"], 1);
        assert_eq!(v["error"]["code"], 3);
        assert_eq!(v["error"]["kind"], "no-such-pod");
        assert_eq!(v["error"]["object"], "nobody");
        assert!(v["error"]["remedy"].as_str().unwrap().contains("podmig ps -a"));
        assert_eq!(v["error"]["blockers"], serde_json::json!([]));
    }
    // These pass a program's status: their own failures are 125.
    h.run(&["attach", "nobody"]).exits(125);
    h.run(&["exec", "nobody", "--", "true"]).exits(125);
    h.run(&["start", "--fg", "nobody"]).exits(125);
}

#[test]
fn wrong_usage_is_2_and_says_what_is_right() {
    let h = Host::new();
    for (args, part) in [
        (&["start"][..], "podmig start -- CMD"),
        (&["start", "ls", "-l"], "unexpected argument '-l'"),
        (&["start", "--name", "Not_A_Label", "--", "true"], "--name Not_A_Label: a name has only a-z"),
        (&["start", "--net", "lan:br0", "--", "true"], "--ip ADDR/LEN"),
        (&["start", "--ip", "10.0.0.1/8", "--", "true"], "--net lan:IF"),
        (&["start", "--net", "none", "-p", "80", "--", "true"], "--net nat only"),
        (&["start", "-p", "80:80", "-p", "80:81", "--", "true"], "given twice"),
        (&["nonsense"], "unrecognized subcommand"),
        (&[], "Usage: podmig"),
        (&["drain"], "not yet supported: drain"),
    ] {
        let run = h.run(args).exits(2);
        assert_eq!(run.out, "", "{args:?}");
        assert!(run.err.contains(part), "{args:?}: {}", run.err);
    }
    let v = h.run(&["--json", "nonsense"]).exits(2).json();
    assert_eq!(v["error"]["kind"], "usage");
    let v = h.run(&["--json", "start", "--name", "A", "--", "x"]).exits(2).json();
    assert_eq!(v["error"]["object"], "--name A");
    h.run(&["exec", "nobody", "ls"]).exits(125);
    h.run(&["start", "--fg", "--name", "A", "--", "x"]).exits(125);
}

#[test]
fn help_and_version_are_no_failures() {
    let h = Host::new();
    for args in [&["--help"][..], &["start", "--help"], &["move", "-h"], &["--version"]] {
        let run = h.run(args).exits(0);
        assert!(run.err.is_empty() && run.out.contains("podmig"), "{args:?}");
    }
    let versions = h.run(&["version", "--json"]).exits(0).json();
    assert_eq!(versions["version"], env!("CARGO_PKG_VERSION"));
    for what in ["json", "record", "image", "wire", "monitor"] {
        assert!(!versions[what].is_null(), "{what}: {versions}");
    }
}

#[test]
fn an_empty_host_has_no_pods() {
    let h = Host::new();
    assert_eq!(h.run(&["ps", "--json", "-a"]).exits(0).out, "[]\n");
    assert_eq!(h.run(&["ps", "-q"]).exits(0).out, "");
    assert!(h.run(&["ps"]).exits(0).out.starts_with("NAME"));
    // Looking makes nothing.
    assert!(std::fs::read_dir(h.dir.path()).unwrap().next().is_none());
}

#[test]
fn trusted_hosts_are_kept() {
    let h = Host::new();
    let print = "0123456789abcdef0123456789abcdef";
    assert_eq!(h.run(&["host", "add", "b", "10.0.0.2:7411", print]).exits(0).out, "");
    h.run(&["host", "add", "c", "--ssh", "root@c.example"]).exits(0);
    let list = h.run(&["host", "ls", "--json"]).exits(0).json();
    assert_eq!(list[0]["name"], "b");
    assert_eq!(list[0]["fingerprint"], print);
    assert_eq!(list[1]["address"], "ssh://root@c.example");
    let file = std::fs::read_to_string(h.dir.path().join("etc/podmig/hosts")).unwrap();
    assert_eq!(file, format!("b 10.0.0.2:7411 {print}\nc ssh://root@c.example\n"));
    h.run(&["host", "rm", "b"]).exits(0);
    let run = h.run(&["host", "rm", "b"]).exits(1);
    assert!(run.err.contains("b: no such host"), "{}", run.err);
    h.run(&["host", "add", "d", "10.0.0.2:7411", "short"]).exits(2);
    std::fs::write(h.dir.path().join("etc/podmig/hosts"), "one two three four\n").unwrap();
    let run = h.run(&["host", "ls"]).exits(1);
    assert!(run.err.contains("etc/podmig/hosts") && run.err.contains("line 1"), "{}", run.err);
}

#[test]
fn a_definition_file_is_checked() {
    let h = Host::new();
    let file = h.dir.path().join("x.toml");
    let path = file.to_str().unwrap();
    for (text, code, part) in [
        ("nmae = 'x'\ncmd = ['true']\n", 2, "line 1: unknown field `nmae`"),
        ("cmd = []\n", 2, "no command"),
        ("cmd = ['true']\nmemory = 'a lot'\n", 2, "line 2: memory = \"a lot\""),
        ("cmd = ['true']\n\n[env]\n'A B' = 1\n", 2, "line 3: env \"A B\""),
        ("cmd = ['true']\npids = []\n", 2, "line 2: "),
    ] {
        std::fs::write(&file, text).unwrap();
        let run = h.run(&["start", "-f", path]).exits(code);
        assert!(run.err.contains(part), "{text:?}: {}", run.err);
    }
    // In the foreground by the file's word: its own failures are 125 too.
    std::fs::write(&file, "fg = true\nnet = 'lan:br0'\ncmd = ['true']\n").unwrap();
    h.run(&["start", "-f", path]).exits(125);
    let run = h.run(&["start", "-f", "/no/such/file.toml"]).exits(1);
    assert!(run.err.contains("/no/such/file.toml: cannot read it: no such file or directory"), "{}", run.err);
}

#[test]
fn the_manual_page_is_the_flags() {
    let h = Host::new();
    let page = h.run(&["generate", "man"]).exits(0).out;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/podmig.1");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(kept == page, "man/podmig.1 is not what `podmig generate man` writes; UPDATE=1 rewrites it");
}

#[test]
fn generated_files() {
    let h = Host::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(h.run(&["generate", "completions", shell]).exits(0).out.contains("checkpoint"), "{shell}");
    }
    h.run(&["generate", "completions", "csh"]).exits(2);
    let unit = h.run(&["generate", "systemd"]).exits(0).out;
    assert!(unit.contains(&format!("--root {} agent\n", h.dir.path().display())), "{unit}");
    h.run(&["generate", "systemd", "nobody"]).exits(3);
}

#[test]
fn check_tries_everything_quickly() {
    let h = Host::new();
    let began = std::time::Instant::now();
    let run = h.run(&["check", "--json"]);
    let took = began.elapsed();
    let list = run.json();
    let list = list.as_array().unwrap();
    assert!(list.len() > 30);
    for row in list {
        assert!(row["works"].is_boolean() && row["needed_for"].is_string() && row["host"].is_null(), "{row}");
        for key in ["name", "purpose", "without", "detail"] {
            assert!(row[key].as_str().is_some_and(|t| !t.is_empty()), "{key}: {row}");
        }
        assert!(!row["detail"].as_str().unwrap().contains("os error"), "{row}");
    }
    let missing =
        list.iter().any(|r| r["works"] == false && (r["needed_for"] == "pods" || r["needed_for"] == "moves"));
    assert_eq!(run.code, i32::from(missing));
    // It is to take less than a second, and takes a tenth of that; tests run on busy machines.
    assert!(took < std::time::Duration::from_secs(5), "{took:?}");
    // What is missing is told with what is lost.
    let text = h.run(&["check"]).out;
    for row in list.iter().filter(|r| r["works"] == false) {
        let line = format!("without {}: {}", row["name"].as_str().unwrap(), row["without"].as_str().unwrap());
        assert!(text.contains(&line), "{line}\n{text}");
    }
}

#[test]
fn a_closed_pipe_is_success() {
    let h = Host::new();
    let mut child = h.command(&["generate", "man"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn diagnostics_are_asked_for_by_name() {
    let h = Host::new();
    let output = h.command(&["ps"]).env("PODMIG_LOG", "=[[").output().unwrap();
    let run = Run::of(output).exits(2);
    assert!(run.err.contains("PODMIG_LOG"), "{}", run.err);
    Run::of(h.command(&["ps"]).env("PODMIG_LOG", "trace").output().unwrap()).exits(0);
}
