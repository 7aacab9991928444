//! `lan` on a bridge.

use super::*;
use crate::base::{Failure, Kind};

#[test]
fn a_client_on_the_bridge_reaches_the_pod_at_its_own_address() {
    let lab = Lab::new();
    let mut spec = lan(BRIDGE, POD, 24);
    spec.gateway = Some(ip(HOST));
    spec.mac = Some([2, 0xaa, 0xbb, 0xcc, 0xdd, 1]);
    let pod = lab.pod(&spec, false);
    serve(&pod, "pod", 80);
    assert_eq!(ask(&lab.client, addr(POD, 80), "hello").unwrap(), "pod: hello");
    assert_eq!(pod.link.address(), Some(ip(POD)));
    let neighbour = shell(&lab.client, &format!("ip neigh show {POD}"));
    assert!(neighbour.contains("02:aa:bb:cc:dd:01"), "{neighbour}");
    let routes = shell(&pod, "ip route");
    assert!(routes.contains("default via 192.0.2.1 dev eth0"), "{routes}");
    assert!(shell(&pod, "ip -o link show eth0").starts_with(&format!("{POD_IFINDEX}: eth0")));
    assert!(shell(&pod, "ip -6 -o addr show dev eth0").is_empty(), "the kernel made a v6 address");
    at(&lab.host, || detach(&pod.link)).unwrap();
    assert_eq!(litter(&lab.host), "");
    at(&lab.host, || detach(&pod.link)).unwrap();
}

#[test]
fn a_v6_address_is_usable_at_once() {
    let lab = Lab::new();
    let mut spec = lan(BRIDGE, "2001:db8::20", 64);
    spec.gateway = Some(ip("2001:db8::1"));
    let pod = lab.pod(&spec, false);
    let listener = at(&pod, || TcpListener::bind(addr("2001:db8::20", 80)).unwrap());
    let client = connect(&lab.client, addr("2001:db8::20", 80)).unwrap();
    let (_, from) = listener.accept().unwrap();
    assert_eq!(from, client.local_addr().unwrap());
    let shown = shell(&pod, "ip -6 -o addr show dev eth0");
    assert!(!shown.contains("tentative"), "{shown}");
}

#[test]
fn a_held_pod_is_off_the_bridge_and_silent_until_released() {
    let lab = Lab::new();
    let pod = lab.pod(&lan(BRIDGE, POD, 24), true);
    serve(&pod, "pod", 80);
    let ports = || shell(&lab.host, &format!("ip -o link show master {BRIDGE} | wc -l"));
    assert_eq!(ports().trim(), "1");
    // Even on the bridge it would not answer ARP: attach the port, keep the hold.
    at(&lab.host, || release(&pod.link)).unwrap();
    at(&lab.host, || release(&pod.link)).unwrap();
    assert_eq!(ports().trim(), "2");
    let spec = lan(BRIDGE, POD, 24);
    let probe = || at(&lab.host, || address_answers(&spec, Duration::from_millis(60))).unwrap();
    assert_eq!(probe(), None);
    let mut hold = Hold::open(pod.as_fd(), &pod.link.spec.mode).unwrap();
    hold.lift().unwrap();
    assert_eq!(probe().map(|a| Some(a.mac)), Some(pod.link.spec.mac));
    assert_eq!(ask(&lab.client, addr(POD, 80), "hello").unwrap(), "pod: hello");
}

#[test]
fn a_second_copy_announces_itself_and_takes_over() {
    let lab = Lab::new();
    let first = lab.pod(&lan(BRIDGE, POD, 24), false);
    serve(&first, "first", 80);
    assert_eq!(ask(&lab.client, addr(POD, 80), "x").unwrap(), "first: x");
    at(&lab.host, || detach(&first.link)).unwrap();
    // Another hardware address, so that only an announcement can tell the client.
    let mut spec = lan(BRIDGE, POD, 24);
    spec.mac = Some([2, 0xaa, 0xbb, 0xcc, 0xdd, 2]);
    let second = lab.pod(&spec, false);
    serve(&second, "second", 80);
    announce(&second.link, second.as_fd()).unwrap();
    until("the client's neighbour entry", || {
        shell(&lab.client, &format!("ip neigh show {POD}")).contains("02:aa:bb:cc:dd:02").then_some(())
    });
    assert_eq!(ask(&lab.client, addr(POD, 80), "x").unwrap(), "second: x");
}

#[test]
fn an_address_that_answers_is_found_on_v4_and_v6() {
    let lab = Lab::new();
    for (free, taken, prefix) in [("192.0.2.99", CLIENT, 24), ("2001:db8::99", "2001:db8::10", 64)] {
        let look = |a| {
            let spec = lan(BRIDGE, a, prefix);
            at(&lab.host, || address_answers(&spec, Duration::from_millis(500))).unwrap()
        };
        let began = Instant::now();
        let answer = look(taken).expect(taken);
        assert!(began.elapsed() < Duration::from_millis(400), "{taken}: {:?}", began.elapsed());
        let failure = Failure::from(Error::from(answer));
        assert_eq!(failure.kind, Kind::Taken);
        assert!(failure.message.contains("answers from"), "{failure}");
        assert_eq!(look(free), None);
    }
}

#[test]
fn what_cannot_be_is_said_by_name() {
    let lab = Lab::new();
    let id = fresh_id();
    let kind = |spec: &NetSpec| {
        let failure = Failure::from(at(&lab.host, || plan(spec, &id)).unwrap_err());
        assert!(!failure.remedy.is_empty(), "{failure}");
        assert!(!failure.to_string().contains("os error"), "{failure}");
        failure.kind
    };
    assert_eq!(kind(&lan("nosuch0", POD, 24)), Kind::Failed);
    assert_eq!(kind(&lan("lo", POD, 24)), Kind::Usage);
    assert_eq!(kind(&lan("client", POD, 24)), Kind::Usage); // a port of the bridge
    assert_eq!(kind(&lan(BRIDGE, POD, 33)), Kind::Usage);
    assert_eq!(kind(&lan(BRIDGE, "192.0.2.255", 24)), Kind::Usage);
    assert_eq!(kind(&lan(BRIDGE, "127.0.0.1", 8)), Kind::Usage);
    assert_eq!(kind(&NetSpec { ip: None, ..lan(BRIDGE, POD, 24) }), Kind::Usage);
    assert_eq!(kind(&NetSpec { gateway: Some(ip("::1")), ..lan(BRIDGE, POD, 24) }), Kind::Usage);
    assert_eq!(kind(&NetSpec { mac: Some([1; 6]), ..lan(BRIDGE, POD, 24) }), Kind::Usage);
    assert_eq!(kind(&NetSpec { mode: NetMode::Host, ..lan(BRIDGE, POD, 24) }), Kind::Usage);
}

#[test]
fn an_attach_that_fails_half_way_leaves_nothing() {
    let lab = Lab::new();
    let netns = new_netns().unwrap();
    at(&netns, || {
        // The address inside is taken by another device: the last steps of attach fail.
        let mut route = Route::open().unwrap();
        route.set_up(1).unwrap();
        route.add_bridge("other").unwrap();
        let other = route.iface("other").unwrap().unwrap().index;
        let any = ip("0.0.0.0");
        let default = NewRoute { dst: any, prefix: 0, via: Some(ip("192.0.2.77")), oif: other, src: None };
        route.add_route(&default).unwrap();
    });
    let mut spec = lan(BRIDGE, POD, 24);
    spec.gateway = Some(ip(HOST));
    let failed = at(&lab.host, || attach(&spec, netns.as_fd(), &fresh_id(), false));
    let failure = Failure::from(failed.unwrap_err());
    assert!(failure.to_string().contains("192.0.2.1"), "{failure}");
    assert_eq!(litter(&lab.host), "");
    assert!(!shell(&netns, "ip -o link show").contains("eth0"));
}

#[test]
fn a_second_attach_of_the_same_pod_is_refused_and_sweep_clears_the_first() {
    let lab = Lab::new();
    let pod = lab.pod(&lan(BRIDGE, POD, 24), false);
    let other = new_netns().unwrap();
    let again = at(&lab.host, || attach(&lan(BRIDGE, POD, 24), other.as_fd(), &pod.link.id, false));
    assert_eq!(Failure::from(again.unwrap_err()).kind, Kind::Taken);
    assert!(shell(&pod, "ip -o link show").contains("eth0"), "the first was harmed");
    assert!(at(&lab.host, || sweep(&pod.link.id)).unwrap());
    assert!(!at(&lab.host, || sweep(&pod.link.id)).unwrap());
    assert_eq!(litter(&lab.host), "");
}

#[test]
fn host_and_none_make_nothing_and_hold_nothing() {
    let lab = Lab::new();
    for mode in [NetMode::None, NetMode::Host] {
        let spec = NetSpec { mode: mode.clone(), ..NetSpec::default() };
        let pod = lab.pod(&spec, true);
        assert_eq!(pod.link.shape, Shape::Nothing);
        let mut hold = Hold::open(pod.as_fd(), &mode).unwrap();
        hold.engage().unwrap();
        hold.lift().unwrap();
        let mut capture = Capture::open(pod.as_fd(), &mode).unwrap();
        capture.start().unwrap();
        assert_eq!(capture.drain().unwrap(), []);
        announce(&pod.link, pod.as_fd()).unwrap();
        let up = shell(&pod, "ip -o link show lo").contains("UP");
        assert_eq!(up, mode == NetMode::None);
        at(&lab.host, || detach(&pod.link)).unwrap();
        assert_eq!(litter(&lab.host), "");
    }
}

#[test]
fn a_link_record_survives_storage() {
    let lab = Lab::new();
    let pod = lab.pod(&lan(BRIDGE, POD, 24), false);
    let stored = postcard::to_allocvec(&pod.link).unwrap();
    let read: Link = postcard::from_bytes(&stored).unwrap();
    assert_eq!((&read.id, &read.spec, &read.shape), (&pod.link.id, &pod.link.spec, &pod.link.shape));
    at(&lab.host, || detach(&read)).unwrap();
    assert_eq!(litter(&lab.host), "");
}

#[test]
fn on_a_bridge_with_spanning_tree_the_held_port_does_its_waiting_early() {
    let lab = Lab::new();
    shell(&lab.host, &format!("ip link set {BRIDGE} type bridge stp_state 1"));
    let pod = lab.pod(&lan(BRIDGE, POD, 24), true);
    let host_if = pod.link.host_if().unwrap();
    assert!(shell(&lab.host, &format!("ip -o link show {host_if}")).contains(&format!("master {BRIDGE}")));
    at(&lab.host, || release(&pod.link)).unwrap();
}
