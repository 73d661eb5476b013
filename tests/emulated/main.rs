//! The agent as process 1 of an emulated Pi: a blank card is installed over the network and
//! boots, a second boot leaves it as it is, an order installs it again.
//!
//! Takes minutes, so it runs only with `PIMAN_EMULATED=1`; a word after `--` picks tests by
//! their names. Needs the scripts of the emulated Pi (`PIMAN_TOOLS`), QEMU, and the static
//! agent (`PIMAN_AGENT`). What is missing is said and counted as skipped.

mod machine;
mod netboot;
mod old;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use machine::{Boot, Root, Server, Tools};
use pi_agent::proof::{self, Card, Proof, Way};
use piman_core::install::layout::{Layout, SECTOR};

/// What one test came to: nothing, or why it was skipped.
type Verdict = Result<(), String>;

/// A test and its name.
type Test = (&'static str, fn(&Tools) -> Verdict);

const TESTS: [Test; 6] = [
    ("netboot_debian_from_power_on", netboot::debian),
    ("netboot_tiny_from_power_on", netboot::tiny),
    ("debian_is_installed_booted_and_installed_again", debian),
    ("tiny_on_a_raspi3b", raspi3b),
    ("tiny_by_stream", stream),
    ("tiny_from_an_old_server", old_server),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let words: Vec<_> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let tools = if std::env::var_os("PIMAN_EMULATED").is_some_and(|v| v == "1") {
        Tools::find()
    } else {
        Err("takes minutes; PIMAN_EMULATED=1 runs it".into())
    };
    let (mut passed, mut skipped, mut failed) = (0, 0, 0);
    for (name, test) in TESTS {
        if !words.is_empty() && !words.iter().any(|w| name.contains(w.as_str())) {
            continue;
        }
        let start = Instant::now();
        let run = |tools| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(tools)));
        let verdict = match &tools {
            Err(missing) => Ok(Err(missing.clone())),
            Ok(tools) => run(tools),
        };
        let seconds = start.elapsed().as_secs();
        match verdict {
            Ok(Ok(())) => {
                passed += 1;
                println!("test emulated::{name} ... ok ({seconds} s)");
            }
            Ok(Err(why)) => {
                skipped += 1;
                println!("test emulated::{name} ... skipped: {why}");
            }
            Err(_) => {
                failed += 1;
                println!("test emulated::{name} ... FAILED ({seconds} s)");
            }
        }
    }
    println!("emulated: {passed} passed, {skipped} skipped, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A name for a new file in the folder of the emulations; what had it before is deleted.
fn new_file(tools: &Tools, name: &str) -> PathBuf {
    let path = tools.folder.join(name);
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir_all(&path);
    path
}

fn installed(card: &Path) -> Proof {
    match proof::check(card).unwrap() {
        Card::Installed(proof) => proof,
        other => panic!("{}: {other}", card.display()),
    }
}

/// The unit in which cards are compared.
const BLOCK: usize = 4096;

/// So many blocks the kernel may change when it mounts a filesystem to write to it and
/// replays its journal, and a small system when it starts.
const MOUNT_BLOCKS: usize = 16;

/// The numbers of the blocks in which two cards differ.
fn changed_blocks(before: &Path, after: &Path) -> Vec<u64> {
    let mut files =
        [before, after].map(|p| std::io::BufReader::with_capacity(1 << 20, fs::File::open(p).unwrap()));
    let mut changed = Vec::new();
    for number in 0.. {
        let [a, b] = files.each_mut().map(|file| {
            let mut block = Vec::with_capacity(BLOCK);
            file.by_ref().take(BLOCK as u64).read_to_end(&mut block).unwrap();
            block
        });
        if a.is_empty() && b.is_empty() {
            break;
        }
        if a != b {
            changed.push(number);
        }
    }
    changed
}

/// What the agent and the kernel under it did, in this order.
#[track_caller]
fn assert_said(console: &str, lines: &[&str]) {
    let mut rest = console;
    for line in lines {
        let Some(at) = rest.find(line) else { panic!("the console does not say (in this order): {line}") };
        rest = rest.get(at + line.len()..).unwrap_or_default();
    }
}

#[track_caller]
fn assert_installs(console: &str) {
    assert_said(console, &["is process 1", "not installed", "installed image", "switching root"]);
}

#[track_caller]
fn assert_only_boots(console: &str) {
    assert_said(console, &["is process 1", "installed: image", "the server says boot", "switching root"]);
    assert!(!console.contains("installed image"), "it was installed again");
    for line in console.lines().filter(|l| l.starts_with("piman:")) {
        let word = line.split_whitespace().nth(2).unwrap_or_default();
        let works = ["partition", "filesystem", "transfer", "sync", "commit"].contains(&word);
        assert!(!works, "a boot does no work on the card: {line}");
    }
}

fn debian(tools: &Tools) -> Verdict {
    let archive = tools.archive(Root::Debian)?;
    let card = new_file(tools, "debian.img");
    let server = Server::start(tools, &archive, &new_file(tools, "debian-state"));
    let boot = Boot {
        machine: "virt",
        card: &card,
        card_size: "2G",
        control_port: server.control_port,
        append: "",
        root: Root::Debian,
        deadline: Duration::from_secs(900),
    };
    assert_installs(&tools.boot(&boot));
    let first = installed(&card);
    assert_eq!(first.path, Way::Image);
    assert!(first.time > 1_700_000_000, "the clock was set: {}", first.time);

    assert_only_boots(&tools.boot(&boot));
    assert_eq!(installed(&card), first, "the second boot left the installation as it was");

    // The machine has no serial number in its device tree: its MAC tells it from others.
    let devices = server.piman(&["devices"]);
    assert!(devices.contains("b8:27:eb:00:00:01"), "{devices}");
    server.piman(&["reinstall", "b8:27:eb:00:00:01"]);
    let console = tools.boot(&boot);
    assert_said(&console, &["installed: image", "installed image", "switching root"]);
    let second = installed(&card);
    assert!(second.time > first.time, "{first:?}, {second:?}");

    assert_only_boots(&tools.boot(&boot));
    assert_eq!(installed(&card), second, "an order is carried out once");
    fs::remove_file(&card).unwrap();
    Ok(())
}

fn raspi3b(tools: &Tools) -> Verdict {
    let archive = tools.archive(Root::Tiny)?;
    let card = new_file(tools, "raspi3b.img");
    let server = Server::start(tools, &archive, &new_file(tools, "raspi3b-state"));
    let boot = Boot {
        machine: "raspi3b",
        card: &card,
        card_size: "512M",
        control_port: server.control_port,
        append: "",
        root: Root::Tiny,
        deadline: Duration::from_secs(900),
    };
    assert_installs(&tools.boot(&boot));
    let first = installed(&card);
    assert_only_boots(&tools.boot(&boot));
    assert_eq!(installed(&card), first);
    fs::remove_file(&card).unwrap();
    Ok(())
}

fn stream(tools: &Tools) -> Verdict {
    let archive = tools.archive(Root::Tiny)?;
    let card = new_file(tools, "stream.img");
    let server = Server::start(tools, &archive, &new_file(tools, "stream-state"));
    let boot = Boot {
        machine: "virt",
        card: &card,
        card_size: "512M",
        control_port: server.control_port,
        append: "piman.path=stream",
        root: Root::Tiny,
        deadline: Duration::from_secs(400),
    };
    assert_installs(&tools.boot(&boot));
    let first = installed(&card);
    assert_eq!(first.path, Way::Stream);
    // Once more, so that the installed system has written what it writes when it is new.
    assert_only_boots(&tools.boot(&boot));
    let before = new_file(tools, "stream-before.img");
    fs::copy(&card, &before).unwrap();
    assert_only_boots(&tools.boot(&boot));
    assert_eq!(installed(&card), first);
    let changed = changed_blocks(&before, &card);
    println!("a boot changed these blocks of 4096 bytes: {changed:?}");
    let root = Layout::default().root_start * SECTOR / BLOCK as u64;
    assert!(changed.iter().all(|b| *b >= root), "outside of the root filesystem nothing changes");
    assert!(changed.len() <= MOUNT_BLOCKS, "the kernel's mount and the system's own start write less");
    fs::remove_file(&before).unwrap();
    fs::remove_file(&card).unwrap();
    Ok(())
}

fn old_server(tools: &Tools) -> Verdict {
    let archive = tools.archive(Root::Tiny)?;
    let card = new_file(tools, "old.img");
    let (control_port, rootfs_port, said) = old::serve(&archive);
    let append = format!("piman.rootfs-port={rootfs_port}");
    let boot = Boot {
        machine: "virt",
        card: &card,
        card_size: "512M",
        control_port,
        append: &append,
        root: Root::Tiny,
        deadline: Duration::from_secs(400),
    };
    assert_installs(&tools.boot(&boot));
    let first = installed(&card);
    assert_eq!(first.path, Way::Stream);
    // 2027-11-20 12:34:56, as the old server said, and the minutes since.
    assert!((1_826_714_096..1_826_714_096 + 900).contains(&first.time), "{}", first.time);
    assert_only_boots(&tools.boot(&boot));
    assert_eq!(installed(&card), first);
    let said = said.lock().unwrap().join("\n");
    assert_said(
        &said,
        &["RECEIVED_DATE", "SET_DATE", "RECEIVED_FORMAT", "IS_FORMATTED", "IS_INSTALLED", "RECEIVED_BOOT"],
    );
    fs::remove_file(&card).unwrap();
    Ok(())
}
