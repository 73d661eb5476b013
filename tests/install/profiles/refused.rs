//! What no agent could do on a card is refused before anything is erased: when an image is added, and when a Pi asks.

use super::*;

const BOOT: [&str; 4] = ["kernel8.img", "config.txt", "cmdline.txt", "bcm2711-rpi-4-b.dtb"];

/// A system whose boot folder has these files, and `more`.
fn archive(lab: &Lab, name: &str, boot: &[&str], more: impl FnOnce(&mut Tar)) -> String {
    let mut tar = Tar::new();
    for folder in ["etc/", "sbin/", "boot/"] {
        tar.entry(folder.as_bytes(), b'5', b"");
    }
    let init = elf();
    let size = init.len() as u64;
    tar.header(&Header { name: b"sbin/init", mode: 0o755, size, ..Header::default() }).content(&init);
    boot.iter().for_each(|name| _ = tar.file(format!("boot/{name}").as_bytes(), b"x"));
    more(&mut tar);
    let path = lab.folder.path().join(name);
    // In one step, as a server looks at it all the time.
    let new = lab.folder.path().join("new");
    fs::write(&new, zstd::encode_all(&tar.end()[..], 1).unwrap()).unwrap();
    fs::rename(new, &path).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn boot_files_that_no_partition_would_hold() {
    let lab = Lab::new(&[]);
    let nothing = archive(&lab, "nothing.tar.zst", &[], |_| {});
    let ring = archive(&lab, "ring.tar.zst", &BOOT, |tar| _ = tar.entry(b"boot/ring", b'2', b"."));
    let name = archive(&lab, "name.tar.zst", &BOOT, |tar| _ = tar.file(b"boot/a:b", b"x"));
    let large = |name: &str, mib: usize| {
        archive(&lab, name, &BOOT, |tar| {
            tar.file(b"boot/initrd.img", &vec![0; mib << 20]);
            tar.entry(b"boot/initramfs8", b'2', b"initrd.img");
        })
    };
    // The link makes it twice as much.
    let twice = large("large.tar.zst", 40);
    for (file, more, says) in [
        (&nothing, &["--boot", "card"][..], "it has no boot files in /boot/firmware or /boot"),
        (&ring, &["--boot", "card"], "/boot/ring/ring"),
        (&name, &["--boot", "card"], "/boot/a:b has a name that FAT cannot have"),
        (&twice, &["--boot-size", "64M"], "need a boot partition of 84 MiB"),
    ] {
        let (done, said) = lab.piman(&[&["image", "add", file, "--name", "x"], more].concat());
        assert!(!done && said.contains(says) && said.contains("Nothing was added"), "{said}");
        assert!(!lab.done(&["image", "list"]).contains("x "));
    }
    // Not said otherwise, such boot files are a reason to boot from the network.
    let said = lab.done(&["image", "add", &ring, "--name", "ring"]);
    assert!(said.contains("boots from the network") && said.contains("links in a ring"), "{said}");
    let said = lab.done(&["image", "add", &twice, "--name", "twice", "--boot-size", "84M", "--default"]);
    assert!(said.contains("with a boot partition of 88.1 MB"), "{said}");
    wait_until("it is checked", || match lab.pi(2, ABLE).ask().0 {
        Told::Decided(Decision::Format(Some(offer))) => offer.more.boot_bytes == 84 << 20,
        _ => false,
    });
    // The boot files of its profile count, too.
    let blob = lab.write("blob", &"x".repeat(4 << 20));
    let blob = blob.to_str().unwrap();
    lab.set(&[], &format!("[[files]]\npath = '/blob'\nat = 'boot'\nfrom = '{blob}'\n"));
    let full = lab.pi(3, ABLE).waits();
    assert!(full.contains("and those of the Pi's profile need a boot partition of 89 MiB"), "{full}");
    lab.done(&["profile", "remove"]);
    // And what came in its place since.
    large("large.tar.zst", 60);
    wait_until("a Pi is told that", || {
        matches!(lab.pi(4, ABLE).ask().0, Told::Waits)
            && lab.piman(&["device", "10000000cafe0004"]).1.contains("need a boot partition of")
    });
}

/// A disk with one partition, which begins as btrfs does.
fn btrfs(lab: &Lab) -> String {
    let mut disk = vec![0; 24 << 20];
    let (start, sectors) = (8192_u32, 32_768_u32);
    disk[446 + 4] = 0x83;
    disk[446 + 8..446 + 12].copy_from_slice(&start.to_le_bytes());
    disk[446 + 12..446 + 16].copy_from_slice(&sectors.to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let at = start as usize * 512;
    disk[at + 0x1_0040..][..8].copy_from_slice(b"_BHRfS_M");
    let path = lab.folder.path().join("btrfs.img");
    fs::write(&path, disk).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_root_filesystem_that_no_agent_can_write() {
    let Lab { server, folder } = Lab::new(&[]);
    drop(server);
    // One that makes chunks of disk images.
    let server = Server::start(&folder.path().join("root.tar.zst"), &folder.path().join("state"), &[]);
    let lab = Lab { server, folder };
    let image = btrfs(&lab);
    let said = lab.done(&["image", "add", &image, "--name", "b", "--default"]);
    assert!(said.contains("partition 1 is btrfs, and they know ext4 only"), "{said}");
    let able = Can { disk: true, ..ABLE };
    let waits = |number: u8, says: &str| {
        wait_until(says, || {
            let pi = lab.pi(number, able);
            pi.ask().0 == Told::Waits && lab.piman(&["device", &pi.serial]).1.contains(says)
        });
    };
    waits(2, "a new identity (machine-id, SSH host keys) has to be written into the root filesystem");
    lab.set(&[], "identity = 'keep'\nhostname = 'a'");
    waits(3, "/etc/hostname has to be written into the root filesystem, which agents cannot do: partition 1");
    lab.set(&[], "identity = 'keep'\n[[files]]\npath = '/x'\nat = 'boot'\ncontent = 'x'\n");
    waits(4, "/x belongs to the boot files, and the image has neither a boot partition nor a folder /boot");
    let shown = lab.piman(&["profile", "render", "10000000cafe0004"]);
    assert!(!shown.0 && shown.1.contains("/x belongs to the boot files"), "{}", shown.1);
    lab.set(&[], "identity = 'keep'");
    wait_until("it is installed as it is", || matches!(lab.pi(5, able).ask().0, Told::Decided(_)));
}
