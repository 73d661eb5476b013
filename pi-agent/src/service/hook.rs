//! Programs of the hook folder: run by name, and nothing else is ever run.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::functions::{Answer, Data};

/// How long a hook may run.
const TIME_MAX: Duration = Duration::from_secs(60);
/// The most bytes of its output that are kept.
const OUTPUT_MAX: u64 = 64 << 10;
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Runs the hook that the first argument names, with the others as its arguments. Returns its exit
/// code and what it printed, errors included.
pub(super) fn run(folder: &Path, args: &[String]) -> Answer {
    let (name, args) = args.split_first().ok_or("TypeError: the name of a hook is missing")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(format!("ValueError: {name:?} is no name of a hook: letters, digits, `.`, `_` and `-`"));
    }
    if args.iter().any(|a| a.contains('\0')) {
        return Err("ValueError: an argument holds a zero byte".into());
    }
    let path = folder.join(name);
    let metadata = fs::symlink_metadata(&path)
        .map_err(|_| format!("FileNotFoundError: there is no hook {name} in {}", folder.display()))?;
    let mode = metadata.permissions().mode();
    if !metadata.is_file() || mode & 0o111 == 0 {
        return Err(format!("PermissionError: {} is no program", path.display()));
    }
    if mode & 0o022 != 0 {
        return Err(format!("PermissionError: {} can be changed by others than its owner", path.display()));
    }
    execute(&path, args).map_err(|e| format!("OSError: {}: {e}", path.display()))?
}

fn execute(path: &Path, args: &[String]) -> std::io::Result<Answer> {
    let (output, writer) = std::io::pipe()?;
    let mut child = Command::new(path)
        .args(args)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .current_dir("/")
        .spawn()?;
    // The command that held the other ends of the pipe is gone: it ends with the program.
    let reader = thread::spawn(move || {
        let mut kept = Vec::new();
        let mut output = output;
        let read = (&mut output).take(OUTPUT_MAX).read_to_end(&mut kept);
        // The rest is read and dropped, so that the program does not wait for ever.
        let rest = std::io::copy(&mut output, &mut std::io::sink());
        read.and(rest).map(|_| kept)
    });
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > TIME_MAX {
            child.kill()?;
            child.wait()?;
            let text = format!("TimeoutError: it ran for {} s and was ended", TIME_MAX.as_secs());
            return Ok(Err(text));
        }
        thread::sleep(LOOK);
    };
    // A program that it left behind may hold the pipe: what is there by then is all.
    let waited = Instant::now();
    while !reader.is_finished() && waited.elapsed() < Duration::from_secs(1) {
        thread::sleep(LOOK);
    }
    let kept = if reader.is_finished() { reader.join().ok().and_then(Result::ok) } else { None };
    Ok(Ok(Data::Dict(vec![
        ("code", status.code().map_or(Data::None, |c| Data::Int(c.into()))),
        ("output", Data::Str(String::from_utf8_lossy(&kept.unwrap_or_default()).into_owned())),
    ])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(folder: &Path, name: &str, text: &str, mode: u32) {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn call(folder: &Path, args: &[&str]) -> Answer {
        run(folder, &args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn hooks_run_by_name_with_their_arguments_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        hook(folder.path(), "say.sh", "#!/bin/sh\necho \"$1\"; echo err >&2; exit 3\n", 0o755);
        let want = Data::Dict(vec![("code", Data::Int(3)), ("output", Data::Str("$(id); x\nerr\n".into()))]);
        assert_eq!(call(folder.path(), &["say.sh", "$(id); x"]), Ok(want));
        hook(folder.path(), "much", "#!/bin/sh\nhead -c 10000000 /dev/zero\n", 0o700);
        let Ok(Data::Dict(result)) = call(folder.path(), &["much"]) else { panic!("much") };
        assert_eq!(result[0], ("code", Data::Int(0)));
        assert!(matches!(&result[1].1, Data::Str(s) if s.len() as u64 == OUTPUT_MAX));
    }

    #[test]
    fn nothing_else_is_run() {
        let folder = tempfile::tempdir().unwrap();
        hook(folder.path(), "text", "#!/bin/sh\n", 0o644);
        hook(folder.path(), "open", "#!/bin/sh\n", 0o777);
        std::os::unix::fs::symlink("/bin/sh", folder.path().join("link")).unwrap();
        fs::create_dir(folder.path().join("folder")).unwrap();
        for (args, error) in [
            (&[][..], "TypeError"),
            (&["../bin/sh"], "ValueError"),
            (&["/bin/sh"], "ValueError"),
            (&[".hidden"], "ValueError"),
            (&[""], "ValueError"),
            (&["text", "a\0b"], "ValueError"),
            (&["missing"], "FileNotFoundError"),
            (&["text"], "PermissionError"),
            (&["open"], "PermissionError"),
            (&["link"], "PermissionError"),
            (&["folder"], "PermissionError"),
        ] {
            let said = call(folder.path(), args).unwrap_err();
            assert!(said.starts_with(error), "{args:?}: {said}");
        }
    }
}
