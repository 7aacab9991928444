//! A skeleton changed into that of a newer tree: while the source runs on, processes come and go and mappings grow.
//! What stays the same keeps its process and its content; what no change leads to is built anew.

use super::error::{Error, Result};
use super::space::{Job, Sources};
use super::{Builder, PATIENCE, Skeleton, build, check};
use crate::base::AddrRange;
use crate::kernel::maps;
use crate::remote::Running;
use crate::state::Tree;
use crate::state::mm::diff::{Change, changes};
use crate::state::mm::restore::Special;
use crate::state::mm::{MapFileId, MmId, MmLayout, Vma};
use crate::state::object::{self, ObjectId};
use crate::state::task::ProcNode;
use crate::state::task::plan::{Family, INIT, Plan, plan};
use std::collections::{HashMap, HashSet};
use std::time::Instant;

/// What leads from one tree to the next, in this order.
#[derive(Debug, Default)]
struct Steps {
    /// (pid, parent) of those that are no more, children first.
    gone: Vec<(i32, i32)>,
    /// Births.
    families: Vec<Family>,
    /// Groups of the newborn.
    joins: HashMap<i32, i32>,
    /// Address spaces that change.
    spaces: Vec<Space>,
    /// Those that ended since.
    zombies: Vec<i32>,
}

#[derive(Debug)]
struct Space {
    pid: i32,
    changes: Vec<Change>,
    /// A newborn: the process whose address space it is a copy of.
    copy_of: Option<i32>,
    exe: bool,
}

impl Builder {
    /// Changes the skeleton into that of `tree`, which is a later look at the same pod (ids of files and objects are
    /// the same). Content stays where a process and a mapping stay; whether it does is told by the host pids.
    ///
    /// # Errors
    /// As [`Builder::skeleton`].
    pub fn update(&mut self, tree: &Tree) -> Result<Skeleton> {
        let adapted = self.adapted(tree)?;
        let tree = &*adapted;
        check::tree(tree)?;
        let start = Instant::now();
        let Some(old) = self.tree.take() else {
            return Err(Error::Order("change a skeleton that is not there"));
        };
        let plan = plan(&tree.procs, self.host.pid_max)?;
        let steps = self.scratch_is_free(tree).and_then(|()| steps(&old, tree, &plan));
        let skeleton = match steps {
            Ok(steps) => self.take(&old, tree, steps),
            Err(why) => {
                tracing::debug!("the skeleton is built anew: {why}");
                self.rebuild(tree)
            }
        };
        self.stage("update", start);
        skeleton
    }

    fn scratch_is_free(&self, tree: &Tree) -> std::result::Result<(), String> {
        let slot = self.slot.ok_or("no scratch")?;
        let hole = AddrRange::new(slot.code(), self.passing + self.host.special.size());
        let mut vmas = tree.mms.iter().flat_map(|m| &m.vmas);
        match vmas.find(|v| v.range.overlaps(&hole)) {
            Some(v) => Err(format!("mapping {:?} lies where our scratch area is", v.range)),
            None => Ok(()),
        }
    }

    fn take(&mut self, old: &Tree, tree: &Tree, steps: Steps) -> Result<Skeleton> {
        for (pid, parent) in &steps.gone {
            self.dismiss(*pid, *parent)?;
        }
        for (id, (was, is)) in (0u32..).map(ObjectId).zip(old.objects.iter().zip(&tree.objects)) {
            if let Some(fd) = self.objects.get(&id).filter(|_| was != is) {
                object::restore::update(fd, is)?;
            }
        }
        let files = self.gather(tree, |builder| builder.births(&steps.families))?;
        self.live = build::live(tree);
        let sources = self.sources(tree, &files)?;
        let layouts: HashMap<i32, &MmLayout> = tree.mms.iter().map(|m| (m.mm.0, m)).collect();
        let mut lost = Vec::new();
        for space in steps.spaces {
            let layout = layouts.get(&space.pid).ok_or(Error::Order("change an address space"))?;
            let copy_of = space.copy_of.map(|pid| match old.mms.iter().find(|m| m.mm.0 == pid) {
                Some(of) => Special::of(of),
                None => self.host.special,
            });
            let join = steps.joins.get(&space.pid).copied();
            self.space(&sources, Job { layout, changes: space.changes, copy_of, exe: space.exe, join })?;
            if space.copy_of.is_none() {
                lost.extend(self.whole(&sources, layout)?);
            }
        }
        for node in tree.procs.iter().filter(|n| steps.zombies.contains(&n.pid)) {
            self.zombie(node, steps.joins.get(&node.pid).copied())?;
        }
        self.tree = Some(tree.clone());
        Ok(Skeleton { lost, ..self.handles(false)? })
    }

    /// Makes every mapping one again that is one at the source: parts that held content before they met do not join, and
    /// mremap(2) over them would fail. Those made anew for it, empty now.
    fn whole(&mut self, sources: &Sources<'_>, layout: &MmLayout) -> Result<Vec<(MmId, AddrRange)>> {
        let host = self.bodies.get(&layout.mm.0).ok_or(Error::Order("look at an address space"))?.host;
        let path = format!("/proc/{host}/maps");
        let text = std::fs::read(&path).map_err(Error::io("/proc/P/maps"))?;
        let lines = maps::parse(&text).ok_or(Error::Order("read a line of /proc/P/maps"))?;
        let in_parts = |vma: &&Vma| {
            let n = lines.partition_point(|l| l.range.end <= vma.range.start);
            !vma.is_special() && lines.get(n).is_some_and(|l| l.range.end < vma.range.end)
        };
        let parts: Vec<Vma> = layout.vmas.iter().filter(in_parts).cloned().collect();
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let unmap = parts.iter().map(|v| Change::Unmap(v.range));
        let changes = unmap.chain(parts.iter().cloned().map(Change::Map)).collect();
        self.space(sources, Job { layout, changes, copy_of: None, exe: false, join: None })?;
        Ok(parts.iter().map(|v| (layout.mm, v.range)).collect())
    }

    /// Everything from the beginning.
    fn rebuild(&mut self, tree: &Tree) -> Result<Skeleton> {
        self.undo();
        let failed = Error::remote(INIT, "stopping the pod's init");
        let init = Running::seize(self.ctx.init, 0).and_then(|r| r.stop(PATIENCE)).map_err(&failed)?;
        self.saved = (init.portable_regs().map_err(&failed)?, init.sigmask().map_err(&failed)?);
        self.init = Some(init);
        self.skeleton(tree)
    }
}

/// What leads from `old` to `new`; why nothing does.
fn steps(old: &Tree, new: &Tree, plan: &Plan) -> std::result::Result<Steps, String> {
    same_ids(old, new)?;
    let before: HashMap<i32, &ProcNode> = old.procs.iter().map(|n| (n.pid, n)).collect();
    let after: HashMap<i32, &ProcNode> = new.procs.iter().map(|n| (n.pid, n)).collect();
    let mut steps = Steps { gone: gone(old, &after), ..Steps::default() };
    for node in &new.procs {
        let Some(was) = before.get(&node.pid) else {
            steps.zombies.extend(node.zombie.map(|_| node.pid));
            continue;
        };
        let place = |n: &ProcNode| (n.ppid, n.pgid, n.sid, n.exit_signal);
        if place(was) != place(node) || (was.zombie.is_some() && was.zombie != node.zombie) {
            return Err(format!("process {} has another place in the family", node.pid));
        }
        if was.zombie.is_none() && node.zombie.is_some() {
            steps.zombies.push(node.pid);
        }
    }
    births(plan, &before, &after, &mut steps)?;
    spaces(old, new, &before, &mut steps)?;
    Ok(steps)
}

fn same_ids(old: &Tree, new: &Tree) -> std::result::Result<(), String> {
    let kinds = |t: &Tree| t.objects.iter().map(|o| o.kind.clone()).collect::<Vec<_>>();
    let paths = |t: &Tree| t.files.iter().map(|f| (f.path.clone(), f.writable)).collect::<Vec<_>>();
    if !kinds(new).starts_with(&kinds(old)) || !paths(new).starts_with(&paths(old)) {
        return Err("files and objects were numbered anew".to_owned());
    }
    Ok(())
}

fn gone(old: &Tree, after: &HashMap<i32, &ProcNode>) -> Vec<(i32, i32)> {
    let parents: HashMap<i32, i32> = old.procs.iter().map(|n| (n.pid, n.ppid)).collect();
    let depth = |mut pid: i32| {
        let mut depth = 0;
        while let Some(parent) = parents.get(&pid).filter(|_| depth <= parents.len()) {
            (pid, depth) = (*parent, depth + 1);
        }
        depth
    };
    let mut gone: Vec<(i32, i32)> =
        old.procs.iter().filter(|n| !after.contains_key(&n.pid)).map(|n| (n.pid, n.ppid)).collect();
    gone.sort_by_key(|(pid, _)| std::cmp::Reverse(depth(*pid)));
    gone
}

/// The births that are still to be, if whoever gives them can still give them.
fn births(
    plan: &Plan,
    before: &HashMap<i32, &ProcNode>,
    after: &HashMap<i32, &ProcNode>,
    steps: &mut Steps,
) -> std::result::Result<(), String> {
    let needed = |pid: i32| after.contains_key(&pid) && !before.contains_key(&pid);
    for f in &plan.families {
        let is_new = needed(f.creator);
        let mut family = Family {
            creator: f.creator,
            before: f.before.iter().copied().filter(|b| needed(b.pid)).collect(),
            setsid: is_new && f.setsid,
            after: f.after.iter().copied().filter(|b| needed(b.pid)).collect(),
            lead_group: is_new && f.lead_group,
        };
        if is_new {
            // A stand-in under a newborn: too rare to be worth more than a new start.
            (family.before, family.after) = (f.before.clone(), f.after.clone());
        }
        let all: Vec<i32> = family.before.iter().chain(&family.after).map(|b| b.pid).collect();
        if let Some(pid) = all.iter().find(|pid| !after.contains_key(pid)) {
            return Err(format!("a birth needs a stand-in for {pid}"));
        }
        let known = f.creator == INIT || after.contains_key(&f.creator);
        if !all.is_empty() && (!known || (!is_new && !family.before.is_empty())) {
            return Err(format!("{} can no longer give birth to {all:?}", f.creator));
        }
        if !all.is_empty() || family.setsid || family.lead_group {
            steps.families.push(family);
        }
    }
    let new: HashSet<i32> = after.keys().copied().filter(|pid| needed(*pid)).collect();
    steps.joins = plan.joins.iter().copied().filter(|(pid, _)| new.contains(pid)).collect();
    match plan.leaves.iter().find(|(pid, _)| new.contains(pid)) {
        Some((pid, _)) => Err(format!("process {pid} left a group it led")),
        None => Ok(()),
    }
}

fn spaces(
    old: &Tree,
    new: &Tree,
    before: &HashMap<i32, &ProcNode>,
    steps: &mut Steps,
) -> std::result::Result<(), String> {
    let layouts: HashMap<i32, &MmLayout> = old.mms.iter().map(|m| (m.mm.0, m)).collect();
    let mut creators = HashMap::new();
    for f in &steps.families {
        creators.extend(f.before.iter().chain(&f.after).map(|b| (b.pid, f.creator)));
    }
    let live: Vec<&MmLayout> = new.mms.iter().collect();
    for m in live {
        let pid = m.mm.0;
        if !before.contains_key(&pid) {
            // Newborn of newborn are copies of whoever was there first.
            let mut of = creators.get(&pid).copied().unwrap_or(INIT);
            while let Some(next) = creators.get(&of) {
                of = *next;
            }
            let exe: Option<MapFileId> = layouts.get(&of).map(|l| l.exe);
            let all = m.vmas.iter().cloned().map(Change::Map).collect();
            steps.spaces.push(Space { pid, changes: all, copy_of: Some(of), exe: exe != Some(m.exe) });
            continue;
        }
        let was = layouts.get(&pid).ok_or_else(|| format!("process {pid} came back to life"))?;
        let program = |l: &MmLayout| {
            let b = &l.borders;
            (l.exe, b.start_code, b.start_stack, b.arg_start, Special::of(l))
        };
        if program(was) != program(m) {
            return Err(format!("process {pid} executed another program"));
        }
        let changes = changes(&was.vmas, &m.vmas);
        if !changes.is_empty() || was.borders != m.borders {
            steps.spaces.push(Space { pid, changes, copy_of: None, exe: false });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(pid: i32, ppid: i32, pgid: i32, sid: i32) -> ProcNode {
        ProcNode { pid, ppid, pgid, sid, exit_signal: 17, tids: vec![pid], zombie: None, comm: vec![] }
    }

    fn tree(procs: Vec<ProcNode>) -> Tree {
        let mm = |n: &ProcNode| MmLayout {
            mm: crate::state::mm::MmId(n.pid),
            vmas: vec![],
            borders: Default::default(),
            exe: MapFileId(0),
        };
        let mms = procs.iter().filter(|n| n.zombie.is_none()).map(mm).collect();
        Tree { procs, mms, ..Tree::default() }
    }

    fn between(old: Vec<ProcNode>, new: Vec<ProcNode>) -> std::result::Result<Steps, String> {
        let new = tree(new);
        steps(&tree(old), &new, &plan(&new.procs, 32768).unwrap())
    }

    #[test]
    fn nothing_is_done_where_nothing_changed() {
        // A daemon whose session leader is dead: its stand-in must not come again.
        let family = vec![node(5, 1, 5, 5), node(6, 5, 5, 5), node(20, 1, 19, 19)];
        let s = between(family.clone(), family).unwrap();
        assert!(s.gone.is_empty() && s.families.is_empty() && s.spaces.is_empty() && s.zombies.is_empty());
    }

    #[test]
    fn processes_come_and_go() {
        let old = vec![node(5, 1, 5, 5), node(6, 5, 6, 5), node(7, 6, 6, 5), node(8, 5, 8, 5)];
        let ended = ProcNode { zombie: Some(0), ..node(8, 5, 8, 5) };
        let new = vec![node(5, 1, 5, 5), ended, node(9, 5, 8, 5), node(10, 9, 10, 10), node(11, 10, 10, 10)];
        let s = between(old, new).unwrap();
        assert_eq!(s.gone, [(7, 6), (6, 5)]);
        assert_eq!(s.zombies, [8]);
        let born: Vec<_> = s.families.iter().map(|f| (f.creator, f.setsid, f.after.len())).collect();
        assert_eq!(born, [(5, false, 1), (9, false, 1), (10, true, 1)]);
        assert_eq!(s.joins, HashMap::from([(9, 8), (11, 10)]));
        assert!(s.spaces.iter().all(|s| s.copy_of == Some(5)));
    }

    #[test]
    fn what_no_change_leads_to_is_said() {
        let base = || vec![node(5, 1, 5, 5), node(6, 5, 5, 5)];
        let again = |new| between(base(), new).unwrap_err();
        assert!(again(vec![node(5, 1, 5, 5), node(6, 5, 6, 5)]).contains("another place"));
        assert!(again(vec![node(6, 1, 5, 5)]).contains("another place"));
        let late = vec![node(5, 1, 5, 5), node(6, 5, 5, 5), node(7, 1, 4, 4)];
        assert!(again(late).contains("give birth"));
    }
}
