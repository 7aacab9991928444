//! Groups on the real kernel: made, frozen, limited, killed, removed.

use super::*;
use crate::base::spec::Limits;
use std::process::{Child, Command};

const HYBRID: &str = "\
25 22 0:21 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
26 25 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
27 25 0:23 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
28 25 0:24 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
29 25 0:25 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

#[test]
fn layouts_are_told_apart() {
    let h = Hierarchies::parse(HYBRID);
    assert_eq!(h.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
    assert_eq!(h.v1["cpu"], h.v1["cpuacct"]);
    assert_eq!(h.v1.keys().collect::<Vec<_>>(), ["cpu", "cpuacct", "freezer", "systemd"]);
    let pure = Hierarchies::parse("30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
    assert_eq!((pure.v2.is_some(), pure.v1.len()), (true, 0));
}

#[test]
fn the_root_of_a_hierarchy_is_known() {
    let text = "12:memory:/user.slice\n5:cpu,cpuacct:/\n0::/user.slice\n";
    assert!(!in_root(text, "memory"));
    assert!(in_root(text, "cpu") && in_root(text, "pids"));
}

#[test]
fn paths_that_leave_are_refused() {
    let h = Hierarchies::parse(HYBRID);
    for bad in ["", "/x", "../x", "a/../b", "."] {
        assert!(matches!(Cgroup::at(&h, Path::new(bad)), Err(Error::BadPath(_))), "{bad:?} passed");
    }
}

struct Sleeper(Child);
impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
fn sleeper() -> Sleeper {
    Sleeper(Command::new("sleep").arg("1000").spawn().expect("sleep"))
}

fn life(h: &Hierarchies, name: &str) {
    let rel = PathBuf::from(format!("pmengine-{}-{name}/pod", std::process::id()));
    let group = Cgroup::create(h, &rel).expect("create");
    let sleeper = sleeper();
    let pid = sleeper.0.id() as i32;
    group.add(pid).expect("add");
    assert_eq!(group.procs().expect("procs"), [pid]);
    let freezer = group.freezer();
    freezer.freeze().expect("freeze");
    assert!(freezer.is_frozen().expect("state"));
    freezer.thaw().expect("thaw");
    assert!(!freezer.is_frozen().expect("state"));
    freezer.freeze().expect("freeze again");
    group.kill_all().expect("kill while frozen");
    assert!(!group.is_populated().expect("populated"));
    drop(sleeper);
    group.remove().expect("remove");
    let parent = Cgroup::open(h, rel.parent().expect("parent")).expect("parent");
    parent.remove().expect("remove parent");
    parent.remove().expect("twice does no harm");
    assert!(Cgroup::open(h, &rel).is_err());
}

#[test]
fn a_group_lives_freezes_and_goes() {
    let h = Hierarchies::detect().expect("detect");
    life(&h, "main");
    if h.v2.is_some() && h.v1.contains_key("freezer") {
        life(&Hierarchies { v2: None, ..h }, "v1");
    }
}

#[test]
fn limits_land_in_the_right_file() {
    let h = Hierarchies::detect().expect("detect");
    let rel = PathBuf::from(format!("pmengine-{}-limits", std::process::id()));
    let group = Cgroup::create(&h, &rel).expect("create");
    let set = group.set_limits(&Limits { memory: Some(64 << 20), cpus: Some(0.5), pids: Some(77) });
    let read = |c: &str, v1: &str, v2: &str| {
        let path = group.v1.get(c).map_or(group.main.join(v2), |d| d.join(v1));
        fs::read_to_string(path).unwrap_or_default().trim().to_owned()
    };
    let seen = [
        read("memory", "memory.limit_in_bytes", "memory.max"),
        read("cpu", "cpu.cfs_quota_us", "cpu.max"),
        read("pids", "pids.max", "pids.max"),
    ];
    group.remove().expect("remove");
    set.expect("limits");
    assert_eq!((seen[0].as_str(), seen[2].as_str()), ("67108864", "77"));
    assert!(seen[1].starts_with("50000"), "cpu: {}", seen[1]);
}
