//! Timers: an interval timer with a handler, a POSIX timer, timerfds short and long, absolute and relative.

use crate::wait;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

static ALARMS: AtomicU64 = AtomicU64::new(0);
static POSIX: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_alarm(_: i32) {
    ALARMS.fetch_add(1, Ordering::SeqCst);
}
extern "C" fn on_posix(_: i32) {
    POSIX.fetch_add(1, Ordering::SeqCst);
}

fn more(counter: &AtomicU64, what: &str) {
    let (before, start) = (counter.load(Ordering::SeqCst), Instant::now());
    while counter.load(Ordering::SeqCst) < before + 3 {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} stopped ticking");
        std::thread::yield_now();
    }
}

pub fn run() {
    // SAFETY: handlers only count; the structures are locals the kernel copies.
    let posix = unsafe {
        libc::signal(libc::SIGALRM, on_alarm as *const () as usize);
        libc::signal(libc::SIGUSR2, on_posix as *const () as usize);
        let every = libc::timeval { tv_sec: 0, tv_usec: 10_000 };
        let it = libc::itimerval { it_interval: every, it_value: every };
        assert_eq!(libc::setitimer(libc::ITIMER_REAL, &it, std::ptr::null_mut()), 0);
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGUSR2;
        let mut unused: libc::timer_t = std::mem::zeroed();
        assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut unused), 0);
        let mut timer: libc::timer_t = std::mem::zeroed();
        assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer), 0);
        assert_eq!(libc::timer_delete(unused), 0);
        let every = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        let it = libc::itimerspec { it_interval: every, it_value: every };
        assert_eq!(libc::timer_settime(timer, 0, &it, std::ptr::null_mut()), 0);
        timer
    };
    let short = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::empty()).expect("timerfd");
    let tick = Expiration::Interval(TimeSpec::new(0, 10_000_000));
    short.set(tick, TimerSetTimeFlags::empty()).expect("settime");
    let long = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK).expect("timerfd");
    let hour = Expiration::OneShot(TimeSpec::new(3600, 0));
    long.set(hour, TimerSetTimeFlags::empty()).expect("settime");
    let start = Instant::now();
    wait();
    let passed = start.elapsed();
    more(&ALARMS, "the interval timer");
    more(&POSIX, "the POSIX timer");
    for _ in 0..3 {
        short.wait().expect("timerfd ticks");
    }
    match long.get().expect("gettime").expect("armed") {
        Expiration::OneShot(left) => {
            let left = Duration::from_secs(left.tv_sec() as u64);
            let due = Duration::from_secs(3600) - passed;
            assert!(left <= due + Duration::from_secs(2), "the long timer gained time: {left:?} of {due:?}");
            assert!(left + Duration::from_secs(10) >= due, "the long timer lost time: {left:?} of {due:?}");
        }
        other => panic!("the long timer changed: {other:?}"),
    }
    // SAFETY: the timer exists.
    assert_eq!(unsafe { libc::timer_delete(posix) }, 0, "the POSIX timer's id");
}
