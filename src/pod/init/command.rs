//! The list of system calls that turns a fresh child of pid 1 into a command of the pod: terminal, limits,
//! credentials, walls, execve.

use super::{Arg, Outcome, Plan};
use crate::base::spec::User;
use crate::base::{Failure, Kind};
use crate::sandbox::{caps, seccomp};
use nix::errno::Errno;

/// Where the standard descriptors come from, as indexes into the order's descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stdio {
    /// Three descriptors: 0, 1, 2.
    Three([u64; 3]),
    /// A terminal, which becomes the controlling one.
    Terminal(u64),
}

/// What is executed, and as whom.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// Command and arguments.
    pub cmd: &'a [String],
    /// Whole environment.
    pub env: &'a [String],
    /// Working directory.
    pub cwd: &'a str,
    /// Credentials.
    pub user: &'a User,
    /// File mode creation mask.
    pub umask: u32,
    /// (RLIMIT number, soft, hard).
    pub rlimits: &'a [(u32, u64, u64)],
    /// Without walls.
    pub privileged: bool,
    /// Standard descriptors.
    pub stdio: Stdio,
}

const EXECUTE: &str = "execute";
const CHDIR: &str = "enter its directory";
const RLIMITS: &str = "set its resource limits";

/// PATH where the environment has none (execvp(3) has the same).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

impl Command<'_> {
    /// The list of calls.
    ///
    /// # Errors
    /// No command, or a NUL inside a string.
    pub fn plan(&self) -> Result<Plan, Failure> {
        let mut p = Plan::new();
        let mask = p.bytes(&0u64.to_le_bytes());
        p.call(
            "unblock signals",
            libc::SYS_rt_sigprocmask,
            &[2u64.into(), mask.into(), 0u64.into(), 8u64.into()],
        );
        p.call("begin a session", libc::SYS_setsid, &[]);
        self.stdio(&mut p);
        p.call("set its umask", libc::SYS_umask, &[u64::from(self.umask).into()]);
        for (resource, soft, hard) in self.rlimits {
            let value = p.bytes(&[soft.to_le_bytes(), hard.to_le_bytes()].concat());
            let args = [0u64.into(), u64::from(*resource).into(), value.into(), 0u64.into()];
            p.call(RLIMITS, libc::SYS_prlimit64, &args);
        }
        let bad = |reason: &str| Failure::new(Kind::Usage, self.name(), format!("cannot be run: {reason}"));
        let cwd = p.string(self.cwd).map_err(bad)?;
        p.call(CHDIR, libc::SYS_chdir, &[cwd.into()]);
        self.walls(&mut p);
        self.credentials(&mut p);
        self.execute(&mut p).map_err(bad)?;
        Ok(p)
    }

    fn name(&self) -> &str {
        self.cmd.first().map_or("", String::as_str)
    }

    fn stdio(&self, p: &mut Plan) {
        let three = match self.stdio {
            Stdio::Three(three) => three,
            Stdio::Terminal(tty) => {
                let args = [Arg::Fd(tty), libc::TIOCSCTTY.into(), 0u64.into()];
                p.call("take its terminal", libc::SYS_ioctl, &args);
                [tty; 3]
            }
        };
        for (to, from) in (0u64..).zip(three) {
            p.call("take its descriptors", libc::SYS_dup3, &[Arg::Fd(from), to.into(), 0u64.into()]);
        }
    }

    /// Bounding set and seccomp; both need what `credentials` gives up.
    fn walls(&self, p: &mut Plan) {
        let keep = caps::bounding(self.privileged);
        for cap in (0..=caps::LAST).filter(|c| keep >> c & 1 == 0) {
            let args = [(libc::PR_CAPBSET_DROP as u64).into(), u64::from(cap).into()];
            // EINVAL: the kernel does not know it.
            p.try_call("drop a capability", libc::SYS_prctl, &args);
        }
        if self.privileged {
            return;
        }
        let program = seccomp::bytes();
        let at = p.bytes(&program);
        let count = (program.len() / 8) as u64;
        let fprog = p.bytes(&[count.to_le_bytes(), at.to_le_bytes()].concat());
        let args = [u64::from(libc::SECCOMP_SET_MODE_FILTER).into(), 0u64.into(), fprog.into()];
        p.call("put up its system call filter", libc::SYS_seccomp, &args);
    }

    fn credentials(&self, p: &mut Plan) {
        let groups: Vec<u8> = self.user.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
        let at = p.bytes(&groups);
        let become_user = "take on its user";
        p.call(become_user, libc::SYS_setgroups, &[(self.user.groups.len() as u64).into(), at.into()]);
        let (uid, gid) = (u64::from(self.user.uid), u64::from(self.user.gid));
        p.call(become_user, libc::SYS_setresgid, &[gid.into(), gid.into(), gid.into()]);
        p.call(become_user, libc::SYS_setresuid, &[uid.into(), uid.into(), uid.into()]);
        // Nothing inheritable or ambient, whatever podmig itself was started with; root gets its permitted set
        // back from the bounding set at execve, anyone else none.
        let keep = if uid == 0 { caps::bounding(self.privileged) } else { 0 };
        let header = p.bytes(&[0x2008_0522u32.to_le_bytes(), 0u32.to_le_bytes()].concat());
        let (low, high) = (keep as u32, (keep >> 32) as u32);
        let sets: Vec<u8> = [low, low, 0, high, high, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
        let sets = p.bytes(&sets);
        p.call("set its capabilities", libc::SYS_capset, &[header.into(), sets.into()]);
    }

    fn execute(&self, p: &mut Plan) -> Result<(), &'static str> {
        if self.name().is_empty() {
            return Err("no command");
        }
        let argv = p.strings(self.cmd)?;
        let envp = p.strings(self.env)?;
        for path in self.candidates() {
            let path = p.string(&path)?;
            p.try_call(EXECUTE, libc::SYS_execve, &[path.into(), argv.into(), envp.into()]);
        }
        Ok(())
    }

    /// The files to try, as execvp(3) does with PATH from the command's own environment.
    fn candidates(&self) -> Vec<String> {
        let name = self.name();
        if name.contains('/') {
            return vec![name.to_owned()];
        }
        let path = self.env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        let in_dir = |dir: &str| if dir.is_empty() { format!("./{name}") } else { format!("{dir}/{name}") };
        path.split(':').map(in_dir).collect()
    }

    /// What a user is told about a command that was not executed: 127 when it was not found, else 126.
    pub fn failure(&self, outcome: Outcome) -> Failure {
        let Outcome::Failed { what, errno } = outcome else {
            return Failure::new(Kind::Failed, self.name(), "it was executed after all");
        };
        let text = errno.desc().to_lowercase();
        match (what, errno) {
            (EXECUTE, Errno::ENOENT | Errno::ENOTDIR) if self.name().contains('/') => {
                Failure::new(Kind::NoSuchCommand, self.name(), "no such file, or its interpreter is not there")
            }
            (EXECUTE, Errno::ENOENT | Errno::ENOTDIR) => {
                Failure::new(Kind::NoSuchCommand, self.name(), "command not found")
                    .remedy("give its path, or a PATH by `-e PATH=…`")
            }
            (EXECUTE, Errno::EACCES) => Failure::new(
                Kind::CannotExecute,
                self.name(),
                format!("cannot be executed by uid {}: permission denied", self.user.uid),
            )
            .remedy("it needs the execute permission, and each directory on its path the search permission"),
            (EXECUTE, Errno::ENOEXEC) => {
                Failure::new(Kind::CannotExecute, self.name(), "cannot be executed: not a program, nor a script with `#!`")
            }
            (CHDIR, _) => Failure::new(Kind::CannotExecute, self.cwd, format!("cannot {what}: {text}"))
                .remedy("give a directory that is there by `-w`"),
            (RLIMITS, Errno::EPERM) => Failure::new(
                Kind::CannotExecute,
                self.name(),
                "its hard resource limits are above those of this host's podmig, which lacks CAP_SYS_RESOURCE",
            )
            .remedy("raise the limits of the shell or service that starts podmig"),
            _ => Failure::new(Kind::CannotExecute, self.name(), format!("cannot {what}: {text}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command<'a>(cmd: &'a [String], env: &'a [String], user: &'a User) -> Command<'a> {
        let stdio = Stdio::Three([0, 1, 2]);
        Command { cmd, env, cwd: "/", user, umask: 0o22, rlimits: &[], privileged: false, stdio }
    }

    #[test]
    fn the_path_is_the_commands_own() {
        let user = User::default();
        let cmd = ["x".to_owned()];
        let env = ["A=b".to_owned(), "PATH=/a::/b".to_owned()];
        assert_eq!(command(&cmd, &env, &user).candidates(), ["/a/x", "./x", "/b/x"]);
        assert_eq!(command(&cmd, &[], &user).candidates(), ["/bin/x", "/usr/bin/x"]);
        let cmd = ["./x".to_owned()];
        assert_eq!(command(&cmd, &env, &user).candidates(), ["./x"]);
    }

    #[test]
    fn what_cannot_be_a_command_is_refused() {
        let user = User::default();
        for cmd in [&[][..], &[String::new()], &["a\0b".to_owned()]] {
            assert_eq!(command(cmd, &[], &user).plan().unwrap_err().kind, Kind::Usage);
        }
    }

    #[test]
    fn failures_have_the_shells_codes() {
        let user = User::default();
        let cmd = ["x".to_owned()];
        let code =
            |what, errno| command(&cmd, &[], &user).failure(Outcome::Failed { what, errno }).kind.code();
        assert_eq!(code(EXECUTE, Errno::ENOENT), 127);
        assert_eq!(code(EXECUTE, Errno::EACCES), 126);
        assert_eq!(code(EXECUTE, Errno::ENOEXEC), 126);
        assert_eq!(code(CHDIR, Errno::ENOENT), 126);
    }
}
