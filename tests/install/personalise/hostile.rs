//! Archives that are no friends, and what an agent does not do.

use super::*;
use std::os::unix::fs::symlink;

fn fails(plan: &Plan) -> String {
    let failure = lab::attempt(plan).unwrap_err();
    failure.to_string()
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs fsck.fat (dosfstools)")]
fn what_leads_out_of_the_card_or_nowhere_is_no_way() {
    let system = System::new();
    let (root, outside) = (system.root(), system.folder.path().join("outside"));
    fs::remove_file(root.join("etc/hostname")).unwrap();
    symlink(&outside, root.join("etc/hostname")).unwrap();
    symlink("../../../../../../../..", root.join("srv")).unwrap();
    symlink("ring", root.join("ring")).unwrap();
    let server = system.serve();
    let amended = Amended::new(&server, more(&[], 0));
    let file = |path: &'static str| Item::File {
        place: Place::Root,
        mode: 0o644,
        owner: "0:0",
        path,
        content: b"x",
    };
    // A link in the place of a file goes; above it the card's own root is the end.
    amended.set(more(&[file("/etc/hostname"), file("/srv/lab/etc")], 0));
    let card = system.card("card");
    installs(&plan(&server, &amended, &card, "archive"));
    let mount = mounted(&card, 2);
    assert_eq!(text(&mount.path().join("etc/hostname")), "x");
    assert_eq!(text(&mount.path().join("lab/etc")), "x");
    assert!(!outside.exists());
    drop(mount);
    for path in ["archive", "image"] {
        let card = system.card("card");
        for (items, word) in [
            (&[file("/ring/x")][..], "writing /ring/x"),
            (&[file("/etc/passwd/x")][..], "writing /etc/passwd/x"),
            (
                &[Item::Remove { place: Place::Root, path: "/.piman-proof" }][..],
                "the proof of the installation",
            ),
        ] {
            amended.set(more(items, 0));
            let said = fails(&plan(&server, &amended, &card, path));
            assert!(said.starts_with("personalise: ") && said.contains(word), "{said}");
            assert!(!inspect::check(&card).unwrap().is_installed(true), "it is not installed");
        }
        // What does not go today goes tomorrow.
        amended.set(more(&items()[..2], 0));
        installs(&plan(&server, &amended, &card, path));
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs fsck.fat (dosfstools)")]
fn boot_files_that_do_not_do_say_why() {
    for (change, boot, word) in [
        ("head -c 70M /dev/zero >root/boot/firmware/large", BOOT, "give the image a larger boot partition"),
        ("rm -r root/boot", BOOT, "has no boot files in /boot/firmware or /boot"),
        ("head -c 1M /dev/zero | tr '\\0' x >root/boot/firmware/cmdline.txt", BOOT, "command line"),
        ("ln -s . root/boot/firmware/ring", BOOT, "links in a ring"),
        ("touch 'root/boot/firmware/a:b'", BOOT, "can be no name on the boot partition"),
    ] {
        let system = System::new();
        run(Command::new("bash").args(["-ec", change]).current_dir(system.folder.path()));
        let server = system.serve();
        let amended = Amended::new(&server, more(&[], boot));
        let card = system.card("card");
        let said = fails(&plan(&server, &amended, &card, "archive"));
        assert!(said.contains(word), "{word}: {said}");
        assert!(!inspect::check(&card).unwrap().is_installed(true), "{word}");
    }
    // No room on the card for such a boot partition: nothing is touched.
    let system = System::new();
    let server = system.serve();
    let amended = Amended::new(&server, more(&[], 180 << 20));
    let card = system.card("card");
    let said = fails(&plan(&server, &amended, &card, "archive"));
    assert!(said.contains("too small"), "{said}");
    assert!(fs::read(&card).unwrap().iter().all(|b| *b == 0));
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs fsck.fat (dosfstools)")]
fn a_bundle_that_is_none_costs_no_data() {
    let system = System::new();
    let server = system.serve();
    let amended = Amended::new(&server, more(&items(), 0));
    let card = system.card("card");
    let plan = Plan { reinstall: true, ..plan(&server, &amended, &card, "image") };
    installs(&plan);
    let before = blake3::hash(&fs::read(&card).unwrap());
    let unknown = [bundle(&[]), b"dance 1 1\nx\n".to_vec()].concat();
    for (more, word) in [
        (More { bundle: unknown, ..More::default() }, "item 0 of the bundle cannot be understood"),
        (More { damaged: true, ..more(&items(), 0) }, "its hash is not the one that was offered"),
    ] {
        amended.set(more);
        let said = fails(&plan);
        assert!(said.contains(word), "{said}");
        assert_eq!(blake3::hash(&fs::read(&card).unwrap()), before, "{word}");
    }
}
