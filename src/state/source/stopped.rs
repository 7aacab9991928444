//! A pod read while all of it stands still: the true tree, then everything else.
//!
//! Each process costs one session (two borrowed calls) and one batch for each thread: what a batch asks
//! (handlers, timers, `brk`, alternate stacks, `clear_child_tid`, parent-death signals) has no other reader, and
//! may have changed since any earlier look. All the rest is read from `/proc` and by ptrace.

use super::running::once;
use super::{HostPids, Source, Who};
use crate::base::{Blocker, Failure};
use crate::freeze::{StoppedPod, StoppedProc};
use crate::kernel::procfs::{Proc, Status, TimerLine};
use crate::kernel::ptrace;
use crate::remote::{Batch, Results, is_scratch};
use crate::sandbox::seccomp::profile;
use crate::state::cpu;
use crate::state::cred::{self, Seccomp};
use crate::state::error::{Error, blocker};
use crate::state::fd::Port;
use crate::state::fd::collect::table::Table;
use crate::state::fd::collect::{Ahead, ProcView, Scan};
use crate::state::inet::collect::RepairedSocket;
use crate::state::mm::MmLayout;
use crate::state::mm::collect::{Tables, layout, read_mappings};
use crate::state::signal;
use crate::state::task::asked;
use crate::state::task::collect::{
    Facts, apart, around, family, foreign_walls, sched, sharing, thread_status, walls,
};
use crate::state::task::{ProcessState, ThreadState};
use crate::state::timer;
use crate::state::{PodState, Tree};
use nix::time::{ClockId, clock_gettime};
use std::collections::HashMap;

/// One process as read at the freeze, its descriptors still missing.
#[derive(Debug)]
pub(super) struct Read {
    view: ProcView,
    state: ProcessState,
}

/// Everything of a stopped pod that is not memory.
#[derive(Debug)]
pub struct Snapshot {
    /// What travels.
    pub state: PodState,
    /// TCP connections that go along.
    pub kept: usize,
    /// TCP connections that no descriptor refers to and that are lost.
    pub lost: usize,
    /// What will be different afterwards, in words.
    pub warnings: Vec<String>,
}

/// The questions put to one thread.
struct AskedThread {
    signals: signal::collect::AskedThread,
    cpu: cpu::collect::Asked,
    own: asked::AskedThread,
}

fn ask_thread(batch: &mut Batch) -> AskedThread {
    AskedThread {
        signals: signal::collect::ask_thread(batch),
        cpu: cpu::collect::ask(batch),
        own: asked::ask_thread(batch),
    }
}

/// The questions put to one process, through its first thread.
struct AskedProcess {
    signals: signal::collect::AskedProcess,
    timers: timer::collect::Asked,
    own: asked::AskedProcess,
    thread: AskedThread,
    last_pid: Option<asked::AskedLastPid>,
}

impl AskedProcess {
    fn new(batch: &mut Batch, timers: &[TimerLine], last_pid: bool, walled: bool) -> Self {
        Self {
            signals: signal::collect::ask_process(batch),
            timers: timer::collect::ask(batch, timers),
            own: asked::ask_process(batch, walled),
            thread: ask_thread(batch),
            last_pid: last_pid.then(|| asked::ask_last_pid(batch)),
        }
    }
}

/// What one process answered: its own results, and those of its other threads.
struct Answers {
    asked: AskedProcess,
    first: Results,
    rest: Vec<(AskedThread, Results)>,
}

impl Source {
    /// The tree as it is, and the host pid of each address space. Everything of the processes themselves is read
    /// here, too, for [`Source::collect`]. [`Error::Refused`]: something came up that cannot be carried.
    pub fn tree(&mut self, pod: &mut StoppedPod) -> Result<(Tree, HostPids), Error> {
        let mut found = Vec::new();
        let (mut all, mut mms, mut hosts) = (Vec::new(), Vec::new(), HostPids::new());
        self.read.clear();
        self.last_pid = None;
        self.written.clear();
        self.files.new_pass();
        self.objects.new_pass();
        let init = self.init_status()?;
        for proc in &mut pod.procs {
            let (facts, layout) = self.read_process(proc, &init, &mut found)?;
            if let Some(layout) = layout {
                hosts.insert(layout.mm, facts.host);
                mms.push(layout);
            }
            all.push(facts);
        }
        sharing(&all.iter().collect::<Vec<_>>(), &mut self.alone, &mut found)?;
        for (host, _) in pod.zombies()? {
            match Facts::look(host, &mut self.buf) {
                Ok(facts) if facts.is_zombie() => all.push(facts),
                // Reaped meanwhile: init runs.
                Ok(_) | Err(Error::Gone { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        let procs = family(&all, (self.view.init, &init), &mut found);
        // Same order as the family, as `PodState` promises.
        let places: HashMap<i32, usize> = procs.iter().enumerate().map(|(n, p)| (p.pid, n)).collect();
        let place = |pid: i32| places.get(&pid);
        self.read.sort_by_key(|r| place(r.view.pod_pid));
        mms.sort_by_key(|m| place(m.mm.0));
        let views: Vec<ProcView> = self.read.iter().map(|r| r.view).collect();
        let known = self.ahead.as_ref().and_then(Ahead::still);
        let table = Table::read_with(&views, false, known)?;
        self.objects_of_table(&table, &mut found)?;
        self.table = Some(table);
        found.extend(self.ipc.look()?);
        self.private.content(&self.init, &mut self.objects, &mut found)?;
        if !found.is_empty() {
            return Err(Error::Refused(once(found)));
        }
        self.hosts.clone_from(&hosts);
        Ok((Tree { procs, mms, files: self.files.files(), objects: self.objects.objects()? }, hosts))
    }

    /// Everything else, after [`Source::tree`] in the same stop. `before_repair` is told which TCP sockets are about
    /// to be put in repair (and can note them where they will be undone); its failure ends the attempt.
    pub fn collect(
        &mut self,
        _stopped: &StoppedPod,
        before_repair: &mut dyn FnMut(&[RepairedSocket]) -> Result<(), Failure>,
    ) -> Result<Snapshot, Error> {
        let ctx = self.fd_context();
        let odd = Error::odd(self.view.init, "descriptors, before the tree");
        let scan = Scan::of(self.table.take().ok_or_else(odd)?, &ctx)?;
        before_repair(scan.tcp_sockets()).map_err(|f| Error::Told(Box::new(f)))?;
        let objects = self.objects.len();
        let fds = scan.finish(&mut self.objects)?;
        if self.objects.len() > objects {
            // The tree was sent and its objects are being read: one that only a socket's queue holds is not among them.
            let message = "a memfd or nameless file under way in a unix socket cannot be carried yet";
            let b = blocker("object-in-flight", 0, message, "try again, once it is received");
            return Err(Error::Refused(vec![Blocker { pid: None, ..b }]));
        }
        let mut warnings = fds.warnings;
        warnings.extend(self.read.iter().flat_map(|r| not_carried(&r.state)));
        let mut procs: Vec<ProcessState> = Vec::with_capacity(self.read.len());
        for (read, table) in self.read.drain(..).zip(fds.tables) {
            procs.push(ProcessState { fds: table, ..read.state });
        }
        let highest = procs.iter().flat_map(|p| p.threads.iter().map(|t| t.tid)).max().unwrap_or(1);
        let (monotonic_ns, boottime_ns) = self.pod_clocks()?;
        let state = PodState {
            procs,
            files: fds.files,
            last_pid: self.last_pid.unwrap_or(highest),
            monotonic_ns,
            boottime_ns,
            realtime_ns: clock(ClockId::CLOCK_REALTIME)?,
            input: fds
                .unread
                .into_iter()
                .find(|(port, _)| *port == Port::Stdin)
                .map(|u| u.1)
                .unwrap_or_default(),
            input_ended: false,
        };
        Ok(Snapshot { state, kept: fds.kept, lost: fds.lost, warnings })
    }

    /// CLOCK_MONOTONIC and CLOCK_BOOTTIME as the pod sees them now: ours plus the offsets of its time namespace.
    fn pod_clocks(&mut self) -> Result<(i64, i64), Error> {
        let pid = self.view.init;
        let mut offsets = [0i64; 2];
        match self.init.read_into("timens_offsets", &mut self.buf) {
            Ok(()) => offsets = timens_offsets(&self.buf).ok_or_else(Error::odd(pid, "timens_offsets"))?,
            // A kernel without time namespaces.
            Err(nix::errno::Errno::ENOENT) => {}
            Err(e) => return Err(Error::read(pid, "timens_offsets")(e)),
        }
        // We may be in a time namespace ourselves: then our clocks have that offset already.
        let own = std::fs::read("/proc/self/timens_offsets")
            .ok()
            .and_then(|t| timens_offsets(&t))
            .unwrap_or_default();
        let at = |id, n: usize| Ok::<_, Error>(clock(id)? + offsets[n] - own[n]);
        Ok((at(ClockId::CLOCK_MONOTONIC, 0)?, at(ClockId::CLOCK_BOOTTIME, 1)?))
    }

    /// One process: what surrounds it, its batches, its mappings after them.
    fn read_process(
        &mut self,
        proc: &mut StoppedProc,
        init: &Status,
        found: &mut Vec<Blocker>,
    ) -> Result<(Facts, Option<MmLayout>), Error> {
        let mut facts = Facts::look_leader(proc.host_pid, &mut self.buf)?;
        facts.threads = proc.threads.iter().map(|t| (t.host_tid, t.pod_tid)).collect();
        let (host, pid) = (facts.host, facts.pid());
        if proc.leader_dead {
            let message = "its first thread has ended and others run on";
            return Err(Error::Refused(vec![blocker(
                "dead-leader",
                pid,
                message,
                "no remedy while it is so",
            )]));
        }
        let statuses = self.thread_statuses(&facts)?;
        found.extend(foreign_walls(pid, &walls(&facts.proc, None)?, &self.walls));
        if !self.view.walled {
            for &(tid, _) in facts.threads.iter().skip(1) {
                found.extend(foreign_walls(pid, &walls(&facts.proc, Some(tid))?, &self.walls));
            }
        }
        apart(&facts, found)?;
        let seccomp = seccomp(&facts, &statuses, init, found)?;
        let answers = self.ask(proc, &facts)?;
        if let Some(asked) = &answers.asked.last_pid {
            self.last_pid = asked::last_pid(asked, &answers.first);
        }
        let said = asked::process(&answers.asked.own, &answers.first, (host, pid), found)?;
        let tid = |tid| facts.threads.iter().find(|t| t.0 == tid).map(|t| t.1);
        let timers = timer::collect::timers(&answers.asked.timers, &answers.first, (host, pid), tid, found)?;
        let leader = &proc.threads[0].stopped;
        let signals =
            signal::collect::process(leader, &facts.status, &answers.asked.signals, &answers.first)?;
        let threads = self.threads((&facts.proc, proc), &statuses, &seccomp, &answers, found)?;
        let around = around(&facts, &self.init, &mut self.buf, found)?;
        let state = ProcessState {
            pid,
            threads,
            signals,
            timers,
            fds: Vec::new(),
            cwd: around.cwd,
            root: around.root,
            umask: around.umask,
            rlimits: around.rlimits,
            oom_score_adj: around.oom_score_adj,
            dumpable: said.dumpable,
            subreaper: said.subreaper,
            thp_disable: said.thp_disable,
            personality: around.personality,
            stopped: proc.group_stop(),
            coredump_filter: around.coredump_filter,
            lock_future: said.lock_future,
            membarrier: said.membarrier,
        };
        self.read.push(Read { view: ProcView { host_pid: host, pod_pid: pid }, state });
        let mut layout = self.read_layout(&facts, found)?;
        if let Some(layout) = &mut layout {
            layout.borders.brk = said.brk;
        }
        Ok((facts, layout))
    }

    fn thread_statuses(&mut self, facts: &Facts) -> Result<Vec<Status>, Error> {
        let mut all = vec![];
        for &(tid, _) in &facts.threads {
            all.push(if tid == facts.host {
                facts.status.clone()
            } else {
                thread_status(&facts.proc, tid, &mut self.buf)?
            });
        }
        Ok(all)
    }

    /// The batches of a process.
    fn ask(&mut self, proc: &mut StoppedProc, facts: &Facts) -> Result<Answers, Error> {
        facts.proc.read_into("timers", &mut self.buf).map_err(Error::read(facts.host, "timers"))?;
        let timers = TimerLine::parse(&self.buf).ok_or_else(Error::odd(facts.host, "timers"))?;
        let (mut session, rest) = proc.session()?;
        let mut batch = Batch::new();
        let asked = AskedProcess::new(&mut batch, &timers, self.last_pid.is_none(), self.view.walled);
        let first = session.run(&batch)?;
        let mut answers = Answers { asked, first, rest: Vec::with_capacity(rest.len()) };
        for thread in rest {
            let mut batch = Batch::new();
            let asked = ask_thread(&mut batch);
            answers.rest.push((asked, session.run_on(&mut thread.stopped, &batch)?));
        }
        session.close()?;
        Ok(answers)
    }

    fn threads(
        &mut self,
        (dir, proc): (&Proc, &StoppedProc),
        statuses: &[Status],
        seccomp: &[Seccomp],
        answers: &Answers,
        found: &mut Vec<Blocker>,
    ) -> Result<Vec<ThreadState>, Error> {
        let mut all = Vec::with_capacity(proc.threads.len());
        for (i, thread) in proc.threads.iter().enumerate() {
            let (asked, results) = match i.checked_sub(1) {
                None => (&answers.asked.thread, &answers.first),
                Some(n) => (&answers.rest[n].0, &answers.rest[n].1),
            };
            let (tid, stopped, status, pid) = (thread.host_tid, &thread.stopped, &statuses[i], proc.pod_pid);
            let said = asked::thread(&asked.own, results, (tid, pid), found)?;
            let name = format!("task/{tid}/comm");
            dir.read_into(name.as_str(), &mut self.buf).map_err(Error::read(tid, "comm"))?;
            all.push(ThreadState {
                tid: thread.pod_tid,
                comm: self.buf.strip_suffix(b"\n").unwrap_or(&self.buf).to_vec(),
                cpu: cpu::collect::cpu(stopped, asked.cpu, results, pid, found)?,
                signals: signal::collect::thread(stopped, status, asked.signals, results)?,
                cred: cred::collect::cred(status, said.securebits, seccomp[i]),
                pdeath_signal: said.pdeath_signal,
                sched: crate::state::task::Sched {
                    timerslack_ns: said.timerslack_ns,
                    ..sched(tid, pid, &self.usual, found)?
                },
            });
        }
        Ok(all)
    }

    /// The mappings, by what was known of them (or, for a child born since, of its parent).
    fn read_layout(&mut self, facts: &Facts, found: &mut Vec<Blocker>) -> Result<Option<MmLayout>, Error> {
        let who: Who = (facts.host, facts.stat.start_time);
        let parent = || self.known.iter().find(|(k, _)| k.0 == facts.stat.ppid).map(|(_, known)| known);
        let before = self.known.get(&who).or_else(parent);
        let known = read_mappings(&facts.proc, &facts.stat, facts.status.locked_kib, before, &mut self.buf)?;
        let mut tables =
            Tables { files: &mut self.files, objects: &mut self.objects, found, tracked: self.view.tracked };
        let layout = layout(&facts.proc, facts.pid(), &facts.stat, &known, &mut tables)?;
        self.known.insert(who, known);
        Ok(layout.map(|mut l| {
            // What a session that was killed left behind is not the program's.
            l.vmas.retain(|v| !is_scratch(v.range));
            l
        }))
    }
}

/// The seccomp state of each thread; a filter that is not podmig's is told in `found`.
fn seccomp(
    facts: &Facts,
    statuses: &[Status],
    init: &Status,
    found: &mut Vec<Blocker>,
) -> Result<Vec<Seccomp>, Error> {
    let pid = facts.pid();
    let profile: Vec<_> = profile().iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect();
    let mut first: Option<Option<Seccomp>> = None;
    let mut all = Vec::with_capacity(statuses.len());
    for (status, &(tid, _)) in statuses.iter().zip(&facts.threads) {
        let same_count =
            status.seccomp_filters.is_some() && status.seccomp_filters == statuses[0].seccomp_filters;
        let kind = match status.seccomp {
            0 => Some(Seccomp::None),
            // A thread with as many filters as the first has the same: filters are inherited and never go away.
            2 if same_count && let Some(known) = first => known,
            2 => cred::collect::seccomp(&filters(tid)?, &profile),
            _ => None,
        };
        first = first.or(Some(kind));
        if kind.is_none() {
            found.push(cred::collect::foreign(pid)("it has a seccomp filter that is not podmig's"));
        }
        if let Some(b) = speculation(status, init, pid) {
            found.push(b);
        }
        all.push(kind.unwrap_or_default());
    }
    Ok(all)
}

fn filters(tid: i32) -> Result<Vec<Vec<(u16, u8, u8, u32)>>, Error> {
    let mut all = Vec::new();
    while let Some(filter) =
        ptrace::seccomp_filter(tid, all.len()).map_err(Error::read(tid, "PTRACE_SECCOMP_GET_FILTER"))?
    {
        all.push(filter.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect());
    }
    Ok(all)
}

/// Mitigations against speculation that a thread chose for itself (PR_SET_SPECULATION_CTRL).
fn speculation(status: &Status, init: &Status, pid: i32) -> Option<Blocker> {
    // Kernels before 5.16 put them on with every seccomp filter.
    let forced = |s: &[u8]| status.seccomp != 0 && s.ends_with(b"force mitigated");
    let own = status.speculation.iter().zip(&init.speculation).any(|(a, b)| a != b && !forced(a));
    let message =
        "it chose its own speculation mitigations (PR_SET_SPECULATION_CTRL), which cannot be carried yet";
    own.then(|| blocker("speculation", pid, message, "turn it off in the program"))
}

/// What little of a process cannot be set again, in words.
fn not_carried(p: &ProcessState) -> Vec<String> {
    let mut said = Vec::new();
    if let Some(signal) = p.stopped.filter(|s| *s != libc::SIGSTOP) {
        let name = nix::sys::signal::Signal::try_from(signal).map_or("another signal", |s| s.as_str());
        said.push(format!("process {} was stopped by {name} and will have been by SIGSTOP", p.pid));
    }
    for t in p.timers.posix.iter().filter(|t| t.overrun != 0) {
        said.push(format!("process {}: timer {} forgets its last {} overruns", p.pid, t.id, t.overrun));
    }
    said
}

/// A clock of ours in nanoseconds.
fn clock(id: ClockId) -> Result<i64, Error> {
    let t = clock_gettime(id).map_err(Error::read(0, "clock_gettime(2)"))?;
    Ok(t.tv_sec().saturating_mul(1_000_000_000).saturating_add(t.tv_nsec()))
}

/// `/proc/P/timens_offsets`: monotonic and boottime in nanoseconds.
fn timens_offsets(text: &[u8]) -> Option<[i64; 2]> {
    let text = std::str::from_utf8(text).ok()?;
    let mut out = [0; 2];
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let at = match words.next()? {
            "monotonic" => 0,
            "boottime" => 1,
            _ => continue,
        };
        let (sec, nsec): (i64, i64) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        out[at] = sec.checked_mul(1_000_000_000)?.checked_add(nsec)?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_a_time_namespace() {
        let text = b"monotonic           -10 500\nboottime   3         0\n";
        assert_eq!(timens_offsets(text), Some([-10_000_000_000 + 500, 3_000_000_000]));
        assert_eq!(timens_offsets(b"monotonic x 0\n"), None);
    }
}
