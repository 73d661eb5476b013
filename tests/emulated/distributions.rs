//! Disk images as distributions make them (`machine/mkdisk.sh`): each comes packed and is installed by the real agent. Where
//! nothing is to be one Pi's own the card has it byte for byte. Then it is installed with a profile, and boots by
//! itself: with the kernel, device tree, initramfs and command line that are on the card's FAT, to the login of the
//! profile's user, with its host name, a new machine-id and new host keys; and it fills the card.
//!
//! A card is a file here, which is faster than an emulated Pi; one image gets its profile by an emulated Pi.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use piman_tests::binaries;
use piman_tests::disk::{Mounted, run};
use piman_tests::netns::assert_says;
use piman_tests::server::Server;
use piman_tests::tree::{assert_same, installed as installed_tree};

use super::card::{self, BLOCK, changed_blocks};
use super::disk::{self, BootFiles, Part, Table};
use super::machine::{Boot, Tools, Until};
use super::{MAC, Verdict, installed, new_file};

/// A layout, and what is particular about it.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// As `mkdisk.sh` has it.
    name: &'static str,
    /// How the image comes.
    packing: Packing,
    /// Which partition is made as large as the card allows, counted from 0, and by whom.
    grown: (usize, Grown),
    /// Who makes it one Pi's own.
    installer: Installer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grown {
    /// The system, at its first boot.
    AtFirstBoot,
    /// The agent, when it has written the image.
    ByAgent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Installer {
    /// The agent of this machine: the card is a file for it.
    Here,
    /// The agent as process 1 of the emulated Pi, with the Pi's own card and network.
    EmulatedPi,
}

const RASPIOS: Layout =
    Layout { name: "raspios", packing: XZ, grown: (1, Grown::AtFirstBoot), installer: Installer::Here };

const DEBIAN: Layout =
    Layout { name: "debian", packing: ZSTD, grown: (1, Grown::ByAgent), installer: Installer::EmulatedPi };

const UBUNTU: Layout =
    Layout { name: "ubuntu", packing: GZIP, grown: (1, Grown::AtFirstBoot), installer: Installer::Here };

const APPLIANCE: Layout =
    Layout { name: "ab", packing: ZIP, grown: (3, Grown::ByAgent), installer: Installer::Here };

/// What is behind the name of an image that is packed, and what packs it.
type Packing = (&'static str, &'static str);

const XZ: Packing = ("xz", "xz -0 -T2 <IMAGE >OUT");
const ZSTD: Packing = ("zst", "zstd -q -1 -T2 <IMAGE >OUT");
const GZIP: Packing = ("gz", "gzip -1 <IMAGE >OUT");
const ZIP: Packing = ("zip", "zip -q -1 -j OUT IMAGE");
const PACKINGS: [Packing; 5] = [XZ, ZSTD, GZIP, ZIP, ("bz2", "bzip2 -1 <IMAGE >OUT")];

/// The cards, in bytes. QEMU takes powers of two only.
const CARD: u64 = 2 << 30;

/// The partition with the root filesystem, counted from 0.
const ROOT: usize = 1;

/// The serial number under which cards are installed.
const SERIAL: &str = "00000000d1570001";

pub(crate) fn raspios(tools: &Tools) -> Verdict {
    distribution(tools, RASPIOS)
}

pub(crate) fn debian(tools: &Tools) -> Verdict {
    distribution(tools, DEBIAN)
}

pub(crate) fn ubuntu(tools: &Tools) -> Verdict {
    distribution(tools, UBUNTU)
}

pub(crate) fn appliance(tools: &Tools) -> Verdict {
    distribution(tools, APPLIANCE)
}

fn distribution(tools: &Tools, layout: Layout) -> Verdict {
    let image = tools.disk_image(layout.name)?;
    let folder = new_file(tools, &format!("distribution-{}", layout.name));
    fs::create_dir(&folder).unwrap();
    let state = folder.join("state");
    let packed = packed(&image, &folder, layout);
    println!("{}", tools.add_image(&state, &packed));
    fs::remove_file(packed).unwrap();
    let server = serve(&state);
    set_profile(&server, &folder, "identity = \"keep\"\n");
    let card = folder.join("card.img");
    fs::File::create(&card).unwrap().set_len(CARD).unwrap();
    install_here(&server, &card);
    is_as_the_image(&image, &card, layout);

    set_profile(&server, &folder, PROFILE);
    let host_name = match layout.installer {
        Installer::Here => {
            server.piman(&["reinstall", SERIAL]);
            install_here(&server, &card);
            "lab-01"
        }
        // The second Pi that the server has seen.
        Installer::EmulatedPi => {
            server.piman(&["devices", "add", MAC]);
            server.piman(&["reinstall", MAC]);
            install_there(tools, &server, &card);
            "lab-02"
        }
    };
    has_names_of_its_own(&image, &card, layout);
    boots(tools, &folder, (&image, &card), layout, host_name);
    fs::remove_dir_all(&folder).unwrap();
    Ok(())
}

/// What the Pis are to have of their own. The password is "raspberry".
const PROFILE: &str = r#"
hostname = "lab-{ordinal:02}"
ssh = true

[[users]]
name = "lab"
password-hash = "$6$saltsalt$677q0O/U8ycKsbBfN68CgcyXcWEbi0J/eUf256PkkeGXfNX3CNnPlwFdNvdBgnSiHDx5X1Xozxf5lg9iVIVVu/"
"#;

fn set_profile(server: &Server, folder: &Path, text: &str) {
    let file = folder.join("profile.toml");
    fs::write(&file, text).unwrap();
    let mut piman = Command::new(binaries::piman());
    run(piman.args(["profile", "set", "--state"]).arg(server.state()).arg(file));
}

/// The image as it is published.
fn packed(image: &Path, folder: &Path, layout: Layout) -> PathBuf {
    let (end, packs) = layout.packing;
    let packed = folder.join(format!("{}.img.{end}", layout.name));
    pack(image, packs, &packed);
    packed
}

/// Packs an image; `IMAGE` and `OUT` stand for the files.
fn pack(image: &Path, packs: &str, packed: &Path) {
    let script =
        packs.replace("IMAGE", &image.display().to_string()).replace("OUT", &packed.display().to_string());
    run(Command::new("bash").args(["-eo", "pipefail", "-c", &script]));
}

/// However it comes, it is the same image.
pub(crate) fn in_every_packing(tools: &Tools) -> Verdict {
    let image = tools.disk_image(RASPIOS.name)?;
    let folder = new_file(tools, "every-packing");
    fs::create_dir(&folder).unwrap();
    let id = |file: &Path| {
        let said = tools.add_image(&folder.join("state"), file);
        let id = said.split(' ').nth(2).filter(|id| id.len() == 64);
        id.unwrap_or_else(|| panic!("{}: {said}", file.display())).to_owned()
    };
    let want = id(&image);
    for (end, packs) in PACKINGS {
        let packed = folder.join(format!("x.img.{end}"));
        pack(&image, packs, &packed);
        assert_eq!(id(&packed), want, "{end}");
        fs::remove_file(packed).unwrap();
    }
    fs::remove_dir_all(&folder).unwrap();
    Ok(())
}

fn serve(state: &Path) -> Server {
    let mut serve = Command::new(binaries::piman());
    serve.args(["serve", "--listen", "127.0.0.1", "--policy", "foreign=install", "--state"]).arg(state);
    serve.args(["--control-port", "0", "--rootfs-port", "0", "--fetch-port", "0"]);
    let server = Server::start_by(&mut serve, state);
    server.wait_log("is ready");
    server
}

/// The agent of this machine installs a card.
fn install_here(server: &Server, card: &Path) {
    println!("{}", String::from_utf8_lossy(&run(&mut server.agent(card, SERIAL)).stderr));
    installed(card);
}

/// The agent of an emulated Pi does.
fn install_there(tools: &Tools, server: &Server, card: &Path) {
    let boot = Boot {
        machine: "raspi3b",
        card,
        card_size: "2G",
        control_port: server.port("control"),
        append: "",
        until: Until::RootSwitched,
        deadline: Duration::from_secs(1800),
    };
    assert_says(&tools.boot(&boot), &["is process 1", "installed image", "switching root"]);
    installed(card);
}

/// What identifies a disk and its filesystems is not what it is in the image; what they are called is.
fn has_names_of_its_own(image: &Path, card: &Path, layout: Layout) {
    let (theirs, ours) = (Table::of(image), Table::of(card));
    assert_ne!(ours.id, theirs.id);
    for (theirs, ours) in theirs.parts.iter().zip(&ours.parts) {
        assert_ne!(ours.id, theirs.id);
        let (mut now, mut then) = (disk::facts(card, ours), disk::facts(image, theirs));
        assert_ne!(now.remove("UUID").unwrap(), then.remove("UUID").unwrap());
        assert_eq!(now, then);
        disk::judge(card, ours);
    }
    println!("{}: {:?}", layout.name, ours);
}

/// What is not as in the image is the proof, the table if a partition was made larger, and then what is in that.
fn is_as_the_image(image: &Path, card: &Path, layout: Layout) {
    let (theirs, ours) = (Table::of(image), Table::of(card));
    let (grown, by) = layout.grown;
    assert_eq!(ours.id, theirs.id);
    for (n, (theirs, ours)) in theirs.parts.iter().zip(&ours.parts).enumerate() {
        assert_eq!((ours.start, &ours.id), (theirs.start, &theirs.id));
        if n == grown && by == Grown::ByAgent {
            assert!(ours.start + ours.length > CARD - (2 << 20), "it does not reach the end: {ours:?}");
            // Its bytes are others: there is more of everything. What is in it is not.
            let files = |disk: &Path, part: &Part| {
                installed_tree(Mounted::new(disk, part.start, part.length, "ro,noload").path())
            };
            assert_same(&files(card, ours), &files(image, theirs));
        } else {
            assert_eq!(ours, theirs);
        }
        assert_eq!(disk::facts(card, ours), disk::facts(image, theirs));
        disk::judge(card, ours);
    }
    assert_eq!(ours.parts.len(), theirs.parts.len());
    let gap = theirs.boot().start / BLOCK;
    let from = theirs.parts[grown].start / BLOCK;
    let is_theirs = |block: &u64| *block >= gap && (by == Grown::AtFirstBoot || *block < from);
    let changed = changed_blocks(image, card);
    let others: Vec<_> = changed.iter().filter(|block| is_theirs(block)).collect();
    assert!(others.is_empty(), "blocks of {BLOCK} bytes that are not as in the image: {others:?}");
    let in_gap = changed.iter().filter(|block| **block < gap).count();
    println!("{}: {in_gap} blocks before the first partition are not as in the image", layout.name);
    assert!(in_gap <= 2, "the proof and a table are two blocks");
}

/// It boots by itself to the login of the user of the profile; then it is this Pi's own, and fills the card.
fn boots(tools: &Tools, folder: &Path, (image, card): (&Path, &Path), layout: Layout, host_name: &str) {
    let facts = Facts::read(&log_in(tools, folder, card, "lab", "raspberry"));
    println!("{}: {facts:?}", layout.name);
    assert_eq!(facts.host_name, host_name);
    let of_image = Facts::of_image(image);
    assert!(facts.machine_id.len() == 32 && facts.machine_id != of_image.machine_id);
    assert!(facts.host_key.starts_with("ssh-ed25519 ") && facts.host_key != of_image.host_key);
    let table = Table::of(card);
    // The plug was pulled. A FAT says so of itself; an ext4 filesystem has it in its journal, which the kernel replays.
    for part in table.parts.iter().filter(|part| disk::facts(card, part)["TYPE"] == "ext4") {
        card::settle_at(card, part.start);
        disk::judge(card, part);
    }
    let (grown, by) = layout.grown;
    let start = table.parts[grown].start;
    if by == Grown::ByAgent && layout.installer == Installer::Here && !may_grow() {
        println!("{}: not checked that it has grown: this machine does not let the agent do it", layout.name);
        return;
    }
    let bytes = disk::filesystem_bytes(card, start);
    assert!(bytes > CARD - start - (2 << 20), "{bytes} bytes from {start}: it does not fill the card");
}

/// Whether the kernel lets this process grow a filesystem that is mounted: CAP_SYS_RESOURCE.
fn may_grow() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(set.trim(), 16).unwrap() >> 24 & 1 == 1
}

/// Boots what is on the card until this user is in; returns the console.
fn log_in(tools: &Tools, folder: &Path, card: &Path, user: &str, password: &str) -> String {
    let files = BootFiles::of(card);
    files.write(card, folder);
    let typed = [("login: ", user), ("Password: ", password), (r"\$ $", LOOK)]
        .map(|(shown, text)| (shown, text.into()));
    let [kernel, initramfs, device_tree] =
        ["kernel", "initramfs", "device-tree"].map(|name| folder.join(name).display().to_string());
    let more = ["--machine", "raspi3b", "--kernel", &kernel, "--initrd", &initramfs, "--dtb", &device_tree];
    let more = [&more[..], &["--cmdline", &files.command_line]].concat();
    tools.start_until("FACT end [a-z]", &typed, card, Duration::from_secs(1200), &more).finish()
}

/// What is typed when the user is in: it shows what can only be seen from inside, when SSH answers.
const LOOK: &str = "until head -c 7 </dev/tcp/127.0.0.1/22; do sleep 1; done; echo; \
    for f in /proc/sys/kernel/hostname /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub; do \
    echo \"FACT ${f##*/} $(head -n 1 $f)\"; done; echo \"FACT end $(id -un)\"";

/// What was seen from inside.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    host_name: String,
    machine_id: String,
    host_key: String,
}

impl Facts {
    /// As it is in the image.
    fn of_image(image: &Path) -> Self {
        let table = Table::of(image);
        let root = &table.parts[ROOT];
        let mounted = Mounted::new(image, root.start, root.length, "ro,noload");
        let line = |path: &str| fs::read_to_string(mounted.path().join(path)).unwrap().trim().to_owned();
        Self {
            host_name: line("etc/hostname"),
            machine_id: line("etc/machine-id"),
            host_key: line("etc/ssh/ssh_host_ed25519_key.pub"),
        }
    }

    fn read(console: &str) -> Self {
        let fact = |name: &str| {
            let line =
                console.lines().rev().find_map(|line| Some(line.split_once(&format!("FACT {name} "))?.1));
            line.unwrap_or_else(|| panic!("nothing is known of {name}")).trim().to_owned()
        };
        Self {
            host_name: fact("hostname"),
            machine_id: fact("machine-id"),
            host_key: fact("ssh_host_ed25519_key.pub"),
        }
    }
}
