//! Tests of definitions: files, merging, resolving.

use super::*;
use crate::base::spec::{StartType, VolumeMode};
use std::path::Path;

fn caller() -> Caller {
    let vars =
        [("PATH", "/bin"), ("LC_ALL", "C"), ("SECRET", "x"), ("TERM", "dumb"), ("NOTIFY_SOCKET", "/n")];
    Caller {
        cwd: "/srv".into(),
        umask: 0o27,
        rlimits: vec![(7, 1024, 4096)],
        env: vars.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        uid: 0,
        gid: 0,
        groups: vec![0],
    }
}

fn wanted(cmd: &[&str]) -> Wanted {
    Wanted { cmd: cmd.iter().map(|s| (*s).to_owned()).collect(), ..Wanted::default() }
}

#[test]
fn defaults() {
    let spec = resolve(wanted(&["/usr/bin/My_Server.py", "-x"]), &caller()).unwrap();
    let name = spec.name.as_str();
    assert!(name.starts_with("my-server-py-") && name.len() == "my-server-py-".len() + 5, "{name}");
    assert_eq!(spec.hostname, name);
    assert_eq!((spec.cwd.as_str(), spec.umask, spec.grace_ms), ("/srv", 0o27, 100));
    assert_eq!(spec.rlimits, vec![(7, 1024, 4096)]);
    let mac = spec.net.mac.unwrap();
    assert_eq!(mac[0] & 3, 2, "locally administered, unicast");
    let other = resolve(wanted(&["/usr/bin/My_Server.py"]), &caller()).unwrap();
    assert_ne!(other.id, spec.id);
    assert_ne!(other.net.mac, spec.net.mac);
}

#[test]
fn a_network_typed_wins_over_what_goes_with_another() {
    let file = || from_toml("publish = [80]\ncmd = ['x']", "/").unwrap();
    let typed = |net: &str| Wanted { net: crate::policy::values::net(net).ok(), ..Wanted::default() };
    for net in ["lan:br0", "host", "none"] {
        assert_eq!(typed(net).overruled(&file()), ["publish"]);
        assert!(typed(net).over(file()).publish.is_empty());
    }
    assert_eq!(typed("nat").over(file()).publish.len(), 1);
    // Typed together they contradict each other, and that is said.
    let both = Wanted { publish: file().publish, ..typed("host") };
    assert!(resolve(both.over(file()), &caller()).is_err());
    let lan =
        || from_toml("net = 'lan:br0'\nip = '10.0.0.2/8'\ngateway = '10.0.0.1'\ncmd = ['x']", "/").unwrap();
    assert_eq!(typed("nat").overruled(&lan()), ["ip", "gateway"]);
    assert!(resolve(typed("nat").over(lan()), &caller()).is_ok());
    assert!(typed("lan:br1").over(lan()).ip.is_some());
}

#[test]
fn the_environment_is_clean() {
    let spec = resolve(Wanted { name: PodName::parse("web").ok(), ..wanted(&["x"]) }, &caller()).unwrap();
    let has = |item: &str| spec.env.iter().any(|e| e == item);
    for item in [
        "PATH=/bin",
        "LC_ALL=C",
        "HOME=/root",
        "USER=root",
        "LOGNAME=root",
        "PODMIG_POD=web",
        "container=podmig",
    ] {
        assert!(has(item), "{item} not in {:?}", spec.env);
    }
    assert!(!spec.env.iter().any(|e| e.starts_with("SECRET") || e.starts_with("TERM")));
    let mut w = wanted(&["x"]);
    w.env = vec![("SECRET".into(), None), ("A".into(), Some("1".into())), ("UNSET".into(), None)];
    w.tty = Some(true);
    let spec = resolve(w, &caller()).unwrap();
    let has = |item: &str| spec.env.iter().any(|e| e == item);
    assert!(has("SECRET=x") && has("A=1") && has("TERM=dumb"));
    assert!(!spec.env.iter().any(|e| e.starts_with("UNSET")));
    let spec = resolve(Wanted { env_host: Some(true), ..wanted(&["x"]) }, &caller()).unwrap();
    assert!(spec.env.iter().any(|e| e == "SECRET=x"));
    assert!(!spec.env.iter().any(|e| e.starts_with("NOTIFY_SOCKET")));
}

#[test]
fn accounts() {
    let nobody = account(Some("nobody"), &caller()).unwrap();
    assert_eq!((nobody.uid, nobody.name.as_deref()), (65534, Some("nobody")));
    let n = account(Some("12345:54321"), &caller()).unwrap();
    assert_eq!((n.uid, n.gid, n.groups.as_slice()), (12345, 54321, &[54321][..]));
    assert_eq!(account(Some("0:nogroup"), &caller()).unwrap().gid, 65534);
    for (bad, what) in [("no-such-user-x", "user"), ("root:no-such-group-x", "group")] {
        assert_eq!(account(Some(bad), &caller()), Err(Error::NoSuchAccount { user: bad.into(), what }));
    }
    assert!(account(Some(""), &caller()).is_err());
    assert_eq!(account(None, &caller()).unwrap().home.as_deref(), Some("/root"));
}

#[test]
fn contradictions_are_refused() {
    use crate::base::spec::{NetMode, Restart};
    use crate::policy::values;
    let lan = || Some(NetMode::Lan("br0".into()));
    let cases = [
        Wanted { net: lan(), ..wanted(&["x"]) },
        Wanted { ip: values::cidr("10.0.0.1/8").ok(), ..wanted(&["x"]) },
        Wanted { gateway: values::address("10.0.0.1").ok(), ..wanted(&["x"]) },
        Wanted { net: Some(NetMode::None), publish: vec![values::publish("80").unwrap()], ..wanted(&["x"]) },
        Wanted {
            publish: vec![values::publish("1:2").unwrap(), values::publish("1:3").unwrap()],
            ..wanted(&["x"])
        },
        Wanted { rm: Some(true), restart: Some(Restart::Always), ..wanted(&["x"]) },
        Wanted { tmpfs: vec!["/a".into(), "/a".into()], ..wanted(&["x"]) },
        Wanted { tmpfs: vec!["/proc".into()], ..wanted(&["x"]) },
        Wanted { name: PodName::parse("0123456789abcdef").ok(), ..wanted(&["x"]) },
        Wanted {
            net: lan(),
            ip: values::cidr("10.0.0.1/8").ok(),
            gateway: values::address("fd00::1").ok(),
            ..wanted(&["x"])
        },
        wanted(&[]),
        wanted(&[""]),
    ];
    for case in cases {
        let e = resolve(case.clone(), &caller()).expect_err(&format!("{case:?}"));
        assert_eq!(Failure::from(e).kind, Kind::Usage);
    }
}

#[test]
fn a_file_says_the_same_as_flags() {
    let text = r#"
        name = "web"
        cmd = ["nginx", "-g", "daemon off;"]
        publish = [80, "8443:443"]
        memory = "512MiB"
        cpus = 1.5
        pids = 100
        volume = ["/data:carry"]
        tmpfs = "/run/x"
        type = "forking"
        grace = "1s"
        user = "www-data"
        cgroup-parent = "inherit"
        [env]
        A = "1"
        B = 2
    "#;
    let w = from_toml(text, "/").unwrap();
    assert_eq!(w.publish.len(), 2);
    assert_eq!(w.publish[0].pod_port, 80);
    assert_eq!((w.memory, w.cpus, w.pids), (Some(512 << 20), Some(1.5), Some(100)));
    assert_eq!(w.volumes[0].mode, VolumeMode::Carry);
    assert_eq!(w.start_type, Some(StartType::Forking));
    assert_eq!(w.env, vec![("A".into(), Some("1".into())), ("B".into(), Some("2".into()))]);
    assert_eq!(w.cmd.len(), 3);
}

#[test]
fn a_wrong_file_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.toml");
    for (text, part) in [
        ("name = 'a'\nnonsense = 1\n", "line 2: unknown field `nonsense`"),
        ("name = 'A'\n", "a-z"),
        ("cmd = 'x y'\n", "line 1"),
        ("memory = 'much'\n", "memory = \"much\""),
        ("[[[", "line 1"),
    ] {
        std::fs::write(&path, text).unwrap();
        let f = Failure::from(read_file(&path, "/").unwrap_err());
        assert_eq!(f.kind, Kind::Usage);
        assert!(f.object.ends_with("x.toml") && f.message.contains(part), "{text:?}: {f}");
    }
    let f = Failure::from(read_file(Path::new("/no/such.toml"), "/").unwrap_err());
    assert_eq!((f.kind, f.message.as_str()), (Kind::Failed, "cannot read it: no such file or directory"));
}

#[test]
fn flags_win_over_the_file() {
    let file = from_toml("name='a'\nrm=true\nenv=['A=1','B=2']\npublish=[80]\ncmd=['x']\n", "/").unwrap();
    let flags = Wanted {
        name: PodName::parse("b").ok(),
        env: vec![("B".into(), Some("3".into()))],
        publish: vec![crate::policy::values::publish("81").unwrap()],
        ..Wanted::default()
    };
    let w = flags.over(file);
    assert_eq!(w.name.unwrap().as_str(), "b");
    assert_eq!(w.rm, Some(true));
    assert_eq!(w.env, vec![("A".into(), Some("1".into())), ("B".into(), Some("3".into()))]);
    assert_eq!(w.publish.len(), 1);
    assert_eq!(w.publish[0].pod_port, 81);
    assert_eq!(w.cmd, ["x"]);
}

#[test]
fn the_caller_is_read() {
    let c = Caller::here().unwrap();
    assert_eq!(c.rlimits.len(), 16);
    assert!(c.rlimits.iter().enumerate().all(|(n, l)| l.0 == n as u32));
    assert!(c.umask <= 0o777);
}

#[test]
fn the_definitions_that_come_along_are_sound() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("pods");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mut wanted = read_file(&path, "/").unwrap();
        // The accounts are made by the packages, which need not be here.
        wanted.user = None;
        let spec = resolve(wanted, &caller()).unwrap();
        assert_eq!(path.file_stem().unwrap().to_str().unwrap(), spec.name.as_str());
        names.push(spec.name.to_string());
    }
    names.sort();
    assert_eq!(names, ["memcached", "nginx", "python-web", "redis"]);
}
