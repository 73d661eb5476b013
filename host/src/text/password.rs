//! Passwords in files: on a command line everybody on the machine would see them.

use std::fs;
use std::path::Path;

use anyhow::Context;

/// The first line of a file.
pub(crate) fn read(file: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(file).with_context(|| {
        format!("reading the password in {}: is the path right, and may this user read it?", file.display())
    })?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
