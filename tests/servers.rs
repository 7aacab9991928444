//! Real servers with clients connected, through checkpoint and restore, move, and move back: every byte is checked.

mod common;

use common::clients::{self, Crowd, until_done};
use common::lab::{Host, Lab};
use common::steps;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

/// A server in a pod of its own address.
struct Server {
    name: &'static str,
    last: u8,
}

impl Server {
    fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.last)
    }
    /// Starts it on the first host and waits until it listens.
    fn start(&self, lab: &Lab, args: &[&str], cmd: &[&str], port: Option<u16>) {
        let ip = format!("{}/24", self.ip());
        let mut all = vec!["start", "--name", self.name, "--net", "lan:br0", "--ip", &ip];
        all.extend(args);
        if !cmd.is_empty() {
            all.push("--");
            all.extend(cmd);
        }
        let started = steps::run(lab, &lab.a, &all, 0);
        let up = started.and_then(|_| port.map_or(Ok(()), |p| steps::wait_tcp(lab, &lab.a, self.name, p)));
        up.unwrap_or_else(|e| panic!("{e}"));
    }
    /// Checkpoint and restore, move, move back; `after` each, and `more` answers for each client after each.
    fn live(&self, lab: &Lab, crowd: &Crowd, more: u64, mut after: impl FnMut(&str) -> Result<(), String>) {
        let mut step = |what: &str, work: &dyn Fn() -> Result<(), String>| {
            work().unwrap_or_else(|e| panic!("{} ({what}): {e}\nclients: {:?}", self.name, crowd.failures()));
            let checked = crowd.all_go_on(what, more).and_then(|()| after(what));
            checked.unwrap_or_else(|e| panic!("{}: {e}\n{}", self.name, steps::scene(lab)));
            println!("{}: {what}: longest waits {:?} ms", self.name, crowd.longest_ms());
        };
        step("started", &|| Ok(()));
        step("restored", &|| steps::checkpoint_restore(lab, self.name, &lab.a));
        step("moved", &|| steps::move_pod(lab, self.name, &lab.a, &lab.b).map(|_| ()));
        step("moved back live", &|| steps::move_live(lab, self.name, &lab.b, &lab.a).map(|_| ()));
        step("moved live", &|| steps::move_live(lab, self.name, &lab.a, &lab.b).map(|_| ()));
        step("moved back", &|| steps::move_pod(lab, self.name, &lab.b, &lab.a).map(|_| ()));
    }
    /// All clients still content; the server ends on SIGTERM.
    fn end(&self, lab: &Lab, crowd: Crowd) {
        crowd.end().unwrap_or_else(|e| panic!("{}: {e}\n{}", self.name, steps::scene(lab)));
        steps::run(lab, &lab.a, &["stop", self.name], 0).unwrap_or_else(|e| panic!("{e}"));
        steps::forget(lab, self.name).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// A lab whose directory servers that give up root can read.
fn lab() -> Lab {
    let lab = Lab::new();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(lab.dir(), open).expect("permissions");
    lab
}

const REDIS: [&str; 9] =
    ["redis-server", "--port", "6379", "--protected-mode", "no", "--save", "", "--appendonly", "no"];
const MEMCACHED: [&str; 11] =
    ["memcached", "-u", "memcache", "-p", "11211", "-U", "0", "-l", "0.0.0.0", "-m", "64"];

#[test]
fn redis() {
    let lab = lab();
    let server = Server { name: "redis", last: 21 };
    server.start(&lab, &["-u", "redis", "-w", "/"], &REDIS, Some(6379));
    let mut crowd = Crowd::new(&lab);
    crowd.join("counter", clients::redis_counter(server.ip(), "count".into()));
    crowd.join("counter 2", clients::redis_counter(server.ip(), "count2".into()));
    crowd.join("bulk", clients::redis_bulk(server.ip()));
    let mut idle = Crowd::new(&lab);
    let subscriber = idle.join("subscription", clients::redis_subscriber(server.ip(), "news".into()));
    until_done(&idle, &subscriber, 1);
    let mut sent = 0u64;
    server.live(&lab, &crowd, 20, |_| {
        sent += 1;
        clients::redis_publish(&lab.client, server.ip(), "news", &sent.to_string(), 1)?;
        until_done(&idle, &subscriber, sent + 1);
        Ok(())
    });
    idle.end().unwrap_or_else(|e| panic!("{e}"));
    server.end(&lab, crowd);
}

#[test]
fn nginx() {
    let lab = lab();
    let server = Server { name: "nginx", last: 22 };
    let dir = lab.dir().join("nginx");
    let (small, large) = (clients::pattern(1, 3000), Arc::new(clients::pattern(2, 96 << 20)));
    std::fs::create_dir(&dir).expect("directory");
    std::fs::write(dir.join("small"), &small).expect("file");
    std::fs::write(dir.join("large"), large.as_slice()).expect("file");
    let d = dir.display();
    let config = format!(
        "user www-data;\nworker_processes 2;\ndaemon off;\npid {d}/pid;\nerror_log stderr;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n access_log off;\n sendfile on;\n keepalive_timeout 1h;\n keepalive_requests 1000000;\n\
         client_body_temp_path {d}/body; proxy_temp_path {d}/proxy; fastcgi_temp_path {d}/fastcgi;\n\
         uwsgi_temp_path {d}/uwsgi; scgi_temp_path {d}/scgi;\n\
         server {{ listen 80; root {d}; }}\n}}\n"
    );
    std::fs::write(dir.join("conf"), config).expect("file");
    let conf = dir.join("conf");
    server.start(
        &lab,
        &["-w", "/"],
        &["nginx", "-e", "stderr", "-c", conf.to_str().expect("path")],
        Some(80),
    );
    let mut crowd = Crowd::new(&lab);
    for n in 0..3 {
        // More connections than workers: each worker has some.
        let work = clients::http_keepalive(server.ip(), 80, "/small".into(), small.clone());
        crowd.join(&format!("keep-alive {n}"), work);
    }
    crowd.join("download", clients::http_download(server.ip(), 80, "/large".into(), large));
    server.live(&lab, &crowd, 20, |_| {
        // New connections too.
        let mut newcomers = Crowd::new(&lab);
        newcomers.join("newcomer", clients::http_keepalive(server.ip(), 80, "/small".into(), small.clone()));
        newcomers.all_go_on("a new connection", 3)?;
        newcomers.end()
    });
    server.end(&lab, crowd);
}

#[test]
fn memcached() {
    let lab = lab();
    let server = Server { name: "memcached", last: 23 };
    server.start(&lab, &["-w", "/"], &MEMCACHED, Some(11211));
    let mut crowd = Crowd::new(&lab);
    for n in 0..3 {
        crowd.join(&format!("client {n}"), clients::memcached_client(server.ip(), format!("k{n}x")));
    }
    server.live(&lab, &crowd, 20, |_| Ok(()));
    server.end(&lab, crowd);
}

const PYTHON: &str = r#"
import http.server, itertools, socketserver, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        if self.path == "/stream":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for n in itertools.count():
                text = b"chunk %d\n" % n
                self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
                time.sleep(0.002)
        text = b"page " * 1000
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *args):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    disable_nagle_algorithm = True
def tick():
    # A timed wait of the interpreter's own, all the time.
    event = threading.Event()
    while True:
        if event.wait(0.003):
            raise SystemExit("an event that nobody set")
threading.Thread(target=tick, daemon=True).start()
Server(("0.0.0.0", 8000), Handler).serve_forever()
"#;

#[test]
fn threaded_python() {
    let lab = lab();
    let server = Server { name: "python", last: 24 };
    let script = lab.dir().join("server.py");
    std::fs::write(&script, PYTHON).expect("file");
    server.start(&lab, &["-w", "/"], &["python3", "-u", script.to_str().expect("path")], Some(8000));
    let mut crowd = Crowd::new(&lab);
    for n in 0..2 {
        crowd.join(&format!("stream {n}"), clients::http_stream(server.ip(), 8000, "/stream".into()));
        let page = "page ".repeat(1000).into_bytes();
        let work = clients::http_keepalive(server.ip(), 8000, "/page".into(), page);
        crowd.join(&format!("keep-alive {n}"), work);
    }
    server.live(&lab, &crowd, 20, |_| {
        let mut newcomers = Crowd::new(&lab);
        newcomers.join("newcomer", clients::http_stream(server.ip(), 8000, "/stream".into()));
        newcomers.all_go_on("a new connection", 3)?;
        newcomers.end()
    });
    server.end(&lab, crowd);
    let log = steps::run(&lab, &lab.a, &["ps", "-a", "-q"], 0).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(log, "", "nothing is left");
}

/// Numbers through three processes joined by pipes, a new process for every number.
const PIPELINE: &str = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.005; done | \
                        while read x; do echo \"line $x\"; done | cat";

/// The numbers a log holds; it must be whole lines, one after the other.
fn consecutive(log: &str) -> Result<(u64, u64), String> {
    let mut numbers = log.lines().map(|l| {
        l.strip_prefix("line ").and_then(|n| n.parse::<u64>().ok()).ok_or_else(|| format!("the line '{l}'"))
    });
    let first = numbers.next().ok_or("an empty log")??;
    let mut last = first;
    for n in numbers {
        let n = n?;
        if n != last + 1 {
            return Err(format!("{n} follows {last}"));
        }
        last = n;
    }
    Ok((first, last))
}

#[test]
fn shell_pipeline() {
    let lab = lab();
    let server = Server { name: "pipeline", last: 25 };
    server.start(&lab, &["-w", "/"], &["sh", "-c", PIPELINE], None);
    let crowd = Crowd::new(&lab);
    let here = |lab: &Lab| -> &'static str {
        if lab.b.state("pipeline").as_deref() == Some("running") { "b" } else { "a" }
    };
    let mut last = 0;
    server.live(&lab, &crowd, 0, |_| {
        let host: &Host = if here(&lab) == "b" { &lab.b } else { &lab.a };
        let wanted = format!("log:line {}", last + 40);
        steps::run(&lab, host, &["wait", "pipeline", "--for", &wanted, "--timeout", "20s"], 0)?;
        let log = steps::run(&lab, host, &["logs", "pipeline"], 0)?;
        let (first, now) = consecutive(&log)?;
        if first > last + 1 || now < last + 40 {
            return Err(format!("the log goes from {first} to {now}; before it ended at {last}"));
        }
        last = now;
        Ok(())
    });
    server.end(&lab, crowd);
}
