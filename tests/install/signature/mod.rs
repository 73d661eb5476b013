//! Signed images: what an agent with a public key installs, and that it erases nothing for
//! anything else. The minisign tool is the judge where it is installed.

mod rogue;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;

use pi_agent::card::inspect::{self, Card};
use piman_core::hash::Hash;
use piman_core::install::layout::{Layout, SECTOR};
use piman_core::install::manifest;
use piman_core::install::trust::{Certificate, ServerKey};
use piman_tests::server::{Server, wait_until};
use piman_tests::{binaries, tar};

const SERIAL: &str = "10000000cafe0020";
const CARD: &str = "160M";

/// A folder with keys, a state, and an archive that a server offers.
struct Lab {
    folder: tempfile::TempDir,
    archive: tempfile::NamedTempFile,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap(), archive: tar::of_bytes(300_000) };
        for name in ["one", "two"] {
            lab.piman(&["key", "generate", "--no-password", "--secret", &lab.path(name)])
                .args(&["--public", &lab.path(&format!("{name}.pub"))])
                .ok();
        }
        lab.certify("one");
        lab
    }

    /// Certifies the server by a key.
    fn certify(&self, key: &str) {
        let state = self.state().display().to_string();
        self.piman(&["key", "certify", "--state", &state, "--secret", &self.path(key)]).ok();
    }

    /// The key of another server, which the first key has certified.
    fn another_server(&self) -> Arc<ServerKey> {
        let secret = [9; 32];
        let key = ServerKey::new(secret, None).unwrap().public().to_string();
        let (out, by) = (self.path("another.cert"), self.path("one"));
        let _ = fs::remove_file(&out);
        self.piman(&["key", "certify", "--server-key", &key, "--out", &out, "--secret", &by]).ok();
        let certificate = Certificate::parse(fs::read_to_string(&out).unwrap().trim().as_bytes());
        Arc::new(ServerKey::new(secret, Some(certificate.unwrap())).unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn piman(&self, arguments: &[&str]) -> Run {
        let mut command = Command::new(binaries::piman());
        command.args(arguments);
        Run(command)
    }

    /// Signs the archive and its image with a key.
    fn sign(&self, key: &str, more: &[&str]) {
        let state = self.state().display().to_string();
        let archive = self.archive.path().display().to_string();
        let common = ["image", "sign", "--state", &state, &archive, "--key", &self.path(key)];
        self.piman(&common).args(more).ok();
    }

    /// The server makes another image then, which nobody has signed.
    fn sign_and_lose_the_image(&self) {
        self.sign("one", &[]);
        fs::remove_dir_all(self.state().join("images")).unwrap();
    }

    fn signed_file(&self) -> PathBuf {
        let id = blake3::hash(&fs::read(self.archive.path()).unwrap());
        self.state().join("manifests").join(format!("{id}.signed"))
    }

    fn server(&self) -> Server {
        let server = Server::start(self.archive.path(), &self.state(), &["--no-date"]);
        server.wait_log("is good");
        server
    }

    /// The agent on a card of its own, with this public key.
    fn install(&self, server: &Server, card: &str, key: Option<&str>) -> Output {
        let mut agent = server.agent(self.path(card), SERIAL);
        agent.args(["--size", CARD, "--path", "image", "--retries", "0", "--transfer-port", "0"]);
        // One of the cards here has lost its first block.
        agent.args(["--erase", "foreign"]);
        if let Some(key) = key {
            agent.args(["--public-key", key]);
        }
        agent.output().unwrap()
    }

    /// Orders a reinstall, when the one before is over.
    fn order(&self, server: &Server) {
        wait_until("the last order is over", || {
            let orders = server.piman(&["reinstall", "--list"]);
            !orders.contains("begun") && !orders.contains("waits")
        });
        server.piman(&["reinstall", SERIAL]);
    }

    fn hash(&self, card: &str) -> blake3::Hash {
        blake3::hash(&fs::read(self.path(card)).unwrap())
    }

    fn installed(&self, card: &str) -> piman_core::install::receipt::Proof {
        match inspect::check(Path::new(&self.path(card))).unwrap() {
            Card::Installed(proof) => proof,
            other => panic!("{other}"),
        }
    }
}

struct Run(Command);

impl Run {
    fn args(mut self, more: &[&str]) -> Self {
        self.0.args(more);
        self
    }

    fn ok(mut self) -> String {
        String::from_utf8(piman_tests::disk::run(&mut self.0).stdout).unwrap()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs it, expects that it is refused for this reason and that the card is as it was, and that
/// the server has heard why.
#[track_caller]
fn refused(lab: &Lab, server: &Server, card: &str, key: Option<&str>, why: &str) {
    let before = lab.hash(card);
    let output = lab.install(server, card, key);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains(why) && said(&output).contains("nothing was changed"),
        "{}",
        said(&output)
    );
    assert_eq!(lab.hash(card), before, "the card was touched: {why}");
    wait_until(&format!("the server knows: {why}"), || server.piman(&["devices"]).contains(why));
}

#[test]
fn only_what_is_signed_is_installed_and_nothing_is_erased_for_the_rest() {
    let lab = Lab::new();
    let (one, two) = (lab.path("one.pub"), lab.path("two.pub"));
    // A card with something on it, made without a key: the agent says that nobody checks.
    let server = lab.server();
    let output = lab.install(&server, "card", None);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output).matches("no public key is given").count(), 1, "{}", said(&output));
    assert_eq!(lab.installed("card").counter, 0);
    lab.order(&server);

    refused(&lab, &server, "card", Some(&one), "is not signed");
    lab.sign("one", &["--counter", "100"]);
    refused(
        &lab,
        &server,
        "card",
        Some(&two),
        "the server's certificate is not signed by this Pi's public key",
    );
    lab.certify("two");
    refused(&lab, &server, "card", Some(&two), "signed by another key");
    lab.certify("one");
    lab.sign("one", &["--counter", "100", "--for", "10000000cafe0021"]);
    refused(&lab, &server, "card", Some(&one), "for other Pis");

    // Somebody changes what was signed, or puts another signature under it.
    lab.sign("one", &["--counter", "100"]);
    let right = fs::read_to_string(lab.signed_file()).unwrap();
    fs::write(lab.signed_file(), right.replace("counter 100\n", "counter 101\n")).unwrap();
    refused(&lab, &server, "card", Some(&one), "manifest was changed");
    let trusted = right.replace("counter=100", "counter=101");
    assert_ne!(trusted, right);
    fs::write(lab.signed_file(), trusted).unwrap();
    refused(&lab, &server, "card", Some(&one), "manifest was changed");
    fs::write(lab.signed_file(), &right).unwrap();

    // A key that cannot be read is no reason to go on without.
    let output = lab.install(&server, "card", Some("/nowhere/key.pub"));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));

    // As it should be: for this Pi, by this key, given as base64.
    lab.sign("one", &["--counter", "100", "--for", SERIAL]);
    let line = fs::read_to_string(&one).unwrap().lines().nth(1).unwrap().to_owned();
    let output = lab.install(&server, "card", Some(&line));
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(lab.installed("card").counter, 100);

    // An older one is refused, also when the card's filesystem says nothing any more.
    lab.order(&server);
    lab.sign("one", &["--counter", "99"]);
    refused(&lab, &server, "card", Some(&one), "is older (counter 99)");
    let card = fs::File::options().write(true).open(lab.path("card")).unwrap();
    card.write_all_at(&[0; 4096], Layout::default().root_start * SECTOR).unwrap();
    assert!(matches!(inspect::check(Path::new(&lab.path("card"))).unwrap(), Card::Foreign(_)));
    refused(&lab, &server, "card", Some(&one), "is older (counter 99)");
    lab.sign("one", &["--counter", "100"]);
    let output = lab.install(&server, "card", Some(&one));
    assert!(output.status.success(), "the same again is no step back: {}", said(&output));
    lab.order(&server);
    let output = lab.install(&server, "card", None);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(lab.installed("card").counter, 0, "it was not checked");
    lab.order(&server);
    lab.sign("one", &["--counter", "98"]);
    refused(&lab, &server, "card", Some(&one), "is older (counter 98)");
    let list = server.piman(&["devices"]);
    assert!(list.contains("reinstall ordered"), "a refusal completes no order: {list}");
}

#[test]
fn an_image_that_was_made_after_signing_is_not_offered() {
    let lab = Lab::new();
    lab.sign_and_lose_the_image();
    let server = lab.server();
    let card = lab.path("card");
    fs::File::create(&card).unwrap().set_len(160 << 20).unwrap();
    refused(
        &lab,
        &server,
        "card",
        Some(&lab.path("one.pub")),
        "that is signed: `piman image sign` makes one",
    );
    lab.sign("one", &[]);
    let output = lab.install(&server, "fresh", Some(&lab.path("one.pub")));
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(lab.installed("fresh").path, piman_core::install::receipt::Way::Image);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn an_archive_whose_signed_image_is_lost_is_extracted() {
    let lab = Lab::new();
    lab.sign_and_lose_the_image();
    let server = lab.server();
    let card = lab.path("card");
    fs::File::create(&card).unwrap().set_len(160 << 20).unwrap();
    let mut agent = server.agent(&card, SERIAL);
    agent.args(["--retries", "0", "--transfer-port", "0", "--public-key", &lab.path("one.pub")]);
    let output = agent.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(lab.installed("card").path, piman_core::install::receipt::Way::Archive);
}

/// A server of the first revision: it makes an offer, and knows nothing of signatures.
fn older_server(id: Hash, bytes: u64) -> (u16, thread::JoinHandle<Vec<String>>) {
    let control = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = control.local_addr().unwrap().port();
    let heard = thread::spawn(move || {
        let (stream, _) = control.accept().unwrap();
        let mut heard = Vec::new();
        for line in BufReader::new(&stream).lines().map_while(Result::ok) {
            if line == "IS_UNINSTALLED" {
                let offer = format!("format\nPIMAN/1 offer id={id} bytes={bytes} rootfs=1 fetch=1\nEOM\n");
                (&stream).write_all(offer.as_bytes()).unwrap();
            }
            heard.push(line);
        }
        heard
    });
    (port, heard)
}

#[test]
fn an_older_server_gets_no_card_of_a_pi_that_wants_signatures() {
    let lab = Lab::new();
    for offers in [true, false] {
        let (port, heard) = if offers {
            older_server(Hash([3; 32]), 5)
        } else {
            // One that is years old says nothing but the order.
            let control = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = control.local_addr().unwrap().port();
            let talk = move || {
                let (mut stream, _) = control.accept().unwrap();
                stream.write_all(b"format\nEOM\n").unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                text.lines().map(str::to_owned).collect()
            };
            (port, thread::spawn(talk))
        };
        let card = lab.path(&format!("card{offers}"));
        fs::File::create(&card).unwrap().set_len(160 << 20).unwrap();
        let mut agent = Command::new(binaries::pi_agent());
        agent.args([
            "install",
            "--server",
            "127.0.0.1",
            "--control-port",
            &port.to_string(),
            "--disk",
            &card,
        ]);
        agent.args(["--serial", SERIAL, "--retries", "0", "--transfer-port", "0"]);
        let output = agent.args(["--public-key", &lab.path("one.pub")]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let why = "the server's order is not signed";
        assert!(said(&output).contains(why), "{}", said(&output));
        assert!(fs::read(&card).unwrap().iter().all(|b| *b == 0), "the card was touched");
        let heard = heard.join().unwrap();
        assert!(
            heard.iter().any(|l| l.starts_with("PIMAN/1 failed stage=disk") && l.contains(why)),
            "{heard:?}"
        );
    }
}

#[test]
#[cfg_attr(lacks = "minisign", ignore = "needs minisign")]
fn the_minisign_tool_reads_ours_and_we_read_its() {
    let lab = Lab::new();
    let minisign = |arguments: &[&str]| {
        let mut command = Command::new("minisign");
        String::from_utf8(piman_tests::disk::run(command.args(arguments)).stdout).unwrap()
    };
    // Ours, checked by it.
    lab.sign("one", &["--counter", "7"]);
    let signed = fs::read(lab.signed_file()).unwrap();
    let (signature, text) = manifest::split(&signed).unwrap();
    let (file, signature_file) = (lab.path("m"), lab.path("m.minisig"));
    fs::write(&file, text).unwrap();
    fs::write(&signature_file, signature).unwrap();
    let told = minisign(&["-V", "-m", &file, "-p", &lab.path("one.pub")]);
    assert!(told.contains("counter=7") && told.contains("piman image="), "{told}");
    let mut wrong = Command::new("minisign");
    wrong.args(["-V", "-m", &file, "-p", &lab.path("two.pub")]);
    assert!(!wrong.output().unwrap().status.success());

    // Its, with keys of its own, taken in here.
    let (secret, public) = (lab.path("theirs"), lab.path("theirs.pub"));
    minisign(&["-G", "-W", "-s", &secret, "-p", &public]);
    let (state, archive) = (lab.state().display().to_string(), lab.archive.path().display().to_string());
    let draft = lab.path("draft");
    lab.piman(&["image", "sign", "--state", &state, &archive, "--manifest-to", &draft, "--counter", "8"])
        .ok();
    for legacy in [false, true] {
        let kind = if legacy { "-l" } else { "-H" };
        minisign(&["-S", kind, "-m", &draft, "-s", &secret, "-t", "by hand"]);
        let minisig = format!("{draft}.minisig");
        let take =
            ["image", "sign", "--state", &state, &archive, "--manifest", &draft, "--signature", &minisig];
        lab.piman(&take).ok();
        lab.certify("theirs");
        let server = lab.server();
        let card = format!("card{legacy}");
        let output = lab.install(&server, &card, Some(&public));
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(lab.installed(&card).counter, 8);
    }
    // A secret key of ours signs there, and one of the tool here.
    minisign(&["-S", "-m", &draft, "-s", &lab.path("one"), "-x", &lab.path("x")]);
    minisign(&["-V", "-m", &draft, "-p", &lab.path("one.pub"), "-x", &lab.path("x")]);
    let sign = ["image", "sign", "--state", &state, &archive, "--key", &secret, "--counter", "9"];
    lab.piman(&sign).ok();
    let output = lab.install(&lab.server(), "last", Some(&public));
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn keys_are_kept_safe() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let mode = fs::metadata(lab.path("one")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = Command::new(binaries::piman())
        .args(["key", "generate", "--no-password", "--secret", &lab.path("one"), "--public", &lab.path("x")])
        .output()
        .unwrap();
    assert!(!again.status.success() && said(&again).contains("not overwritten"), "{}", said(&again));
    // With a password it signs with that one alone.
    for (file, word) in [("right", "open sesame\n"), ("wrong", "open barley\n")] {
        fs::write(lab.path(file), word).unwrap();
    }
    let (secret, public) = (lab.path("locked"), lab.path("locked.pub"));
    lab.piman(&["key", "generate", "--secret", &secret, "--public", &public])
        .args(&["--password-file", &lab.path("right")])
        .ok();
    let (state, archive) = (lab.state().display().to_string(), lab.archive.path().display().to_string());
    let sign = |password: &str| {
        let mut piman = Command::new(binaries::piman());
        piman.args(["image", "sign", "--state", &state, &archive, "--key", &secret]);
        piman.args(["--password-file", &lab.path(password)]).output().unwrap()
    };
    let output = sign("wrong");
    assert!(!output.status.success() && said(&output).contains("password"), "{}", said(&output));
    let output = sign("right");
    assert!(output.status.success(), "{}", said(&output));
}
