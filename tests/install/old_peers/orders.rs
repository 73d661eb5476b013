//! The life of an order to reinstall, as old Pis and our own end it.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use piman_tests::server::wait_until;
use piman_tests::tar;

use super::{BOOT, FORMAT, Lab, PI};

#[test]
fn an_order_lives_until_the_installation_has_succeeded() {
    let mut lab = Lab::new(&["--no-date"]);
    lab.server.piman(&["reinstall", "127.0.0.1"]);
    assert!(lab.orders().contains("waits for the Pi"), "{}", lab.orders());
    lab.restart();
    assert_eq!(lab.decision(PI), FORMAT, "it survives a restart");
    assert_eq!(lab.decision(PI), FORMAT, "being told is not being installed");
    // Reports the end without having got anything.
    let mut talk = lab.talk(PI);
    talk.write_line("IS_INSTALLED\n");
    assert_eq!(talk.block(), FORMAT);
    talk.write_line("IS_FORMATTED\n");
    talk.closed();
    // What was got before the next format does not count either.
    assert_eq!(lab.decision(PI), FORMAT);
    assert_eq!(lab.download(PI), lab.bytes());
    lab.restart();
    let mut talk = lab.talk(PI);
    talk.write_line("IS_INSTALLED\n");
    assert_eq!(talk.block(), FORMAT, "the other half is missing");
    assert_eq!(lab.download(PI), lab.bytes());
    talk.write_line("IS_FORMATTED\n");
    talk.closed();
    wait_until("the order is completed", || lab.orders().contains("completed"));
    assert_eq!(lab.decision(PI), BOOT, "and never again");
    lab.restart();
    assert_eq!(lab.decision(PI), BOOT);
    assert_eq!(lab.orders().matches("127.0.0.1").count(), 1, "the history stays: {}", lab.orders());
    // A new order is a new one.
    lab.server.piman(&["reinstall", "127.0.0.1"]);
    assert_eq!(lab.decision(PI), FORMAT);
}

#[test]
fn half_a_download_completes_no_order() {
    let lab = Lab::with(tar::of_bytes(40 << 20), &["--no-date"]);
    lab.server.piman(&["reinstall", "127.0.0.1"]);
    let mut talk = lab.talk(PI);
    talk.write_line("IS_INSTALLED\n");
    assert_eq!(talk.block(), FORMAT);
    let mut download = lab.connect("rootfs", PI);
    let mut some = vec![0; 1 << 20];
    download.read_exact(&mut some).unwrap();
    drop(download);
    talk.write_line("IS_FORMATTED\n");
    talk.closed();
    lab.server.wait_log("was ended by the Pi");
    assert_eq!(lab.decision(PI), FORMAT);
    // What is said of this decision comes after all that could be said of the download.
    wait_until("it is logged", || lab.server.log().matches("told to format").count() == 2);
    assert!(!lab.server.log().contains("ERROR"), "a Pi that closes early is no error:\n{}", lab.server.log());
}

#[test]
fn an_order_is_for_exactly_one_pi() {
    let lab = Lab::new(&["--no-date"]);
    lab.server.piman(&["reinstall", "127.0.0.1"]);
    for other in [[127, 0, 0, 10], [127, 0, 0, 11], [127, 0, 0, 100]] {
        assert_eq!(lab.decision(other), BOOT, "{other:?}");
    }
    assert_eq!(lab.decision(PI), FORMAT);
    // By another's serial number, from the address that is ordered: the address counts.
    let hello =
        "PIMAN/1 hello serial=10000000abcdef01 mac=- model=- agent=1 disk=0 root=0 card=- paths=stream\n";
    let other = [127, 0, 0, 12];
    for order in ["10000000abcdef0", "10000000abcdef011"] {
        lab.server.piman(&["reinstall", order]);
    }
    let mut talk = lab.talk(other);
    talk.write_line(hello);
    talk.write_line("IS_INSTALLED\n");
    assert_eq!(talk.block(), BOOT, "parts of a name are other names");
    lab.server.piman(&["reinstall", "10000000abcdef01"]);
    talk.write_line("IS_INSTALLED\n");
    assert!(talk.block().starts_with("format\nPIMAN/1 offer id="), "an order counts at once");
    assert_eq!(lab.decision(other), BOOT, "the same address without the serial number");
    let said = lab.server.piman(&["reinstall", "--cancel", "127.0.0.1"]);
    assert!(said.starts_with("127.0.0.1: the reinstall had begun already, on 127.0.0.1, "), "{said}");
    assert_eq!(lab.decision(PI), BOOT);
    lab.server.piman(&["reinstall", "127.0.0.1"]);
    let said = lab.server.piman(&["reinstall", "--cancel", "127.0.0.1"]);
    assert_eq!(said, "127.0.0.1: the reinstall is cancelled\n");
    assert_eq!(lab.decision(PI), BOOT);
}

#[test]
fn our_agents_order_is_completed_by_the_proof_alone() {
    let lab = Lab::new(&["--no-date"]);
    let (serial, pi) = ("10000000abcdef01", [127, 0, 0, 13]);
    lab.server.piman(&["reinstall", serial]);
    let hello =
        format!("PIMAN/1 hello serial={serial} mac=- model=Pi agent=1 disk=0 root=0 card=- paths=stream\n");
    let mut talk = lab.talk(pi);
    talk.write_line(&format!("{hello}IS_INSTALLED\n"));
    assert!(talk.block().starts_with("format\n"));
    assert_eq!(lab.download(pi), lab.bytes());
    talk.write_line("PIMAN/1 progress stage=transfer done=7 total=9\nIS_FORMATTED\n");
    talk.closed();
    wait_until("the order has begun", || lab.orders().contains("begun"));
    wait_until("its progress is known", || lab.server.piman(&["devices"]).contains("7 B of 9 B, 77 %"));
    let mut talk = lab.talk(pi);
    talk.write_line(&format!(
        "{hello}PIMAN/1 failed stage=sync text=the card is\x1b[31m broken\nIS_INSTALLED\n"
    ));
    let order = talk.block();
    assert!(order.starts_with("format\n"));
    let field = |key: &str| {
        let (_, rest) = order.split_once(key).expect("the offer has it");
        rest.split_whitespace().next().expect("a value").to_owned()
    };
    let (id, installation) = (field(" id="), field(" installation="));
    let failed = || lab.server.piman(&["devices"]);
    wait_until("the failure is shown", || failed().contains("failed (sync): the card is [31m broken"));
    talk.write_line(&format!("PIMAN/1 committed id={id} installation={installation}\nIS_INSTALLED\n"));
    assert_eq!(talk.block(), BOOT, "at once, and not when it is written down");
    wait_until("the order is completed", || lab.orders().contains("completed"));
    let devices = || lab.server.piman(&["devices", "--json"]);
    for part in ["\"serial\": \"10000000abcdef01\"", "\"last_error\": null", &id[..8]] {
        wait_until(part, || devices().contains(part));
    }
}

#[test]
fn reinstall_txt_is_taken_in_when_it_is_complete() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("reinstall.txt");
    // Somebody writes it slowly, and in the middle of an address for longer than it is looked at. On a
    // machine that slept meanwhile the pause was one that ends a list: then again.
    let lab = loop {
        fs::write(&list, "").unwrap();
        let lab = Lab::new(&["--no-date", "--reinstall-file", list.to_str().unwrap()]);
        let mut file = fs::OpenOptions::new().append(true).open(&list).unwrap();
        let mut longest = Duration::ZERO;
        let mut last = Instant::now();
        for part in ["127.0.0.2\r\n\n# by the window\n127.0.0", ".30\nnonsense\n 127.0.0", ".4"] {
            file.write_all(part.as_bytes()).unwrap();
            longest = longest.max(last.elapsed());
            last = Instant::now();
            std::thread::sleep(Duration::from_millis(300));
        }
        if longest < Duration::from_millis(900) {
            break lab;
        }
        drop(lab);
        let _ = fs::remove_file(folder.path().join("reinstall.txt.taken"));
    };
    lab.server.wait_log("a reinstall of 127.0.0.4 is ordered");
    wait_until("the file is emptied", || {
        fs::read(&list).is_ok_and(|f| f.is_empty())
            && !Path::new(&format!("{}.taken", list.display())).exists()
    });
    for (pi, want) in [(2, FORMAT), (30, FORMAT), (4, FORMAT), (3, BOOT), (20, BOOT), (1, BOOT)] {
        assert_eq!(lab.decision([127, 0, 0, pi]), want, "127.0.0.{pi}");
    }
    lab.server.wait_log("reinstall.txt:5: this line is no IPv4 address");
    // As a user does it: a new file over the old one; and again what is ordered already.
    let new = folder.path().join("new");
    fs::write(&new, "127.0.0.3\n127.0.0.4\n").unwrap();
    fs::rename(&new, &list).unwrap();
    lab.server.wait_log("a reinstall of 127.0.0.3 is ordered");
    lab.server.wait_log("a reinstall of 127.0.0.4 was ordered already");
    assert!(lab.orders().contains("reinstall.txt:1"), "{}", lab.orders());
}
