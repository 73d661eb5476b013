use super::*;
use crate::install::Report;
use std::string::{String, ToString};

#[test]
fn notices_and_back() {
    let hello = Hello {
        serial: Some("10000000abcdef01"),
        mac: Some("b8:27:eb:00:00:01"),
        model: Some("Raspberry_Pi_4"),
        agent: Some("0.1.0"),
        disk_bytes: 31_914_983_424,
        root_bytes: 31_864_651_776,
        card: Some(Hash([0xab; 32])),
        paths: Paths { stream: true, image: true },
        ..Hello::default()
    };
    let newer = Hello {
        revision: REVISION,
        card_id: Some("02544d53413136471087f2b1c0011700"),
        installation: Some(Installation(0xfeed)),
        can: Can { signed: true, ..Can::default() },
        found: Some(Found::Foreign),
        print: Fingerprint::new(0xdead),
        ..hello
    };
    for notice in [
        Notice::Hello(hello),
        Notice::Hello(newer),
        Notice::Hello(Hello::default()),
        Notice::Progress { stage: Stage::Transfer, done: 7, total: u64::MAX },
        Notice::Committed { id: Hash([1; 32]), installation: None },
        Notice::Committed { id: Hash([1; 32]), installation: Some(Installation(u64::MAX)) },
        Notice::Disk { text: "gpt; p1 vfat \"bootfs\" 512 MiB; p2 ext4 text=x" },
        Notice::Failed { stage: Stage::Disk, text: "no card: put one in, text=really" },
    ] {
        let line = notice.to_string();
        assert!(line.len() < crate::line::LINE_MAX);
        assert_eq!(Report::parse(line.as_bytes()), Report::Ours(notice), "{line}");
    }
}

#[test]
fn what_people_see_is_one_harmless_line() {
    for bad in ["", "1", "00000000000000001", "+000000000000001", "000000000000000g"] {
        assert_eq!(Installation::parse(bad), None, "{bad}");
    }
    let hello = Hello { model: Some(" Raspberry Pi\n\u{7}4 é"), serial: Some(""), ..Hello::default() };
    let line = Notice::Hello(hello).to_string();
    assert!(line.contains("model=Raspberry_Pi_?4_? ") && line.contains("serial=- "), "{line}");
    let long = "é\n".repeat(1000);
    let line = Notice::Failed { stage: Stage::Sync, text: &long }.to_string();
    assert!(line.len() < TEXT_MAX + 64 && !line.contains('\n'));
}

#[test]
fn another_version_is_noise() {
    for line in ["PIMAN/2 hello", "PIMAN/1", "PIMAN/1 dance", "PIMAN/1hello", "PIMAN/1 committed id=12"] {
        assert_eq!(Report::parse(line.as_bytes()), Report::Noise(line.as_bytes()));
    }
    let long = String::from("PIMAN/1 hello serial=") + &"x".repeat(65);
    assert_eq!(Report::parse(long.as_bytes()), Report::Ours(Notice::Hello(Hello::default())));
}

#[test]
fn what_an_agent_found() {
    for (fields, found, print) in [
        ("", None, None),
        (" found=-", None, None),
        (" found=blank print=0000000000000000", Some(Found::Blank), None),
        (" found=foreign print=00000000000000FF", Some(Found::Foreign), Fingerprint::new(255)),
        (" found=foreign print=ff", Some(Found::Foreign), None),
        // A newer agent may know more kinds.
        (" found=encrypted", Some(Found::Foreign), None),
    ] {
        let line = std::format!("PIMAN/1 hello rev=2{fields}");
        let Report::Ours(Notice::Hello(hello)) = Report::parse(line.as_bytes()) else { panic!("{line}") };
        assert_eq!((hello.found, hello.print), (found, print), "{line}");
    }
    for found in Found::ALL {
        assert_eq!(Found::from_word(found.word()), Some(found));
    }
}

#[test]
fn offers_and_back() {
    let mut offer = Offer {
        id: Hash([9; 32]),
        bytes: 651 << 20,
        rootfs_port: 4444,
        fetch_port: 4445,
        ..Offer::default()
    };
    let more = More {
        revision: REVISION,
        sums_chunk: 1 << 20,
        manifest_bytes: 700,
        unpacked_bytes: 1 << 31,
        entries: 34_878,
        counter: 1_795_231_447,
        installation: Some(Installation(1)),
        erase: Fingerprint::new(1),
        personal: Some(Personal { hash: Hash([8; 32]), bytes: 8 << 20 }),
        boot_bytes: 512 << 20,
    };
    let image =
        ImageOffer { table: Hash([7; 32]), table_bytes: 28_000, chunk_bytes: 1 << 33, whole_disk: true };
    for (image, more) in [(None, More::default()), (Some(image), More::default()), (Some(image), more)] {
        (offer.image, offer.more) = (image, more);
        let line = offer.to_string();
        let (verb, fields) = split(line.as_bytes()).unwrap();
        let mut read = None;
        Offer::read(fields, &mut read);
        assert_eq!((verb, read), (&b"offer"[..], Some(offer)));
    }
}
