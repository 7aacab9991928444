//! The skeleton as a whole: facts about init, scratch, transport, then births, address spaces, farewells.

use super::error::{Error, Result};
use super::handover::Transport;
use super::{Body, Builder, Host, Skeleton, check, files};
use crate::base::AddrRange;
use crate::kernel::maps;
use crate::kernel::pidfd;
use crate::kernel::procfs::Proc;
use crate::remote::{Arg, Results, Slot, Stopped};
use crate::state::mm::MmId;
use crate::state::mm::hole::common_hole;
use crate::state::mm::restore::Special;
use crate::state::object::{self, Object, ObjectId};
use crate::state::script::{About, Script};
use crate::state::task::plan;
use crate::state::timer::restore::PR_TIMER_CREATE_RESTORE_IDS;
use crate::state::{Tree, cred};
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Scratch: one page of code and the area for calls and data; large enough for the longest script (a process with a
/// hundred thousand descriptors). Only what is written of it takes memory.
const SCRATCH: u64 = 16 << 20;

/// What init has.
pub(super) fn learn(init: i32) -> Result<Host> {
    let path = |name: &str| format!("/proc/{init}/{name}");
    let proc = Proc::open(init).map_err(|e| Error::io(path(""))(e.into()))?;
    let read = |name: &str| proc.read(name).map_err(|e| Error::io(path(name))(e.into()));
    let text = |name: &str| -> Result<String> { Ok(String::from_utf8_lossy(&read(name)?).trim().to_owned()) };
    let odd = |name: &str| Error::io(path(name))(std::io::ErrorKind::InvalidData.into());
    let maps_text = read("maps")?;
    let lines = maps::parse(&maps_text).ok_or_else(|| odd("maps"))?;
    let find = |name: &[u8]| lines.iter().find(|l| l.name == name).map(|l| l.range);
    let special = Special { vvar: find(b"[vvar]"), vclock: find(b"[vvar_vclock]"), vdso: find(b"[vdso]") };
    let init_maps = lines.iter().filter(|l| l.name != b"[vsyscall]").map(|l| l.range).collect();
    let status = procfs::process::Process::new(init)
        .and_then(|p| Ok((p.status()?, p.limits()?)))
        .map_err(|e| Error::io(path("status"))(std::io::Error::other(e.to_string())))?;
    let (status, limits) = status;
    let open_files = match limits.max_open_files.hard_limit {
        procfs::process::LimitValue::Value(n) => n,
        procfs::process::LimitValue::Unlimited => u64::MAX,
    };
    let pid_max: String =
        std::fs::read_to_string("/proc/sys/kernel/pid_max").map_err(Error::io("kernel.pid_max"))?;
    Ok(Host {
        before: cred::restore::Before {
            bounding: status.capbnd.unwrap_or(u64::MAX),
            permitted: status.capprm,
        },
        special,
        init_maps,
        open_files,
        pid_max: pid_max.trim().parse().map_err(|_| odd("kernel.pid_max"))?,
        timer_ids: false,
        oom_score_adj: text("oom_score_adj")?.parse().map_err(|_| odd("oom_score_adj"))?,
        timer_slack: crate::kernel::sched::timer_slack(init),
        coredump_filter: u32::from_str_radix(&text("coredump_filter")?, 16)
            .map_err(|_| odd("coredump_filter"))?,
    })
}

impl Builder {
    /// Builds processes and empty address spaces. Once only; a failure leaves the builder fit for [`Builder::abort`].
    pub fn skeleton(&mut self, tree: &Tree) -> Result<Skeleton> {
        if self.slot.is_some() {
            return Err(Error::Order("build a skeleton twice"));
        }
        let adapted = self.adapted(tree)?;
        let tree = &*adapted;
        check::tree(tree)?;
        let plan = plan::plan(&tree.procs, self.host.pid_max)?;
        let start = Instant::now();
        self.prepare(tree)?;
        self.stage("scratch and transport in init", start);

        let start = Instant::now();
        let files = self.gather(tree, |builder| builder.births(&plan.families))?;
        self.stage("births, files opened", start);

        let start = Instant::now();
        self.live = live(tree);
        self.spaces(tree, &plan, &files)?;
        self.stage("address spaces", start);

        let start = Instant::now();
        self.part(tree, &plan)?;
        self.tree = Some(tree.clone());
        self.stage("helpers and zombies", start);
        self.handles(true)
    }

    /// Opens the tree's files and makes those of its objects that are not there yet, while `work` goes on.
    pub(super) fn gather(
        &mut self,
        tree: &Tree,
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Vec<OwnedFd>> {
        let foreign = foreign_devices()?;
        let missing =
            (0u32..).map(ObjectId).zip(&tree.objects).filter(|(id, _)| !self.objects.contains_key(id));
        let (named, nameless): (Vec<_>, Vec<_>) = missing.partition(|(_, o)| object::restore::has_name(o));
        let ns = super::inside::PodNs::of(self.ctx.init)?;
        let mut known = std::mem::take(&mut self.known_files);
        let (opened, ()) = ns.beside(
            || open_inside(tree, &named, &foreign, &mut known),
            || {
                for (id, o) in nameless {
                    self.objects.insert(id, object::restore::nameless(o)?);
                }
                work(self)
            },
        )?;
        self.known_files = known;
        self.objects.extend(opened.objects);
        Ok(opened.files)
    }

    pub(super) fn handles(&self, anew: bool) -> Result<Skeleton> {
        let mut objects = HashMap::new();
        for (id, fd) in &self.objects {
            objects.insert(
                *id,
                fd.try_clone().map_err(Error::io("a second handle to an object (fcntl F_DUPFD)"))?,
            );
        }
        let pids =
            self.live.iter().filter_map(|pid| Some((MmId(*pid), self.bodies.get(pid)?.host))).collect();
        Ok(Skeleton { pids, objects, anew, lost: Vec::new() })
    }

    /// Scratch at an address nobody will use, and a socket pair that every process inherits.
    fn prepare(&mut self, tree: &Tree) -> Result<()> {
        let vmas = tree.mms.iter().flat_map(|m| m.vmas.iter().map(|v| v.range));
        let passing = self.host.special.size();
        let hole = common_hole(vmas.chain(self.host.init_maps.iter().copied()), SCRATCH + passing)
            .ok_or_else(|| {
                Error::unfit(1)("no piece of address space is free in all processes".to_owned())
            })?;
        self.passing = hole.start + SCRATCH;
        let failed = Error::remote(1, "making room in the pod's init");
        let at = self.ctx.syscall_at;
        let init = self.init.as_mut().ok_or(Error::Order("build"))?;
        let range = AddrRange::new(hole.start, hole.start + SCRATCH);
        self.slot = Some(Slot::map(init, at, range).map_err(failed)?);

        let mut s = Script::new();
        let pair = s.out(8);
        s.must(
            "socketpair",
            About::Nothing,
            libc::SYS_socketpair,
            &[libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0u64.into(), pair.into()],
        );
        let ids = s.batch().call(
            libc::SYS_prctl,
            &[PR_TIMER_CREATE_RESTORE_IDS.into(), 2u64.into(), 0u64.into(), 0u64.into(), 0u64.into()],
        );
        let r = self.run(1, &s)?;
        self.host.timer_ids = r.ret(ids).is_ok();
        let (theirs, ours) = (r.int(pair, 0), r.int(pair, 4));
        let fd = pidfd::borrow(self.ctx.init, ours).map_err(|source| Error::HandOver {
            pid: 1,
            what: "pidfd_getfd",
            source,
        })?;
        self.transport = Some(Transport { ours: fd, number: theirs });
        let mut s = Script::new();
        s.must("close", About::Number(ours.into()), libc::SYS_close, &[ours.into()]);
        self.run(1, &s).map(drop)
    }

    /// The leader of process `pid` (1 = init).
    pub(super) fn leader(&mut self, pid: i32) -> Result<&mut Stopped> {
        match pid {
            1 => self.init.as_mut().ok_or(Error::Order("run a batch")),
            pid => {
                let first = self.bodies.get_mut(&pid).and_then(|b: &mut Body| b.threads.first_mut());
                first.map(|(_, task)| task).ok_or(Error::Order("run a batch"))
            }
        }
    }

    /// Runs a script in the leader of process `pid`.
    pub(super) fn run(&mut self, pid: i32, s: &Script) -> Result<Results> {
        let slot = self.slot.ok_or(Error::Order("run a batch"))?;
        let results = slot.run(self.leader(pid)?, s.as_batch());
        self.judge(pid, s, results)
    }

    pub(super) fn judge(
        &mut self,
        pid: i32,
        s: &Script,
        results: crate::remote::Result<Results>,
    ) -> Result<Results> {
        let results = results.map_err(Error::remote(pid, "running a batch"))?;
        let told = s.check(&results).map_err(|source| Error::Call { pid, source })?;
        self.warnings.extend(told.iter().map(|f| format!("process {pid}: {f}: {}", f.errno.desc())));
        Ok(results)
    }

    /// Number of the transport in skeletons.
    pub(super) fn their_end(&self) -> Result<i32> {
        self.transport.as_ref().map(|t| t.number).ok_or(Error::Order("hand over descriptors"))
    }
}

/// Everything but `number` closed.
pub(super) fn close_all_but(s: &mut Script, number: i32) {
    let close = |s: &mut Script, first: u64, last: Arg| {
        s.must(
            "close_range",
            About::Number(first as i64),
            libc::SYS_close_range,
            &[first.into(), last, 0u64.into()],
        );
    };
    if number > 0 {
        close(s, 0, (number - 1).into());
    }
    close(s, number as u64 + 1, u32::MAX.into());
}

/// The processes that have an address space, in the order of the tree.
pub(super) fn live(tree: &Tree) -> Vec<i32> {
    tree.procs.iter().filter(|n| n.zombie.is_none()).map(|n| n.pid).collect()
}

struct Opened {
    files: Vec<OwnedFd>,
    objects: Vec<(ObjectId, OwnedFd)>,
}

fn open_inside(
    tree: &Tree,
    named: &[(ObjectId, &Object)],
    foreign: &HashSet<u64>,
    known: &mut files::Known,
) -> Result<Opened> {
    let files = files::open_all(&tree.files, known).map_err(Error::Files)?;
    let mut objects = Vec::new();
    for (id, o) in named {
        objects.push((*id, object::restore::named(o, foreign)?));
    }
    Ok(Opened { files, objects })
}

/// `st_dev` of every file system mounted where this process is: none of them is the pod's own.
fn foreign_devices() -> Result<HashSet<u64>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("/proc/self/mountinfo"))?;
    let dev = |line: &str| {
        let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
        Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
    };
    Ok(text.lines().filter_map(dev).collect())
}
