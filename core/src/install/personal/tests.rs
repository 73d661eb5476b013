//! Bundles written and read.

use super::*;

fn items() -> [Item<'static>; 10] {
    let user = User { id: 1000, name: "pi", password: "$6$x$y", groups: "sudo,i2c", ..User::default() };
    let keys = "ssh-ed25519 AAAA \"quoted\"\nssh-rsa B ü\n";
    [
        Item::Identity(Renew { machine: true, host_keys: true, disk: true }),
        Item::Identity(Renew::default()),
        Item::Folder { place: Place::Root, mode: 0o2755, owner: "0:0", path: "/srv/a b" },
        Item::File { place: Place::Boot, mode: 0o600, owner: "pi:users", path: "/ssh", content: b"" },
        Item::File {
            place: Place::Root,
            mode: 0,
            owner: "4294967295:0",
            path: "/x",
            content: b"\nfile 0\0\xff",
        },
        Item::Link { path: "/etc/localtime", target: "../usr/share/zoneinfo/UTC" },
        Item::Remove { place: Place::Boot, path: "/ssh" },
        Item::Line {
            place: Place::Root,
            separator: b' ',
            path: "/etc/hosts",
            key: "127.0.1.1",
            text: "127.0.1.1\tlab",
        },
        Item::Word { key: "ds", text: "ds=nocloud;i=1" },
        Item::User(User { locked: true, keeps_password: true, keys, full_name: "Ü \"1\"", ..user }),
    ]
}

#[test]
fn a_bundle_and_back() {
    let mut draft = Draft::default();
    assert!(Bundle::parse(draft.bytes()).unwrap().is_identity_only());
    items().iter().for_each(|item| draft.add(item).unwrap());
    let bundle = Bundle::parse(draft.bytes()).unwrap();
    assert!(bundle.items().eq(items()) && !bundle.is_identity_only());
}

#[test]
fn the_bytes_stay_what_they_are() {
    let mut draft = Draft::default();
    let file = Item::File {
        place: Place::Root,
        mode: 0o644,
        owner: "0:0",
        path: "/etc/hostname",
        content: b"lab-1\n",
    };
    draft.add(&Item::Identity(Renew { machine: true, host_keys: false, disk: true })).unwrap();
    draft.add(&file).unwrap();
    let golden = b"piman-personal 1\nidentity 5\n\nfile 0 420 3 13 6\n0:0/etc/hostnamelab-1\n\n";
    assert_eq!(draft.bytes(), golden);
}

#[test]
fn cut_or_changed_anywhere_it_is_no_panic_and_no_other_bundle() {
    let mut draft = Draft::default();
    items().iter().for_each(|item| draft.add(item).unwrap());
    let bytes = draft.bytes();
    let mut ends = std::vec![HEADING.len()];
    let mut rest = &bytes[HEADING.len()..];
    while let Some((_, after)) = next(rest) {
        ends.push(bytes.len() - after.len());
        rest = after;
    }
    for n in (0..bytes.len()).filter(|n| !ends.contains(n)) {
        assert!(Bundle::parse(&bytes[..n]).is_err(), "{n} bytes");
    }
    for at in 0..bytes.len() {
        for to in [0, b'\n', b' ', b'9', 0xff] {
            let mut changed = bytes.to_vec();
            changed[at] = to;
            if let Ok(bundle) = Bundle::parse(&changed) {
                assert!(bundle.items().count() <= items().len(), "byte {at}");
            }
        }
    }
}

#[test]
fn what_could_mean_something_else_is_refused() {
    let file = |path, owner, mode| Item::File { place: Place::Root, mode, owner, path, content: b"" };
    let line = |separator, key, text| Item::Line { place: Place::Root, separator, path: "/a", key, text };
    let user = |name, password, groups| Item::User(User { name, password, groups, ..User::default() });
    for bad in [
        file("/a/../b", "0:0", 0),
        file("/", "0:0", 0),
        file("a", "0:0", 0),
        file("/a//b", "0:0", 0),
        file("/a\0", "0:0", 0),
        file("/a", "0", 0),
        file("/a", "0:", 0),
        file("/a", "4294967296:0", 0),
        file("/a", "0:0", 0o10000),
        Item::Link { path: "/a", target: "" },
        line(b':', "a:b", ""),
        line(b' ', "a\tb", ""),
        line(b':', "", ""),
        line(b':', "a", "b\nroot::0:0"),
        Item::Word { key: "a=", text: "" },
        Item::Word { key: "a", text: "a init=/x y" },
        user("", "", ""),
        user("-a", "", ""),
        user("1a", "", ""),
        user("a", "x:y", ""),
        user("a", "", "sudo,"),
        user("a", "x\n", ""),
    ] {
        assert_eq!(Draft::default().add(&bad), Err(BadBundle::Item(0)), "{bad:?}");
    }
    let large = std::vec![0; BYTES_MAX - 100];
    let large = Item::File { place: Place::Root, mode: 0, owner: "0:0", path: "/a", content: &large };
    assert_eq!(Draft::default().add(&large), Err(BadBundle::TooLarge));
    for (bytes, why) in [
        (&b""[..], BadBundle::Heading),
        (b"piman-personal 2\n", BadBundle::Heading),
        (b"piman-personal 1\nreboot\n\n", BadBundle::Item(0)),
        (b"piman-personal 1\nidentity 8\n\n", BadBundle::Item(0)),
        (b"piman-personal 1\nidentity 1\n\nremove 2 2\n/a\n", BadBundle::Item(1)),
        (b"piman-personal 1\nremove 0 18446744073709551615\n/a\n", BadBundle::Item(0)),
        (b"piman-personal 1\nfile 0 0 3 2 99999999999999999999\n0:0/a\n", BadBundle::Item(0)),
    ] {
        assert_eq!(Bundle::parse(bytes).err(), Some(why), "{}", bytes.escape_ascii());
    }
}
