//! Signal handlers and alternate stacks, asked of the process itself; masks and queues read from outside.

use super::{ProcessSignals, QueuedSignal, SigAction, ThreadSignals};
use crate::kernel::procfs::Status;
use crate::remote::{Arg, Batch, CallIx, Data, Results, Stopped};
use crate::state::error::Error;
use nix::errno::Errno;

/// Signals there are.
const SIGNALS: usize = 64;
/// Size of `struct kernel_sigaction` in bytes: handler, flags, restorer, mask.
const ACTION: usize = 32;

/// What a process was asked.
#[derive(Clone, Debug)]
pub struct AskedProcess {
    actions: Data,
    calls: Vec<CallIx>,
}

/// What a thread was asked.
#[derive(Clone, Copy, Debug)]
pub struct AskedThread {
    stack: Data,
    call: CallIx,
}

/// Appends the process's questions to a batch.
pub fn ask_process(batch: &mut Batch) -> AskedProcess {
    let actions = batch.out(SIGNALS * ACTION);
    let calls = (0..SIGNALS)
        .map(|i| {
            let at = Arg::Data(actions, i * ACTION);
            batch.call(libc::SYS_rt_sigaction, &[(i + 1).into(), 0u64.into(), at, 8u64.into()])
        })
        .collect();
    AskedProcess { actions, calls }
}

/// Appends a thread's questions to a batch that runs in it.
pub fn ask_thread(batch: &mut Batch) -> AskedThread {
    let stack = batch.out(24);
    let call = batch.call(libc::SYS_sigaltstack, &[0u64.into(), stack.into()]);
    AskedThread { stack, call }
}

/// What all threads share; `leader` is any stopped thread of the process, `status` its `status`.
pub fn process(
    leader: &Stopped,
    status: &Status,
    asked: &AskedProcess,
    results: &Results,
) -> Result<ProcessSignals, Error> {
    let mut actions = Vec::with_capacity(SIGNALS);
    for (i, call) in asked.calls.iter().enumerate() {
        results.ret(*call).map_err(|e| fail(leader, "rt_sigaction(2)", e))?;
        let word = |n: usize| results.word(asked.actions, i * ACTION + 8 * n);
        actions.push(SigAction { handler: word(0), flags: word(1), restorer: word(2), mask: word(3) });
    }
    Ok(ProcessSignals { actions, pending: queue(leader, true, status.shared_pending)? })
}

/// What is a thread's own.
pub fn thread(
    thread: &Stopped,
    status: &Status,
    asked: AskedThread,
    results: &Results,
) -> Result<ThreadSignals, Error> {
    results.ret(asked.call).map_err(|e| fail(thread, "sigaltstack(2)", e))?;
    let (sp, size) = (results.word(asked.stack, 0), results.word(asked.stack, 16));
    Ok(ThreadSignals {
        mask: thread.sigmask()?,
        pending: queue(thread, false, status.pending)?,
        altstack: (sp, results.int(asked.stack, 8), size),
    })
}

/// A queue in order; not asked for where `status` shows none pending.
fn queue(thread: &Stopped, shared: bool, pending: u64) -> Result<Vec<QueuedSignal>, Error> {
    if pending == 0 {
        return Ok(Vec::new());
    }
    let queue = thread.peek_siginfo(shared)?;
    Ok(queue.into_iter().map(|info| QueuedSignal { info: info.to_vec() }).collect())
}

fn fail(thread: &Stopped, what: &str, e: Errno) -> Error {
    Error::read(thread.tid(), what)(e)
}
