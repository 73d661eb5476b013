//! Orders to reinstall are carried out exactly once, by the Pi that is meant, whatever dies on
//! the way.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pi_agent::card::inspect::{self, Card};
use piman::state::{Sqlite, State as _};
use piman_core::hash::Hash;
use piman_core::install::{Agent, AgentStep, Decision, Hello, Installation, Notice, Paths};
use piman_tests::server::{Server, connect_from, wait_until};
use piman_tests::{binaries, old_state, tar};

struct Lab {
    server: Server,
    archive: tempfile::NamedTempFile,
    state: tempfile::TempDir,
}

const OPTIONS: [&str; 2] = ["--no-images", "--no-date"];

impl Lab {
    fn new() -> Self {
        let archive = tar::of_bytes(300_000);
        let state = tempfile::tempdir().unwrap();
        let server = Server::start(archive.path(), state.path(), &OPTIONS);
        server.wait_log("is good");
        Self { server, archive, state }
    }

    fn id(&self) -> Hash {
        Hash(*blake3::hash(&fs::read(self.archive.path()).unwrap()).as_bytes())
    }

    /// Kills it as a power cut does, and starts another one.
    fn kill_and_start(&mut self) {
        self.server.kill();
        self.server = Server::start(self.archive.path(), self.state.path(), &OPTIONS);
        self.server.wait_log("is good");
    }

    fn orders(&self) -> String {
        self.server.piman(&["reinstall", "--list"])
    }

    fn pi(&self, hello: Hello<'_>, from: [u8; 4]) -> ControlConnection {
        let stream = connect_from(from, self.server.port("control"));
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut talk = ControlConnection(stream);
        talk.notify(Notice::Hello(hello));
        talk
    }
}

/// A control connection as our agent has it.
struct ControlConnection(TcpStream);

impl ControlConnection {
    fn notify(&mut self, notice: Notice<'_>) {
        self.0.write_all(format!("{notice}\n").as_bytes()).unwrap();
    }

    /// What a Pi with a system on its card is told.
    fn decision(&mut self) -> Decision {
        self.0.write_all(b"IS_INSTALLED\n").unwrap();
        let mut agent = Agent::new();
        for line in BufReader::new(self.0.try_clone().unwrap()).lines() {
            if let AgentStep::Decided(_, decision) = agent.handle(line.unwrap().as_bytes()) {
                return *decision;
            }
        }
        panic!("no decision");
    }

    /// The number of the installation that was ordered.
    fn installation(&mut self) -> Installation {
        match self.decision() {
            Decision::Format(Some(offer)) => offer.more.installation.expect("a number"),
            other => panic!("{other:?}"),
        }
    }
}

const PI: [u8; 4] = [127, 0, 0, 1];

fn hello(serial: &str) -> Hello<'_> {
    let paths = Paths { stream: true, image: false };
    Hello { revision: 1, serial: Some(serial), paths, ..Hello::default() }
}

#[test]
fn the_card_tells_what_a_killed_server_did_not_hear() {
    let mut lab = Lab::new();
    let serial = "10000000cafe0001";
    lab.server.piman(&["reinstall", serial]);
    let number = lab.pi(hello(serial), PI).installation();
    // Killed between the order and everything that follows: what was given is known.
    lab.kill_and_start();
    assert!(lab.orders().contains("begun"), "{}", lab.orders());
    // It starts again before it has erased anything, or with another installation on its card.
    let old = Some(Installation(number.0 ^ 1));
    for installation in [None, old] {
        let hello = Hello { card: Some(Hash([7; 32])), installation, ..hello(serial) };
        assert_eq!(lab.pi(hello, PI).installation(), number, "the order keeps its number");
    }
    // The proof is on the card, and the server dies before it is told.
    lab.kill_and_start();
    let done = Hello { card: Some(lab.id()), installation: Some(number), ..hello(serial) };
    assert_eq!(lab.pi(done, PI).decision(), Decision::Boot);
    wait_until("the order is completed", || lab.orders().contains("completed"));
    lab.kill_and_start();
    assert_eq!(lab.pi(done, PI).decision(), Decision::Boot, "and never again");
    // The next order is another one, which the same card does not complete.
    lab.server.piman(&["reinstall", serial]);
    assert_ne!(lab.pi(done, PI).installation(), number);
    let history = lab.server.piman(&["devices", "--history"]);
    assert!(history.contains("completed") && history.contains("begun"), "{history}");
    assert_eq!(history.matches(serial).count(), 2, "{history}");
}

#[test]
fn only_its_own_installation_completes_an_order() {
    let lab = Lab::new();
    let serial = "10000000cafe0002";
    // Installed without an order, and so with a number that nobody waits for.
    let mut talk = lab.pi(hello(serial), PI);
    lab.server.piman(&["reinstall", serial]);
    let number = talk.installation();
    let mut late = lab.pi(hello(serial), PI);
    late.notify(Notice::Committed { id: lab.id(), installation: Some(Installation(number.0 ^ 5)) });
    assert_eq!(
        late.installation(),
        number,
        "a late report of another installation does not count for this one"
    );
    // Another Pi's card, or its report, says nothing of this one.
    let other = Hello { card: Some(lab.id()), installation: Some(number), ..hello("10000000cafe0003") };
    let mut talk = lab.pi(other, PI);
    talk.notify(Notice::Committed { id: lab.id(), installation: Some(number) });
    assert_eq!(talk.decision(), Decision::Boot);
    assert!(!lab.orders().contains("completed"), "{}", lab.orders());
    late.notify(Notice::Committed { id: lab.id(), installation: Some(number) });
    wait_until("the order is completed", || lab.orders().contains("completed"));
    // An agent of revision 0 names no installation; what it was given counts.
    lab.server.piman(&["reinstall", serial]);
    let mut old = lab.pi(Hello { revision: 0, ..hello(serial) }, PI);
    assert!(matches!(old.decision(), Decision::Format(Some(_))));
    old.notify(Notice::Committed { id: lab.id(), installation: None });
    assert_eq!(old.decision(), Decision::Boot);
}

#[test]
fn an_order_by_address_belongs_to_the_pi_that_got_it() {
    let lab = Lab::new();
    let (one, two, place) = ("10000000cafe0004", "10000000cafe0005", [127, 0, 0, 9]);
    lab.server.piman(&["reinstall", "127.0.0.9"]);
    let number = lab.pi(hello(one), place).installation();
    // The address is another one's now: that one keeps its card.
    assert_eq!(lab.pi(hello(two), place).decision(), Decision::Boot);
    assert_eq!(lab.pi(hello(one), place).installation(), number);
    let done = Hello { card: Some(lab.id()), installation: Some(number), ..hello(one) };
    assert_eq!(lab.pi(done, place).decision(), Decision::Boot);
    wait_until("the Pi is known", || lab.server.piman(&["devices"]).contains(one));
    // An address that is known to be a Pi's stands for that Pi, wherever it is next.
    wait_until("it is there", || {
        lab.server.piman(&["reinstall", "127.0.0.9"]).contains(&format!("{one}: a re"))
    });
    assert_eq!(lab.pi(hello(two), place).decision(), Decision::Boot);
    assert!(matches!(lab.pi(done, [127, 0, 0, 77]).decision(), Decision::Format(Some(_))));
}

#[test]
fn commands_find_the_state_by_the_configuration() {
    let lab = Lab::new();
    let config = lab.state.path().join("piman.toml");
    fs::write(&config, format!("state = '{}'\nrootfs = '/nowhere'\n", lab.state.path().display())).unwrap();
    let piman = |arguments: &[&str]| {
        let mut command = Command::new(binaries::piman());
        command.args(arguments).arg("--config").arg(&config).env("HOME", "/nonexistent");
        String::from_utf8(piman_tests::disk::run(&mut command).stdout).unwrap()
    };
    lab.pi(hello("10000000cafe0006"), PI).decision();
    wait_until("it is known", || piman(&["devices"]).contains("10000000cafe0006"));
    piman(&["reinstall", "10000000cafe0006"]);
    assert!(piman(&["devices", "--history"]).contains("waits for the Pi"));
    assert!(piman(&["device", "10000000cafe0006"]).contains("reinstall ordered  yes"));
}

#[test]
fn an_older_state_gets_what_is_new() {
    let folder = tempfile::tempdir().unwrap();
    let order = "PRAGMA journal_mode = WAL;
        INSERT INTO orders (name, ordered_ms, source, given_ms) VALUES ('10000000cafe0007', 5, 'test', 6)";
    drop(old_state::begun(folder.path(), order));
    let state = Sqlite::serve(folder.path()).unwrap();
    let orders = state.orders().unwrap();
    assert_eq!(
        (orders.len(), orders[0].name.as_str(), orders[0].claimed_ms),
        (1, "10000000cafe0007", Some(6))
    );
    assert!(state.catalogue().unwrap().images.is_empty());
    drop(state);
    assert_eq!(Sqlite::command(folder.path()).unwrap().orders().unwrap(), orders);
}

/// A Pi whose card is a file; it installs by image, for which no root is needed.
fn install(server: &Server, card: &Path, serial: &str) -> Child {
    let mut agent = server.agent(card, serial);
    agent.args(["--size", "160M", "--path", "image", "--retries", "1000", "--transfer-port", "0"]);
    agent.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn orders_of_pis_whose_server_is_killed_again_and_again() {
    let archive = tar::of_bytes(4 << 20);
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let ports = piman_tests::port::several::<3>().map(|port| port.to_string());
    let options =
        ["--no-date", "--control-port", &ports[0], "--rootfs-port", &ports[1], "--fetch-port", &ports[2]];
    let mut server = Server::start(archive.path(), &state, &options);
    server.wait_log("is good");
    let serials: Vec<String> = (0..3).map(|n| format!("10000000cafe10{n:02}")).collect();
    for serial in &serials {
        server.piman(&["reinstall", serial]);
    }
    let card = |serial: &str| folder.path().join(serial);
    let mut pis: Vec<Child> = serials.iter().map(|serial| install(&server, &card(serial), serial)).collect();
    for round in 1..=3_usize {
        // Killed when it has told another one to format, which is in the middle of everything.
        wait_until("some have begun", || {
            let begun = Sqlite::command(&state).unwrap().orders().unwrap();
            begun.iter().filter(|o| o.claimed_ms.is_some()).count() >= round
        });
        server.kill();
        server = Server::start(archive.path(), &state, &options);
    }
    for pi in &mut pis {
        assert!(pi.wait().unwrap().success());
    }
    wait_until("all orders are completed", || {
        Sqlite::command(&state).unwrap().orders().unwrap().iter().all(|o| o.completed_ms.is_some())
    });
    let orders = Sqlite::command(&state).unwrap().orders().unwrap();
    assert_eq!(orders.len(), serials.len());
    for order in orders {
        // What is on the card is the installation that was ordered, and not one after it.
        let Card::Installed(proof) = inspect::check(&card(&order.name)).unwrap() else { panic!("no proof") };
        assert_eq!(proof.installation.map(|n| n.to_string()), order.installation, "{}", order.name);
        assert!(install(&server, &card(&order.name), &order.name).wait().unwrap().success());
        assert_eq!(inspect::check(&card(&order.name)).unwrap(), Card::Installed(proof), "{}", order.name);
    }
}

#[test]
fn times_of_a_clock_that_was_wrong_change_no_decision() {
    let year = 365 * 24 * 3600 * 1000_i64;
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    let archive = tar::of_bytes(1000);
    // From before the epoch of the clock, from long ago, and from the future.
    for ordered in [0, now - 30 * year, now + 30 * year, i64::MAX] {
        let folder = tempfile::tempdir().unwrap();
        let rows = format!(
            "INSERT INTO orders (name, ordered_ms, source) VALUES ('127.0.0.1', {ordered}, 'test');
             INSERT INTO devices (key, address, first_seen_ms, last_seen_ms, root_bytes)
             VALUES ('127.0.0.2', '127.0.0.2', {ordered}, {ordered}, 1000000000);"
        );
        drop(old_state::begun(folder.path(), &rows));
        let server = Server::start(archive.path(), folder.path(), &OPTIONS);
        server.wait_log("is good");
        let ask = |from: [u8; 4]| {
            let mut stream = connect_from(from, server.port("control"));
            stream.write_all(b"IS_INSTALLED\n").unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            line
        };
        assert_eq!(ask([127, 0, 0, 2]), "boot\n", "{ordered}");
        assert_eq!(ask([127, 0, 0, 1]), "format\n", "{ordered}");
        assert!(server.piman(&["devices"]).contains("127.0.0.2"), "{ordered}");
        assert!(server.piman(&["reinstall", "--list"]).contains("127.0.0.1"), "{ordered}");
    }
}
