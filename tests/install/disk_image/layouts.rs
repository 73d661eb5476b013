//! The layouts of distributions: what is found on them, and that nothing that is used is lost.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::Workshop;

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn as_raspberry_pi_os() {
    let workshop = Workshop::new();
    workshop.raspberry("pi.img");
    // A bootloader in the gap.
    let image = File::options().write(true).open(workshop.path("pi.img")).unwrap();
    image.write_all_at(&[0xb0; 5000], 100_000).unwrap();
    image.write_all_at(&[0xb1; 600], 1 << 20).unwrap();
    let text = workshop.add(&["pi.img"]);
    for want in [
        "a disk image: MBR, 2 partitions of 142.6 MB",
        "partition 1: FAT, 41.9 MB, `bootfs`, the firmware boots from it",
        "partition 2: ext4, 100.7 MB, `rootfs`, the root filesystem",
        "it grows by itself at its first boot (`resize` on its command line)",
        "for cards of at least 146800640 bytes (146.8 MB)",
        "it is the default",
    ] {
        assert!(text.contains(want), "{want}: {text}");
    }
    assert!(!text.contains("warning"), "{text}");
    let (copy, found) = workshop.kept();
    assert_eq!((found.root, found.boot), (Some(2), Some(1)));
    // Free blocks, full of leftovers, take no room; nor do zeros.
    let used = found.used_bytes();
    assert!(used < 40 << 20 && copy.metadata().unwrap().blocks() * 512 < used + (1 << 20), "{used}");
    // The gap is whole but for the proof and the counter.
    assert_eq!(found.used[0], (0, 32768));
    assert_eq!(found.used[1].0, 36864);
    assert_eq!(found.proof_offset, (8192 << 9) - 4096);
    workshop.restored("card");
    workshop.assert_same_files("card", &[("boot", 8192), ("root", 90112)]);
    let card = File::open(workshop.path("card")).unwrap();
    let original = File::open(workshop.path("pi.img")).unwrap();
    for at in (0..4 << 20).step_by(4096).filter(|at| *at != 32768 && *at != found.proof_offset) {
        let [mut a, mut b] = [[0; 4096]; 2];
        card.read_exact_at(&mut a, at).unwrap();
        original.read_exact_at(&mut b, at).unwrap();
        assert!(a == b, "block at {at}");
    }
    workshop.script("sfdisk --verify -q card 2>&1 | (! grep -i 'error\\|overlap')");
    let (ok, text) = workshop.piman(&["list"], None);
    assert!(ok && text.contains("pi-"), "{text}");
}

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn a_gpt_with_two_systems() {
    let workshop = Workshop::new();
    workshop.root("root2", "-b 4096 -L rootB -O ^64bit,^metadata_csum", "64M");
    workshop.root("root3", "-b 1024 -L data", "20M");
    workshop.boot("boot", "root=PARTLABEL=rootB rootwait");
    let table = "label: gpt\nfirst-lba: 2048\nstart=8192, size=81920, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, name=boot\n\
                 start=90112, size=196608, name=rootA\nstart=286720, size=131072, name=rootB\n\
                 start=417792, size=8192, name=raw\nstart=425984, size=40960, name=data";
    workshop.image(
        "ab.img",
        230,
        table,
        &[("boot", 8192), ("root", 90112), ("root2", 286_720), ("root3", 425_984)],
    );
    // Something unknown, with zeros that belong to it.
    let image = File::options().write(true).open(workshop.path("ab.img")).unwrap();
    image.write_all_at(b"unknown", 417_792 * 512 + 8192).unwrap();
    let text = workshop.add(&["ab.img"]);
    for want in [
        "a disk image: GPT, 5 partitions",
        "partition 3: ext4, 67.1 MB, `rootB`, the root filesystem",
        "partition 4: unknown, 4.2 MB, `raw`",
        "it is grown when it is installed",
        "all of partition 4 is copied",
    ] {
        assert!(text.contains(want), "{want}: {text}");
    }
    let (copy, found) = workshop.kept();
    let raw = (417_792 * 512, 425_984 * 512);
    assert!(found.used.iter().any(|(start, end)| *start <= raw.0 && *end >= raw.1), "{:?}", found.used);
    // Its copy at the end is the agent's.
    let bytes = copy.metadata().unwrap().len();
    let mut end = vec![1; 33 * 512];
    copy.read_exact_at(&mut end, bytes - 33 * 512).unwrap();
    assert!(end.iter().all(|b| *b == 0) && found.used.last().unwrap().1 <= 466_944 * 512);
    workshop.restored("card");
    let places = [("boot", 8192), ("root", 90112), ("root2", 286_720), ("root3", 425_984)];
    workshop.assert_same_files("card", &places);

    // With the table at its beginning damaged, that at its end is used, and the copy is whole.
    workshop.script(
        "cp ab.img broken.img && printf X | dd of=broken.img bs=1 seek=1030 conv=notrunc status=none",
    );
    let text = workshop.add(&["broken.img"]);
    assert!(text.contains("its GPT at the beginning is damaged; the copy at its end is used"), "{text}");
    let (copy, repaired) = workshop.kept();
    assert!(repaired.repair.is_empty());
    let mut beginning = [vec![0; 34 * 512], vec![0; 34 * 512]];
    copy.read_exact_at(&mut beginning[0], 0).unwrap();
    image_of(&workshop, "ab.img").read_exact_at(&mut beginning[1], 0).unwrap();
    assert!(beginning[0] == beginning[1], "the same as before it was damaged");
}

fn image_of(workshop: &Workshop, name: &str) -> File {
    File::open(workshop.path(name)).unwrap()
}

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn hybrid_tables_and_logical_partitions() {
    let workshop = Workshop::new();
    workshop.boot("boot", "root=/dev/mmcblk0p6 rootwait");
    let table = "label: dos\nlabel-id: 0x5f5d7a31\nstart=8192, size=81920, type=c\nstart=90112, size=380000, type=5\n\
                 start=92160, size=81920, type=c\nstart=180224, size=196608, type=83";
    let places = [("boot", 8192), ("boot", 92160), ("root", 180_224)];
    workshop.image("logical.img", 240, table, &places);
    let text = workshop.add(&["logical.img"]);
    assert!(text.contains("MBR, 3 partitions") && text.contains("partition 6: ext4"), "{text}");
    assert!(text.contains("`rootfs`, the root filesystem"), "{text}");
    workshop.restored("card");
    workshop.assert_same_files("card", &places);
    workshop
        .script("diff <(sfdisk -d logical.img | sed s/logical.img/x/g) <(sfdisk -d card | sed s/card/x/g)");

    // As firmware that knows no GPT needs it.
    let table =
        "label: gpt\nfirst-lba: 2048\nstart=8192, size=81920, name=boot\nstart=90112, size=196608, name=root";
    workshop.image("hybrid.img", 145, table, &[("boot", 8192), ("root", 90112)]);
    let mut mbr = [0; 512];
    let image = File::options().read(true).write(true).open(workshop.path("hybrid.img")).unwrap();
    image.read_exact_at(&mut mbr, 0).unwrap();
    let mut entry = mbr[446..462].to_vec();
    entry[4] = 0x0c;
    entry[8..12].copy_from_slice(&8192_u32.to_le_bytes());
    entry[12..16].copy_from_slice(&81920_u32.to_le_bytes());
    mbr[462..478].copy_from_slice(&entry);
    image.write_all_at(&mbr, 0).unwrap();
    let text = workshop.add(&["hybrid.img"]);
    assert!(text.contains("GPT with a hybrid MBR, 2 partitions"), "{text}");
    let (copy, _) = workshop.kept();
    let mut kept = [0; 512];
    copy.read_exact_at(&mut kept, 0).unwrap();
    assert_eq!(kept, mbr);
    workshop.restored("card");
    workshop.assert_same_files("card", &[("boot", 8192), ("root", 90112)]);
}

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn a_filesystem_that_contradicts_itself_is_copied_whole() {
    let workshop = Workshop::new();
    // All its groups lie: their bitmaps are empty.
    workshop.script(
        "for block in $(dumpe2fs root 2>/dev/null | sed -n 's/.*Block bitmap at \\([0-9]*\\).*/\\1/p'); do
             dd if=/dev/zero of=root bs=4096 seek=$block count=1 conv=notrunc status=none
         done",
    );
    workshop.raspberry("pi.img");
    let text = workshop.add(&["pi.img"]);
    assert!(text.contains("all of partition 2 is copied: group 0 contradicts itself"), "{text}");
    workshop.restored("card");
    workshop.script("cmp -n 100663296 root <(tail -c +$((90112 * 512 + 1)) card)");
}

/// Small filesystems have small blocks.
#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn files_are_read_from_blocks_of_every_size() {
    for (block, more) in [
        (1024, "-O ^has_journal"),
        (1024, "-O ^metadata_csum,^64bit -I 128"),
        (2048, "-O meta_bg,^resize_inode"),
    ] {
        let workshop = Workshop::new();
        let tree = workshop.path("root.d");
        fs::create_dir_all(tree.join("usr/lib/systemd/system")).unwrap();
        fs::write(tree.join("usr/lib/systemd/system/ssh.service"), "[Unit]\n").unwrap();
        // A folder of several blocks.
        fs::create_dir_all(tree.join("usr/lib/modules/6.6.1/many")).unwrap();
        (0..300).for_each(|n| {
            fs::write(tree.join(format!("usr/lib/modules/6.6.1/many/module-{n}.ko")), "x").unwrap()
        });
        std::os::unix::fs::symlink("usr/lib", tree.join("lib")).unwrap();
        workshop.root("root", &format!("-b {block} {more} -L rootfs"), "96M");
        workshop.boot("boot", "console=tty1");
        workshop.raspberry("pi.img");
        let text = workshop.add(&["pi.img"]);
        assert!(!text.contains("cannot be read here"), "{block} {more}: {text}");
        let fitness = workshop.kept().1.fitness;
        assert_eq!((fitness.machine, &*fitness.kernels), (Some(183), &["6.6.1".to_owned()][..]), "{block}");
        let system = format!("{:?}", fitness.system);
        assert!(system.contains("Ssh") && system.contains("root: Writable"), "{block} {more}: {system}");
    }
}

/// What only the kernel reads.
#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn the_only_root_filesystem_that_there_can_be() {
    let workshop = Workshop::new();
    workshop.root("root", "-b 4096 -O ^extent,^64bit -L rootfs", "96M");
    workshop.boot("boot", "console=tty1");
    workshop.raspberry("pi.img");
    let text = workshop.add(&["pi.img"]);
    assert!(text.contains("the root filesystem is partition 2, which cannot be read here"), "{text}");
    let kept = workshop.kept().1;
    assert_eq!(kept.root, Some(2));
    // An agent's kernel writes into it.
    let access = format!("{:?}", kept.fitness.system.root);
    assert!(access.starts_with("Unseen") && access.contains("is ext2 or ext3"), "{access}");
    workshop.restored("card");
    workshop.assert_same_files("card", &[("boot", 8192), ("root", 90112)]);
}

#[test]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn how_systems_grow() {
    let workshop = Workshop::new();
    let table =
        "label: dos\nlabel-id: 0x5f5d7a31\nstart=8192, size=81920, type=c\nstart=90112, size=196608, type=83";
    let said = |name: &str, line: &str, files: &str| {
        workshop.script(&format!("rm -rf {name}.d"));
        workshop.boot("boot", line);
        workshop.script(&format!("mkdir -p {name}.d && cd {name}.d && {files}"));
        workshop.root(name, "-b 4096 -L rootfs", "96M");
        workshop.script(&format!("dd if={name} of=root conv=notrunc status=none"));
        workshop.image("pi.img", 140, table, &[("boot", 8192), ("root", 90112)]);
        workshop.add(&["pi.img"])
    };
    for (name, line, files, want) in [
        ("raspi", "root=LABEL=rootfs rw", "true", "it is grown when it is installed (the last partition)"),
        (
            "ubuntu",
            "root=LABEL=rootfs",
            "mkdir -p usr/bin etc/cloud && touch usr/bin/growpart",
            "(cloud-init with growpart)",
        ),
        (
            "growpart",
            "root=LABEL=rootfs",
            "mkdir -p usr/bin && touch usr/bin/growpart",
            "(the last partition)",
        ),
        ("dietpi", "root=LABEL=rootfs", "mkdir -p boot && touch boot/dietpi.txt", "(DietPi)"),
        ("firstboot", "init=/usr/lib/raspberrypi-sys-mods/firstboot", "true", "first boot (`init=/usr/lib"),
    ] {
        let text = said(name, line, files);
        assert!(text.contains(want), "{name}: {text}");
    }
}
