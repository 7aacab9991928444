//! Everything that is true only at the freeze: descriptors, threads, signals, timers, credentials, registers.

use super::error::{Error, Result};
use super::handover::{self, Arrangement, Coming};
use super::{Builder, check};
use crate::remote::Arg;
use crate::state::cred;
use crate::state::fd::restore::Inside;
use crate::state::fd::{FdEntry, FileId};
use crate::state::mm::MmLayout;
use crate::state::object;
use crate::state::script::{About, Script};
use crate::state::task::{ProcessState, restore};
use crate::state::{PodState, Tree};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// What the descriptors' room has made for the pod.
pub(super) struct Hands<'a> {
    /// Every open file description.
    pub files: &'a HashMap<FileId, OwnedFd>,
    /// What a process does itself once all descriptors of all processes are in place.
    pub inside: &'a Inside,
}

impl Builder {
    /// [`Builder::finish`] with descriptions that are made already.
    pub(super) fn finish_with(&mut self, tree: &Tree, state: &PodState, hands: &Hands<'_>) -> Result<()> {
        check::state(tree, state)?;
        let start = Instant::now();
        let adapted = self.adapted(tree)?;
        let source = tree;
        let tree = &*adapted;
        for (id, object) in (0u32..).map(object::ObjectId).zip(&tree.objects) {
            if let Some(fd) = self.objects.get(&id) {
                object::restore::seal(fd, object)?;
            }
        }
        for p in &state.procs {
            self.table(p, state, hands)?;
            self.births_of_threads(p)?;
            self.hurry(p.pid);
            if p.stopped.is_some() {
                self.stop_job(p.pid)?;
            }
        }
        self.stage("descriptors, births of threads", start);

        let start = Instant::now();
        let layouts: HashMap<i32, &MmLayout> = tree.mms.iter().map(|m| (m.mm.0, m)).collect();
        // Children first: what their stops send to their parents is thrown away when it is the parents' turn.
        for p in state.procs.iter().rev() {
            let layout = layouts.get(&p.pid).ok_or(Error::Order("finish a process"))?;
            self.settle(tree, state, p, layout, hands)?;
        }
        self.stage("settings of processes and threads", start);

        let start = Instant::now();
        source.mms.iter().try_for_each(|layout| self.bridge(layout))?;
        for p in &state.procs {
            let layout = layouts.get(&p.pid).ok_or(Error::Order("finish a process"))?;
            self.bare(p, layout)?;
        }
        self.stage("scratch away, registers", start);

        let start = Instant::now();
        self.release_init(Some(state.last_pid))?;
        self.objects.clear();
        self.stage("init", start);
        Ok(())
    }

    /// Descriptors under their numbers, then directory, root and umask.
    fn table(&mut self, p: &ProcessState, state: &PodState, hands: &Hands<'_>) -> Result<()> {
        let mut entries: Vec<&FdEntry> = p.fds.iter().collect();
        entries.sort_by_key(|e| e.fd);
        let wanted: Vec<i32> = entries.iter().map(|e| e.fd).collect();
        let their_end = self.their_end()?;
        let plan = handover::arrange(&wanted, their_end);
        let highest = wanted.last().copied().max(plan.transport).unwrap_or(0);
        if highest as u64 >= self.host.open_files {
            let what =
                format!("descriptor {highest} is beyond the hard limit of {} here", self.host.open_files);
            return Err(Error::Unfit { pid: p.pid, what });
        }
        let mut fds: Vec<BorrowedFd<'_>> = Vec::with_capacity(entries.len());
        for e in &entries {
            let made = hands.files.get(&e.file);
            fds.push(made.ok_or_else(|| unmade(p.pid, e, state))?.as_fd());
        }
        let mut s = Script::new();
        restore::room_for_fds(&mut s, self.host.open_files, self.host.open_files);
        let from = plan.transport.unwrap_or(their_end);
        if from != their_end {
            s.must(
                "dup3",
                About::Number(from.into()),
                libc::SYS_dup3,
                &[their_end.into(), from.into(), 0u64.into()],
            );
            close(&mut s, their_end.into(), their_end);
        }
        let coming = Coming::receive(&mut s, from.into(), fds.len());
        place(&mut s, &entries, &plan, &coming);
        close(&mut s, from.into(), from);
        restore::places(&mut s, p);
        if let Some(bounding) = super::threads::common_bound(p) {
            cred::restore::bound(&mut s, self.host.before, bounding);
        }
        restore::threads(&mut s, p.threads.get(1..).unwrap_or_default().iter().map(|t| t.tid));
        handover::send(self.transport.as_ref().ok_or(Error::Order("hand over descriptors"))?, p.pid, &fds)?;
        let results = self.run(p.pid, &s)?;
        if !coming.all_came(&results) || coming.numbers(&results) != plan.arrive {
            let source = nix::errno::Errno::EBADF;
            return Err(Error::HandOver { pid: p.pid, what: "they did not arrive in order", source });
        }
        Ok(())
    }
}

fn unmade(pid: i32, e: &FdEntry, state: &PodState) -> Error {
    let kind = state.files.get(e.file.0 as usize).map(|f| format!("{:?}", f.kind)).unwrap_or_default();
    let kind: String = kind.chars().take_while(char::is_ascii_alphanumeric).collect();
    Error::Unfit { pid, what: format!("its descriptor {} ({kind}) was not made", e.fd) }
}

fn close(s: &mut Script, fd: Arg, number: i32) {
    s.must("close", About::Number(number.into()), libc::SYS_close, &[fd]);
}

/// Moves what did not arrive at its number, and sets FD_CLOEXEC.
fn place(s: &mut Script, entries: &[&FdEntry], plan: &Arrangement, coming: &Coming) {
    for &(i, to) in &plan.moved {
        let flags = if entries[i].cloexec { libc::O_CLOEXEC } else { 0 };
        s.must("dup3", About::Number(to.into()), libc::SYS_dup3, &[coming.arg(i), to.into(), flags.into()]);
        close(s, coming.arg(i), plan.arrive[i]);
    }
    for (i, e) in entries.iter().enumerate() {
        if e.cloexec && plan.arrive[i] == e.fd {
            s.must(
                "fcntl(F_SETFD)",
                About::Number(e.fd.into()),
                libc::SYS_fcntl,
                &[e.fd.into(), libc::F_SETFD.into(), libc::FD_CLOEXEC.into()],
            );
        }
    }
}
