//! A partition that installations keep, and what is discarded.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use pi_agent::card::disk::{RootArea, data_in_table, root_in_table};
use pi_agent::failure::Cause;
use pi_agent::install::{Keep, Outcome, Plan};
use piman_core::install::layout::{Layout, SECTOR, TableKind};
use piman_core::install::receipt::NAME;
use piman_tests::disk::{LoopDevice, Mounted, e2fsck, run};
use piman_tests::lab::{self, attempt};
use piman_tests::tree::{assert_same, installed};

use super::digest;

const DATA: u64 = 20 << 20;
const CARD: u64 = lab::CARD + DATA + (4 << 20);

fn keeping(plan: Plan, table: TableKind, label: &str) -> Plan {
    let keep: Keep = format!("{DATA},{label}").parse().unwrap();
    let layout = Layout { data_sectors: keep.sectors(), table, ..plan.layout };
    Plan { layout, keep, yes: true, ..plan }
}

fn area(card: &Path, bytes: u64) -> RootArea {
    data_in_table(&File::open(card).unwrap(), bytes).unwrap()
}

fn bytes_of(card: &Path, area: RootArea) -> blake3::Hash {
    let mut bytes = vec![0; usize::try_from(area.length).unwrap()];
    File::open(card).unwrap().read_exact_at(&mut bytes, area.offset).unwrap();
    blake3::hash(&bytes)
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn what_is_kept_is_made_once_and_never_touched_again() {
    let (root, server, folder) = lab::with_server("keep", 100_000);
    for table in [TableKind::Mbr, TableKind::Gpt] {
        let card = folder.path().join("card.img");
        File::create(&card).unwrap().set_len(CARD).unwrap();
        let plan = |path| keeping(lab::plan(&server, &card, path), table, "work");
        assert!(matches!(attempt(&plan("image")).unwrap(), Outcome::Installed { .. }));
        let kept = area(&card, CARD);
        assert_eq!(kept.length, DATA);
        e2fsck(&card, kept.offset, kept.length);
        {
            let mounted = Mounted::new(&card, kept.offset, kept.length, "");
            fs::write(mounted.path().join("thesis"), "years").unwrap();
        }
        let label = run(Command::new("blkid")
            .args(["-p", "-o", "value", "-s", "LABEL", "-O"])
            .args([kept.offset.to_string().as_ref(), card.as_os_str()]));
        assert_eq!(String::from_utf8_lossy(&label.stdout).trim(), "work");
        let before = bytes_of(&card, kept);
        for path in ["archive", "image"] {
            let again = Plan { reinstall: true, discard: true, ..plan(path) };
            assert!(matches!(attempt(&again).unwrap(), Outcome::Installed { .. }), "{path}");
            assert_eq!(area(&card, CARD), kept, "{path}");
            assert_eq!(bytes_of(&card, kept), before, "{path}: it was touched");
            let disk = File::open(&card).unwrap();
            let system = root_in_table(&disk, CARD).unwrap();
            assert_eq!(system.offset + system.length, kept.offset);
            let mounted = Mounted::new(&card, system.offset, system.length, "noatime");
            assert_same(&installed(mounted.path()), &root.want);
        }
        // Who does not say what is to become of it, or says another size, erases nothing.
        let whole = digest(&card);
        let unsaid = Plan { reinstall: true, ..lab::plan(&server, &card, "image") };
        let refused = attempt(&unsaid).unwrap_err();
        assert_eq!(refused.cause, Cause::Refused);
        let text = refused.to_string();
        for words in ["partition 3 of", "ext4 \"work\"", "--keep-data", "nothing was changed"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let keep: Keep = format!("{},work", DATA / 2 + (6 << 20)).parse().unwrap();
        let layout = Layout { data_sectors: keep.sectors(), ..plan("image").layout };
        let smaller = Plan { keep, layout, reinstall: true, ..plan("image") };
        let text = attempt(&smaller).unwrap_err().to_string();
        assert!(text.contains("is not where --keep-data expects"), "{text}");
        let other = if table == TableKind::Mbr { TableKind::Gpt } else { TableKind::Mbr };
        let converted = keeping(unsaid.clone(), other, "work");
        let text = attempt(&converted).unwrap_err().to_string();
        assert!(text.contains("nothing was changed"), "{text}");
        assert_eq!(digest(&card), whole, "something was written");
        // Said in so many words, it goes.
        let none = Plan { keep: Keep::None, ..unsaid };
        assert!(matches!(attempt(&none).unwrap(), Outcome::Installed { .. }));
        assert_eq!(data_in_table(&File::open(&card).unwrap(), CARD), None);
        fs::remove_file(&card).unwrap();
    }
}

/// A table from which the partition was lost is no reason to make a new filesystem over the old one.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn what_the_table_lost_is_not_made_anew() {
    let (_root, server, folder) = lab::with_server("lost", 100_000);
    let card = folder.path().join("card.img");
    File::create(&card).unwrap().set_len(CARD).unwrap();
    let plan = keeping(lab::plan(&server, &card, "image"), TableKind::Mbr, "work");
    attempt(&plan).unwrap();
    let file = File::options().read(true).write(true).open(&card).unwrap();
    file.write_all_at(&[0; 16], 446 + 32).unwrap();
    let whole = digest(&card);
    let again = Plan { reinstall: true, ..plan };
    let text = attempt(&again).unwrap_err().to_string();
    assert!(text.contains("there is ext4 \"work\"") && text.contains("does not name it"), "{text}");
    assert_eq!(digest(&card), whole, "something was written");
}

/// Its owner may give it any type, and put anything into it.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
fn what_its_owner_made_of_it_is_kept() {
    const GPT_LVM: &str = "E6D6D379-F507-44C2-A23C-238F2A3DF928";
    let (root, server, folder) = lab::with_server("owner", 100_000);
    for (table, kind) in [(TableKind::Mbr, "8e"), (TableKind::Gpt, GPT_LVM)] {
        let card = folder.path().join("card.img");
        File::create(&card).unwrap().set_len(CARD).unwrap();
        let plan = |path| keeping(lab::plan(&server, &card, path), table, "work");
        attempt(&plan("image")).unwrap();
        let kept = area(&card, CARD);
        let sfdisk = |words: &[&str]| {
            let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
            let done = run(Command::new("sfdisk").env("PATH", path).args(words));
            String::from_utf8(done.stdout).unwrap()
        };
        let name = card.to_str().unwrap();
        sfdisk(&["--quiet", "--lock=no", "--part-type", name, "3", kind]);
        let file = File::options().read(true).write(true).open(&card).unwrap();
        file.write_all_at(b"LUKS\xba\xbe\0\x02", kept.offset).unwrap();
        let before = bytes_of(&card, kept);
        let third = || sfdisk(&["--dump", name]).lines().last().unwrap().to_owned();
        let entry = third();
        assert!(entry.contains(&format!("type={kind}")), "{entry}");
        for path in ["archive", "image"] {
            let again = Plan { reinstall: true, discard: true, ..plan(path) };
            assert!(matches!(attempt(&again).unwrap(), Outcome::Installed { .. }), "{path}");
            assert_eq!(bytes_of(&card, kept), before, "{path}: it was touched");
            assert_eq!(third(), entry, "{path}");
            let system = root_in_table(&File::open(&card).unwrap(), CARD).unwrap();
            let mounted = Mounted::new(&card, system.offset, system.length, "noatime");
            assert_same(&installed(mounted.path()), &root.want);
        }
        let whole = digest(&card);
        let unsaid = Plan { reinstall: true, ..lab::plan(&server, &card, "image") };
        let text = attempt(&unsaid).unwrap_err().to_string();
        assert!(text.contains("partition 3 of") && text.contains("LUKS"), "{text}");
        assert_eq!(digest(&card), whole, "something was written");
        fs::remove_file(&card).unwrap();
    }
}

/// A system without a proof that counts as ours is ours here as well: the server's order names what is on every disk.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_trusted_system_without_a_proof_keeps_it_too() {
    let (_root, server, folder) = lab::with_server("trusted", 100_000);
    let card = folder.path().join("card.img");
    File::create(&card).unwrap().set_len(CARD).unwrap();
    let plan = keeping(lab::plan(&server, &card, "image"), TableKind::Mbr, "work");
    attempt(&plan).unwrap();
    let system = root_in_table(&File::open(&card).unwrap(), CARD).unwrap();
    {
        let mounted = Mounted::new(&card, system.offset, system.length, "");
        fs::remove_file(mounted.path().join(NAME)).unwrap();
    }
    let whole = digest(&card);
    let unsaid = lab::plan(&server, &card, "image");
    let unsaid = Plan { trust_unmarked: true, reinstall: true, yes: true, ..unsaid };
    let refused = attempt(&unsaid).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("partition 3 of") && text.contains("ext4 \"work\""), "{text}");
    assert_eq!(refused.cause, Cause::Refused);
    assert_eq!(digest(&card), whole, "something was written");
    let none = Plan { keep: Keep::None, ..unsaid };
    assert!(matches!(attempt(&none).unwrap(), Outcome::Installed { .. }));
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn what_will_be_written_is_discarded_where_that_is_possible() {
    let (root, server, folder) = lab::with_server("discard", 100_000);
    for path in ["archive", "image"] {
        let card = folder.path().join("card.img");
        // Garbage, which takes room.
        fs::write(&card, vec![0x5a; usize::try_from(CARD).unwrap()]).unwrap();
        let device = LoopDevice::of(&card);
        let full = fs::metadata(&card).unwrap().blocks() * 512;
        let plan = Plan { yes: true, discard: true, ..lab::plan(&server, device.path(), path) };
        assert!(matches!(attempt(&plan).unwrap(), Outcome::Installed { .. }));
        drop(device);
        let now = fs::metadata(&card).unwrap().blocks() * 512;
        assert!(now < full / 2, "{path}: {now} of {full} bytes are in use");
        let mut gap = [0; 512];
        File::open(&card).unwrap().read_exact_at(&mut gap, 1000 * SECTOR).unwrap();
        assert_eq!(gap, [0x5a; 512], "{path}: what is not written was discarded");
        let system = root_in_table(&File::open(&card).unwrap(), CARD).unwrap();
        let mounted = Mounted::new(&card, system.offset, system.length, "noatime");
        assert_same(&installed(mounted.path()), &root.want);
        drop(mounted);
        fs::remove_file(&card).unwrap();
    }
}

/// A disk of 3 TB, by both paths: what an MBR does not reach is used. An image ends at 2 TiB, so that it is only taken
/// if nothing else is wanted.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_disk_of_three_terabytes() {
    let (root, server, _folder) = lab::with_server("large", 100_000);
    let bytes = 3_000_592_982_016;
    for (path, used) in
        [("archive", 2_700_000_000_000), ("auto", 2_700_000_000_000), ("image", 2_100_000_000_000)]
    {
        // On a disk: files in memory are not as large everywhere.
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        let device = LoopDevice::of(file.path());
        let plan = Plan { yes: true, ..lab::plan(&server, device.path(), path) };
        let outcome = attempt(&plan).unwrap();
        assert!(matches!(outcome, Outcome::Installed { .. }), "{path}: {outcome:?}");
        let again = attempt(&plan).unwrap();
        assert!(matches!(again, Outcome::Boot { .. }), "{path}: {again:?}");
        let system = root_in_table(&File::open(device.path()).unwrap(), bytes).unwrap();
        assert!(system.length > 2_900_000_000_000, "{path}: {system:?}");
        drop(device);
        let mounted = Mounted::new(file.path(), system.offset, system.length, "ro");
        assert!(mounted.path().join("bin/noise").exists());
        let stat = rustix::fs::statvfs(mounted.path()).unwrap();
        assert!(stat.f_blocks * stat.f_frsize > used, "{path}: {} blocks", stat.f_blocks);
    }
    drop(root);
}
