//! Items for people.

use std::fmt::Write as _;

use piman_core::install::personal::{Bundle, Item, Place, Renew, User};
use piman_core::text::EscapedLines;

/// The longest content that is shown whole, in bytes.
const CONTENT_SHOWN: usize = 4096;

/// All items of a bundle, one after another, with the content of its files.
#[must_use]
pub fn items(bundle: &Bundle<'_>) -> String {
    let mut out = String::new();
    for item in bundle.items() {
        // Writing to a string does not fail.
        let _ = one(&mut out, &item);
    }
    out
}

fn name(place: Place) -> &'static str {
    match place {
        Place::Root => "root",
        Place::Boot => "boot",
    }
}

fn one(out: &mut String, item: &Item<'_>) -> std::fmt::Result {
    match *item {
        Item::Identity(Renew { machine, host_keys, disk }) => {
            let parts = [(machine, "machine-id"), (host_keys, "SSH host keys"), (disk, "disk identifiers")];
            let parts: Vec<&str> = parts.into_iter().filter(|(new, _)| *new).map(|(_, what)| what).collect();
            writeln!(out, "identity  made new: {}", parts.join(", "))
        }
        Item::Folder { place, mode, owner, path } => {
            writeln!(out, "folder    {}:{} {mode:04o} {owner}", name(place), path.escape_debug())
        }
        Item::File { place, mode, owner, path, content } => {
            let path = path.escape_debug();
            writeln!(out, "file      {}:{path} {mode:04o} {owner}, {} bytes", name(place), content.len())?;
            text(out, content)
        }
        Item::Link { path, target } => {
            writeln!(out, "link      root:{} -> {}", path.escape_debug(), target.escape_debug())
        }
        Item::Remove { place, path } => writeln!(out, "remove    {}:{}", name(place), path.escape_debug()),
        Item::Line { place, path, key, text, .. } => {
            let (path, key, text) = (path.escape_debug(), key.escape_debug(), text.escape_debug());
            writeln!(out, "line      {}:{path}, that of `{key}`: {text}", name(place))
        }
        Item::Word { key, text: "" } => writeln!(out, "word      `{key}` taken away"),
        Item::Word { key, text } => writeln!(out, "word      `{key}`: {text}"),
        Item::User(User { id, locked, keeps_password, name, password, shell, groups, full_name, keys }) => {
            write!(out, "user      {name}")?;
            if id != 0 {
                write!(out, ", uid {id}")?;
            }
            if !full_name.is_empty() {
                write!(out, ", {}", full_name.escape_debug())?;
            }
            match (locked, password.is_empty()) {
                (true, _) => out.push_str(", locked"),
                (false, true) if keeps_password => out.push_str(", password as it is"),
                (false, true) => out.push_str(", no password"),
                (false, false) => write!(out, ", password {password}")?,
            }
            for (what, value) in [("shell", shell), ("groups", groups)] {
                if !value.is_empty() {
                    write!(out, ", {what} {value}")?;
                }
            }
            writeln!(out, ", {} SSH keys", keys.lines().count())?;
            text(out, keys.as_bytes())
        }
    }
}

/// A content, indented; what is no text, or long, by its hash.
fn text(out: &mut String, content: &[u8]) -> std::fmt::Result {
    match std::str::from_utf8(content) {
        Ok(text) if content.len() <= CONTENT_SHOWN && !text.contains('\0') => {
            text.lines().try_for_each(|line| writeln!(out, "    {}", shown(line)))
        }
        _ => writeln!(out, "    (BLAKE3 {:.16})", blake3::hash(content).to_hex()),
    }
}

/// A line without what a terminal would obey.
fn shown(line: &str) -> String {
    EscapedLines(line).to_string()
}
