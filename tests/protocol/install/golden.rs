//! The bytes of our own lines on the control connection, as agents and servers in the field have them.

use piman_core::hash::Hash;
use piman_core::install::fetch::Request;
use piman_core::install::{
    Can, Command, Fingerprint, Found, Hello, Installation, More, Notice, Offer, Paths, Report, TEXT_MAX,
};

use super::{REASON, dialogue, offer};

/// The bytes of version 1 of our own lines. Repair the code, never this test: agents in the
/// field speak so.
#[test]
fn golden_bytes_of_version_1() {
    let hello = "PIMAN/1 hello serial=10000000abcdef01 mac=b8:27:eb:00:00:01 model=Raspberry_Pi_4 agent=0.1.0 \
                 disk=31914983424 root=31864651776 card=- paths=stream+image\n";
    let said = format!(
        "{hello}IS_UNINSTALLED\nPIMAN/1 progress stage=transfer done=5 total=10\n\
         PIMAN/1 failed stage=sync text=the card = broken, try another\nPIMAN/1 committed id={}\nIS_FORMATTED\n",
        "11".repeat(32)
    );
    let (answer, notes) = dialogue(said.as_bytes(), None, false);
    let want = format!(
        "format\nPIMAN/1 offer id={} bytes=651000000 rootfs=4444 fetch=4445 table={} table-bytes=184 \
         chunk-bytes=4096\nEOM\n",
        "11".repeat(32),
        "22".repeat(32)
    );
    assert_eq!(answer, want);
    assert!(notes[0].contains("Raspberry_Pi_4") && notes[0].contains("image: true"), "{}", notes[0]);
    assert_eq!(notes[3], "Progress { stage: Transfer, done: 5, total: 10 }");
    assert_eq!(notes[4], "Failed { stage: Sync, text: \"the card = broken, try another\" }");
    assert!(notes[5].starts_with("Committed"));
    let wait = Command::Wait { seconds: 2, percent: 34, text: "" }.to_string();
    assert_eq!(wait, "PIMAN/1 wait seconds=2 percent=34\nEOM\n");
    let hash = "11".repeat(32);
    let request = format!("fetch chunks {hash} 4096 1048576");
    assert_eq!(Request::parse(request.as_bytes()).unwrap().to_string(), request);
}

/// The bytes that revision 1 adds; what revision 0 knows stands where it stood. Repair the
/// code, never this test.
#[test]
fn golden_bytes_of_revision_1() {
    let (one, two) = ("11".repeat(32), "22".repeat(32));
    let hello = format!(
        "PIMAN/1 hello serial=10000000abcdef01 mac=b8:27:eb:00:00:01 model=Raspberry_Pi_4 agent=0.1.0 \
         disk=31914983424 root=31864651776 card={one} paths=stream+image rev=1 \
         cid=02544d53413136471087f2b1c0011700 installation=00000000000000aa can=signed"
    );
    let Report::Ours(Notice::Hello(found)) = Report::parse(hello.as_bytes()) else { panic!("no hello") };
    let want = Hello {
        revision: 1,
        serial: Some("10000000abcdef01"),
        mac: Some("b8:27:eb:00:00:01"),
        model: Some("Raspberry_Pi_4"),
        agent: Some("0.1.0"),
        disk_bytes: 31_914_983_424,
        root_bytes: 31_864_651_776,
        card_id: Some("02544d53413136471087f2b1c0011700"),
        card: Some(Hash([0x11; 32])),
        installation: Some(Installation(0xaa)),
        paths: Paths { stream: true, image: true },
        can: Can { signed: true, ..Can::default() },
        ..Hello::default()
    };
    assert_eq!((found, found.to_string()), (want, hello.clone()));
    for ([signed, answer, disk, grow, personal, early], field) in [
        ([false, true, false, false, false, false], " can=answer"),
        ([true, true, false, false, false, false], " can=signed+answer"),
        ([false, true, true, false, false, false], " can=answer+disk"),
        ([true, true, true, false, false, false], " can=signed+answer+disk"),
        ([false, false, false, true, false, false], " can=grow"),
        ([false, false, false, false, true, false], " can=personal"),
        ([false, false, false, false, false, true], " can=early"),
        ([true; 6], " can=signed+answer+disk+grow+personal+early"),
        ([false; 6], ""),
    ] {
        let asks = Hello { can: Can { signed, answer, disk, grow, personal, early }, ..want };
        let line = hello.replace(" can=signed", field);
        assert_eq!(asks.to_string(), line);
        assert_eq!(Report::parse(line.as_bytes()), Report::Ours(Notice::Hello(asks)));
    }
    // What agents said before: what is not known is passed over.
    let before = hello.replace("can=signed", &format!("have={one} have-bytes=7340032 can=resume+signed"));
    assert_eq!(Report::parse(before.as_bytes()), Report::Ours(Notice::Hello(want)));

    let more = More {
        revision: 1,
        sums_chunk: 1 << 20,
        manifest_bytes: 700,
        unpacked_bytes: 2_000_000_000,
        entries: 34_878,
        counter: 1_795_231_447,
        installation: Some(Installation(0xaa)),
        ..More::default()
    };
    let offer = Offer { more, ..offer() };
    let line = format!(
        "PIMAN/1 offer id={one} bytes=651000000 rootfs=4444 fetch=4445 table={two} table-bytes=184 \
         chunk-bytes=4096 rev=1 sums=1048576 manifest-bytes=700 unpacked=2000000000 entries=34878 \
         counter=1795231447 installation=00000000000000aa"
    );
    assert_eq!(Command::Format(Some(offer)).to_string(), format!("format\n{line}\nEOM\n"));
    let committed = format!("PIMAN/1 committed id={one} installation=00000000000000aa");
    let notice = Notice::Committed { id: Hash([0x11; 32]), installation: Some(Installation(0xaa)) };
    assert_eq!(Report::parse(committed.as_bytes()), Report::Ours(notice));
    assert_eq!(notice.to_string(), committed);
    let sums = format!("fetch sums {one} 0 19872");
    assert_eq!(Request::parse(sums.as_bytes()).unwrap().to_string(), sums);

    // A peer of revision 0 finds its fields by their keys and passes over the others.
    let old = |line: &str, keys: &[&str]| -> Vec<String> {
        let find =
            |key: &&str| line.split_ascii_whitespace().find_map(|f| f.strip_prefix(*key)?.strip_prefix('='));
        keys.iter().filter_map(find).map(str::to_owned).collect()
    };
    let keys = ["id", "bytes", "rootfs", "fetch", "table", "table-bytes", "chunk-bytes"];
    assert_eq!(old(&line, &keys), [&one, "651000000", "4444", "4445", &two, "184", "4096"]);
    let keys = ["serial", "disk", "root", "card", "paths"];
    assert_eq!(old(&hello, &keys), ["10000000abcdef01", "31914983424", "31864651776", &one, "stream+image"]);
    // The servers of revision 0 take lines of 640 bytes.
    assert!(hello.len() < 640 && committed.len() < 640);
}

/// The bytes that revision 2 adds, after those of revision 1. Repair the code, never this test.
#[test]
fn golden_bytes_of_revision_2() {
    let before = "PIMAN/1 hello serial=cafe mac=- model=- agent=0.2.0 disk=1 root=1 card=- paths=stream rev=2 can=answer";
    for (word, found) in [
        ("blank", Found::Blank),
        ("ours", Found::Ours),
        ("incomplete", Found::Incomplete),
        ("damaged", Found::Damaged),
        ("foreign", Found::Foreign),
        ("unreadable", Found::Unreadable),
    ] {
        let line = format!("{before} found={word} print=00000000000000fe");
        let Report::Ours(Notice::Hello(hello)) = Report::parse(line.as_bytes()) else { panic!("no hello") };
        assert_eq!((hello.found, hello.print), (Some(found), Fingerprint::new(0xfe)));
        assert_eq!(hello.to_string(), line);
    }
    let disk = "PIMAN/1 disk text=gpt; p1 vfat \"bootfs\" 512 MiB; p2 ext4 \"rootfs\" 29 GiB, last mounted 2026-03-01";
    let notice = Report::parse(disk.as_bytes());
    let text = disk.split_once('=').unwrap().1;
    assert_eq!(notice, Report::Ours(Notice::Disk { text }));
    assert_eq!(Notice::Disk { text }.to_string(), disk);
    let long = Notice::Disk { text: &"x".repeat(1000) }.to_string();
    assert_eq!(long.len(), "PIMAN/1 disk text=".len() + TEXT_MAX);

    let more = More { erase: Fingerprint::new(0xfe), ..More::default() };
    let block = Command::Format(Some(Offer { image: None, more, ..offer() })).to_string();
    assert!(
        block.ends_with(" bytes=651000000 rootfs=4444 fetch=4445 erase=00000000000000fe\nEOM\n"),
        "{block}"
    );
    let wait = Command::Wait { seconds: 30, percent: 0, text: REASON }.to_string();
    let want = "PIMAN/1 wait seconds=30 percent=0 text=foreign disk: decide with `piman install cafe`\nEOM\n";
    assert_eq!(wait, want);
}
