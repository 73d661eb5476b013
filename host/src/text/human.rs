//! Numbers, moments and tables for people.

use std::io::{self, ErrorKind, Write};

use anyhow::Context;
use piman_core::text::{Escaped, EscapedJson, EscapedLines};
use serde::Serialize;

/// Reads a number of bytes: `32G`, `512M`, `64K` (powers of 1024), or bytes.
///
/// # Errors
/// Anything else, and 0.
pub fn size(text: &str) -> Result<u64, String> {
    match piman_core::hosted::size::parse_size(text) {
        Some(0) => Err("there is nothing of size 0".into()),
        Some(size) => Ok(size),
        None => Err(format!("{text} is no size: write 8G, 512M, 64K or a number of bytes")),
    }
}

/// Prints; whoever reads may stop reading (`piman devices | head`). Whatever a peer's text in it holds, no terminal
/// obeys it: only ends of lines and tabs go through as they are.
///
/// # Errors
/// If standard output takes no more for another reason.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match write!(out, "{}", EscapedLines(text)).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.context("writing to standard output"),
    }
}

/// Writes a line to standard error. Where that is closed nobody reads it, and that is no reason to fail: `eprintln`
/// would panic. As [`print`], it lets nothing through that a terminal obeys.
pub fn print_error(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{}", EscapedLines(&line.to_string()));
}

/// JSON on several lines, with an end of line behind it, in which no terminal finds anything to obey.
///
/// # Errors
/// If the value cannot be JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<String> {
    let text = serde_json::to_string_pretty(value).context("writing JSON")?;
    Ok(EscapedJson(&text).to_string() + "\n")
}

/// The same on one line.
pub fn json_line(value: &serde_json::Value) -> String {
    EscapedJson(&value.to_string()).to_string() + "\n"
}

/// A cell of a table: a peer's text in it makes no rows of its own. Further lines of an answer are indented.
fn cell(text: &str) -> String {
    let lines: Vec<String> = text.split("\n  ").map(|line| Escaped(line).to_string()).collect();
    lines.join("\n  ")
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") }
}

/// How long ago a moment was, for people; both in milliseconds since 1970.
#[must_use]
pub fn when(at_ms: u64, now_ms: u64) -> String {
    if at_ms > now_ms.saturating_add(1000) {
        return clock(at_ms);
    }
    let seconds = now_ms.saturating_sub(at_ms) / 1000;
    match seconds {
        0 => "now".into(),
        1..100 => format!("{seconds} s ago"),
        100..6000 => format!("{} min ago", seconds / 60),
        6000..172_800 => format!("{} h ago", seconds / 3600),
        _ => clock(at_ms),
    }
}

/// A span of time since the event before.
pub fn since(ms: u64) -> String {
    match ms {
        0..10_000 => format!("+{}.{:03} s", ms / 1000, ms % 1000),
        10_000..600_000 => format!("+{} s", ms / 1000),
        _ => format!("+{} min", ms / 60_000),
    }
}

/// A moment in local time.
pub fn clock(at_ms: u64) -> String {
    let moment = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    moment.map_or_else(
        || "-".into(),
        |m| m.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// A moment in UTC, in seconds since 1970.
#[must_use]
pub fn when_utc(at: u64) -> String {
    let moment = i64::try_from(at).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
    moment.map_or_else(|| format!("{at} s after 1970"), |m| m.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// The widest that a column is made, in characters; what is longer pushes the rest of its line aside. A
/// table of thousands of lines must not take the length of one long cell in every one of them.
const COLUMN_MAX: usize = 100;

/// A table with columns as wide as their widest cell; the last is as long as it is.
pub fn columns<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> =
        [head.map(String::from)].into_iter().chain(rows.map(|row| row.map(|text| cell(&text)))).collect();
    let widths: [usize; N] = std::array::from_fn(|i| {
        let lengths = rows.iter().filter_map(|r| r.get(i)).map(|cell| cell.chars().count());
        lengths.filter(|length| *length <= COLUMN_MAX).max().unwrap_or(0)
    });
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(cell);
            // Not by the width of a format: one of 65,536 or more panics, and cells come from peers.
            let spaces = width.saturating_sub(cell.chars().count()) + 2;
            line.extend(std::iter::repeat_n(' ', spaces));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            [bytes(0), bytes(999), bytes(1000), bytes(651_000_000)],
            ["0 B", "999 B", "1.0 kB", "651.0 MB"]
        );
        assert_eq!([since(9), since(61_500), since(601_000)], ["+0.009 s", "+61 s", "+10 min"]);
        let now = 1_700_000_000_000;
        let ago = [0, 999, 1000, 100_000, 7_400_000].map(|ms| when(now - ms, now));
        assert_eq!(ago, ["now", "now", "1 s ago", "1 min ago", "2 h ago"]);
        // Clocks differ by a moment; what is far away is told by the clock.
        assert_eq!([when(now + 1000, now), when(now + 1001, now)], ["now".into(), clock(now + 1001)]);
        assert_eq!(when(now - 200_000_000, now), clock(now - 200_000_000));
    }

    #[test]
    fn tables() {
        let row = |a: &str, b: &str| [a.into(), b.into()];
        let forged = columns(["A"], [["x\ny ok\x1b[2K".into()], ["1\n  2".into()]].into_iter());
        assert_eq!(forged, "A\nx\\ny ok\\u{1b}[2K\n1\n  2\n");
        assert_eq!(columns(["A", "B"], [row("xyz", "1"), row("é", "")].into_iter()), "A    B\nxyz  1\né\n");
        // A cell of any length, in any column: a format's width ends at 65,535.
        for length in [65_535, 65_536, 1 << 20] {
            let long = "x".repeat(length);
            let last = columns(["A", "B"], [row("1", &long), row("2", "b")].into_iter());
            assert_eq!(last, format!("A  B\n1  {long}\n2  b\n"));
            let first = columns(["A", "B"], [row(&long, "1"), row("2", "b")].into_iter());
            assert_eq!(first, format!("A  B\n{long}  1\n2  b\n"), "one long cell makes no others wide");
        }
    }
}
