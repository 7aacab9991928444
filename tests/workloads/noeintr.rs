//! The calls the kernel never restarts by itself: none may return EINTR, whatever is done to the pod.
//!
//! Each thread blocks in one of them with no signal handler installed and reports whatever it returns.

use crate::wait;
use nix::errno::Errno;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A blocking call with a time limit of a few seconds; returns its result.
type Call = Box<dyn Fn() -> Result<i64, Errno> + Send>;

fn call(nr: libc::c_long, a: [usize; 6]) -> Result<i64, Errno> {
    // SAFETY: each caller passes pointers to memory that outlives the call.
    Errno::result(unsafe { libc::syscall(nr, a[0], a[1], a[2], a[3], a[4], a[5]) })
}

fn epoll() -> usize {
    call(libc::SYS_epoll_create1, [0; 6]).expect("epoll") as usize
}

fn calls() -> Vec<(&'static str, Call)> {
    let room = || Box::leak(Box::new([0u64; 64])).as_mut_ptr() as usize;
    let limit = Box::leak(Box::new(libc::timespec { tv_sec: 3, tv_nsec: 0 })) as *const _ as usize;
    let set = Box::leak(Box::new(1u64 << (libc::SIGUSR1 - 1))) as *const _ as usize;
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(3))).expect("timeout");
    let tv = libc::timeval { tv_sec: 3, tv_usec: 0 };
    let size = size_of::<libc::timeval>() as u32;
    // SAFETY: a socket option from a local.
    let set_timeout = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const tv).cast(),
            size,
        )
    };
    assert_eq!(set_timeout, 0);
    let (e1, e2, e3) = (epoll(), epoll(), epoll());
    let (b1, b2, b3, b4) = (room(), room(), room(), room());
    vec![
        ("epoll_wait", Box::new(move || call(libc::SYS_epoll_wait, [e1, b1, 8, 3000, 0, 0]))),
        ("epoll_pwait", Box::new(move || call(libc::SYS_epoll_pwait, [e2, b2, 8, 3000, 0, 8]))),
        ("epoll_pwait2", Box::new(move || call(libc::SYS_epoll_pwait2, [e3, b3, 8, limit, 0, 8]))),
        ("rt_sigtimedwait", Box::new(move || call(libc::SYS_rt_sigtimedwait, [set, 0, limit, 8, 0, 0]))),
        ("accept", {
            Box::new(move || call(libc::SYS_accept4, [listener.as_raw_fd() as usize, 0, 0, 0, 0, 0]))
        }),
        ("recvfrom", {
            Box::new(move || call(libc::SYS_recvfrom, [socket.as_raw_fd() as usize, b4, 8, 0, 0, 0]))
        }),
    ]
}

pub fn run() {
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = calls()
        .into_iter()
        .map(|(name, call)| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    if call() == Err(Errno::EINTR) {
                        eprintln!("{name} returned EINTR");
                        std::process::exit(4);
                    }
                }
            })
        })
        .collect();
    wait();
    stop.store(true, Ordering::SeqCst);
    for t in threads {
        t.join().expect("thread");
    }
}
