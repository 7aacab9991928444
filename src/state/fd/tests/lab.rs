//! Three network namespaces: the pod at its source, the pod at its target with the same addresses and the same MAC,
//! and a peer on whose bridge one of the two is plugged in at a time.

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Address of the pod.
pub const POD: &str = "10.77.0.2";
/// Address of the pod, IPv6.
pub const POD6: &str = "fd77::2";

/// The three namespaces, gone when this is dropped.
pub struct Lab {
    name: String,
}

fn ip(args: &str) {
    let out = Command::new("ip").args(args.split_whitespace()).output().unwrap();
    assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Lab {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let lab = Self { name: format!("pmfds{}-{n}", std::process::id()) };
        let peer = lab.peer();
        for ns in [lab.source(), lab.target(), lab.peer()] {
            ip(&format!("netns add {ns}"));
            ip(&format!("-n {ns} link set lo up"));
        }
        ip(&format!("-n {peer} link add br0 type bridge"));
        ip(&format!("-n {peer} addr add 10.77.0.1/24 dev br0"));
        ip(&format!("-n {peer} addr add fd77::1/64 dev br0 nodad"));
        ip(&format!("-n {peer} link set br0 up"));
        for (ns, port) in [(lab.source(), "source"), (lab.target(), "target")] {
            ip(&format!("-n {peer} link add {port} type veth peer name eth0 netns {ns}"));
            ip(&format!("-n {ns} link set eth0 address 02:77:00:00:00:02"));
            ip(&format!("-n {ns} addr add {POD}/24 dev eth0"));
            ip(&format!("-n {ns} addr add {POD6}/64 dev eth0 nodad"));
            ip(&format!("-n {ns} link set eth0 up"));
            ip(&format!("-n {peer} link set {port} up"));
        }
        lab.plug("source");
        lab
    }

    pub fn source(&self) -> String {
        format!("{}s", self.name)
    }
    pub fn target(&self) -> String {
        format!("{}d", self.name)
    }
    pub fn peer(&self) -> String {
        format!("{}p", self.name)
    }

    /// Plugs a port into the bridge: frames pass.
    pub fn plug(&self, port: &str) {
        ip(&format!("-n {} link set {port} master br0", self.peer()));
    }

    /// Unplugs it: frames go nowhere, the link stays up.
    pub fn unplug(&self, port: &str) {
        ip(&format!("-n {} link set {port} nomaster", self.peer()));
    }

    /// Lets nothing from the source reach the peer; the other way stays open.
    pub fn mute_source(&self) {
        let rules = "add table netdev m; add chain netdev m c { type filter hook ingress device source priority 0; policy drop; }";
        let status = Command::new("ip").args(["netns", "exec", &self.peer(), "nft", rules]).status().unwrap();
        assert!(status.success());
    }

    /// Runs `body` on a thread inside a namespace; sockets made there stay there.
    pub fn within<T: Send>(&self, ns: &str, body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|s| {
            let enter = || {
                enter(ns);
                body()
            };
            s.spawn(enter).join().unwrap()
        })
    }
}

/// Brings the calling thread into a namespace.
pub fn enter(ns: &str) {
    let ns = File::open(format!("/run/netns/{ns}")).unwrap();
    setns(&ns, CloneFlags::CLONE_NEWNET).unwrap();
}

impl Drop for Lab {
    fn drop(&mut self) {
        for ns in [self.source(), self.target(), self.peer()] {
            let _ = Command::new("ip").args(["netns", "del", &ns]).status();
        }
    }
}
