//! Signal actions, queues and alternate stacks, set by the process itself while everything is blocked.

use super::{ProcessSignals, QueuedSignal, ThreadSignals};
use crate::state::script::{About, Script};

const SS_AUTODISARM: i32 = 1 << 31;
const SIG_IGN: u64 = 1;
const INFO: usize = 128;

/// Number of a queued signal; why it is none that can be queued again, otherwise.
pub fn number(q: &QueuedSignal) -> Result<i32, String> {
    let word = q.info.first_chunk::<4>().filter(|_| q.info.len() == INFO).copied();
    match word.map(i32::from_le_bytes) {
        Some(libc::SIGKILL) => Err("SIGKILL is pending: the process is about to end".into()),
        Some(n @ 1..=64) => Ok(n),
        _ => Err(format!("a queued signal of {} bytes makes no sense", q.info.len())),
    }
}

/// Throws away what births and ends of helpers and zombies have sent to this process meanwhile.
pub fn forget(s: &mut Script, signals: &[i32]) {
    let ignore = s.words(&[SIG_IGN, 0, 0, 0]);
    for &n in signals {
        s.must(
            "rt_sigaction (to drop a signal)",
            About::Number(n.into()),
            libc::SYS_rt_sigaction,
            &[n.into(), ignore.into(), 0u64.into(), 8u64.into()],
        );
    }
}

/// All actions.
pub fn actions(s: &mut Script, p: &ProcessSignals) {
    for (n, a) in (1..=64i32).zip(&p.actions) {
        if n == libc::SIGKILL || n == libc::SIGSTOP {
            continue;
        }
        let act = s.words(&[a.handler, a.flags, a.restorer, a.mask]);
        s.must(
            "rt_sigaction",
            About::Number(n.into()),
            libc::SYS_rt_sigaction,
            &[n.into(), act.into(), 0u64.into(), 8u64.into()],
        );
    }
}

/// The process's queue, sent by its leader `pid` to itself. SIGSTOP is left out: see [`stop_pending`].
pub fn process_queue(s: &mut Script, queue: &[QueuedSignal], pid: i32) -> Result<(), String> {
    for q in queue {
        let n = number(q)?;
        if n != libc::SIGSTOP {
            let info = s.data(&q.info);
            s.must(
                "rt_sigqueueinfo",
                About::Number(n.into()),
                libc::SYS_rt_sigqueueinfo,
                &[pid.into(), n.into(), info.into()],
            );
        }
    }
    Ok(())
}

/// A thread's queue, sent by the thread to itself. SIGSTOP is left out: see [`stop_pending`].
pub fn thread_queue(s: &mut Script, queue: &[QueuedSignal], pid: i32, tid: i32) -> Result<(), String> {
    for q in queue {
        let n = number(q)?;
        if n != libc::SIGSTOP {
            let info = s.data(&q.info);
            s.must(
                "rt_tgsigqueueinfo",
                About::Number(n.into()),
                libc::SYS_rt_tgsigqueueinfo,
                &[pid.into(), tid.into(), n.into(), info.into()],
            );
        }
    }
    Ok(())
}

/// Whether SIGSTOP waits in the queue. It cannot be blocked, so it is sent only when nothing is left to run.
pub fn stop_pending(queue: &[QueuedSignal]) -> bool {
    queue.iter().any(|q| number(q) == Ok(libc::SIGSTOP))
}

/// The alternate stack.
pub fn altstack(s: &mut Script, t: &ThreadSignals) {
    let (sp, flags, size) = t.altstack;
    // SS_ONSTACK is an answer, not a setting: it follows from the stack pointer.
    let flags = flags & (libc::SS_DISABLE | SS_AUTODISARM);
    let stack = s.words(&[sp, u64::from(flags as u32), size]);
    s.must("sigaltstack", About::Addr(sp), libc::SYS_sigaltstack, &[stack.into(), 0u64.into()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(n: i32, len: usize) -> QueuedSignal {
        let mut info = n.to_le_bytes().to_vec();
        info.resize(len, 0);
        QueuedSignal { info }
    }

    #[test]
    fn only_whole_signals_are_queued() {
        assert_eq!(number(&queued(10, 128)), Ok(10));
        for bad in
            [queued(10, 64), queued(0, 128), queued(65, 128), queued(9, 128), QueuedSignal { info: vec![] }]
        {
            assert!(number(&bad).is_err());
        }
        assert!(stop_pending(&[queued(10, 128), queued(19, 128)]));
        let mut s = Script::new();
        process_queue(&mut s, &[queued(19, 128), queued(10, 128)], 5).unwrap();
        assert_eq!(s.len(), 1);
    }
}
