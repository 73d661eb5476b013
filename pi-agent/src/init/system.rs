//! The installed system: unmounting it, and finding what is to become process 1 in it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::card::root_path::resolve;
use piman_core::install::program::{HEAD, INIT_PATHS, Machine, Program};
use rustix::mount::UnmountFlags;

/// Where the root filesystem is mounted before it becomes `/`.
pub const NEW_ROOT: &str = "/new_root";

/// Unmounts everything that is mounted at `at`, one on another.
pub fn unmount(at: &Path) {
    // Bounded: a mount that comes back is not ours to fight.
    for _ in 0..8 {
        if rustix::mount::unmount(at, UnmountFlags::empty()).is_err() {
            // Busy: out of sight at least; the kernel unmounts it when the last user ends.
            if rustix::mount::unmount(at, UnmountFlags::DETACH).is_err() {
                return;
            }
        }
    }
}

/// Finds what is to become process 1 in the system at `root`: `wanted`, or the usual places.
/// The path is absolute and as the system itself will see it, links not followed.
///
/// # Errors
/// What is wrong with each of the candidates, one line.
pub fn find_init(root: &Path, wanted: Option<&Path>) -> Result<PathBuf, String> {
    let mut wrong = Vec::new();
    for candidate in candidates(wanted) {
        match check_program(root, candidate) {
            Ok(()) => return Ok(candidate.to_owned()),
            Err(why) => wrong.push(format!("{}: {why}", candidate.display())),
        }
    }
    Err(wrong.join("; "))
}

/// Where process 1 may be, in the order in which the places are tried.
pub fn candidates(wanted: Option<&Path>) -> impl Iterator<Item = &Path> {
    wanted.into_iter().chain(INIT_PATHS.iter().map(Path::new))
}

/// Whether the system at `root` can run `program`, as far as can be seen from outside.
fn check_program(root: &Path, program: &Path) -> Result<(), String> {
    let head = read_program(root, program)?;
    let interpreter = match judge(&head)? {
        Program::Script { interpreter } => Some(interpreter),
        Program::Elf { loader, .. } => loader,
    };
    let Some(interpreter) = interpreter else { return Ok(()) };
    let interpreter = PathBuf::from(OsStr::from_bytes(interpreter));
    let named = |why| format!("needs {}: {why}", interpreter.display());
    judge(&read_program(root, &interpreter).map_err(named)?).map(|_| ()).map_err(named)
}

/// The first 4 KiB of an executable file of the system at `root`.
fn read_program(root: &Path, program: &Path) -> Result<Vec<u8>, String> {
    let words = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => "does not exist".to_owned(),
        _ => e.to_string(),
    };
    let path = resolve(root, program).map_err(words)?;
    let metadata = fs::metadata(&path).map_err(words)?;
    if !metadata.is_file() {
        return Err("is not a file".into());
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err("is not executable".into());
    }
    let mut head = Vec::new();
    File::open(&path).and_then(|f| f.take(HEAD as u64).read_to_end(&mut head)).map_err(words)?;
    Ok(head)
}

/// The processor that this program, and so the kernel, is for.
const THIS: Option<Machine> = if cfg!(target_arch = "aarch64") {
    Some(Machine::AARCH64)
} else if cfg!(target_arch = "arm") {
    Some(Machine::ARM)
} else if cfg!(target_arch = "x86_64") {
    Some(Machine::X86_64)
} else {
    None
};

/// A program that this processor runs, or a script.
fn judge(head: &[u8]) -> Result<Program<'_>, String> {
    match Program::parse(head) {
        Ok(Program::Elf { machine, .. }) if THIS.is_some_and(|this| !this.runs(machine)) => {
            Err(format!("is for another processor ({machine})"))
        }
        Ok(program) => Ok(program),
        Err(why) => Err(why.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use std::os::unix::fs::symlink;

    /// A folder that goes with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("piman-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            for inside in ["usr/sbin", "usr/bin", "usr/lib/systemd", "etc", "lib64"] {
                fs::create_dir_all(path.join(inside)).unwrap();
            }
            Self(path)
        }

        fn put(&self, at: &str, content: &[u8], mode: u32) {
            fs::write(self.0.join(at), content).unwrap();
            fs::set_permissions(self.0.join(at), fs::Permissions::from_mode(mode)).unwrap();
        }

        fn link(&self, at: &str, target: &str) {
            symlink(target, self.0.join(at)).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    /// A static program of this machine, as far as the header says.
    fn program() -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18..20].copy_from_slice(&THIS.map_or(0, |m| m.0).to_le_bytes());
        elf
    }

    #[test]
    fn links_stay_inside() {
        let root = Folder::new("resolve");
        root.put("usr/lib/systemd/systemd", b"x", 0o755);
        root.link("lib", "usr/lib");
        root.link("sbin", "/usr/sbin");
        root.link("usr/sbin/init", "/lib/systemd/systemd");
        root.link("etc/out", "../../../../../../../../usr/lib/systemd/systemd");
        root.link("etc/loop", "loop");
        root.link("etc/up", "..");
        let want = root.0.join("usr/lib/systemd/systemd");
        for path in ["/sbin/init", "sbin/../sbin/./init", "/etc/out", "/etc/up/../../sbin/init"] {
            assert_eq!(resolve(&root.0, Path::new(path)).unwrap(), want, "{path}");
        }
        let error = resolve(&root.0, Path::new("/etc/loop")).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::LOOP));
        assert_eq!(resolve(&root.0, Path::new("/sbin/no")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(resolve(&root.0, Path::new("/..")).unwrap(), root.0.join(""));
    }

    #[test]
    fn debians_init_is_found_behind_absolute_links() {
        let root = Folder::new("init");
        root.put("usr/lib/systemd/systemd", &program(), 0o755);
        root.link("lib", "usr/lib");
        root.link("sbin", "usr/sbin");
        root.link("usr/sbin/init", "/lib/systemd/systemd");
        assert_eq!(find_init(&root.0, None), Ok("/sbin/init".into()));
        let wanted = Path::new("/usr/lib/systemd/systemd");
        assert_eq!(find_init(&root.0, Some(wanted)), Ok(wanted.into()));
        assert_eq!(find_init(&root.0, Some(Path::new("/no/such"))), Ok("/sbin/init".into()));
    }

    #[test]
    fn what_cannot_run_is_said() {
        let root = Folder::new("noinit");
        root.link("sbin", "usr/sbin");
        root.put("usr/sbin/init", &program(), 0o644);
        let mut other = program();
        other[18..20].copy_from_slice(&8u16.to_le_bytes());
        root.put("etc/init", &other, 0o755);
        root.link("bin", "usr/bin");
        root.put("usr/bin/init", b"#! /bin/no-such-shell -x\n", 0o755);
        root.put("usr/bin/sh", b"text", 0o755);
        let wrong = find_init(&root.0, None).unwrap_err();
        for words in [
            "/sbin/init: is not executable",
            "/lib/systemd/systemd: does not exist",
            "/etc/init: is for another processor (MIPS)",
            "/bin/init: needs /bin/no-such-shell: does not exist",
            "/bin/sh: is neither a program nor a script",
        ] {
            assert!(wrong.contains(words), "{words} in {wrong}");
        }
        root.put("usr/bin/no-such-shell", &program(), 0o755);
        assert_eq!(find_init(&root.0, None), Ok("/bin/init".into()));
    }
}
