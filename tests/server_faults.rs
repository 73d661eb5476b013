//! `piman serve` with clients, files and folders that are not as they should be: a clear error
//! or none, no other Pi disturbed, memory bounded.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use piman_core::hash::Hash;
use piman_core::install::fetch::{Kind, Request};
use piman_tests::disk::is_root;
use piman_tests::server::{Server, wait_until};
use piman_tests::tar;

const BOOT: &str = "boot\nEOM\n";
const FORMAT: &str = "format\nEOM\n";

/// A server with an archive of so many bytes that is good.
struct Lab {
    server: Server,
    archive: PathBuf,
    _folder: tempfile::TempDir,
}

impl Lab {
    fn new(bytes: usize, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("rootfs.tar.zst");
        fs::copy(tar::of_bytes(bytes).path(), &archive).unwrap();
        let more = [&["--no-date"], more].concat();
        let server = Server::start(&archive, &folder.path().join("state"), &more);
        server.wait_log("is good");
        Self { server, archive, _folder: folder }
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.archive).unwrap()
    }

    /// What a Pi with a system is told, which shows that the server is well.
    fn decision(&self) -> String {
        decision(&self.server)
    }
}

fn decision(server: &Server) -> String {
    let mut talk = server.connect("control");
    talk.write_all(b"IS_INSTALLED\n").unwrap();
    talk.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    talk.read_to_string(&mut said).unwrap();
    said
}

fn download(server: &Server) -> std::io::Result<Vec<u8>> {
    let mut got = Vec::new();
    server.connect("rootfs").read_to_end(&mut got).map(|_| got)
}

/// Waits until the server ends the connection; by an end or a reset.
fn ended(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(e) => matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
    }
}

/// Runs a server that cannot start; returns its exit code and what it says.
fn refused(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    assert!(output.stdout.is_empty(), "a server that does not start says no ports");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn noise_without_end_costs_no_memory() {
    let lab = Lab::new(1000, &[]);
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
    let lab = Lab::new(1000, &["--first-report-timeout", "3s", "--idle-timeout", "5s"]);
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
fn a_pi_that_takes_nothing_is_given_up() {
    let lab = Lab::new(64 << 20, &["--stall-timeout", "3s"]);
    let mut deaf = lab.server.connect("rootfs");
    lab.server.wait_log("the peer takes no more bytes");
    assert_eq!(download(&lab.server).unwrap().len(), lab.bytes().len());
    let mut got = Vec::new();
    // What had been sent may still be there, but no end that looks like the archive's.
    assert_eq!(deaf.read_to_end(&mut got).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn two_thousand_at_once() {
    let lab = Lab::new(1 << 20, &["--connections-per-address", "3000"]);
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
    assert!(most < 64_000, "{most} kB");
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
    assert!(!lab.server.log().contains("ERROR"));
}

#[test]
fn an_archive_that_is_replaced_or_deleted_is_sent_to_its_end() {
    let lab = Lab::new(48 << 20, &[]);
    let old = lab.bytes();
    let mut running = lab.server.connect("rootfs");
    let mut begin = vec![0; 1 << 20];
    running.read_exact(&mut begin).unwrap();
    let new = tar::of_bytes(2 << 20);
    let beside = lab.archive.with_extension("new");
    fs::copy(new.path(), &beside).unwrap();
    fs::rename(&beside, &lab.archive).unwrap();
    // Whoever comes now gets the new one, as soon as it has been checked.
    assert_eq!(download(&lab.server).unwrap(), lab.bytes());
    let mut second = lab.server.connect("rootfs");
    second.read_exact(&mut [0; 1000]).unwrap();
    fs::remove_file(&lab.archive).unwrap();
    lab.server.wait_log("is gone; put it back");
    running.read_to_end(&mut begin).unwrap();
    assert!(begin == old, "{} of {} bytes", begin.len(), old.len());
    lab.server.piman(&["reinstall", "127.0.0.1"]);
    assert_eq!(lab.decision(), BOOT, "there is nothing to install, so nothing is erased");
    wait_until("it is shown", || lab.server.piman(&["devices"]).contains("is gone; put it back"));
    fs::copy(new.path(), &beside).unwrap();
    fs::rename(&beside, &lab.archive).unwrap();
    wait_until("it is served again", || lab.decision() == FORMAT);
    assert_eq!(download(&lab.server).unwrap(), lab.bytes());
}

#[test]
fn an_archive_that_is_rewritten_in_its_place_is_broken_off() {
    let lab = Lab::new(48 << 20, &[]);
    for (what, change) in [
        ("rewritten", (|f: &File| f.write_all_at(b"x", 40 << 20)) as fn(&File) -> std::io::Result<()>),
        ("truncated", |f: &File| f.set_len(30 << 20)),
    ] {
        let good = lab.bytes();
        lab.server.piman(&["reinstall", "127.0.0.1"]);
        let mut running = lab.server.connect("rootfs");
        running.read_exact(&mut vec![0; 1 << 20]).unwrap();
        change(&File::options().write(true).open(&lab.archive).unwrap()).unwrap();
        let error = running.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}");
        // One byte of content that nothing in it sums up is just another archive.
        if what == "truncated" {
            wait_until("it is known to be bad", || lab.server.piman(&["devices"]).contains("is not usable"));
            assert_eq!(lab.decision(), BOOT, "{what}");
        }
        fs::write(&lab.archive, good).unwrap();
        wait_until("it is good again", || lab.decision() == FORMAT);
        lab.server.piman(&["reinstall", "--cancel", "127.0.0.1"]);
    }
}

#[test]
fn archives_that_cannot_be_installed_are_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (state, path) = (folder.path().join("state"), folder.path().join("rootfs.tgz"));
    let plain = folder.path().join("plain.tar");
    fs::write(&plain, tar::Tar::new().push(b"a", b'0', b"", b"b").end()).unwrap();
    let empty = folder.path().join("empty.tgz");
    fs::write(&empty, "").unwrap();
    for (archive, says) in [
        (path.as_path(), "there is no such file; name a .tar.gz or .tar.zst with --rootfs"),
        (folder.path(), "it is a folder; pack it with `tar"),
        (&plain, "neither gzip nor zstd"),
        (&empty, "it is empty"),
        (Path::new("/dev/null"), "it is no file"),
    ] {
        let (code, error) = refused(&mut Server::command(archive, &state, &[]));
        assert_eq!(code, Some(1));
        assert!(error.contains(says) && error.contains(&*archive.to_string_lossy()), "{error}");
    }
    let mut none = Command::new(piman_tests::binaries::piman());
    let (code, error) = refused(none.arg("serve"));
    assert!(code == Some(1) && error.contains("--rootfs"), "{error}");
}

#[test]
fn a_damaged_archive_is_found_in_the_background() {
    let folder = tempfile::tempdir().unwrap();
    let good = fs::read(tar::of_bytes(3 << 20).path()).unwrap();
    let tar = folder.path().join("a.tar");
    fs::write(&tar, tar::Tar::new().push(b"a", b'0', b"", &good).end()).unwrap();
    assert!(Command::new("gzip").arg(&tar).status().unwrap().success());
    let gzip = fs::read(tar.with_extension("tar.gz")).unwrap();
    let mut crc = gzip.clone();
    let at = crc.len() - 8;
    crc[at] ^= 1;
    for (what, bytes) in
        [("truncated", &gzip[..gzip.len() / 2]), ("wrong CRC", &crc), ("cut zstd", &good[..good.len() - 9])]
    {
        let archive = folder.path().join("rootfs");
        fs::write(&archive, bytes).unwrap();
        let state = folder.path().join(what);
        let server = Server::start(&archive, &state, &["--no-date"]);
        server.wait_log("is not usable");
        assert!(server.log().contains("until it is replaced by a good one"), "{}", server.log());
        server.piman(&["reinstall", "127.0.0.1"]);
        assert_eq!(decision(&server), BOOT, "{what}: what is on the card stays");
        let devices = || server.piman(&["devices"]);
        wait_until("it is shown", || {
            devices().contains("is not usable") && devices().contains("not possible")
        });
        // Nothing of it goes out; whoever asks is served when there is something good.
        let mut early = server.connect("rootfs");
        early.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let nothing = early.read(&mut [0; 10]).unwrap_err().kind();
        assert!(matches!(nothing, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{what}: {nothing}");
        // Our own agent, with an empty card, is told to wait.
        let mut agent = server.connect("control");
        agent.write_all(b"PIMAN/1 hello serial=1234abcd paths=stream\nIS_UNINSTALLED\n").unwrap();
        let mut wait = [0; 13];
        agent.read_exact(&mut wait).unwrap();
        assert_eq!(&wait, b"PIMAN/1 wait ");
        fs::write(&archive, &gzip).unwrap();
        early.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut got = Vec::new();
        early.read_to_end(&mut got).unwrap();
        assert_eq!(got, gzip, "{what}");
        assert_eq!(decision(&server), FORMAT);
        wait_until("it is over", || !devices().starts_with("archive: "));
    }
}

#[test]
fn a_state_folder_that_cannot_be_used() {
    let archive = tar::of_bytes(1000);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let (code, error) = refused(&mut Server::command(archive.path(), &file.join("state"), &[]));
    assert!(code == Some(1) && error.contains("cannot be written") && error.contains("--state"), "{error}");

    let read_only = folder.path().join("ro");
    fs::create_dir(&read_only).unwrap();
    let command = Server::command(archive.path(), &read_only, &[]);
    let (code, error) = if is_root() {
        // Root may write anywhere, except on a filesystem that nobody can write.
        let mut script = String::from("mount -t tmpfs -o ro none \"$0\" && exec \"$@\"");
        script.insert_str(0, "set -e; ");
        let mut unshare = Command::new("unshare");
        unshare
            .args(["-m", "sh", "-c", &script])
            .arg(&read_only)
            .arg(command.get_program())
            .args(command.get_args());
        refused(&mut unshare)
    } else {
        fs::set_permissions(&read_only, fs::Permissions::from_mode(0o555)).unwrap();
        refused(&mut { command })
    };
    assert!(code == Some(1) && error.contains("cannot be written") && error.contains("--state"), "{error}");

    let (code, error) =
        refused(Command::new(piman_tests::binaries::piman()).args(["devices", "--state"]).arg(folder.path()));
    assert!(code == Some(1) && error.contains("there is no state in"), "{error}");
}

#[test]
fn a_damaged_state_is_moved_aside() {
    let archive = tar::of_bytes(1000);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("piman.db");
    for damage in [&b"this is no database at all, and was never one"[..], &[0xff; 50_000]] {
        // A good log of what was changed last would repair it.
        let _ = fs::remove_file(folder.path().join("piman.db-wal"));
        fs::write(&file, damage).unwrap();
        let mut command = Command::new(piman_tests::binaries::piman());
        let (code, error) = refused(command.args(["reinstall", "127.0.0.1", "--state"]).arg(folder.path()));
        assert!(code == Some(1) && error.contains("is damaged"), "{error}");
        let server = Server::start(archive.path(), folder.path(), &["--no-date"]);
        server.wait_log("is good");
        assert!(
            server.log().contains("is damaged") && server.log().contains("ordered again"),
            "{}",
            server.log()
        );
        server.piman(&["reinstall", "127.0.0.1"]);
        assert_eq!(decision(&server), FORMAT);
        let kept = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path());
        let kept = kept.filter(|p| fs::read(p).is_ok_and(|bytes| bytes == damage)).count();
        assert_eq!(kept, 1, "the damaged one is kept");
    }
    // While a server runs: it goes on, and begins anew.
    let server = Server::start(archive.path(), folder.path(), &["--no-date"]);
    server.wait_log("is good");
    assert_eq!(decision(&server), FORMAT);
    fs::remove_file(&file).unwrap();
    assert_eq!(decision(&server), FORMAT, "the order is not lost while it runs");
    server.wait_log("was removed or replaced");
    server.piman(&["reinstall", "127.0.0.1"]);
    assert_eq!(decision(&server), FORMAT);
    // And when its files are there but empty all of a sudden.
    for name in ["piman.db", "piman.db-wal"] {
        File::options().write(true).open(folder.path().join(name)).unwrap().set_len(0).unwrap();
    }
    assert!([BOOT, FORMAT].contains(&decision(&server).as_str()));
    wait_until("it is well again", || {
        decision(&server);
        let mut reinstall = Command::new(piman_tests::binaries::piman());
        let ordered =
            reinstall.args(["reinstall", "127.0.0.1", "--state"]).arg(folder.path()).output().unwrap();
        ordered.status.success() && decision(&server) == FORMAT
    });
}

#[test]
fn ports_that_are_taken_or_not_permitted() {
    let archive = tar::of_bytes(1000);
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for flag in ["--control-port", "--rootfs-port", "--fetch-port"] {
        let (code, error) = refused(&mut Server::command(archive.path(), folder.path(), &[flag, &port]));
        assert_eq!(code, Some(1));
        assert!(error.contains(&format!("sport = :{port}")) && error.contains(flag), "{error}");
    }
    let mut foreign = Server::command(archive.path(), folder.path(), &[]);
    let (_, error) = refused(foreign.args(["--control-port", "4445"]));
    assert!(error.contains("cannot be used multiple times"), "{error}");
    let mut twice = Command::new(piman_tests::binaries::piman());
    twice.args(["serve", "--listen", "192.0.2.1", "--control-port", "0", "--rootfs"]).arg(archive.path());
    let (_, error) = refused(twice.arg("--state").arg(folder.path()));
    assert!(error.contains("does not have that address"), "{error}");
}

#[test]
fn what_is_wrong_in_a_configuration_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("piman.toml");
    for (text, says) in [
        ("rootsf = '/x'", "rootsf"),
        ("rootfs = '/x'\ncontrol-port = 'many'", "control-port"),
        ("rootfs = '/x'\ncontrol-port = 4444", "rootfs-port"),
        ("rootfs = '/does/not/exist'", "/does/not/exist"),
    ] {
        fs::write(&config, text).unwrap();
        let mut command = Command::new(piman_tests::binaries::piman());
        let (code, error) = refused(command.args(["serve", "--config"]).arg(&config));
        assert!(code == Some(1) && error.contains(says), "{error}");
    }
    let (code, _) =
        refused(Command::new(piman_tests::binaries::piman()).args(["serve", "--idle-timeout", "soon"]));
    assert_eq!(code, Some(2));
}

#[test]
fn a_server_that_is_stopped_finishes_its_transfers() {
    let mut lab = Lab::new(64 << 20, &[]);
    let want = lab.bytes();
    let mut running: Vec<_> = (0..8).map(|_| lab.server.connect("rootfs")).collect();
    for stream in &mut running {
        stream.read_exact(&mut [0; 1000]).unwrap();
    }
    lab.server.terminate();
    lab.server.wait_log("8 transfers");
    let port = lab.server.port("control");
    wait_until("nobody is let in any more", || TcpStream::connect(("127.0.0.1", port)).is_err());
    thread::scope(|scope| {
        for mut stream in running {
            scope.spawn(|| {
                let mut got = Vec::new();
                stream.read_to_end(&mut got).unwrap();
                assert!(got.len() == want.len() - 1000 && want.ends_with(&got));
                drop(stream);
            });
        }
    });
    assert!(lab.server.ended(Duration::from_secs(120)).success());
    wait_until("all were whole", || lab.server.log().matches("got the whole archive").count() == 8);
}

#[test]
fn a_second_signal_or_the_time_ends_a_server() {
    for more in [&["--shutdown-timeout", "1h"][..], &["--shutdown-timeout", "300ms"]] {
        let mut lab = Lab::new(64 << 20, more);
        let mut running = lab.server.connect("rootfs");
        running.read_exact(&mut [0; 1000]).unwrap();
        lab.server.terminate();
        lab.server.wait_log("1 transfers");
        if more.contains(&"1h") {
            lab.server.terminate();
            lab.server.wait_log("stopping at once");
        }
        assert!(lab.server.ended(Duration::from_secs(120)).success());
        assert!(ended(&mut running));
    }
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
