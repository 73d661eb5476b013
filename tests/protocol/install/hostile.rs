//! A Pi with a public key in conversations with anybody: nothing is done that its server has not signed, for it, now.

use std::collections::HashSet;

use piman_core::blocking;
use piman_core::error::{Error, PeerError};
use piman_core::install::drive::{self, Pi};
use piman_core::install::trust::{
    Certificate, DeviceKey, Floor, Nonce, PiTrust, PublicKey, Root, ServerKey, ServerTrust,
};
use piman_core::install::{Can, Clock, Command, Date, Decision, Hello, Notice, Start};
use piman_core::line::LINE_MAX;
use piman_tests::chance::Random;
use piman_tests::memory::Script;

use super::offer;

pub(super) const NOW: u64 = 1_800_000_000;
/// How many conversations there are.
const CONVERSATIONS: usize = 10_000;

/// A Pi on which nothing may happen before it has decided.
struct Untouched;

impl Pi for Untouched {
    async fn set_date(&mut self, date: Date) -> bool {
        panic!("its clock is set to {date}");
    }
    async fn set_clock(&mut self, clock: Clock) -> bool {
        panic!("its clock is set to {clock:?}");
    }
    fn addresses(&mut self, _: &mut impl std::fmt::Write) {
        panic!("it says where it is");
    }
    async fn wipe(&mut self) -> bool {
        panic!("it is wiped");
    }
}

/// The key pair that certifies: the one of the test vectors of RFC 8032, 7.1, test 1.
fn signer() -> ([u8; 64], Root) {
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    let seed = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
    let public = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
    let public: [u8; 32] = public.try_into().unwrap();
    let secret: [u8; 64] = [seed, public.to_vec()].concat().try_into().unwrap();
    (secret, Root::new(PublicKey(public)))
}

pub(super) fn server(n: u8, until: u64) -> ServerKey {
    let key = ServerKey::new([n; 32], None).unwrap().public();
    let certificate = Certificate::sign(key, until, (7, 3), &signer().0);
    ServerKey::new([n; 32], Some(certificate)).unwrap()
}

fn hello(serial: &str) -> Hello<'_> {
    Hello {
        serial: Some(serial),
        can: Can { answer: true, signed: true, ..Can::default() },
        ..Hello::default()
    }
}

/// What the Pi says first, as bytes.
fn greeting(nonce: u8, key: u8, serial: &str) -> Vec<String> {
    let key = DeviceKey::new([key; 32]).unwrap().public();
    let nonce = format!("{nonce:02x}").repeat(16);
    vec![format!("PIMAN/1 trust nonce={nonce} key={key} kept=1"), Notice::Hello(hello(serial)).to_string()]
}

/// What a server answers to this greeting and report: its lines, and for each order the lines that are signed.
fn said(key: &ServerKey, greeting: &[String], report: &str, at: u64) -> (Vec<String>, Vec<Vec<String>>) {
    let mut trust = ServerTrust::begin(greeting[0].as_bytes(), || Nonce([77; 16])).unwrap();
    for line in greeting[1..].iter().map(String::as_str).chain([report]) {
        let _ = trust.hear(line.as_bytes(), key);
    }
    let clock = Clock { seconds: at, nanos: 5 };
    let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let answer = Command::Hello { clock: None };
    let answer = lines(format!("{}{answer}", trust.head(&answer, clock, key)));
    let orders = [Command::Boot, Command::Format(None), Command::Format(Some(offer()))];
    let orders = orders.iter().map(|order| lines(format!("{}{order}", trust.head(order, clock, key))));
    (answer, orders.collect())
}

/// Runs the Pi against what is said to it.
fn hears(lines: &[String], chop: usize) -> Result<Decision, Error<std::convert::Infallible>> {
    let text = lines.join("\n") + "\n";
    let mut io = Script::new(text.as_bytes(), chop);
    let key = DeviceKey::new([4; 32]).unwrap();
    let mut trust = PiTrust::new(Nonce([4; 16]), Some((key, true)), Some(signer().1), Floor::default());
    let start = Start { hello: Some(hello("10000000cafe00a1")), disk: None, installed: true };
    let mut buf = [0; LINE_MAX];
    blocking::run(drive::run_trusted(&mut io, &mut buf, &start, &mut Untouched, &mut trust))
}

#[test]
fn in_ten_thousand_conversations_nothing_happens_that_is_not_signed() {
    let good = server(9, NOW + 1000);
    let mine = greeting(4, 4, "10000000cafe00a1");
    let (answer, orders) = said(&good, &mine, "IS_INSTALLED", NOW);
    // What is right is taken.
    for (order, decision) in
        orders.iter().zip([Decision::Boot, Decision::Format(None), Decision::Format(Some(offer()))])
    {
        let lines = [answer.clone(), order.clone()].concat();
        assert_eq!(hears(&lines, 7).unwrap(), decision);
    }
    let right: HashSet<String> = orders.iter().map(|order| order.join("\n")).collect();

    // What others say: replays, orders to others, orders of others, and what anybody can say.
    let mut pool: Vec<Vec<String>> = orders.clone();
    pool.push(answer.clone());
    for (key, greeting, report, at) in [
        (&good, greeting(5, 4, "10000000cafe00a1"), "IS_INSTALLED", NOW),
        (&good, greeting(4, 4, "10000000cafe00b2"), "IS_INSTALLED", NOW),
        (&good, greeting(4, 5, "10000000cafe00a1"), "IS_INSTALLED", NOW),
        (&good, mine.clone(), "IS_UNINSTALLED", NOW),
        (&good, mine.clone(), "IS_INSTALLED", NOW + 1000),
        (&server(9, NOW), mine.clone(), "IS_INSTALLED", NOW),
        (&ServerKey::new([8; 32], None).unwrap(), mine.clone(), "IS_INSTALLED", NOW),
    ] {
        let (answer, orders) = said(key, &greeting, report, at);
        pool.push(answer);
        pool.extend(orders);
    }
    for line in [
        "boot",
        "format",
        "reinstall",
        "ip",
        "EOM",
        "",
        "busybox date -s 202603090807.05",
        "PIMAN/1 wait seconds=1 percent=3",
        "PIMAN/1 personal personal=00 fetch=1",
        "PIMAN/1 signed seconds=1 nanos=1 sig=00",
        "PIMAN/1 trust nonce=00",
        "\u{7}",
    ] {
        pool.push(vec![line.into()]);
    }
    let mut random = Random::new(15);
    let (mut decided, mut refused) = (0, 0);
    for _ in 0..CONVERSATIONS {
        let mut lines = Vec::new();
        if !random.one_in(4) {
            lines.extend(answer.clone());
        }
        for _ in 0..=random.below(4) {
            let part = &pool[random.below(pool.len() as u64) as usize];
            // Some lines of it, or all.
            let from = if random.one_in(3) { random.below(part.len() as u64) as usize } else { 0 };
            lines.extend(part[from..].iter().cloned());
        }
        if random.one_in(3) {
            change(&mut lines, &mut random);
        }
        let done = hears(&lines, 1 + random.below(300) as usize);
        match done {
            Ok(decision) => {
                decided += 1;
                let text = lines.join("\n");
                assert!(right.iter().any(|order| text.contains(order.as_str())), "{decision:?} by {text}");
            }
            Err(Error::Peer(PeerError::NotTrusted)) => refused += 1,
            Err(_) => {}
        }
    }
    assert!(
        decided > 100 && refused > 1000,
        "{decided} decided, {refused} refused: the conversations are no test"
    );
}

/// Changes something somewhere.
fn change(lines: &mut Vec<String>, random: &mut Random) {
    let at = random.below(lines.len() as u64) as usize;
    match random.below(4) {
        0 => _ = lines.remove(at),
        1 => lines.push(lines[at].clone()),
        2 => {
            let other = random.below(lines.len() as u64) as usize;
            lines.swap(at, other);
        }
        _ => {
            let mut bytes = lines[at].clone().into_bytes();
            if bytes.is_empty() {
                return;
            }
            let byte = random.below(bytes.len() as u64) as usize;
            bytes[byte] = b'0' + random.below(10) as u8;
            lines[at] = String::from_utf8_lossy(&bytes).into_owned();
        }
    }
}
