//! The install service in memory: dialogues as old and new peers speak, at every chop of the
//! bytes, and both sides against each other.

mod golden;
mod hostile;
mod properties;
mod trusted_script;

use piman_core::blocking;
use piman_core::hash::Hash;
use piman_core::install::drive::{self, run, serve};
use piman_core::install::{
    Command, Date, Decision, Event, Hello, ImageOffer, InstallPolicy, Offer, Paths, Plan, Question, Report,
    Start,
};
use piman_core::line::LINE_MAX;
use piman_tests::memory::{ROOM, Script, World};

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
