//! Clients that are noisy, silent, deaf, many, or gone.

use piman_tests::bench::raise_file_limit;

use super::*;

#[test]
fn noise_without_end_costs_no_memory() {
    let lab = Lab::new(1000, &[]).settled();
    let mut noise = lab.server.connect("control");
    let mut other = lab.server.connect("control");
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..100 {
        noise.write_all(&piece).unwrap();
    }
    assert_eq!(lab.decision(), BOOT, "meanwhile");
    noise.write_all(b"\nIS_INSTALLED\n").unwrap();
    let mut said = [0; BOOT.len()];
    noise.read_exact(&mut said).unwrap();
    assert_eq!(said, BOOT.as_bytes(), "the session lives on");
    // Binary, with zeros and newlines everywhere.
    let mut binary = vec![0; 4 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut binary);
    other.write_all(&binary).unwrap();
    other.write_all(b"\nIS_INSTALLED\n").unwrap();
    other.read_exact(&mut said).unwrap();
    assert_eq!(said, BOOT.as_bytes());
    let most = lab.server.memory_kb("VmHWM");
    assert!(most < 40_000, "{most} kB");
}

#[test]
fn whoever_says_nothing_is_not_waited_for() {
    let lab = Lab::new(1000, &["--first-report-timeout", "3s", "--idle-timeout", "5s"]).settled();
    let tasks = || fs::read_dir(format!("/proc/{}/fd", lab.server.id())).unwrap().count();
    assert_eq!(lab.decision(), BOOT);
    wait_until("the connection is gone", || tasks() < 64);
    let before = tasks();
    let mut silent: Vec<_> = (0..20).map(|_| lab.server.connect("control")).collect();
    let mut slow = lab.server.connect("control");
    let mut to_slow = slow.try_clone().unwrap();
    // A byte now and then is no report.
    let slowly = thread::spawn(move || {
        while to_slow.write_all(b"x").is_ok() {
            thread::park_timeout(Duration::from_millis(100));
        }
    });
    let mut talking = lab.server.connect("control");
    talking.write_all(b"IS_INSTALLED\n").unwrap();
    for stream in &mut silent {
        assert!(ended(stream));
    }
    assert!(ended(&mut slow));
    slowly.join().unwrap();
    let mut said = String::new();
    talking.read_to_string(&mut said).unwrap();
    assert_eq!(said, BOOT, "it may be silent for longer, but not for ever");
    drop((silent, slow, talking));
    wait_until("nothing is left of them", || tasks() <= before);
    assert_eq!(lab.decision(), BOOT);
}

#[test]
fn a_pi_that_takes_nothing_is_claimed_up() {
    let lab = Lab::new(64 << 20, &["--stall-timeout", "3s"]);
    let mut deaf = lab.server.connect("rootfs");
    lab.server.wait_log("the peer takes no more bytes");
    assert_eq!(download(&lab.server).unwrap().len(), lab.bytes().len());
    let mut got = Vec::new();
    // What had been sent may still be there, but no end that looks like the archive's.
    assert_eq!(deaf.read_to_end(&mut got).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_pi_below_the_minimum_rate_is_claimed_up() {
    let lab = Lab::new(64 << 20, &["--min-rate", "10000000", "--stall-timeout", "3s"]);
    let mut slow = lab.server.connect("rootfs");
    // It moves all the time, at some hundred kilobytes a second, and its system has no room to hide that.
    socket2::SockRef::from(&slow).set_recv_buffer_size(64 << 10).unwrap();
    let slowly = thread::spawn(move || {
        let mut piece = vec![0; 16 << 10];
        loop {
            match slow.read(&mut piece) {
                Ok(1..) => thread::sleep(Duration::from_millis(50)),
                end => return end.map_err(|e| e.kind()),
            }
        }
    });
    lab.server.wait_log("the peer is too slow");
    lab.server.wait_log("with a minimum rate of 10000000 bytes/s");
    assert_eq!(slowly.join().unwrap(), Err(ErrorKind::ConnectionReset));
    assert_eq!(download(&lab.server).unwrap().len(), lab.bytes().len());
}

#[test]
fn two_thousand_at_once() {
    raise_file_limit();
    let lab = Lab::new(1 << 20, &["--connections-per-address", "3000"]).settled();
    let mut crowd = Vec::new();
    for n in 0..2000 {
        let stream = TcpStream::connect(("127.0.0.1", lab.server.port("control")));
        let mut stream = stream.unwrap_or_else(|e| panic!("{n}: {e}"));
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"IS_UNINSTALLED\n").unwrap();
        crowd.push(stream);
    }
    for stream in &mut crowd {
        let mut said = [0; FORMAT.len()];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(said, FORMAT.as_bytes());
    }
    assert_eq!(download(&lab.server).unwrap(), lab.bytes());
    assert_eq!(lab.decision(), BOOT);
    let most = lab.server.memory_kb("VmHWM");
    assert!(most < 68_000, "{most} kB");
}

#[test]
fn no_address_takes_all_connections() {
    let lab = Lab::new(1000, &["--connections-per-address", "5"]);
    let mut mine: Vec<_> = (0..5).map(|_| lab.server.connect("control")).collect();
    assert!(ended(&mut lab.server.connect("control")));
    lab.server.wait_log("5 connections are open from this address");
    mine.pop();
    wait_until("there is room again", || {
        let mut talk = lab.server.connect("control");
        let mut said = [0; BOOT.len()];
        talk.write_all(b"IS_INSTALLED\n").is_ok() && talk.read_exact(&mut said).is_ok()
    });
}

#[test]
fn clients_that_vanish_disturb_nobody() {
    let lab = Lab::new(32 << 20, &[]);
    let want = lab.bytes();
    let whole = thread::scope(|scope| {
        let whole: Vec<_> = (0..3).map(|_| scope.spawn(|| download(&lab.server).unwrap())).collect();
        for n in 0..50 {
            let mut stream = lab.server.connect("rootfs");
            let mut some = vec![0; 1 + n * 1000];
            stream.read_exact(&mut some).unwrap();
        }
        whole.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(whole.iter().all(|got| *got == want));
    let gone = || lab.server.log().matches("was ended by the Pi").count();
    wait_until("all that vanished are noticed", || gone() == 50);
    assert!(!lab.server.log().contains("ERROR"));
}

#[test]
fn slots_are_given_in_turn_and_ranges_are_checked() {
    let lab = Lab::new(48 << 20, &["--slots", "1"]);
    let bytes = lab.bytes();
    let id = Hash(*blake3::hash(&bytes).as_bytes());
    let mut running = lab.server.connect("rootfs");
    running.read_exact(&mut [0; 1000]).unwrap();
    let ask = |offset, length| Request { kind: Kind::Archive, id, offset, length }.to_string() + "\n";
    let mut fetch = lab.server.connect("fetch");
    let requests = [ask(0, 10), ask(10, 0), ask(5, 3 << 20), ask(bytes.len() as u64, 0)];
    fetch.write_all(requests.concat().as_bytes()).unwrap();
    let mut line = [0; 7];
    fetch.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"wait 1\n");
    running.read_to_end(&mut Vec::new()).unwrap();
    drop(running);
    let mut want = b"ok 10\n".to_vec();
    want.extend(&bytes[..10]);
    want.extend(b"ok 0\n");
    want.extend(format!("ok {}\n", 3 << 20).bytes());
    want.extend(&bytes[5..5 + (3 << 20)]);
    want.extend(b"ok 0\n");
    let mut got = vec![0; want.len()];
    fetch.read_exact(&mut got).unwrap();
    assert!(got == want);
    // The slot is free again although this agent stays connected.
    assert_eq!(download(&lab.server).unwrap().len(), bytes.len());
    for (wrong, says) in [
        (ask(bytes.len() as u64, 1), "no such range"),
        (Request { kind: Kind::Table, id, offset: 0, length: 1 }.to_string() + "\n", "no such object"),
    ] {
        fetch.write_all(wrong.as_bytes()).unwrap();
        let mut answer = [0; 14];
        fetch.read_exact(&mut answer[..says.len()]).unwrap();
        assert_eq!(&answer[..says.len()], says.as_bytes());
        let mut byte = [0];
        while byte != *b"\n" {
            fetch.read_exact(&mut byte).unwrap();
        }
    }
    fetch.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let mut rest = String::new();
    fetch.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("no request"), "{rest}");
}
