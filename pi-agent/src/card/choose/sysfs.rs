//! What the kernel says of a disk, in files of /sys.

use std::fs;
use std::path::Path;

/// The only line of a file in a folder of /sys.
pub(super) fn read(folder: &Path, name: &str) -> Option<String> {
    let bytes = fs::read(folder.join(name)).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    Some(text.trim_matches(['\0', '\n', ' ']).to_owned()).filter(|text| !text.is_empty())
}
