//! Deaths at random moments: whatever is killed or cut, exactly one copy of the pod lives on and its clients notice nothing.

mod common;

use common::clients::{self, Crowd};
use common::footprint::{self, Footprint, clean, footprint, without_workers};
use common::full;
use common::lab::{Host, Lab};
use common::steps::{self, Running};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

const POD: &str = "counter";
const IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 31);
/// How soon after a death everything must be decided.
const SETTLED: Duration = Duration::from_secs(2);
/// The longest a client may wait for one answer, whatever dies: what was dropped is repeated by its own kernel, whose timer
/// has doubled a few times by then.
const LONGEST_WAIT_MS: f64 = 5000.0;

/// A small generator of its own; the seed is printed and can be given (`PODMIG_TEST_SEED`).
struct Random(u64);

impl Random {
    fn new() -> Self {
        let given = std::env::var("PODMIG_TEST_SEED").ok().and_then(|s| s.parse().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock");
        let seed = given.unwrap_or(now.as_nanos() as u64);
        println!("PODMIG_TEST_SEED={seed}");
        Self(seed | 1)
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }
}

fn times() -> u64 {
    let asked = std::env::var("PODMIG_TEST_KILLS").ok().and_then(|n| n.parse().ok());
    asked.unwrap_or(if full() { 100 } else { 10 })
}

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Mover,
    Worker,
    TargetAgent,
    SourceAgent,
    SourceMonitor,
    TargetMonitor,
}

/// A lab with a Redis that counts, and a client that counts with it.
struct Scene {
    lab: Lab,
    crowd: Crowd,
    /// Where the pod is.
    on_b: bool,
    id: String,
    /// What there was before the pod.
    before: Footprint,
}

impl Scene {
    /// A pod that counts, on the first host, with two clients.
    fn new() -> Self {
        let mut scene = Self::empty();
        scene.start();
        scene
    }
    fn empty() -> Self {
        let lab = Lab::new();
        // The lab's own look at the agents' ports has made workers that are about to end.
        let dir = lab.dir().to_str().expect("path").to_owned();
        common::until(steps::LIMIT, "workers of the first calls end", || {
            footprint::processes(&dir, "").is_empty().then_some(())
        });
        let before = without_workers(footprint(&lab, ""));
        let crowd = Crowd::new(&lab);
        Self { lab, crowd, on_b: false, id: String::new(), before }
    }
    /// The pod and its clients, anew.
    fn start(&mut self) {
        let lab = &self.lab;
        let ip = format!("{IP}/24");
        let redis =
            ["redis-server", "--port", "6379", "--protected-mode", "no", "--save", "", "--appendonly", "no"];
        let mut args = vec!["start", "--name", POD, "--net", "lan:br0", "--ip", &ip, "-w", "/", "--"];
        args.extend(redis);
        let up = steps::run(lab, &lab.a, &args, 0).and_then(|_| steps::wait_tcp(lab, &lab.a, POD, 6379));
        up.unwrap_or_else(|e| panic!("{e}"));
        self.id = lab.a.json(&["inspect", POD], 0)["id"].as_str().expect("id").to_owned();
        self.on_b = false;
        self.crowd = Crowd::new(lab);
        self.crowd.join("counter", clients::redis_counter(IP, "n".into()));
        self.crowd.join("bulk", clients::redis_bulk(IP));
        self.crowd.all_go_on("at first", 5).unwrap_or_else(|e| panic!("{e}"));
    }
    fn ends(&self) -> (&Host, &Host) {
        if self.on_b { (&self.lab.b, &self.lab.a) } else { (&self.lab.a, &self.lab.b) }
    }
    fn target_mut(&mut self) -> &mut Host {
        if self.on_b { &mut self.lab.a } else { &mut self.lab.b }
    }
    fn source_mut(&mut self) -> &mut Host {
        if self.on_b { &mut self.lab.b } else { &mut self.lab.a }
    }
    fn start_move(&self) -> Running {
        let (from, to) = self.ends();
        // Both ways of copying, and of being interrupted in it.
        let mode = if self.on_b { "live" } else { "warm" };
        Running::start(from.podmig(&["move", POD, &to.name, "--mode", mode, "--json"]))
    }
    /// A move that nothing disturbs, with the clients going on; how long it took, and how long it was frozen.
    fn clean_move(&mut self, when: &str) -> (Duration, Duration) {
        let (from, to) = self.ends();
        let start = Instant::now();
        let moved = steps::move_pod(&self.lab, POD, from, to).map(|report| (start.elapsed(), report));
        let (took, report) = moved.unwrap_or_else(|e| panic!("{when}: the next move: {e}"));
        self.on_b = !self.on_b;
        self.go_on(when);
        (took, Duration::from_micros(report["frozen_us"].as_u64().expect("frozen_us")))
    }
    /// Every client, on the connection it had, gets further answers, and waited for none of them too long.
    fn go_on(&self, when: &str) {
        self.crowd.all_go_on(when, 5).unwrap_or_else(|e| panic!("{e}\n{}", steps::scene(&self.lab)));
        for (name, ms) in self.crowd.longest_ms() {
            assert!(ms < LONGEST_WAIT_MS, "{when}: {name} waited {ms} ms\n{}", steps::scene(&self.lab));
        }
    }
    fn states(&self) -> [Option<String>; 2] {
        let states = [self.lab.a.state(POD), self.lab.b.state(POD)];
        let running = states.iter().filter(|s| s.as_deref() == Some("running")).count();
        assert!(running < 2, "two copies run\n{}", steps::scene(&self.lab));
        states
    }
    /// Waits until the pod runs on one host and the other is done with it; how long after `died` that was.
    fn settle(&mut self, when: &str, died: Instant, limit: Duration) -> Duration {
        loop {
            let states = self.states();
            let took = died.elapsed();
            let runs = |s: &Option<String>| s.as_deref() == Some("running");
            let over = |s: &Option<String>| matches!(s.as_deref(), None | Some("moved"));
            for here in [false, true] {
                if runs(&states[usize::from(here)]) && over(&states[usize::from(!here)]) {
                    assert!(took < limit, "{when}: only after {took:?}\n{}", steps::scene(&self.lab));
                    self.on_b = here;
                    return took;
                }
            }
            assert!(took < limit, "{when}: after {limit:?} it is {states:?}\n{}", steps::scene(&self.lab));
        }
    }
    /// Ends everything; nothing may be left that was not there before the pod.
    fn end(self) {
        let Self { lab, crowd, id, before, .. } = self;
        crowd.end().unwrap_or_else(|e| panic!("clients: {e}\n{}", steps::scene(&lab)));
        steps::forget(&lab, POD).unwrap_or_else(|e| panic!("{e}"));
        clean(&lab, &id, &before);
    }
}

/// The process on `host` that serves a caller.
fn worker(host: &Host) -> Option<i32> {
    let root = host.root.to_str().expect("path");
    std::fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let serves = command.contains("__serve") && command.contains(root);
        if serves { entry.file_name().to_str()?.parse().ok() } else { None }
    })
}

fn kill(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
}

/// When death comes: so long after the start of the move, or after its pod was frozen (the commit lies there).
#[derive(Clone, Copy, Debug)]
enum Moment {
    Started(Duration),
    Frozen(Duration),
}

/// Whether a pod is frozen, at either end.
fn frozen(id: &str) -> bool {
    let hybrid = Path::new("/sys/fs/cgroup/unified/podmig");
    let pods = if hybrid.exists() { hybrid } else { Path::new("/sys/fs/cgroup/podmig") };
    let Ok(groups) = std::fs::read_dir(pods) else { return false };
    groups.flatten().filter(|g| g.file_name().to_string_lossy().starts_with(id)).any(|g| {
        let events = std::fs::read_to_string(g.path().join("pod/cgroup.events"));
        events.is_ok_and(|e| e.lines().any(|l| l == "frozen 1"))
    })
}

/// Lets time pass until a moment of a move, or until the mover is done.
fn moment(mover: &mut Running, id: &str, at: Moment) {
    let mut going = || mover.child.try_wait().expect("wait").is_none();
    let mut start = Instant::now();
    let after = match at {
        Moment::Started(after) => after,
        Moment::Frozen(after) => {
            while going() && !frozen(id) {
                std::thread::park_timeout(Duration::from_micros(200));
            }
            start = Instant::now();
            after
        }
    };
    while start.elapsed() < after && going() {
        std::thread::park_timeout(after.saturating_sub(start.elapsed()).min(Duration::from_millis(1)));
    }
}

/// One move with one death in it.
fn kill_once(scene: &mut Scene, n: u64, victim: Victim, at: Moment) -> (Option<i32>, Duration) {
    let when = format!("kill {n}: {victim:?} at {at:?}");
    let from_b = scene.on_b;
    let mut mover = scene.start_move();
    moment(&mut mover, &scene.id, at);
    let mut died = Instant::now();
    match victim {
        Victim::Mover => kill(mover.child.id() as i32),
        Victim::Worker => {
            // Its life begins with the connection.
            while mover.child.try_wait().expect("wait").is_none() {
                if let Some(pid) = worker(scene.ends().1) {
                    died = Instant::now();
                    kill(pid);
                    break;
                }
            }
        }
        Victim::TargetAgent => scene.target_mut().kill_agent(),
        Victim::SourceAgent => scene.source_mut().kill_agent(),
        Victim::SourceMonitor | Victim::TargetMonitor => unreachable!("they have a test of their own"),
    }
    // As a service manager would.
    match victim {
        Victim::TargetAgent => scene.target_mut().start_agent(),
        Victim::SourceAgent => scene.source_mut().start_agent(),
        _ => {}
    }
    let out = mover.end().unwrap_or_else(|e| panic!("{when}: {e}\n{}", steps::scene(&scene.lab)));
    if matches!(victim, Victim::TargetAgent | Victim::SourceAgent) {
        // No part of a move that has begun: it takes its time.
        died = Instant::now();
    }
    let settled = scene.settle(&when, died, SETTLED);
    let code = out.status.code();
    let moved = scene.on_b != from_b;
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    match code {
        None => assert_eq!(victim, Victim::Mover, "{when}: it died of {}", out.status),
        Some(0) => assert!(moved, "{when}: exit 0, but it is where it was\n{said}"),
        Some(5 | 7) => assert!(!moved, "{when}: exit {code:?}, but it moved\n{said}"),
        Some(6) => {}
        Some(_) => panic!("{when}: exit {code:?}\n{said}"),
    }
    scene.go_on(&when);
    println!("{when}: exit {code:?}, {} after {settled:?}", if moved { "moved" } else { "stayed" });
    (code, settled)
}

/// The monitor of the pod on a host, if there is one.
fn monitor(host: &Host, id: &str) -> Option<i32> {
    let root = host.root.to_str().expect("path");
    std::fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| {
        let read = |file: &str| {
            String::from_utf8_lossy(&std::fs::read(entry.path().join(file)).unwrap_or_default())
                .replace('\0', " ")
        };
        let ours = read("cmdline").contains(&format!("__monitor {id}"));
        // Its log tells whose store it is.
        let log = std::fs::read_link(entry.path().join("fd/2")).unwrap_or_default();
        let here = ours && log.starts_with(root);
        if here { entry.file_name().to_str()?.parse().ok() } else { None }
    })
}

/// Waits until each end is done with a move whose monitors may be dead; both states.
fn over(scene: &Scene, (from, to): (usize, usize), died: Instant, when: &str) -> [Option<String>; 2] {
    loop {
        let states = scene.states();
        let over = matches!(
            (states[from].as_deref(), states[to].as_deref()),
            (Some("running"), None | Some("moved"))
                | (Some("moved" | "lost"), Some("running") | None | Some("lost" | "moved"))
        );
        if over {
            return states;
        }
        assert!(
            died.elapsed() < SETTLED,
            "{when}: after {SETTLED:?} it is {states:?}\n{}",
            steps::scene(&scene.lab)
        );
    }
}

/// A monitor is its pod's parent: killed, it takes its copy along. The other end's copy must not suffer, there must never be
/// two, and what is left must be as it is for any lost pod: seen, removable, startable.
#[test]
fn a_monitor_killed_during_a_move() {
    let mut random = Random::new();
    let mut scene = Scene::new();
    let (first, second) = (scene.clean_move("first"), scene.clean_move("second"));
    let (typical, standing) = (first.0.max(second.0), first.1.max(second.1));
    let (mut lives, mut lost) = (0, 0);
    for n in 0..times().div_ceil(2) {
        let victim = if n % 2 == 0 { Victim::TargetMonitor } else { Victim::SourceMonitor };
        let below = |random: &mut Random, limit: Duration| {
            Duration::from_micros(random.below(limit.as_micros() as u64))
        };
        let at = if n % 4 < 2 {
            Moment::Started(below(&mut random, typical))
        } else {
            Moment::Frozen(below(&mut random, standing))
        };
        let when = format!("kill {n}: {victim:?} at {at:?}");
        let mut mover = scene.start_move();
        moment(&mut mover, &scene.id, at);
        let mut died = None;
        while died.is_none() && mover.child.try_wait().expect("wait").is_none() {
            let (from, to) = scene.ends();
            let host = if victim == Victim::SourceMonitor { from } else { to };
            died = monitor(host, &scene.id).inspect(|pid| kill(*pid)).map(|_| Instant::now());
        }
        let out = mover.end().unwrap_or_else(|e| panic!("{when}: {e}\n{}", steps::scene(&scene.lab)));
        let (from, to) = if scene.on_b { (1, 0) } else { (0, 1) };
        let died = died.unwrap_or_else(Instant::now);
        let ended = died.elapsed();
        let states = over(&scene, (from, to), died, &format!("{when}, the mover ended after {ended:?}"));
        println!("{when}: exit {:?} after {ended:?}, {states:?}", out.status.code());
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        let runs = states.iter().position(|s| s.as_deref() == Some("running"));
        match out.status.code() {
            Some(0) => assert_eq!(states[from].as_deref(), Some("moved"), "{when}: {said}"),
            Some(5 | 7) => assert_ne!(states[from].as_deref(), Some("moved"), "{when}: {said}"),
            // It was killed before the move began, or after the commit.
            Some(1 | 6) => {}
            code => panic!("{when}: exit {code:?}\n{said}"),
        }
        if let Some(host) = runs {
            lives += 1;
            scene.on_b = host == 1;
            scene.go_on(&when);
        } else {
            lost += 1;
            // Its clients were cut off (they are let go once a new one resets them); nothing of it may be in its way.
            steps::forget(&scene.lab, POD).unwrap_or_else(|e| panic!("{when}: {e}"));
            clean(&scene.lab, &scene.id, &scene.before);
            scene.start();
        }
    }
    println!("the pod lived on {lives} times, was lost {lost} times, was never two");
    scene.end();
}

/// The cable between the hosts cut for a while around the commit: whatever was lost on the way, one copy goes on.
#[test]
fn the_cable_cut_during_a_move() {
    let mut random = Random::new();
    let mut scene = Scene::new();
    let (first, second) = (scene.clean_move("first"), scene.clean_move("second"));
    let standing = first.1.max(second.1).as_micros() as u64;
    let (mut moved, mut stayed) = (0, 0);
    for n in 0..times().div_ceil(3) {
        let at = Moment::Frozen(Duration::from_micros(random.below(standing)));
        let cut = Duration::from_millis(random.below(2000));
        let when = format!("cut {n} at {at:?} for {cut:?}");
        let was = scene.on_b;
        let target = scene.ends().1.name.clone();
        let mut mover = scene.start_move();
        moment(&mut mover, &scene.id, at);
        scene.lab.cable(&target, false);
        let plugged = Instant::now() + cut;
        while Instant::now() < plugged {
            // Not both, at no time.
            scene.states();
        }
        scene.lab.cable(&target, true);
        let whole = Instant::now();
        let out = mover.end().unwrap_or_else(|e| panic!("{when}: {e}\n{}", steps::scene(&scene.lab)));
        // The kernels repeat what was lost at growing intervals.
        let settled = scene.settle(&when, whole, Duration::from_secs(15));
        scene.crowd.all_go_on(&when, 5).unwrap_or_else(|e| panic!("{e}\n{}", steps::scene(&scene.lab)));
        scene.crowd.longest_ms();
        println!("{when}: exit {:?}, settled {settled:?} after it was whole again", out.status.code());
        match out.status.code() {
            Some(0) => assert_ne!(scene.on_b, was, "{when}"),
            Some(5 | 7) => assert_eq!(scene.on_b, was, "{when}"),
            Some(6) => {}
            code => panic!("{when}: exit {code:?}"),
        }
        if scene.on_b == was { stayed += 1 } else { moved += 1 }
    }
    println!("moved {moved}, stayed {stayed}");
    scene.end();
}

#[test]
fn killed_at_random_moments() {
    let mut random = Random::new();
    let mut scene = Scene::new();
    // How long an undisturbed move takes here and now, and how much of it the pod is frozen.
    let (first, second) = (scene.clean_move("first"), scene.clean_move("second"));
    let (typical, standing) = (first.0.max(second.0), first.1.max(second.1));
    let victims = [
        Victim::Mover,
        Victim::Worker,
        Victim::TargetAgent,
        Victim::Mover,
        Victim::Worker,
        Victim::SourceAgent,
    ];
    let (mut worst, mut moved, mut stayed) = (Duration::ZERO, 0, 0);
    for n in 0..times() {
        let victim = victims[(n as usize) % victims.len()];
        let below = |random: &mut Random, limit: Duration| {
            Duration::from_micros(random.below(limit.as_micros() as u64))
        };
        // Half of them where it matters most; each victim gets both.
        let cycle = victims.len() as u64;
        let at = if (n + n / cycle).is_multiple_of(2) {
            Moment::Frozen(below(&mut random, standing))
        } else {
            Moment::Started(below(&mut random, typical))
        };
        let was = scene.on_b;
        let (_, settled) = kill_once(&mut scene, n, victim, at);
        worst = worst.max(settled);
        if scene.on_b == was {
            stayed += 1
        } else {
            moved += 1
        }
        scene.clean_move(&format!("after kill {n} ({victim:?})"));
    }
    println!("{} deaths: moved {moved}, stayed {stayed}, settled after at most {worst:?}", times());
    assert!(
        !footprint(&scene.lab, &scene.id)["groups"].is_empty(),
        "the check for leftovers does not see a pod"
    );
    scene.end();
}
