//! The install service in memory: dialogues as old and new peers speak, at every chop of the
//! bytes, both sides against each other, golden bytes, and properties of all parsers.

use std::fmt::Write as _;

use piman_core::blocking;
use piman_core::hash::Hash;
use piman_core::install::drive::{self, run, serve};
use piman_core::install::fetch::{Answer, Request};
use piman_core::install::summing::ChunkHashes;
use piman_core::install::table::Table;
use piman_core::install::{
    Agent, AgentStep, BootPersonal, Can, Command, Date, Decision, Event, Fingerprint, Found, Hello,
    ImageOffer, InstallPolicy, Installation, More, Notice, Offer, Paths, Personal, Plan, Question, Report,
    Session, Stage, Start, Step, TEXT_MAX,
};
use piman_core::line::{Framer, LINE_MAX, TooLong};
use piman_tests::memory::{ROOM, Script, World};
use proptest::prelude::*;

/// Why Pis wait here.
const REASON: &str = "foreign disk: decide with `piman install cafe`";

struct Lab {
    ordered: bool,
    plan: Plan,
    notes: Vec<String>,
}

impl Lab {
    fn new(plan: Plan) -> Self {
        Self { ordered: false, plan, notes: Vec::new() }
    }
}

impl InstallPolicy for Lab {
    fn decide(&mut self, question: &Question) -> Plan {
        if question.installed && !self.ordered { Plan::Boot } else { self.plan }
    }
    fn reason(&self) -> &str {
        REASON
    }
    fn note(&mut self, event: Event<'_>) {
        if !matches!(event, Event::Noise(_)) {
            self.notes.push(format!("{event:?}"));
        }
    }
}

fn offer() -> Offer {
    let image = Some(ImageOffer {
        table: Hash([0x22; 32]),
        table_bytes: 96 + 88,
        chunk_bytes: 4096,
        whole_disk: false,
    });
    Offer {
        id: Hash([0x11; 32]),
        bytes: 651_000_000,
        rootfs_port: 4444,
        fetch_port: 4445,
        image,
        ..Offer::default()
    }
}

/// What the server answers to these bytes, and what it noted, the same at every chop.
fn dialogue(said: &[u8], date: Option<Date>, ordered: bool) -> (String, Vec<String>) {
    let once = |chop| {
        let mut lab = Lab { ordered, ..Lab::new(Plan::Format(Some(offer()))) };
        let mut script = Script::new(said, chop);
        blocking::run(serve(&mut script, &mut [0; LINE_MAX], date, &mut lab)).unwrap();
        (String::from_utf8(script.output).unwrap(), lab.notes)
    };
    let whole = once(usize::MAX);
    for chop in (1..40).chain([64, 1000, 1023, 1024, 1025]) {
        assert_eq!(once(chop), whole, "in pieces of {chop}");
    }
    whole
}

#[test]
fn the_shell_script_with_tracing_on() {
    let said = b"+ send IS_UNINSTALLED\n+ echo IS_UNINSTALLED\nIS_UNINSTALLED\n\
        + read line\nformat\n+ send RECEIVED_FORMAT\nRECEIVED_FORMAT\n+ sfdisk /dev/mmcblk0\n\
        Writing superblocks and filesystem accounting information:  0/16\x08\x08\x08\x08\x08 1/16\r\n\
        /dev/mmcblk0p2 on /new_root type ext4 (rw,relatime)\n+ send IS_INSTALLED\nMOUNTING\nFINISHED_MOUNTING\n\
        IS_FORMATTED\nIS_UNINSTALLED\n";
    let date = Date::new(2026, 11, 21, 3, 24, 7);
    let (answer, notes) = dialogue(said, date, false);
    assert_eq!(answer, "busybox date -s 202611210324.07\nEOM\nformat\nEOM\n");
    let want = [
        "Found { installed: false }",
        "Format",
        "Milestone(ReceivedFormat)",
        "Milestone(Mounting)",
        "Milestone(FinishedMounting)",
        "Formatted",
    ];
    assert_eq!(notes, want, "what comes after the end does not count");
}

#[test]
fn the_test_client_that_reports_formatted_first() {
    let (answer, notes) = dialogue(b"IS_FORMATTED\r\n", None, false);
    assert_eq!((answer.as_str(), notes), ("", vec!["Formatted".to_owned()]));
}

#[test]
fn a_last_line_without_a_newline_counts() {
    assert_eq!(dialogue(b"IS_INSTALLED", None, false).0, "boot\nEOM\n");
    assert_eq!(dialogue(b"noise\r\n  IS_INSTALLED \t", None, true).0, "format\nEOM\n");
}

#[test]
fn lines_too_long_are_skipped_and_the_session_lives_on() {
    let mut said = vec![b'x'; 5000];
    said.extend_from_slice(b"IS_INSTALLED\nIS_INSTALLED\n");
    let (answer, notes) = dialogue(&said, None, false);
    assert_eq!(answer, "boot\nEOM\n");
    assert_eq!(notes, ["TooLong", "Found { installed: true }", "Boot"]);
}

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
    for ([signed, answer, disk, grow, personal], field) in [
        ([false, true, false, false, false], " can=answer"),
        ([true, true, false, false, false], " can=signed+answer"),
        ([false, true, true, false, false], " can=answer+disk"),
        ([true, true, true, false, false], " can=signed+answer+disk"),
        ([false, false, false, true, false], " can=grow"),
        ([false, false, false, false, true], " can=personal"),
        ([true; 5], " can=signed+answer+disk+grow+personal"),
        ([false; 5], ""),
    ] {
        let asks = Hello { can: Can { signed, answer, disk, grow, personal }, ..want };
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

/// Whatever the policy answers, its errors and its changes of mind included, only a plan to format formats, and
/// each report asks once.
struct Whims {
    plans: Vec<Plan>,
    asked: usize,
}

impl InstallPolicy for Whims {
    fn decide(&mut self, _: &Question) -> Plan {
        self.asked += 1;
        self.plans.pop().unwrap_or(Plan::Wait { seconds: 1, percent: 0 })
    }
    fn note(&mut self, _: Event<'_>) {}
}

fn any_plan() -> impl Strategy<Value = Plan> {
    prop_oneof![
        Just(Plan::Boot),
        Just(Plan::Personalise(BootPersonal {
            personal: Personal { hash: Hash([5; 32]), bytes: 17 },
            fetch_port: 4445,
            installation: None,
        })),
        Just(Plan::Format(None)),
        Just(Plan::Format(Some(offer()))),
        (any::<u16>(), any::<u8>()).prop_map(|(seconds, percent)| Plan::Wait { seconds, percent }),
        any::<u16>().prop_map(|seconds| Plan::Never { seconds }),
    ]
}

fn any_report() -> impl Strategy<Value = Report<'static>> {
    let hello =
        (prop::option::of(prop::sample::select(&Found::ALL[..])), any::<u64>()).prop_map(|(found, print)| {
            Report::Ours(Notice::Hello(Hello { found, print: Fingerprint::new(print), ..Hello::default() }))
        });
    prop_oneof![
        Just(Report::Installed),
        Just(Report::Uninstalled),
        Just(Report::Formatted),
        Just(Report::Ours(Notice::Disk { text: "gpt" })),
        Just(Report::Noise(b"format")),
        hello,
    ]
}

#[derive(Default)]
struct Card {
    date: Option<Date>,
    reason: Vec<u8>,
}

impl drive::Pi for Card {
    async fn set_date(&mut self, date: Date) -> bool {
        self.date = Some(date);
        true
    }
    fn addresses(&mut self, out: &mut impl std::fmt::Write) {
        let _ = out.write_str("172.30.1.10");
    }
    async fn wipe(&mut self) -> bool {
        true
    }
    fn waits(&mut self, reason: &[u8]) {
        self.reason.extend(reason);
    }
}

#[test]
fn both_sides_agree_at_every_chop() {
    let paths = Paths { stream: true, image: true };
    let hello = Hello { serial: Some("cafe"), paths, ..Hello::default() };
    let date = Date::new(2026, 1, 2, 3, 4, 5);
    for (installed, ordered, plan, want) in [
        (false, false, Plan::Format(Some(offer())), Decision::Format(Some(offer()))),
        (false, false, Plan::Format(None), Decision::Format(None)),
        (true, false, Plan::Format(None), Decision::Boot),
        (true, true, Plan::Format(Some(offer())), Decision::Format(Some(offer()))),
        (false, false, Plan::Wait { seconds: 3, percent: 4 }, Decision::Wait { seconds: 3, percent: 4 }),
        (false, false, Plan::Never { seconds: 3 }, Decision::Never),
    ] {
        for chop in [1, 2, 3, 7, 64, 10_000] {
            let world = World::new();
            let (mut pi, mut server) = world.stream(ROOM, chop);
            let mut lab = Lab { ordered, ..Lab::new(plan) };
            let mut card = Card::default();
            let (decision, ended) = world.both(
                async {
                    let start = Start { hello: Some(hello), disk: Some("gpt; p1 ext4"), installed };
                    let decision = run(&mut pi, &mut [0; LINE_MAX], &start, &mut card).await;
                    drive::report(&mut pi, &Report::Formatted).await.unwrap();
                    drop(pi);
                    decision
                },
                async {
                    let ended = serve(&mut server, &mut [0; LINE_MAX], date, &mut lab).await;
                    drop(server);
                    ended
                },
            );
            assert_eq!((decision, ended), (Ok(want), Ok(())), "in pieces of {chop}");
            assert_eq!(card.date, date);
            let waits = matches!(want, Decision::Wait { .. } | Decision::Never);
            assert_eq!(card.reason, if waits { REASON.as_bytes() } else { b"" });
            assert!(lab.notes.contains(&"Disk(\"gpt; p1 ext4\")".to_owned()), "{:?}", lab.notes);
            assert!(lab.notes.contains(&"Formatted".to_owned()));
        }
    }
}

#[test]
fn a_cut_after_every_byte_is_an_error_of_the_agent_and_none_of_the_server() {
    let start = Start { hello: Some(Hello::default()), disk: None, installed: false };
    let block = Command::Format(Some(offer())).to_string();
    for cut in 1..block.len() {
        let world = World::new();
        let (mut pi, mut server) = world.stream(ROOM, 5);
        server.cut_after(cut);
        let mut lab = Lab::new(Plan::Format(Some(offer())));
        let (decision, _) = world.both(
            async {
                let decision = run(&mut pi, &mut [0; LINE_MAX], &start, &mut Card::default()).await;
                drop(pi);
                decision
            },
            async {
                // A peer that is gone is an error of the transport at most.
                let _ = serve(&mut server, &mut [0; LINE_MAX], None, &mut lab).await;
                drop(server);
            },
        );
        assert!(decision.is_err(), "cut after {cut} bytes: {decision:?}");
    }
}

/// All lines of a stream that comes in pieces of these sizes.
fn lines(bytes: &[u8], sizes: &[usize], room: usize) -> Vec<Result<Vec<u8>, TooLong>> {
    let mut buf = vec![0; room];
    let mut framer = Framer::new(&mut buf);
    let (mut rest, mut out) = (bytes, Vec::new());
    let mut sizes = sizes.iter().copied().cycle();
    loop {
        loop {
            match framer.next_line() {
                Ok(Some(line)) => out.push(Ok(line.to_vec())),
                Ok(None) => break,
                Err(e) => out.push(Err(e)),
            }
        }
        let spare = framer.spare();
        let n = sizes.next().unwrap_or(1).clamp(1, spare.len()).min(rest.len());
        if n == 0 {
            out.extend(framer.rest().map(|l| Ok(l.to_vec())));
            return out;
        }
        spare[..n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        framer.filled(n);
    }
}

/// Lines by the simplest means there are.
fn model(bytes: &[u8], room: usize) -> Vec<Result<Vec<u8>, TooLong>> {
    let mut out = Vec::new();
    let mut pieces: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        out.push(if piece.len() < room {
            Ok(piece.strip_suffix(b"\r").unwrap_or(piece).to_vec())
        } else {
            Err(TooLong)
        });
    }
    if last.len() >= room {
        out.push(Err(TooLong));
    } else if !last.is_empty() {
        out.push(Ok(last.strip_suffix(b"\r").unwrap_or(last).to_vec()));
    }
    out
}

/// Bytes in which newlines and words of the protocol are frequent.
fn talk() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"EOM\n".to_vec()),
        Just(b"IS_INSTALLED\n".to_vec()),
        Just(b"IS_UNINSTALLED\n".to_vec()),
        Just(b"format\n".to_vec()),
        Just(b"reinstall\n".to_vec()),
        Just(b"PIMAN/1 hello serial=".to_vec()),
        Just(b"PIMAN/1 offer id=".to_vec()),
        Just(b"boot\nPIMAN/1 personal personal=".to_vec()),
        Just(b"busybox date -s 2026".to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

fn hash() -> impl Strategy<Value = Hash> {
    any::<[u8; 32]>().prop_map(Hash)
}

fn more() -> impl Strategy<Value = More> {
    let personal =
        prop::option::of((hash(), any::<u32>()).prop_map(|(hash, bytes)| Personal { hash, bytes }));
    let numbers = (any::<u16>(), any::<[u32; 2]>(), any::<[u64; 4]>(), any::<Option<u64>>(), any::<u64>());
    (numbers, personal).prop_map(|((revision, [sums_chunk, manifest_bytes], sizes, n, erase), personal)| {
        let [unpacked_bytes, entries, counter, boot_bytes] = sizes;
        More {
            revision,
            sums_chunk,
            manifest_bytes,
            unpacked_bytes,
            entries,
            counter,
            installation: n.map(Installation),
            erase: Fingerprint::new(erase),
            personal,
            boot_bytes,
        }
    })
}

proptest! {
    #[test]
    fn only_a_plan_to_format_formats(reports in prop::collection::vec(any_report(), 1..20), plans in prop::collection::vec(any_plan(), 0..20)) {
        let mut whims = Whims { plans, asked: 0 };
        let mut session = Session::open(None).0;
        for report in reports {
            let (next, before) = (whims.plans.last().copied(), whims.asked);
            let step = session.handle(report, &mut whims);
            let formats = matches!(step, Step::Send(Command::Format(_)));
            prop_assert!(whims.asked - before <= 1, "asked twice about one moment");
            prop_assert!(!formats || whims.asked > before && matches!(next, Some(Plan::Format(_))), "{step:?} for {next:?}");
            let asks = matches!(report, Report::Installed | Report::Uninstalled);
            prop_assert!(asks || whims.asked == before);
        }
    }

    #[test]
    fn framing_ignores_how_the_stream_was_cut(bytes in talk(), sizes in prop::collection::vec(1_usize..50, 1..20), room in 1_usize..40) {
        prop_assert_eq!(lines(&bytes, &sizes, room), model(&bytes, room));
    }

    #[test]
    fn any_bytes_give_a_step_on_both_sides(bytes in talk(), ordered: bool) {
        let mut lab = Lab { ordered, ..Lab::new(Plan::Format(Some(offer()))) };
        let mut session = Session::open(None).0;
        let mut agent = Agent::new();
        for line in bytes.split(|b| *b == b'\n') {
            let report = Report::parse(line);
            let step = session.handle(report, &mut lab);
            prop_assert!(ordered || !matches!((report, step), (Report::Installed, Step::Send(Command::Format(_)))));
            if matches!(report, Report::Noise(_) | Report::Ours(_) | Report::Milestone(_)) {
                let harmless = matches!(step, Step::Read | Step::Send(Command::Hello { .. }));
                prop_assert!(harmless);
            }
            if let AgentStep::Unknown(unknown) = agent.handle(line) {
                prop_assert!(!unknown.is_empty());
            }
        }
    }

    #[test]
    fn tables_and_requests_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Table::parse(&bytes);
        let _ = Request::parse(&bytes);
        let _ = Answer::parse(&bytes);
        let _ = Date::parse(&bytes);
        let _ = ChunkHashes::parse(Hash([1; 32]), 5 << 20, &bytes);
    }

    /// Whatever a newer peer adds to a line, in whichever order, what is known is found, and at
    /// every chop of the bytes.
    #[test]
    fn unknown_fields_are_passed_over(more in more(), extra in prop::collection::vec(("[a-z]{1,8}", "[!-~]{0,30}"), 0..6), seed: u64, chop in 1_usize..60) {
        let offer = Offer { more, ..offer() };
        let line = offer.to_string();
        let (head, fields) = line.split_at(line.find("id=").unwrap());
        let known = ["id", "bytes", "rootfs", "fetch", "table", "rev", "sums", "unpacked", "entries", "counter", "resume", "erase"];
        let mut fields: Vec<String> = fields.split(' ').map(str::to_owned).collect();
        fields.extend(extra.iter().filter(|(k, _)| !known.contains(&k.as_str())).map(|(k, v)| format!("{k}={v}")));
        let mut random = seed;
        for i in (1..fields.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            fields.swap(i, (random >> 33) as usize % (i + 1));
        }
        let block = format!("format\n{head}{}\nEOM\n", fields.join(" "));
        let mut script = Script::new(block.as_bytes(), chop);
        let start = Start { hello: None, disk: None, installed: false };
        let decision = blocking::run(run(&mut script, &mut [0; LINE_MAX + 400], &start, &mut Card::default()));
        prop_assert_eq!(decision, Ok(Decision::Format(Some(offer))));
        // To a peer that knows nothing of ours each line is one that is no command.
        for line in block.lines().filter(|l| l.starts_with("PIMAN")) {
            prop_assert!(!["boot", "format", "reinstall", "ip", "EOM"].contains(&line.trim()));
        }
    }

    #[test]
    fn offers_reach_the_agent_as_they_were(id in hash(), bytes: u64, ports: (u16, u16), more in more(), image in prop::option::of((hash(), any::<u32>(), any::<u64>(), any::<bool>()))) {
        let image = image.map(|(table, table_bytes, chunk_bytes, whole_disk)| ImageOffer { table, table_bytes, chunk_bytes, whole_disk });
        let offer = Offer { id, bytes, rootfs_port: ports.0, fetch_port: ports.1, image, more };
        let block = Command::Format(Some(offer)).to_string();
        let mut agent = Agent::new();
        let mut decided = false;
        for line in block.lines() {
            let step = agent.handle(line.as_bytes());
            decided = matches!(step, AgentStep::Decided(_, Decision::Format(Some(o))) if *o == offer);
        }
        prop_assert!(decided);
    }

    #[test]
    fn whatever_a_pi_calls_itself_is_one_line(serial in ".{0,80}", model in ".{0,200}", text in ".{0,900}", disk: u64) {
        let hello = Hello { serial: Some(&serial), model: Some(&model), card_id: Some(&model), disk_bytes: disk, ..Hello::default() };
        for notice in [Notice::Hello(hello), Notice::Failed { stage: Stage::Disk, text: &text }] {
            let mut line = String::new();
            write!(line, "{notice}").unwrap();
            prop_assert!(line.len() < LINE_MAX && !line.contains(['\n', '\r']));
            let back = Report::parse(line.as_bytes());
            let same = matches!((back, notice), (Report::Ours(Notice::Hello(_)), Notice::Hello(_)) | (Report::Ours(Notice::Failed { .. }), Notice::Failed { .. }));
            prop_assert!(same, "{line}");
        }
    }

    #[test]
    fn dates_and_back(seconds in 0_u64..253_402_300_800) {
        // By a calendar of days alone: the day's number must grow by one from day to day.
        let (mut year, mut left) = (1970_u16, seconds / 86_400);
        let leap = |y: u16| y.is_multiple_of(4) && !y.is_multiple_of(100) || y.is_multiple_of(400);
        while left >= 365 + u64::from(leap(year)) {
            left -= 365 + u64::from(leap(year));
            year += 1;
        }
        let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut month = 1;
        for length in lengths {
            if left < length { break; }
            left -= length;
            month += 1;
        }
        let rest = seconds % 86_400;
        let date = Date::new(year, month, left as u8 + 1, (rest / 3600) as u8, (rest / 60 % 60) as u8, (rest % 60) as u8);
        let date = date.unwrap();
        prop_assert_eq!(date.seconds_since_1970(), seconds);
        prop_assert_eq!(Date::parse(date.to_string().as_bytes()), Some(date));
    }
}
