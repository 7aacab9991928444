//! Signals: handlers, masks, queued real-time signals with their values in order, an alternate stack, job control ignored.

use crate::wait;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

static GOT: [AtomicI32; 8] = [const { AtomicI32::new(0) }; 8];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static ON_ALT: AtomicUsize = AtomicUsize::new(0);

extern "C" fn handler(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let n = COUNT.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the kernel gives a valid siginfo of a queued signal, which has a value.
    let value = unsafe { (*info).si_value().sival_ptr as usize as i32 };
    if let Some(slot) = GOT.get(n) {
        slot.store(value, Ordering::SeqCst);
    }
    let here = &raw const n as usize;
    ON_ALT.store(here, Ordering::SeqCst);
}

fn act(signal: i32, handler: usize, flags: i32, mask: &[i32]) -> libc::sigaction {
    // SAFETY: zeroed sigaction and sigset are valid; the handler is async-signal-safe.
    unsafe {
        let mut new: libc::sigaction = std::mem::zeroed();
        let mut old: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = handler;
        new.sa_flags = flags;
        for s in mask {
            libc::sigaddset(&mut new.sa_mask, *s);
        }
        assert_eq!(libc::sigaction(signal, &new, &mut old), 0);
        old
    }
}

fn block(signal: i32, how: i32) {
    // SAFETY: plain sigset calls on a local.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, signal);
        assert_eq!(libc::sigprocmask(how, &set, std::ptr::null_mut()), 0);
    }
}

pub fn run() {
    let rt = libc::SIGRTMIN() + 3;
    let stack = vec![0u8; 64 << 10].leak();
    let alt = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the stack lives for ever.
    assert_eq!(unsafe { libc::sigaltstack(&alt, std::ptr::null_mut()) }, 0);
    let flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    act(rt, handler as *const () as usize, flags, &[libc::SIGUSR2]);
    act(libc::SIGHUP, libc::SIG_IGN, 0, &[]);
    block(rt, libc::SIG_BLOCK);
    block(libc::SIGUSR1, libc::SIG_BLOCK);
    for value in 1..=5usize {
        let value = libc::sigval { sival_ptr: value as *mut libc::c_void };
        // SAFETY: a signal to ourselves.
        assert_eq!(unsafe { libc::sigqueue(libc::getpid(), rt, value) }, 0);
    }
    // SAFETY: a signal to this very thread.
    unsafe { libc::raise(libc::SIGUSR1) };
    wait();
    assert_eq!(COUNT.load(Ordering::SeqCst), 0, "blocked signals stayed blocked");
    // SAFETY: reads the pending set into a local.
    let pending = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&mut set);
        libc::sigismember(&set, libc::SIGUSR1) == 1 && libc::sigismember(&set, rt) == 1
    };
    assert!(pending, "pending signals");
    block(rt, libc::SIG_UNBLOCK);
    let got: Vec<i32> = GOT.iter().take(5).map(|g| g.load(Ordering::SeqCst)).collect();
    assert_eq!(got, [1, 2, 3, 4, 5], "queued values in order");
    let at = ON_ALT.load(Ordering::SeqCst);
    let range = stack.as_ptr() as usize..stack.as_ptr() as usize + stack.len();
    assert!(range.contains(&at), "the handler ran on the alternate stack");
    let old = act(rt, libc::SIG_DFL, 0, &[]);
    assert_eq!(old.sa_flags & flags, flags, "flags of the action");
    // SAFETY: reads a set.
    assert_eq!(unsafe { libc::sigismember(&old.sa_mask, libc::SIGUSR2) }, 1, "mask of the action");
    assert_eq!(act(libc::SIGHUP, libc::SIG_DFL, 0, &[]).sa_sigaction, libc::SIG_IGN, "ignored signal");
}
