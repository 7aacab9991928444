//! Steps of a pod's life that several tests take, with everything there is to know when one of them fails.

use super::lab::{Host, Lab};
use super::until;
use serde_json::Value;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long any one command may take; none takes a tenth of it on an idle machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The self-checking programs (`tests/workloads`), built beside this test.
pub fn workload() -> PathBuf {
    let this = std::env::current_exe().expect("path of this test");
    let path = this.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join("examples/workload");
    assert!(path.exists(), "{}: not built (cargo build --examples)", path.display());
    path
}

/// Reads a pipe to its end on a thread.
fn drain(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut all);
        }
        let _ = tell.send(all);
    });
    told
}

/// A command under way, its output being read.
pub struct Running {
    /// The process.
    pub child: Child,
    what: String,
    out: mpsc::Receiver<Vec<u8>>,
    err: mpsc::Receiver<Vec<u8>>,
}

impl Running {
    /// Starts it.
    pub fn start(mut command: Command) -> Self {
        let what = format!("{command:?}");
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("command starts");
        let (out, err) = (drain(child.stdout.take()), drain(child.stderr.take()));
        Self { child, what, out, err }
    }
    /// Waits until it has ended and closed its output.
    pub fn end(mut self) -> Result<Output, String> {
        let start = std::time::Instant::now();
        let status = loop {
            match self.child.try_wait().expect("wait") {
                Some(status) => break status,
                None if start.elapsed() > LIMIT => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    return Err(format!("{}: still running after {LIMIT:?}", self.what));
                }
                None => std::thread::park_timeout(Duration::from_millis(1)),
            }
        };
        let pipe = |pipe: &mpsc::Receiver<Vec<u8>>| {
            pipe.recv_timeout(LIMIT).map_err(|_| format!("{}: ended, its output is still open", self.what))
        };
        Ok(Output { status, stdout: pipe(&self.out)?, stderr: pipe(&self.err)? })
    }
}

/// Runs a command, bounded.
pub fn bounded(command: Command) -> Result<Output, String> {
    Running::start(command).end()
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// Runs `podmig ARGS` on a host; it must exit with `code`. The failure tells all there is.
pub fn run(lab: &Lab, host: &Host, args: &[&str], code: i32) -> Result<String, String> {
    let out = bounded(host.podmig(args))?;
    if out.status.code() == Some(code) {
        return Ok(lossy(&out.stdout));
    }
    Err(format!(
        "{}: podmig {}: {}, not {code}\n--- stdout\n{}\n--- stderr\n{}\n{}",
        host.name,
        args.join(" "),
        out.status,
        lossy(&out.stdout),
        lossy(&out.stderr),
        scene(lab)
    ))
}

/// As [`run`], with `--json`.
pub fn json(lab: &Lab, host: &Host, args: &[&str], code: i32) -> Result<Value, String> {
    let mut all = args.to_vec();
    all.insert(all.iter().position(|a| *a == "--").unwrap_or(all.len()), "--json");
    let text = run(lab, host, &all, code)?;
    serde_json::from_str(&text).map_err(|e| format!("podmig {}: {e}\n{text}", all.join(" ")))
}

/// What a person would look at: the pods of both hosts, their logs, the agents' logs.
pub fn scene(lab: &Lab) -> String {
    let mut text = String::new();
    let mut say = |title: String, command: Command| {
        let said = bounded(command).map_or_else(|e| e, |o| lossy(&[o.stdout, o.stderr].concat()));
        let from = said.len() - said.len().min(3000);
        let from = (from..said.len()).find(|i| said.is_char_boundary(*i)).unwrap_or(said.len());
        text += &format!("--- {title}\n{}\n", &said[from..]);
    };
    for host in [&lab.a, &lab.b] {
        say(format!("{}: ps -a", host.name), host.podmig(&["ps", "-a"]));
        let mut cat = Command::new("cat");
        cat.arg(host.root.join("agent.log"));
        say(format!("{}: agent", host.name), cat);
        let pods = host.podmig(&["ps", "-a", "-q"]).output().map(|o| lossy(&o.stdout)).unwrap_or_default();
        for pod in pods.lines() {
            say(format!("{}: logs {pod}", host.name), host.podmig(&["logs", "--tail", "30", pod]));
        }
    }
    text
}

/// Moves a pod while it stands still; its report.
pub fn move_pod(lab: &Lab, pod: &str, from: &Host, to: &Host) -> Result<Value, String> {
    moved(lab, pod, from, to, &["--mode", "warm"])
}

/// Moves a pod with pre-copy, its memory compared at both ends before the commit; its report.
pub fn move_live(lab: &Lab, pod: &str, from: &Host, to: &Host) -> Result<Value, String> {
    let report = moved(lab, pod, from, to, &["--mode", "live", "--verify"])?;
    let rounds = report["rounds"].as_array().map_or(0, Vec::len);
    if report["verified"] != true || report["mode"] != "live" || report["tracker"] == "none" || rounds == 0 {
        return Err(format!("a live move that was none, or that was not verified:\n{report:#}"));
    }
    Ok(report)
}

fn moved(lab: &Lab, pod: &str, from: &Host, to: &Host, how: &[&str]) -> Result<Value, String> {
    let report = json(lab, from, &[&["move", pod, to.name.as_str()], how].concat(), 0)?;
    let outcome = report["outcome"].as_str().unwrap_or_default();
    if outcome != "moved" || report["connections"]["lost"] != 0 {
        return Err(format!("a move that exits 0 says\n{report:#}"));
    }
    for (host, state) in [(from, "moved"), (to, "running")] {
        if host.state(pod).as_deref() != Some(state) {
            return Err(format!("{}: not {state} after the move\n{}", host.name, scene(lab)));
        }
    }
    let ms = |key: &str| report[key].as_f64().unwrap_or_default() / 1e3;
    println!(
        "{pod}: {} to {}: frozen {} ms, in all {} ms",
        from.name,
        to.name,
        ms("frozen_us"),
        ms("total_us")
    );
    Ok(report)
}

/// Stops a pod with a file and brings it back from it on the same host.
pub fn checkpoint_restore(lab: &Lab, pod: &str, host: &Host) -> Result<(), String> {
    let file = lab.dir().join(format!("{pod}.image"));
    let path = file.to_str().expect("path");
    let report = json(lab, host, &["checkpoint", pod, "-o", path], 0)?;
    if report["outcome"] != "checkpointed" || host.state(pod).as_deref() != Some("checkpointed") {
        return Err(format!("after the checkpoint\n{report:#}\n{}", scene(lab)));
    }
    podmig::image::file::verify(&file).map_err(|e| format!("the image: {e}"))?;
    let report = json(lab, host, &["restore", path], 0)?;
    if report["outcome"] != "restored" || host.state(pod).as_deref() != Some("running") {
        return Err(format!("after the restore\n{report:#}\n{}", scene(lab)));
    }
    std::fs::remove_file(&file).map_err(|e| format!("{path}: {e}"))
}

/// Ends and forgets a pod wherever there is anything of it.
pub fn forget(lab: &Lab, pod: &str) -> Result<(), String> {
    [&lab.a, &lab.b].into_iter().try_for_each(|host| run(lab, host, &["rm", "-f", pod], 0).map(|_| ()))
}

/// Waits until a port answers in the pod, on the host it runs on.
pub fn wait_tcp(lab: &Lab, host: &Host, pod: &str, port: u16) -> Result<(), String> {
    run(lab, host, &["wait", pod, "--for", &format!("tcp:{port}"), "--timeout", "30s"], 0).map(|_| ())
}

/// Panics with the whole list, so that one run shows everything that is wrong.
pub fn none_failed(failed: &[String]) {
    assert!(failed.is_empty(), "{} failed:\n\n{}", failed.len(), failed.join("\n\n"));
}

/// Waits for a pod's state on a host.
pub fn until_state(host: &Host, pod: &str, state: &str) {
    let what = format!("{pod} is {state} on {}", host.name);
    until(LIMIT, &what, || (host.state(pod).as_deref() == Some(state)).then_some(()));
}
