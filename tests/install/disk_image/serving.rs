//! A disk image as a server makes chunks of it: one for cards of all sizes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use pi_agent::install::Outcome;
use piman::images::ext4::Images;
use piman_core::install::table::{Scope, Table, WholeDisk};
use piman_tests::binaries;
use piman_tests::disk::LoopDevice;
use piman_tests::lab::{self, attempt};

use super::Workshop;

/// Writes all chunks where they belong on `card`.
fn written(workshop: &Workshop) {
    let images = Images::open(&workshop.path("state")).unwrap().all();
    let [image] = &*images else { panic!("{} images", images.len()) };
    let table = Table::parse(image.table()).unwrap();
    let path = workshop.card(table.header().total_bytes);
    let card = File::options().write(true).open(&path).unwrap();
    for entry in table.iter() {
        let mut stored = vec![0; entry.stored as usize];
        image.chunks().read_exact_at(&mut stored, entry.position).unwrap();
        let plain = match entry.stored < entry.length {
            true => zstd::bulk::decompress(&stored, entry.length as usize).unwrap(),
            false => stored,
        };
        assert_eq!(blake3::hash(&plain).as_bytes(), &entry.hash.0);
        card.write_all_at(&plain, entry.offset).unwrap();
    }
}

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn one_image_for_every_card() {
    let workshop = Workshop::new();
    workshop.raspberry("pi.img");
    workshop.script("xz -0 -k pi.img");
    workshop.add(&["pi.img.xz"]);
    let (_, found) = workshop.kept();
    let state = workshop.path("state");
    let server = workshop.serve();
    assert!(!server.log().contains("ERROR"), "{}", server.log());
    server.terminate();
    drop(server);

    let images = Images::open(&state).unwrap().all();
    let header = images[0].header();
    assert_eq!(header.scope, Scope::Disk(WholeDisk { root: 2, grows: false, sector: 512 }));
    assert_eq!((header.total_bytes, header.proof_offset), (found.bytes, found.proof_offset));
    assert!(header.used_bytes < found.used_bytes() * 102 / 100 + 4096);
    assert_eq!(header.entries, 0);
    written(&workshop);
    workshop.assert_same_files("card", &[("boot", 8192), ("root", 90112)]);
    let mut proof = [0; 4096];
    File::open(workshop.path("card")).unwrap().read_exact_at(&mut proof, header.proof_offset).unwrap();
    assert_eq!(proof, [b'\n'; 4096]);

    let (ok, text) = workshop.piman(&["list"], None);
    assert!(ok && text.contains("MiB whole disk"), "{text}");
    let (ok, text) = workshop.piman(&["check"], None);
    assert!(ok && text.contains("good"), "{text}");
}

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn what_is_signed_is_one_table() {
    let workshop = Workshop::new();
    workshop.raspberry("pi.img");
    workshop.add(&["pi.img"]);
    let key = Command::new(binaries::piman())
        .args(["key", "generate", "--no-password", "--secret", "key"])
        .current_dir(workshop.path("."))
        .output()
        .unwrap();
    assert!(key.status.success(), "{}", String::from_utf8_lossy(&key.stderr));
    let (ok, text) = workshop.piman(&["sign", "pi", "--no-password", "--key", "key"], None);
    assert!(ok && text.lines().filter(|line| line.starts_with("table ")).count() == 1, "{text}");
    let table = Images::open(&workshop.path("state")).unwrap().all()[0].hash();
    assert!(text.contains(&format!("table 0 {table}")), "{text}");
    written(&workshop);
    workshop.assert_same_files("card", &[("boot", 8192), ("root", 90112)]);
}

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn it_is_no_archive() {
    let workshop = Workshop::new();
    workshop.raspberry("pi.img");
    for (arguments, want) in [
        (&["serve", "--rootfs", "pi.img"][..], "add it with `piman image add pi.img`"),
        (
            &["image", "build", "--rootfs", "pi.img", "--state", "state"],
            "add it with `piman image add pi.img`",
        ),
    ] {
        let output =
            Command::new(binaries::piman()).args(arguments).current_dir(workshop.path(".")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(want), "{text}");
    }
    assert!(fs::metadata(workshop.path("state")).is_err());
}

#[test]
#[cfg_attr(any(lacks = "root", lacks = "filesystems"), ignore = "needs root and mkfs.vfat")]
fn what_an_agent_makes_of_it() {
    let workshop = Workshop::new();
    workshop.raspberry("mbr.img");
    let table = "label: gpt\nfirst-lba: 2048\nstart=8192, size=81920, name=boot\nstart=90112, size=196608, name=root\n\
                 start=286720, size=4096, name=raw";
    workshop.image("gpt.img", 145, table, &[("boot", 8192), ("root", 90112)]);
    for name in ["mbr.img", "gpt.img"] {
        workshop.add(&[name]);
        let server = workshop.serve();
        let card = workshop.card(300 << 20);
        let outcome = attempt(&lab::plan(&server, &card, "auto")).unwrap();
        assert!(matches!(outcome, Outcome::Installed { .. }), "{name}: {outcome:?}");
        workshop.assert_same_files("card", &[("boot", 8192), ("root", 90112)]);
        workshop.script(
            "sfdisk --verify card >said 2>&1 && ! grep -i 'corrupt\\|overlap\\|end of the disk' said",
        );
        // It is known again, and stays as it is.
        let before = fs::read(&card).unwrap();
        let outcome = attempt(&lab::plan(&server, &card, "auto")).unwrap();
        assert!(!matches!(outcome, Outcome::Installed { .. }), "{name}: {outcome:?}");
        assert!(fs::read(&card).unwrap() == before);
        drop(server);
        // A golden card made of it is the same image as far as files go, without the proof that was on it.
        let card = LoopDevice::of(&card);
        let text = workshop.add(&["--from-card", card.path().to_str().unwrap()]);
        assert!(text.contains("the root filesystem"), "{text}");
        let (copy, found) = workshop.kept();
        let mut gap = vec![0; 4 << 20];
        copy.read_exact_at(&mut gap, 0).unwrap();
        assert!(!gap.windows(11).any(|part| part == b"piman-proof"), "{name}");
        assert_eq!(found.proof_offset, (8192 << 9) - 4096);
    }
}
