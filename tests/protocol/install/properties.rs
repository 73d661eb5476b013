//! What holds for any bytes, any plan and any report.

use std::fmt::Write as _;

use piman_core::blocking;
use piman_core::hash::Hash;
use piman_core::install::drive::run;
use piman_core::install::fetch::{Answer, Request};
use piman_core::install::summing::ChunkHashes;
use piman_core::install::table::Table;
use piman_core::install::{
    Agent, AgentStep, BootPersonal, Command, Date, Decision, Event, Fingerprint, Found, Hello, ImageOffer,
    InstallPolicy, Installation, More, Notice, Offer, Personal, Plan, Question, Report, Session, Stage,
    Start, Step,
};
use piman_core::line::{Framer, LINE_MAX, TooLong};
use piman_tests::memory::Script;
use proptest::prelude::*;

use super::{Card, Lab, offer};

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
