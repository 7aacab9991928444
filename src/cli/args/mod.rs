//! What can be typed: every verb and flag of the command line, with its help. Meaning is given in `request`.

mod moves;
mod start;

pub use moves::{CheckpointArgs, MoveArgs, ResolveArgs, RestoreArgs};
pub use start::StartArgs;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Start any program in a pod and move it, running, to another Linux host.
#[derive(Parser, Debug)]
#[command(
    name = "podmig",
    version,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 no such pod, 4 refused before freezing, 5 failed or cancelled \
                  before commit, 6 in doubt, 7 peer unreachable or not trusted, 8 the pod lives on another host, 9 name, \
                  address or port taken, 124 `wait --timeout`. `start --fg`, `attach` and `exec` pass the program's \
                  status; their own failures are 125, 126, 127."
)]
pub struct Cli {
    /// One JSON object on standard output (streams: one a line)
    #[arg(long, global = true)]
    pub json: bool,
    /// Keep everything under DIR: DIR/etc/podmig, DIR/var/lib/podmig, DIR/run/podmig
    #[arg(long, global = true, value_name = "DIR", env = "PODMIG_ROOT", hide_env_values = true)]
    pub root: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// A pod by name or id, and nothing else.
#[derive(Args, Debug, Clone)]
pub struct PodArg {
    /// The pod, by name or id
    pub pod: String,
}

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start a command in a new pod, or an ended pod again
    Start(Box<StartArgs>),
    /// List the pods of this host
    Ps {
        /// Ended, moved and lost ones too
        #[arg(short, long)]
        all: bool,
        /// Names alone
        #[arg(short, long)]
        quiet: bool,
    },
    /// Everything known about a pod
    Inspect(PodArg),
    /// On which host a pod lives
    Where(PodArg),
    /// The published ports of a pod
    Port(PodArg),
    /// What a pod has written to its output
    Logs(LogsArgs),
    /// Connect to the input and output of a pod's command
    Attach(PodArg),
    /// Run another command in a running pod
    Exec(ExecArgs),
    /// Wait until a pod ends, is ready, listens or has logged something
    Wait(WaitArgs),
    /// Stop all tasks of a pod in their tracks
    Pause(PodArg),
    /// Let a paused pod run on
    Resume(PodArg),
    /// End a pod: SIGTERM to its command, after the time SIGKILL to all
    Stop {
        /// The pod, by name or id
        pod: String,
        /// How long the command may take to end
        #[arg(long, value_name = "TIME", default_value = "10s")]
        time: String,
    },
    /// End a whole pod at once, or send its command a signal
    Kill {
        /// The pod, by name or id
        pod: String,
        /// Signal to the command instead of ending the pod
        #[arg(short, long, value_name = "SIG")]
        signal: Option<String>,
    },
    /// Forget an ended pod: record, log, name
    Rm {
        /// The pod, by name or id
        pod: String,
        /// End it first if it runs; no error if there is none
        #[arg(short, long)]
        force: bool,
    },
    /// Write a pod to a file and stop it
    Checkpoint(CheckpointArgs),
    /// Bring a pod back from a file
    Restore(Box<RestoreArgs>),
    /// Move a running pod to another host
    Move(Box<MoveArgs>),
    /// Follow the move of a pod
    Watch(PodArg),
    /// Cancel the move of a pod
    Cancel(PodArg),
    /// Say where a pod in doubt lives, when its target is gone for good
    Resolve(ResolveArgs),
    /// Accept pods from trusted hosts
    Agent {
        /// Where to listen
        #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:7411")]
        listen: String,
    },
    /// Accept one pod over standard input and output (run by the other host through ssh)
    Receive,
    /// Try what this host (or another one) can do
    Check {
        /// A host of `host ls`, or ssh://[USER@]HOST[:PORT]
        host: Option<String>,
    },
    /// Look into an image file
    Image {
        /// What to do with it
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Write the manual page, shell completions or systemd units
    Generate {
        /// What to write
        #[command(subcommand)]
        command: GenerateCommand,
    },
    /// Versions of this program and of what it writes and speaks
    Version,
    /// This host's identity and the hosts it trusts
    Host {
        /// What to do
        #[command(subcommand)]
        command: HostCommand,
    },
    /// Names of pods
    Dns {
        /// What to do
        #[command(subcommand)]
        command: DnsCommand,
    },
    /// Move every pod away (reserved)
    #[command(hide = true)]
    Drain,
}

/// `podmig logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// The pod, by name or id
    pub pod: String,
    /// Go on until the pod ends
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N")]
    pub tail: Option<String>,
    /// Only what is younger: a date (RFC 3339) or an age (10m)
    #[arg(long, value_name = "T")]
    pub since: Option<String>,
}

/// `podmig exec`.
#[derive(Args, Debug)]
pub struct ExecArgs {
    /// With a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Return at once, leave the command running
    #[arg(short, long, conflicts_with = "tty")]
    pub detach: bool,
    /// Environment: K=V, or K for the caller's value
    #[arg(short, long, value_name = "K[=V]")]
    pub env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User: NAME or UID, and :GROUP or :GID
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// The pod, by name or id
    pub pod: String,
    /// The command
    #[arg(last = true, required = true, value_name = "CMD")]
    pub cmd: Vec<String>,
}

/// `podmig wait`.
#[derive(Args, Debug)]
pub struct WaitArgs {
    /// The pod, by name or id
    pub pod: String,
    /// For what: exit, ready, tcp:PORT (it listens), log:TEXT (a line with that text)
    #[arg(long, value_name = "WHAT", default_value = "exit")]
    pub r#for: String,
    /// Give up after this time (exit 124)
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
}

/// `podmig image`.
#[derive(Subcommand, Debug)]
pub enum ImageCommand {
    /// What an image holds
    Show {
        /// The image
        file: PathBuf,
    },
    /// Whether an image is whole
    Verify {
        /// The image
        file: PathBuf,
    },
}

/// `podmig generate`.
#[derive(Subcommand, Debug)]
pub enum GenerateCommand {
    /// The manual page (roff)
    Man,
    /// Completions for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell (the caller's $SHELL when not given)
        shell: Option<String>,
    },
    /// A systemd unit for a pod, or for the agent
    Systemd {
        /// The pod; without one the agent's unit
        pod: Option<String>,
    },
}

/// `podmig host`.
#[derive(Subcommand, Debug)]
pub enum HostCommand {
    /// This host's name and the fingerprint of its key
    Id,
    /// Trust a host
    Add {
        /// Name for it in commands
        name: String,
        /// Where its agent listens
        #[arg(value_name = "ADDR:PORT", required_unless_present = "ssh", conflicts_with = "ssh")]
        addr: Option<String>,
        /// What `podmig host id` ends in there
        #[arg(required_unless_present = "ssh", conflicts_with = "ssh")]
        fingerprint: Option<String>,
        /// Reach it over ssh, without an agent
        #[arg(long, value_name = "[USER@]HOST")]
        ssh: Option<String>,
    },
    /// The trusted hosts
    Ls,
    /// Trust a host no longer
    Rm {
        /// Its name
        name: String,
    },
}

/// `podmig dns`.
#[derive(Subcommand, Debug)]
pub enum DnsCommand {
    /// Serve a zone that pods register themselves in
    Serve {
        /// The zone
        #[arg(long)]
        zone: String,
        /// Where to listen (UDP and TCP)
        #[arg(long, value_name = "ADDR:PORT")]
        listen: String,
    },
    /// Register this host's pods at a server
    Use {
        /// The server
        #[arg(value_name = "ADDR:PORT")]
        server: String,
        /// The zone
        #[arg(long)]
        zone: String,
        /// The key that signs updates
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// What is registered
    Show,
}
