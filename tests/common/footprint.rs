//! What a lab holds on this machine, to see that nothing is left of a pod.

use super::lab::Lab;
use super::until;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

/// What there is, by kind.
pub type Footprint = BTreeMap<String, Vec<String>>;

/// What a lab holds, apart from its agents: by kind, in words without numbers that change.
pub fn footprint(lab: &Lab, id: &str) -> Footprint {
    let mut found = Footprint::new();
    let dir = lab.dir().to_str().expect("path").to_owned();
    found.insert("processes".into(), processes(&dir, id));
    let find = |args: &[&str]| {
        let out = Command::new("find").args(args).output().expect("find");
        String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    if !id.is_empty() {
        found.insert("groups".into(), find(&["/sys/fs/cgroup", "-type", "d", "-name", &format!("{id}*")]));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let ours = mounts.lines().filter(|l| l.contains(&dir) || (!id.is_empty() && l.contains(id)));
    found.insert("mounts".into(), ours.map(str::to_owned).collect());
    for host in [&lab.a, &lab.b] {
        let inside = |program: &str, args: &[&str]| {
            let out = host.ns.command(program).args(args).output().expect(program);
            String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let names = |l: String| l.split(':').nth(1).unwrap_or_default().trim().to_owned();
        let links = inside("ip", &["-o", "link"]).into_iter().map(names).collect();
        found.insert(format!("{} links", host.name), links);
        found.insert(format!("{} nft tables", host.name), inside("nft", &["list", "tables"]));
        found.insert(format!("{} routes", host.name), inside("ip", &["route"]));
        let root = host.root.to_str().expect("path");
        for place in ["run/podmig", "var/lib/podmig/pods"] {
            let files = find(&[&format!("{root}/{place}"), "!", "-type", "d", "!", "-name", ".lock"]);
            found.insert(format!("{} {place}", host.name), files);
        }
    }
    found
}

/// Processes that belong to a lab (its directory in their arguments or environment) or a pod (its id in their group).
pub fn processes(dir: &str, id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let read = |file: &str| {
            String::from_utf8_lossy(&std::fs::read(entry.path().join(file)).unwrap_or_default())
                .replace('\0', " ")
        };
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let command = read("cmdline");
        let ours = command.contains(dir) || read("environ").contains(dir);
        let pods = !id.is_empty() && (command.contains(id) || read("cgroup").contains(id));
        // The agents stay; zombies of ours have no command line.
        if (ours || pods) && pid != std::process::id() && !command.contains(" agent ") && !command.is_empty()
        {
            found.push(command.replace(dir, "DIR").trim().to_owned());
        }
    }
    found.sort();
    found
}

/// Everything of a pod is gone, and what there was before is there.
#[track_caller]
pub fn clean(lab: &Lab, id: &str, before: &Footprint) {
    let start = Instant::now();
    loop {
        let now = footprint(lab, id);
        let differ = now.iter().filter(|(k, v)| before.get(*k).map_or(!v.is_empty(), |b| b != *v));
        let left: Vec<_> =
            differ.map(|(k, v)| format!("{k}: {v:#?}, before: {:#?}", before.get(k))).collect();
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "left behind:\n{}", left.join("\n"));
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Without workers that a lab's first look at its agents made, who may come late: they end by themselves.
pub fn without_workers(mut all: Footprint) -> Footprint {
    if let Some(processes) = all.get_mut("processes") {
        processes.retain(|p| !p.contains("__serve"));
    }
    all
}

/// [`everything`], once the workers of the lab's first looks at the agents have ended.
pub fn settled(lab: &Lab) -> Footprint {
    let dir = lab.dir().to_str().expect("path").to_owned();
    until(Duration::from_secs(20), "workers end", || {
        let workers = |p: &String| p.contains("__serve");
        (!processes(&dir, "").iter().any(workers)).then_some(())
    });
    without_workers(everything(lab))
}

/// Everything of podmig's that is there: processes, mounts, links, tables, routes, files, and the control groups of both stores.
pub fn everything(lab: &Lab) -> Footprint {
    let mut all = footprint(lab, "");
    for host in [&lab.a, &lab.b] {
        let places = podmig::pod::store::Places::resolve(Some(&host.root));
        let any = super::podhost::spec("any", &["true"]);
        let leaf = podmig::pod::monitor::group_of(&places, &any, None);
        let ending = leaf.to_str().and_then(|l| l.rsplit('-').next()).expect("store").to_owned();
        let out = Command::new("find")
            .args(["/sys/fs/cgroup", "-type", "d", "-name", &format!("*-{ending}")])
            .output()
            .expect("find");
        let groups = String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect();
        all.insert(format!("{} groups", host.name), groups);
    }
    for names in all.values_mut() {
        // A record on its way to the disk: it takes its name in a moment.
        names.retain(|n| !n.contains("/.record.json."));
        names.sort();
    }
    all
}

/// Nothing came, nothing went; a target may still be clearing away when the source has its answer.
#[track_caller]
pub fn as_before(lab: &Lab, before: &Footprint) {
    let start = Instant::now();
    loop {
        let now = everything(lab);
        if now == *before {
            return;
        }
        let differ: Vec<_> = now.iter().filter(|(k, v)| before.get(*k) != Some(*v)).collect();
        let were: Vec<_> = differ.iter().map(|(k, _)| before.get(*k)).collect();
        assert!(start.elapsed() < Duration::from_secs(3), "not as before: {differ:#?}\nbut {were:#?}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
