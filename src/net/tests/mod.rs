//! The lab of the net room's tests: a host, a client and pods, each a nameless network namespace. They vanish with their
//! last descriptor, whatever happens to a test.

mod hold;
mod hosts;
mod lan;
mod macvlan;
mod nat;

use super::*;
use crate::base::PodId;
use crate::base::spec::{Cidr, NetMode, NetSpec};
use crate::kernel::netlink::{End, NewRoute, Route, in_netns, new_netns};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub(super) const HOST: &str = "192.0.2.1";
pub(super) const CLIENT: &str = "192.0.2.10";
pub(super) const POD: &str = "192.0.2.20";
pub(super) const BRIDGE: &str = "pmnet0";
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// A host with a bridge, and a client on it.
pub(super) struct Lab {
    pub(super) host: OwnedFd,
    pub(super) client: OwnedFd,
}

impl Lab {
    pub(super) fn new() -> Self {
        let lab = Self { host: new_netns().unwrap(), client: new_netns().unwrap() };
        at(&lab.host, || {
            let mut route = Route::open().unwrap();
            route.set_up(1).unwrap();
            route.add_bridge(BRIDGE).unwrap();
            let bridge = route.iface(BRIDGE).unwrap().unwrap().index;
            route.add_addr(bridge, ip(HOST), 24).unwrap();
            route.add_addr(bridge, ip("2001:db8::1"), 64).unwrap();
            let near = End { name: "client", mac: None, index: Some(8), netns: None };
            let far = End { name: "lan0", mac: None, index: Some(9), netns: Some(lab.client.as_fd()) };
            route.add_veth(&near, &far, 1500).unwrap();
            let near = route.iface("client").unwrap().unwrap().index;
            route.set_master(near, bridge).unwrap();
        });
        at(&lab.client, || {
            let mut route = Route::open().unwrap();
            route.set_up(1).unwrap();
            route.set_up(9).unwrap();
            route.add_addr(9, ip(CLIENT), 24).unwrap();
            route.add_addr(9, ip("2001:db8::10"), 64).unwrap();
            let any = ip("0.0.0.0");
            let default = NewRoute { dst: any, prefix: 0, via: Some(ip(HOST)), oif: 9, src: None };
            route.add_route(&default).unwrap();
        });
        at(&lab.host, || assert!(Route::open().unwrap().settle(8, LIMIT).unwrap()));
        lab
    }

    pub(super) fn pod(&self, spec: &NetSpec, held: bool) -> Pod {
        let netns = new_netns().unwrap();
        let link = at(&self.host, || attach(spec, netns.as_fd(), &fresh_id(), held)).unwrap();
        Pod { link, netns }
    }
}

pub(super) struct Pod {
    pub(super) link: Link,
    pub(super) netns: OwnedFd,
}

impl AsFd for Pod {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }
}

/// Runs `f` as if on the machine `netns`.
pub(super) fn at<R: Send>(netns: &impl AsFd, f: impl FnOnce() -> R + Send) -> R {
    in_netns(netns.as_fd(), f).unwrap()
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn addr(ip: impl ToString, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_string().parse().unwrap(), port)
}

pub(super) fn fresh_id() -> PodId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    PodId::from_bits((u64::from(std::process::id()) << 40) ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

pub(super) fn lan(on: &str, address: &str, prefix: u8) -> NetSpec {
    NetSpec {
        mode: NetMode::Lan(on.to_owned()),
        ip: Some(Cidr { addr: ip(address), prefix }),
        ..NetSpec::default()
    }
}

/// A server that answers each line with `name: ` and the line.
pub(super) fn serve(machine: &impl AsFd, name: &'static str, port: u16) {
    let listener = at(machine, || TcpListener::bind(addr("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            std::thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                while let Ok(1..) = reader.read_line(&mut line) {
                    let _ = (&stream).write_all(format!("{name}: {line}").as_bytes());
                    line.clear();
                }
            });
        }
    });
}

/// The same over UDP; the answer ends with the asker's address as the server sees it.
pub(super) fn serve_udp(machine: &impl AsFd, name: &'static str, port: u16) {
    let socket = at(machine, || UdpSocket::bind(addr("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let text = format!("{name}: {} from {}", String::from_utf8_lossy(&buffer[..n]), from.ip());
            let _ = socket.send_to(text.as_bytes(), from);
        }
    });
}

pub(super) fn connect(machine: &impl AsFd, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = at(machine, || TcpStream::connect_timeout(&to, LIMIT))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request over a new connection.
pub(super) fn ask(machine: &impl AsFd, to: SocketAddr, text: &str) -> std::io::Result<String> {
    ask_on(&mut connect(machine, to)?, text)
}

pub(super) fn ask_on(stream: &mut TcpStream, text: &str) -> std::io::Result<String> {
    stream.write_all(format!("{text}\n").as_bytes())?;
    answer(stream)
}

/// Reads one line (there is never more than one answer on its way).
pub(super) fn answer(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = String::new();
    match BufReader::new(stream).read_line(&mut line)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line.trim_end().to_owned()),
    }
}

pub(super) fn ask_udp(machine: &impl AsFd, to: SocketAddr, text: &str) -> std::io::Result<String> {
    let socket = at(machine, || UdpSocket::bind("0.0.0.0:0"))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect(to)?;
    socket.send(text.as_bytes())?;
    let mut buffer = [0; 2048];
    let n = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

/// Repeats `f` until it yields something, for [`LIMIT`] at most.
pub(super) fn until<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = f() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// What a command prints on the machine `netns`.
pub(super) fn shell(machine: &impl AsFd, line: &str) -> String {
    let output =
        at(machine, || std::process::Command::new("sh").args(["-c", line]).output().expect("sh runs"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Links and tables of ours on a machine.
pub(super) fn litter(machine: &impl AsFd) -> String {
    shell(
        machine,
        "ip -o link show | grep -E ' pm[0-9a-f]{12}' ; nft list tables; ip route show | grep 169.254; true",
    )
}
