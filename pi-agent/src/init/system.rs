//! The installed system: unmounting it, and finding what is to become process 1 in it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::card::root_path::resolve;
use rustix::mount::UnmountFlags;

/// Where the root filesystem is mounted before it becomes `/`.
pub const NEW_ROOT: &str = "/new_root";

/// Where an installed system keeps its process 1, in the order in which they are tried.
const USUAL: [&str; 5] = ["/sbin/init", "/lib/systemd/systemd", "/etc/init", "/bin/init", "/bin/sh"];

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
    wanted.into_iter().chain(USUAL.iter().map(Path::new))
}

/// Whether the system at `root` can run `program`, as far as can be seen from outside.
fn check_program(root: &Path, program: &Path) -> Result<(), String> {
    let head = read_program(root, program)?;
    let interpreter = if head.starts_with(b"#!") {
        let line = head.get(2..).unwrap_or_default().split(|b| *b == b'\n').next().unwrap_or_default();
        line.split(u8::is_ascii_whitespace).find(|w| !w.is_empty()).map(<[u8]>::to_vec)
    } else {
        elf_interpreter(&head)?
    };
    let Some(interpreter) = interpreter else { return Ok(()) };
    use std::os::unix::ffi::OsStringExt;
    let interpreter = PathBuf::from(OsString::from_vec(interpreter));
    let named = |why| format!("needs {}: {why}", interpreter.display());
    let head = read_program(root, &interpreter).map_err(named)?;
    if head.starts_with(b"#!") { Ok(()) } else { elf_interpreter(&head).map(|_| ()).map_err(named) }
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
    File::open(&path).and_then(|f| f.take(4096).read_to_end(&mut head)).map_err(words)?;
    Ok(head)
}

/// The `e_machine` numbers that a kernel for this processor runs, its own first.
const MACHINES: &[u16] = if cfg!(target_arch = "aarch64") {
    &[183, 40]
} else if cfg!(target_arch = "arm") {
    &[40]
} else if cfg!(target_arch = "x86_64") {
    &[62, 3]
} else {
    &[]
};

/// The program loader that an ELF program asks for; `None` for a static one. All reads are
/// checked against what there is: the file may be anything.
fn elf_interpreter(head: &[u8]) -> Result<Option<Vec<u8>>, String> {
    if !head.starts_with(b"\x7fELF") {
        return Err("is neither a program nor a script".into());
    }
    let cut = || "is a damaged program".to_owned();
    if head.get(5) != Some(&1) {
        return Err("is for another processor (big-endian)".into());
    }
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let field = head.get(at..at.checked_add(bytes)?)?;
        Some(field.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b)))
    };
    let machine = number(18, 2).ok_or_else(cut)?;
    if !MACHINES.is_empty() && !MACHINES.iter().any(|m| usize::from(*m) == machine) {
        return Err(format!("is for another processor (ELF machine {machine})"));
    }
    let wide = head.get(4) == Some(&2);
    // Where the fields lie in the 64-bit and in the 32-bit form.
    let (table, size, count, offset, length, word) =
        if wide { (32, 54, 56, 8, 32, 8) } else { (28, 42, 44, 4, 16, 4) };
    let table = number(table, word).ok_or_else(cut)?;
    let size = number(size, 2).ok_or_else(cut)?;
    for index in 0..number(count, 2).ok_or_else(cut)? {
        let Some(at) = index.checked_mul(size).and_then(|o| o.checked_add(table)) else { return Err(cut()) };
        // What lies behind the part that was read cannot be judged: the kernel will.
        let Some(3) = number(at, 4) else { continue };
        let field = |o: usize| number(at.saturating_add(o), word);
        let (Some(from), Some(bytes)) = (field(offset), field(length)) else { break };
        let name = from.checked_add(bytes).and_then(|to| head.get(from..to));
        return Ok(name.map(|n| n.strip_suffix(b"\0").unwrap_or(n).to_vec()));
    }
    Ok(None)
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
        elf[18..20].copy_from_slice(&MACHINES.first().unwrap_or(&0).to_le_bytes());
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
            "/etc/init: is for another processor (ELF machine 8)",
            "/bin/init: needs /bin/no-such-shell: does not exist",
            "/bin/sh: is neither a program nor a script",
        ] {
            assert!(wrong.contains(words), "{words} in {wrong}");
        }
        root.put("usr/bin/no-such-shell", &program(), 0o755);
        assert_eq!(find_init(&root.0, None), Ok("/bin/init".into()));
    }

    #[test]
    fn the_loader_of_a_real_program() {
        let this = fs::read(std::env::current_exe().unwrap()).unwrap();
        let loader = elf_interpreter(&this[..4096]).unwrap();
        if cfg!(target_env = "gnu") {
            let loader = String::from_utf8(loader.unwrap()).unwrap();
            assert!(loader.starts_with("/lib") && loader.contains("ld-linux"), "{loader}");
        } else {
            assert_eq!(loader, None);
        }
    }

    #[test]
    fn damaged_programs_are_no_panic() {
        let this = fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in 0..1024 {
            let _ = elf_interpreter(&this[..length]);
            let mut damaged = this[..1024].to_vec();
            damaged[length] = 0xff;
            let _ = elf_interpreter(&damaged);
        }
        let mut all = program();
        all[6..18].fill(0xff);
        all[20..].fill(0xff);
        let _ = elf_interpreter(&all);
    }
}
