//! One BPF program (bpf(2)): it counts the calls of setsockopt(2) on IPv4 and IPv6 sockets of one network namespace, and does
//! nothing else. While the count stays, no option of any of them was changed.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Commands of bpf(2).
const MAP_CREATE: i32 = 0;
const MAP_LOOKUP: i32 = 1;
const PROG_LOAD: i32 = 5;
const LINK_CREATE: i32 = 28;
/// `BPF_MAP_TYPE_ARRAY`, `BPF_PROG_TYPE_CGROUP_SOCKOPT`, `BPF_CGROUP_SETSOCKOPT`.
const ARRAY: u32 = 2;
const CGROUP_SOCKOPT: u32 = 25;
const CGROUP_SETSOCKOPT: u32 = 22;
/// Helpers `bpf_map_lookup_elem`, `bpf_get_netns_cookie`.
const LOOKUP_ELEM: i32 = 1;
const NETNS_COOKIE: i32 = 122;
/// `optlen` in `struct bpf_sockopt`.
const OPTLEN: i16 = 32;

/// `family` in `struct bpf_sock`.
const FAMILY: i16 = 4;

/// A running count. The kernel forgets program and count when it is dropped, or when its process dies.
#[derive(Debug)]
pub struct SetsockoptWatch {
    map: OwnedFd,
    _link: OwnedFd,
}

impl SetsockoptWatch {
    /// Begins to count for IPv4 and IPv6 sockets of the network namespace with this cookie (SO_NETNS_COOKIE), as far as they belong to
    /// `cgroup` (v2) or a group below. Errors: EPERM, EINVAL (CONFIG_CGROUP_BPF is not set).
    pub fn on(cgroup: impl AsFd, netns_cookie: u64) -> Result<Self, Errno> {
        let mut attr = Attr::new();
        attr.u32(0, ARRAY).u32(4, 4).u32(8, 8).u32(12, 1);
        let map = attr.make(MAP_CREATE)?;
        let program = program(map.as_raw_fd(), netns_cookie);
        let mut attr = Attr::new();
        attr.u32(0, CGROUP_SOCKOPT).u32(4, (program.len() / 8) as u32);
        attr.u64(8, program.as_ptr() as u64).u64(16, c"GPL".as_ptr() as u64).u32(68, CGROUP_SETSOCKOPT);
        let loaded = attr.make(PROG_LOAD)?;
        let mut attr = Attr::new();
        attr.u32(0, loaded.as_raw_fd() as u32).u32(4, cgroup.as_fd().as_raw_fd() as u32);
        attr.u32(8, CGROUP_SETSOCKOPT);
        Ok(Self { map, _link: attr.make(LINK_CREATE)? })
    }

    /// Calls so far, counted before each does its work.
    pub fn count(&self) -> Result<u64, Errno> {
        let (key, mut value) = (0u32, 0u64);
        let mut attr = Attr::new();
        attr.u32(0, self.map.as_raw_fd() as u32);
        attr.u64(8, (&raw const key) as u64).u64(16, (&raw mut value) as u64);
        attr.call(MAP_LOOKUP)?;
        Ok(value)
    }
}

/// The program: `if family is IPv4 or IPv6 and netns == cookie { *map[0] += 1 }`, the option unchanged and allowed.
fn program(map: i32, cookie: u64) -> Vec<u8> {
    let mut code = Vec::new();
    let mut put = |op: u8, dst: u8, src: u8, off: i16, imm: i32| {
        code.extend([op, dst | src << 4]);
        code.extend(off.to_le_bytes());
        code.extend(imm.to_le_bytes());
    };
    let (low, high) = (cookie as u32 as i32, (cookie >> 32) as u32 as i32);
    put(0xbf, 6, 1, 0, 0); // r6 = context
    put(0xb7, 7, 0, 0, 0); // r7 = 0
    put(0x63, 6, 7, OPTLEN, 0); // optlen = 0: the kernel takes the caller's own bytes, however many
    put(0x79, 2, 6, 0, 0); // r2 = socket
    put(0x61, 2, 2, FAMILY, 0); // r2 = its family
    put(0x15, 2, 0, 1, libc::AF_INET);
    put(0x55, 2, 0, 14, libc::AF_INET6); // neither: out
    put(0xbf, 1, 6, 0, 0); // r1 = context
    put(0x85, 0, 0, 0, NETNS_COOKIE); // r0 = cookie of the socket's namespace
    put(0x18, 2, 0, 0, low); // r2 = ours
    put(0, 0, 0, 0, high);
    put(0x5d, 0, 2, 9, 0); // another: out
    put(0x63, 10, 7, -4, 0); // key 0 on the stack
    put(0xbf, 2, 10, 0, 0); // r2 = its address
    put(0x07, 2, 0, 0, -4);
    put(0x18, 1, 1, 0, map); // r1 = map
    put(0, 0, 0, 0, 0);
    put(0x85, 0, 0, 0, LOOKUP_ELEM); // r0 = its value
    put(0x15, 0, 0, 2, 0); // none: out (two on, past the next two)
    put(0xb7, 1, 0, 0, 1); // r1 = 1
    put(0xdb, 0, 1, 0, 0); // *r0 += r1, atomically
    put(0xb7, 0, 0, 0, 1); // allowed
    put(0x95, 0, 0, 0, 0); // exit
    code
}

/// `union bpf_attr`, by offset.
struct Attr([u8; 128]);

impl Attr {
    fn new() -> Self {
        Self([0; 128])
    }
    fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }
    fn u64(&mut self, at: usize, value: u64) -> &mut Self {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }
    fn call(&mut self, command: i32) -> Result<i32, Errno> {
        // SAFETY: the kernel reads the 128 bytes; pointers in them are to memory that lives over the call and is as long as
        // the other fields say.
        let got = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        Errno::result(got).map(|fd| fd as i32)
    }
    fn make(&mut self, command: i32) -> Result<OwnedFd, Errno> {
        // SAFETY: these commands return a new descriptor, ours alone.
        self.call(command).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::cgroup::Hierarchies;
    use crate::kernel::sock;

    #[test]
    fn options_set_in_the_namespace_are_counted() {
        let socket = sock::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let cookie = sock::get(&socket, libc::SOL_SOCKET, 71, 8).unwrap();
        let cookie = u64::from_ne_bytes(cookie.try_into().unwrap());
        let root = Hierarchies::detect().unwrap().v2.expect("a v2 hierarchy");
        let root = std::fs::File::open(root).unwrap();
        // A namespace nobody is in: nothing is counted, and the call works as ever.
        let none = SetsockoptWatch::on(&root, u64::MAX).unwrap();
        let ours = SetsockoptWatch::on(&root, cookie).unwrap();
        let before = ours.count().unwrap();
        sock::set_i32(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1).unwrap();
        sock::set(&socket, libc::SOL_SOCKET, libc::SO_LINGER, &[0; 8]).unwrap();
        let after = ours.count().unwrap();
        assert!(after >= before + 2);
        assert_eq!(none.count().unwrap(), 0);
        assert_eq!(sock::get_i32(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY), Ok(1));
        assert!(sock::set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &[0; 8192]).is_err());
    }
}
