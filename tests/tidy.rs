//! House rules as tests: sizes, heads, the arrows between rooms, where `unsafe` may be, what is banned.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES: usize = 600;
const FN_LINES: usize = 70;

/// Where `unsafe` may be, with the reason.
const UNSAFE: &[&str] = &[
    "src/kernel/",             // the thin wrappers
    "src/remote/stub.rs",      // machine code for other processes
    "src/remote/stub/",        //
    "src/pod/init/program.rs", // pid 1, a program of its own without a library under it
    SUBJECTS,
];

/// Programs that are moved, not code of ours: they do what programs do.
const SUBJECTS: &str = "tests/workloads/";

/// What is banned, in which files (by the start of their path), and what to use instead.
const BANNED: &[(&str, &str, &str)] = &[
    ("todo!", "", "do it, or refuse it by name with an error"),
    ("unimplemented!", "", "do it, or refuse it by name with an error"),
    ("dbg!", "", "tracing::debug!"),
    ("thread::sleep", "tests/", "wait for a state, bounded"),
    ("time::sleep", "tests/", "wait for a state, bounded"),
    (
        "#[ignore]",
        "",
        "a test that never runs proves nothing; one that others run as a child says so in its reason",
    ),
    ("static mut", "", "pass values"),
];

struct Source {
    path: String,
    text: String,
    /// The text without comments, strings and characters; the same lines.
    code: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    for dir in ["src", "tests"] {
        walk(&root().join(dir), &mut files);
    }
    files.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        Source { path, code: strip(&text), text }
    };
    let sources: Vec<Source> = files.into_iter().map(read).collect();
    assert!(sources.len() > 20, "the rules looked at almost nothing");
    sources
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// Blanks comments, strings and characters out; lines stay where they are.
fn strip(text: &str) -> String {
    let b = text.as_bytes();
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while i < b.len() {
        let end = if b[i..].starts_with(b"//") {
            i + b[i..].iter().position(|c| *c == b'\n').unwrap_or(b.len() - i)
        } else if b[i..].starts_with(b"/*") {
            comment_end(b, i)
        } else if let Some(end) = raw_string_end(b, i) {
            end
        } else if b[i] == b'"' {
            quoted_end(b, i)
        } else if let Some(end) = char_end(b, i) {
            end
        } else {
            out.push(b[i]);
            i += 1;
            continue;
        };
        out.extend(b[i..end].iter().map(|c| if *c == b'\n' { b'\n' } else { b' ' }));
        i = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn comment_end(b: &[u8], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i < b.len() {
        if b[i..].starts_with(b"/*") {
            (depth, i) = (depth + 1, i + 2);
        } else if b[i..].starts_with(b"*/") {
            (depth, i) = (depth - 1, i + 2);
            if depth == 0 {
                return i;
            }
        } else {
            i += 1;
        }
    }
    b.len()
}

fn quoted_end(b: &[u8], start: usize) -> usize {
    let mut i = start + 1;
    while i < b.len() && b[i] != b'"' {
        i += if b[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(b.len())
}

fn raw_string_end(b: &[u8], start: usize) -> Option<usize> {
    let name_before = start > 0 && (b[start - 1].is_ascii_alphanumeric() || b[start - 1] == b'_');
    if b[start] != b'r' || (name_before && !matches!(b[start - 1], b'b' | b'c')) {
        return None;
    }
    let hashes = b[start + 1..].iter().take_while(|c| **c == b'#').count();
    if b.get(start + 1 + hashes) != Some(&b'"') {
        return None;
    }
    let close = [&b"\""[..], &vec![b'#'; hashes]].concat();
    let body = start + 2 + hashes;
    let at = b[body..].windows(close.len()).position(|w| w == close)?;
    Some(body + at + close.len())
}

/// The end of a character literal; `None` for a lifetime.
fn char_end(b: &[u8], start: usize) -> Option<usize> {
    if b[start] != b'\'' {
        return None;
    }
    if b.get(start + 1) == Some(&b'\\') {
        return b[start + 3..].iter().position(|c| *c == b'\'').map(|n| start + 4 + n);
    }
    // One character of up to four bytes, then the quote.
    let len = match b.get(start + 1)? {
        c if *c < 0x80 => 1,
        c if *c < 0xe0 => 2,
        c if *c < 0xf0 => 3,
        _ => 4,
    };
    (b.get(start + 1 + len) == Some(&b'\'')).then_some(start + 2 + len)
}

/// Words of `code` with their byte offsets.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let name = |c: char| c.is_alphanumeric() || c == '_';
    let starts = code.char_indices().filter(move |(i, c)| name(*c) && !code[..*i].ends_with(name));
    starts.map(move |(i, _)| {
        let end = code[i..].find(|c| !name(c)).map_or(code.len(), |n| i + n);
        (i, &code[i..end])
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

/// First line, name and number of lines of every function with a body.
fn functions(code: &str) -> Vec<(usize, String, usize)> {
    let mut found = Vec::new();
    let list: Vec<(usize, &str)> = words(code).collect();
    for pair in list.windows(2) {
        let ((at, "fn"), (name_at, name)) = (pair[0], pair[1]) else { continue };
        if code[at + 2..name_at].trim() != "" {
            continue; // a type: `fn(u8) -> u8`
        }
        if let Some(end) = body_end(code, name_at) {
            found.push((line_of(code, at), name.to_owned(), code[at..end].matches('\n').count() + 1));
        }
    }
    found
}

/// The end of the body that follows; `None` when `;` comes first (outside of brackets).
fn body_end(code: &str, from: usize) -> Option<usize> {
    let (mut round, mut curly) = (0i32, 0i32);
    for (i, c) in code[from..].char_indices() {
        match c {
            '(' | '[' => round += 1,
            ')' | ']' => round -= 1,
            ';' if round == 0 && curly == 0 => return None,
            '{' => curly += 1,
            '}' => {
                curly -= 1;
                if curly == 0 && round == 0 {
                    return Some(from + i + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// Fails with the whole list, so that one run shows everything.
fn none(what: &str, list: Vec<String>) {
    assert!(list.is_empty(), "{what}:\n  {}", list.join("\n  "));
}

/// The arrows of `src/lib.rs`: room → rooms it may import.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let lines =
        lib.lines().skip_while(|l| l.trim() != "//! arrows").skip(1).take_while(|l| l.trim() != "//! ```");
    let parse = |l: &str| {
        let (room, rest) =
            l.trim_start_matches("//!").split_once("->").unwrap_or_else(|| panic!("not an arrow: {l}"));
        // Two blanks or more part the list from what the room is for.
        let list = rest.trim_start_matches(' ').split("  ").next().unwrap_or_default();
        let list = if rest.starts_with("   ") { "" } else { list };
        (room.trim().to_owned(), list.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect())
    };
    let arrows: BTreeMap<_, _> = lines.map(parse).collect();
    assert!(arrows.len() > 10, "no arrows found in src/lib.rs");
    arrows
}

fn room(path: &str) -> Option<&str> {
    path.strip_prefix("src/")?.split_once('/').map(|(room, _)| room)
}

/// The rooms a piece of code imports: what follows `crate::`, braces too.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut top = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    c if depth == 0 => top.push(c),
                    _ => {}
                }
            }
            let names = top.split(',').filter_map(|n| n.trim().split("::").next()).filter(|n| !n.is_empty());
            found.extend(names.map(|n| (line_of(code, at), n.to_owned())));
        } else {
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.push((line_of(code, at), name));
        }
    }
    found
}

#[test]
fn the_rules_see_what_they_should() {
    let code = strip(
        "// unsafe\nfn a() { \"fn b() {\"; '{'; '\\''; r#\"}\"\"#; }\nfn c<'a>(x: [u8; 3]);\n/* { */ fn d() {\n}\n",
    );
    assert!(!code.contains("unsafe") && !code.contains("fn b"));
    assert_eq!(functions(&code), vec![(2, "a".into(), 1), (4, "d".into(), 2)]);
    let found = imports("use crate::{base::{self, x}, kernel::y};\nuse crate::pod;");
    let names: Vec<&str> = found.iter().map(|(_, n)| n.as_str()).collect();
    assert_eq!(names, ["base", "kernel", "pod"]);
    assert_eq!(room("src/state/fd/mod.rs"), Some("state"));
    assert_eq!(room("src/lib.rs"), None);
    let arrows = arrows();
    assert!(arrows["base"].is_empty());
    assert_eq!(arrows["kernel"], BTreeSet::from(["base".to_owned()]));
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut bad = Vec::new();
    for s in sources() {
        let lines = s.text.lines().count();
        if lines > FILE_LINES {
            bad.push(format!("{}: {lines} lines, at most {FILE_LINES}: split it by subject", s.path));
        }
        if !s.text.starts_with("//! ") {
            bad.push(format!("{}:1: no `//!` head that says what the file is", s.path));
        }
    }
    none("files", bad);
}

#[test]
fn functions_are_short() {
    let mut bad = Vec::new();
    for s in sources() {
        for (line, name, lines) in functions(&s.code) {
            if lines > FN_LINES {
                bad.push(format!("{}:{line}: fn {name} has {lines} lines, at most {FN_LINES}", s.path));
            }
        }
    }
    none("functions", bad);
}

#[test]
fn arrows_have_no_ring() {
    let mut left = arrows();
    for (room, to) in &left {
        assert!(!to.contains(room), "{room} points at itself");
        let unknown: Vec<_> = to.iter().filter(|t| !left.contains_key(*t)).collect();
        assert!(unknown.is_empty(), "{room} -> {unknown:?}: no such room in the list");
    }
    while !left.is_empty() {
        let free: Vec<String> =
            left.iter().filter(|(_, to)| to.is_empty()).map(|(room, _)| room.clone()).collect();
        assert!(!free.is_empty(), "a ring among {:?}", left.keys());
        left.retain(|room, _| !free.contains(room));
        left.values_mut().for_each(|to| to.retain(|t| !free.contains(t)));
    }
}

#[test]
fn rooms_import_only_what_their_arrows_say() {
    let arrows = arrows();
    let mut bad = Vec::new();
    for s in sources() {
        let Some(here) = room(&s.path) else { continue };
        let Some(may) = arrows.get(here) else {
            bad.push(format!("{}: the room {here} has no arrow in src/lib.rs", s.path));
            continue;
        };
        for (line, there) in imports(&s.code) {
            if there != here && arrows.contains_key(&there) && !may.contains(&there) {
                bad.push(format!("{}:{line}: {here} imports {there}, which its arrow does not name", s.path));
            }
        }
    }
    none("arrows", bad);
}

#[test]
fn the_halves_of_a_kind_of_state_stay_apart() {
    let mut bad = Vec::new();
    for s in sources().iter().filter(|s| s.path.starts_with("src/state/")) {
        let half =
            |name: &str| s.path.ends_with(&format!("/{name}.rs")) || s.path.contains(&format!("/{name}/"));
        for (mine, other) in [("collect", "restore"), ("restore", "collect")] {
            if half(mine) {
                let hits = words(&s.code).filter(|(at, w)| *w == other && s.code[..*at].ends_with("::"));
                bad.extend(
                    hits.map(|(at, _)| format!("{}:{}: {mine} uses {other}", s.path, line_of(&s.code, at))),
                );
            }
        }
    }
    none("halves of state", bad);
}

#[test]
fn unsafe_stays_in_its_rooms() {
    let mut bad = Vec::new();
    for s in sources().iter().filter(|s| !UNSAFE.iter().any(|u| s.path.starts_with(u))) {
        let hits = words(&s.code).filter(|(_, w)| *w == "unsafe");
        bad.extend(hits.map(|(at, _)| format!("{}:{}: unsafe", s.path, line_of(&s.code, at))));
    }
    none("unsafe outside of its rooms (make it a typed call in src/kernel)", bad);
}

#[test]
fn banned_words_are_absent() {
    let mut bad = Vec::new();
    for s in sources().iter().filter(|s| !s.path.starts_with(SUBJECTS)) {
        // Tests inside of a room are at the end of their file, or in a file of their own.
        let tests_from = if s.path.starts_with("tests/") || s.path.ends_with("/tests.rs") {
            0
        } else {
            s.code.find("#[cfg(test)]").unwrap_or(s.code.len())
        };
        for (word, place, instead) in BANNED {
            let from = if *place == "tests/" { tests_from } else { 0 };
            for (at, _) in s.code[from..].match_indices(word) {
                bad.push(format!("{}:{}: {word}; instead: {instead}", s.path, line_of(&s.code, from + at)));
            }
        }
    }
    none("banned", bad);
}

#[test]
fn the_map_names_every_room() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let arrows = arrows();
    let mut bad = Vec::new();
    for entry in fs::read_dir(root().join("src")).unwrap().flatten().filter(|e| e.path().is_dir()) {
        let name = entry.file_name().into_string().unwrap();
        if !arrows.contains_key(&name) {
            bad.push(format!("src/{name} has no arrow in src/lib.rs"));
        }
        if !readme.contains(&format!("`{name}`")) {
            bad.push(format!("src/{name} is not in the map of README.md"));
        }
    }
    bad.extend(
        arrows.keys().filter(|r| !root().join("src").join(r).is_dir()).map(|r| format!("no room src/{r}")),
    );
    none("the map", bad);
}
