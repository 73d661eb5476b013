//! A card that is installed is done over before it boots.

use super::*;

fn file(content: &'static [u8]) -> Item<'static> {
    Item::File { place: Place::Root, mode: 0o644, owner: "0:0", path: "/etc/hostname", content }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs fsck.fat (dosfstools)")]
fn a_card_gets_another_profile_and_keeps_its_identity() {
    let system = System::new();
    let server = system.serve();
    let amended = Amended::new(&server, more(&items(), BOOT));
    let card = system.card("card");
    let plan = plan(&server, &amended, &card, "image");
    installs(&plan);
    let (before, id) = (proof(&card), disk_id(&card));
    let ids = (serial(&card, 1), uuid(&card, 2));
    let other = [
        file(b"other\n"),
        Item::File { place: Place::Boot, mode: 0o644, owner: "0:0", path: "/ssh", content: b"" },
    ];
    let other = More { with_boot: true, ..more(&other, 0) };
    amended.set(other.clone());
    let _ = amended.take_heard();
    for _ in 0..2 {
        boots(&plan);
        let heard = amended.take_heard();
        let committed = format!("PIMAN/1 committed id={} installation=00000000000000ff", before.image);
        assert!(heard.contains(&committed) && heard.contains(&"RECEIVED_BOOT".to_owned()), "{heard:?}");
        let now = proof(&card);
        assert_eq!((now.personal, now.installation.unwrap().0), (Some(other.hash()), 0xff));
        assert_eq!((now.image, now.path, disk_id(&card)), (before.image, before.path, id));
        assert_eq!((serial(&card, 1), uuid(&card, 2)), ids);
        assert_eq!(on_fat(&card, 1, "ssh").unwrap(), b"");
        let root = mounted(&card, 2);
        assert_eq!(text(&root.path().join("etc/hostname")), "other\n");
        assert!(text(&root.path().join("etc/passwd")).contains("ada:"));
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "filesystems", ignore = "needs fsck.fat (dosfstools)")]
fn what_cannot_be_done_is_said_and_the_card_boots_as_it_was() {
    let system = System::new();
    let server = system.serve();
    let amended = Amended::new(&server, more(&items(), 0));
    let card = system.card("card");
    let plan = plan(&server, &amended, &card, "image");
    installs(&plan);
    let before = proof(&card);
    let owner =
        Item::File { place: Place::Root, mode: 0o644, owner: "nobody-here:0", path: "/etc/x", content: b"" };
    let own =
        Item::File { place: Place::Root, mode: 0o644, owner: "0:0", path: "/.piman-proof", content: b"x" };
    for (items, damaged, word) in [
        (&[owner][..], false, "nobody-here is not in /etc/passwd of the card"),
        (&[own][..], false, "writing /.piman-proof"),
        (&[Item::Identity(ALL)][..], false, "piman reinstall"),
        (&[file(b"x\n")][..], true, "its hash is not the one that was offered"),
    ] {
        amended.set(More { with_boot: true, damaged, ..more(items, 0) });
        let _ = amended.take_heard();
        boots(&plan);
        let heard = amended.take_heard();
        let failed = heard.iter().find(|line| line.starts_with("PIMAN/1 failed stage="));
        assert!(failed.is_some_and(|line| line.contains(word)), "{word}: {heard:?}");
        assert!(!heard.iter().any(|line| line.contains("committed")), "{heard:?}");
        assert_eq!(proof(&card), before);
    }
}
