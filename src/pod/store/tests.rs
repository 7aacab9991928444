//! Tests of the store on a real file system.

use super::*;
use crate::base::spec::{Limits, NetSpec, Restart, StartType, User};

fn spec(name: &str, id: u64) -> PodSpec {
    PodSpec {
        id: PodId::from_bits(id),
        name: PodName::parse(name).unwrap(),
        cmd: vec!["true".into()],
        env: vec![],
        cwd: "/".into(),
        user: User::default(),
        umask: 0o22,
        rlimits: vec![],
        hostname: name.into(),
        net: NetSpec::default(),
        tty: false,
        start_type: StartType::Exec,
        grace_ms: 100,
        restart: Restart::No,
        rm: false,
        volumes: vec![],
        tmpfs: vec![],
        limits: Limits { cpus: Some(1.5), ..Limits::default() },
        cgroup_parent: None,
        privileged: false,
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Places::resolve(Some(dir.path())));
    (dir, store)
}

fn dead() -> ProcId {
    ProcId { boot: "an earlier boot".into(), ..ProcId::me() }
}

#[test]
fn found_by_name_and_by_id() {
    let (_d, s) = store();
    let r = s.reserve(&spec("web", 7)).unwrap();
    assert_eq!(s.find("web").unwrap(), r);
    assert_eq!(s.find("0000000000000007").unwrap(), r);
    assert!(matches!(s.find("other"), Err(Error::NoSuchPod { .. })));
    assert!(matches!(s.find("../../etc"), Err(Error::NoSuchPod { .. })));
    assert_eq!(Failure::from(s.find("other").unwrap_err()).kind.code(), 3);
}

#[test]
fn of_racing_starts_one_wins_the_name() {
    let (_d, s) = store();
    let wins: usize = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|n| {
                let s = &s;
                scope.spawn(move || usize::from(s.reserve(&spec("web", 100 + n)).is_ok()))
            })
            .collect();
        racers.into_iter().map(|r| r.join().unwrap()).sum()
    });
    assert_eq!(wins, 1);
    assert_eq!(s.list().unwrap().len(), 1);
    assert_eq!(Failure::from(s.reserve(&spec("web", 9)).unwrap_err()).kind.code(), 9);
}

#[test]
fn a_dead_starter_leaves_no_reservation() {
    let (_d, s) = store();
    let mut r = s.reserve(&spec("web", 1)).unwrap();
    r.monitor = Some(dead());
    s.save(&r).unwrap();
    assert!(matches!(s.find("web"), Err(Error::NoSuchPod { .. })));
    s.reserve(&spec("web", 2)).unwrap();
    assert!(!s.places.dir(&PodId::from_bits(1)).exists());
}

#[test]
fn a_running_pod_without_monitor_is_lost_and_starts_again() {
    let (_d, s) = store();
    let mut r = s.reserve(&spec("web", 1)).unwrap();
    r.started = Some(jiff::Timestamp::now());
    r.monitor = Some(dead());
    s.save(&r).unwrap();
    assert_eq!(s.find("web").unwrap().status, Status::Lost);
    let again = s.reserve_again(&r.spec.id).unwrap();
    assert_eq!(again.status, Status::Running);
    assert!(matches!(s.reserve_again(&r.spec.id), Err(Error::NameTaken { .. })));
    s.give_back(&again).unwrap();
    assert_eq!(s.find("web").unwrap().status, Status::Lost);
}

#[test]
fn a_moved_pod_never_starts_here_again_and_may_come_back() {
    let (_d, s) = store();
    let mut r = s.reserve(&spec("web", 1)).unwrap();
    r.status = Status::Moved;
    r.moved_to = Some("hostb".into());
    r.monitor = Some(dead());
    s.save(&r).unwrap();
    assert_eq!(s.find("web").unwrap().status, Status::Moved);
    for e in [
        s.find_here("web").unwrap_err(),
        s.reserve(&spec("web", 2)).unwrap_err(),
        s.reserve_again(&r.spec.id).unwrap_err(),
    ] {
        let f = Failure::from(e);
        assert_eq!(f.kind.code(), 8);
        assert!(f.message.contains("hostb"), "{f}");
    }
    let back = s.reserve_incoming(&spec("web", 1), 2).unwrap();
    assert_eq!(back.status, Status::Incoming);
    assert!(matches!(s.reserve_incoming(&spec("web", 1), 3), Err(Error::Here { .. })));
    s.give_back(&back).unwrap();
    assert_eq!(s.find("web").unwrap(), r);
    // An arrival whose owner dies leaves what was known before, too.
    let mut back = s.reserve_incoming(&spec("web", 1), 2).unwrap();
    back.monitor = Some(dead());
    s.save(&back).unwrap();
    assert_eq!(s.find("web").unwrap().status, Status::Moved);
    assert_eq!(Failure::from(s.reserve(&spec("web", 2)).unwrap_err()).kind.code(), 8);
}

#[test]
fn in_doubt_stays_in_doubt_over_a_reboot() {
    let (_d, s) = store();
    let mut r = s.reserve(&spec("web", 1)).unwrap();
    r.status = Status::InDoubt;
    r.moved_to = Some("hostb".into());
    r.monitor = Some(dead());
    s.save(&r).unwrap();
    assert_eq!(s.find_here("web").unwrap().status, Status::InDoubt);
    assert_eq!(Failure::from(s.reserve_again(&r.spec.id).unwrap_err()).kind.code(), 8);
}

#[test]
fn a_checkpointed_pod_frees_its_name() {
    let (_d, s) = store();
    let mut r = s.reserve(&spec("web", 1)).unwrap();
    r.status = Status::Checkpointed;
    s.save(&r).unwrap();
    assert_eq!(s.find("web").unwrap().spec.id, r.spec.id);
    let f = Failure::from(s.reserve_again(&r.spec.id).unwrap_err());
    assert!(f.kind == Kind::Failed && f.remedy.contains("podmig restore"), "{f}");
    let new = s.reserve(&spec("web", 2)).unwrap();
    assert_eq!(s.find("web").unwrap().spec.id, new.spec.id);
}

#[test]
fn removed_is_gone_and_twice_is_harmless() {
    let (_d, s) = store();
    let r = s.reserve(&spec("web", 1)).unwrap();
    s.remove(&r.spec.id).unwrap();
    s.remove(&r.spec.id).unwrap();
    assert!(s.list().unwrap().is_empty());
}

#[test]
fn damaged_and_newer_records_are_named_not_guessed() {
    let (_d, s) = store();
    let r = s.reserve(&spec("web", 1)).unwrap();
    let path = s.places.record(&r.spec.id);
    fs::write(&path, b"{\"schema\": 99}").unwrap();
    let f = Failure::from(s.find("0000000000000001").unwrap_err());
    assert!(f.message.contains("schema 99 is newer"), "{f}");
    fs::write(&path, b"{").unwrap();
    assert!(matches!(s.find("0000000000000001"), Err(Error::Damaged { .. })));
    assert!(s.list().unwrap().is_empty());
}

#[test]
fn io_errors_are_told_in_words() {
    let s = Store::open(&Places::resolve(Some(Path::new("/proc/none"))));
    let f = Failure::from(s.reserve(&spec("web", 1)).unwrap_err());
    assert!(!f.to_string().contains("os error"), "{f}");
    assert!(f.object.starts_with("/proc/none"), "{f}");
}
