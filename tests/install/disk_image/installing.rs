//! The real agent installs a disk image from the real server: the card has the image's own table and filesystems, is
//! known again, and is somebody else's as soon as another program has written it.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use pi_agent::card::disk::{is_root_withheld, root_in_table};
use pi_agent::card::inspect::{self, Card};
use pi_agent::control::Server as Peer;
use pi_agent::failure::Cause;
use pi_agent::install::{Choice, Outcome, Plan};
use piman_core::install::receipt::Proof;
use piman_tests::disk::LoopDevice;
use piman_tests::lab::{attempt, behind_a_proxy, plan};
use piman_tests::proxy::Faults;

use super::Workshop;

const CARD: u64 = 300 << 20;

#[track_caller]
fn installs(plan: &Plan) {
    let outcome = attempt(plan).unwrap();
    assert!(matches!(outcome, Outcome::Installed { .. }), "{outcome:?}");
}

#[track_caller]
fn boots(plan: &Plan) {
    let outcome = attempt(plan).unwrap();
    assert!(matches!(outcome, Outcome::Boot { card: Card::Installed(_), .. }), "{outcome:?}");
}

#[track_caller]
fn proof(card: &Path) -> Proof {
    match inspect::check(card).unwrap() {
        Card::Installed(proof) => proof,
        other => panic!("{other}"),
    }
}

fn look(card: &Path) -> Card {
    let file = File::open(card).unwrap();
    let bytes = file.metadata().unwrap().len();
    inspect::look(&file, bytes)
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn a_card_has_the_image_and_is_known_again() {
    let workshop = Workshop::new();
    workshop.raspberry("pi.img");
    workshop.add(&["pi.img"]);
    let server = workshop.serve();
    let card = workshop.card(CARD);
    let plan = plan(&server, &card, "auto");
    installs(&plan);
    let first = proof(&card);
    let marks = first.disk.clone().unwrap();
    assert_eq!((marks.root, marks.parts.iter().map(|p| p.number).collect::<Vec<_>>()), (2, vec![1, 2]));
    // It grows by itself, so its table stays as it is; only the proof was added, before the first partition.
    workshop.script("cmp <(sfdisk -d pi.img | sed s/pi.img/X/) <(sfdisk -d card | sed s/card/X/)");
    workshop.assert_same_files("card", &[("boot", 8192), ("root", 90112)]);
    boots(&plan);
    assert_eq!(proof(&card), first);
    server.piman(&["reinstall", "00000000cafe0004"]);
    installs(&plan);
    assert_ne!(proof(&card).installation, first.installation);

    // What the image does to itself at its first boot: another disk identifier, a longer partition, one more.
    workshop.script(
        "printf 'label: dos\\nlabel-id: 0x12345678\\nstart=8192, size=81920, type=c\\nstart=90112, size=400000, type=83\\n\
         start=495616, type=83\\n' | sfdisk -q card",
    );
    boots(&plan);
    // Another program writes another filesystem, which is nobody's installation of ours.
    workshop
        .script("cp card other && mke2fs -q -F -t ext4 -E offset=$((90112*512)) other 98304k 2>/dev/null");
    assert!(matches!(look(&workshop.path("other")), Card::Foreign(_) | Card::Unmarked));
    // Or another table, in which the root filesystem begins elsewhere.
    workshop.script(
        "cp card other && printf 'label: dos\\nstart=8192, size=81920, type=c\\nstart=98304, type=83\\n' | sfdisk -q other",
    );
    assert!(matches!(look(&workshop.path("other")), Card::Foreign(_) | Card::Unmarked));
}

/// A partition that is empty on the image gets a filesystem at the first boot; one behind the image's own is the user's.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn what_the_system_makes_is_its_own_and_what_the_user_makes_is_kept() {
    let workshop = Workshop::new();
    let table = "label: dos\nlabel-id: 0x5f5d7a31\nstart=8192, size=81920, type=c\nstart=90112, size=196608, type=83\n\
                 start=286720, size=16384, type=82";
    workshop.image("pi.img", 150, table, &[("boot", 8192), ("root", 90112)]);
    workshop.add(&["pi.img"]);
    let server = workshop.serve();
    let card = workshop.card(CARD);
    // What lies there is not the image's: as on a card that was blank.
    let plan = plan(&server, &card, "auto");
    installs(&plan);
    let marks = proof(&card).disk.unwrap();
    assert!(marks.parts.len() == 3 && marks.parts[2].content == 0, "{marks:?}");
    workshop.script("truncate -s 8M swap && mkswap -q swap && dd if=swap of=card bs=512 seek=286720 conv=notrunc status=none");
    boots(&plan);
    workshop.script("echo 'start=307200, size=65536, type=83' | sfdisk -q --append card");
    workshop.script("truncate -s 32M work && mkfs.ext4 -q -L work work && dd if=work of=card bs=512 seek=307200 conv=notrunc status=none");
    boots(&plan);
    server.piman(&["reinstall", "00000000cafe0004"]);
    let failure = attempt(&plan).unwrap_err();
    assert!(
        failure.to_string().contains("partition 4") && failure.to_string().contains("\"work\""),
        "{failure}"
    );
    workshop.script(
        "e2fsck -fn work >/dev/null 2>&1 && cmp work <(tail -c +$((307200 * 512 + 1)) card | head -c 32M)",
    );
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn a_gpt_is_moved_to_the_end_of_the_card_and_its_last_partition_grows() {
    let workshop = Workshop::new();
    let table = "label: gpt\nfirst-lba: 34\nstart=8192, size=81920, type=U\nstart=90112, size=196608, type=L, name=root";
    workshop.boot("boot", "root=LABEL=rootfs");
    workshop.image("pi.img", 145, table, &[("boot", 8192), ("root", 90112)]);
    let added = workshop.add(&["pi.img"]);
    assert!(added.contains("GPT"), "{added}");
    let server = workshop.serve();
    // A GPT of another disk at the end of the card does not count any more.
    let card = workshop.card(CARD);
    workshop.script("printf 'label: gpt\\nstart=2048, type=L\\n' | sfdisk -q card");
    let plan = plan(&server, &card, "image");
    installs(&plan);
    workshop.script("sfdisk --verify card 2>&1 | grep -q 'No errors detected'");
    let file = File::open(&card).unwrap();
    let root = root_in_table(&file, CARD).unwrap();
    assert_eq!(root.offset, 90112 * 512);
    assert!(root.offset + root.length > CARD - (2 << 20), "{root:?}");
    workshop.assert_same_files("card", &[("boot", 8192), ("root", 90112)]);
    boots(&plan);
    server.piman(&["reinstall", "00000000cafe0004"]);
    installs(&plan);
    workshop.script("sfdisk --verify card 2>&1 | grep -q 'No errors detected'");
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn an_installation_that_broke_off_is_none_and_is_made_whole() {
    let workshop = Workshop::new();
    workshop.raspberry("pi.img");
    workshop.add(&["pi.img"]);
    let server = workshop.serve();
    let card = workshop.card(CARD);
    // All that is fetched is damaged, for ever, but for the chunk table.
    let host = "127.0.0.87";
    let flips = (300_000..80_000_000).step_by(9_000).collect();
    let _proxy = behind_a_proxy(&server, host, Faults { flips, ..Faults::default() });
    let direct = plan(&server, &card, "image");
    let through = Plan { server: Peer { host: host.into(), ..direct.server.clone() }, ..direct.clone() };
    let failure = attempt(&through).unwrap_err();
    assert!(matches!(failure.cause, Cause::Image | Cause::Network), "{failure}");
    assert_eq!(look(&card), Card::Incomplete);
    let file = File::open(&card).unwrap();
    assert!(is_root_withheld(&file) && root_in_table(&file, CARD).is_none());
    installs(&direct);
    workshop.assert_same_files("card", &[("boot", 8192), ("root", 90112)]);
    boots(&direct);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn who_cannot_have_it_keeps_what_it_has() {
    let workshop = Workshop::new();
    workshop.raspberry("pi.img");
    workshop.add(&["pi.img"]);
    let server = workshop.serve();
    // For a card that is too small the reason is said; an agent that takes only archives waits.
    let small = workshop.card(120 << 20);
    let before = fs::read(&small).unwrap();
    let failure = attempt(&plan(&server, &small, "auto")).unwrap_err();
    assert!(failure.cause == Cause::TooSmall, "{failure}");
    assert!(failure.to_string().contains("needs a disk of"), "{failure}");
    assert!(fs::read(&small).unwrap() == before);
    let card = workshop.card(CARD);
    let digest = blake3::hash(&fs::read(&card).unwrap());
    let mut stream = server.connect("rootfs");
    let mut got = Vec::new();
    let ended = stream.read_to_end(&mut got);
    assert!(got.is_empty() && ended.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    let archives = Plan { choice: Choice::Archive, ..plan(&server, &card, "archive") };
    std::thread::scope(|scope| {
        // It waits for ever: what it is told is in the log.
        let serving = scope.spawn(|| {
            server.wait_log("image of a whole disk, which the agent on this Pi cannot write");
            drop(server);
        });
        let failure = attempt(&archives).unwrap_err();
        assert!(failure.cause == Cause::Network, "{failure}");
        serving.join().unwrap();
    });
    assert!(blake3::hash(&fs::read(&card).unwrap()) == digest);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn a_disk_with_other_sectors_and_what_is_to_be_kept_are_left_alone() {
    let workshop = Workshop::new();
    workshop.raspberry("pi.img");
    workshop.add(&["pi.img"]);
    let server = workshop.serve();
    let card = workshop.card(CARD);
    let digest = || blake3::hash(&fs::read(&card).unwrap());
    let before = digest();
    let device = LoopDevice::with_sectors(&card, 4096);
    let failure = attempt(&Plan { yes: true, ..plan(&server, device.path(), "image") }).unwrap_err();
    assert!(failure.to_string().contains("sectors of 4096 bytes"), "{failure}");
    drop(device);
    assert!(digest() == before);
    let keep: pi_agent::install::Keep = "32M,work".parse().unwrap();
    let failure = attempt(&Plan { keep, ..plan(&server, &card, "image") }).unwrap_err();
    assert!(failure.to_string().contains("--keep-data"), "{failure}");
    assert!(digest() == before);
    // A block device: the kernel sees the partitions of the image.
    let device = LoopDevice::of(&card);
    installs(&Plan { yes: true, ..plan(&server, device.path(), "image") });
    drop(device);
    proof(&card);
    workshop.assert_same_files("card", &[("boot", 8192), ("root", 90112)]);
}
