//! The hold, capture and replay.

use super::*;
use crate::kernel::packet::{Options, Packet};
use std::time::SystemTime;

/// What a client sees whose request came into a hold of about 10 ms.
struct Stall {
    held: Duration,
    stall: Duration,
    frames: Vec<Frame>,
}

fn request_into_a_hold(lab: &Lab, pod: &Pod, to: SocketAddr, request: &str, with_replay: bool) -> Stall {
    let mut stream = connect(&lab.client, to).unwrap();
    ask_on(&mut stream, "before").unwrap();
    let mut hold = Hold::open(pod.as_fd(), &pod.link.spec.mode).unwrap();
    let mut capture = Capture::open(pod.as_fd(), &pod.link.spec.mode).unwrap();
    capture.start().unwrap();
    capture.since(hold.engage().unwrap());
    let replayer = at(&lab.host, || Replayer::open(&pod.link)).unwrap();
    let began = Instant::now();
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    let mut frames = Vec::new();
    until("the captured request and the end of the hold", || {
        frames.extend(capture.drain().unwrap());
        (!frames.is_empty() && began.elapsed() >= Duration::from_millis(10)).then_some(())
    });
    hold.lift().unwrap();
    let held = began.elapsed();
    if with_replay {
        let done = replayer.send(&frames);
        assert_eq!(done.skipped, 0, "{done:?}");
    }
    assert_eq!(answer(&mut stream).unwrap(), format!("pod: {request}"));
    assert_eq!(capture.lost().unwrap(), 0);
    Stall { held, stall: began.elapsed(), frames }
}

#[test]
fn a_replayed_request_costs_the_hold_and_no_more() {
    let lab = Lab::new();
    let pod = lab.pod(&lan(BRIDGE, POD, 24), false);
    serve(&pod, "pod", 80);
    // First the test itself: without replay the client waits for its timer.
    let dropped = request_into_a_hold(&lab, &pod, addr(POD, 80), "one", false);
    assert!(dropped.stall > Duration::from_millis(150), "{:?}", dropped.stall);
    let replayed = request_into_a_hold(&lab, &pod, addr(POD, 80), "one", true);
    println!("dropped: {:?}; replayed: {:?} of hold {:?}", dropped.stall, replayed.stall, replayed.held);
    assert!(replayed.stall < replayed.held + Duration::from_millis(60), "{:?}", replayed.stall);
}

#[test]
fn large_segments_and_open_checksums_survive_replay() {
    let lab = Lab::new();
    let pod = lab.pod(&lan(BRIDGE, POD, 24), false);
    serve(&pod, "pod", 80);
    let request: String = (0..12_000).map(|i| char::from(b'a' + (i % 23) as u8)).collect();
    let seen = request_into_a_hold(&lab, &pod, addr(POD, 80), &request, true);
    assert!(seen.stall < seen.held + Duration::from_millis(60), "{:?}", seen.stall);
    assert!(seen.frames.iter().any(|f| f.bytes.len() > 2000 && f.vnet_hdr[0] == 1), "no offload was met");
}

#[test]
fn the_same_through_nat() {
    let lab = Lab::new();
    let spec = NetSpec { publish: vec![super::nat::publish(0, 80, false)], ..NetSpec::default() };
    let pod = lab.pod(&spec, false);
    serve(&pod, "pod", 80);
    let port = pod.link.ports()[0].host.port();
    let seen = request_into_a_hold(&lab, &pod, addr(HOST, port), "one", true);
    assert!(seen.stall < seen.held + Duration::from_millis(60), "{:?}", seen.stall);
}

/// The kernel begins to stamp frames a while after the first socket asks for it; until then they get the time at which
/// they are read. Waits for that.
fn stamping(lab: &Lab, pod: &Pod) -> Packet {
    let packet = at(pod, || {
        let options = Options { stamps: true, incoming_only: true, ..Options::default() };
        let packet = Packet::open(POD_IFINDEX, options).unwrap();
        packet.listen(libc::ETH_P_IP as u16).unwrap();
        packet
    });
    let socket = at(&lab.client, || UdpSocket::bind("0.0.0.0:0").unwrap());
    until("stamps", || {
        socket.send_to(b"stamp", addr(POD, 9)).unwrap();
        let sent = SystemTime::now();
        until("the clock", || (sent.elapsed().ok()? > Duration::from_millis(2)).then_some(()));
        let mut buffer = [0; 2048];
        let reading = SystemTime::now();
        let stamped = until("the frame", || packet.recv(&mut buffer).unwrap()).at.unwrap();
        (stamped < reading).then_some(())
    });
    packet
}

#[test]
fn what_passed_before_the_hold_is_not_captured() {
    let lab = Lab::new();
    let pod = lab.pod(&lan(BRIDGE, POD, 24), false);
    serve_udp(&pod, "pod", 53);
    let mut hold = Hold::open(pod.as_fd(), &pod.link.spec.mode).unwrap();
    let mut capture = Capture::open(pod.as_fd(), &pod.link.spec.mode).unwrap();
    let _clock = stamping(&lab, &pod);
    capture.start().unwrap();
    ask_udp(&lab.client, addr(POD, 53), "early").unwrap();
    let after = Instant::now() + Duration::from_millis(2);
    until("the clock", || (Instant::now() > after).then_some(()));
    capture.since(hold.engage().unwrap());
    let late = at(&lab.client, || UdpSocket::bind("0.0.0.0:0").unwrap());
    late.send_to(b"late", addr(POD, 53)).unwrap();
    let mut seen = Vec::new();
    until("the late datagram", || {
        seen.extend(capture.drain().unwrap());
        seen.iter().any(|f: &Frame| f.bytes.ends_with(b"late")).then_some(())
    });
    assert!(!seen.iter().any(|f| f.bytes.ends_with(b"early")), "the early one would come twice");
}

#[test]
fn engaged_nothing_comes_in_or_goes_out_and_twice_is_once() {
    let lab = Lab::new();
    let pod = lab.pod(&lan(BRIDGE, POD, 24), false);
    let socket = |machine: &OwnedFd| {
        let socket = at(machine, || UdpSocket::bind("0.0.0.0:53").unwrap());
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    };
    let (inner, outer) = (socket(&pod.netns), socket(&lab.client));
    let both = |text: &[u8]| {
        let _ = outer.send_to(text, addr(POD, 53));
        let _ = inner.send_to(text, addr(CLIENT, 53));
    };
    let first = |socket: &UdpSocket| {
        let mut buffer = [0; 16];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    both(b"before");
    assert_eq!([first(&inner), first(&outer)], ["before", "before"]);
    let mut hold = Hold::open(pod.as_fd(), &pod.link.spec.mode).unwrap();
    hold.engage().unwrap();
    both(b"held");
    hold.engage().unwrap();
    both(b"held");
    hold.lift().unwrap();
    hold.lift().unwrap();
    both(b"after");
    assert_eq!([first(&inner), first(&outer)], ["after", "after"]);
}

#[test]
fn an_engaged_hold_outlives_its_hand_and_the_link_goes_under_it() {
    let lab = Lab::new();
    let pod = lab.pod(&lan(BRIDGE, POD, 24), false);
    serve(&pod, "pod", 80);
    let mut stream = connect(&lab.client, addr(POD, 80)).unwrap();
    ask_on(&mut stream, "x").unwrap();
    Hold::open(pod.as_fd(), &pod.link.spec.mode).unwrap().engage().unwrap();
    assert!(shell(&pod, "nft list table netdev podmig-hold").contains("policy drop"));
    at(&lab.host, || detach(&pod.link)).unwrap();
    // Lifting now lets nothing out: there is no link.
    Hold::open(pod.as_fd(), &pod.link.spec.mode).unwrap().lift().unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(stream.read(&mut [0; 16]).is_err(), "something reached the client");
}

#[test]
fn a_hold_without_a_link_names_it_or_awaits_it() {
    let lab = Lab::new();
    let netns = new_netns().unwrap();
    match Hold::open(netns.as_fd(), &NetMode::Nat).unwrap().engage() {
        Err(error) => {
            let failure = crate::base::Failure::from(error);
            assert!(failure.to_string().contains("eth0"), "{failure}");
        }
        // Newer kernels (6.16) bind chains to names.
        Ok(_) => {
            let link = at(&lab.host, || attach(&lan(BRIDGE, POD, 24), netns.as_fd(), &fresh_id(), false));
            let spec = link.unwrap().spec;
            let probe = at(&lab.host, || address_answers(&spec, Duration::from_millis(60))).unwrap();
            assert_eq!(probe, None);
        }
    }
}

#[test]
fn frames_for_others_and_broken_ones_are_left_out() {
    let lab = Lab::new();
    let pod = lab.pod(&lan(BRIDGE, POD, 24), false);
    let frame = |bytes: Vec<u8>| Frame { vnet_hdr: [0; 10], bytes };
    let mut bad_header = frame(vec![0xff; 60]);
    bad_header.vnet_hdr = [0xff; 10];
    let frames =
        [frame(vec![]), frame(vec![2; 13]), frame(vec![4; 60]), frame(vec![0xff; 1 << 20]), bad_header];
    let done = at(&lab.host, || replay(&pod.link, &frames)).unwrap();
    assert_eq!(done, Replayed { sent: 0, skipped: frames.len() });
}

#[test]
fn frames_survive_storage() {
    let frame = Frame { vnet_hdr: [3; 10], bytes: (0..200).collect() };
    let stored = postcard::to_allocvec(&frame).unwrap();
    assert!(stored.len() < 220, "{}", stored.len());
    assert_eq!(postcard::from_bytes::<Frame>(&stored).unwrap(), frame);
}

#[test]
fn a_capture_is_bounded() {
    let lab = Lab::new();
    let pod = lab.pod(&lan(BRIDGE, POD, 24), false);
    let mut capture = Capture::open(pod.as_fd(), &pod.link.spec.mode).unwrap();
    capture.start().unwrap();
    let socket = at(&lab.client, || UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.connect(addr(POD, 9)).unwrap();
    let mut kept = 0;
    for round in 0..MAX_FRAMES / 1000 + 2 {
        for _ in 0..1000 {
            let _ = socket.send(&[round as u8; 10]);
        }
        kept += capture.drain().unwrap().len();
    }
    assert_eq!(kept, MAX_FRAMES);
    assert!(capture.lost().unwrap() > 0);
}

/// Not a timed test: prints what it costs, for people.
#[test]
fn costs() {
    let lab = Lab::new();
    let mut times: Vec<(&str, Vec<Duration>)> = Vec::new();
    let mut note = |what, began: Instant| match times.iter_mut().find(|(w, _)| *w == what) {
        Some((_, list)) => list.push(began.elapsed()),
        None => times.push((what, vec![began.elapsed()])),
    };
    for _ in 0..5 {
        for (what, spec) in [
            ("attach lan", lan(BRIDGE, POD, 24)),
            (
                "attach nat",
                NetSpec { publish: vec![super::nat::publish(0, 80, false)], ..NetSpec::default() },
            ),
        ] {
            let netns = new_netns().unwrap();
            let id = fresh_id();
            let began = Instant::now();
            let link = at(&lab.host, || attach(&spec, netns.as_fd(), &id, true)).unwrap();
            note(what, began);
            let began = Instant::now();
            let mut hold = Hold::open(netns.as_fd(), &spec.mode).unwrap();
            note("hold open", began);
            let began = Instant::now();
            at(&lab.host, || release(&link)).unwrap();
            note("release", began);
            let began = Instant::now();
            hold.lift().unwrap();
            note("lift", began);
            let began = Instant::now();
            let mut capture = Capture::open(netns.as_fd(), &spec.mode).unwrap();
            capture.start().unwrap();
            note("capture open+start", began);
            let began = Instant::now();
            hold.engage().unwrap();
            note("engage", began);
            let began = Instant::now();
            capture.drain().unwrap();
            note("drain", began);
            let began = Instant::now();
            hold.engage().unwrap();
            note("engage again", began);
            let began = Instant::now();
            at(&lab.host, || detach(&link)).unwrap();
            note(if what == "attach lan" { "detach lan, held" } else { "detach nat, held" }, began);
            let link = at(&lab.host, || attach(&spec, netns.as_fd(), &id, false)).unwrap();
            hold.lift().unwrap();
            let began = Instant::now();
            at(&lab.host, || detach(&link)).unwrap();
            note(if what == "attach lan" { "detach lan" } else { "detach nat" }, began);
        }
    }
    for (what, mut list) in times {
        list.sort();
        println!("{what:>18}: median {:?} max {:?}", list[list.len() / 2], list[list.len() - 1]);
    }
}
