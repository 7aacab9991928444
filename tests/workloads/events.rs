//! eventfd, epoll (edge, one-shot, closed numbers), signalfd, a timer in the set.

use crate::wait;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{dup, pipe, write};

fn ready(epoll: &Epoll) -> Vec<u64> {
    let mut events = [EpollEvent::empty(); 16];
    let n = epoll.wait(&mut events, EpollTimeout::from(50u16)).expect("epoll_wait");
    let mut data: Vec<u64> = events[..n].iter().map(EpollEvent::data).collect();
    data.sort_unstable();
    data
}

pub fn run() {
    let counter = EventFd::from_value_and_flags(5, EfdFlags::EFD_NONBLOCK).expect("eventfd");
    let semaphore =
        EventFd::from_value_and_flags(3, EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_NONBLOCK).expect("eventfd");
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGUSR1);
    mask.thread_block().expect("block");
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK).expect("signalfd");
    raise(Signal::SIGUSR1).expect("raise");
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
    let (quiet, into) = pipe().expect("pipe");
    let (once, once_in) = pipe().expect("pipe");
    let add = |fd: &dyn std::os::fd::AsFd, flags, data| {
        epoll.add(fd.as_fd(), EpollEvent::new(flags, data)).expect("epoll_ctl");
    };
    add(&counter, EpollFlags::EPOLLIN, 1);
    add(&quiet, EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0xdead_beef_0000_0002);
    add(&once, EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, 3);
    // An entry whose number is closed again, while the description lives on under another.
    let alias = dup(&quiet).expect("dup");
    add(&alias, EpollFlags::EPOLLIN, 4);
    drop(alias);
    write(&once_in, b"x").expect("write");
    assert!(ready(&epoll).contains(&3));
    assert!(!ready(&epoll).contains(&3), "one-shot is disarmed");
    wait();
    assert_eq!(counter.read(), Ok(5), "counter");
    assert_eq!(semaphore.read(), Ok(1), "semaphore reads one at a time");
    assert_eq!(semaphore.read(), Ok(1));
    assert_eq!(semaphore.read(), Ok(1));
    assert!(semaphore.read().is_err(), "semaphore is empty");
    let info = signals.read_signal().expect("signalfd").expect("a signal is pending");
    assert_eq!(info.ssi_signo, Signal::SIGUSR1 as u32);
    assert_eq!(ready(&epoll), Vec::<u64>::new(), "nothing is ready, the one-shot entry is still disarmed");
    write(&into, b"y").expect("write");
    assert_eq!(ready(&epoll), [4, 0xdead_beef_0000_0002], "both entries of one description");
    let again = EpollEvent::new(EpollFlags::EPOLLIN, 33);
    let mut again = again;
    epoll.modify(&once, &mut again).expect("the entry is known under its number");
    assert!(ready(&epoll).contains(&33), "armed again");
    epoll.delete(&counter).expect("delete");
}
