use super::*;
use crate::install::guard::{Guard, Heard};
use crate::install::trust::{DeviceKey, Floor, PiTrust, Refusal, Root};
use crate::install::{Hello, Start};
use crate::text::Piece;
use std::string::String;
use std::vec::Vec;

const NOW: u64 = 1_800_000_000;

fn signer(n: u8) -> KeyPair {
    KeyPair::from_seed(Seed::new([n; 32]))
}

fn root() -> Root {
    Root::new(PublicKey(*signer(1).pk))
}

fn server(n: u8, until: u64, counter: (u64, u64)) -> ServerKey {
    let key = ServerKey::new([n; 32], None).unwrap().public();
    ServerKey::new([n; 32], Some(Certificate::sign(key, until, counter, &signer(1).sk))).unwrap()
}

fn good() -> ServerKey {
    server(9, NOW + 1000, (5, 0))
}

struct Talk {
    pi: PiTrust,
    server: ServerTrust,
    key: ServerKey,
}

/// A talk up to the report.
fn talk(pi: PiTrust, key: ServerKey, serial: &str) -> Talk {
    let mut pi = pi;
    let hello = Hello { serial: Some(serial), ..Hello::default() };
    let start = Start { hello: Some(hello), disk: Some("MBR table"), installed: true };
    pi.greet(&start);
    let mut line = Piece::new();
    line.fill(&mut |to| pi.write_line(to));
    let (mut whole, mut piece) = (Vec::new(), Piece::new());
    while piece.fill(&mut |to| pi.write_line(to)) {
        whole.extend_from_slice(piece.bytes());
    }
    let mut server = ServerTrust::begin(&whole, || Nonce([3; 16])).unwrap();
    for notice in [Notice::Hello(hello), Notice::Disk { text: "MBR table" }] {
        assert_eq!(server.hear(std::format!("{notice} ").as_bytes(), &key), Said::Plain);
    }
    let answer = server.head(&Command::Hello { clock: None }, clock(NOW), &key);
    assert_eq!(pi.hear(answer.as_bytes()), Heard::Take);
    pi.reported("IS_INSTALLED");
    Talk { pi, server, key }
}

fn clock(seconds: u64) -> Clock {
    Clock { seconds, nanos: 7 }
}

fn pi(n: u8) -> PiTrust {
    let key = DeviceKey::new([n; 32]).unwrap();
    PiTrust::new(Nonce([n; 16]), Some((key, true)), Some(root()), Floor::default())
}

impl Talk {
    /// The Pi says a line, which is changed on its way; what the server makes of it.
    fn say(&mut self, word: &'static str, change: impl Fn(&str) -> Vec<String>) -> Vec<Said> {
        let mut lines = Vec::new();
        if let Some(mark) = self.pi.mark(&mut |to| to.put_all(std::format!("{word}\n").as_bytes())) {
            let mut piece = Piece::new();
            piece.fill(&mut |to| PiTrust::write_mark(to, &mark));
            lines.push(String::from_utf8(piece.bytes().to_vec()).unwrap());
        }
        lines.push(word.into());
        let lines = lines.iter().flat_map(|line| change(line));
        lines.map(|line| self.server.hear(line.as_bytes(), &self.key)).collect()
    }

    fn report(&mut self) {
        assert_eq!(self.say("IS_INSTALLED", same), [Said::Consumed, Said::Vouched]);
        assert!(self.server.is_proven());
    }

    /// What the server sends with a command.
    fn order(&mut self, command: &Command<'_>) -> Vec<String> {
        let head = self.server.head(command, clock(NOW), &self.key);
        std::format!("{head}{command}").lines().map(Into::into).collect()
    }

    /// What the Pi makes of the last of these lines.
    fn hear<'a>(&mut self, lines: impl IntoIterator<Item = &'a String>) -> Heard {
        lines.into_iter().fold(Heard::Take, |_, line| self.pi.hear(line.as_bytes()))
    }
}

fn same(line: &str) -> Vec<String> {
    std::vec![line.into()]
}

#[test]
fn both_are_proven() {
    let mut talk = talk(pi(4), good(), "a1");
    assert_eq!(talk.server.claim().map(|claim| claim.is_kept), Some(true));
    talk.report();
    for command in
        [Command::Boot, Command::Format(None), Command::Wait { seconds: 1, percent: 2, text: "why" }]
    {
        let lines = talk.order(&command);
        assert_eq!(talk.hear(&lines), Heard::Take, "{lines:?}");
        assert_eq!(talk.pi.clock(), Some(clock(NOW)));
    }
    assert_eq!(talk.pi.floor(), Floor { time: NOW, since: 0 });
    for word in ["RECEIVED_BOOT", "IS_FORMATTED"] {
        assert_eq!(talk.say(word, same), [Said::Consumed, Said::Vouched]);
    }
}

#[test]
fn nothing_that_was_changed_counts_for_a_server() {
    for (change, what) in [
        (
            &(|line: &str| std::vec![line.replace("IS_INSTALLED", "IS_UNINSTALLED")])
                as &dyn Fn(&str) -> Vec<String>,
            "changed",
        ),
        (&|line: &str| std::vec![line.replace("mac=", "mac=00")], "longer"),
        (&|line: &str| std::vec![line.replace(" mac=", " mac=-")], "no mark"),
    ] {
        let mut talk = talk(pi(4), good(), "a1");
        let said = talk.say("IS_INSTALLED", change);
        assert!(!said.contains(&Said::Vouched) && !talk.server.is_proven(), "{what}: {said:?}");
    }
    // Another Pi has another key, and a line counts once.
    let (mut one, mut other) = (talk(pi(4), good(), "a1"), talk(pi(5), good(), "a1"));
    one.report();
    let mut lines = Vec::new();
    let mark = other.pi.mark(&mut |to| to.put_all(b"IS_INSTALLED\n")).unwrap();
    let mut piece = Piece::new();
    piece.fill(&mut |to| PiTrust::write_mark(to, &mark));
    lines.push(String::from_utf8(piece.bytes().to_vec()).unwrap());
    lines.push(String::from("IS_INSTALLED"));
    let said: Vec<Said> = lines.iter().map(|line| one.server.hear(line.as_bytes(), &one.key)).collect();
    assert_eq!(said, [Said::Consumed, Said::Forged]);
    assert_eq!(
        one.say("IS_FORMATTED", |line| std::vec![line.into(), line.into()]).last(),
        Some(&Said::Plain)
    );
}

#[test]
fn a_greeting_that_was_changed_is_noticed_by_both() {
    let mut talk = talk(pi(4), good(), "a1");
    // The server has read another one.
    let line = std::format!(
        "PIMAN/1 trust nonce={} key={}",
        "04".repeat(16),
        DeviceKey::new([4; 32]).unwrap().public()
    );
    let mut server = ServerTrust::begin(line.as_bytes(), || Nonce([3; 16])).unwrap();
    let hello = Hello { serial: Some("b2"), ..Hello::default() };
    let _ = server.hear(std::format!("{}", Notice::Hello(hello)).as_bytes(), &talk.key);
    talk.server = server;
    assert_eq!(talk.say("IS_INSTALLED", same), [Said::Consumed, Said::Forged]);
    let _ = talk.server.hear(b"IS_INSTALLED", &talk.key);
    let lines = talk.order(&Command::Format(None));
    assert_eq!(talk.hear(&lines), Heard::Refuse);
    assert_eq!(talk.pi.refusal(), Some(Refusal::WrongSignature));
}

#[test]
fn orders_that_are_not_for_this_pi_and_this_connection() {
    let orders = |nonce: u8, serial: &str, command| {
        let mut other = talk(pi(nonce), good(), serial);
        other.report();
        other.order(command)
    };
    for lines in [orders(5, "a1", &Command::Boot), orders(4, "b2", &Command::Boot)] {
        let mut talk = talk(pi(4), good(), "a1");
        talk.report();
        assert_eq!(talk.hear(&lines), Heard::Refuse);
        assert_eq!(talk.pi.refusal(), Some(Refusal::WrongSignature));
    }
    // The signature of one order, and another order.
    let format = orders(4, "a1", &Command::Format(None));
    let boot = orders(4, "a1", &Command::Boot);
    for lines in [
        std::vec![&format[0], &boot[1], &boot[2]],
        std::vec![&boot[0], &boot[1], &format[1], &boot[2]],
        std::vec![&boot[1], &boot[2]],
        std::vec![&boot[1], &boot[0], &boot[2]],
        std::vec![&boot[0], &boot[2]],
    ] {
        let mut talk = talk(pi(4), good(), "a1");
        talk.report();
        assert_ne!(talk.hear(lines.clone()), Heard::Take, "{lines:?}");
    }
    // It answers another report.
    let mut talk = talk(pi(4), good(), "a1");
    talk.report();
    talk.pi.reported("IS_UNINSTALLED");
    let lines = talk.order(&Command::Boot);
    assert_eq!(talk.hear(&lines), Heard::Refuse);
}

#[test]
fn servers_that_may_not_order_anything() {
    let rogue = ServerKey::new([8; 32], None).unwrap().public();
    let of_another = Certificate::sign(rogue, NOW + 1000, (5, 0), &signer(2).sk);
    let floor = Floor { time: NOW, since: 6 };
    let key = DeviceKey::new([4; 32]).unwrap();
    let late = PiTrust::new(Nonce([4; 16]), Some((key, true)), Some(root()), floor);
    for (pi, key, refusal) in [
        (pi(4), ServerKey::new([8; 32], None).unwrap(), Refusal::Unsigned),
        (pi(4), ServerKey::new([8; 32], Some(of_another)).unwrap(), Refusal::WrongCertificate),
        (pi(4), server(9, NOW, (5, 0)), Refusal::Expired { until: NOW }),
        (pi(4), server(9, NOW + 9, (5, 6)), Refusal::Revoked),
        (late, good(), Refusal::Revoked),
    ] {
        let mut talk = talk(pi, key, "a1");
        talk.report();
        let lines = talk.order(&Command::Boot);
        assert_eq!(talk.hear(&lines), Heard::Refuse, "{refusal:?}");
        let want = if refusal == Refusal::Unsigned { Refusal::NoCertificate } else { refusal };
        assert_eq!(talk.pi.refusal(), Some(want));
    }
    // Its clock is set back.
    let key = DeviceKey::new([4; 32]).unwrap();
    let floor = Floor { time: NOW + 1000, since: 0 };
    let mut talk = talk(PiTrust::new(Nonce([4; 16]), Some((key, true)), Some(root()), floor), good(), "a1");
    talk.report();
    let lines = talk.order(&Command::Boot);
    assert_eq!(talk.hear(&lines), Heard::Refuse);
    assert_eq!(talk.pi.refusal(), Some(Refusal::Expired { until: NOW + 1000 }));
}

#[test]
fn a_pi_without_a_root_takes_what_it_always_took() {
    let key = DeviceKey::new([4; 32]).unwrap();
    let pi = PiTrust::new(Nonce([4; 16]), Some((key, false)), None, Floor::default());
    let mut talk = talk(pi, ServerKey::new([8; 32], None).unwrap(), "a1");
    talk.report();
    let lines = talk.order(&Command::Format(None));
    assert_eq!(lines, ["format", "EOM"]);
    assert_eq!(talk.hear(&lines), Heard::Take);
    assert_eq!(talk.pi.clock(), None);
}

#[test]
fn what_is_no_order_does_nothing() {
    let mut talk = talk(pi(4), good(), "a1");
    for line in
        ["busybox date -s 202603090807.05", "EOM", "ip", "PIMAN/1 hello rev=2 seconds=1 nanos=1", "rm"]
    {
        assert_eq!(talk.pi.hear(line.as_bytes()), Heard::Skip, "{line}");
    }
    // A second server does not take the place of the first.
    let rogue = ServerKey::new([8; 32], None).unwrap();
    let answer = talk.server.head(&Command::Hello { clock: None }, clock(NOW), &rogue);
    let _ = talk.pi.hear(answer.as_bytes());
    talk.report();
    let lines = talk.order(&Command::Boot);
    assert_eq!(talk.hear(&lines), Heard::Take);
}
