//! The agent as process 1 of an emulated Pi: a blank card is installed over the network and
//! boots, a second boot leaves it as it is, an order installs it again; somebody's card waits for one, and a damaged
//! one boots.
//!
//! Takes minutes, so it runs only with `PIMAN_EMULATED=1`, and what takes still longer only with `PIMAN_EMULATED=all`; a
//! word after `--` picks tests by their names. Needs QEMU, the static agent (`PIMAN_AGENT`), and Debian's apt, by which `machine/fetch.sh` brings
//! a kernel. A test for which something is missing is ignored, and says what it is; with `PIMAN_REQUIRE=1` it fails.
//!
//! Two machines run at a time: what they wait for is mostly each other's one processor.

mod bluetooth;
mod card;
mod disk;
mod distributions;
mod machine;
mod netboot;
mod old;
mod readme;
mod whole_disk;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use machine::{Boot, Root, Server, Tools, Until};
use pi_agent::card::inspect::{self, Card};
use piman_core::install::receipt::{Proof, Way};
use piman_tests::contents::digest;
use piman_tests::netns::assert_says;

/// What one test came to: nothing, or what is missing for it.
type Verdict = Result<(), String>;

/// A test, its name, and whether it runs without being named or asked for by `all`: one that shows little that another
/// does not show takes time for those only who want it.
type Test = (&'static str, bool, Run);

/// What a test needs.
#[derive(Clone, Copy)]
enum Run {
    /// An emulated Pi.
    Pi(fn(&Tools) -> Verdict),
    /// An emulated PC.
    Pc(fn() -> Verdict),
}

/// The longest first.
const TESTS: [Test; 12] = [
    ("recipe_of_the_readme_from_power_on", true, Run::Pi(netboot::recipe_of_the_readme)),
    ("tiny_on_a_raspi3b", true, Run::Pi(raspi3b)),
    ("services_over_rfcomm", true, Run::Pc(bluetooth::services_over_rfcomm)),
    ("tiny_by_stream_over_a_foreign_debian", true, Run::Pi(foreign_and_damaged)),
    ("whole_disk_is_installed_and_grown", true, Run::Pi(whole_disk::is_installed_and_grown)),
    ("tiny_from_an_old_server", true, Run::Pi(old_server)),
    ("raspberry_pi_os_as_published", false, Run::Pi(distributions::raspios)),
    ("debian_as_published", false, Run::Pi(distributions::debian)),
    ("ubuntu_as_published", false, Run::Pi(distributions::ubuntu)),
    ("appliance_with_two_systems", false, Run::Pi(distributions::appliance)),
    ("raspberry_pi_os_in_every_packing", false, Run::Pi(distributions::in_every_packing)),
    ("netboot_tiny_from_power_on", false, Run::Pi(netboot::tiny)),
];

/// The hardware address of the emulated machine, which has no serial number.
const MAC: &str = "b8:27:eb:00:00:01";

/// So many machines at a time.
const AT_A_TIME: usize = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--list") {
        TESTS.iter().for_each(|(name, ..)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let words: Vec<_> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = std::env::var_os("PIMAN_EMULATED").unwrap_or_default();
    let named = |name: &str| words.iter().any(|w| name.contains(w.as_str()));
    let of_course = |always: bool| words.is_empty() && (always || wanted == "all");
    let chosen: VecDeque<Test> =
        TESTS.into_iter().filter(|(name, always, _)| named(name) || of_course(*always)).collect();
    let others = TESTS.len() - chosen.len();
    if wanted != "1" && wanted != "all" {
        for (name, ..) in &chosen {
            println!("test emulated::{name} ... ignored, takes minutes; PIMAN_EMULATED=1 runs it");
        }
        return ExitCode::SUCCESS;
    }
    let tools = Tools::find();
    let (waiting, counts) = (Mutex::new(chosen), Mutex::new(Counts::default()));
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some((name, _, run)) = next(&waiting) {
                    one(name, run, &tools, &counts);
                }
            });
        }
    });
    let Counts { passed, ignored, failed } = counts.into_inner().unwrap();
    println!(
        "emulated: {passed} passed, {failed} failed, {ignored} ignored; {others} others run if they are named, \
         or with PIMAN_EMULATED=all"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|v| v == "1")
}

/// The next test that nobody has begun.
fn next(waiting: &Mutex<VecDeque<Test>>) -> Option<Test> {
    waiting.lock().unwrap().pop_front()
}

#[derive(Debug, Default)]
struct Counts {
    passed: usize,
    ignored: usize,
    failed: usize,
}

/// Runs a test, on a thread that has its name: what the machine says is printed with it in front.
fn one(name: &str, run: Run, tools: &Result<Tools, String>, counts: &Mutex<Counts>) {
    let start = Instant::now();
    let verdict = thread::scope(|scope| {
        let test = move || match (run, tools) {
            (Run::Pi(test), Ok(tools)) => test(tools),
            (Run::Pi(_), Err(missing)) => Err(missing.clone()),
            (Run::Pc(test), _) => test(),
        };
        thread::Builder::new().name(name.into()).spawn_scoped(scope, test).unwrap().join()
    });
    let seconds = start.elapsed().as_secs();
    let mut counts = counts.lock().unwrap();
    match verdict {
        Ok(Ok(())) => {
            counts.passed += 1;
            println!("test emulated::{name} ... ok ({seconds} s)");
        }
        Ok(Err(why)) if is_set("PIMAN_REQUIRE") => {
            counts.failed += 1;
            println!("test emulated::{name} ... FAILED, {why}");
        }
        Ok(Err(why)) => {
            counts.ignored += 1;
            println!("test emulated::{name} ... ignored, {why}");
        }
        Err(_) => {
            counts.failed += 1;
            println!("test emulated::{name} ... FAILED ({seconds} s)");
        }
    }
}

/// A name for a new file in the folder of the emulations; what had it before is deleted.
fn new_file(tools: &Tools, name: &str) -> PathBuf {
    let path = tools.folder.join(name);
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir_all(&path);
    path
}

fn installed(card: &Path) -> Proof {
    match inspect::check(card).unwrap() {
        Card::Installed(proof) => proof,
        other => panic!("{}: {other}", card.display()),
    }
}

#[track_caller]
fn assert_installs(console: &str) {
    assert_says(console, &["is process 1", "not installed", "installed image", "switching root"]);
}

#[track_caller]
fn assert_only_boots(console: &str) {
    assert_boots(console, "installed: image");
}

/// It found this on its card, and booted.
#[track_caller]
fn assert_boots(console: &str, found: &str) {
    assert_says(console, &["is process 1", found, "the server says boot", "switching root"]);
    assert!(!console.contains("installed image"), "it was installed again");
    for line in console.lines().filter(|l| l.starts_with("piman:")) {
        let word = line.split_whitespace().nth(2).unwrap_or_default();
        let works = ["partition", "filesystem", "transfer", "sync", "commit"].contains(&word);
        assert!(!works, "a boot does no work on the card: {line}");
    }
}

/// The Pi's own card and USB: with modules of other names than the rest.
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
        until: Until::RootSwitched,
        deadline: Duration::from_secs(1800),
    };
    assert_installs(&tools.boot(&boot));
    assert_eq!(installed(&card).path, Way::Image);
    fs::remove_file(&card).unwrap();
    Ok(())
}

/// A card with somebody's Debian waits, is told, and is installed when that is ordered; then it has errors that the
/// kernel has noted, and boots all the same.
fn foreign_and_damaged(tools: &Tools) -> Verdict {
    let archive = tools.archive(Root::Tiny)?;
    let card = new_file(tools, "stream.img");
    card::of_somebody(&card);
    let files = new_file(tools, "stream-files");
    fs::create_dir(&files).unwrap();
    let state = new_file(tools, "stream-state");
    let server = Server::start_with_files(tools, &archive, &state, &files);
    let append = format!("piman.path=archive piman.transfer-port={}", server.transfer_port.unwrap());
    let boot = Boot {
        machine: "virt",
        card: &card,
        card_size: "512M",
        control_port: server.control_port,
        append: &append,
        until: Until::RootSwitched,
        deadline: Duration::from_secs(900),
    };
    let before = digest(&card);
    let machine = tools.switch_on(&boot);
    let decides = format!("decide with: piman install {MAC}");
    machine.wait(&decides);
    machine.paused(|| assert_eq!(digest(&card), before, "something was written"));
    let devices = tools.piman(&state, &["devices"]);
    assert!(devices.contains("waits: foreign disk") && devices.contains(&decides), "{devices}");
    let ordered = tools.piman(&state, &["install", MAC, "--yes"]);
    assert!(ordered.contains("it erases:") && ordered.contains("ext4 \"rootfs\""), "{ordered}");
    let console = machine.finish();
    assert_says(&console, &["BOOTFS", "rootfs", &decides, "installed image", "switching root"]);
    let first = installed(&card);
    assert_eq!(first.path, Way::Archive);
    let events = tools.piman(&state, &["device", MAC]);
    assert_says(
        &events,
        &["waits: foreign disk", "may be formatted as installation", "by piman install", "installed"],
    );
    // Its log was there before it left the initramfs.
    let log = the_log(&files);
    assert_says(&log, &["not installed", "installed image"]);
    card::settle(&card);
    card::note_errors(&card);
    // The installed system compares what it has with its checksum.
    let console = tools.boot(&Boot { until: Until::Up(Root::Tiny), ..boot });
    assert_boots(&console, "installed and damaged: image");
    let events = tools.piman(&state, &["device", MAC]);
    assert!(events.contains("boots a damaged installation: "), "{events}");
    assert!(
        matches!(inspect::check(&card).unwrap(), Card::Damaged { proof, mounts: true, .. } if proof == first)
    );
    assert_eq!(the_log(&files), log, "a boot has nothing to tell");
    fs::remove_file(&card).unwrap();
    Ok(())
}

/// The only log that came. The machine has no serial number, so its name is that of its network interface.
#[track_caller]
fn the_log(files: &Path) -> String {
    let logs: Vec<_> = fs::read_dir(files)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .collect();
    let [log] = &logs[..] else { panic!("there is not one log but {logs:?}") };
    let name = log.file_stem().unwrap().to_str().unwrap();
    let (who, time) = name.rsplit_once('-').unwrap();
    assert!(who == "b8-27-eb-00-00-01" && time.parse::<u64>().is_ok(), "{name}");
    fs::read_to_string(log).unwrap()
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
        until: Until::RootSwitched,
        deadline: Duration::from_secs(900),
    };
    assert_installs(&tools.boot(&boot));
    let first = installed(&card);
    assert_eq!(first.path, Way::Archive);
    // 2027-11-20 12:34:56, as the old server said, and the minutes since.
    assert!((1_826_714_096..1_826_714_096 + 900).contains(&first.time), "{}", first.time);
    assert_only_boots(&tools.boot(&boot));
    assert_eq!(installed(&card), first);
    let said = said.lock().unwrap().join("\n");
    assert_says(
        &said,
        &["RECEIVED_DATE", "SET_DATE", "RECEIVED_FORMAT", "IS_FORMATTED", "IS_INSTALLED", "RECEIVED_BOOT"],
    );
    fs::remove_file(&card).unwrap();
    Ok(())
}
