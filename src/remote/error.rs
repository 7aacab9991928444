//! What can go wrong with a task of another process, with the task in it.

use crate::base::{Failure, Kind, RemoteAddr};
use nix::errno::Errno;
use std::time::Duration;

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure with the task concerned (host ids everywhere).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The task ended. Often no fault at all.
    #[error("task {0} ended")]
    Gone(i32),
    /// Somebody else traces it.
    #[error("task {tid} ({name}) is traced by process {tracer} ({tracer_name})")]
    Traced {
        /// Thread.
        tid: i32,
        /// Its name.
        name: String,
        /// Who traces it.
        tracer: i32,
        /// The tracer's name.
        tracer_name: String,
    },
    /// We may not trace it.
    #[error(
        "task {tid} ({name}): tracing it is not permitted (CAP_SYS_PTRACE over its user namespace is needed)"
    )]
    Denied {
        /// Thread.
        tid: i32,
        /// Its name.
        name: String,
    },
    /// A ptrace or wait request failed.
    #[error("task {tid}: {op}")]
    Sys {
        /// Thread.
        tid: i32,
        /// Request.
        op: &'static str,
        /// Reason.
        source: Errno,
    },
    /// Its `/proc` file could not be read.
    #[error("task {tid}: reading /proc/{tid}/{file}")]
    Proc {
        /// Thread.
        tid: i32,
        /// File below its directory.
        file: &'static str,
        /// Reason.
        source: std::io::Error,
    },
    /// Its memory could not be read or written.
    #[error("task {tid}: {op} {len} bytes of its memory at {addr:?}")]
    Mem {
        /// Thread.
        tid: i32,
        /// "read" or "write".
        op: &'static str,
        /// Where.
        addr: RemoteAddr,
        /// How much, in bytes.
        len: usize,
        /// Reason.
        source: std::io::Error,
    },
    /// It did not stop (or its batch did not end) in time.
    #[error("task {tid} ({name}, state {state}): {what} took longer than {limit:?}")]
    Slow {
        /// Thread.
        tid: i32,
        /// Its name.
        name: String,
        /// Its state letter.
        state: char,
        /// What was waited for.
        what: &'static str,
        /// Bound.
        limit: Duration,
    },
    /// A batch larger than its area.
    #[error("task {tid}: a batch of {need} bytes does not fit its area of {have}")]
    TooBig {
        /// Thread.
        tid: i32,
        /// Bytes needed.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
    /// The stub was hit by a signal it cannot have caused in good health.
    #[error("task {tid}: signal {signal} at {rip:?} while our code ran in it")]
    Fault {
        /// Thread.
        tid: i32,
        /// Signal.
        signal: i32,
        /// Instruction.
        rip: RemoteAddr,
    },
    /// 32-bit (compat) or x32 code.
    #[error("process {pid} runs 32-bit code, which is not supported")]
    Compat {
        /// Process.
        pid: i32,
    },
    /// The code the first call needs is nowhere in the program.
    #[error("process {pid}: none of its executable mappings has {what}")]
    NoGadget {
        /// Process.
        pid: i32,
        /// The instructions looked for.
        what: &'static str,
    },
    /// No signal is free to end a batch with.
    #[error(
        "process {pid} catches, blocks or has pending each of SIGURG, SIGWINCH and SIGCHLD: no signal is left to end a batch with"
    )]
    NoMarker {
        /// Process.
        pid: i32,
    },
    /// Seccomp would refuse a call.
    #[error("process {pid}: its seccomp filter does not allow {call} (syscall {nr})")]
    Seccomp {
        /// Process.
        pid: i32,
        /// Syscall number.
        nr: i64,
        /// What it is for.
        call: &'static str,
    },
    /// Seccomp mode that allows nothing.
    #[error("process {pid} is in seccomp strict mode")]
    SeccompStrict {
        /// Process.
        pid: i32,
    },
    /// Syscall user dispatch would catch our calls.
    #[error("task {tid} has syscall user dispatch on (Wine does this)")]
    UserDispatch {
        /// Thread.
        tid: i32,
    },
    /// The first or last call in a process failed.
    #[error("process {pid}: {call} for the scratch area")]
    Bootstrap {
        /// Process.
        pid: i32,
        /// Call.
        call: &'static str,
        /// Reason.
        source: Errno,
    },
    /// A batch may only run with the whole process stopped.
    #[error("process {pid}: thread {tid} is not stopped")]
    SiblingRuns {
        /// Process.
        pid: i32,
        /// The thread that could run.
        tid: i32,
    },
}

impl Error {
    /// For `map_err`: ESRCH means the task is gone.
    pub(crate) fn sys(tid: i32, op: &'static str) -> impl Fn(Errno) -> Error {
        move |source| match source {
            Errno::ESRCH => Error::Gone(tid),
            source => Error::Sys { tid, op, source },
        }
    }

    /// For `map_err` on `/proc` reads: a directory that is not there means the task is gone.
    pub(crate) fn proc(tid: i32, file: &'static str) -> impl Fn(std::io::Error) -> Error {
        move |source| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Error::Gone(tid),
            _ => Error::Proc { tid, file, source },
        }
    }

    /// True when the task simply ended.
    pub fn is_gone(&self) -> bool {
        matches!(self, Error::Gone(_))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let remedy = match &error {
            Error::Traced { tracer, .. } => format!("end the debugger, process {tracer}"),
            Error::Denied { .. } => "run podmig as root".to_owned(),
            _ => String::new(),
        };
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Failure::new(Kind::Failed, "", message).remedy(remedy)
    }
}
