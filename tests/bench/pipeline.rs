//! The plain pipeline `scripts/bench` compares the page copy with: memory of one process read, sent through mutual
//! TLS 1.3 over a loopback socket, written into fresh pages of another. Prints one JSON object.
//!
//! usage: `pipeline [MIB]`

use podmig::base::AddrRange;
use podmig::kernel::vmio;
use podmig::wire::identity::Identity;
use podmig::wire::tls;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

type Done<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const PIECE: usize = 1 << 20;

fn main() -> Done<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["hold", mib, full] => hold(mib.parse()?, full == "full"),
        [] => measure(512),
        [mib] => measure(mib.parse()?),
        _ => Err("usage: pipeline [MIB]".into()),
    }
}

/// Holds memory until standard input ends; prints where it is. Fresh memory has no pages yet.
fn hold(mib: usize, full: bool) -> Done<()> {
    let mut memory = vec![0u8; mib << 20];
    if full {
        // Every page another, none of zeros.
        for (page, n) in memory.chunks_mut(4096).zip(1u64..) {
            for word in page.chunks_mut(8) {
                word.copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            }
        }
    }
    println!("{}", memory.as_ptr().addr());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    // It must still be there: read by others until now.
    std::hint::black_box(&memory);
    Ok(())
}

/// A process that holds memory; ends when dropped.
struct Holder {
    child: Child,
    memory: AddrRange,
    _out: BufReader<ChildStdout>,
}

impl Holder {
    fn start(mib: usize, what: &str) -> Done<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["hold", &mib.to_string(), what]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut out = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut line = String::new();
        out.read_line(&mut line)?;
        let start: u64 = line.trim().parse()?;
        Ok(Self { child, memory: AddrRange { start, end: start + ((mib as u64) << 20) }, _out: out })
    }
    fn pid(&self) -> Done<i32> {
        Ok(i32::try_from(self.child.id())?)
    }
    fn piece(&self, at: u64, len: usize) -> [AddrRange; 1] {
        let start = self.memory.start + at;
        [AddrRange { start, end: start + len as u64 }]
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn measure(mib: usize) -> Done<()> {
    let (from, to) = (Holder::start(mib, "full")?, Holder::start(mib, "fresh")?);
    let (a, b) = identities()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let (serve, call) = (tls::server(&b, vec![a.fingerprint])?, tls::client(&a, b.fingerprint)?);
    let total = (mib << 20) as u64;
    let seconds = std::thread::scope(|s| -> Done<f64> {
        let to = &to;
        let writer = s.spawn(move || -> Done<()> {
            let (socket, _) = listener.accept()?;
            socket.set_nodelay(true)?;
            let mut stream = rustls::StreamOwned::new(rustls::ServerConnection::new(serve)?, socket);
            stream.write_all(b"!")?;
            stream.flush()?;
            receive(&mut stream, to, total)?;
            stream.write_all(b".")?;
            Ok(stream.flush()?)
        });
        let socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        let name = rustls::pki_types::ServerName::try_from("podmig")?;
        let mut stream = rustls::StreamOwned::new(rustls::ClientConnection::new(call, name)?, socket);
        stream.conn.set_buffer_limit(None);
        let mut word = [0];
        stream.read_exact(&mut word)?;
        let start = Instant::now();
        send(&mut stream, &from, total)?;
        stream.read_exact(&mut word)?;
        let seconds = start.elapsed().as_secs_f64();
        writer.join().map_err(|_| "the writer has panicked")??;
        Ok(seconds)
    })?;
    check(&from, &to, total)?;
    println!("{{\"bytes\":{total},\"seconds\":{seconds:.6}}}");
    Ok(())
}

/// Two keys; their files are gone at once.
fn identities() -> Done<(Identity, Identity)> {
    let dir = std::env::temp_dir().join(format!("podmig-pipeline-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let load = |name: &str| Identity::load(&dir.join(name));
    let keys = load("a").and_then(|a| Ok((a, load("b")?)));
    std::fs::remove_dir_all(&dir)?;
    Ok(keys?)
}

fn send(stream: &mut impl Write, from: &Holder, total: u64) -> Done<()> {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < total {
        if vmio::read(from.pid()?, &from.piece(at, PIECE), &mut piece)? != PIECE {
            return Err("short read".into());
        }
        stream.write_all(&piece)?;
        at += PIECE as u64;
    }
    Ok(stream.flush()?)
}

fn receive(stream: &mut impl Read, to: &Holder, total: u64) -> Done<()> {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < total {
        stream.read_exact(&mut piece)?;
        if vmio::write(to.pid()?, &to.piece(at, PIECE), &piece)? != PIECE {
            return Err("short write".into());
        }
        at += PIECE as u64;
    }
    Ok(())
}

/// What arrived is what was sent.
fn check(from: &Holder, to: &Holder, total: u64) -> Done<()> {
    let (mut sent, mut got) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    while at < total {
        vmio::read(from.pid()?, &from.piece(at, PIECE), &mut sent)?;
        vmio::read(to.pid()?, &to.piece(at, PIECE), &mut got)?;
        if sent != got {
            return Err(format!("other bytes at {at}").into());
        }
        at += PIECE as u64;
    }
    Ok(())
}
