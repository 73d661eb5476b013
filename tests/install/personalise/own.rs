//! Cards of our layout, by both paths.

use super::*;

const PATHS: [&str; 2] = ["archive", "image"];

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs fsck.fat (dosfstools)")]
fn three_cards_differ_in_all_that_must_differ_and_boot_by_themselves() {
    let system = System::new();
    let server = system.serve();
    let amended = Amended::new(&server, more(&items(), BOOT));
    for path in PATHS {
        let mut seen = Vec::new();
        for n in 0..3 {
            let card = system.card(&format!("{path}{n}"));
            let plan = plan(&server, &amended, &card, path);
            installs(&plan);
            let heard = amended.take_heard();
            assert!(
                heard.iter().any(|line| line.contains("can=answer+disk+grow+personal") || path == "archive"),
                "{heard:?}"
            );
            let proof = proof(&card);
            assert_eq!(proof.personal, Some(amended_hash(&items())));
            let id = disk_id(&card);
            let line = String::from_utf8(on_fat(&card, 1, "cmdline.txt").unwrap()).unwrap();
            let want = format!("console=tty1 root=PARTUUID={id:08x}-02 rootfstype=ext4 rootwait quiet\n");
            assert_eq!(line, want);
            assert_eq!(on_fat(&card, 1, "config.txt").unwrap(), b"arm_64bit=1\n");
            assert_eq!(on_fat(&card, 1, "user-data").unwrap(), b"#cloud-config\n");
            assert_eq!(on_fat(&card, 1, "VMLINUZ"), on_fat(&card, 1, "kernel8.img"));
            let overlay = on_fat(&card, 1, "overlays/an-overlay-with-a-long-name-39.dtbo").unwrap();
            assert_eq!(overlay.len(), 39 * 700);
            let root = mounted(&card, 2);
            assert_items(root.path());
            let table = text(&root.path().join("etc/fstab"));
            let want = format!(
                "proc /proc proc defaults 0 0\nPARTUUID={id:08x}-02\t/\text4\tdefaults,noatime\t0\t1\n\
                 PARTUUID={id:08x}-01\t/boot/firmware\tvfat\tdefaults\t0\t2\n"
            );
            assert_eq!(table, want);
            assert_eq!(text(&root.path().join("etc/crypttab")), format!("data PARTUUID={id:08x}-02 none\n"));
            drop(root);
            seen.push((id, serial(&card, 1), uuid(&card, 2)));
            assert_eq!(partition(&card, 1), (4 << 20, BOOT));
            // Known again, and its bundle with it.
            boots(&plan);
            let hello =
                amended.take_heard().into_iter().find(|line| line.starts_with("PIMAN/1 hello")).unwrap();
            assert!(hello.ends_with(&format!(" personal={}", amended_hash(&items()))), "{hello}");
        }
        for field in [
            seen.iter().map(|s| format!("{:08x}", s.0)).collect::<Vec<_>>(),
            seen.iter().map(|s| s.1.to_string()).collect(),
            seen.iter().map(|s| s.2.clone()).collect(),
        ] {
            assert!(field[0] != field[1] && field[1] != field[2] && field[0] != field[2], "{field:?}");
        }
        // Again onto the same card: everything once.
        let card = system.folder.path().join(format!("{path}0"));
        installs(&Plan { reinstall: true, ..plan(&server, &amended, &card, path) });
        assert_items(mounted(&card, 2).path());
        assert_ne!(disk_id(&card), seen[0].0);
    }
}

fn amended_hash(items: &[Item<'_>]) -> piman_core::hash::Hash {
    more(items, 0).hash()
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs fsck.fat (dosfstools)")]
fn without_a_boot_partition_the_folder_is_where_the_system_has_it() {
    let system = System::new();
    let server = system.serve();
    let amended = Amended::new(&server, more(&items(), 0));
    for path in PATHS {
        let card = system.card(path);
        installs(&plan(&server, &amended, &card, path));
        assert_eq!(on_fat(&card, 1, "user-data"), None);
        let root = mounted(&card, 2);
        assert_items(root.path());
        assert_eq!(text(&root.path().join("boot/firmware/user-data")), "#cloud-config\n");
        let line = text(&root.path().join("boot/firmware/cmdline.txt"));
        assert_eq!(line, "console=tty1 root=/dev/mmcblk0p2 rootfstype=ext4 rootwait quiet\n");
    }
    // Nothing to do is nothing done: the disk has the number that it always had.
    for more in [More::default(), more(&[], 0)] {
        amended.set(more);
        let card = system.card("plain");
        installs(&plan(&server, &amended, &card, "image"));
        assert_eq!(disk_id(&card), Layout::DEFAULT.disk_id);
        let root = mounted(&card, 2);
        assert_eq!(text(&root.path().join("etc/hostname")), "image\n");
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs fsck.fat (dosfstools)")]
fn the_accounts_are_accounts_for_the_systems_own_library() {
    let system = System::new();
    // getent and what it needs, as they are here.
    let script = "mkdir -p r/bin && cp /usr/bin/getent r/bin/ && for f in $(ldd /usr/bin/getent | grep -o '/[^ ]*') \
                  $(ls /lib/*/libnss_files.so.2 2>/dev/null); do mkdir -p r$(dirname $f) && cp -L $f r$f; done; \
                  cp -a r/. root/";
    run(Command::new("bash").args(["-ec", script]).current_dir(system.folder.path()));
    let server = system.serve();
    let amended = Amended::new(&server, more(&items(), 0));
    let card = system.card("card");
    installs(&plan(&server, &amended, &card, "archive"));
    let root = mounted(&card, 2);
    // The mount of the test has no options against it.
    let ask = |table: &str, name: &str| {
        let output = run(Command::new("chroot").arg(root.path()).args(["/bin/getent", table, name]));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(ask("passwd", "ada"), "ada:x:1000:1000:Ada:/home/ada:/bin/bash\n");
    assert_eq!(ask("group", "video"), "video:x:44:ada\n");
    assert!(ask("shadow", "ada").starts_with("ada:$y$j9T$hash:"));
}
