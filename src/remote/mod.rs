//! Acting inside another process: stopped tasks as types, batches of syscalls, the stub that survives us.
//!
//! * [`Running`] → [`Stopped`] are threads we trace; verbs consume them, a task that died is [`Error::Gone`].
//! * [`Batch`] is a list of syscalls as data; [`Results`] is what it brought back.
//! * [`Session`] runs batches in a program we do not own, which survives our death at any moment.
//! * [`Slot`] runs batches in a task we own (a skeleton, the pod's init at the target).
//!
//! All requests for a task come from the thread that seized it; the types are not `Send`.

mod batch;
mod error;
mod frame;
mod gadget;
mod mem;
mod restart;
mod run;
mod seccomp;
mod session;
mod slot;
mod stub;
mod task;

pub use batch::{Arg, Batch, CallIx, Data, MARK, Results};
pub use error::{Error, Result};
pub use mem::Mem;
pub use session::{Session, WINDOW, is_scratch};
pub use slot::{Slot, child_pids, new_child, thread_tids};
pub use task::{Fate, Progress, Running, Saved, Stopped, Why};

pub use crate::kernel::ptrace::{Regs, RseqConfig, SigInfo, option};
