//! The order in which processes are born, so that parents, sessions and groups come out as they were.
//!
//! A child gets its creator's session at the moment of its birth and a session cannot be joined later
//! (`setsid(2)`), so the order of births has to retell the family's history: children that are still in
//! their parent's old session are born before its `setsid`, orphans are born by a member of their session
//! beside it (CLONE_PARENT) or through a helper that ends, and sessions or groups whose leader is dead get
//! a stand-in with the leader's pid for a while. Pure: the target only executes what stands here.

use super::ProcNode;
use std::collections::{HashMap, HashSet};

/// Pid of the pod's init; sessions and groups 0 (led from outside the pod) and 1 both mean "init's own".
pub const INIT: i32 = 1;

/// A family that cannot be retold; the text says why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("process {pid}: {why}")]
pub struct Unplannable {
    /// Pid in the pod.
    pub pid: i32,
    /// What is odd about it.
    pub why: String,
}

fn odd(pid: i32, why: impl Into<String>) -> Unplannable {
    Unplannable { pid, why: why.into() }
}

/// One birth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Birth {
    /// Pid to be given.
    pub pid: i32,
    /// Born beside its creator (CLONE_PARENT) instead of under it; it then has its creator's exit signal.
    pub sibling: bool,
    /// Signal to the parent at exit.
    pub exit_signal: i32,
}

/// Everything one process does for the family, in this order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Family {
    /// Who acts.
    pub creator: i32,
    /// Births in its old session.
    pub before: Vec<Birth>,
    /// Then it opens its own session.
    pub setsid: bool,
    /// Births after that.
    pub after: Vec<Birth>,
    /// Then it opens its own process group (never together with `setsid`, which does it already).
    pub lead_group: bool,
}

/// The end of a stand-in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Farewell {
    /// Who ends.
    pub pid: i32,
    /// Who reaps it.
    pub parent: i32,
    /// Who must be subreaper meanwhile so as to get its children (none: it has no children, or init gets them).
    pub adopter: Option<i32>,
}

/// The whole order: `families`, then `joins` in any order, then `leaves` and `farewells` one by one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Births; every creator stands after its own birth.
    pub families: Vec<Family>,
    /// `(pid, pgid)`: pid calls `setpgid(0, pgid)`.
    pub joins: Vec<(i32, i32)>,
    /// The same for group leaders that left their own group, in this order, after all joins.
    pub leaves: Vec<(i32, i32)>,
    /// Stand-ins, at the very end.
    pub farewells: Vec<Farewell>,
}

#[derive(Clone)]
struct Node {
    pid: i32,
    ppid: i32,
    pgid: i32,
    sid: i32,
    exit_signal: i32,
    /// Adopter of its children if it is a helper, and rank of its farewell.
    stand_in: Option<(u8, Option<i32>)>,
}

struct Planner {
    nodes: Vec<Node>,
    index: HashMap<i32, usize>,
    /// Session a leader must be born in, for the sake of children it had before `setsid`.
    born_in: HashMap<i32, i32>,
    /// Creator of each pid, and whether it acts before its own setsid, and whether as a sibling.
    made_by: HashMap<i32, (i32, bool, bool)>,
    taken: HashSet<i32>,
    next_free: i32,
}

/// Orders the births of `procs` (parents need not stand before children). `pid_limit` is the first number
/// that is no valid pid at the target (`kernel.pid_max`).
pub fn plan(procs: &[ProcNode], pid_limit: i32) -> Result<Plan, Unplannable> {
    let mut p = Planner::new(procs, pid_limit)?;
    p.constrain_leaders();
    for at in 0..procs.len() {
        p.choose_creator(at)?;
    }
    p.stand_in_for_groups()?;
    p.finish()
}

impl Planner {
    fn new(procs: &[ProcNode], pid_limit: i32) -> Result<Self, Unplannable> {
        let own = |id: i32| if id == 0 { INIT } else { id };
        let mut index = HashMap::new();
        let mut nodes = Vec::new();
        let mut taken = HashSet::new();
        for n in procs {
            if n.pid <= INIT {
                return Err(odd(n.pid, "is not a pid a process of a pod can have"));
            }
            for &id in n.tids.iter().chain([&n.pid]) {
                if id >= pid_limit {
                    return Err(odd(n.pid, format!("id {id} is beyond kernel.pid_max {pid_limit} here")));
                }
            }
            if index.insert(n.pid, nodes.len()).is_some() {
                return Err(odd(n.pid, "appears twice"));
            }
            taken.extend(n.tids.iter().chain([&n.pid, &n.pgid, &n.sid]));
            let (pgid, sid) = (own(n.pgid), own(n.sid));
            if (sid == n.pid && pgid != n.pid) || (pgid == INIT) != (pgid == INIT && sid == INIT) {
                return Err(odd(n.pid, format!("group {} cannot lie in session {}", n.pgid, n.sid)));
            }
            nodes.push(Node {
                pid: n.pid,
                ppid: n.ppid,
                pgid,
                sid,
                exit_signal: n.exit_signal,
                stand_in: None,
            });
        }
        let planner = Self {
            nodes,
            index,
            born_in: HashMap::new(),
            made_by: HashMap::new(),
            taken,
            next_free: pid_limit - 1,
        };
        planner.check_parents()?;
        Ok(planner)
    }

    fn check_parents(&self) -> Result<(), Unplannable> {
        for n in &self.nodes {
            if n.ppid == 0 {
                return Err(odd(n.pid, "its parent is outside the pod"));
            }
            if n.ppid != INIT && !self.index.contains_key(&n.ppid) {
                return Err(odd(n.pid, format!("its parent {} is missing", n.ppid)));
            }
            if !self.descends(n.pid, INIT) {
                return Err(odd(n.pid, "it is its own ancestor"));
            }
        }
        Ok(())
    }

    fn node(&self, pid: i32) -> Option<&Node> {
        self.index.get(&pid).map(|&at| &self.nodes[at])
    }

    /// Whether `ancestor` is met on the way up from `pid`.
    fn descends(&self, pid: i32, ancestor: i32) -> bool {
        let mut at = pid;
        for _ in 0..=self.nodes.len() {
            match self.node(at) {
                Some(n) if n.ppid == ancestor => return true,
                Some(n) => at = n.ppid,
                None => return false,
            }
        }
        false
    }

    fn depth(&self, pid: i32) -> usize {
        let mut at = pid;
        let mut depth = 0;
        while let Some(n) = self.node(at) {
            depth += 1;
            at = n.ppid;
        }
        depth
    }

    /// The session `pid` must be born in, if that matters.
    fn wanted(&self, n: &Node) -> Option<i32> {
        if n.sid == n.pid { self.born_in.get(&n.pid).copied() } else { Some(n.sid) }
    }

    /// A leader with a child in another session had that child before its own `setsid`, and so was itself
    /// born in that session: unless the other session's leader is below it (then the child was adopted).
    /// Deepest first, since such a need is handed up.
    fn constrain_leaders(&mut self) {
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        order.sort_by_key(|&at| std::cmp::Reverse(self.depth(self.nodes[at].pid)));
        for at in order {
            let n = self.nodes[at].clone();
            let Some(parent) = self.node(n.ppid).cloned() else { continue };
            let Some(session) = self.wanted(&n) else { continue };
            if parent.sid != parent.pid || session == parent.pid {
                continue;
            }
            if !self.descends(session, parent.pid) {
                self.born_in.entry(parent.pid).or_insert(session);
            }
        }
    }

    fn choose_creator(&mut self, at: usize) -> Result<(), Unplannable> {
        let n = self.nodes[at].clone();
        let made_by = match self.wanted(&n) {
            None => (n.ppid, false, false),
            Some(s) if n.ppid == INIT && s == INIT => (INIT, false, false),
            Some(s) if self.node(n.ppid).is_some_and(|q| q.sid == s) => (n.ppid, false, false),
            Some(s) if self.born_in.get(&n.ppid) == Some(&s) => (n.ppid, true, false),
            Some(s) => self.by_session(&n, s)?,
        };
        self.made_by.insert(n.pid, made_by);
        Ok(())
    }

    /// A creator in session `s` for a process whose parent is not in it.
    fn by_session(&mut self, n: &Node, s: i32) -> Result<(i32, bool, bool), Unplannable> {
        if s == INIT {
            return Err(odd(n.pid, format!("is in init's session, its parent {} never was", n.ppid)));
        }
        if !self.index.contains_key(&s) {
            let ppid = self.parent_for_leader(s, n.ppid);
            self.add(Node {
                pid: s,
                ppid,
                pgid: s,
                sid: s,
                exit_signal: libc::SIGCHLD,
                stand_in: Some((2, None)),
            });
            self.made_by.insert(s, (ppid, false, false));
        }
        let leader = self.nodes[self.index[&s]].clone();
        if leader.sid != leader.pid {
            return Err(odd(n.pid, format!("its session {s} bears the pid of a process of another session")));
        }
        if leader.ppid == n.ppid && leader.exit_signal == n.exit_signal {
            return Ok((s, false, true));
        }
        if n.ppid != INIT && !self.descends(s, n.ppid) {
            return Err(odd(n.pid, format!("its session {s} does not stem from its parent {}", n.ppid)));
        }
        if n.exit_signal != libc::SIGCHLD {
            return Err(odd(n.pid, format!("an adopted process with exit signal {}", n.exit_signal)));
        }
        let helper = self.free_pid(n.pid)?;
        let adopter = (n.ppid != INIT).then_some(n.ppid);
        self.add(Node {
            pid: helper,
            ppid: s,
            pgid: s,
            sid: s,
            exit_signal: libc::SIGCHLD,
            stand_in: Some((0, adopter)),
        });
        self.made_by.insert(helper, (s, false, false));
        Ok((helper, false, false))
    }

    /// Where to put the stand-in of a dead session leader: under the deepest of those who adopted its kin,
    /// for from there children can still be handed up.
    fn parent_for_leader(&self, s: i32, first: i32) -> i32 {
        let was_in =
            |pid: i32| self.node(pid).is_some_and(|n| n.sid == s) || self.born_in.get(&pid) == Some(&s);
        let adopters =
            self.nodes.iter().filter(|n| self.wanted(n) == Some(s) && !was_in(n.ppid)).map(|n| n.ppid);
        adopters.max_by_key(|&pid| self.depth(pid)).unwrap_or(first)
    }

    fn add(&mut self, n: Node) {
        self.index.insert(n.pid, self.nodes.len());
        self.taken.insert(n.pid);
        self.nodes.push(n);
    }

    fn free_pid(&mut self, pid: i32) -> Result<i32, Unplannable> {
        while self.next_free > INIT && self.taken.contains(&self.next_free) {
            self.next_free -= 1;
        }
        if self.next_free <= INIT {
            return Err(odd(pid, "no free pid is left for a helper"));
        }
        self.next_free -= 1;
        Ok(self.next_free + 1)
    }

    /// Groups that outlived their leader get it back for the time of joining.
    fn stand_in_for_groups(&mut self) -> Result<(), Unplannable> {
        for n in self.nodes.clone() {
            if n.pgid == INIT {
                continue;
            }
            if let Some(leader) = self.node(n.pgid) {
                if leader.sid != n.sid {
                    return Err(odd(n.pid, format!("its group {} is in another session", n.pgid)));
                }
                continue;
            }
            if n.sid != INIT && !self.index.contains_key(&n.sid) {
                return Err(odd(n.pid, format!("its session {} has no leader and no history", n.sid)));
            }
            self.add(Node {
                pid: n.pgid,
                ppid: n.sid,
                pgid: n.pgid,
                sid: n.sid,
                exit_signal: libc::SIGCHLD,
                stand_in: Some((1, None)),
            });
            self.made_by.insert(n.pgid, (n.sid, false, false));
        }
        Ok(())
    }

    fn finish(self) -> Result<Plan, Unplannable> {
        let mut plan = Plan { families: self.families()?, ..Plan::default() };
        let leaders: HashSet<i32> = self.leaders();
        let mut leavers = Vec::new();
        for n in &self.nodes {
            let helper = n.stand_in.is_some_and(|(rank, _)| rank == 0);
            if n.pgid == n.pid || n.pgid == INIT || helper {
                continue;
            }
            if leaders.contains(&n.pid) { leavers.push(n) } else { plan.joins.push((n.pid, n.pgid)) }
        }
        // A leader that left its own group goes only after leaders that join that group have come.
        while !leavers.is_empty() {
            let at = leavers.iter().position(|n| !leavers.iter().any(|m| m.pgid == n.pid)).unwrap_or(0);
            let n = leavers.remove(at);
            plan.leaves.push((n.pid, n.pgid));
        }
        let mut ends: Vec<&Node> = self.nodes.iter().filter(|n| n.stand_in.is_some()).collect();
        ends.sort_by_key(|n| n.stand_in.map(|(rank, _)| rank));
        plan.farewells = ends
            .iter()
            .map(|n| Farewell { pid: n.pid, parent: n.ppid, adopter: n.stand_in.and_then(|(_, a)| a) })
            .collect();
        Ok(plan)
    }

    /// Processes whose pid names a group somebody is in (sessions leaders lead theirs by `setsid`).
    fn leaders(&self) -> HashSet<i32> {
        let named: HashSet<i32> = self.nodes.iter().map(|n| n.pgid).collect();
        self.nodes.iter().filter(|n| n.sid != n.pid && named.contains(&n.pid)).map(|n| n.pid).collect()
    }

    fn families(&self) -> Result<Vec<Family>, Unplannable> {
        let leaders = self.leaders();
        let mut made: HashMap<i32, Family> = HashMap::new();
        for n in &self.nodes {
            let (creator, before, sibling) = self.made_by[&n.pid];
            let family = made.entry(creator).or_default();
            let birth = Birth { pid: n.pid, sibling, exit_signal: n.exit_signal };
            if before { family.before.push(birth) } else { family.after.push(birth) }
        }
        let mut order = Vec::new();
        let mut queue = std::collections::VecDeque::from([INIT]);
        let mut born = 0;
        while let Some(pid) = queue.pop_front() {
            let mut family = made.remove(&pid).unwrap_or_default();
            family.creator = pid;
            family.setsid = self.node(pid).is_some_and(|n| n.sid == n.pid);
            family.lead_group = leaders.contains(&pid);
            queue.extend(family.before.iter().chain(&family.after).map(|b| b.pid));
            born += family.before.len() + family.after.len();
            if !family.before.is_empty() || !family.after.is_empty() || family.setsid || family.lead_group {
                order.push(family);
            }
        }
        if born != self.nodes.len() {
            let lost = made.values().flat_map(|f| f.before.iter().chain(&f.after)).next();
            return Err(odd(lost.map_or(0, |b| b.pid), "its session's history runs in a circle"));
        }
        Ok(order)
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
