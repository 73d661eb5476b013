//! The agent as process 1 of a Pi that booted over the network.
//!
//! Process 1 mounts /proc, /sys and /dev, reads the kernel command line, and then does
//! nothing that can fail by itself: it starts a child (`pi-agent init-step`) that waits for
//! the card and the network, talks to piman, installs if ordered, and mounts the installed
//! system at [`NEW_ROOT`]. The child's exit code decides:
//!
//! | code | meaning | process 1 |
//! |---|---|---|
//! | 0 | ready | makes the installed system `/` and becomes its init |
//! | 10 | failed, may pass by itself | tries again after 1 s to 60 s, doubling |
//! | 20 | failed, needs somebody | tries again after 30 s to 10 min, doubling |
//! | anything else, a signal | a crash, out of memory | as 10 |
//! | none, silent for 15 min | hangs | kills it, then as 10; restarts the machine if it cannot be killed |
//!
//! Waits are between half of their length and all of it, by chance. It goes on for ever:
//! process 1 never ends, which would be a panic of the kernel. What the child writes appears
//! on the console, each line with `piman: ` and the seconds since process 1 began.
//!
//! | file | what lives there |
//! |---|---|
//! | `options` | the kernel command line |
//! | `console` | lines on the console |
//! | `modules` | kernel modules that the initramfs carries |
//! | `net` | interfaces, DHCP, `ip=` |
//! | `mounts` | /proc, /sys, /dev |
//! | `supervise` | the child: its lines, its end, its hanging |
//! | `step` | one attempt, in the child |
//! | `attempt` | the plan of an installation as a booting Pi carries it out |
//! | `first_choice` | the disk that a rule chose, for all attempts of this power-on |
//! | `wait` | the card and the network, with deadlines |
//! | `system` | mounting the installed system, finding its init |
//! | `switch` | the hand-over |
//! | `late` | what failed after the talk with the server was over |

pub mod attempt;
mod boot_plan;
pub mod console;
mod first_choice;
mod late;
pub mod modules;
pub mod mounts;
pub mod net;
pub mod options;
pub mod supervise;
pub mod switch;
pub mod system;
pub mod wait;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

pub use attempt::{Attempt, Outcome};
pub use boot_plan::attempt;
use console::Console;
pub use options::Options;
use supervise::{End, READY, Supervisor};

use crate::card::choose::{NoDisk, Which};
use crate::unsaid::{self, Unsaid};
pub use system::NEW_ROOT;

/// What the child is called.
const STEP: &str = "init-step";

/// How often the installed system's init is tried before the machine is started anew.
const INIT_TRIES: u32 = 8;

/// What the program was called to be.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// Process 1, with the arguments that are the installed init's.
    Init { arguments: Vec<OsString>, cmdline: PathBuf },
    /// The child of process 1.
    Step { cmdline: PathBuf },
    /// A program with a command line.
    Program,
}

impl Role {
    /// The kernel gives process 1 the words of its command line that it does not know as
    /// arguments. `arguments` begin with the program's name.
    fn of(is_process_1: bool, arguments: impl IntoIterator<Item = OsString>) -> Self {
        let mut arguments = arguments.into_iter();
        let program = arguments.next().unwrap_or_default();
        let mut arguments: Vec<OsString> = arguments.collect();
        let called_init = Path::new(&program).file_name() == Some(OsStr::new("init"));
        let first = arguments.first().and_then(|a| a.to_str()).map(str::to_owned);
        match first.as_deref() {
            Some(STEP) => {
                arguments.remove(0);
                Self::Step { cmdline: take_cmdline(&mut arguments) }
            }
            Some("init") if is_process_1 && !called_init => {
                arguments.remove(0);
                let cmdline = take_cmdline(&mut arguments);
                Self::Init { arguments, cmdline }
            }
            // Also in a container a program is process 1: there it has a command line.
            first if is_process_1 && (called_init || first.is_none()) => {
                let cmdline = take_cmdline(&mut arguments);
                Self::Init { arguments, cmdline }
            }
            _ => Self::Program,
        }
    }
}

/// Takes `--cmdline FILE` off the front: the kernel's command line for a try-out.
fn take_cmdline(arguments: &mut Vec<OsString>) -> PathBuf {
    if arguments.first().is_some_and(|a| a == "--cmdline") && arguments.len() > 1 {
        arguments.remove(0);
        arguments.remove(0).into()
    } else {
        "/proc/cmdline".into()
    }
}

/// Runs as process 1, or as its child, if that is what this program was called to be; as
/// process 1 it does not return. `None`: it is a program with a command line.
#[must_use]
pub fn dispatch(attempt: Attempt) -> Option<ExitCode> {
    match Role::of(rustix::process::getpid().is_init(), std::env::args_os()) {
        Role::Init { arguments, cmdline } => process_1(&arguments, &cmdline),
        Role::Step { cmdline } => Some(attempt::run(&read_options(&cmdline), attempt)),
        Role::Program => None,
    }
}

/// What `pi-agent init` says where it is not process 1.
pub const REFUSAL: &str = "only process 1 can hand a machine over to an installed system; \
    to install from a running system say pi-agent install";

fn read_options(cmdline: &Path) -> Options {
    let mut line = Vec::new();
    let limit = u64::try_from(options::CMDLINE_MAX).unwrap_or(u64::MAX);
    let read = File::open(cmdline).and_then(|f| f.take(limit).read_to_end(&mut line));
    let mut options = Options::parse(&line);
    if let Err(e) = read {
        let why = format!("{}: {e}", cmdline.display());
        // Which disk was named is not known, so that it may be any other.
        options.disk = Which::No(NoDisk::Unusable(why.clone()));
        options.complaints.push(why);
    }
    options
}

/// Installs and boots, or tries to for ever.
fn process_1(arguments: &[OsString], cmdline: &Path) -> ! {
    let complaints = mounts::mount_all();
    // The streams that the kernel gave are used then.
    let _ = mounts::take_console();
    let mut console = Console::open();
    console.write_line(format_args!("pi-agent {} is process 1", env!("CARGO_PKG_VERSION")));
    let options = read_options(cmdline);
    for complaint in complaints.iter().chain(&options.complaints) {
        console.write_line(format_args!("warning: {complaint}"));
    }
    let mut supervisor = Supervisor::default();
    loop {
        let end = supervisor.run(&mut step_command(cmdline), &mut console);
        if end == End::Exit(READY.into()) {
            hand_over(&options, arguments, &mut console, &mut supervisor);
        } else {
            console.write_line(format_args!("the attempt {end}"));
        }
        if end == End::Stuck {
            restart_machine(&mut console);
        }
        if options.shell {
            shell(&mut console);
        }
        let wait = supervisor.wait_after(end);
        console.write_line(format_args!("trying again in {} s", wait.as_secs().max(1)));
        supervisor.sleep(wait);
    }
}

fn step_command(cmdline: &Path) -> Command {
    // The program itself, also when its file was deleted.
    let mut command = Command::new("/proc/self/exe");
    command.arg(STEP).arg("--cmdline").arg(cmdline);
    command
}

/// Becomes the installed system. Returns if that cannot be and another attempt makes sense.
fn hand_over(options: &Options, arguments: &[OsString], console: &mut Console, supervisor: &mut Supervisor) {
    let new_root = Path::new(NEW_ROOT);
    let wanted = options.init.as_deref();
    let init = match system::find_init(new_root, wanted) {
        Ok(init) => init,
        Err(wrong) => {
            let why = format!("the installed system has no init that can run: {wrong}");
            late::keep(&why);
            console.write_line(why);
            console.write_line(
                "install another image: piman reinstall, with an archive of a whole system for this Pi",
            );
            return system::unmount(new_root);
        }
    };
    if let Some(wanted) = wanted.filter(|w| *w != init) {
        console.write_line(format_args!(
            "warning: {} cannot run, taking {}",
            wanted.display(),
            init.display()
        ));
    }
    console.write_line(format_args!("switching root, {} becomes process 1", init.display()));
    if let Err(e) = switch::switch_root(new_root, console) {
        let why = format!("cannot switch root: {e}");
        console.write_line(&why);
        // What could not be moved back.
        for complaint in mounts::mount_all() {
            console.write_line(complaint);
        }
        late::keep(&why);
        return system::unmount(new_root);
    }
    // There is no way back: the initramfs is gone. The installed system runs, or the machine
    // starts again from the network.
    let mut wrong = String::new();
    for _ in 0..INIT_TRIES {
        let error = switch::become_init(&init, arguments);
        wrong = format!("the installed system's init cannot be run: {}: {error}", init.display());
        console.write_line(format_args!("cannot run {}: {error}", init.display()));
        for other in system::candidates(wanted).filter(|c| *c != init) {
            let error = switch::become_init(other, arguments);
            console.write_line(format_args!("cannot run {} either: {error}", other.display()));
        }
        let wait = supervisor.passing.wait();
        supervisor.sleep(wait);
    }
    // The next attempt tells the server: here there is no network any more.
    if let Err(e) = unsaid::keep(Path::new("/"), None, &Unsaid::NotBooted(wrong)) {
        console.write_line(format_args!("that cannot be kept for the server: {e}"));
    }
    rustix::fs::sync();
    restart_machine(console);
}

/// Starts the machine again, from the network: what no attempt can repair.
fn restart_machine(console: &mut Console) {
    console.write_line("restarting the machine");
    if let Err(e) = rustix::system::reboot(rustix::system::RebootCommand::Restart) {
        console.write_line(format_args!("cannot restart the machine: {e}"));
    }
}

/// A shell on the console, if the initramfs has one, until it ends.
fn shell(console: &mut Console) {
    let shell = Path::new("/bin/sh");
    if !shell.exists() {
        return console.write_line("piman.shell=1: the initramfs has no /bin/sh");
    }
    console.write_line("a shell, as piman.shell=1 asks for; exit tries again");
    match Command::new(shell).spawn().and_then(|mut child| child.wait()) {
        Ok(status) => console.write_line(format_args!("the shell ended: {status}")),
        Err(e) => console.write_line(format_args!("cannot run {}: {e}", shell.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(is_process_1: bool, arguments: &[&str]) -> Role {
        Role::of(is_process_1, arguments.iter().map(OsString::from))
    }

    fn init(arguments: &[&str]) -> Role {
        let arguments = arguments.iter().map(OsString::from).collect();
        Role::Init { arguments, cmdline: "/proc/cmdline".into() }
    }

    #[test]
    fn process_1_gives_its_arguments_to_the_installed_init() {
        assert_eq!(role(true, &["/init"]), init(&[]));
        assert_eq!(role(true, &["/init", "splash", "3"]), init(&["splash", "3"]));
        assert_eq!(role(true, &["/init", "init"]), init(&["init"]));
        assert_eq!(role(true, &["/pi-agent"]), init(&[]));
        assert_eq!(role(true, &["/bin/pi-agent", "init", "single"]), init(&["single"]));
        assert_eq!(role(true, &[]), init(&[]));
    }

    #[test]
    fn in_a_container_it_is_a_program() {
        assert_eq!(role(true, &["pi-agent", "install", "--server", "x"]), Role::Program);
        assert_eq!(role(false, &["pi-agent"]), Role::Program);
        assert_eq!(role(false, &["/init", "check"]), Role::Program);
        assert_eq!(role(false, &[]), Role::Program);
    }

    #[test]
    fn only_process_1_hands_over() {
        assert_eq!(role(false, &["pi-agent", "init"]), Role::Program);
    }

    #[test]
    fn the_child_and_a_command_line_from_a_file() {
        let cmdline = PathBuf::from("/tmp/c");
        let step = ["/proc/self/exe", "init-step", "--cmdline", "/tmp/c"];
        assert_eq!(role(false, &step), Role::Step { cmdline: cmdline.clone() });
        assert_eq!(role(false, &step[..2]), Role::Step { cmdline: "/proc/cmdline".into() });
        let want = Role::Init { arguments: vec!["3".into()], cmdline };
        assert_eq!(role(true, &["/init", "--cmdline", "/tmp/c", "3"]), want);
    }

    #[test]
    fn a_command_line_that_cannot_be_read_is_said() {
        let options = read_options(Path::new("/no/such/cmdline"));
        assert_eq!(options.complaints.len(), 1);
        assert!(matches!(options.disk, Which::No(NoDisk::Unusable(why)) if why == options.complaints[0]));
    }
}
