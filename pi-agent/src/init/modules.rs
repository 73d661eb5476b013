//! Loads the kernel modules that the initramfs carries, for kernels that have card or network as modules.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;

/// Where they are. They are loaded in the order of their names, `000-first.ko` first.
pub const FOLDER: &str = "/lib/modules/piman";

/// Loads all modules in a folder; one that is loaded already is fine. Returns what did not work.
#[must_use]
pub fn load_all(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = match fs::read_dir(folder) {
        Ok(entries) => entries.filter_map(Result::ok).map(|e| e.path()).collect(),
        // Most kernels have built in what is needed.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => return vec![format!("{}: {e}", folder.display())],
    };
    names.retain(|path| path.extension().is_some_and(|e| e == "ko"));
    names.sort();
    names.iter().filter_map(|path| load(path).err().map(|e| format!("{}: {e}", path.display()))).collect()
}

fn load(path: &Path) -> io::Result<()> {
    match rustix::system::finit_module(File::open(path)?, &CString::default(), 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOEXEC) => Err(io::Error::other(
            "it is for another kernel: build the boot folder with this kernel's modules",
        )),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_are_carried_or_they_are_no_modules() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load_all(&dir.path().join("none")).is_empty());
        for name in ["001-b.ko", "000-a.ko", "order"] {
            fs::write(dir.path().join(name), "not a module").unwrap();
        }
        let complaints = load_all(dir.path());
        assert_eq!(complaints.len(), 2);
        assert!(complaints[0].contains("000-a.ko") && complaints[1].contains("001-b.ko"), "{complaints:?}");
    }
}
