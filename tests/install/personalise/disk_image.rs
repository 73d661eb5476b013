//! Images of whole disks, which bring their own table.

use super::*;
use crate::disk_image::Workshop;
use piman_tests::disk::LoopDevice;

fn disk_items() -> Vec<Item<'static>> {
    vec![
        Item::Identity(ALL),
        Item::File {
            place: Place::Root,
            mode: 0o644,
            owner: "0:0",
            path: "/etc/hostname",
            content: b"lab-1\n",
        },
        Item::File {
            place: Place::Boot,
            mode: 0o644,
            owner: "0:0",
            path: "/user-data",
            content: b"#cloud-config\n",
        },
        Item::Word { key: "ds", text: "ds=nocloud;i=1" },
    ]
}

fn disk_plan(server: &Server, amended: &Amended, card: &Path) -> Plan {
    Plan { server: amended.server(), ..lab::plan(server, card, "auto") }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn an_mbr_image_becomes_one_pis_own() {
    let workshop = Workshop::new();
    let root = workshop.path("root.d");
    fs::create_dir_all(root.join("etc/ssh")).unwrap();
    fs::create_dir_all(root.join("usr/lib/systemd/system")).unwrap();
    fs::write(root.join("usr/lib/systemd/systemd"), "").unwrap();
    fs::write(root.join("usr/lib/systemd/system/regenerate_ssh_host_keys.service"), "[Unit]\n").unwrap();
    fs::write(root.join("etc/machine-id"), "old\n").unwrap();
    fs::write(root.join("etc/ssh/ssh_host_rsa_key"), "old").unwrap();
    workshop.root("root", "-b 4096 -L rootfs -U 11111111-2222-4333-8444-555555555555", "96M");
    workshop.script(
        "printf 'UUID=11111111-2222-4333-8444-555555555555 /old ext4 noauto 0 0\\n' >>root.d/etc/fstab
         debugfs -w -R 'rm etc/fstab' root 2>/dev/null; debugfs -w -R 'write root.d/etc/fstab etc/fstab' root 2>/dev/null",
    );
    workshop.raspberry("pi.img");
    workshop.add(&["pi.img"]);
    let server = workshop.serve();
    let amended = Amended::new(&server, more(&disk_items(), 0));
    let mut seen = Vec::new();
    for device in [false, true] {
        let card = workshop.card(300 << 20);
        let loop_device = device.then(|| LoopDevice::of(&card));
        let disk = loop_device.as_ref().map_or(card.as_path(), LoopDevice::path);
        let plan = Plan { yes: true, ..disk_plan(&server, &amended, disk) };
        installs(&plan);
        boots(&plan);
        drop(loop_device);
        let id = disk_id(&card);
        assert_eq!(proof(&card).personal, Some(more(&disk_items(), 0).hash()));
        workshop.script("sfdisk --verify -q card 2>&1 | (! grep -i 'error\\|overlap')");
        let line = String::from_utf8(on_fat(&card, 1, "cmdline.txt").unwrap()).unwrap();
        let want = crate::disk_image::COMMAND_LINE.replace("5f5d7a31", &format!("{id:08x}"));
        assert_eq!(line, format!("{want} ds=nocloud;i=1\n"));
        assert_eq!(on_fat(&card, 1, "user-data").unwrap(), b"#cloud-config\n");
        let uuid = uuid(&card, 2);
        let root = mounted(&card, 2);
        assert_eq!(
            text(&root.path().join("etc/fstab")),
            format!("PARTUUID={id:08x}-02 / ext4 defaults 0 1\nUUID={uuid} /old ext4 noauto 0 0\n")
        );
        assert_eq!(text(&root.path().join("etc/hostname")), "lab-1\n");
        assert_eq!(text(&root.path().join("etc/machine-id")), "");
        assert!(!root.path().join("etc/ssh/ssh_host_rsa_key").exists());
        let link = "etc/systemd/system/multi-user.target.wants/regenerate_ssh_host_keys.service";
        assert!(root.path().join(link).symlink_metadata().is_ok());
        seen.push((id, uuid, serial(&card, 1)));
    }
    assert!(seen[0].0 != seen[1].0 && seen[0].1 != seen[1].1 && seen[0].2 != seen[1].2, "{seen:?}");
    assert!(seen.iter().all(|(id, uuid, _)| *id != 0x5f5d_7a31 && !uuid.starts_with("11111111")));
    // Another profile for the installed card, whose proof lies in the gap.
    let card = workshop.path("card");
    let other = [Item::File {
        place: Place::Root,
        mode: 0o644,
        owner: "0:0",
        path: "/etc/hostname",
        content: b"two\n",
    }];
    let other = More { with_boot: true, ..more(&other, 0) };
    amended.set(other.clone());
    let plan = disk_plan(&server, &amended, &card);
    boots(&plan);
    assert_eq!(proof(&card).personal, Some(other.hash()));
    assert_eq!(text(&mounted(&card, 2).path().join("etc/hostname")), "two\n");
    boots(&plan);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn a_gpt_image_becomes_one_pis_own_and_other_partitions_stay() {
    let workshop = Workshop::new();
    // A second system, which names the first one's partition.
    workshop.root("root2", "-b 4096 -L rootB -O ^64bit,^metadata_csum,uninit_bg", "64M");
    workshop.script(
        "echo 'PARTUUID=aaaaaaaa-1111-4222-8333-444444444444 /a ext4 defaults 0 1' >fstab
         debugfs -w -R 'rm etc/fstab' root2 2>/dev/null; debugfs -w -R 'write fstab etc/fstab' root2 2>/dev/null",
    );
    workshop.boot("boot", "root=PARTUUID=AAAAAAAA-1111-4222-8333-444444444444 rootwait");
    let table = "label: gpt\nfirst-lba: 2048\nstart=8192, size=81920, uuid=BBBBBBBB-1111-4222-8333-444444444444, \
                 type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, name=boot\n\
                 start=90112, size=196608, uuid=AAAAAAAA-1111-4222-8333-444444444444, name=root\n\
                 start=286720, size=8192, uuid=CCCCCCCC-1111-4222-8333-444444444444, name=raw\n\
                 start=294912, size=131072, uuid=DDDDDDDD-1111-4222-8333-444444444444, name=rootB";
    workshop.image("ab.img", 230, table, &[("boot", 8192), ("root", 90112), ("root2", 294_912)]);
    workshop.add(&["ab.img"]);
    let server = workshop.serve();
    let amended = Amended::new(&server, more(&disk_items(), 0));
    let card = workshop.card(300 << 20);
    installs(&disk_plan(&server, &amended, &card));
    boots(&disk_plan(&server, &amended, &card));
    workshop.script("sfdisk --verify -q card 2>&1 | (! grep -i 'error\\|overlap\\|corrupt\\|mismatch')");
    let dump = run(Command::new("/usr/sbin/sfdisk").arg("-d").arg(&card));
    let dump = String::from_utf8(dump.stdout).unwrap().to_ascii_lowercase();
    let before = run(Command::new("/usr/sbin/sfdisk").arg("-d").arg(workshop.path("ab.img")));
    let before = String::from_utf8(before.stdout).unwrap().to_ascii_lowercase();
    let field = |text: &str, name: &str, key: &str| {
        let line = text.lines().find(|line| line.contains(name)).unwrap().to_owned();
        line.split(&[',', ' '][..]).find_map(|word| word.strip_prefix(key).map(String::from)).unwrap()
    };
    for (name, stays) in [
        ("name=\"boot\"", false),
        ("name=\"root\"", false),
        ("name=\"raw\"", true),
        ("name=\"rootb\"", false),
    ] {
        assert_eq!(field(&dump, name, "uuid=") == field(&before, name, "uuid="), stays, "{name}: {dump}");
        assert_eq!(field(&dump, name, "type="), field(&before, name, "type="));
    }
    let id = |text: &str| text.lines().find(|line| line.starts_with("label-id")).unwrap().to_owned();
    assert_ne!(id(&dump), id(&before));
    // In the case in which it was written.
    let root = field(&dump, "name=\"root\"", "uuid=").to_ascii_uppercase();
    let line = {
        let (start, bytes) = (8192 * 512, 81920 * 512);
        let mut all = vec![0; bytes];
        File::open(&card).unwrap().read_exact_at(&mut all, start).unwrap();
        let fs = fatfs::FileSystem::new(std::io::Cursor::new(all), fatfs::FsOptions::new()).unwrap();
        let mut text = String::new();
        fs.root_dir().open_file("cmdline.txt").unwrap().read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(line, format!("root=PARTUUID={root} rootwait ds=nocloud;i=1\n"));
    e2fsck(&card, 90112 * 512, 196_608 * 512);
    e2fsck(&card, 294_912 * 512, 131_072 * 512);
    let other = Mounted::new(&card, 294_912 * 512, 131_072 * 512, "noatime");
    let want = format!("PARTUUID={} /a ext4 defaults 0 1\n", root.to_ascii_lowercase());
    assert_eq!(text(&other.path().join("etc/fstab")), want);
}

/// As boards have it that U-Boot boots: `/boot` is an ext4 filesystem of its own.
fn with_own_boot(workshop: &Workshop) {
    let boot = workshop.path("own.d");
    fs::create_dir_all(boot.join("extlinux")).unwrap();
    let names = "root=PARTUUID=5f5d7a31-02 boot=UUID=22222222-2222-4333-8444-555555555555";
    for file in ["extlinux/extlinux.conf", "boardEnv.txt"] {
        fs::write(boot.join(file), format!("append {names} quiet\n")).unwrap();
    }
    workshop.script(
        "mke2fs -q -F -t ext4 -b 4096 -d own.d -U 22222222-2222-4333-8444-555555555555 own 32M >/dev/null",
    );
    let table = "label: dos\nlabel-id: 0x5f5d7a31\nstart=8192, size=81920, type=c\n\
                 start=90112, size=196608, type=83\nstart=286720, size=65536, type=83";
    workshop.image("pi.img", 180, table, &[("boot", 8192), ("root", 90112), ("own", 286_720)]);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn a_boot_folder_that_is_a_filesystem_of_its_own_names_what_is_there() {
    let workshop = Workshop::new();
    with_own_boot(&workshop);
    workshop.add(&["pi.img"]);
    let server = workshop.serve();
    let amended = Amended::new(&server, more(&disk_items(), 0));
    let card = workshop.card(300 << 20);
    installs(&disk_plan(&server, &amended, &card));
    let (id, uuid) = (disk_id(&card), uuid(&card, 3));
    assert!(id != 0x5f5d_7a31 && !uuid.starts_with("22222222"), "{id:08x} {uuid}");
    let own = mounted(&card, 3);
    for file in ["extlinux/extlinux.conf", "boardEnv.txt"] {
        let want = format!("append root=PARTUUID={id:08x}-02 boot=UUID={uuid} quiet\n");
        assert_eq!(text(&own.path().join(file)), want, "{file}");
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn beside_a_filesystem_that_nobody_can_open_all_identifiers_stay() {
    let workshop = Workshop::new();
    with_own_boot(&workshop);
    // It needs a feature that no kernel has.
    workshop.script(
        "printf '\\x80' | dd of=pi.img bs=1 seek=$((286720 * 512 + 1024 + 0x63)) conv=notrunc status=none",
    );
    workshop.add(&["pi.img"]);
    let server = workshop.serve();
    let amended = Amended::new(&server, more(&disk_items(), 0));
    let card = workshop.card(300 << 20);
    installs(&disk_plan(&server, &amended, &card));
    assert_eq!(disk_id(&card), 0x5f5d_7a31);
    assert_eq!(uuid(&card, 3), "22222222-2222-4333-8444-555555555555");
    let root = mounted(&card, 2);
    assert_eq!(text(&root.path().join("etc/fstab")), "PARTUUID=5f5d7a31-02 / ext4 defaults 0 1\n");
    assert_eq!(text(&root.path().join("etc/hostname")), "lab-1\n");
}

/// What an agent can know of the image before it erases anything.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn what_is_for_a_root_filesystem_that_is_not_there_costs_no_data() {
    let workshop = Workshop::new();
    workshop.image("pi.img", 60, "label: dos\nstart=8192, size=81920, type=c", &[("boot", 8192)]);
    workshop.add(&["pi.img"]);
    let server = workshop.serve();
    let amended = Amended::new(&server, more(&disk_items(), 0));
    let card = workshop.card(300 << 20);
    let mark = |at| File::options().write(true).open(&card).unwrap().write_all_at(b"mine", at).unwrap();
    [0, 4096, 5 << 20].into_iter().for_each(mark);
    let before = blake3::hash(&fs::read(&card).unwrap());
    let plan = disk_plan(&server, &amended, &card);
    let failure = lab::attempt(&plan).unwrap_err().to_string();
    assert!(failure.contains("writing /etc/hostname is for the root filesystem"), "{failure}");
    assert!(failure.contains("nothing was changed"), "{failure}");
    assert_eq!(blake3::hash(&fs::read(&card).unwrap()), before);
    // What is for the boot partition, and an identity as far as there is one, can be had.
    let items: Vec<_> = disk_items()
        .into_iter()
        .filter(|item| !matches!(item, Item::File { place: Place::Root, .. }))
        .collect();
    amended.set(more(&items, 0));
    installs(&plan);
    assert_eq!(on_fat(&card, 1, "user-data").unwrap(), b"#cloud-config\n");
}

/// A FAT whose chain has no end: what need not be written there is done, and what has to be is refused.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs mkfs.vfat")]
fn a_boot_partition_that_goes_round_in_circles() {
    let workshop = Workshop::new();
    let boot = File::options().read(true).write(true).open(workshop.path("boot")).unwrap();
    let mut table = vec![0; 64 << 10];
    boot.read_exact_at(&mut table, 32 * 512).unwrap();
    let (next, _) = table.as_chunks::<4>();
    let inner = (3..16_000).find(|n| u32::from_le_bytes(next[*n as usize]) == n + 1).unwrap();
    boot.write_all_at(&inner.to_le_bytes(), 32 * 512 + u64::from(inner) * 4).unwrap();
    workshop.raspberry("pi.img");
    workshop.add(&["pi.img"]);
    let server = workshop.serve();
    let amended = Amended::new(&server, more(&disk_items()[..2], 0));
    let card = workshop.card(300 << 20);
    let plan = disk_plan(&server, &amended, &card);
    installs(&plan);
    // Nobody can say what names them there.
    assert_eq!(disk_id(&card), 0x5f5d_7a31);
    assert_eq!(text(&mounted(&card, 2).path().join("etc/hostname")), "lab-1\n");
    amended.set(more(&disk_items(), 0));
    let failure = lab::attempt(&Plan { reinstall: true, ..plan }).unwrap_err().to_string();
    assert!(
        failure.contains("/user-data of the boot partition") && failure.contains("fsck.fat repairs it"),
        "{failure}"
    );
    assert!(!inspect::check(&card).unwrap().is_installed(true));
}
