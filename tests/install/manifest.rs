//! Images: what `piman image` knows of them, who gets which, and what `piman serve` tells and
//! sends of them beyond their bytes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use piman::state::{Sqlite, State as _};
use piman_core::hash::Hash;
use piman_core::install::fetch::{Answer, Kind, Request};
use piman_core::install::summing::ChunkHashes;
use piman_core::install::{Agent, AgentStep, Decision, Hello, Notice, Offer, Paths, sums};
use piman_tests::server::{Server, wait_until};
use piman_tests::{binaries, tar};

/// What a Pi is told to install that says this of itself and has no system.
fn offer(server: &Server, hello: Hello<'_>) -> Offer {
    let mut found = None;
    wait_until("there is an offer", || {
        let mut stream = server.connect("control");
        stream.write_all(format!("{}\nIS_UNINSTALLED\n", Notice::Hello(hello)).as_bytes()).unwrap();
        let mut agent = Agent::new();
        for line in BufReader::new(stream).lines() {
            match agent.handle(line.unwrap().as_bytes()) {
                AgentStep::Decided(_, Decision::Format(offer)) => {
                    found = *offer;
                    break;
                }
                // It is being checked.
                AgentStep::Decided(_, Decision::Wait { .. }) => break,
                _ => {}
            }
        }
        found.is_some()
    });
    found.expect("an offer")
}

fn hello(serial: &str) -> Hello<'_> {
    Hello { serial: Some(serial), paths: Paths { stream: true, image: false }, ..Hello::default() }
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
    let archive = tar::of_bytes(3_500_000);
    let bytes = fs::read(archive.path()).unwrap();
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(archive.path(), state.path(), &["--no-images"]);
    server.wait_log("is good");

    let told = offer(&server, hello("cafe0001"));
    let id = Hash(*blake3::hash(&bytes).as_bytes());
    assert_eq!((told.id, told.bytes, told.more.sums_chunk), (id, bytes.len() as u64, sums::CHUNK));
    assert_eq!(told.more.entries, 1);
    // A header, the content up to a whole block, and the end.
    assert_eq!(told.more.unpacked_bytes, 512 + 3_500_000_u64.next_multiple_of(512) + 1024);

    let mut port = server.connect("fetch");
    let length = sums::table_bytes(told.bytes).unwrap().into();
    let table = fetch(&mut port, Kind::Sums, id, 0, length).unwrap();
    let known = ChunkHashes::parse(id, told.bytes, &table).unwrap();
    assert_eq!(known.chunks(), 4);
    for chunk in 0..known.chunks() {
        let range = known.range(chunk);
        let got = fetch(&mut port, Kind::Archive, id, range.start, range.end - range.start).unwrap();
        assert!(known.is(chunk, &got), "chunk {chunk}");
    }
    assert_eq!(fetch(&mut port, Kind::Sums, id, 32, 32).unwrap(), table[32..64]);
    assert!(fetch(&mut port, Kind::Sums, id, 32, length).unwrap_err().contains("range"));
}

fn id(archive: &Path) -> Hash {
    Hash(*blake3::hash(&fs::read(archive).unwrap()).as_bytes())
}

fn image(state: &Path, arguments: &[&str]) -> String {
    let (command, rest) = arguments.split_first().unwrap();
    let mut piman = Command::new(binaries::piman());
    piman.args(["image", command, "--state"]).arg(state).args(rest);
    // What is added here is no system.
    if *command == "add" {
        piman.arg("--force");
    }
    String::from_utf8(piman_tests::disk::run(&mut piman).stdout).unwrap()
}

#[test]
fn each_pi_gets_the_image_that_is_meant_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let archives: Vec<_> = (1..=4).map(|n| tar::of_bytes(n * 100_000)).collect();
    let [one, two, three, four] = [0, 1, 2, 3].map(|n: usize| archives[n].path());
    let text = |path: &Path| path.display().to_string();
    let told = image(&state, &["add", &text(one), "--name", "one"]);
    assert!(told.contains("1 entries") && told.contains("the default"), "{told}");
    assert!(told.contains(&id(one).to_string()), "{told}");
    image(&state, &["add", &text(two), "--name", "two", "--for", "10000000cafe0031"]);
    image(&state, &["add", &text(three), "--name", "three", "--group", "lab"]);
    let mut group = Command::new(binaries::piman());
    group.args(["group", "join", "--state"]).arg(&state).args([
        "lab",
        "10000000cafe0032",
        "10000000cafe0031",
    ]);
    piman_tests::disk::run(&mut group);

    // Without --rootfs: what has a name is served.
    let mut command = Command::new(binaries::piman());
    command.args(["serve", "--listen", "127.0.0.1", "--no-images", "--allow-unfit", "--state"]).arg(&state);
    command.args(["--control-port", "0", "--rootfs-port", "0", "--fetch-port", "0"]);
    let server = Server::start_by(&mut command, &state);
    wait_until("all are good", || server.log().matches("is good").count() == 3);
    let own = |serial| offer(&server, hello(serial)).id;
    assert_eq!(own("10000000cafe0030"), id(one), "the default");
    assert_eq!(own("10000000cafe0031"), id(two), "its own, before its group's");
    assert_eq!(own("10000000cafe0032"), id(three), "its group's");
    // An old Pi, known by its address, gets the default; and by stream everybody gets their own.
    let mut got = Vec::new();
    server.connect("rootfs").read_to_end(&mut got).unwrap();
    assert_eq!(Hash(*blake3::hash(&got).as_bytes()), id(three), "the last that was heard from this address");

    // While it runs: at once.
    image(&state, &["assign", "--for", "10000000cafe0031"]);
    assert_eq!(own("10000000cafe0031"), id(three));
    image(&state, &["assign", "one", "--group", "lab"]);
    assert_eq!(own("10000000cafe0031"), id(one));
    image(&state, &["add", &text(four), "--name", "four", "--default"]);
    assert_eq!(own("10000000cafe0030"), id(four), "what was read when it was added is not read again");
    let list = image(&state, &["list"]);
    assert!(list.contains("all others") && list.contains("group lab") && list.contains("nobody"), "{list}");
    let wrong = Command::new(binaries::piman())
        .args(["image", "default", "--state"])
        .arg(&state)
        .arg("five")
        .output()
        .unwrap();
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("no image five"));
    drop(server);

    // Without a default there is what --rootfs names.
    image(&state, &["remove", "four"]);
    let server = Server::start(two, &state, &["--no-images"]);
    server.wait_log(&text(two));
    let own = |serial| offer(&server, hello(serial)).id;
    assert_eq!((own("10000000cafe0030"), own("10000000cafe0032")), (id(two), id(one)));
}

#[test]
fn what_is_known_is_not_read_again_and_a_change_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let (file, other) = (folder.path().join("rootfs.tgz"), folder.path().join("other"));
    fs::copy(tar::of_bytes(400_000).path(), &file).unwrap();
    fs::copy(tar::of_bytes(900_000).path(), &other).unwrap();
    let state = folder.path().join("state");
    let (old, new) = (id(&file), id(&other));
    // A file that was written only now is not relied upon, and a moment later it is.
    wait_until("what is known of it is kept", || {
        image(&state, &["add", &file.display().to_string()]);
        Sqlite::command(&state).unwrap().known(&file).unwrap().is_some()
    });
    let known = Sqlite::command(&state).unwrap();
    let (stamp, content) = known.known(&file).unwrap().expect("it is kept");
    assert_eq!((content.id, content.entries), (old, 1));
    // Whoever believes the state finds another hash there, which shows that it was not read.
    let lie = piman::state::archive_facts::Content { id: Hash([9; 32]), ..content };
    known.keep(&file, &stamp, &lie).unwrap();
    let server = Server::start(&file, &state, &["--no-images"]);
    server.wait_log("is good");
    assert_eq!(offer(&server, hello("cafe0033")).id, Hash([9; 32]));
    drop(server);

    // Written in its place with its times set back: it is another one all the same.
    let times = fs::metadata(&file).unwrap().modified().unwrap();
    fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .unwrap()
        .set_len(fs::metadata(&file).unwrap().len())
        .unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(times).unwrap();
    let server = Server::start(&file, &state, &["--no-images"]);
    server.wait_log("is good");
    assert_eq!(offer(&server, hello("cafe0033")).id, old, "it was read again");

    // Replaced under a running server: a connection that has it gets it to its end, a new one
    // gets the new one, and nobody a mixture.
    let mut port = server.connect("fetch");
    let length = fs::metadata(&file).unwrap().len();
    let first = fetch(&mut port, Kind::Archive, old, 0, 1000).unwrap();
    let whole = fs::read(&file).unwrap();
    fs::rename(&other, &file).unwrap();
    let rest = fetch(&mut port, Kind::Archive, old, 1000, length - 1000).unwrap();
    assert_eq!([first, rest].concat(), whole);
    wait_until("the new one is offered", || offer(&server, hello("cafe0033")).id == new);
    let mut fresh = server.connect("fetch");
    assert!(fetch(&mut fresh, Kind::Archive, old, 0, 1).unwrap_err().contains("any more"));
    assert!(fetch(&mut fresh, Kind::Sums, old, 0, 0).is_err());
    assert_eq!(fetch(&mut fresh, Kind::Archive, new, 0, 1).unwrap(), whole[..1]);
}

#[test]
fn what_is_removed_while_it_is_served_leaves_no_trouble() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let path = |name: &str| folder.path().join(name);
    for (n, name) in (1..).zip(["one.tgz", "two.tgz", "three.tgz", "next.tgz"]) {
        fs::copy(tar::of_bytes(n * 10_000).path(), path(name)).unwrap();
    }
    for name in ["two.tgz", "three.tgz"] {
        image(&state, &["add", &path(name).display().to_string()]);
    }
    // Beside a default --rootfs would be installed nowhere.
    let (command, says) =
        (&mut Server::command(&path("one.tgz"), &state, &["--no-images"]), "image two is the");
    let refused = command.output().unwrap();
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains(says));
    assert!(image(&state, &["default", "--none"]).contains("no image is the default any more"));
    let server = Server::start(&path("one.tgz"), &state, &["--no-images"]);
    wait_until("all are good", || server.log().matches("is good").count() == 3);
    let troubles = || server.piman(&["devices"]);

    // As it should be done: its file goes after it.
    image(&state, &["remove", "two"]);
    fs::remove_file(path("two.tgz")).unwrap();
    server.wait_log("two.tgz is not in the list of images any more");
    // And the other way round: that is a trouble, until the list is read for another reason.
    fs::remove_file(path("three.tgz")).unwrap();
    wait_until("it is shown", || troubles().contains("three.tgz is gone"));
    image(&state, &["remove", "three"]);
    fs::rename(path("next.tgz"), path("one.tgz")).unwrap();
    server.wait_log("three.tgz is not in the list of images any more");
    wait_until("nothing is wrong", || !troubles().contains("is gone"));
}
