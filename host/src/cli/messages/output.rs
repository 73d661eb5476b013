//! Where messages go that a command received: lines, JSON, bytes, files.

use std::fs::Permissions;
use std::io::{self, ErrorKind, IsTerminal as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Print;
use crate::sys::clock::now_ms;
use crate::text::human::json_line;

/// Where messages go.
pub(super) enum Output {
    Lines,
    Json,
    Raw,
    Files { folder: PathBuf, next: u64 },
}

impl Output {
    pub(super) fn open(args: &Print) -> anyhow::Result<Self> {
        Ok(match &args.output {
            Some(folder) => {
                std::fs::create_dir_all(folder)
                    .with_context(|| format!("making the folder {} (--output)", folder.display()))?;
                Self::Files { folder: folder.clone(), next: 1 }
            }
            None if args.json => Self::Json,
            None if args.raw => {
                anyhow::ensure!(
                    !io::stdout().is_terminal(),
                    "--raw prints what others send as it is, and this terminal would obey it: send it to a file or a \
                     program, or leave --raw out"
                );
                Self::Raw
            }
            None => Self::Lines,
        })
    }

    /// Prints a message; `false` if nobody reads any more.
    pub(super) fn message(&mut self, message: &[u8]) -> anyhow::Result<bool> {
        let line = match self {
            Self::Raw => message.to_vec(),
            Self::Lines => (shown(message) + "\n").into_bytes(),
            Self::Json => json(message).into_bytes(),
            Self::Files { folder, next } => {
                let path = store(folder, next, message)
                    .with_context(|| format!("writing a message to {}", folder.display()))?;
                (path.display().to_string() + "\n").into_bytes()
            }
        };
        let mut out = io::stdout().lock();
        match out.write_all(&line).and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(e) => Err(e).context("writing to standard output"),
        }
    }
}

/// Writes a message to a file under the next name that is free.
pub(super) fn store(folder: &Path, next: &mut u64, message: &[u8]) -> io::Result<PathBuf> {
    let mut builder = tempfile::Builder::new();
    let mut file = builder.permissions(Permissions::from_mode(0o644)).tempfile_in(folder)?;
    file.write_all(message)?;
    loop {
        let path = folder.join(format!("{next:06}"));
        *next += 1;
        match file.persist_noclobber(&path) {
            Ok(_) => return Ok(path),
            Err(e) if e.error.kind() == ErrorKind::AlreadyExists => file = e.file,
            Err(e) => return Err(e.error),
        }
    }
}

pub(super) fn json(message: &[u8]) -> String {
    let (key, value) = match std::str::from_utf8(message) {
        Ok(text) => ("text", text.to_owned()),
        Err(_) => ("hex", message.iter().map(|b| format!("{b:02x}")).collect()),
    };
    json_line(&serde_json::json!({ "at": now_ms(), "size": message.len(), key: value }))
}

/// A message as one line that does nothing to a terminal.
pub(super) fn shown(message: &[u8]) -> String {
    let mut text = String::with_capacity(message.len());
    for chunk in message.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push('\t'),
                c if c.is_ascii_control() => text.push_str(&format!("\\x{:02x}", u32::from(c))),
                c if !piman_core::text::is_shown(c) => text.extend(c.escape_unicode()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_lines_that_do_nothing_to_a_terminal() {
        assert_eq!(shown("caf\u{e9}\n\u{1b}[2J".as_bytes()), "caf\u{e9}\\n\\x1b[2J");
        assert_eq!(shown(b"\xff\x00a"), "\\xff\\x00a");
        assert!(json(b"\xff\x01").contains("\"hex\":\"ff01\""));
        assert!(json(b"a\"b").contains("\"text\":\"a\\\"b\""));
    }

    #[test]
    fn files_get_names_that_are_free() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("000002"), "mine").unwrap();
        let mut next = 1;
        let names = [&b"a"[..], b""].map(|m| store(folder.path(), &mut next, m).unwrap());
        assert_eq!(names, ["000001", "000003"].map(|n| folder.path().join(n)));
        assert_eq!(std::fs::read(folder.path().join("000002")).unwrap(), b"mine");
    }
}
