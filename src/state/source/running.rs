//! A pod looked at while it runs: blockers, and the tree as far as it can be known.
//!
//! Anything may end, begin or change between two reads; a process that ended meanwhile is passed over.

use super::Source;
use crate::base::Blocker;
use crate::kernel::procfs::{Proc, Stat};
use crate::state::Tree;
use crate::state::cred::collect::seccomp_by_count;
use crate::state::error::{Error, blocker};
use crate::state::fd::collect::{ProcView, preflight as fd_preflight};
use crate::state::mm::MmLayout;
use crate::state::mm::collect::{Tables, guard_pages, layout, read_mappings};
use crate::state::task::collect::{
    Facts, apart, around, family, foreign_walls, sched, sharing, thread_status, traced, walls,
};
use crate::state::task::plan;
use std::collections::HashSet;

/// The largest pid a 64-bit kernel can give (PID_MAX_LIMIT): what the target's limit is, it says itself.
const PID_LIMIT: i32 = 4 << 20;

/// How often a process that changes while it is looked at is looked at again.
const ATTEMPTS: usize = 20;

impl Source {
    /// Everything in the way of carrying the pod, as it is now; nothing is stopped. Empty: it can be moved.
    pub fn preflight(&mut self) -> Result<Vec<Blocker>, Error> {
        Ok(self.survey()?.1)
    }

    /// The tree of the running pod. Processes and mappings may differ at the freeze; `Borders::brk` and zombies are
    /// a guess. [`Error::Refused`] with all blockers if there are any.
    pub fn prepare(&mut self) -> Result<Tree, Error> {
        let (tree, found) = self.survey()?;
        if found.is_empty() { Ok(tree) } else { Err(Error::Refused(found)) }
    }

    fn survey(&mut self) -> Result<(Tree, Vec<Blocker>), Error> {
        let mut found = Vec::new();
        let mut all = self.look_running(&mut found)?;
        let mut mms = Vec::new();
        let mut ended = HashSet::new();
        self.hosts.clear();
        self.written.clear();
        self.files.new_pass();
        self.objects.new_pass();
        for facts in all.iter().filter(|f| !f.is_zombie()) {
            match self.survey_steadily(facts)? {
                Some((layout, here)) => {
                    self.hosts.extend(layout.iter().map(|l| (l.mm, facts.host)));
                    mms.extend(layout);
                    found.extend(here);
                }
                None => {
                    ended.insert(facts.host);
                }
            }
        }
        all.retain(|f| !ended.contains(&f.host));
        let live: Vec<&Facts> = all.iter().filter(|f| !f.is_zombie()).collect();
        self.known.retain(|who, _| live.iter().any(|f| (f.host, f.stat.start_time) == *who));
        match sharing(&spawned(&live), &mut self.alone, &mut found) {
            Ok(()) | Err(Error::Gone { .. }) => {}
            Err(e) => return Err(e),
        }
        let procs = family(&all, (self.view.init, &self.init_status()?), &mut found);
        if let Err(e) = plan::plan(&procs, PID_LIMIT)
            && found.iter().all(|b| b.kind != "session" && b.kind != "joined")
        {
            found.push(blocker("family", e.pid, e.why.to_string(), "no remedy while these processes live"));
        }
        found.extend(self.ipc.look()?);
        self.private.content(&self.init, &mut self.objects, &mut found)?;
        let views: Vec<ProcView> =
            live.iter().map(|f| ProcView { host_pid: f.host, pod_pid: f.pid() }).collect();
        found.extend(fd_preflight(&views, &self.fd_context())?);
        let tree = Tree { procs, mms, files: self.files.files(), objects: self.objects.objects()? };
        Ok((tree, once(found)))
    }

    /// Every process of the pod but init, zombies too.
    fn look_running(&mut self, found: &mut Vec<Blocker>) -> Result<Vec<Facts>, Error> {
        let mut pids = self.view.cgroup.procs()?;
        pids.retain(|&p| p != self.view.init);
        let mut seen: HashSet<i32> = pids.iter().copied().chain([self.view.init]).collect();
        let mut all = Vec::with_capacity(pids.len());
        let mut todo: Vec<i32> = pids;
        todo.extend(children(&self.init, &[self.view.init])?.into_iter().filter(|p| seen.insert(*p)));
        while let Some(pid) = todo.pop() {
            let facts = match Facts::look(pid, &mut self.buf) {
                Ok(facts) => facts,
                Err(Error::Gone { .. }) => continue,
                Err(e) => return Err(e),
            };
            let tids: Vec<i32> = facts.threads.iter().map(|t| t.0).collect();
            match children(&facts.proc, &tids) {
                Ok(more) => todo.extend(more.into_iter().filter(|p| seen.insert(*p))),
                Err(Error::Gone { .. }) => {}
                Err(e) => return Err(e),
            }
            all.push(facts);
        }
        let cgroup: HashSet<i32> = self.view.cgroup.procs()?.into_iter().collect();
        for facts in all.iter().filter(|f| !f.is_zombie() && !cgroup.contains(&f.host)) {
            if facts.proc.stat("exe").is_ok() {
                let message = "it was moved out of the pod's cgroup";
                found.push(blocker("cgroup", facts.pid(), message, "move it back"));
            }
        }
        Ok(all)
    }

    /// [`survey_one`](Self::survey_one) again where a mapping or thread went away meanwhile. `None`: the process ended;
    /// what an ending process shows is neither an error nor in the way.
    fn survey_steadily(&mut self, facts: &Facts) -> Result<Option<(Option<MmLayout>, Vec<Blocker>)>, Error> {
        let mut result = Err(Error::Gone { pid: facts.host });
        for _ in 0..ATTEMPTS {
            let mut here = Vec::new();
            result = self.survey_one(facts, &mut here).map(|layout| (layout, here));
            if !still_lives(facts, &mut self.buf) {
                return Ok(None);
            }
            if !result.as_ref().is_err_and(Error::is_passing) {
                break;
            }
        }
        result.map(Some)
    }

    /// Everything about one live process; its layout if it can be carried.
    fn survey_one(&mut self, facts: &Facts, found: &mut Vec<Blocker>) -> Result<Option<MmLayout>, Error> {
        let (pid, own) = (facts.pid(), std::process::id().cast_signed());
        found.extend(foreign_walls(pid, &walls(&facts.proc, None)?, &self.walls));
        for &(tid, _) in &facts.threads {
            let status = match thread_status(&facts.proc, tid, &mut self.buf) {
                Ok(status) => status,
                Err(Error::Gone { .. }) => continue,
                Err(e) => return Err(e),
            };
            found.extend(traced(pid, status.tracer, own));
            found.extend(seccomp_by_count(&status, pid, self.view.walled));
            if tid != facts.host {
                found.extend(foreign_walls(pid, &walls(&facts.proc, Some(tid))?, &self.walls));
            }
            sched(tid, pid, &self.usual, found)?;
        }
        apart(facts, found)?;
        around(facts, &self.init, &mut self.buf, found)?;
        let auxv = facts.proc.read("auxv").map_err(Error::read(facts.host, "auxv"))?;
        if is_32_bit(&auxv) {
            found.push(blocker("32-bit", pid, "a 32-bit program cannot be carried", "use its 64-bit build"));
            return Ok(None);
        }
        let known = read_mappings(&facts.proc, &facts.stat, facts.status.locked_kib, None, &mut self.buf)?;
        if !known.in_order() {
            // It changed while the kernel wrote the list.
            return Err(Error::Gone { pid: facts.host });
        }
        found.extend(guard_pages(facts.host, pid, &known)?);
        let mut tables =
            Tables { files: &mut self.files, objects: &mut self.objects, found, tracked: self.view.tracked };
        let layout = layout(&facts.proc, pid, &facts.stat, &known, &mut tables)?;
        self.known.insert((facts.host, facts.stat.start_time), known);
        self.objects_by_descriptor(&facts.proc, pid, found)?;
        Ok(layout)
    }
}

/// Whether a process is still the one that was looked at, and not ending (then it has no stack any more).
fn still_lives(facts: &Facts, buf: &mut Vec<u8>) -> bool {
    facts.proc.read_into("stat", buf).is_ok()
        && Stat::parse(buf).is_some_and(|s| {
            !matches!(s.state, b'Z' | b'X') && s.start_stack != 0 && s.start_stack == facts.stat.start_stack
        })
}

/// Children of a process (host pids) as its threads have them. A kernel that does not tell gives none.
fn children(proc: &Proc, tids: &[i32]) -> Result<Vec<i32>, Error> {
    let mut all = Vec::new();
    for tid in tids {
        match proc.read(format!("task/{tid}/children").as_str()) {
            Ok(text) => {
                all.extend(text.split(|&b| b == b' ').filter_map(crate::kernel::procfs::number::<i32>));
            }
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ESRCH) => {}
            Err(e) => return Err(Error::read(*tid, "children")(e)),
        }
    }
    Ok(all)
}

/// Leaves out children whose parent waits for their exec: vfork shares everything for that moment.
fn spawned<'a>(live: &[&'a Facts]) -> Vec<&'a Facts> {
    let waiting: HashSet<i32> = live.iter().filter(|f| f.stat.state == b'D').map(|f| f.host).collect();
    live.iter().filter(|f| !waiting.contains(&f.stat.ppid)).copied().collect()
}

/// Whether an auxiliary vector is one of 32-bit words: two of them read as one make no key.
pub(super) fn is_32_bit(auxv: &[u8]) -> bool {
    let first: Option<[u8; 8]> = auxv.get(..8).and_then(|b| b.try_into().ok());
    first.is_some_and(|b| u64::from_ne_bytes(b) > 0xffff)
}

/// Each blocker once, in the order of the pids.
pub(super) fn once(mut found: Vec<Blocker>) -> Vec<Blocker> {
    let mut seen = HashSet::new();
    found.retain(|b| seen.insert((b.kind.clone(), b.pid, b.fd, b.path.clone(), b.message.clone())));
    found.sort_by_key(|b| (b.pid, b.fd));
    found
}
