//! The power is cut while a card is made one Pi's own: at its installation it never counts as installed with anything of
//! that missing, and a card that was installed before is never lost.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;

use pi_agent::card::inspect::{self, Card as Found};
use pi_agent::install::{Outcome, Plan};
use piman_core::install::layout::SECTOR;
use piman_core::install::personal::{Draft, Item, Place, Renew};
use piman_core::install::receipt::Proof;
use piman_tests::amended::{Amended, More};
use piman_tests::card::{Card, Event, Lie};
use piman_tests::disk::{Mounted, e2fsck};
use piman_tests::lab::{self, CARD, ROOT, Root};
use piman_tests::server::Server;

use crate::power_cut::{cuts, each_cut, record};

const START: u64 = CARD - ROOT;
/// Longer than a block.
const LONG: &[u8] = &[b'l'; 9000];

fn more(name: &'static [u8], renew: Renew) -> More {
    let at = Place::Root;
    let file = |path, content| Item::File { place: at, mode: 0o644, owner: "0:0", path, content };
    let items = [
        Item::Identity(renew),
        file("/etc/hostname", name),
        file("/etc/deep/long", LONG),
        Item::Line { place: at, separator: b' ', path: "/etc/deep/file-3", key: "new", text: "new line" },
        Item::Link { path: "/etc/link", target: "hostname" },
        Item::Remove { place: at, path: "/etc/deep/er" },
    ];
    let mut draft = Draft::default();
    items.iter().for_each(|item| draft.add(item).unwrap());
    More { bundle: draft.bytes().to_vec(), ..More::default() }
}

/// Whether all of it is there, on a filesystem that is whole.
fn assert_done(card: &Path, name: &[u8]) {
    let mounted = Mounted::new(card, START, ROOT, "noatime");
    let of = |path: &str| fs::read(mounted.path().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!((of("etc/hostname"), of("etc/link")), (name.to_vec(), name.to_vec()));
    assert_eq!(of("etc/deep/long"), LONG);
    let line = String::from_utf8(of("etc/deep/file-3")).unwrap();
    assert_eq!((line.matches("new line\n").count(), line.lines().count()), (1, 51));
    assert!(!mounted.path().join("etc/deep/er").exists());
    assert!(
        fs::read_dir(mounted.path().join("etc")).unwrap().all(|e| e.unwrap().file_name() != ".piman-new")
    );
    drop(mounted);
    e2fsck(card, START, ROOT);
}

fn proof(card: &Path) -> Option<Proof> {
    match inspect::check(card).unwrap() {
        Found::Installed(proof) => Some(proof),
        _ => None,
    }
}

fn plan(server: &Server, amended: &Amended, card: &Path, path: &str) -> Plan {
    Plan { server: amended.server(), ..lab::plan(server, card, path) }
}

/// The same with files to boot from, which are on a FAT filesystem without a journal.
fn more_to_boot(name: &'static [u8]) -> More {
    let at = Place::Boot;
    let file = |path, content| Item::File { place: at, mode: 0o644, owner: "0:0", path, content };
    let items = [
        file("/user-data", LONG),
        file("/deep/er/file", name),
        file("/replaced.txt", name),
        Item::Line { place: at, separator: b'=', path: "/config.txt", key: "uart", text: "uart=1" },
        Item::Word { key: "ds", text: "ds=nocloud" },
        Item::Remove { place: at, path: "/old.txt" },
        Item::File { place: Place::Root, mode: 0o644, owner: "0:0", path: "/etc/hostname", content: name },
    ];
    let mut draft = Draft::default();
    items.iter().for_each(|item| draft.add(item).unwrap());
    More { bundle: draft.bytes().to_vec(), with_boot: true, ..More::default() }
}

/// The boot partition of a card, read and written without the agent.
fn boot_partition<T>(
    card: &mut [u8],
    work: impl FnOnce(&fatfs::Dir<'_, std::io::Cursor<&mut [u8]>>) -> T,
) -> T {
    let layout = lab::layout();
    let start = usize::try_from(layout.boot_start * SECTOR).unwrap();
    let part = &mut card[start..][..usize::try_from(layout.boot_sectors * SECTOR).unwrap()];
    let fs = fatfs::FileSystem::new(std::io::Cursor::new(part), fatfs::FsOptions::new()).unwrap();
    let done = work(&fs.root_dir());
    fs.unmount().unwrap();
    done
}

const BOOT_FILES: [(&str, &str); 4] = [
    ("config.txt", "arm_64bit=1\nuart=0\n"),
    ("cmdline.txt", "console=tty1 rootwait\n"),
    ("replaced.txt", "before\n"),
    ("old.txt", "old\n"),
];

fn assert_boot_files(card: &Path, name: &str) {
    let mut card = fs::read(card).unwrap();
    boot_partition(&mut card, |root| {
        let of = |path: &str| {
            let mut bytes = Vec::new();
            let mut file = root.open_file(path).unwrap_or_else(|e| panic!("{path}: {e}"));
            file.read_to_end(&mut bytes).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert!(of("user-data").as_bytes() == LONG);
        assert_eq!((of("deep/er/file"), of("replaced.txt")), (name.to_owned(), name.to_owned()));
        assert_eq!(of("config.txt"), "arm_64bit=1\nuart=1\n");
        assert_eq!(of("cmdline.txt"), "console=tty1 rootwait ds=nocloud\n");
        let mut names: Vec<String> = root.iter().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["cmdline.txt", "config.txt", "deep", "replaced.txt", "user-data"]);
    });
}

const ALL: Renew = Renew { machine: true, host_keys: true, disk: true };

fn installing(path: &str) {
    let root = Root::new("new", 300_000);
    let server = root.serve(&[]);
    let wanted = more(b"lab-1\n", ALL);
    let amended = Amended::new(&server, wanted.clone());
    let plan = |card: &Path| plan(&server, &amended, card, path);
    let (events, _) = record(vec![0; CARD as usize], plan);
    let (mut installed, mut not) = (0, 0);
    each_cut(vec![0; CARD as usize], &events, &mut |card, what| {
        match proof(card) {
            Some(proof) => {
                installed += 1;
                assert_eq!(proof.personal, Some(wanted.hash()), "{what}");
            }
            None => not += 1,
        }
        lab::attempt(&plan(card)).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(proof(card).unwrap().personal, Some(wanted.hash()), "{what}");
        assert_done(card, b"lab-1\n");
    });
    assert!(installed > 1 && not > cuts() / 3, "{installed} {not}");
}

#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
fn while_an_archive_is_installed() {
    installing("archive");
}

#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
fn while_an_image_is_installed() {
    installing("image");
}

#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
fn while_an_installed_card_gets_another_profile() {
    let root = Root::new("new", 300_000);
    let server = root.serve(&[]);
    let first = more(b"lab-1\n", ALL);
    let amended = Amended::new(&server, first.clone());
    let (_, before) = record(vec![0; CARD as usize], |card| plan(&server, &amended, card, "image"));
    let second = More { with_boot: true, ..more(b"lab-2\n", Renew::default()) };
    amended.set(second.clone());
    let card = Card::new(before.clone(), Lie::None);
    let outcome = lab::attempt(&plan(&server, &amended, card.path(), "image")).unwrap();
    assert!(matches!(outcome, Outcome::Boot { .. }), "{outcome:?}");
    let events = card.take_events();
    drop(card);
    after_each_cut(before, &events, (&server, &amended, &second), |card| assert_done(card, b"lab-2\n"));
}

#[test]
#[cfg_attr(lacks = "fuse", ignore = "needs root and /dev/fuse")]
fn while_an_installed_card_gets_other_boot_files() {
    let root = Root::new("new", 300_000);
    let server = root.serve(&[]);
    let amended = Amended::new(&server, more(b"lab-1\n", ALL));
    let (_, mut before) = record(vec![0; CARD as usize], |card| plan(&server, &amended, card, "image"));
    boot_partition(&mut before, |root| {
        for (name, text) in BOOT_FILES {
            root.create_file(name).unwrap().write_all(text.as_bytes()).unwrap();
        }
    });
    let second = more_to_boot(b"lab-2\n");
    amended.set(second.clone());
    let card = Card::new(before.clone(), Lie::None);
    lab::attempt(&plan(&server, &amended, card.path(), "image")).unwrap();
    assert_eq!(inspect_proof(&card), Some(second.hash()));
    let events = card.take_events();
    drop(card);
    after_each_cut(before, &events, (&server, &amended, &second), |card| assert_boot_files(card, "lab-2\n"));
}

/// After each cut the Pi boots what it had, with what it was to get.
fn after_each_cut(
    before: Vec<u8>,
    events: &[Event],
    (server, amended, wanted): (&Server, &Amended, &More),
    assert_on: impl Fn(&Path),
) {
    let mut done = 0;
    each_cut(before, events, &mut |card, what| {
        let outcome =
            lab::attempt(&plan(server, amended, card, "image")).unwrap_or_else(|e| panic!("{what}: {e}"));
        let Outcome::Boot { card: Found::Installed(_), .. } = outcome else { panic!("{what}: {outcome:?}") };
        done += 1;
        assert_eq!(proof(card).unwrap().personal, Some(wanted.hash()), "{what}");
        assert_on(card);
    });
    assert!(done >= cuts(), "{done}");
}

fn inspect_proof(card: &Card) -> Option<piman_core::hash::Hash> {
    proof(card.path())?.personal
}
