//! What a process or thread tells only itself: asked in the batch that runs in it.

use crate::base::Blocker;
use crate::remote::{Arg, Batch, CallIx, Data, Results};
use crate::state::error::{Error, blocker};
use nix::errno::Errno;

/// `linux/prctl.h`, where the C library lacks them.
const PR_GET_MDWE: i32 = 66;
const PR_GET_MEMORY_MERGE: i32 = 68;
const PR_GET_IO_FLUSHER: i32 = 58;
const PR_MCE_KILL_DEFAULT: i64 = 2;
const PR_TSC_SIGSEGV: i32 = 2;
/// `asm-generic/mman.h`.
const MCL_ONFAULT: i32 = 4;
/// `linux/membarrier.h` (6.3).
const MEMBARRIER_CMD_GET_REGISTRATIONS: i32 = 1 << 9;

fn prctl(batch: &mut Batch, option: i32) -> CallIx {
    batch.call(libc::SYS_prctl, &[option.into(), 0.into(), 0.into(), 0.into(), 0.into()])
}

fn prctl_int(batch: &mut Batch, option: i32) -> (CallIx, Data) {
    let out = batch.out(8);
    (batch.call(libc::SYS_prctl, &[option.into(), out.into(), 0.into(), 0.into(), 0.into()]), out)
}

/// What a process was asked.
#[derive(Clone, Copy, Debug)]
pub struct AskedProcess {
    dumpable: CallIx,
    subreaper: (CallIx, Data),
    thp: CallIx,
    membarrier: CallIx,
    brk: CallIx,
    mdwe: CallIx,
    merge: CallIx,
    /// A page made, filled in whether it is locked, and removed again.
    future: [CallIx; 3],
    resident: Data,
    keyrings: Option<[CallIx; 2]>,
}

/// What a process said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SaidProcess {
    /// PR_GET_DUMPABLE.
    pub dumpable: i32,
    /// PR_GET_CHILD_SUBREAPER.
    pub subreaper: bool,
    /// PR_GET_THP_DISABLE.
    pub thp_disable: bool,
    /// MEMBARRIER_CMD_GET_REGISTRATIONS, 0 where the kernel does not tell.
    pub membarrier: u32,
    /// The end of the heap.
    pub brk: u64,
    /// What mlockall(2) was told about mappings to come: `MCL_FUTURE`, `MCL_ONFAULT`, 0.
    pub lock_future: i32,
}

/// Appends a process's questions to a batch. `walled`: keyctl(2) is denied to it, so it has no keys.
pub fn ask_process(batch: &mut Batch, walled: bool) -> AskedProcess {
    let (future, resident) = ask_future(batch);
    let keyrings = (!walled).then(|| ask_keyrings(batch));
    AskedProcess {
        dumpable: prctl(batch, libc::PR_GET_DUMPABLE),
        subreaper: prctl_int(batch, libc::PR_GET_CHILD_SUBREAPER),
        thp: prctl(batch, libc::PR_GET_THP_DISABLE),
        membarrier: batch
            .call(libc::SYS_membarrier, &[MEMBARRIER_CMD_GET_REGISTRATIONS.into(), 0.into(), 0.into()]),
        brk: batch.call(libc::SYS_brk, &[0.into()]),
        mdwe: prctl(batch, PR_GET_MDWE),
        merge: prctl(batch, PR_GET_MEMORY_MERGE),
        future,
        resident,
        keyrings,
    }
}

/// Nothing says whether mlockall(MCL_FUTURE) was called, so a mapping is made: MADV_DONTNEED is refused where it is locked,
/// and it is there at once unless MCL_ONFAULT was given, too.
fn ask_future(batch: &mut Batch) -> ([CallIx; 3], Data) {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let none = u64::MAX;
    let page = batch
        .call(libc::SYS_mmap, &[0.into(), 4096.into(), prot.into(), flags.into(), none.into(), 0.into()]);
    let resident = batch.out(8);
    let core = batch.call(libc::SYS_mincore, &[Arg::Ret(page), 4096.into(), resident.into()]);
    let zap = batch.call(libc::SYS_madvise, &[Arg::Ret(page), 4096.into(), libc::MADV_DONTNEED.into()]);
    batch.call(libc::SYS_munmap, &[Arg::Ret(page), 4096.into()]);
    ([page, core, zap], resident)
}

/// Size of the content of the keyrings that are a process's own: the first thread's and the process's.
fn ask_keyrings(batch: &mut Batch) -> [CallIx; 2] {
    const KEYCTL_READ: i32 = 11;
    [-1i32, -2]
        .map(|ring| batch.call(libc::SYS_keyctl, &[KEYCTL_READ.into(), ring.into(), 0.into(), 0.into()]))
}

/// What process `host` (`pid` in the pod) answered.
pub fn process(
    asked: &AskedProcess,
    results: &Results,
    (host, pid): (i32, i32),
    found: &mut Vec<Blocker>,
) -> Result<SaidProcess, Error> {
    let must = |ix, what: &str| results.ret(ix).map_err(Error::read(host, what));
    // A kernel without the option answers EINVAL: then it cannot be set.
    let set = |ix| results.ret(ix).unwrap_or(0) != 0;
    if set(asked.mdwe) {
        let message =
            "it refuses memory that is writable and executable (PR_SET_MDWE), which cannot be carried yet";
        found.push(blocker("mdwe", pid, message, "turn it off in the program"));
    }
    if set(asked.merge) {
        let message = "it has all its memory merged (PR_SET_MEMORY_MERGE), which cannot be carried yet";
        found.push(blocker("memory-merge", pid, message, "turn it off in the program"));
    }
    // ENOKEY: it has none.
    for (ring, size) in ["thread", "process"].iter().zip(asked.keyrings.into_iter().flatten()) {
        if results.ret(size).is_ok_and(|size| size > 0) {
            let message = format!("it has keys in its {ring} keyring, which cannot be carried yet");
            found.push(blocker("keyring", pid, message, "let it run without them (keyctl clear)"));
        }
    }
    let [page, core, zap] = asked.future;
    let lock_future = match (results.ret(page), results.ret(zap)) {
        // No more may be locked: what comes would have to be.
        (Err(Errno::EAGAIN), _) => libc::MCL_FUTURE,
        (Ok(_), Err(Errno::EINVAL)) => {
            results.ret(core).map_err(Error::read(host, "mincore(2)"))?;
            let there = results.bytes(asked.resident).first().is_some_and(|b| b & 1 == 1);
            if there { libc::MCL_FUTURE } else { libc::MCL_FUTURE | MCL_ONFAULT }
        }
        (page, zap) => {
            page.and(zap).map_err(Error::read(host, "mmap(2) or madvise(2) of a page of ours"))?;
            0
        }
    };
    let thp = must(asked.thp, "PR_GET_THP_DISABLE")?;
    if thp > 1 {
        let message = "it has huge pages off but where advised, which cannot be carried yet";
        found.push(blocker("thp-disable", pid, message, "use PR_SET_THP_DISABLE without flags"));
    }
    must(asked.subreaper.0, "PR_GET_CHILD_SUBREAPER")?;
    Ok(SaidProcess {
        dumpable: i32::try_from(must(asked.dumpable, "PR_GET_DUMPABLE")?).unwrap_or(0),
        subreaper: results.int(asked.subreaper.1, 0) != 0,
        thp_disable: thp != 0,
        membarrier: u32::try_from(results.ret(asked.membarrier).unwrap_or(0)).unwrap_or(0),
        brk: must(asked.brk, "brk(2)")?.cast_unsigned(),
        lock_future,
    })
}

/// What a thread was asked.
#[derive(Clone, Copy, Debug)]
pub struct AskedThread {
    pdeath: (CallIx, Data),
    securebits: CallIx,
    slack: CallIx,
    tsc: (CallIx, Data),
    flusher: CallIx,
    mce: CallIx,
}

/// What a thread said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SaidThread {
    /// PR_GET_PDEATHSIG.
    pub pdeath_signal: i32,
    /// PR_GET_SECUREBITS.
    pub securebits: u32,
    /// PR_GET_TIMERSLACK, in nanoseconds.
    pub timerslack_ns: u64,
}

/// Appends a thread's questions to a batch that runs in it.
pub fn ask_thread(batch: &mut Batch) -> AskedThread {
    AskedThread {
        pdeath: prctl_int(batch, libc::PR_GET_PDEATHSIG),
        securebits: prctl(batch, libc::PR_GET_SECUREBITS),
        slack: prctl(batch, libc::PR_GET_TIMERSLACK),
        tsc: prctl_int(batch, libc::PR_GET_TSC),
        flusher: prctl(batch, PR_GET_IO_FLUSHER),
        mce: prctl(batch, libc::PR_MCE_KILL_GET),
    }
}

/// What thread `tid` (host) of process `pid` (pod) answered.
pub fn thread(
    asked: &AskedThread,
    results: &Results,
    (tid, pid): (i32, i32),
    found: &mut Vec<Blocker>,
) -> Result<SaidThread, Error> {
    let must = |ix, what: &str| results.ret(ix).map_err(Error::read(tid, what));
    let mut odd = |kind: &str, message: &str| {
        let message = format!("{message}, which cannot be carried yet");
        found.push(blocker(kind, pid, message, "turn it off in the program"));
    };
    if results.ret(asked.tsc.0).is_ok() && results.int(asked.tsc.1, 0) == PR_TSC_SIGSEGV {
        odd("tsc", "it may not read the time stamp counter (PR_SET_TSC)");
    }
    // EPERM: it has not the capability to ask, so neither to set it.
    if results.ret(asked.flusher).is_ok_and(|v| v != 0) {
        odd("io-flusher", "it is marked as an I/O flusher (PR_SET_IO_FLUSHER)");
    }
    if results.ret(asked.mce).is_ok_and(|v| v != PR_MCE_KILL_DEFAULT) {
        odd("mce-kill", "it has a policy of its own for memory failures (PR_MCE_KILL)");
    }
    must(asked.pdeath.0, "PR_GET_PDEATHSIG")?;
    Ok(SaidThread {
        pdeath_signal: results.int(asked.pdeath.1, 0),
        securebits: u32::try_from(must(asked.securebits, "PR_GET_SECUREBITS")?).unwrap_or(0),
        timerslack_ns: must(asked.slack, "PR_GET_TIMERSLACK")?.max(0).cast_unsigned(),
    })
}

/// `ns_last_pid` of the pod, asked of any process in it that sees `/proc`.
#[derive(Clone, Copy, Debug)]
pub struct AskedLastPid {
    read: CallIx,
    text: Data,
}

/// Appends the question; the calls after a failed `open` are skipped, so this goes last in a batch.
pub fn ask_last_pid(batch: &mut Batch) -> AskedLastPid {
    let path = batch.path(b"/proc/sys/kernel/ns_last_pid");
    let text = batch.out(32);
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let fd = batch.must(libc::SYS_openat, &[libc::AT_FDCWD.into(), path.into(), flags.into()]);
    let read = batch.call(libc::SYS_read, &[fd.into(), text.into(), 32.into()]);
    batch.call(libc::SYS_close, &[fd.into()]);
    AskedLastPid { read, text }
}

/// The answer; `None` where `/proc` is not to be seen.
pub fn last_pid(asked: &AskedLastPid, results: &Results) -> Option<i32> {
    let len = match results.ret(asked.read) {
        Ok(n) => usize::try_from(n).ok()?,
        Err(Errno::ECANCELED) | Err(_) => return None,
    };
    crate::kernel::procfs::number(results.bytes(asked.text).get(..len)?)
}
