//! Three Pis of one image: what must differ between their cards does, what must be the same is, and nothing else differs.
//! The image is an archive, then the image of a disk; the server renders, the agent carries out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fatfs::{Dir, FileSystem, FsOptions};
use piman_tests::binaries;
use piman_tests::contents::admin;
use piman_tests::disk::{Mounted, e2fsck, run};
use piman_tests::server::Server;
use piman_tests::tree::tree;

/// Their serial numbers.
const PIS: [&str; 3] = ["00000000a1000001", "00000000a1000002", "00000000a1000003"];
/// The one that has an account of its own.
const WITH_ACCOUNT: usize = 1;
/// The size of the cards, in bytes.
const CARD: u64 = 320 << 20;
/// What identifies the image.
const DISK_ID: &str = "5f5d7a31";
const ROOT_UUID: &str = "11111111-2222-4333-8444-555555555555";
const BOOT_SERIAL: &str = "CAFE-0815";
const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";

/// For all of them.
const PROFILE: &str = r#"
hostname = "lab-{ordinal:02}"
timezone = "Europe/London"
ssh = true

[[users]]
name = "lab"
password-hash = "$6$saltsalt$677q0O/U8ycKsbBfN68CgcyXcWEbi0J/eUf256PkkeGXfNX3CNnPlwFdNvdBgnSiHDx5X1Xozxf5lg9iVIVVu/"
ssh-keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 lab"]

[[files]]
path = "/etc/card"
content = "{{hostname}} {{serial}}\n"
template = true

[[files]]
path = "/etc/motd"
content = "the same for all\n"
"#;

/// For one.
const ACCOUNT: &str = "[[users]]\nname = \"ada\"\nssh-keys = [\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 ada\"]\n";

/// What must differ between any two of them.
const EACH: [&str; 8] = [
    "disk: identifier",
    "boot: identifier",
    "boot: UUID",
    "root: identifier",
    "root: UUID",
    "file: /etc/card",
    "file: /etc/hostname",
    "file: /etc/hosts",
];

/// What names a disk or a filesystem, and so must differ as well.
const REFERENCES: [&str; 4] = [
    "boot file: /cmdline.txt",
    "file: /boot/extlinux/extlinux.conf",
    "file: /etc/crypttab",
    "file: /etc/fstab",
];

/// What the account of one of them makes in the others' eyes.
const OF_ACCOUNT: [&str; 8] = [
    "file: /etc/group",
    "file: /etc/gshadow",
    "file: /etc/passwd",
    "file: /etc/shadow",
    "file: /home/ada",
    "file: /home/ada/.profile",
    "file: /home/ada/.ssh",
    "file: /home/ada/.ssh/authorized_keys",
];

/// What is found on a card, by name.
type Facts = BTreeMap<String, String>;

/// A folder with a system as far as it matters here, the state of a server and cards.
struct Workshop {
    folder: tempfile::TempDir,
}

impl Workshop {
    fn new() -> Self {
        let workshop = Self { folder: tempfile::tempdir().unwrap() };
        let root = |name: &str| format!("UUID={ROOT_UUID} {name}");
        for (path, text) in [
            ("usr/lib/systemd/system/ssh.service", "[Unit]\n"),
            ("usr/lib/modules/6.6.1/modules.dep", ""),
            ("usr/share/zoneinfo/Europe/London", "TZif"),
            ("etc/machine-id", &format!("{MACHINE_ID}\n")),
            ("var/lib/dbus/machine-id", &format!("{MACHINE_ID}\n")),
            ("var/lib/systemd/random-seed", "seed"),
            ("etc/ssh/ssh_host_ed25519_key", "key"),
            ("etc/ssh/ssh_host_ed25519_key.pub", "key"),
            ("etc/hostname", "image\n"),
            ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 image\n"),
            ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"),
            ("etc/shadow", "root:*:19000:0:99999:7:::\n"),
            ("etc/group", "root:x:0:\nsudo:x:27:\n"),
            ("etc/gshadow", "root:*::\nsudo:*::\n"),
            ("etc/skel/.profile", "# profile\n"),
            (
                "etc/fstab",
                &format!(
                    "PARTUUID={DISK_ID}-01 /boot/firmware vfat defaults 0 2\n{}",
                    root("/ ext4 defaults 0 1\n")
                ),
            ),
            ("etc/crypttab", &format!("swap PARTUUID={DISK_ID}-02 none\n")),
            (
                "boot/extlinux/extlinux.conf",
                &format!("append root=PARTUUID={DISK_ID}-02 resume=UUID={ROOT_UUID}\n"),
            ),
            ("srv/work", "what a distribution has beside\n"),
        ] {
            workshop.put("root", path, text.as_bytes());
        }
        for (path, text) in [
            ("config.txt", "arm_64bit=1\n".to_owned()),
            ("kernel8.img", "kernel".repeat(100_000)),
            ("start4.elf", "firmware".repeat(1000)),
            ("fixup4.dat", "firmware".repeat(100)),
            ("bcm2711-rpi-4-b.dtb", "tree".repeat(1000)),
            ("cmdline.txt", format!("console=tty1 root=PARTUUID={DISK_ID}-02 rootwait\n")),
        ] {
            workshop.put("boot", path, text.as_bytes());
        }
        // The first bytes of a static program for 64-bit ARM.
        let mut program = vec![0; 128];
        program[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        program[16..20].copy_from_slice(&[2, 0, 183, 0]);
        for path in ["sbin/init", "usr/lib/systemd/systemd", "usr/bin/ssh-keygen", "bin/bash"] {
            workshop.put("root", path, &program);
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(workshop.path("root").join(path), mode).unwrap();
        }
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, tree: &str, path: &str, content: &[u8]) {
        let path = self.path(tree).join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn script(&self, text: &str) {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut bash = Command::new("bash");
        run(bash.args(["-eo", "pipefail", "-c", text]).env("PATH", path).current_dir(&self.folder));
    }

    /// The system as an archive.
    fn archive(&self) -> &'static [&'static str] {
        self.script(
            "mkdir -p root/boot/firmware && cp -r boot/. root/boot/firmware
             tar --owner=0 --group=0 -C root -czf image.tgz .",
        );
        // What a distribution has 512 MiB for is small here.
        &["image.tgz", "--boot-size", "64M"]
    }

    /// The system as the image of a disk.
    fn disk(&self) -> &'static [&'static str] {
        self.script(&format!(
            "mkdir -p root/boot/firmware
             truncate -s 150M image.img
             printf 'label: dos\\nlabel-id: 0x{DISK_ID}\\nstart=8192, size=81920, type=c\\nstart=90112, type=83\\n' |
                 sfdisk -q image.img
             mkfs.vfat -C -F 32 -s 1 -n bootfs -i {serial} boot.img 40960 >/dev/null
             mke2fs -q -t ext4 -b 4096 -L rootfs -U {ROOT_UUID} -E root_owner=0:0 -d root root.img 106M
             dd if=root.img of=image.img bs=512 seek=90112 conv=notrunc,sparse status=none",
            serial = BOOT_SERIAL.replace('-', "")
        ));
        let file = File::options().read(true).write(true).open(self.path("boot.img")).unwrap();
        let fs = FileSystem::new(file, FsOptions::new()).unwrap();
        for (path, content) in files_below(&self.path("boot")) {
            fs.root_dir().create_file(&path).unwrap().write_all(&content).unwrap();
        }
        fs.unmount().unwrap();
        self.script("dd if=boot.img of=image.img bs=512 seek=8192 conv=notrunc,sparse status=none");
        &["image.img"]
    }

    fn piman(&self, words: &[&str]) -> String {
        let mut piman = Command::new(binaries::piman());
        let (first, rest) = words.split_at(2);
        piman.args(first).args(["--state", "state"]).args(rest).current_dir(&self.folder);
        String::from_utf8(run(&mut piman).stdout).unwrap()
    }

    /// A server that has the image and the profiles.
    fn serve(&self, image: &[&str]) -> Server {
        println!("{}", self.piman(&[&["image", "add", "--name", "pi"], image].concat()));
        self.put(".", "all.toml", PROFILE.as_bytes());
        self.put(".", "one.toml", ACCOUNT.as_bytes());
        for serial in PIS {
            self.piman(&["devices", "add", serial]);
        }
        self.piman(&["profile", "set", "all.toml"]);
        self.piman(&["profile", "set", "--for", PIS[WITH_ACCOUNT], "one.toml"]);
        let mut serve = Command::new(binaries::piman());
        serve.args(["serve", "--listen", "127.0.0.1", "--policy", "foreign=install", "--state"]);
        serve.arg(self.path("state")).args([
            "--control-port",
            "0",
            "--rootfs-port",
            "0",
            "--fetch-port",
            "0",
        ]);
        let server = Server::start_by(&mut serve, &self.path("state"));
        server.wait_log("is good");
        server
    }
}

/// The files below a folder of this machine, by their paths there.
fn files_below(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let all = tree(folder, false).unwrap();
    let files = all.iter().filter(|(_, facts)| facts.hash.is_some());
    let paths = files.map(|(path, _)| String::from_utf8(path.clone()).unwrap());
    paths.map(|path| (path.clone(), fs::read(folder.join(path)).unwrap())).collect()
}

/// The files below a folder of a FAT filesystem.
fn files_on_fat(folder: &Dir<'_, File>, above: &str, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in folder.iter().map(Result::unwrap) {
        let path = format!("{above}/{}", entry.file_name());
        match entry.is_dir() {
            true if path.ends_with("/.") || path.ends_with("/..") => {}
            true => files_on_fat(&entry.to_dir(), &path, found),
            false => {
                let mut content = Vec::new();
                entry.to_file().read_to_end(&mut content).unwrap();
                found.push((path, content));
            }
        }
    }
}

/// A card, taken apart.
struct Card {
    facts: Facts,
    /// What names it and its filesystems, and what that was in the image.
    names: Vec<(String, &'static str)>,
    /// What is in its files, as text.
    texts: Facts,
}

impl Card {
    fn read(path: &Path) -> Self {
        let json = run(admin("sfdisk").arg("--json").arg(path)).stdout;
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let table = &json["partitiontable"];
        let disk_id = table["id"].as_str().unwrap().trim_start_matches("0x").to_owned();
        let mut facts = Facts::from([("disk: identifier".to_owned(), disk_id.clone())]);
        let mut texts = Facts::new();
        let mut names = vec![(disk_id.clone(), DISK_ID)];
        for (n, (name, of_image)) in [("boot", BOOT_SERIAL), ("root", ROOT_UUID)].into_iter().enumerate() {
            let number = |field: &str| table["partitions"][n][field].as_u64().unwrap() * 512;
            let (start, length) = (number("start"), number("size"));
            facts.insert(format!("{name}: identifier"), format!("{disk_id}-{:02}", n + 1));
            facts.insert(format!("{name}: place"), format!("{start}+{length}"));
            for (key, value) in probed(path, start, length) {
                if key == "UUID" {
                    names.push((value.clone(), of_image));
                }
                facts.insert(format!("{name}: {key}"), value);
            }
            match name {
                "boot" => boot_files(path, start, length, &mut facts, &mut texts),
                _ => root_files(path, start, length, &mut facts, &mut texts),
            }
        }
        Self { facts, names, texts }
    }

    /// A text of a file with the image's names in the place of the card's own.
    fn as_in_the_image(&self, file: &str) -> String {
        let names = self.names.iter();
        names.fold(self.texts[file].clone(), |text, (own, of_image)| text.replace(own, of_image))
    }
}

/// What blkid finds there.
fn probed(disk: &Path, start: u64, length: u64) -> Facts {
    let mut blkid = admin("blkid");
    blkid.args(["--probe", "--output", "export", "--offset", &start.to_string()]);
    blkid.args(["--size", &length.to_string()]).arg(disk);
    let text = String::from_utf8(run(&mut blkid).stdout).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines.filter(|(key, _)| *key != "DEVNAME").map(|(key, value)| (key.into(), value.into())).collect()
}

fn boot_files(disk: &Path, start: u64, length: u64, facts: &mut Facts, texts: &mut Facts) {
    let copy = disk.with_extension("fat");
    let mut dd = Command::new("dd");
    dd.args(["bs=1M", "iflag=skip_bytes,count_bytes", "conv=sparse", "status=none"]);
    dd.arg(format!("skip={start}")).arg(format!("count={length}"));
    run(dd.arg(format!("if={}", disk.display())).arg(format!("of={}", copy.display())));
    run(admin("fsck.fat").arg("-n").arg(&copy));
    let file = File::options().read(true).write(true).open(&copy).unwrap();
    let fs = FileSystem::new(file, FsOptions::new().update_accessed_date(false)).unwrap();
    let mut found = Vec::new();
    files_on_fat(&fs.root_dir(), "", &mut found);
    for (path, content) in found {
        let name = format!("boot file: {path}");
        facts.insert(name.clone(), blake3::hash(&content).to_string());
        texts.insert(name, String::from_utf8_lossy(&content).into_owned());
    }
    drop(fs);
    fs::remove_file(copy).unwrap();
}

fn root_files(disk: &Path, start: u64, length: u64, facts: &mut Facts, texts: &mut Facts) {
    e2fsck(disk, start, length);
    let mounted = Mounted::new(disk, start, length, "ro,noload");
    for (path, mut fact) in tree(mounted.path(), false).unwrap() {
        let path = String::from_utf8(path).unwrap();
        // When a card was installed, and the proof of it, is its own.
        if path == ".piman-proof" {
            continue;
        }
        fact.mtime = (0, 0);
        let name = format!("file: /{path}");
        if fact.hash.is_some() {
            let content = fs::read(mounted.path().join(&path)).unwrap();
            texts.insert(name.clone(), String::from_utf8_lossy(&content).into_owned());
        }
        facts.insert(name, format!("{fact:?}"));
    }
}

/// What is not the same on these.
fn differences(cards: &[&Card]) -> BTreeSet<String> {
    let names: BTreeSet<&String> = cards.iter().flat_map(|card| card.facts.keys()).collect();
    let differs = |name: &&String| {
        let values: BTreeSet<_> = cards.iter().map(|card| card.facts.get(*name)).collect();
        values.len() > 1
    };
    names.into_iter().filter(differs).cloned().collect()
}

fn installed(server: &Server, folder: &Path) -> Vec<Card> {
    let install = |serial: &&str| {
        let card = folder.join(format!("{serial}.card"));
        File::create(&card).unwrap().set_len(CARD).unwrap();
        run(&mut server.agent(&card, serial));
        Card::read(&card)
    };
    PIS.iter().map(install).collect()
}

/// Judges three cards of an image: beside what any have, these files name disks or filesystems.
fn judge(cards: &[Card], further: &[&str], is_disk: bool) {
    let references = [&REFERENCES[..], further].concat();
    let must: BTreeSet<String> = EACH.iter().chain(&references).map(ToString::to_string).collect();
    let one = &cards[WITH_ACCOUNT];
    let others: Vec<&Card> = cards.iter().filter(|card| !std::ptr::eq(*card, one)).collect();
    let found = differences(&others);
    println!("what differs between two Pis of one profile: {found:#?}");
    assert_eq!(found, must);
    let with_account = must.iter().cloned().chain(OF_ACCOUNT.map(ToOwned::to_owned)).collect();
    for other in &others {
        assert_eq!(differences(&[one, other]), with_account);
        for name in &references {
            assert_eq!(one.as_in_the_image(name), other.as_in_the_image(name), "{name}");
        }
    }
    for (n, card) in cards.iter().enumerate() {
        let text = |name: &str| card.texts.get(name).map(String::as_str);
        let host_name = format!("lab-{:02}", n + 1);
        assert_eq!(text("file: /etc/hostname"), Some(&*format!("{host_name}\n")));
        assert_eq!(text("file: /etc/card"), Some(&*format!("{host_name} {}\n", PIS[n])));
        assert_eq!(
            text("file: /etc/hosts"),
            Some(&*format!("127.0.0.1 localhost\n127.0.1.1\t{host_name}\n"))
        );
        // What each makes at its first boot is not there, or empty.
        assert_eq!(text("file: /etc/machine-id"), Some(""));
        for gone in ["var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "etc/ssh/ssh_host_ed25519_key"]
        {
            assert!(!card.facts.contains_key(&format!("file: /{gone}")), "{gone} is still there");
        }
        // In an archive there is no filesystem that a UUID could be known to mean, but for those that are mounted.
        for (own, of_image) in card.names.iter().filter(|_| is_disk) {
            assert_ne!(own, of_image, "it is that of the image");
            let names_it = card.texts.iter().find(|(_, text)| text.contains(of_image));
            assert!(names_it.is_none(), "{of_image} is not there any more: {names_it:?}");
        }
    }
}

#[test]
#[cfg_attr(any(lacks = "root", lacks = "filesystems"), ignore = "needs root and mkfs.vfat")]
fn of_an_archive() {
    let workshop = Workshop::new();
    let server = workshop.serve(workshop.archive());
    // What was copied to the boot partition is still where it was.
    let further = ["file: /boot/firmware/cmdline.txt"];
    judge(&installed(&server, &workshop.path(".")), &further, false);
}

#[test]
#[cfg_attr(any(lacks = "root", lacks = "filesystems"), ignore = "needs root and mkfs.vfat")]
fn of_the_image_of_a_disk() {
    let workshop = Workshop::new();
    let server = workshop.serve(workshop.disk());
    judge(&installed(&server, &workshop.path(".")), &[], true);
}
