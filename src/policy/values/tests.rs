//! Tests of the value parsers.

use super::*;

#[test]
fn sizes() {
    for (text, bytes) in [
        ("4096", 4096),
        ("512MiB", 512 << 20),
        ("2G", 2 << 30),
        ("1.5K", 1536),
        ("1MB", 1_000_000),
        ("64 KiB", 65536),
    ] {
        assert_eq!(size(text), Ok(bytes), "{text}");
    }
    for bad in ["", "x", "-1", "1Q", "1.2.3M", "MiB", "99999999999T", "nan"] {
        assert!(size(bad).is_err(), "{bad:?} passed");
    }
    assert_eq!(rate("100MiB/s"), Ok(100 << 20));
    assert_eq!(rate("100M"), Ok(100 << 20));
    assert!(rate("0").is_err());
}

#[test]
fn durations() {
    for (text, ms) in [
        ("100ms", 100),
        ("10s", 10_000),
        ("10m", 600_000),
        ("1h30m", 5_400_000),
        ("1m 30s", 90_000),
        ("5", 5_000),
        ("0", 0),
        ("0.5", 500),
        ("1.5s", 1500),
    ] {
        assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
    }
    assert_eq!(duration("250us"), Ok(Duration::from_micros(250)));
    for bad in ["", "s", "10x", "-1s", "1m30", "ms10", "1e30h", "999999999999d"] {
        assert!(duration(bad).is_err(), "{bad:?} passed");
    }
}

#[test]
fn ports() {
    let p = |host_ip: Option<&str>, host_port, pod_port, udp| {
        Ok(Publish { host_ip: host_ip.map(|ip| ip.parse().unwrap()), host_port, pod_port, udp })
    };
    assert_eq!(publish("80"), p(None, 0, 80, false));
    assert_eq!(publish("8080:80"), p(None, 8080, 80, false));
    assert_eq!(publish("53:53/udp"), p(None, 53, 53, true));
    assert_eq!(publish("127.0.0.1:8080:80"), p(Some("127.0.0.1"), 8080, 80, false));
    assert_eq!(publish("127.0.0.1::80/tcp"), p(Some("127.0.0.1"), 0, 80, false));
    assert_eq!(publish("0.0.0.0:1:2"), p(None, 1, 2, false));
    for bad in ["", "0", "x", "80/sctp", "1:2:3:4", "70000", "8080:", "x:1:2", "[::1]:80:80", "-1", "80:0"] {
        assert!(publish(bad).is_err(), "{bad:?} passed");
    }
    assert_eq!(publish_text(&publish("127.0.0.1:8080:80/udp").unwrap()), "127.0.0.1:8080:80/udp");
}

#[test]
fn networks() {
    assert_eq!(net("lan:br0"), Ok(NetMode::Lan("br0".into())));
    for good in ["nat", "host", "none", "lan:eth0.5"] {
        assert_eq!(net_text(&net(good).unwrap()), good);
    }
    for bad in ["", "lan", "lan:", "lan:a/b", "lan:0123456789abcdef", "bridge"] {
        assert!(net(bad).is_err(), "{bad:?} passed");
    }
    assert!(cidr("10.0.0.5/24").is_ok() && cidr("fd00::5/64").is_ok());
    for bad in ["10.0.0.5", "10.0.0.5/33", "10.0.0.5/0", "0.0.0.0/8", "224.0.0.1/8", "x/8"] {
        assert!(cidr(bad).is_err(), "{bad:?} passed");
    }
}

#[test]
fn volumes() {
    let v = |dir: &str, mode| Ok(Volume { dir: dir.into(), mode });
    assert_eq!(volume("/data", "/"), v("/data", VolumeMode::Carry));
    assert_eq!(volume("/data:ro", "/"), v("/data", VolumeMode::Ro));
    assert_eq!(volume("sub//dir/:shared", "/home/x"), v("/home/x/sub/dir", VolumeMode::Shared));
    for bad in ["", ":ro", "/a:/b", "/a/../b"] {
        assert!(volume(bad, "/").is_err(), "{bad:?} passed");
    }
}

#[test]
fn signals() {
    for (text, n) in [
        ("TERM", 15),
        ("SIGKILL", 9),
        ("sighup", 1),
        ("10", 10),
        ("SYS", 31),
        ("RTMIN", 34),
        ("RTMIN+2", 36),
        ("SIGRTMAX", 64),
    ] {
        assert_eq!(signal(text), Ok(n), "{text}");
    }
    for bad in ["", "0", "65", "NOPE", "RTMIN+99", "-9", "RTMIN-1"] {
        assert!(signal(bad).is_err(), "{bad:?} passed");
    }
}

#[test]
fn environment_items() {
    assert_eq!(env_item("A=b=c"), Ok(("A".into(), Some("b=c".into()))));
    assert_eq!(env_item("A="), Ok(("A".into(), Some(String::new()))));
    assert_eq!(env_item("A"), Ok(("A".into(), None)));
    assert!(env_item("=x").is_err() && env_item("").is_err());
}

#[test]
fn small_words() {
    assert!(cpus("0").is_err() && cpus("inf").is_err() && cpus("1.5").is_ok());
    assert!(pids("0").is_err() && pids("10").is_ok());
    assert!(hostname("a_b").is_err() && hostname("a.b-c").is_ok());
    assert_eq!(cgroup_parent("inherit"), Ok("inherit".into()));
    assert_eq!(cgroup_parent("a/b"), Ok("/a/b".into()));
    assert!(cgroup_parent("../x").is_err());
    for r in ["no", "on-failure", "always"] {
        assert_eq!(restart_text(restart(r).unwrap()), r);
    }
}
