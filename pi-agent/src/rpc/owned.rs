//! Whether somebody other than the user of this program could change a program that is about to be run.

use std::fs::File;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;

/// The program at `path`, by a path that nobody but root and this program's user can make lead elsewhere.
///
/// The way there is walked from the root folder, one open folder at a time: each belongs to root or this user, and no
/// one else may write to it. Who cannot change a folder cannot replace what was found in it, so the path still leads to
/// this file when it is run a moment later. (Running the open file instead would show scripts another name.)
///
/// # Errors
/// A sentence that names the file or folder and says what is wrong with it.
pub(super) fn program(path: &Path) -> Result<PathBuf, String> {
    let (folder, name) = path.parent().zip(path.file_name()).ok_or_else(|| wrong(path, "is no file"))?;
    // Links on the way are resolved now, and the walk below judges what they led to.
    let folder = folder.canonicalize().map_err(|e| wrong(folder, &format!("cannot be opened: {e}")))?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (mut at, mut walked) = (None::<File>, PathBuf::new());
    for part in folder.components().filter(|part| !matches!(part, Component::CurDir)) {
        walked.push(part);
        let opened = match &at {
            Some(at) => openat(at, part.as_os_str(), flags | OFlags::DIRECTORY, Mode::empty()),
            None => openat(CWD, part.as_os_str(), flags | OFlags::DIRECTORY, Mode::empty()),
        };
        let opened = File::from(opened.map_err(|e| cannot(&walked, e))?);
        let stat = fstat(&opened).map_err(|e| cannot(&walked, e))?;
        // In a folder such as /tmp nobody can rename or remove what is another's.
        let sticky = stat.st_mode & 0o1000 != 0;
        judge(&walked, &stat, sticky)?;
        at = Some(opened);
    }
    let program = folder.join(name);
    let opened = match &at {
        Some(at) => openat(at, name, flags, Mode::empty()),
        None => openat(CWD, name, flags, Mode::empty()),
    };
    let stat = opened.and_then(fstat).map_err(|e| cannot(&program, e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_mode & 0o111 == 0 {
        return Err(wrong(&program, "is no program"));
    }
    judge(&program, &stat, false)?;
    Ok(program)
}

fn judge(path: &Path, stat: &Stat, sticky: bool) -> Result<(), String> {
    let user = geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != user {
        return Err(wrong(
            path,
            &format!(
                "belongs to user {}, who could have anything run as user {user}: `chown {user} {}`",
                stat.st_uid,
                path.display()
            ),
        ));
    }
    if stat.st_mode & 0o022 != 0 && !sticky {
        let why = format!("can be changed by others than its owner: `chmod go-w {}`", path.display());
        return Err(wrong(path, &why));
    }
    Ok(())
}

fn cannot(path: &Path, e: Errno) -> String {
    match e {
        Errno::NOENT => format!("FileNotFoundError: there is no {}", path.display()),
        e => wrong(path, &format!("cannot be opened: {}", std::io::Error::from(e))),
    }
}

fn wrong(path: &Path, why: &str) -> String {
    format!("PermissionError: {} {why}", path.display())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;

    #[test]
    fn a_program_that_others_could_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/hooks");
        fs::create_dir_all(&folder).unwrap();
        let hook = folder.join("hook");
        fs::write(&hook, "#!/bin/sh\n").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        mode(&hook, 0o755);
        assert_eq!(program(&hook), Ok(hook.canonicalize().unwrap()));
        for path in [&hook, &folder, &dir.path().join("a")] {
            mode(path, 0o775);
            let why = program(&hook).unwrap_err();
            assert!(why.contains("chmod go-w") && why.contains(path.to_str().unwrap()), "{why}");
            mode(path, 0o755);
            if geteuid().is_root() {
                chown(path, Some(12_345), None).unwrap();
                let why = program(&hook).unwrap_err();
                assert!(why.contains("belongs to user 12345") && why.contains("chown 0"), "{why}");
                chown(path, Some(0), None).unwrap();
            }
        }
        std::os::unix::fs::symlink(&hook, folder.join("link")).unwrap();
        assert!(program(&folder.join("link")).unwrap_err().contains("is no program"));
        assert!(program(&folder.join("none")).unwrap_err().starts_with("FileNotFoundError"));
    }
}
