//! Two hosts and a client on one switch: the network side of a move, in the order of a move.

use super::*;

/// How a host reaches the switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Uplink {
    Bridge,
    Plain,
}

const UPLINK: &str = "up0";

fn port(switch: &OwnedFd, machine: &OwnedFd, name: &str) {
    at(switch, || {
        let mut route = Route::open().unwrap();
        let near = End { name, mac: None, index: Some(100 + name.len() as u32), netns: None };
        let far = End { name: UPLINK, mac: None, index: Some(9), netns: Some(machine.as_fd()) };
        route.add_veth(&near, &far, 1500).unwrap();
        let [near, bridge] = [name, "switch"].map(|n| route.iface(n).unwrap().unwrap().index);
        route.set_master(near, bridge).unwrap();
    });
    at(machine, || Route::open().unwrap().set_up(9).unwrap());
    at(switch, || {
        let mut route = Route::open().unwrap();
        let near = route.iface(name).unwrap().unwrap().index;
        assert!(route.settle(near, LIMIT).unwrap());
    });
}

fn host(switch: &OwnedFd, name: &str, uplink: Uplink) -> (OwnedFd, NetSpec) {
    let machine = new_netns().unwrap();
    port(switch, &machine, name);
    if uplink == Uplink::Plain {
        return (machine, lan(UPLINK, POD, 24));
    }
    at(&machine, || {
        let mut route = Route::open().unwrap();
        route.add_bridge(BRIDGE).unwrap();
        let bridge = route.iface(BRIDGE).unwrap().unwrap().index;
        route.set_master(9, bridge).unwrap();
    });
    (machine, lan(BRIDGE, POD, 24))
}

fn move_with_a_request_on_its_way(from: Uplink, to: Uplink) {
    let switch = new_netns().unwrap();
    at(&switch, || Route::open().unwrap().add_bridge("switch").unwrap());
    let (source, spec) = host(&switch, "a", from);
    let (target, mut target_spec) = host(&switch, "bb", to);
    let client = new_netns().unwrap();
    port(&switch, &client, "ccc");
    at(&client, || Route::open().unwrap().add_addr(9, ip(CLIENT), 24).unwrap());

    let id = fresh_id();
    let [old, new] = [new_netns().unwrap(), new_netns().unwrap()];
    let old_link = at(&source, || attach(&spec, old.as_fd(), &id, false)).unwrap();
    serve_udp(&old, "old", 53);
    let socket = at(&client, || UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.connect(addr(POD, 53)).unwrap();
    let answer = || {
        let mut buffer = [0; 64];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    socket.send(b"one").unwrap();
    assert_eq!(answer(), format!("old: one from {CLIENT}"));

    // Reservation: the target's link is there and up, and nobody hears of it.
    target_spec.mac = old_link.spec.mac;
    let new_link = at(&target, || attach(&target_spec, new.as_fd(), &id, true)).unwrap();
    serve_udp(&new, "new", 53);
    let mut target_hold = Hold::open(new.as_fd(), &new_link.spec.mode).unwrap();
    let replayer = at(&target, || Replayer::open(&new_link)).unwrap();
    socket.send(b"two").unwrap();
    assert_eq!(answer(), format!("old: two from {CLIENT}"));

    // Stop-and-copy at the source, with a datagram that nobody will send again.
    let mut hold = Hold::open(old.as_fd(), &old_link.spec.mode).unwrap();
    let mut capture = Capture::open(old.as_fd(), &old_link.spec.mode).unwrap();
    capture.start().unwrap();
    capture.since(hold.engage().unwrap());
    socket.send(b"three").unwrap();
    let frames = until("the captured datagram", || {
        let frames = capture.drain().unwrap();
        frames.iter().any(|f| f.bytes.ends_with(b"three")).then_some(frames)
    });

    // Activation.
    at(&target, || release(&new_link)).unwrap();
    target_hold.lift().unwrap();
    let done = replayer.send(&frames);
    assert!(done.sent > 0, "{done:?}");
    announce(&new_link, new.as_fd()).unwrap();
    assert_eq!(answer(), format!("new: three from {CLIENT}"));
    // The source still holds, and then its link goes under the hold.
    at(&source, || detach(&old_link)).unwrap();
    socket.send(b"four").unwrap();
    assert_eq!(answer(), format!("new: four from {CLIENT}"));
    at(&target, || detach(&new_link)).unwrap();
}

#[test]
fn a_datagram_in_a_move_between_bridges_is_answered_once_by_the_new_host() {
    move_with_a_request_on_its_way(Uplink::Bridge, Uplink::Bridge);
}

#[test]
fn a_datagram_in_a_move_between_plain_links_is_answered_once_by_the_new_host() {
    move_with_a_request_on_its_way(Uplink::Plain, Uplink::Plain);
}

#[test]
fn a_datagram_in_a_move_from_bridge_to_plain_and_back_is_answered() {
    move_with_a_request_on_its_way(Uplink::Bridge, Uplink::Plain);
    move_with_a_request_on_its_way(Uplink::Plain, Uplink::Bridge);
}
