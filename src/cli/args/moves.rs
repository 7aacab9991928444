//! What can be typed to checkpoint, restore and move.

use clap::Args;

/// `podmig checkpoint`.
#[derive(Args, Debug)]
pub struct CheckpointArgs {
    /// The pod, by name or id
    pub pod: String,
    /// The image file; `-` is standard output
    #[arg(short, long, value_name = "FILE|-")]
    pub output: String,
    /// Let the pod run on
    #[arg(long)]
    pub leave_running: bool,
    /// Progress on standard error: line, json or none [default: line at a terminal]
    #[arg(long, value_name = "FORM", num_args = 0..=1, default_missing_value = "line")]
    pub progress: Option<String>,
}

/// `podmig restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// The image file; `-` is standard input
    #[arg(value_name = "FILE|-")]
    pub file: String,
    /// A new pod of this name, unless it is the image's
    #[arg(long, value_name = "N", conflicts_with = "takeover")]
    pub name: Option<String>,
    /// A new pod, with an id, name and addresses of its own
    #[arg(long, conflicts_with = "takeover")]
    pub clone: bool,
    /// The same pod although the image was taken with --leave-running: the original is dead
    #[arg(long)]
    pub takeover: bool,
    /// Publish a port of the pod on this host
    #[arg(short, long, value_name = "[[IP:]HOST:]POD[/udp]")]
    pub publish: Vec<String>,
    /// Network: nat, lan:IF, host or none
    #[arg(long)]
    pub net: Option<String>,
    /// The pod's own address (lan)
    #[arg(long, value_name = "ADDR/LEN")]
    pub ip: Option<String>,
    /// Its default gateway (lan)
    #[arg(long, value_name = "ADDR")]
    pub gateway: Option<String>,
    /// Host name inside
    #[arg(long, value_name = "H")]
    pub hostname: Option<String>,
}

/// `podmig move`.
#[derive(Args, Debug)]
pub struct MoveArgs {
    /// The pod, by name or id
    pub pod: String,
    /// A host of `host ls`, or ssh://[USER@]HOST[:PORT]
    pub host: String,
    /// How: live, warm, cold or post-copy
    #[arg(long, default_value = "live")]
    pub mode: String,
    /// Only tell what would happen
    #[arg(long)]
    pub dry_run: bool,
    /// Longest time the pod may stand still (live)
    #[arg(long, value_name = "TIME", default_value = "100ms")]
    pub max_downtime: String,
    /// Send no faster, as 100MiB/s
    #[arg(long, value_name = "RATE")]
    pub bandwidth: Option<String>,
    /// Longest time of the whole move
    #[arg(long, value_name = "TIME", default_value = "10m")]
    pub timeout: String,
    /// What to do then: cancel, or freeze and finish
    #[arg(long, value_name = "WHAT", default_value = "cancel")]
    pub on_timeout: String,
    /// Compare all memory at both ends before commit
    #[arg(long)]
    pub verify: bool,
    /// Publish ports there as these instead of as here
    #[arg(short, long, value_name = "[[IP:]HOST:]POD[/udp]")]
    pub publish: Vec<String>,
    /// Progress on standard error: line, json or none [default: line at a terminal]
    #[arg(long, value_name = "FORM", num_args = 0..=1, default_missing_value = "line")]
    pub progress: Option<String>,
}

/// `podmig resolve`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("side").required(true).args(["here", "there"]))]
pub struct ResolveArgs {
    /// The pod, by name or id
    pub pod: String,
    /// It lives here: the target never took it and never will
    #[arg(long)]
    pub here: bool,
    /// It lives there: forget the copy here
    #[arg(long)]
    pub there: bool,
}
