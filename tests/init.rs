//! The agent as process 1, for real: in name spaces of its own, on a root of its own, up to
//! the init of an installed system. This program is also that process 1, with an attempt
//! that fails in every way there is before it is ready.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use pi_agent::control::Server;
use pi_agent::init::{self, NEW_ROOT, Options, Outcome};
use piman_tests::disk::{LoopDevice, run};
use piman_tests::netns::assert_says;
use rustix::fs::{FileType, Mode};
use rustix::mount::{MountFlags, UnmountFlags};

/// How long one boot may take; the waits between its attempts are seconds.
const DEADLINE: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    if let Some(code) = init::dispatch(attempt) {
        return code;
    }
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, first, root] = arguments.as_slice()
        && first == "become-process-1"
    {
        become_process_1(Path::new(root));
    }
    if arguments.iter().any(|a| a == "--list") {
        println!("init: test");
        return ExitCode::SUCCESS;
    }
    if cfg!(lacks = "root") {
        println!("test init ... ignored, needs root");
        return ExitCode::SUCCESS;
    }
    if cfg!(lacks = "busybox") {
        println!("test init ... ignored, needs busybox");
        return ExitCode::SUCCESS;
    }
    // Mounts of the tests are seen by nobody else and go with this process.
    if std::env::var_os("PIMAN_TEST_INSIDE").is_none() {
        let inside = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .env("PIMAN_TEST_INSIDE", "1")
            .status();
        return match inside {
            Ok(status) if status.success() => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        };
    }
    for (name, test) in [
        ("an_initramfs_is_left_and_deleted", an_initramfs_is_left_and_deleted as fn()),
        ("a_disk_is_left_and_not_deleted", a_disk_is_left_and_not_deleted),
    ] {
        test();
        println!("test init::{name} ... ok");
    }
    ExitCode::SUCCESS
}

/// The attempts of one boot, by what the command line calls `piman.init=`: each letter one.
fn attempt(options: &Options, server: &Server) -> Outcome {
    assert_eq!((server.host.as_str(), server.control_port), ("127.0.0.1", 7));
    let plan = fs::read_to_string("/plan").unwrap();
    let count = fs::read("/count").map_or(0, |c| c.len());
    fs::write("/count", vec![b'x'; count + 1]).unwrap();
    log::info!("attempt {count} on {}", options.disk);
    let device = |name: &str| PathBuf::from(fs::read_to_string(name).unwrap());
    match plan.chars().nth(count) {
        Some('p') => {
            // An orphan, which process 1 has to reap.
            Command::new("/bin/sh").args(["-c", "sleep 0 & exit 0"]).status().unwrap();
            Outcome::Passing("the server is away".into())
        }
        Some('!') => panic!("on purpose"),
        Some('k') => {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
            unreachable!()
        }
        Some('n') => {
            mount("ext4", &device("/empty"), Path::new(NEW_ROOT));
            Outcome::Ready
        }
        _ => {
            let zombies: Vec<_> = fs::read_dir("/proc")
                .unwrap()
                .filter_map(|e| fs::read_to_string(e.unwrap().path().join("stat")).ok())
                .filter(|stat| stat.contains(") Z "))
                .collect();
            assert!(zombies.is_empty(), "{zombies:?}");
            mount("ext4", &device("/system"), Path::new(NEW_ROOT));
            Outcome::Ready
        }
    }
}

/// Makes `root` the root of this process, which is process 1 of a name space, and becomes
/// its `/init`, as a kernel does.
fn become_process_1(root: &Path) -> ! {
    std::env::set_current_dir(root).unwrap();
    rustix::process::pivot_root(".", ".").unwrap();
    rustix::mount::unmount(".", UnmountFlags::DETACH).unwrap();
    rustix::process::chroot(".").unwrap();
    let error = Command::new("/init").args(["--cmdline", "/cmdline", "single", "two words"]).exec();
    panic!("/init: {error}");
}

/// A folder with mounts in it, and loop devices, all of which go with it.
struct Scene {
    folder: tempfile::TempDir,
    loops: Vec<LoopDevice>,
}

impl Scene {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), loops: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An ext4 filesystem with what is in `content`, on a loop device, and room for this program.
    fn filesystem(&mut self, name: &str, content: &Path) -> PathBuf {
        let image = self.path(name);
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(content).arg(&image));
        let device = LoopDevice::of(&image);
        let path = device.path().to_owned();
        self.loops.push(device);
        path
    }

    /// Puts into `root` what an initramfs has: this program as /init, what it needs to run,
    /// a /dev with a console that `console` is the other end of, and folders to delete.
    fn fill(&self, root: &Path, plan: &str, devices: &[(&str, &Path)]) -> File {
        for folder in ["bin", "deep/er/and/deeper", "kept", "dev"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let this = std::env::current_exe().unwrap();
        for library in libraries(&this) {
            let to = root.join(library.strip_prefix("/").unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(&library, to).unwrap();
        }
        fs::copy(&this, root.join("init")).unwrap();
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for name in ["sh", "sleep"] {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        fs::write(root.join("deep/er/and/deeper/file"), "x").unwrap();
        symlink("/kept", root.join("deep/link")).unwrap();
        fs::write(root.join("plan"), plan).unwrap();
        fs::write(
            root.join("cmdline"),
            "quiet root=/dev/nothing master=127.0.0.1:7 piman.disk=/init piman.what=1\n",
        )
        .unwrap();
        mount("tmpfs", Path::new("none"), &root.join("dev"));
        node(&root.join("dev/null"), FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        for (name, device) in devices {
            fs::write(root.join(name), device.to_str().unwrap()).unwrap();
            let number = rustix::fs::stat(*device).unwrap().st_rdev;
            node(&root.join(device.strip_prefix("/").unwrap()), FileType::BlockDevice, number);
        }
        let console = root.join("dev/console");
        node(&console, FileType::Fifo, 0);
        // Something else is mounted there and must survive.
        fs::create_dir_all(self.path("kept")).unwrap();
        fs::write(self.path("kept/file"), "kept").unwrap();
        rustix::mount::mount_bind(self.path("kept"), root.join("kept")).unwrap();
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits();
        fs::OpenOptions::new().read(true).write(true).custom_flags(nonblocking as i32).open(console).unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = Command::new("sh")
            .args(["-c", r#"grep -F "$0" /proc/mounts | cut -d' ' -f2 | sort -r | xargs -r -n1 umount -l"#])
            .arg(self.folder.path())
            .status();
    }
}

fn mount(kind: &str, what: &Path, at: &Path) {
    fs::create_dir_all(at).unwrap();
    rustix::mount::mount(what, at, kind, MountFlags::empty(), None).unwrap();
}

fn node(at: &Path, kind: FileType, number: u64) {
    rustix::fs::mknodat(rustix::fs::CWD, at, kind, Mode::from_raw_mode(0o600), number).unwrap();
}

/// The shared libraries of a program, its loader with them; none for a static one.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_ascii_whitespace().filter(|w| w.starts_with('/')).map(PathBuf::from).collect()
}

/// A system whose init says what it found. Its links are absolute, as Debian's.
fn installed_system(at: &Path) {
    for folder in ["bin", "lib/systemd", "sbin", "proc", "sys"] {
        fs::create_dir_all(at.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", at.join("bin/busybox")).unwrap();
    for name in ["sh", "cat", "ls", "awk", "grep"] {
        symlink("/bin/busybox", at.join("bin").join(name)).unwrap();
    }
    symlink("/lib/systemd/systemd", at.join("sbin/init")).unwrap();
    let script = r#"#!/bin/sh
echo "UP process $$ with $# arguments: $1, $2"
echo "UP root is $(awk '$2 == "/" {t = $3} END {print t}' /proc/mounts)"
echo "UP in / there is $(echo $(ls /))"
[ -e /proc/1/stat ] && [ -d /sys/class ] && [ -c /dev/null ] && [ -p /dev/console ] && echo "UP with its mounts"
echo "UP and that is all"
"#;
    fs::write(at.join("lib/systemd/systemd"), script).unwrap();
    fs::set_permissions(at.join("lib/systemd/systemd"), PermissionsExt::from_mode(0o755)).unwrap();
}

/// Boots `root` as a machine of its own; returns what was on its console.
fn boot(root: &Path, mut console: File) -> String {
    let mut machine = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .arg("become-process-1")
        .arg(root)
        .spawn()
        .unwrap();
    let start = Instant::now();
    let mut text = Vec::new();
    loop {
        let mut buf = [0; 4096];
        match console.read(&mut buf) {
            Ok(n) => text.extend_from_slice(&buf[..n]),
            Err(_) if start.elapsed() > DEADLINE => break,
            Err(_) => {
                if machine.try_wait().unwrap().is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    let _ = machine.kill();
    let _ = machine.wait();
    // What it still wrote before its end.
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = console.read(&mut buf) {
        text.extend_from_slice(&buf[..n]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn an_initramfs_is_left_and_deleted() {
    let mut scene = Scene::new();
    let content = scene.path("content");
    installed_system(&content);
    let system = scene.filesystem("system.img", &content);
    let nothing = scene.path("nothing");
    fs::create_dir(&nothing).unwrap();
    let empty = scene.filesystem("empty.img", &nothing);
    let root = scene.path("initramfs");
    mount("tmpfs", Path::new("none"), &root);
    let console = scene.fill(&root, "np!r", &[("system", &system), ("empty", &empty)]);
    let text = boot(&root, console);
    assert_says(
        &text,
        &[
            "is process 1",
            "warning: piman.what=1: unknown option",
            "attempt 0 on /init",
            "the installed system has no init that can run: /sbin/init: does not exist;",
            "trying again in",
            "attempt 1",
            "error: the server is away",
            "the attempt failed, which may pass",
            "attempt 2",
            "on purpose",
            "the attempt ended with the unknown exit code 101",
            "attempt 3",
            "switching root, /sbin/init becomes process 1",
            "the initramfs is deleted",
            "UP process 1 with 2 arguments: single, two words",
            "UP root is ext4",
            "UP in / there is bin dev lib lost+found proc sbin sys",
            "UP with its mounts",
            "UP and that is all",
        ],
    );
    assert_eq!(names(&root), ["kept"], "what others have mounted there stays, nothing else");
    assert_eq!(names(&scene.path("kept")), ["file"]);
}

fn a_disk_is_left_and_not_deleted() {
    let mut scene = Scene::new();
    let content = scene.path("content");
    installed_system(&content);
    let system = scene.filesystem("system.img", &content);
    let nothing = scene.path("nothing");
    fs::create_dir(&nothing).unwrap();
    let disk = scene.filesystem("disk.img", &nothing);
    let root = scene.path("disk");
    mount("ext4", &disk, &root);
    let console = scene.fill(&root, "kr", &[("system", &system)]);
    let before = names(&root);
    let text = boot(&root, console);
    assert_says(
        &text,
        &[
            "attempt 0",
            "was killed (signal 9: out of memory?)",
            "attempt 1",
            "the old root is left as it is: it is no initramfs but a filesystem of type 0xef53",
            "UP process 1",
            "UP and that is all",
        ],
    );
    let mut after = names(&root);
    after.retain(|name| !["count", "new_root", "proc", "sys"].contains(&name.as_str()));
    assert_eq!(after, before);
    assert!(root.join("deep/er/and/deeper/file").exists());
}
