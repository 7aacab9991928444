//! `podmig generate`: the manual page, shell completions, systemd units.

use crate::base::{Failure, Kind};
use crate::cli::args::Cli;
use crate::cli::{Context, man, out};
use clap::CommandFactory;
use clap_complete::Shell;

/// `generate man`: the manual page.
pub fn man() -> Result<i32, Failure> {
    let page = man::page().map_err(|e| Failure::new(Kind::Failed, "manual page", e.to_string()))?;
    out::text(&page);
    Ok(0)
}

/// `generate completions`: for the shell named, or the caller's.
pub fn completions(shell: Option<&str>) -> Result<i32, Failure> {
    let own = std::env::var("SHELL").unwrap_or_default();
    let name = shell.unwrap_or_else(|| own.rsplit('/').next().unwrap_or_default());
    let shell: Shell = match (name.parse(), shell) {
        (Ok(shell), _) => shell,
        (Err(_), None) => Shell::Bash,
        (Err(_), Some(_)) => {
            return Err(Failure::new(Kind::Usage, name, "a shell is bash, zsh, fish, elvish or powershell"));
        }
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "podmig", &mut text);
    out::bytes(&text);
    Ok(0)
}

/// `generate systemd`: a unit for the pod, or for the agent.
pub fn systemd(ctx: &Context, pod: Option<&str>) -> Result<i32, Failure> {
    let program =
        std::env::current_exe().map_or_else(|_| "/usr/bin/podmig".to_owned(), |p| p.display().to_string());
    let root = root(ctx);
    match pod {
        None => out::text(&agent_unit(&program, &root)),
        Some(name) => {
            let record = ctx.store.find_here(name)?;
            out::text(&pod_unit(&program, &root, record.spec.name.as_str()));
        }
    }
    Ok(0)
}

/// The flag that leads a unit to the same places.
fn root(ctx: &Context) -> String {
    let tail = std::path::Path::new("var/lib/podmig");
    match ctx.places.var.ancestors().nth(3) {
        Some(root) if ctx.places.var == root.join(tail) && root != std::path::Path::new("/") => {
            format!(" --root {}", root.display())
        }
        _ => String::new(),
    }
}

fn agent_unit(program: &str, root: &str) -> String {
    format!(
        "[Unit]\nDescription=podmig agent: accepts pods from trusted hosts\nAfter=network-online.target\n\
         Wants=network-online.target\n\n[Service]\nExecStart={program}{root} agent\nRestart=on-failure\n\
         # Pods have control groups of their own: ending the agent never ends a pod.\nKillMode=mixed\n\n\
         [Install]\nWantedBy=multi-user.target\n"
    )
}

/// The pod's monitor and processes are outside the unit's control group, so the unit holds only the two commands.
/// Status 8 (the pod lives on another host) is a success: after a move the old host must not start it again. So is 9: it
/// runs already.
fn pod_unit(program: &str, root: &str, name: &str) -> String {
    format!(
        "[Unit]\nDescription=pod {name}\nAfter=network-online.target\nWants=network-online.target\n\n[Service]\n\
         Type=oneshot\nRemainAfterExit=yes\nExecStart={program}{root} start {name}\nExecStop={program}{root} stop {name}\n\
         SuccessExitStatus=8 9\n\n[Install]\nWantedBy=multi-user.target\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::store::{Places, Store};

    #[test]
    fn a_unit_leads_to_the_same_places() {
        let places = Places::resolve(Some(std::path::Path::new("/srv/a")));
        let ctx = Context { store: Store::open(&places), places, json: false };
        assert_eq!(root(&ctx), " --root /srv/a");
        let unit = pod_unit("/usr/bin/podmig", &root(&ctx), "web");
        assert!(unit.contains("ExecStart=/usr/bin/podmig --root /srv/a start web\n"));
        assert!(unit.contains("SuccessExitStatus=8"));
    }
}
