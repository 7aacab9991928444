//! `lan` on a plain link: macvlan.

use super::*;

/// A host whose uplink is a plain link, with the client at its other end.
fn lab() -> (Lab, &'static str) {
    let lab = Lab { host: new_netns().unwrap(), client: new_netns().unwrap() };
    at(&lab.host, || {
        let mut route = Route::open().unwrap();
        let near = End { name: "uplink0", mac: None, index: Some(8), netns: None };
        let far = End { name: "lan0", mac: None, index: Some(9), netns: Some(lab.client.as_fd()) };
        route.add_veth(&near, &far, 1500).unwrap();
        route.set_up(8).unwrap();
        route.add_addr(8, ip(HOST), 24).unwrap();
    });
    at(&lab.client, || {
        let mut route = Route::open().unwrap();
        route.set_up(1).unwrap();
        route.set_up(9).unwrap();
        route.add_addr(9, ip(CLIENT), 24).unwrap();
    });
    at(&lab.host, || assert!(Route::open().unwrap().settle(8, LIMIT).unwrap()));
    (lab, "uplink0")
}

#[test]
fn a_macvlan_pod_serves_is_held_and_replayed_to() {
    let (lab, on) = lab();
    let pod = lab.pod(&lan(on, POD, 24), true);
    assert!(matches!(pod.link.shape, Shape::Macvlan { .. }));
    serve(&pod, "pod", 80);
    let silent = at(&lab.client, || TcpStream::connect_timeout(&addr(POD, 80), Duration::from_millis(60)));
    assert!(silent.is_err());
    let mut hold = Hold::open(pod.as_fd(), &pod.link.spec.mode).unwrap();
    at(&lab.host, || release(&pod.link)).unwrap();
    hold.lift().unwrap();
    announce(&pod.link, pod.as_fd()).unwrap();
    let mut stream = connect(&lab.client, addr(POD, 80)).unwrap();
    assert_eq!(ask_on(&mut stream, "hi").unwrap(), "pod: hi");

    let mut capture = Capture::open(pod.as_fd(), &pod.link.spec.mode).unwrap();
    capture.start().unwrap();
    capture.since(hold.engage().unwrap());
    let began = Instant::now();
    stream.write_all(b"held\n").unwrap();
    let frames = until("the captured request", || {
        let frames = capture.drain().unwrap();
        (!frames.is_empty()).then_some(frames)
    });
    hold.lift().unwrap();
    let replaying = Instant::now();
    let done = at(&lab.host, || replay(&pod.link, &frames)).unwrap();
    println!("replay into a macvlan: {:?}", replaying.elapsed());
    assert_eq!(done, Replayed { sent: frames.len(), skipped: 0 });
    assert_eq!(answer(&mut stream).unwrap(), "pod: held");
    assert!(began.elapsed() < Duration::from_millis(120), "{:?}", began.elapsed());

    at(&lab.host, || detach(&pod.link)).unwrap();
    assert!(!shell(&pod, "ip -o link show").contains("eth0"));
    at(&lab.host, || detach(&pod.link)).unwrap();
}

#[test]
fn an_address_is_found_beside_and_beyond_the_link() {
    let (lab, on) = lab();
    let pod = lab.pod(&lan(on, POD, 24), false);
    let look = |a| {
        let spec = lan(on, a, 24);
        at(&lab.host, || address_answers(&spec, Duration::from_millis(500))).unwrap()
    };
    assert_eq!(look(POD).map(|a| Some(a.mac)), Some(pod.link.spec.mac));
    assert!(look(CLIENT).is_some());
    assert_eq!(look("192.0.2.99"), None);
}

#[test]
fn broadcast_frames_do_not_leave_by_a_replay() {
    let (lab, on) = lab();
    let pod = lab.pod(&lan(on, POD, 24), false);
    let broadcast = Frame { vnet_hdr: [0; 10], bytes: vec![0xff; 60] };
    let done = at(&lab.host, || replay(&pod.link, &[broadcast])).unwrap();
    assert_eq!(done, Replayed { sent: 0, skipped: 1 });
}
