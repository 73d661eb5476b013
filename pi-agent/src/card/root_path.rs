//! Paths inside a root that is not this system's own.

use std::ffi::OsString;
use std::fs;
use std::io;

use rustix::io::Errno;
use std::path::{Component, Path, PathBuf};

/// Symbolic links that one path may lead through; the kernel's own limit.
const LINKS_MAX: usize = 40;

/// The path outside of `root` of `path` inside it, with every link followed as the system
/// at `root` would: absolute ones begin at `root`, and `..` does not lead out of it.
///
/// # Errors
/// The kernel's, and `FilesystemLoop` after 40 links.
pub fn resolve(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut todo: Vec<OsString> = Vec::new();
    push(&mut todo, path);
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            done.pop();
            continue;
        }
        let here = root.join(&done).join(&name);
        if !fs::symlink_metadata(&here)?.file_type().is_symlink() {
            done.push(&name);
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(Errno::LOOP.into());
        }
        let target = fs::read_link(&here)?;
        if target.is_absolute() {
            done.clear();
        }
        push(&mut todo, &target);
    }
    Ok(root.join(done))
}

/// Puts the names of `path` on the stack, the first on top.
fn push(todo: &mut Vec<OsString>, path: &Path) {
    todo.extend(path.components().rev().filter_map(|c| match c {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    }));
}
