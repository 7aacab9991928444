//! A new pod out of an image: another identity, the same state, but for connections to the outside, which stay with
//! the original.

use super::source::random;
use crate::base::{Failure, Kind, PodId, PodName};
use crate::image::record::Manifest;
use crate::state::PodState;
use crate::state::fd::FileKind;
use crate::state::inet::{Ended, TcpSocket, TcpState};
use std::net::{IpAddr, SocketAddr};

/// Gives the manifest a new identity: id, name, hardware address; no published ports.
///
/// # Errors
/// The name made of the original's is too long.
pub fn identity(manifest: &mut Manifest, name: Option<&PodName>) -> Result<(), Failure> {
    let spec = &mut manifest.spec;
    spec.name = match name {
        Some(name) => name.clone(),
        None => {
            let letters: String =
                random().to_le_bytes().iter().take(4).map(|b| char::from(b'a' + b % 26)).collect();
            let base: String = spec.name.as_str().chars().take(58).collect();
            let text = format!("{base}-{letters}");
            PodName::parse(&text)
                .map_err(|reason| Failure::new(Kind::Usage, text, reason).remedy("give a --name"))?
        }
    };
    spec.id = PodId::from_bits(random());
    spec.net.mac = None;
    spec.net.publish.clear();
    manifest.generation = 0;
    manifest.leave_running = false;
    Ok(())
}

/// Connections to the outside are over (a reset is what the program sees); sockets on the original's address get the
/// clone's. Returns how many connections were left behind.
pub fn connections(state: &mut PodState, before: Option<IpAddr>, after: Option<IpAddr>) -> u64 {
    let mut left = 0;
    for file in &mut state.files {
        match &mut file.kind {
            FileKind::Tcp(tcp) => {
                left += u64::from(cut(tcp));
                readdress(&mut tcp.local, before, after);
                readdress(&mut tcp.peer, before, after);
            }
            FileKind::Udp(udp) => {
                readdress(&mut udp.local, before, after);
                readdress(&mut udp.peer, before, after);
            }
            _ => {}
        }
    }
    left
}

/// Ends a connection whose other end is not in the pod.
fn cut(tcp: &mut TcpSocket) -> bool {
    let inside = match (tcp.local, tcp.peer) {
        (Some(local), Some(peer)) => peer.ip().is_loopback() || peer.ip() == local.ip(),
        _ => true,
    };
    if inside {
        return false;
    }
    match &mut tcp.state {
        TcpState::Linked { link, .. } => {
            let unread = std::mem::take(&mut link.recv.data);
            tcp.state = TcpState::Over { how: Ended::Reset, unread };
            true
        }
        // Asked again, this time by the clone.
        TcpState::SynSent | TcpState::Closed | TcpState::Listen(_) | TcpState::Over { .. } => false,
    }
}

fn readdress(addr: &mut Option<SocketAddr>, before: Option<IpAddr>, after: Option<IpAddr>) {
    if let (Some(addr), Some(before), Some(after)) = (addr, before, after)
        && addr.ip() == before
    {
        addr.set_ip(after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::inet::TcpLink;

    fn linked(local: &str, peer: &str) -> TcpSocket {
        TcpSocket {
            v6: false,
            local: Some(local.parse().unwrap()),
            peer: Some(peer.parse().unwrap()),
            state: TcpState::Linked { state: 1, link: Box::new(TcpLink::default()) },
            options: Vec::new(),
            uid: 0,
        }
    }

    #[test]
    fn only_connections_to_the_outside_are_cut() {
        assert!(cut(&mut linked("10.0.0.5:80", "10.0.0.9:4000")));
        assert!(!cut(&mut linked("127.0.0.1:80", "127.0.0.1:4000")));
        assert!(!cut(&mut linked("10.0.0.5:80", "10.0.0.5:4000")));
    }

    #[test]
    fn addresses_are_rewritten_where_they_are_the_originals() {
        let (old, new) = ("10.0.0.5".parse().ok(), "10.0.0.6".parse().ok());
        let mut addr = "10.0.0.5:80".parse().ok();
        readdress(&mut addr, old, new);
        assert_eq!(addr, "10.0.0.6:80".parse().ok());
        let mut any = "0.0.0.0:80".parse().ok();
        readdress(&mut any, old, new);
        assert_eq!(any, "0.0.0.0:80".parse().ok());
    }
}
