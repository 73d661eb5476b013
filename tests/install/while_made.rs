//! A Pi that has nothing to lose begins with an image that the server is still making.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use piman_core::hash::Hash;
use piman_core::install::fetch::{Answer, Kind, Request};
use piman_core::install::table::{Next, Table};
use piman_core::install::{Agent, AgentStep, Can, Decision, Hello, ImageOffer, Notice, Paths};
use piman_tests::server::{Server, connect_from};
use piman_tests::tar;

const ABLE: Can = Can { signed: false, answer: false, disk: false, grow: true, personal: false, early: true };

/// What the Pi with this number is offered now.
fn ask(server: &Server, number: u8, can: Can, installed: bool) -> Decision {
    let serial = format!("10000000cafe00{number:02x}");
    let hello = Hello {
        serial: Some(&serial),
        paths: Paths { stream: false, image: true },
        can,
        disk_bytes: 8 << 30,
        root_bytes: (8 << 30) - (48 << 20),
        revision: 2,
        ..Hello::default()
    };
    let report = if installed { "IS_INSTALLED" } else { "IS_UNINSTALLED" };
    let mut stream = connect_from([127, 0, 0, number], server.port("control"));
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(format!("{}\n{report}\n", Notice::Hello(hello)).as_bytes()).unwrap();
    let (mut agent, mut lines) = (Agent::new(), BufReader::new(stream));
    loop {
        let mut line = Vec::new();
        assert!(lines.read_until(b'\n', &mut line).unwrap() > 0, "it hung up");
        if let AgentStep::Decided(_, decision) = agent.handle(line.trim_ascii_end()) {
            return *decision;
        }
    }
}

/// What the fetch port answers.
fn fetch(lines: &mut BufReader<TcpStream>, request: &Request) -> Result<Vec<u8>, String> {
    lines.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
    loop {
        let mut line = Vec::new();
        assert!(lines.read_until(b'\n', &mut line).unwrap() > 0, "it hung up");
        match Answer::parse(&line).unwrap() {
            Answer::Ok(length) => {
                let mut bytes = vec![0; usize::try_from(length).unwrap()];
                lines.read_exact(&mut bytes).unwrap();
                return Ok(bytes);
            }
            Answer::No(reason) => return Err(reason.to_owned()),
            Answer::Wait(_) => {}
        }
    }
}

fn table(lines: &mut BufReader<TcpStream>, next: Next) -> Vec<u8> {
    let length = next.table_bytes.into();
    let bytes = fetch(lines, &Request { kind: Kind::Table, id: next.table, offset: 0, length }).unwrap();
    assert_eq!(Hash(*blake3::hash(&bytes).as_bytes()), next.table);
    bytes
}

fn next(lines: &mut BufReader<TcpStream>, id: Hash) -> Result<Next, String> {
    let request = Request { kind: Kind::Next, id, offset: 0, length: Next::BYTES as u64 };
    fetch(lines, &request).map(|bytes| Next::decode(bytes.as_slice().try_into().unwrap()))
}

/// Fetches the chunks from this one on; each is what the table says.
fn chunks(lines: &mut BufReader<TcpStream>, id: Hash, table: &Table<'_>, from: u32) {
    for entry in table.iter().skip(from as usize) {
        let (offset, length) = (entry.position, entry.stored.into());
        let bytes = fetch(lines, &Request { kind: Kind::Chunks, id, offset, length }).unwrap();
        assert_eq!(blake3::hash(&bytes).as_bytes(), &entry.stored_hash.0);
    }
}

#[test]
fn its_first_chunks_can_be_had_and_lead_to_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&tar::slow(folder.path()), &folder.path().join("state"), &[]);
    server.wait_log("is good");
    let began = Instant::now();
    let offer: ImageOffer = loop {
        match ask(&server, 2, ABLE, false) {
            Decision::Format(Some(offer)) => break offer.image.expect("an image"),
            Decision::Wait { .. } => assert!(began.elapsed() < Duration::from_secs(120)),
            other => panic!("{other:?}"),
        }
    };
    // An agent that cannot, one with a key, and one that would lose what it has, wait.
    let unable = ask(&server, 3, Can { early: false, ..ABLE }, false);
    let keyed = ask(&server, 4, Can { signed: true, ..ABLE }, false);
    ask(&server, 5, ABLE, true);
    server.piman(&["reinstall", "10000000cafe0005"]);
    let has_a_system = ask(&server, 5, ABLE, true);

    let mut lines = BufReader::new(connect_from([127, 0, 0, 2], server.port("fetch")));
    lines.get_ref().set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut at = Next { table: offer.table, table_bytes: offer.table_bytes };
    let mut bytes = table(&mut lines, at);
    let first = Table::parse(&bytes).unwrap().header();
    assert!(!first.whole && first.chunks > 0, "it was asked too late");
    assert!(matches!(unable, Decision::Wait { .. }), "{unable:?}");
    assert!(!matches!(keyed, Decision::Format(Some(offer)) if offer.image.is_some()), "{keyed:?}");
    assert!(matches!(has_a_system, Decision::Wait { .. } | Decision::Boot), "{has_a_system:?}");
    let mut from = 0;
    let mut stages = 1;
    loop {
        let known = Table::parse(&bytes).unwrap();
        chunks(&mut lines, at.table, &known, from);
        if known.header().whole {
            break;
        }
        from = known.header().chunks;
        at = next(&mut lines, at.table).unwrap();
        let more = table(&mut lines, at);
        let later = Table::parse(&more).unwrap();
        assert!(later.continues(&known) && (later.header().whole || later.header().chunks > from));
        bytes = more;
        stages += 1;
    }
    let whole = Table::parse(&bytes).unwrap().header();
    assert!(stages > 2, "{stages}");
    assert_eq!(whole.used_bytes, first.used_bytes, "it is known from the beginning");
    // Others get the same, and the first table is still good for whoever began with it.
    server.wait_log("is ready");
    let Decision::Format(Some(later)) = ask(&server, 3, Can { early: false, ..ABLE }, false) else {
        panic!("it has no offer")
    };
    assert_eq!(later.image.unwrap().table, at.table);
    assert_eq!(next(&mut lines, offer.table).unwrap(), at);
    assert!(next(&mut lines, at.table).unwrap_err().contains("ask on the control connection"));
    assert!(next(&mut lines, Hash([1; 32])).is_err());
}
