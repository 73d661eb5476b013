//! What `piman serve` tells and sends of an image beyond its bytes: sizes and chunk hashes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use pi_agent::sums::Sums;
use piman_core::hash::Hash;
use piman_core::install::fetch::{Answer, Kind, Request};
use piman_core::install::{Agent, AgentStep, Can, Decision, Have, Hello, Notice, Offer, Paths, sums};
use piman_tests::server::Server;
use piman_tests::tarball;

/// What a Pi is told to install that says this of itself and has no system.
fn offer(server: &Server, hello: Hello<'_>) -> Offer {
    let mut stream = server.connect("control");
    stream.write_all(format!("{}\nIS_UNINSTALLED\n", Notice::Hello(hello)).as_bytes()).unwrap();
    let mut agent = Agent::new();
    for line in BufReader::new(stream).lines() {
        if let AgentStep::Decided(_, Decision::Format(Some(offer))) = agent.handle(line.unwrap().as_bytes()) {
            return offer;
        }
    }
    panic!("no offer");
}

fn hello(serial: &str) -> Hello<'_> {
    Hello {
        serial: Some(serial),
        paths: Paths { stream: true, image: false },
        can: Can { resume: true, signed: false },
        ..Hello::default()
    }
}

/// A range from the fetch port, or why not.
fn fetch(stream: &mut TcpStream, kind: Kind, id: Hash, offset: u64, length: u64) -> Result<Vec<u8>, String> {
    stream.write_all(format!("{}\n", Request { kind, id, offset, length }).as_bytes()).unwrap();
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.extend(byte);
    }
    match Answer::parse(&line).unwrap() {
        Answer::Ok(length) => {
            let mut bytes = vec![0; usize::try_from(length).unwrap()];
            stream.read_exact(&mut bytes).unwrap();
            Ok(bytes)
        }
        Answer::No(reason) => Err(reason.to_owned()),
        Answer::Wait(_) => panic!("nobody else is here"),
    }
}

#[test]
fn the_chunk_hashes_of_an_archive_prove_themselves_and_every_chunk() {
    let archive = tarball::of_bytes(3_500_000);
    let bytes = fs::read(archive.path()).unwrap();
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(archive.path(), state.path(), &["--no-images"]);
    server.wait_log("is good");

    let told = offer(&server, hello("cafe0001"));
    let id = Hash(*blake3::hash(&bytes).as_bytes());
    assert_eq!((told.id, told.bytes, told.more.sums_chunk), (id, bytes.len() as u64, sums::CHUNK));
    assert_eq!((told.more.entries, told.more.resume_at), (1, 0));
    // A header, the content up to a whole block, and the end.
    assert_eq!(told.more.unpacked_bytes, 512 + 3_500_000_u64.next_multiple_of(512) + 1024);

    let mut port = server.connect("fetch");
    let length = sums::table_bytes(told.bytes).unwrap().into();
    let table = fetch(&mut port, Kind::Sums, id, 0, length).unwrap();
    let known = Sums::parse(id, told.bytes, &table).unwrap();
    assert_eq!(known.chunks(), 4);
    for chunk in 0..known.chunks() {
        let range = known.range(chunk);
        let got = fetch(&mut port, Kind::Archive, id, range.start, range.end - range.start).unwrap();
        assert!(known.is(chunk, &got), "chunk {chunk}");
    }
    assert_eq!(fetch(&mut port, Kind::Sums, id, 32, 32).unwrap(), table[32..64]);
    assert!(fetch(&mut port, Kind::Sums, id, 32, length).unwrap_err().contains("range"));

    // Who has some of it is told where it goes on; who has some of something else is not.
    let have = |id, bytes| Hello { have: Some(Have { id, bytes }), ..hello("cafe0001") };
    assert_eq!(offer(&server, have(id, 2 << 20)).more.resume_at, 2 << 20);
    assert_eq!(offer(&server, have(id, u64::MAX)).more.resume_at, told.bytes);
    assert_eq!(offer(&server, have(Hash([7; 32]), 2 << 20)).more.resume_at, 0);
}
