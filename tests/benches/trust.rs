//! What it costs to know who is who: decisions on one core, with the Pi's marks checked and the order signed, beside
//! the same lines without; and the bytes that are added to a greeting and to an order.

use std::time::Instant;

use piman_core::blocking;
use piman_core::install::drive;
use piman_core::install::trust::{
    Certificate, DeviceKey, Floor, Nonce, PiTrust, PublicKey, Root, ServerKey, ServerTrust,
};
use piman_core::install::{Can, Clock, Command, Date, Decision, Hello, Offer, Report, Start};
use piman_core::line::LINE_MAX;
use piman_tests::bench::median;
use piman_tests::memory::Script;

const DECISIONS: u32 = 5_000;
const ROUNDS: usize = 7;
const CLOCK: Clock = Clock { seconds: 1_800_000_000, nanos: 5 };

/// A Pi that does nothing.
struct Still;

impl drive::Pi for Still {
    async fn set_date(&mut self, _: Date) -> bool {
        false
    }
    fn addresses(&mut self, _: &mut impl std::fmt::Write) {}
    async fn wipe(&mut self) -> bool {
        false
    }
}

fn main() {
    // The secret and public key of RFC 8032, 7.1, test 1.
    let secret = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60\
                  d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let secret: Vec<u8> =
        (0..64).map(|n| u8::from_str_radix(&secret[2 * n..2 * n + 2], 16).expect("hex")).collect();
    let secret: [u8; 64] = secret.try_into().expect("64 bytes");
    let root = Root::new(PublicKey(secret[32..].try_into().expect("32 bytes")));
    let key = ServerKey::new([9; 32], None).expect("a key").public();
    let certificate = Certificate::sign(key, u64::MAX, (1, 0), &secret);
    let key = ServerKey::new([9; 32], Some(certificate)).expect("a key");
    let offer = Offer { bytes: 500_000_000, rootfs_port: 4444, fetch_port: 4445, ..Offer::default() };
    let order = Command::Format(Some(offer));

    let hello = Hello {
        serial: Some("10000000abcdef01"),
        can: Can { answer: true, signed: true, ..Can::default() },
        ..Hello::default()
    };
    let start = Start { hello: Some(hello), disk: Some("MBR table, 2 partitions"), installed: false };
    let pi = || {
        PiTrust::new(
            Nonce([4; 16]),
            DeviceKey::new([4; 32]).map(|key| (key, true)),
            Some(root),
            Floor::default(),
        )
    };
    let talk = |answers: &str| {
        let mut io = Script::new(answers.as_bytes(), usize::MAX);
        let mut buf = [0; LINE_MAX];
        let decided = blocking::run(drive::run_trusted(&mut io, &mut buf, &start, &mut Still, &mut pi()));
        (decided, String::from_utf8(io.output).expect("text"))
    };
    // What is said and answered, once, to be said again.
    let (_, greeting) = talk("");
    let lines: Vec<&str> = greeting.lines().take_while(|line| line.starts_with("PIMAN/1")).collect();
    let heard = |lines: &[&str]| {
        let mut trust = ServerTrust::begin(lines[0].as_bytes(), || Nonce([7; 16])).expect("the first line");
        for line in &lines[1..] {
            let _ = trust.hear(line.as_bytes(), &key);
        }
        trust
    };
    let answer = Command::Hello { clock: None };
    let text = format!("{}{answer}", heard(&lines).head(&answer, CLOCK, &key));
    let (_, said) = talk(&text);
    let said: Vec<&str> = said.lines().collect();
    let trust = heard(&said);
    assert!(trust.is_proven(), "{said:?}");
    let signature = trust.head(&order, CLOCK, &key);
    let (decided, _) = talk(&format!("{text}{signature}{order}"));
    assert!(matches!(decided, Ok(Decision::Format(Some(_)))), "{decided:?}");

    let signed = || {
        let trust = heard(&said);
        assert!(trust.is_proven());
        let answer = trust.head(&answer, CLOCK, &key);
        answer.len() + trust.head(&order, CLOCK, &key).len() + order.to_string().len()
    };
    let plain = || {
        said.iter()
            .map(|line| usize::from(matches!(Report::parse(line.as_bytes()), Report::Ours(_))))
            .sum::<usize>()
            + order.to_string().len()
    };
    println!("| decisions a second on one core | |");
    println!("|---|---|");
    println!("| signed, the Pi proven | {:.0} |", rate(&signed));
    println!("| the same lines and the order, neither | {:.0} |", rate(&plain));
    println!(
        "| bytes added by the Pi: before its greeting, and to a line | {}, {} |",
        said[0].len() + 1,
        said[said.len() - 2].len() + 1
    );
    println!(
        "| bytes added by the server: to its answer, and to an order | {}, {} |",
        text.lines().next().map_or(0, str::len) + 1,
        signature.len()
    );
}

/// How often something is done in a second: the median of some rounds.
fn rate(work: &dyn Fn() -> usize) -> f64 {
    let round = || {
        let began = Instant::now();
        for _ in 0..DECISIONS {
            std::hint::black_box(work());
        }
        f64::from(DECISIONS) / began.elapsed().as_secs_f64()
    };
    median((0..ROUNDS).map(|_| round()).collect())
}
