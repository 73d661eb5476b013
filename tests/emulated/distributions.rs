//! Disk images as distributions make them (`machine/mkdisk.sh`): each comes packed, is installed by the real agent, is then
//! on the card byte for byte, and boots by itself from there: with the kernel, device tree and command line that are
//! on the card's FAT, to a login. There its root filesystem fills the card.
//!
//! A card is a file here, which is faster than an emulated Pi; one image is installed by an emulated Pi.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use piman_tests::binaries;
use piman_tests::disk::{Mounted, run};
use piman_tests::server::Server;
use piman_tests::tree::{assert_same, installed as installed_tree};

use super::card::{BLOCK, changed_blocks};
use super::disk::{self, BootFiles, Part, Table};
use super::machine::Tools;
use super::{Verdict, installed, new_file};

/// A layout, and what is particular about it.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// As `mkdisk.sh` has it.
    name: &'static str,
    /// How the image comes.
    packing: Packing,
    /// The user of the image, and the password, if one can log in with it.
    login: (&'static str, Option<&'static str>),
    /// Which partition has the root filesystem, counted from 0.
    root: usize,
    /// Which is made as large as the card allows, and by whom.
    grown: (usize, Grown),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grown {
    /// The system, at its first boot.
    AtFirstBoot,
    /// The agent, when it has written the image.
    ByAgent,
}

const RASPIOS: Layout = Layout {
    name: "raspios",
    packing: XZ,
    login: ("pi", None),
    root: 1,
    grown: (1, Grown::AtFirstBoot),
};

const DEBIAN: Layout = Layout {
    name: "debian",
    packing: ZSTD,
    login: ("root", None),
    root: 1,
    grown: (1, Grown::ByAgent),
};

const UBUNTU: Layout = Layout {
    name: "ubuntu",
    packing: GZIP,
    login: ("ubuntu", Some("ubuntu")),
    root: 1,
    grown: (1, Grown::AtFirstBoot),
};

const APPLIANCE: Layout = Layout {
    name: "ab",
    packing: ZIP,
    login: ("admin", Some("admin")),
    root: 1,
    grown: (3, Grown::ByAgent),
};

/// What is behind the name of an image that is packed, and what packs it.
type Packing = (&'static str, &'static str);

const XZ: Packing = ("xz", "xz -0 -T2 <IMAGE >OUT");
const ZSTD: Packing = ("zst", "zstd -q -1 -T2 <IMAGE >OUT");
const GZIP: Packing = ("gz", "gzip -1 <IMAGE >OUT");
const ZIP: Packing = ("zip", "zip -q -1 -j OUT IMAGE");
const PACKINGS: [Packing; 5] = [XZ, ZSTD, GZIP, ZIP, ("bz2", "bzip2 -1 <IMAGE >OUT")];

/// The cards, in bytes. QEMU takes powers of two only.
const CARD: u64 = 2 << 30;

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
    let card = folder.join("card.img");
    let server = serve(&state);
    install(&server, &card);
    is_as_the_image(&image, &card, layout);
    boots(tools, &folder, &card, layout);
    fs::remove_dir_all(&folder).unwrap();
    Ok(())
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
    let script = packs.replace("IMAGE", &image.display().to_string()).replace("OUT", &packed.display().to_string());
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

/// The real agent installs a card.
fn install(server: &Server, card: &Path) {
    if !card.exists() {
        fs::File::create(card).unwrap().set_len(CARD).unwrap();
    }
    println!("{}", String::from_utf8_lossy(&run(&mut server.agent(card, SERIAL)).stderr));
    installed(card);
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

/// It boots by itself to the login, and then its root filesystem fills the card.
fn boots(tools: &Tools, folder: &Path, card: &Path, layout: Layout) {
    let (user, password) = layout.login;
    let password = match (layout.name, password) {
        // Its user has none until the one who has the card in a reader says so.
        ("raspios", _) => {
            disk::put_boot_file(card, "userconf.txt", &format!("lab:{HASH}\n"));
            Some("raspberry")
        }
        (_, password) => password,
    };
    let user = if layout.name == "raspios" { "lab" } else { user };
    let console = log_in(tools, folder, card, user, password);
    println!("{:?}", Facts::read(&console));
    let table = Table::of(card);
    let root = &table.parts[layout.grown.0];
    super::card::settle_at(card, root.start);
    let bytes = disk::filesystem_bytes(card, root.start);
    assert!(bytes > CARD - root.start - (2 << 20), "{bytes} bytes: it has not grown");
    table.parts.iter().for_each(|part| disk::judge(card, part));
}

/// "raspberry", as in `/etc/shadow`.
const HASH: &str = "$6$saltsalt$677q0O/U8ycKsbBfN68CgcyXcWEbi0J/eUf256PkkeGXfNX3CNnPlwFdNvdBgnSiHDx5X1Xozxf5lg9iVIVVu/";

/// Boots what is on the card until this user is in; returns the console.
fn log_in(tools: &Tools, folder: &Path, card: &Path, user: &str, password: Option<&str>) -> String {
    let files = BootFiles::of(card);
    files.write(card, folder);
    let mut typed = vec![("login: ", user.to_owned())];
    typed.extend(password.map(|password| ("Password: ", password.to_owned())));
    typed.push((r"[$#] $", LOOK.to_owned()));
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
    fn read(console: &str) -> Self {
        let fact = |name: &str| {
            let line = console.lines().rev().find_map(|line| Some(line.split_once(&format!("FACT {name} "))?.1));
            line.unwrap_or_else(|| panic!("nothing is known of {name}")).trim().to_owned()
        };
        Self {
            host_name: fact("hostname"),
            machine_id: fact("machine-id"),
            host_key: fact("ssh_host_ed25519_key.pub"),
        }
    }
}
