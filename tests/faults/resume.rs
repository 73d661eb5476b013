//! Connections that break, servers that are killed, bits that flip: an installation goes on
//! where it was, and nothing that is wrong is ever installed.

use std::ffi::OsString;
use std::fs::{self, File, FileTimes};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pi_agent::card::inspect;
use pi_agent::cli::{self, Order};
use pi_agent::failure::Cause;
use pi_agent::install::{Outcome, Plan};
use pi_agent::rpc::{self, Service};
use piman_tests::chance::Random;
use piman_tests::disk::{Mounted, run};
use piman_tests::lab::{self, CARD, Root, attempt, behind_a_proxy};
use piman_tests::port;
use piman_tests::proxy::{Door, Faults, Tampering};
use piman_tests::running::Running;
use piman_tests::server::{Server, wait_until};

/// An empty card in memory.
fn card(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(CARD).unwrap();
    path
}

fn plan(server: &Server, host: &str, card: &Path, path: &str) -> Plan {
    let mut plan = lab::plan(server, card, path);
    plan.server.host = host.into();
    plan
}

/// The image for these cards must be there before bytes are counted.
fn prepared(root: &Root, server: &Server, folder: &Path) {
    let card = card(folder, "first.img");
    let outcome = attempt(&lab::plan(server, &card, "image")).unwrap();
    assert!(matches!(outcome, Outcome::Installed { .. }), "{outcome:?}");
    root.assert_on(&card);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_fetch_port_that_nobody_can_reach_is_told_soon_and_nothing_is_erased() {
    let (root, server, folder) = lab::with_server("unheard", 100_000);
    prepared(&root, &server, folder.path());
    let (host, old) = ("127.0.0.13", vec![0x5a; 1 << 20]);
    // A firewall that lets only the control port through.
    let at = |host: &str| SocketAddr::new(host.parse().unwrap(), server.port("control"));
    let _proxy = Tampering::new(at(host), at("127.0.0.1"), Faults::default());
    for path in ["archive", "image"] {
        let card = card(folder.path(), "unheard.img");
        File::options().write(true).open(&card).unwrap().write_all_at(&old, 0).unwrap();
        let failure = attempt(&plan(&server, host, &card, path)).unwrap_err();
        assert_eq!(failure.cause, Cause::Network, "{failure}");
        assert!(failure.to_string().contains("is the server's fetch port open"), "{failure}");
        assert!(fs::read(&card).unwrap().starts_with(&old), "{path}: something was written");
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_hundred_cuts_in_one_installation() {
    let (root, server, folder) = lab::with_server("cut", 3_000_000);
    prepared(&root, &server, folder.path());
    let mut random = Random::new(100);
    for (path, host) in [("archive", "127.0.0.11"), ("image", "127.0.0.12")] {
        let mut cuts: Vec<u64> = (0..100).map(|_| 1 + random.below(2_900_000)).collect();
        cuts.sort_unstable();
        let proxy = behind_a_proxy(&server, host, Faults { cuts, ..Faults::default() });
        let card = card(folder.path(), "cut.img");
        let outcome = attempt(&plan(&server, host, &card, path)).unwrap();
        let Outcome::Installed { image, received, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!((image, proxy.cuts()), (root.id, 100), "{path}");
        root.assert_on(&card);
        // What came is what is needed, in one run: the tables and a line for each request on top.
        let again = proxy.sent() - received;
        println!("{path}: {received} bytes received, {} on top, {} per cut", again, again / 100);
        assert!(again < 100 * 500 + 5000, "{path}: {again} bytes on top of {received}");
        assert!(received <= 3_300_000, "{path}: {received}");
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_bit_that_flips_anywhere_is_repaired() {
    let (root, server, folder) = lab::with_server("flip", 2_500_000);
    prepared(&root, &server, folder.path());
    let total = fs::metadata(&root.archive).unwrap().len();
    let mut random = Random::new(5);
    let mut host = 20;
    for (path, count) in [("archive", 16), ("image", 6)] {
        // In the answer's line, in the hashes, in the first and the last chunk, and anywhere.
        let last = if path == "archive" { total - 300 } else { 2_000_000 };
        let known = [0, 4, 20, 150, last].into_iter();
        let places = known.chain(std::iter::repeat_with(|| random.below(2_400_000))).take(count);
        for at in places.collect::<Vec<_>>() {
            host += 1;
            let host = format!("127.0.0.{host}");
            let faults = Faults { flips: vec![at], ..Faults::default() };
            let proxy = behind_a_proxy(&server, &host, faults);
            let card = card(folder.path(), "flip.img");
            let outcome = attempt(&plan(&server, &host, &card, path));
            let outcome = outcome.unwrap_or_else(|e| panic!("{path}, byte {at}: {e}"));
            assert!(matches!(outcome, Outcome::Installed { .. }), "{path}, byte {at}: {outcome:?}");
            assert!(proxy.sent() > at, "{path}: byte {at} was not sent");
            root.assert_on(&card);
        }
    }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_bit_that_flips_on_the_server_is_named_and_never_installed() {
    let (root, server, folder) = lab::with_server("rot", 2_500_000);
    let file = File::options().read(true).write(true).open(&root.archive).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let mut random = Random::new(9);
    let length = file.metadata().unwrap().len();
    for _ in 0..3 {
        let at = random.below(length);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        let flip = |value: u8| {
            file.write_all_at(&[value], at).unwrap();
            // As a disk that rots: nobody wrote.
            file.set_times(FileTimes::new().set_modified(modified)).unwrap();
        };
        flip(byte[0] ^ 1);
        let card = card(folder.path(), "rot.img");
        let failure = attempt(&lab::plan(&server, &card, "archive")).unwrap_err();
        assert_eq!(failure.cause, Cause::Image, "{failure}");
        let chunk = at >> 20;
        let says = format!("chunk {chunk} of the archive (from byte {} on)", chunk << 20);
        assert!(failure.to_string().contains(&says), "{failure} instead of {says}");
        let found = inspect::check(&card).unwrap();
        assert!(!found.is_installed(true), "not even where others are trusted: {found}");
        flip(byte[0]);
        attempt(&lab::plan(&server, &card, "archive")).unwrap();
        root.assert_on(&card);
    }
}

/// A server that is years old: no word on the rootfs port, each connection cut at a place of its own.
fn old_server(archives: impl Fn(usize) -> Arc<Vec<u8>> + Send + 'static, cuts: Vec<usize>) -> (u16, u16) {
    let control = TcpListener::bind("127.0.0.1:0").unwrap();
    let rootfs = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = (control.local_addr().unwrap().port(), rootfs.local_addr().unwrap().port());
    thread::spawn(move || {
        for mut stream in control.incoming().flatten() {
            for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
                let answer: &[u8] = match line.as_str() {
                    "IS_UNINSTALLED" => b"format\nEOM\n",
                    "IS_INSTALLED" => b"boot\nEOM\n",
                    _ => continue,
                };
                // The Pi may be gone.
                let _ = stream.write_all(answer);
            }
        }
    });
    thread::spawn(move || {
        for (n, mut stream) in rootfs.incoming().flatten().enumerate() {
            let archive = archives(n);
            let end = cuts.get(n).copied().unwrap_or(archive.len()).min(archive.len());
            let _ = stream.write_all(&archive[..end]);
            if n % 2 == 1 && end < archive.len() {
                // A reset instead of an end.
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
                continue;
            }
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said);
            assert!(said.is_empty(), "the agent sent {said:?} on the rootfs port");
        }
    });
    ports
}

fn plan_with_old(ports: (u16, u16), server: &Server, card: &Path) -> Plan {
    let mut plan = lab::plan(server, card, "archive");
    (plan.server.control_port, plan.server.rootfs_port) = ports;
    plan
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn an_old_server_that_breaks_off_is_asked_again_and_nothing_is_written_twice() {
    let root = Root::new("old", 1_500_000);
    let new = root.serve(&[]);
    let archive = Arc::new(fs::read(&root.archive).unwrap());
    let folder = lab::memory();
    let mut random = Random::new(3);
    let mut cuts: Vec<usize> = (0..15).map(|_| 1 + random.below(archive.len() as u64 - 1) as usize).collect();
    cuts.extend([2, 3, archive.len() - 1]);
    cuts.sort_unstable();
    let same = Arc::clone(&archive);
    let ports = old_server(move |_| Arc::clone(&same), cuts);
    let card_path = card(folder.path(), "old.img");
    let outcome = attempt(&plan_with_old(ports, &new, &card_path)).unwrap();
    let Outcome::Installed { image, received, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!((image, received), (root.id, archive.len() as u64));
    root.assert_on(&card_path);

    // Connections that end long before the place where it goes on say nothing about the archive.
    let same = Arc::clone(&archive);
    let ports = old_server(move |_| Arc::clone(&same), vec![archive.len() / 2, 10, 10, 10, 10]);
    let card_path = card(folder.path(), "short.img");
    attempt(&plan_with_old(ports, &new, &card_path)).unwrap();
    root.assert_on(&card_path);

    // Another archive from the second connection on: never a mix.
    let other = Root::new("another", 1_400_000);
    let (one, two) = (Arc::clone(&archive), Arc::new(fs::read(&other.archive).unwrap()));
    let half = archive.len() / 2;
    let ports = old_server(move |n| Arc::clone(if n == 0 { &one } else { &two }), vec![half]);
    let card_path = card(folder.path(), "mix.img");
    let failure = attempt(&plan_with_old(ports, &new, &card_path)).unwrap_err();
    assert!(failure.cause == Cause::Network && failure.to_string().contains("another archive"), "{failure}");
    assert!(!inspect::check(&card_path).unwrap().is_installed(true));
    attempt(&plan_with_old(ports, &new, &card_path)).unwrap();
    other.assert_on(&card_path);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_server_that_is_killed_five_times_installs_eight_pis() {
    const PIS: u64 = 8;
    let root = Root::new("killed", 1_200_000);
    let folder = lab::memory();
    let ports = port::several::<3>().map(|port| port.to_string());
    let fixed = ["--control-port", &ports[0], "--rootfs-port", &ports[1], "--fetch-port", &ports[2]];
    let mut server = root.serve(&fixed);
    prepared(&root, &server, folder.path());
    // Slow enough that all of them are in the middle of it each time.
    let faults = Faults { bytes_per_second: 1_000_000, ..Faults::default() };
    let proxy = behind_a_proxy(&server, "127.0.0.99", faults);
    let layout = folder.path().join("layout");
    fs::write(&layout, "label-id: 0x12345678\n1 : start=2048, size=4096\n2 : start=8192\n").unwrap();
    let mut agents = Vec::new();
    for n in 0..PIS {
        let card = card(folder.path(), &format!("pi{n}.img"));
        let mut agent = server.agent(&card, &format!("00000000cafe10{n:02}"));
        agent
            .args(["--server", "127.0.0.99", "--transfer-port", "0", "--retries", "50", "--layout"])
            .arg(&layout);
        agent.args(["--path", if n % 2 == 0 { "archive" } else { "image" }]);
        agents.push((card, Running(agent.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap())));
    }
    let total = fs::metadata(&root.archive).unwrap().len() * PIS;
    let began = Instant::now();
    for kill in 1..=5 {
        wait_until("bytes are sent", || proxy.sent() > total * kill / 7);
        // Dropping it is SIGKILL.
        drop(server);
        server = Server::start(&root.archive, &root.state(), &fixed);
    }
    for (card, agent) in &mut agents {
        wait_until("an agent ends", || agent.try_wait().unwrap().is_some());
        assert!(agent.wait().unwrap().success(), "{}", card.display());
        root.assert_on(card);
    }
    let took = began.elapsed().as_secs_f32();
    println!("{} bytes were sent for {total}, in {took:.1} s", proxy.sent());
    assert!(proxy.sent() < total + 6 * PIS * 100_000, "{} bytes were sent for {total}", proxy.sent());
    for n in 0..PIS {
        let history = server.piman(&["device", &format!("00000000cafe10{n:02}")]);
        let installed = history.lines().filter(|l| l.contains("installed image")).count();
        assert!(installed <= 1, "installed {installed} times: {history}");
    }
    let listed = || server.piman(&["devices"]).matches("cafe10").count() as u64;
    wait_until("all of them are listed", || listed() == PIS);
}

/// A Pi whose server was away when its installation ended has the installed system tell it, as soon as it is there.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_server_that_was_away_at_the_end_is_told_by_the_installed_agent() {
    let folder = lab::memory();
    let folder = folder.path();
    let archive = folder.join("rootfs.tar.gz");
    let make = "mkdir -p r/usr/lib/systemd r/etc/systemd/system r/usr/local && touch r/usr/lib/systemd/systemd && \
                ln -s usr/lib r/lib && head -c 3000000 /dev/urandom >r/noise && tar -C r -czf rootfs.tar.gz .";
    run(Command::new("sh").args(["-c", make]).current_dir(folder));
    let server = Server::start(&archive, &folder.join("state"), &["--rpc-port", "0"]);
    server.wait_log("is good");
    for (n, path) in ["archive", "image"].into_iter().enumerate() {
        let (serial, host) = (format!("00000000cafe200{n}"), format!("127.0.0.{}", 60 + n));
        let at = |host: &str, name: &str| SocketAddr::new(host.parse().unwrap(), server.port(name));
        let mut door = Door::new(at(&host, "control"), at("127.0.0.1", "control"));
        // Slow enough that the server is away before the end.
        let faults = Faults { bytes_per_second: 1_500_000, ..Faults::default() };
        let _fetch = Tampering::new(at(&host, "fetch"), at("127.0.0.1", "fetch"), faults);
        let card = folder.join("told.img");
        let mut agent = server.agent(&card, &serial);
        agent.args(["--server", &host, "--size", "700M", "--path", path, "--transfer-port", "0"]);
        agent.args(["--service", &server.port("rpc").to_string(), "--tell", "1"]);
        let mut agent = Running(agent.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
        let logged = |what: &str| server.log().lines().any(|l| l.contains(&serial) && l.contains(what));
        wait_until("it is told to format", || logged("told to format"));
        door.shut();
        let mut said = String::new();
        agent.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(agent.wait().unwrap().success(), "{path}: {said}");
        assert!(said.contains("the server cannot be told how it ended"), "{path}: {said}");
        assert!(!logged("is on its card"), "{path}: {}", server.log());
        let mounted = Mounted::new(&card, 98_304 * 512, (700 << 20) - 98_304 * 512, "");
        let kept = mounted.path().join(".piman-unsaid");
        assert!(fs::read_to_string(&kept).unwrap().ends_with("\ninstalled\n"), "{path}");
        // The installed agent, which comes to nobody yet.
        let order =
            cli::parse(["run", "--server", &host, "--port", "9", "--serial", &serial].map(OsString::from));
        let Ok(Order::Run(service)) = order else { panic!("{order:?}") };
        let service = Arc::new(Service { root: mounted.path().into(), ..Service::clone(&service) });
        thread::spawn(move || rpc::run(&service));
        door.open();
        wait_until("the server is told", || logged("is on its card"));
        wait_until("it is told once", || !kept.exists());
        drop(mounted);
        fs::remove_file(&card).unwrap();
    }
}
