//! The manual page, made from the flags themselves, so that the two cannot part.

use super::args::Cli;
use clap::{Arg, ArgAction, Command, CommandFactory};
use std::io;

/// The page in roff; a test holds `man/podmig.1` equal to it.
pub fn page() -> io::Result<String> {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut head = Vec::new();
    let man = clap_mangen::Man::new(command.clone()).manual("podmig").date("");
    man.render_title(&mut head)?;
    man.render_name_section(&mut head)?;
    let mut page = String::from_utf8_lossy(&head).into_owned();
    page.push_str(SYNOPSIS);
    page.push_str(".SH COMMANDS\n");
    for sub in visible(&command) {
        verb(&mut page, sub, "podmig");
    }
    page.push_str(".SH OPTIONS OF EVERY COMMAND\n");
    for arg in command.get_arguments().filter(|a| a.is_global_set()) {
        option(&mut page, arg);
    }
    page.push_str(TAIL);
    Ok(page)
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help")
}

fn verb(page: &mut String, command: &Command, parent: &str) {
    let name = format!("{parent} {}", command.get_name());
    if command.has_subcommands() {
        for sub in visible(command) {
            verb(page, sub, &name);
        }
        return;
    }
    page.push_str(&format!(".SS {}\n", escape(&synopsis(command, &name))));
    if let Some(about) = command.get_about() {
        page.push_str(&format!("{}.\n", escape(&about.to_string())));
    }
    for arg in
        command.get_arguments().filter(|a| !a.is_global_set() && !a.is_positional() && a.get_id() != "help")
    {
        option(page, arg);
    }
}

fn synopsis(command: &Command, name: &str) -> String {
    let mut words = vec![name.to_owned()];
    let own = |a: &&Arg| !a.is_global_set() && a.get_id() != "help";
    if command.get_arguments().filter(own).any(|a| !a.is_positional()) {
        words.push("[OPTIONS]".to_owned());
    }
    for arg in command.get_positionals() {
        let value = value_name(arg);
        words.push(match (arg.is_last_set(), arg.is_required_set()) {
            (true, true) => format!("-- {value}…"),
            (true, false) => format!("[-- {value}…]"),
            (false, true) => value,
            (false, false) => format!("[{value}]"),
        });
    }
    words.join(" ")
}

fn value_name(arg: &Arg) -> String {
    match arg.get_value_names() {
        Some([one, ..]) => one.to_string(),
        _ => arg.get_id().as_str().to_uppercase(),
    }
}

fn option(page: &mut String, arg: &Arg) {
    let mut names = Vec::new();
    if let Some(short) = arg.get_short() {
        names.push(format!("\\fB\\-{short}\\fR"));
    }
    if let Some(long) = arg.get_long() {
        names.push(format!("\\fB\\-\\-{}\\fR", escape(long)));
    }
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let value = if takes { format!(" \\fI{}\\fR", escape(&value_name(arg))) } else { String::new() };
    page.push_str(&format!(".TP\n{}{value}\n", names.join(", ")));
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let default: Vec<String> =
        arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).filter(|_| takes).collect();
    let default =
        if default.is_empty() { String::new() } else { format!(" [default: {}]", default.join(" ")) };
    page.push_str(&format!("{}{}\n", escape(&help), escape(&default)));
}

/// Text that roff takes as text.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('…', "\\[u2026]");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

const SYNOPSIS: &str = r".SH SYNOPSIS
\fBpodmig\fR [\-\-json] [\-\-root \fIDIR\fR] \fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]
.SH DESCRIPTION
podmig starts any unmodified program in a pod: a group of processes with private namespaces, in its own control group,
kept by a monitor of its own. A running pod can be written to a file and brought back, or moved to another Linux host.
No daemon is needed to start a pod, no kernel module and no shared storage to move one.
.PP
\fIPOD\fR is a name or an id. \fIHOST\fR is a name of \fBpodmig host ls\fR or ssh://[USER@]HOST[:PORT]. A command is
always preceded by \fB\-\-\fR. Durations are written as 100ms, 10s or 1h30m (a bare number: seconds), sizes as 4096,
512MiB or 2G. Nothing ever prompts.
";

const TAIL: &str = r#".SH DEFINITION FILES
The keys of a file given by \fB\-\-file\fR are the long flags of \fBpodmig start\fR, and \fBcmd\fR, the command as a list.
Flags win over the file. Unknown keys are an error.
.PP
.nf
name = "cache"
cmd = ["redis-server", "--save", ""]
publish = [6379]
memory = "512MiB"
.fi
.SH EXIT STATUS
.nf
0    done
1    failed
2    wrong usage, or not yet supported
3    no such pod
4    refused before freezing; what is in the way is listed
5    failed or cancelled before commit; the pod runs on the source
6    in doubt
7    peer unreachable or not trusted
8    the pod lives on another host
9    name, address or port taken
124  wait \-\-timeout ran out
126  start: the command cannot be executed
127  start: the command was not found
.fi
.PP
\fBstart \-\-fg\fR, \fBattach\fR and \fBexec\fR pass the status of the program (128+N when signal N ended it); their own
failures are 125, 126 and 127.
.SH JSON
With \fB\-\-json\fR one object is printed on standard output: an array for \fBps\fR, \fBhost ls\fR and \fBcheck\fR, one
object a line for streams (\fBlogs\fR, \fBwatch\fR). Every object has \fBschema\fR, 1; fields are only ever added. Times
end in _us, sizes are bytes, dates RFC 3339 UTC. A failure is {"schema":1,"error":{code kind object message remedy
blockers[{kind pid fd path message remedy}]}}. The states of a pod are running, paused, incoming, in\-doubt, exited,
checkpointed, moved and lost.
.SH FILES
.TP
/etc/podmig/hosts
Trusted hosts: NAME ADDR:PORT FINGERPRINT a line, or NAME ssh://[USER@]HOST.
.TP
/var/lib/podmig/
The host's key; pods, journals, logs.
.TP
/run/podmig/
Sockets.
.PP
Without root: podmig/ in $XDG_CONFIG_HOME, $XDG_STATE_HOME and $XDG_RUNTIME_DIR.
.SH ENVIRONMENT
.TP
PODMIG_ROOT
As \fB\-\-root\fR.
.TP
PODMIG_LOG
Diagnostics on standard error: error, warn, info, debug or trace.
.TP
NO_COLOR
No colour.
.PP
In a pod PODMIG_POD is its name and container is podmig.
"#;

#[cfg(test)]
mod tests {
    #[test]
    fn every_visible_verb_is_there() {
        let page = super::page().unwrap();
        for verb in ["start", "move", "host add", "generate man", "dns serve"] {
            assert!(page.contains(&format!(".SS podmig {verb}")), "{verb}");
        }
        assert!(!page.contains("drain"));
        assert!(page.contains("\\fB\\-p\\fR, \\fB\\-\\-publish\\fR \\fI[[IP:]HOST:]POD[/udp]\\fR"));
        assert!(page.contains("[default: 10s]"));
    }
}
