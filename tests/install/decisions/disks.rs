//! What is on the disks, made once each.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use pi_agent::card::inspect::survey_path;
use piman_core::install::Found;
use piman_core::install::layout::SECTOR;
use piman_tests::chance::noise;
use piman_tests::contents::{admin, copy, digest, put, with_table};
use piman_tests::disk::{LoopDevice, run};
use piman_tests::lab::{self, Root, behind_a_proxy};
use piman_tests::proxy::Faults;
use piman_tests::server::Server;
use piman_tests::wait::until;

/// The size of a disk: btrfs wants 109 MiB.
const BYTES: u64 = 128 << 20;
/// What is left of the file behind a disk that cannot be read to its end.
const READABLE: u64 = 32 << 20;
const P1: u64 = 1 << 20;
const P2: u64 = 24 << 20;
const START: u64 = lab::layout().root_start * SECTOR;
const MBR: &str = "label: dos\nstart=2048, size=47104, type=c\nstart=49152, type=83\n";
const GPT: &str = "label: gpt\nstart=2048, size=47104, name=EFI\nstart=49152, size=200000, name=system\n";

/// Something that is on a disk.
#[derive(Debug)]
pub(super) struct Content {
    /// For people.
    pub(super) words: &'static str,
    /// What our agent reports.
    pub(super) found: Found,
    /// What happens with it if nobody says anything.
    pub(super) default: &'static str,
    /// Whether our agent reports a system that can be booted.
    pub(super) boots: bool,
    /// Whether old Pis have it, too.
    pub(super) old: bool,
    make: Make,
}

/// How it is made.
#[derive(Debug, Clone, Copy)]
enum Make {
    Nothing,
    Ours,
    /// An installation of ours that was killed.
    Killed,
    /// An installation of ours, and what debugfs does to it.
    Noted(&'static str),
    /// An installation of ours with another byte where debugfs says that this has its first block.
    Flipped(&'static str),
    /// A table; on each of its two partitions something, by these words.
    Parts(&'static str, [&'static str; 2]),
    /// Something on all of the disk.
    Whole(&'static str),
    /// Bytes that nobody knows.
    Noise,
    /// The disk of somebody else that cannot be read to its end.
    Unreadable,
}

const fn foreign(words: &'static str, make: Make) -> Content {
    Content { words, found: Found::Foreign, default: "wait", boots: false, old: false, make }
}

/// All of them.
pub(super) const CONTENTS: [Content; 16] = [
    Content {
        words: "nothing",
        found: Found::Blank,
        default: "install",
        boots: false,
        old: true,
        make: Make::Nothing,
    },
    Content { words: "ours", found: Found::Ours, default: "boot", boots: true, old: true, make: Make::Ours },
    Content {
        words: "ours, incomplete",
        found: Found::Incomplete,
        default: "install",
        boots: false,
        old: false,
        make: Make::Killed,
    },
    Content {
        words: "ours, with errors noted",
        found: Found::Damaged,
        default: "boot",
        boots: true,
        old: false,
        make: Make::Noted("ssv state 2"),
    },
    Content {
        words: "ours, does not mount",
        found: Found::Damaged,
        default: "boot",
        boots: false,
        old: false,
        make: Make::Flipped("blocks /"),
    },
    Content {
        old: true,
        ..foreign(
            "another Debian",
            Make::Parts(MBR, ["mkfs.vfat -n BOOTFS FILE", "mke2fs -q -F -t ext4 -L rootfs -d DEBIAN FILE"]),
        )
    },
    foreign("somebody's ext4", Make::Whole("mke2fs -q -F -t ext4 -L work FILE")),
    Content { old: true, ..foreign("somebody's FAT", Make::Parts(MBR, ["mkfs.vfat -n PHOTOS FILE", ""])) },
    foreign("somebody's NTFS", Make::Parts(MBR, ["", "mkfs.ntfs -q -F -f FILE"])),
    foreign("somebody's exFAT", Make::Parts(MBR, ["", "mkfs.exfat FILE"])),
    foreign("somebody's btrfs", Make::Whole("mkfs.btrfs -q -L mine FILE")),
    foreign("swap space", Make::Parts(MBR, ["", "mkswap -L mine FILE"])),
    foreign("encrypted (LUKS)", Make::Parts(MBR, ["mkfs.vfat FILE", "LUKS FILE"])),
    foreign(
        "GPT, with a system",
        Make::Parts(GPT, ["mkfs.vfat -n EFI FILE", "mke2fs -q -F -t ext4 -d DEBIAN FILE"]),
    ),
    foreign("bytes nobody knows", Make::Noise),
    Content {
        words: "unreadable",
        found: Found::Unreadable,
        default: "wait",
        boots: false,
        old: false,
        make: Make::Unreadable,
    },
];

/// What was made.
pub(super) struct Disks {
    made: BTreeMap<&'static str, PathBuf>,
    /// A card of yet another person's.
    pub(super) another: PathBuf,
}

/// A disk that a Pi has.
pub(super) struct Disk {
    pub(super) device: LoopDevice,
    file: PathBuf,
    before: blake3::Hash,
}

impl Disk {
    /// A copy of this file as a disk of its own.
    pub(super) fn copy_of(of: &Path, file: &Path) -> Self {
        copy(of, file);
        let device = LoopDevice::of(file);
        Self { device, file: file.to_owned(), before: digest(file) }
    }

    /// Whether anything on it is different now, whoever did it.
    pub(super) fn is_changed(&self) -> bool {
        run(admin("blockdev").arg("--flushbufs").arg(self.device.path()));
        digest(&self.file) != self.before
    }
}

impl Disks {
    /// Makes all of them.
    pub(super) fn make(root: &Root, server: &Server, layout: &Path, folder: &Path) -> Self {
        let debian = folder.join("debian");
        for sub in ["bin", "etc", "home/pi"] {
            fs::create_dir_all(debian.join(sub)).unwrap();
        }
        fs::write(debian.join("etc/os-release"), "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n").unwrap();
        fs::write(debian.join("home/pi/work"), "a year of it").unwrap();
        let ours = folder.join("ours.img");
        File::create(&ours).unwrap().set_len(BYTES).unwrap();
        let mut agent = server.agent(&ours, "00000000cafe0001");
        agent.args(["--transfer-port", "0", "--path", "image", "--layout"]).arg(layout);
        run(&mut agent);
        root.assert_on(&ours);
        let another = folder.join("another.img");
        File::create(&another).unwrap().set_len(BYTES).unwrap();
        put(&another, 0, BYTES, "mke2fs -q -F -t ext4 -L another FILE");
        let mut made = BTreeMap::new();
        for (n, content) in CONTENTS.iter().enumerate() {
            let file = folder.join(format!("content-{n}.img"));
            match content.make {
                Make::Ours | Make::Noted(_) | Make::Flipped(_) => copy(&ours, &file),
                _ => File::create(&file).unwrap().set_len(BYTES).unwrap(),
            }
            content.make.on(&file, server, layout, &debian);
            // It is what it is called; what cannot be read is so only as a device.
            let found = survey_path(&file).unwrap();
            let (kind, boots) = (found.card.kind(false), found.card.is_installed(false));
            let unreadable = content.found == Found::Unreadable;
            assert!(
                unreadable || (kind, boots) == (content.found, content.boots),
                "{}: {found}",
                content.words
            );
            made.insert(content.words, file);
        }
        Self { made, another }
    }

    /// A disk with this on it.
    pub(super) fn with(&self, content: &Content, file: &Path) -> Disk {
        let disk = Disk::copy_of(&self.made[content.words], file);
        if !matches!(content.make, Make::Unreadable) {
            return disk;
        }
        // Behind the end of its file a loop device fails.
        File::options().write(true).open(file).unwrap().set_len(READABLE).unwrap();
        run(admin("blockdev").arg("--flushbufs").arg(disk.device.path()));
        Disk { before: digest(file), ..disk }
    }
}

impl Make {
    fn on(self, file: &Path, server: &Server, layout: &Path, debian: &Path) {
        let debugfs = |command: &str| {
            let name = format!("{}?offset={START}", file.display());
            let out = run(admin("debugfs").args(["-w", "-R", command, &name]));
            String::from_utf8(out.stdout).unwrap()
        };
        let fill = |offset: u64, bytes: u64, words: &str| {
            let words = words.replace("DEBIAN", debian.to_str().unwrap());
            match words.as_str() {
                "" => {}
                "LUKS FILE" => encrypted(file, offset, bytes),
                words => put(file, offset, bytes, words),
            }
        };
        match self {
            Self::Nothing | Self::Ours => {}
            Self::Killed => killed(file, server, layout),
            Self::Noted(command) => drop(debugfs(command)),
            Self::Flipped(what) => {
                let block = debugfs(what).split_whitespace().next().unwrap().parse::<u64>().unwrap();
                let card = File::options().read(true).write(true).open(file).unwrap();
                // The last bytes of a directory's block are its checksum.
                let (mut byte, at) = ([0], START + block * 4096 + 4095);
                card.read_exact_at(&mut byte, at).unwrap();
                card.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
            }
            Self::Parts(table, parts) => {
                with_table(file, BYTES, table);
                // A GPT has its copy at the end.
                for ((offset, end), words) in [(P1, P2), (P2, BYTES - P1)].into_iter().zip(parts) {
                    fill(offset, end - offset, words);
                }
            }
            Self::Whole(words) => fill(0, BYTES, words),
            Self::Noise => {
                File::options().write(true).open(file).unwrap().write_all_at(&noise(300_000, 7), 0).unwrap();
            }
            Self::Unreadable => fill(0, READABLE, "mke2fs -q -F -t ext4 -L worn FILE"),
        }
    }
}

fn encrypted(file: &Path, offset: u64, bytes: u64) {
    let (part, word) = (file.with_extension("luks"), file.with_extension("word"));
    File::create(&part).unwrap().set_len(bytes).unwrap();
    fs::write(&word, "secret").unwrap();
    let mut format = admin("cryptsetup");
    format.args(["luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
    run(format.arg(&part).arg(&word));
    put(file, offset, bytes, &format!("cp --sparse=always {} FILE", part.display()));
    fs::remove_file(part).unwrap();
}

/// Kills the agent in the middle: it waits for a byte that never comes.
fn killed(file: &Path, server: &Server, layout: &Path) {
    const HOST: &str = "127.0.0.41";
    let proxy = behind_a_proxy(server, HOST, Faults { holds: vec![60_000], ..Faults::default() });
    let mut agent = server.agent(file, "00000000cafe0002");
    agent.args(["--server", HOST, "--transfer-port", "0", "--path", "image", "--layout"]).arg(layout);
    let mut agent = agent.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the agent is in the middle", || proxy.held() > 0);
    agent.kill().unwrap();
    agent.wait().unwrap();
}
