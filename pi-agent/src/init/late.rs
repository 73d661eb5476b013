//! A failure after the talk with the server was over, kept for the next attempt, which tells the server: process 1
//! itself talks to nobody.

use std::fs;
use std::path::Path;

/// Where it is kept: in the initramfs, which is gone when another system runs.
const FILE: &str = "/run/piman-late-failure";

/// Keeps it.
pub(super) fn keep(why: &str) {
    keep_in(FILE.as_ref(), why);
}

/// What was kept; it is told once.
pub(super) fn take() -> Option<String> {
    take_from(FILE.as_ref())
}

fn keep_in(file: &Path, why: &str) {
    let folder = file.parent().unwrap_or(Path::new("/"));
    if let Err(e) = fs::create_dir_all(folder).and_then(|()| fs::write(file, why)) {
        log::warn!("{} cannot be written: {e}", file.display());
    }
}

fn take_from(file: &Path) -> Option<String> {
    let why = fs::read_to_string(file).ok()?;
    fs::remove_file(file).ok()?;
    Some(why).filter(|why| !why.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run/late");
        assert_eq!(take_from(&file), None);
        keep_in(&file, "cannot switch root: busy");
        assert_eq!(take_from(&file).as_deref(), Some("cannot switch root: busy"));
        assert_eq!(take_from(&file), None);
    }
}
