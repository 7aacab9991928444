//! Definition files: TOML whose keys are the long flags of `podmig start`, and `cmd`.

use super::{Error, Wanted, value};
use crate::base::PodName;
use crate::policy::cpu::Level;
use crate::policy::values;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Every key a definition file may have; a test of the command line holds them equal to the flags.
pub const KEYS: &[&str] = &[
    "name",
    "net",
    "ip",
    "gateway",
    "publish",
    "tty",
    "fg",
    "env",
    "env-host",
    "workdir",
    "user",
    "hostname",
    "volume",
    "memory",
    "cpus",
    "pids",
    "cpu",
    "rm",
    "tmpfs",
    "type",
    "grace",
    "restart",
    "cgroup-parent",
    "replace",
    "privileged",
    "cmd",
];

/// Text, or a number standing for it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Word {
    Text(String),
    Whole(i64),
    Real(f64),
}

impl Word {
    fn text(self) -> String {
        match self {
            Word::Text(t) => t,
            Word::Whole(n) => n.to_string(),
            Word::Real(n) => n.to_string(),
        }
    }
}

/// One item or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Some1 {
    One(Word),
    Many(Vec<Word>),
}

impl Some1 {
    fn list(self) -> Vec<String> {
        match self {
            Some1::One(w) => vec![w.text()],
            Some1::Many(l) => l.into_iter().map(Word::text).collect(),
        }
    }
}

/// The environment: `["K=V", "K"]` or a table.
#[derive(Deserialize)]
#[serde(untagged)]
enum Env {
    List(Vec<String>),
    Table(BTreeMap<String, Word>),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    name: Option<String>,
    net: Option<String>,
    ip: Option<String>,
    gateway: Option<String>,
    publish: Option<Some1>,
    tty: Option<bool>,
    fg: Option<bool>,
    env: Option<Env>,
    env_host: Option<bool>,
    workdir: Option<String>,
    user: Option<Word>,
    hostname: Option<String>,
    volume: Option<Some1>,
    memory: Option<Word>,
    cpus: Option<Word>,
    pids: Option<Word>,
    cpu: Option<String>,
    rm: Option<bool>,
    tmpfs: Option<Some1>,
    r#type: Option<String>,
    grace: Option<Word>,
    restart: Option<String>,
    cgroup_parent: Option<String>,
    replace: Option<bool>,
    privileged: Option<bool>,
    cmd: Option<Vec<String>>,
}

/// Reads a definition file.
pub fn read_file(path: &Path, cwd: &str) -> Result<Wanted, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::File { path: path.to_path_buf(), reason: crate::pod::store::plain(&e) })?;
    from_toml(&text, cwd).map_err(|e| match e {
        Error::Value { object, reason } => {
            let line = line_of(&text, &object).map(|n| format!("line {n}: ")).unwrap_or_default();
            let reason = if object.is_empty() { reason } else { format!("{line}{object}: {reason}") };
            Error::Content { path: path.to_path_buf(), reason }
        }
        other => other,
    })
}

/// The line of the key that `object` (`KEY = VALUE`) begins with.
fn line_of(text: &str, object: &str) -> Option<usize> {
    let key = object.split([' ', '=']).next().filter(|k| KEYS.contains(k))?;
    let set = |line: &str| {
        line.trim_start().strip_prefix(key).is_some_and(|l| l.trim_start().starts_with(['=', '.']))
    };
    text.lines().position(|l| set(l) || l.trim() == format!("[{key}]")).map(|n| n + 1)
}

/// The wishes in a definition file's text; relative directories are taken from `cwd`.
pub fn from_toml(text: &str, cwd: &str) -> Result<Wanted, Error> {
    let file: File = toml::from_str(text).map_err(|e| {
        let line = e.span().map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        let at = line.map(|n| format!("line {n}: ")).unwrap_or_default();
        value("", format!("{at}{}", e.message()))
    })?;
    let publish = each("publish", file.publish.map(Some1::list), values::publish)?;
    let volumes = each("volume", file.volume.map(Some1::list), |v| values::volume(v, cwd))?;
    let tmpfs = each("tmpfs", file.tmpfs.map(Some1::list), |v| values::directory(v, cwd))?;
    let env = match file.env {
        None => Vec::new(),
        Some(Env::List(list)) => each("env", Some(list), values::env_item)?,
        Some(Env::Table(table)) => {
            let items = table.into_iter().map(|(k, v)| (k, Some(v.text()))).collect::<Vec<_>>();
            match items.iter().find(|(k, _)| {
                k.is_empty() || !k.bytes().all(|b| b.is_ascii_graphic() && b != b'=' && b != b'$')
            }) {
                Some((k, _)) => return Err(value(format!("env {k:?}"), "it is not the name of a variable")),
                None => items,
            }
        }
    };
    let level = one("cpu", file.cpu, Level::parse)?.map(Level::env).unwrap_or_default();
    let env = level.into_iter().map(|(k, v)| (k, Some(v))).chain(env).collect();
    let name = |t: &str| PodName::parse(t).map_err(str::to_owned);
    Ok(Wanted {
        name: one("name", file.name, name)?,
        net: one("net", file.net, values::net)?,
        ip: one("ip", file.ip, values::cidr)?,
        gateway: one("gateway", file.gateway, values::address)?,
        publish,
        tty: file.tty,
        fg: file.fg,
        env,
        env_host: file.env_host,
        workdir: one("workdir", file.workdir, |d| values::directory(d, cwd))?,
        user: file.user.map(Word::text),
        hostname: one("hostname", file.hostname, values::hostname)?,
        volumes,
        tmpfs,
        memory: one("memory", file.memory.map(Word::text), values::size)?,
        cpus: one("cpus", file.cpus.map(Word::text), values::cpus)?,
        pids: one("pids", file.pids.map(Word::text), values::pids)?,
        rm: file.rm,
        start_type: one("type", file.r#type, values::start_type)?,
        grace: one("grace", file.grace.map(Word::text), values::duration)?,
        restart: one("restart", file.restart, values::restart)?,
        cgroup_parent: one("cgroup-parent", file.cgroup_parent, values::cgroup_parent)?,
        replace: file.replace,
        privileged: file.privileged,
        cmd: file.cmd.unwrap_or_default(),
    })
}

fn one<T>(
    key: &str,
    text: Option<String>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, Error> {
    text.map(|t| parse(&t).map_err(|e| value(format!("{key} = {t:?}"), e))).transpose()
}

fn each<T>(
    key: &str,
    list: Option<Vec<String>>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, Error> {
    let list = list.unwrap_or_default();
    list.iter().map(|t| parse(t).map_err(|e| value(format!("{key} = {t:?}"), e))).collect()
}
