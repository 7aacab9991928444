//! Calm tables: no borders, no colour, cut to the terminal's width only when there is a terminal.

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;

/// A table as text, header first.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let arrangement = if table.is_tty() { ContentArrangement::Dynamic } else { ContentArrangement::Disabled };
    table.set_content_arrangement(arrangement);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// How long ago, in one unit: `5s`, `3m`, `2h`, `9d`.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    let s = (now.as_second() - since.as_second()).max(0);
    match s {
        0..=99 => format!("{s}s"),
        100..=5_999 => format!("{}m", s / 60),
        6_000..=172_799 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86400),
    }
}

/// One line of a command, cut to `longest` characters.
pub fn command(cmd: &[String], longest: usize) -> String {
    let one: String = cmd.join(" ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if one.chars().count() <= longest {
        return one;
    }
    let cut: String = one.chars().take(longest.saturating_sub(1)).collect();
    format!("{cut}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_text() {
        let text = table(
            &["NAME", "STATE"],
            vec![vec!["web".into(), "running".into()], vec!["a".into(), String::new()]],
        );
        assert_eq!(text, "NAME  STATE\nweb   running\na\n");
    }

    #[test]
    fn ages_and_commands() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let all: Vec<String> = [5, 180, 7200, 900_000].iter().map(|s| age(at(0), at(*s))).collect();
        assert_eq!(all, ["5s", "3m", "2h", "10d"]);
        assert_eq!(age(at(10), at(0)), "0s");
        assert_eq!(command(&["a".into(), "b\nc".into()], 40), "a b c");
        assert_eq!(command(&["abcdef".into()], 4), "abc…");
    }
}
