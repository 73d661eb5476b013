//! Programs of the hook folder: run by name, and nothing else is ever run.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

use super::owned;
use super::value::{Answer, Data};

/// How long a hook may run.
const TIME_MAX: Duration = Duration::from_secs(60);
/// The most bytes of its output that are kept.
const OUTPUT_MAX: usize = 64 << 10;
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long what it has left behind may still print.
const LEFT: Duration = Duration::from_secs(1);

/// Runs the hook that the first argument names, with the others as its arguments. Returns its exit
/// code and what it printed, errors included.
pub(super) fn run(folder: &Path, args: &[String]) -> Answer {
    let (name, args) = args.split_first().ok_or("TypeError: the name of a hook is missing")?;
    if args.iter().any(|a| a.contains('\0')) {
        return Err("ValueError: an argument holds a zero byte".into());
    }
    let path = find(folder, name)?;
    let Ran { code, output } =
        execute(&path, args, Keep::First(OUTPUT_MAX)).map_err(|e| failed(&path, &e))?;
    Ok(Data::Dict(vec![
        ("code", code.map_or(Data::None, |c| Data::Int(c.into()))),
        ("output", Data::Str(String::from_utf8_lossy(&output).into_owned())),
    ]))
}

/// Runs a hook for a message, which it reads from its standard input; what it prints is the answer.
///
/// # Errors
/// If there is no such hook, it fails, or it prints too much.
pub(super) fn answer(
    folder: &Path,
    name: &str,
    message: &[u8],
    variables: &[(&str, String)],
) -> Result<Vec<u8>, String> {
    let path = find(folder, name)?;
    let input = input(message).map_err(|e| failed(&path, &e))?;
    let keep = Keep::First(OUTPUT_MAX + 1);
    let job = Job { most: TIME_MAX, keep, input: Some(input), variables };
    let Ran { code, output } = job.run::<&str>(&path, &[]).map_err(|e| failed(&path, &e))?;
    match code {
        Some(0) if output.len() > OUTPUT_MAX => {
            Err(format!("the hook {name} prints more than {OUTPUT_MAX} bytes: nothing is sent"))
        }
        Some(0) => Ok(output),
        Some(code) => Err(format!("the hook {name} ended with exit code {code}: nothing is sent")),
        None => Err(format!("the hook {name} was ended by a signal: nothing is sent")),
    }
}

/// A file without a name that holds this and is at its beginning.
fn input(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("message", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

fn failed(path: &Path, e: &io::Error) -> String {
    match e.kind() {
        ErrorKind::TimedOut => format!("TimeoutError: {e}"),
        _ => format!("OSError: {}: {e}", path.display()),
    }
}

/// The program of this name, if it may be run: nobody but root and the agent's user could have put it there.
pub(super) fn find(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(format!("ValueError: {name:?} is no name of a hook: letters, digits, `.`, `_` and `-`"));
    }
    let path = folder.join(name);
    if let Err(e) = fs::symlink_metadata(&path)
        && e.kind() == ErrorKind::NotFound
    {
        return Err(format!("FileNotFoundError: there is no hook {name} in {}", folder.display()));
    }
    owned::program(&path)
}

/// What is kept of an output that is longer, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Keep {
    First(usize),
    Last(usize),
}

impl Keep {
    fn of(self, kept: &mut Vec<u8>, piece: &[u8]) {
        match self {
            Self::First(most) => {
                let room = most.saturating_sub(kept.len()).min(piece.len());
                kept.extend_from_slice(piece.get(..room).unwrap_or_default());
            }
            Self::Last(most) => {
                kept.extend_from_slice(piece);
                // Not for every piece: what is left has to be moved.
                if kept.len() > 2 * most {
                    kept.drain(..kept.len() - most);
                }
            }
        }
    }
}

/// How a program ended.
pub(super) struct Ran {
    /// `None`: by a signal.
    pub(super) code: Option<i32>,
    /// What it printed, errors included.
    pub(super) output: Vec<u8>,
}

/// Runs a program to its end, or for [`TIME_MAX`]: then it is ended with all that it has started.
///
/// # Errors
/// If it cannot be run; of the kind `TimedOut` if it did not end.
pub(super) fn execute(program: &Path, args: &[impl AsRef<OsStr>], keep: Keep) -> io::Result<Ran> {
    within(TIME_MAX, program, args, keep)
}

fn within(most: Duration, program: &Path, args: &[impl AsRef<OsStr>], keep: Keep) -> io::Result<Ran> {
    Job { most, keep, input: None, variables: &[] }.run(program, args)
}

/// How a program is run.
struct Job<'a> {
    most: Duration,
    keep: Keep,
    /// With it, errors are not a part of the output: they go where the agent's own go.
    input: Option<File>,
    variables: &'a [(&'a str, String)],
}

impl Job<'_> {
    fn run<A: AsRef<OsStr>>(self, program: &Path, args: &[A]) -> io::Result<Ran> {
        let (output, writer) = io::pipe()?;
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        match self.input {
            Some(input) => command.stdin(input).stdout(writer).stderr(Stdio::inherit()),
            None => command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer),
        };
        command.args(args);
        finish(command, output, self.most, self.keep)
    }
}

/// Starts the program and waits for its end.
fn finish(mut command: Command, output: io::PipeReader, most: Duration, keep: Keep) -> io::Result<Ran> {
    let mut child = command
        .current_dir("/")
        // A group of its own, so that what it starts is killed with it.
        .process_group(0)
        .spawn()?;
    // What held the other ends of the pipe must be gone, so that it ends with the program.
    drop(command);
    let ran = attend(&mut child, output, most, keep);
    if ran.is_err() {
        kill_all(&mut child)?;
    }
    ran
}

/// Reads what the program prints until it has ended.
fn attend(child: &mut Child, output: io::PipeReader, most: Duration, keep: Keep) -> io::Result<Ran> {
    let began = Instant::now();
    let (mut output, mut kept) = (Some(output), Vec::new());
    loop {
        // All is read, so that the program does not wait for ever.
        match &output {
            Some(pipe) => {
                if read(pipe, keep, &mut kept)? == Some(0) {
                    output = None;
                }
            }
            None => thread::sleep(LOOK),
        }
        if let Some(status) = child.try_wait()? {
            // What it left behind may hold the pipe: what is there by then is all.
            let ended = Instant::now();
            while let Some(pipe) = &output
                && ended.elapsed() < LEFT
                && matches!(read(pipe, keep, &mut kept), Ok(None | Some(1..)))
            {}
            return Ok(Ran { code: status.code(), output: kept });
        }
        if began.elapsed() > most {
            let text = format!("it ran for {} s and was ended", most.as_secs());
            return Err(io::Error::new(ErrorKind::TimedOut, text));
        }
    }
}

/// Reads what there is, and waits a moment for it: how much, with nothing at the end. `None`: nothing yet.
fn read(mut from: &io::PipeReader, keep: Keep, kept: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let mut pipe = [PollFd::new(from, PollFlags::IN)];
    let a_moment = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
    match poll(&mut pipe, Some(&a_moment)) {
        Ok(0) | Err(Errno::INTR) => return Ok(None),
        Ok(_) => {}
        Err(e) => return Err(e.into()),
    }
    let mut piece = [0; 8 << 10];
    let n = from.read(&mut piece)?;
    keep.of(kept, piece.get(..n).unwrap_or_default());
    Ok(Some(n))
}

fn kill_all(child: &mut Child) -> io::Result<()> {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended at this moment.
        let _ = kill_process_group(group, Signal::KILL);
    }
    child.kill()?;
    child.wait().map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

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
        assert!(matches!(&result[1].1, Data::Str(s) if s.len() == OUTPUT_MAX));
    }

    #[test]
    fn a_hook_reads_a_message_and_what_it_prints_is_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        let answer = |name: &str, message: &[u8]| {
            answer(folder.path(), name, message, &[("PIMAN_SERIAL", "abc".into())])
        };
        hook(folder.path(), "upper", "#!/bin/sh\necho err >&2\ntr a-z A-Z; printf $PIMAN_SERIAL", 0o755);
        assert_eq!(answer("upper", b"hello\0 "), Ok(b"HELLO\0 abc".to_vec()));
        // A hook that reads nothing hangs nobody, however long the message is.
        hook(folder.path(), "deaf", "#!/bin/sh\n", 0o755);
        assert_eq!(answer("deaf", &[7; 1 << 20]), Ok(Vec::new()));
        hook(folder.path(), "much", "#!/bin/sh\nhead -c 70000 /dev/zero", 0o755);
        assert!(answer("much", b"").unwrap_err().contains("more than 65536 bytes"));
        hook(folder.path(), "fails", "#!/bin/sh\necho half; exit 3", 0o755);
        assert!(answer("fails", b"").unwrap_err().contains("exit code 3"));
        for name in ["../upper", "missing"] {
            assert!(answer(name, b"").is_err(), "{name}");
        }
    }

    #[test]
    fn what_a_program_has_started_is_ended_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        hook(
            folder.path(),
            "hang",
            "#!/bin/sh\nsleep 1000 & echo $! > \"$1.new\"; mv \"$1.new\" \"$1\"; wait\n",
            0o755,
        );
        // As short as can be, but not before it has begun.
        let most = |n: u32| Duration::from_millis(100) * n;
        let begun = (1..100).find(|n| {
            let ended = within(most(*n), &folder.path().join("hang"), &[&pid], Keep::First(10));
            assert_eq!(ended.err().map(|e| e.kind()), Some(ErrorKind::TimedOut));
            pid.exists()
        });
        assert!(begun.is_some(), "it never began");
        let sleeper = fs::read_to_string(pid).unwrap().trim().to_owned();
        let stat = format!("/proc/{sleeper}/stat");
        let until = Instant::now() + Duration::from_secs(30);
        // Gone, or dead and not yet taken by whoever inherited it.
        while fs::read_to_string(&stat).is_ok_and(|s| !s.contains(") Z ")) {
            assert!(Instant::now() < until, "process {sleeper} lives on");
            thread::sleep(LOOK);
        }
    }

    #[test]
    fn the_end_of_an_output_is_kept_as_well() {
        let args = ["-c", "seq 1 200000"];
        let Ran { code, output } = execute(Path::new("sh"), &args, Keep::Last(1000)).unwrap();
        assert_eq!(code, Some(0));
        assert!((1000..=2000).contains(&output.len()) && output.ends_with(b"\n199999\n200000\n"));
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
