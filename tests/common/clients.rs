//! Clients that stay connected while a pod is moved, each on a thread inside the client's namespace, checking every byte.

use super::lab::{Lab, Netns};
use super::until;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long one answer may take before the connection counts as lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a client says of itself while it runs.
pub struct Member {
    name: String,
    stop: Arc<AtomicBool>,
    done: AtomicU64,
    longest_us: AtomicU64,
    failed: Mutex<Option<String>>,
}

impl Member {
    /// Whether to go on.
    pub fn going(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
    /// One more answer, checked.
    pub fn did(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
        // Leave the processors to the pod and those who move it.
        std::thread::park_timeout(Duration::from_micros(200));
    }
    /// Times one exchange.
    pub fn timed<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let value = work();
        self.longest_us.fetch_max(start.elapsed().as_micros() as u64, Ordering::Relaxed);
        value
    }
    /// Answers so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

/// Clients, all in the client's namespace.
pub struct Crowd {
    netns: String,
    stop: Arc<AtomicBool>,
    members: Vec<(Arc<Member>, Option<JoinHandle<()>>)>,
}

impl Crowd {
    /// Nobody yet.
    pub fn new(lab: &Lab) -> Self {
        Self { netns: lab.client.name.clone(), stop: Arc::default(), members: Vec::new() }
    }
    /// Starts a client. An error is a failure of the test, told when it is next asked for.
    pub fn join(
        &mut self,
        name: &str,
        work: impl FnOnce(&Member) -> Result<(), String> + Send + 'static,
    ) -> Arc<Member> {
        let member = Arc::new(Member {
            name: name.to_owned(),
            stop: self.stop.clone(),
            done: AtomicU64::new(0),
            longest_us: AtomicU64::new(0),
            failed: Mutex::new(None),
        });
        let (me, netns) = (member.clone(), self.netns.clone());
        let thread = std::thread::spawn(move || {
            enter(&netns);
            if let Err(e) = work(&me) {
                *me.failed.lock().expect("failure") =
                    Some(format!("{}: {e} (after {} answers)", me.name, me.done()));
            }
        });
        self.members.push((member.clone(), Some(thread)));
        member
    }
    /// What went wrong so far.
    pub fn failures(&self) -> Vec<String> {
        self.members.iter().filter_map(|(m, _)| m.failed.lock().expect("failure").clone()).collect()
    }
    /// Waits until each client that speaks all the time has had `more` further answers.
    pub fn all_go_on(&self, when: &str, more: u64) -> Result<(), String> {
        let before: Vec<u64> = self.members.iter().map(|(m, _)| m.done()).collect();
        let start = Instant::now();
        loop {
            let failures = self.failures();
            if !failures.is_empty() {
                return Err(format!("{when}: {}", failures.join("; ")));
            }
            let stuck = self.members.iter().zip(&before).find(|((m, _), b)| m.done() < **b + more);
            let Some(((member, _), before)) = stuck else { return Ok(()) };
            if start.elapsed() > PATIENCE + Duration::from_secs(5) {
                return Err(format!(
                    "{when}: {} had {} answers, then no more",
                    member.name,
                    member.done() - before
                ));
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
    /// The longest a client waited since it was last asked, in milliseconds, for each client.
    pub fn longest_ms(&self) -> Vec<(String, f64)> {
        let ms = |m: &Member| m.longest_us.swap(0, Ordering::Relaxed) as f64 / 1e3;
        self.members.iter().map(|(m, _)| (m.name.clone(), ms(m))).collect()
    }
    /// Ends all of them; what they found.
    pub fn end(mut self) -> Result<(), String> {
        self.halt();
        let failures = self.failures();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }
    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (member, thread) in &mut self.members {
            if thread.take().is_some_and(|t| t.join().is_err()) {
                *member.failed.lock().expect("failure") = Some(format!("{}: panicked", member.name));
            }
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.halt();
    }
}

/// Takes the calling thread into a namespace.
pub fn enter(netns: &str) {
    let ns = std::fs::File::open(format!("/run/netns/{netns}")).expect("namespace");
    nix::sched::setns(ns, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
}

/// A connection whose every read and write is bounded.
pub struct Wire {
    stream: TcpStream,
    input: BufReader<TcpStream>,
}

impl Wire {
    /// Connects.
    pub fn to(ip: Ipv4Addr, port: u16) -> Result<Self, String> {
        let addr = SocketAddr::from((ip, port));
        let stream =
            TcpStream::connect_timeout(&addr, PATIENCE).map_err(|e| format!("connect {addr}: {e}"))?;
        let ready = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(PATIENCE)));
        ready.and_then(|()| stream.set_write_timeout(Some(PATIENCE))).map_err(|e| e.to_string())?;
        let input = BufReader::with_capacity(1 << 16, stream.try_clone().map_err(|e| e.to_string())?);
        Ok(Self { stream, input })
    }
    /// Another handle for writing.
    pub fn writer(&self) -> TcpStream {
        self.stream.try_clone().expect("dup")
    }
    /// Sends everything.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).map_err(|e| format!("send: {e}"))
    }
    /// A line without its end.
    pub fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.input.read_line(&mut line) {
            Ok(0) => Err("the server closed the connection".to_owned()),
            Ok(_) => Ok(line.trim_end_matches(['\r', '\n']).to_owned()),
            Err(e) => Err(format!("read: {e}")),
        }
    }
    /// Exactly as many bytes.
    pub fn exact(&mut self, buf: &mut [u8]) -> Result<(), String> {
        self.input.read_exact(buf).map_err(|e| format!("read: {e}"))
    }
    /// Whether something arrives within `limit` (nothing is consumed).
    pub fn readable(&mut self, limit: Duration) -> Result<bool, String> {
        if !self.input.buffer().is_empty() {
            return Ok(true);
        }
        self.stream.set_read_timeout(Some(limit)).map_err(|e| e.to_string())?;
        let mut one = [0];
        let got = self.stream.peek(&mut one);
        self.stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
        match got {
            Ok(0) => Err("the server closed the connection".to_owned()),
            Ok(_) => Ok(true),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                Ok(false)
            }
            Err(e) => Err(format!("read: {e}")),
        }
    }
    /// Sends a line and expects exactly this line.
    pub fn ask(&mut self, request: &str, expected: &str) -> Result<(), String> {
        self.send(format!("{request}\r\n").as_bytes())?;
        let reply = self.line()?;
        if reply == expected { Ok(()) } else { Err(format!("'{request}' gave '{reply}', not '{expected}'")) }
    }
}

/// Bytes that say where they belong.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Redis: counts up, and reads what it counted. A lost or repeated reply shows at once.
pub fn redis_counter(ip: Ipv4Addr, key: String) -> impl FnOnce(&Member) -> Result<(), String> + Send {
    move |me| {
        let mut redis = Wire::to(ip, 6379)?;
        let mut n = 0u64;
        while me.going() {
            n += 1;
            me.timed(|| redis.ask(&format!("INCR {key}"), &format!(":{n}")))?;
            redis.ask(&format!("GET {key}"), &format!("${}", n.to_string().len()))?;
            let value = redis.line()?;
            if value != n.to_string() {
                return Err(format!("GET {key}: {value}, not {n}"));
            }
            me.did();
        }
        Ok(())
    }
}

/// Redis: an idle subscription; messages are the numbers from 1 on, none lost, none twice.
pub fn redis_subscriber(ip: Ipv4Addr, channel: String) -> impl FnOnce(&Member) -> Result<(), String> + Send {
    move |me| {
        let mut redis = Wire::to(ip, 6379)?;
        redis.ask(&format!("SUBSCRIBE {channel}"), "*3")?;
        let head = [
            "$9".to_owned(),
            "subscribe".into(),
            format!("${}", channel.len()),
            channel.clone(),
            ":1".into(),
        ];
        for expected in head {
            let line = redis.line()?;
            if line != expected {
                return Err(format!("subscribe: '{line}', not '{expected}'"));
            }
        }
        me.did();
        let mut n = 0u64;
        while me.going() {
            if !redis.readable(Duration::from_millis(100))? {
                continue;
            }
            n += 1;
            let text = n.to_string();
            let size = format!("${}", text.len());
            let channel_size = format!("${}", channel.len());
            for expected in ["*3", "$7", "message", &channel_size, &channel, &size, &text] {
                let line = redis.line()?;
                if line != expected {
                    return Err(format!("message {n}: '{line}', not '{expected}'"));
                }
            }
            me.did();
        }
        Ok(())
    }
}

/// Publishes one message and says how many received it.
pub fn redis_publish(
    client: &Netns,
    ip: Ipv4Addr,
    channel: &str,
    text: &str,
    receivers: u32,
) -> Result<(), String> {
    client.within(|| Wire::to(ip, 6379)?.ask(&format!("PUBLISH {channel} {text}"), &format!(":{receivers}")))
}

/// Redis: values of many sizes set once, then read in long pipelines that keep both queues of the connection full.
pub fn redis_bulk(ip: Ipv4Addr) -> impl FnOnce(&Member) -> Result<(), String> + Send {
    const KEYS: u64 = 16;
    let size = |n: u64| 1000 + (n as usize * 7919) % 60_000;
    move |me| {
        let mut redis = Wire::to(ip, 6379)?;
        for n in 0..KEYS {
            let value = pattern(n, size(n));
            redis.send(format!("*3\r\n$3\r\nSET\r\n$4\r\nb{n:03}\r\n${}\r\n", value.len()).as_bytes())?;
            redis.send(&value)?;
            redis.send(b"\r\n")?;
            let reply = redis.line()?;
            if reply != "+OK" {
                return Err(format!("SET: {reply}"));
            }
        }
        let all: String = (0..KEYS).map(|n| format!("GET b{n:03}\r\n")).collect();
        while me.going() {
            // Asked for before the first is read: the server's side of the connection fills up.
            redis.send(all.as_bytes())?;
            for n in 0..KEYS {
                let (head, expected) = (redis.line()?, pattern(n, size(n)));
                let mut value = vec![0; expected.len() + 2];
                if head != format!("${}", expected.len()) {
                    return Err(format!("GET b{n:03}: '{head}'"));
                }
                redis.exact(&mut value)?;
                if value[..expected.len()] != expected[..] || !value.ends_with(b"\r\n") {
                    return Err(format!("GET b{n:03}: other bytes than were set"));
                }
            }
            me.did();
        }
        Ok(())
    }
}

/// The status line and headers of an HTTP answer; its length, `None` when it comes in chunks.
pub fn http_head(wire: &mut Wire) -> Result<Option<usize>, String> {
    let status = wire.line()?;
    if !status.starts_with("HTTP/1.1 200 ") {
        return Err(format!("answer: {status}"));
    }
    let mut length = None;
    let mut chunked = false;
    loop {
        let line = wire.line()?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(n) = line.strip_prefix("content-length:") {
            length = n.trim().parse().ok();
        }
        chunked |= line == "transfer-encoding: chunked";
        if line == "connection: close" {
            return Err("the server wants to close the connection".to_owned());
        }
    }
    if length.is_none() && !chunked { Err("an answer without length".to_owned()) } else { Ok(length) }
}

/// HTTP: the same page over and over on one connection.
pub fn http_keepalive(
    ip: Ipv4Addr,
    port: u16,
    path: String,
    body: Vec<u8>,
) -> impl FnOnce(&Member) -> Result<(), String> + Send {
    move |me| {
        let mut http = Wire::to(ip, port)?;
        let mut got = vec![0; body.len()];
        while me.going() {
            me.timed(|| {
                http.send(format!("GET {path} HTTP/1.1\r\nHost: pod\r\n\r\n").as_bytes())?;
                let length = http_head(&mut http)?;
                if length != Some(body.len()) {
                    return Err(format!("{path}: {length:?} bytes, not {}", body.len()));
                }
                http.exact(&mut got)
            })?;
            if got != body {
                return Err(format!("{path}: other bytes than are in the file"));
            }
            me.did();
        }
        Ok(())
    }
}

/// HTTP: a large file, read slowly, so that a move always falls into the middle of it; an answer is one piece read.
pub fn http_download(
    ip: Ipv4Addr,
    port: u16,
    path: String,
    body: Arc<Vec<u8>>,
) -> impl FnOnce(&Member) -> Result<(), String> + Send {
    move |me| {
        let mut http = Wire::to(ip, port)?;
        let mut piece = vec![0; 64 << 10];
        while me.going() {
            http.send(format!("GET {path} HTTP/1.1\r\nHost: pod\r\n\r\n").as_bytes())?;
            if http_head(&mut http)? != Some(body.len()) {
                return Err(format!("{path}: not {} bytes", body.len()));
            }
            for expected in body.chunks(piece.len()) {
                let piece = &mut piece[..expected.len()];
                http.exact(piece)?;
                if piece != expected {
                    return Err(format!("{path}: other bytes than are in the file"));
                }
                me.did();
                if !me.going() {
                    return Ok(());
                }
                // The reader is the slow side: the server's queue stays full.
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
        Ok(())
    }
}

/// memcached: values set, read, counted up.
pub fn memcached_client(ip: Ipv4Addr, tag: String) -> impl FnOnce(&Member) -> Result<(), String> + Send {
    move |me| {
        let mut cache = Wire::to(ip, 11211)?;
        let mut n = 0u64;
        cache.ask(&format!("set {tag}count 0 0 1\r\n0"), "STORED")?;
        while me.going() {
            n += 1;
            let value = pattern(n, 10 + (n as usize * 101) % 5000);
            cache.send(format!("set {tag}{} {n} 0 {}\r\n", n % 50, value.len()).as_bytes())?;
            cache.send(&value)?;
            cache.ask("", "STORED")?;
            cache.ask(&format!("incr {tag}count 1"), &n.to_string())?;
            cache.ask(
                &format!("get {tag}{}", n % 50),
                &format!("VALUE {tag}{} {n} {}", n % 50, value.len()),
            )?;
            let mut got = vec![0; value.len() + 2];
            cache.exact(&mut got)?;
            if got[..value.len()] != value[..] || cache.line()? != "END" {
                return Err(format!("get {tag}{}: other bytes than were set", n % 50));
            }
            me.did();
        }
        Ok(())
    }
}

/// HTTP in chunks without end: numbered lines, one a chunk.
pub fn http_stream(
    ip: Ipv4Addr,
    port: u16,
    path: String,
) -> impl FnOnce(&Member) -> Result<(), String> + Send {
    move |me| {
        let mut http = Wire::to(ip, port)?;
        http.send(format!("GET {path} HTTP/1.1\r\nHost: pod\r\n\r\n").as_bytes())?;
        if http_head(&mut http)?.is_some() {
            return Err("the stream has a length".to_owned());
        }
        let mut n = 0u64;
        while me.going() {
            let expected = format!("chunk {n}\n");
            let got = [http.line()?, http.line()?, http.line()?];
            let wanted = [format!("{:x}", expected.len()), expected.trim_end().to_owned(), String::new()];
            if got != wanted {
                return Err(format!("{got:?}, not {wanted:?}"));
            }
            n += 1;
            me.did();
        }
        Ok(())
    }
}

/// Waits until a client has had so many answers.
pub fn until_done(crowd: &Crowd, member: &Member, answers: u64) {
    until(PATIENCE, &format!("{}: {answers} answers {:?}", member.name, crowd.failures()), || {
        (member.done() >= answers).then_some(())
    });
}
