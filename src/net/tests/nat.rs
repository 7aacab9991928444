//! `nat`: several pods with the same inside address at once, published ports, the way out.

use super::*;
use crate::base::spec::Publish;
use crate::base::{Failure, Kind};
use std::net::Ipv4Addr;

pub(super) fn publish(host_port: u16, pod_port: u16, udp: bool) -> Publish {
    Publish { host_ip: None, host_port, pod_port, udp }
}

fn spec(publish: Vec<Publish>) -> NetSpec {
    NetSpec { publish, ..NetSpec::default() }
}

#[test]
fn two_pods_with_one_address_serve_everybody() {
    let lab = Lab::new();
    let both = || spec(vec![publish(0, 80, false), publish(0, 53, true)]);
    let pods = [lab.pod(&both(), false), lab.pod(&both(), false)];
    let names = ["one", "two"];
    for (pod, name) in pods.iter().zip(names) {
        serve(pod, name, 80);
        serve_udp(pod, name, 53);
        let shown = shell(pod, "ip -o -4 addr show dev eth0");
        assert!(shown.contains(&format!("{INSIDE}/32")), "{shown}");
    }
    assert_ne!(pods[0].link.address(), pods[1].link.address());
    for (pod, name) in pods.iter().zip(names) {
        let [tcp, udp] = pod.link.ports()[..] else { panic!("two ports") };
        let (tcp, udp) = (tcp.host.port(), udp.host.port());
        // From another machine, from this one by its address and by 127.0.0.1, and by the transit address.
        assert_eq!(ask(&lab.client, addr(HOST, tcp), "hi").unwrap(), format!("{name}: hi"));
        assert_eq!(ask(&lab.host, addr(HOST, tcp), "hi").unwrap(), format!("{name}: hi"));
        assert_eq!(ask(&lab.host, addr("127.0.0.1", tcp), "hi").unwrap(), format!("{name}: hi"));
        let transit = pod.link.address().unwrap();
        assert_eq!(ask(&lab.host, addr(transit, 80), "hi").unwrap(), format!("{name}: hi"));
        // From the other pod, and from itself, by the host's address and by the gateway.
        for asker in &pods {
            assert_eq!(ask(asker, addr(HOST, tcp), "hi").unwrap(), format!("{name}: hi"));
            assert_eq!(ask(asker, addr(GATEWAY, tcp), "hi").unwrap(), format!("{name}: hi"));
        }
        // Peers are seen as they are, programs on 127.0.0.1 as the gateway.
        let got = ask_udp(&lab.client, addr(HOST, udp), "hi").unwrap();
        assert_eq!(got, format!("{name}: hi from {CLIENT}"));
        let got = ask_udp(&lab.host, addr("127.0.0.1", udp), "hi").unwrap();
        assert_eq!(got, format!("{name}: hi from {GATEWAY}"));
    }
    for pod in &pods {
        at(&lab.host, || detach(&pod.link)).unwrap();
    }
    assert_eq!(litter(&lab.host), "");
}

/// One echo request and its answer.
fn ping(machine: &impl AsFd, to: &str) -> bool {
    use nix::sys::socket as s;
    let raw = at(machine, || {
        s::socket(s::AddressFamily::Inet, s::SockType::Raw, s::SockFlag::SOCK_CLOEXEC, s::SockProtocol::Icmp)
    });
    let socket = UdpSocket::from(raw.unwrap());
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.send_to(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0], addr(to, 0)).unwrap();
    let mut buffer = [0; 128];
    let n = socket.recv(&mut buffer).unwrap();
    n >= 28 && buffer[12..16] == to.parse::<Ipv4Addr>().unwrap().octets() && buffer[20] == 0
}

#[test]
fn outbound_goes_out_under_the_hosts_address() {
    let lab = Lab::new();
    serve(&lab.client, "client", 80);
    serve_udp(&lab.client, "client", 53);
    let pods = [lab.pod(&spec(vec![]), false), lab.pod(&spec(vec![]), false)];
    for pod in &pods {
        let large: String = (0..300_000).map(|i| char::from(b'a' + (i % 23) as u8)).collect();
        assert_eq!(ask(pod, addr(CLIENT, 80), &large).unwrap(), format!("client: {large}"));
        let got = ask_udp(pod, addr(CLIENT, 53), "hi").unwrap();
        assert_eq!(got, format!("client: hi from {HOST}"));
        assert!(ping(pod, CLIENT) && ping(pod, &GATEWAY.to_string()));
    }
}

#[test]
fn icmp_errors_find_the_socket_they_are_about() {
    let lab = Lab::new();
    let pod = lab.pod(&spec(vec![publish(0, 9, true)]), false);
    // Out of the pod: the client has no such port.
    let refused = ask_udp(&pod, addr(CLIENT, 9), "x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    // Into the pod: it does not listen.
    let port = pod.link.ports()[0].host.port();
    for (asker, to) in [(&lab.client, HOST), (&lab.host, HOST), (&lab.host, "127.0.0.1")] {
        let refused = ask_udp(asker, addr(to, port), "x").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{to}");
    }
    // Path MTU: a narrower way behind the host reaches the pod's own route.
    shell(&lab.client, "ip link set lan0 mtu 1200");
    shell(&lab.host, &format!("ip link set client mtu 1200; ip link set {BRIDGE} mtu 1200"));
    let socket = at(&pod, || UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.connect(addr(CLIENT, 9)).unwrap();
    until("the path MTU", || {
        let _ = socket.send(&[0; 1400]);
        shell(&pod, &format!("ip route get {CLIENT}")).contains("mtu 1200").then_some(())
    });
}

#[test]
fn a_pod_reaches_nothing_on_the_hosts_loopback_and_cannot_pose_as_another() {
    let lab = Lab::new();
    let pod = lab.pod(&spec(vec![]), false);
    let secret = at(&lab.host, || UdpSocket::bind("127.0.0.1:77").unwrap());
    secret.set_read_timeout(Some(Duration::from_millis(60))).unwrap();
    let seen = at(&lab.client, || UdpSocket::bind("0.0.0.0:77").unwrap());
    seen.set_read_timeout(Some(Duration::from_millis(60))).unwrap();
    // As a pod with rights over its own link would: 127/8 routed out of it, and a second source address.
    shell(
        &pod,
        "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; ip addr del 127.0.0.1/8 dev lo; \
         ip route del local 127.0.0.0/8 dev lo 2>/dev/null; \
         ip route add 127.0.0.1/32 via 169.254.90.1 dev eth0 onlink; ip addr add 10.1.1.1/32 dev eth0",
    );
    at(&pod, || {
        let socket = UdpSocket::bind(addr(INSIDE, 0)).unwrap();
        let _ = socket.send_to(b"x", "127.0.0.1:77");
        let posing = UdpSocket::bind("10.1.1.1:0").unwrap();
        let _ = posing.send_to(b"x", addr(CLIENT, 77));
    });
    assert!(secret.recv(&mut [0; 8]).is_err(), "the host's loopback was reached");
    assert!(seen.recv(&mut [0; 8]).is_err(), "a foreign source got out");
    at(&pod, || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", addr(CLIENT, 77))).unwrap();
    seen.recv(&mut [0; 8]).expect("its own source gets out");
}

#[test]
fn a_taken_port_is_refused_by_name_and_ports_are_given_back() {
    let lab = Lab::new();
    let other = at(&lab.host, || TcpListener::bind("0.0.0.0:0").unwrap());
    let port = other.local_addr().unwrap().port();
    let attempt = |spec: &NetSpec| {
        let netns = new_netns().unwrap();
        at(&lab.host, || attach(spec, netns.as_fd(), &fresh_id(), false))
    };
    let failure = Failure::from(attempt(&spec(vec![publish(port, 80, false)])).unwrap_err());
    assert_eq!(failure.kind, Kind::Taken);
    assert!(failure.to_string().contains(&port.to_string()), "{failure}");
    drop(other);
    until("the port to be free", || at(&lab.host, || TcpListener::bind(addr(HOST, port))).ok());

    let pod = lab.pod(&spec(vec![publish(port, 80, false), publish(port, 80, true)]), false);
    assert_eq!(pod.link.ports()[0].to_string(), format!("80/tcp -> 0.0.0.0:{port}"));
    for udp in [false, true] {
        let failure = Failure::from(attempt(&spec(vec![publish(port, 81, udp)])).unwrap_err());
        assert_eq!(failure.kind, Kind::Taken);
    }
    let reuse = at(&lab.host, || TcpListener::bind(addr(HOST, port)));
    assert!(reuse.is_err(), "another program could still bind the port");
    at(&lab.host, || detach(&pod.link)).unwrap();
    until("the port to be given back", || at(&lab.host, || TcpListener::bind(addr(HOST, port))).ok());
    let again = lab.pod(&spec(vec![publish(port, 80, false)]), false);
    serve(&again, "again", 80);
    assert_eq!(ask(&lab.client, addr(HOST, port), "x").unwrap(), "again: x");
}

#[test]
fn an_address_of_the_host_narrows_a_published_port() {
    let lab = Lab::new();
    let local = Publish { host_ip: Some(Ipv4Addr::LOCALHOST), ..publish(0, 80, false) };
    let pod = lab.pod(&spec(vec![local]), false);
    serve(&pod, "pod", 80);
    let port = pod.link.ports()[0].host.port();
    assert_eq!(ask(&lab.host, addr("127.0.0.1", port), "x").unwrap(), "pod: x");
    assert!(ask(&lab.client, addr(HOST, port), "x").is_err());
    let foreign = Publish { host_ip: Some(Ipv4Addr::new(198, 51, 100, 1)), ..publish(0, 80, false) };
    let failed = at(&lab.host, || plan(&spec(vec![Publish { host_port: 8080, ..foreign }]), &fresh_id()));
    assert_eq!(Failure::from(failed.unwrap_err()).kind, Kind::Usage);
    let twice = spec(vec![publish(8080, 80, false), publish(8080, 81, false)]);
    let failed = at(&lab.host, || plan(&twice, &fresh_id()));
    assert_eq!(Failure::from(failed.unwrap_err()).kind, Kind::Usage);
}

#[test]
fn other_traffic_through_the_host_keeps_its_port() {
    // A published port must not catch what is only forwarded: the pod's own way out to the same port elsewhere.
    let lab = Lab::new();
    serve(&lab.client, "client", 8080);
    let pod = lab.pod(&spec(vec![publish(8080, 80, false)]), false);
    serve(&pod, "pod", 80);
    assert_eq!(ask(&pod, addr(CLIENT, 8080), "x").unwrap(), "client: x");
    assert_eq!(ask(&lab.client, addr(HOST, 8080), "x").unwrap(), "pod: x");
}

#[test]
fn a_net_in_use_on_the_host_gives_no_transit_addresses() {
    let lab = Lab::new();
    shell(&lab.host, &format!("ip addr add 10.91.7.7/16 dev {BRIDGE}"));
    let pod = lab.pod(&spec(vec![]), false);
    let IpAddr::V4(transit) = pod.link.address().unwrap() else { panic!("v4") };
    assert_eq!(transit.octets()[..2], [10, 92]);
}

#[test]
fn a_held_nat_pod_is_silent_and_a_failed_attach_leaves_nothing() {
    let lab = Lab::new();
    let pod = lab.pod(&spec(vec![publish(0, 53, true)]), true);
    serve_udp(&pod, "pod", 53);
    let port = pod.link.ports()[0].host.port();
    let socket = at(&lab.client, || UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    socket.send_to(b"x", addr(HOST, port)).unwrap();
    assert!(socket.recv(&mut [0; 64]).is_err());
    let mut hold = Hold::open(pod.as_fd(), &NetMode::Nat).unwrap();
    at(&lab.host, || release(&pod.link)).unwrap();
    hold.lift().unwrap();
    let got = ask_udp(&lab.client, addr(HOST, port), "x").unwrap();
    assert_eq!(got, format!("pod: x from {CLIENT}"));
    at(&lab.host, || detach(&pod.link)).unwrap();
    assert_eq!(litter(&lab.host), "");

    // The namespace has a default route already: the last step fails.
    let netns = new_netns().unwrap();
    at(&netns, || {
        let mut route = Route::open().unwrap();
        route.set_up(1).unwrap();
        route.add_bridge("other").unwrap();
        let other = route.iface("other").unwrap().unwrap().index;
        let via = Some(ip("192.0.2.77"));
        route.add_route(&NewRoute { dst: ip("0.0.0.0"), prefix: 0, via, oif: other, src: None }).unwrap();
    });
    let taken = spec(vec![publish(port, 53, true)]);
    at(&lab.host, || attach(&taken, netns.as_fd(), &fresh_id(), false)).unwrap_err();
    assert_eq!(litter(&lab.host), "");
    until("the port to be given back", || at(&lab.host, || UdpSocket::bind(addr("0.0.0.0", port))).ok());
}

#[test]
fn a_stored_record_is_adopted_with_its_ports_and_swept_without_one() {
    let lab = Lab::new();
    let pod = lab.pod(&spec(vec![publish(0, 80, false)]), false);
    let stored = postcard::to_allocvec(&pod.link).unwrap();
    let (id, port) = (pod.link.id.clone(), pod.link.ports()[0].host.port());
    let Pod { link, netns } = pod;
    drop(link);
    // Not at once: a child that another test forks has our descriptors up to its exec.
    until("the port to be free", || at(&lab.host, || TcpListener::bind(addr(HOST, port))).ok());
    let mut read: Link = postcard::from_bytes(&stored).unwrap();
    until("the port", || at(&lab.host, || read.adopt(Some(netns.as_fd()))).ok());
    assert!(at(&lab.host, || TcpListener::bind(addr(HOST, port))).is_err());
    drop(read);
    assert!(at(&lab.host, || sweep(&id)).unwrap());
    assert_eq!(litter(&lab.host), "");
}

#[test]
fn flows_of_before_and_after_find_their_way() {
    let lab = Lab::new();
    // A first pod makes the host track connections at all.
    let _first = lab.pod(&spec(vec![]), false);
    let early = at(&lab.client, || UdpSocket::bind("0.0.0.0:0").unwrap());
    early.set_read_timeout(Some(LIMIT)).unwrap();
    early.connect(addr(HOST, 5353)).unwrap();
    early.send(b"too early").unwrap();
    assert!(early.recv(&mut [0; 64]).is_err(), "nobody listens yet");
    let pod = lab.pod(&spec(vec![publish(5353, 53, true), publish(0, 80, false)]), false);
    serve_udp(&pod, "pod", 53);
    serve(&pod, "pod", 80);
    early.send(b"now").unwrap();
    let mut buffer = [0; 64];
    let n = early.recv(&mut buffer).expect("an entry of before keeps the client out");
    assert!(buffer[..n].starts_with(b"pod: now"));

    let mut stream = connect(&lab.client, addr(HOST, pod.link.ports()[1].host.port())).unwrap();
    ask_on(&mut stream, "x").unwrap();
    Hold::open(pod.as_fd(), &NetMode::Nat).unwrap().engage().unwrap();
    at(&lab.host, || detach(&pod.link)).unwrap();
    let ended = ask_on(&mut stream, "gone?").unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
    early.send(b"gone?").unwrap();
    let refused = early.recv(&mut buffer).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn ids_that_choose_the_same_transit_address_get_two() {
    let lab = Lab::new();
    let base = u64::from(std::process::id()) << 40;
    let links: Vec<(Link, OwnedFd)> = [base | 0x5_0007, base | 0x9_0003]
        .map(|bits| {
            let netns = new_netns().unwrap();
            let id = PodId::from_bits(bits);
            let link = at(&lab.host, || attach(&spec(vec![]), netns.as_fd(), &id, false)).unwrap();
            (link, netns)
        })
        .into();
    let [a, b] = [0, 1].map(|i: usize| links[i].0.address().unwrap());
    assert_eq!([a, b], [ip("10.91.0.12"), ip("10.91.0.13")]);
}
