//! What makes a card one Pi's own, and able to boot by itself: by the real agent, with the image from the real server and
//! a bundle from a test's; judged by e2fsck, fsck.fat, sfdisk, the kernel and getent.

mod again;
mod disk_image;
mod hostile;
mod own;
mod three_pis;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pi_agent::card::inspect::{self, Card};
use pi_agent::install::{Outcome, Plan};
use piman_core::install::layout::Layout;
use piman_core::install::personal::{Draft, Item, Place, Renew, User};
use piman_core::install::receipt::Proof;
use piman_tests::amended::{Amended, More};
use piman_tests::disk::{Mounted, e2fsck, run};
use piman_tests::lab;
use piman_tests::server::Server;

/// The size of the boot partition of cards that boot by themselves, in bytes.
const BOOT: u64 = 64 << 20;
/// The size of the cards, in bytes.
const CARD: u64 = 200 << 20;

/// The old layout, with the room for a boot partition that is filled.
fn layout() -> Layout {
    Layout { root_start: 8192 + (BOOT >> 9), ..Layout::default() }
}

/// All that may be renewed.
const ALL: Renew = Renew { machine: true, host_keys: true, disk: true };

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 ada@lab";

/// One of each kind.
fn items() -> Vec<Item<'static>> {
    let user = User {
        name: "ada",
        password: "$y$j9T$hash",
        groups: "sudo,video",
        full_name: "Ada",
        keys: KEY,
        ..User::default()
    };
    vec![
        Item::Identity(ALL),
        Item::File {
            place: Place::Root,
            mode: 0o644,
            owner: "0:0",
            path: "/etc/hostname",
            content: b"lab-1\n",
        },
        Item::Line {
            place: Place::Root,
            separator: b' ',
            path: "/etc/hosts",
            key: "127.0.1.1",
            text: "127.0.1.1 lab-1",
        },
        Item::User(user),
        Item::Folder { place: Place::Root, mode: 0o750, owner: "ada:video", path: "/srv/lab/data" },
        Item::File {
            place: Place::Root,
            mode: 0o600,
            owner: "ada:ada",
            path: "/srv/lab/secret",
            content: b"s",
        },
        Item::Link { path: "/etc/localtime", target: "/usr/share/zoneinfo/Europe/London" },
        Item::Remove { place: Place::Root, path: "/etc/motd.d" },
        Item::File {
            place: Place::Boot,
            mode: 0o644,
            owner: "0:0",
            path: "/user-data",
            content: b"#cloud-config\n",
        },
        Item::Word { key: "quiet", text: "quiet" },
        Item::Word { key: "console", text: "console=tty1" },
    ]
}

fn bundle(items: &[Item<'_>]) -> Vec<u8> {
    let mut draft = Draft::default();
    items.iter().for_each(|item| draft.add(item).unwrap());
    draft.bytes().to_vec()
}

/// A folder with an archive of a system, as far as it matters here.
struct System {
    folder: tempfile::TempDir,
}

const COMMAND_LINE: &str = "console=serial0,115200 console=tty1 root=/dev/mmcblk0p2 rootfstype=ext4 rootwait";

impl System {
    fn new() -> Self {
        let system = Self { folder: tempfile::tempdir().unwrap() };
        let root = system.folder.path().join("root");
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("usr/lib/systemd/systemd", "");
        put("usr/bin/ssh-keygen", "");
        put("bin/bash", "");
        put("etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        put("var/lib/systemd/random-seed", "seed");
        put("etc/ssh/ssh_host_ed25519_key", "key");
        put("etc/ssh/ssh_host_ed25519_key.pub", "key");
        put("etc/hostname", "image\n");
        put("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 image\n");
        put("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n");
        put("etc/shadow", "root:*:19000:0:99999:7:::\n");
        put("etc/group", "root:x:0:\nsudo:x:27:\nvideo:x:44:\n");
        put("etc/gshadow", "root:*::\nsudo:*::\nvideo:*::\n");
        put("etc/skel/.profile", "# profile\n");
        put("etc/motd.d/deep/one", "");
        put("etc/crypttab", "data PARTUUID=5f5d7a31-02 none\n");
        put("etc/fstab", "proc /proc proc defaults 0 0\nLABEL=rootfs / ext4 defaults,noatime 0 1\n");
        put("boot/firmware/config.txt", "arm_64bit=1\n");
        put("boot/firmware/cmdline.txt", &format!("{COMMAND_LINE}\n"));
        put("boot/firmware/kernel8.img", &"kernel".repeat(300_000));
        for n in 0..40 {
            put(
                &format!("boot/firmware/overlays/an-overlay-with-a-long-name-{n}.dtbo"),
                &"o".repeat(n * 700),
            );
        }
        std::os::unix::fs::symlink("kernel8.img", root.join("boot/firmware/vmlinuz")).unwrap();
        system
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn serve(&self) -> Server {
        let archive = self.folder.path().join("root.tgz");
        run(Command::new("tar").arg("-C").arg(self.root()).arg("-czf").arg(&archive).arg("."));
        let server = Server::start(&archive, &self.folder.path().join("state"), &[]);
        server.wait_log("is good");
        server
    }

    fn card(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        File::create(&path).unwrap().set_len(CARD).unwrap();
        path
    }
}

fn plan(server: &Server, amended: &Amended, card: &Path, path: &str) -> Plan {
    Plan { server: amended.server(), layout: layout(), ..lab::plan(server, card, path) }
}

#[track_caller]
fn installs(plan: &Plan) {
    let outcome = lab::attempt(plan).unwrap_or_else(|failure| panic!("{failure}"));
    assert!(matches!(outcome, Outcome::Installed { .. }), "{outcome:?}");
}

#[track_caller]
fn boots(plan: &Plan) {
    let outcome = lab::attempt(plan).unwrap_or_else(|failure| panic!("{failure}"));
    assert!(matches!(outcome, Outcome::Boot { card: Card::Installed(_), .. }), "{outcome:?}");
}

#[track_caller]
fn proof(card: &Path) -> Proof {
    match inspect::check(card).unwrap() {
        Card::Installed(proof) => proof,
        other => panic!("{other}"),
    }
}

/// The disk's number in its MBR.
fn disk_id(card: &Path) -> u32 {
    let mut id = [0; 4];
    File::open(card).unwrap().read_exact_at(&mut id, 440).unwrap();
    u32::from_le_bytes(id)
}

/// A partition, counted from 1: where it begins and how long it is, in bytes.
fn partition(card: &Path, number: u64) -> (u64, u64) {
    let mut entry = [0; 8];
    File::open(card).unwrap().read_exact_at(&mut entry, 446 + 16 * (number - 1) + 8).unwrap();
    let (first, count) = (&entry[..4], &entry[4..]);
    let number = |bytes: &[u8]| u64::from(u32::from_le_bytes(bytes.try_into().unwrap())) * 512;
    (number(first), number(count))
}

/// The UUID of the ext4 filesystem, or the serial number of the FAT one, that begins there.
fn identity_at(card: &Path, at: u64) -> Vec<u8> {
    let mut bytes = [0; 16];
    File::open(card).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes.to_vec()
}

fn uuid(card: &Path, number: u64) -> String {
    let hex: String = identity_at(card, partition(card, number).0 + 1024 + 0x68)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn serial(card: &Path, number: u64) -> u32 {
    let bytes = identity_at(card, partition(card, number).0 + 0x43);
    u32::from_le_bytes(bytes[..4].try_into().unwrap())
}

/// The ext4 filesystem of a partition, after e2fsck has found nothing wrong with it.
fn mounted(card: &Path, number: u64) -> Mounted {
    let (start, bytes) = partition(card, number);
    e2fsck(card, start, bytes);
    Mounted::new(card, start, bytes, "noatime")
}

/// A file of the FAT filesystem of a partition, after fsck.fat has found nothing wrong with it.
fn on_fat(card: &Path, number: u64, name: &str) -> Option<Vec<u8>> {
    let (start, bytes) = partition(card, number);
    let copy = tempfile::NamedTempFile::new().unwrap();
    let mut all = vec![0; usize::try_from(bytes).unwrap()];
    File::open(card).unwrap().read_exact_at(&mut all, start).unwrap();
    fs::write(copy.path(), all).unwrap();
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    run(Command::new("fsck.fat").env("PATH", path).arg("-n").arg(copy.path()));
    let fs = fatfs::FileSystem::new(copy.reopen().unwrap(), fatfs::FsOptions::new()).unwrap();
    let mut content = Vec::new();
    let mut file = fs.root_dir().open_file(name).ok()?;
    file.read_to_end(&mut content).unwrap();
    drop(file);
    Some(content)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What a card with the [`items`] has in its root filesystem.
fn assert_items(root: &Path) {
    use std::os::unix::fs::MetadataExt;
    let of = |path: &str| text(&root.join(path));
    assert_eq!(of("etc/hostname"), "lab-1\n");
    assert_eq!(of("etc/hosts"), "127.0.0.1 localhost\n127.0.1.1 lab-1\n");
    assert_eq!(of("etc/machine-id"), "");
    assert!(!root.join("var/lib/systemd/random-seed").exists() && !root.join("etc/motd.d").exists());
    assert!(!root.join("etc/ssh/ssh_host_ed25519_key").exists());
    assert!(
        root.join("etc/systemd/system/multi-user.target.wants/piman-host-keys.service")
            .symlink_metadata()
            .is_ok()
    );
    assert_eq!(of("etc/passwd").matches("ada:x:1000:1000:Ada:/home/ada:/bin/bash").count(), 1);
    assert!(of("etc/group").contains("sudo:x:27:ada\nvideo:x:44:ada\nada:x:1000:\n"));
    assert_eq!(of("etc/shadow").matches("ada:$y$j9T$hash:").count(), 1);
    assert_eq!(of("home/ada/.ssh/authorized_keys"), format!("{KEY}\n"));
    let access = |path: &str| {
        let meta = fs::symlink_metadata(root.join(path)).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    assert_eq!(access("srv/lab/data"), (0o750, 1000, 44));
    assert_eq!(access("srv/lab/secret"), (0o600, 1000, 1000));
    assert_eq!(access("home/ada/.profile").1, 1000);
    assert_eq!(
        fs::read_link(root.join("etc/localtime")).unwrap(),
        Path::new("/usr/share/zoneinfo/Europe/London")
    );
}

fn more(items: &[Item<'_>], boot_bytes: u64) -> More {
    More { bundle: bundle(items), boot_bytes, ..More::default() }
}
