//! A start that fails changes nothing, and two servers on one state folder are impossible.

use std::net::UdpSocket;

use piman_tests::old_state;
use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// Every name below a folder with its times and its content.
fn snapshot(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()) {
            let meta = fs::symlink_metadata(&entry).unwrap();
            let content = if meta.is_file() { fs::read(&entry).unwrap() } else { Vec::new() };
            let (name, hash) = (entry.display(), blake3::hash(&content));
            all.push(format!("{name} {:o} {}.{:09} {hash}", meta.mode(), meta.mtime(), meta.mtime_nsec()));
            if meta.is_dir() {
                folders.push(entry);
            }
        }
    }
    all.sort();
    all
}

/// A state as an older piman made it, which a server brings up to date.
fn old_state(folder: &Path) {
    fs::create_dir(folder).unwrap();
    drop(old_state::begun(folder, "INSERT INTO troubles VALUES ('slots', 1, 'none is left')"));
}

#[test]
fn a_start_that_fails_changes_nothing() {
    let archive = tar::of_bytes(1000);
    let lab = tempfile::tempdir().unwrap();
    for folder in ["files", "records", "boot", "images-file"] {
        fs::create_dir(lab.path().join(folder)).unwrap();
    }
    let path = |name: &str| lab.path().join(name).display().to_string();
    let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let ports = [tcp.local_addr(), udp.local_addr()].map(|at| at.unwrap().port().to_string());
    let (files, records, boot) = (path("files"), path("records"), path("boot"));
    let (taken, taken_udp, none) = (ports[0].as_str(), ports[1].as_str(), path("none"));
    let all = ["--transfer-dir", &files, "--transfer-port", "0", "--telemetry-dir", &records];
    let all = [&all[..], &["--telemetry-port", "0", "--rpc-port", "0", "--messages-port", "0"]].concat();
    let without = |flag: &str| -> Vec<&str> {
        let at = all.iter().position(|a| *a == flag).unwrap();
        [&all[..at], &all[at + 2..]].concat()
    };
    let lists = fs::canonicalize(archive.path()).unwrap().display().to_string();
    let starts: Vec<(Vec<&str>, &str)> = vec![
        ([&all[..], &["--control-port", taken]].concat(), "--control-port"),
        ([&all[..], &["--rootfs-port", taken]].concat(), "--rootfs-port"),
        ([&all[..], &["--fetch-port", taken]].concat(), "--fetch-port"),
        ([&without("--transfer-port")[..], &["--transfer-port", taken]].concat(), "--transfer-port"),
        ([&without("--telemetry-port")[..], &["--telemetry-port", taken]].concat(), "--telemetry-port"),
        ([&without("--rpc-port")[..], &["--rpc-port", taken]].concat(), "--rpc-port"),
        ([&without("--messages-port")[..], &["--messages-port", taken]].concat(), "--messages-port"),
        ([&all[..], &["--netboot", &boot, "--tftp-port", taken_udp]].concat(), "--tftp-port"),
        ([&all[..], &["--netboot", &none, "--tftp-port", "0"]].concat(), "netboot build"),
        ([&without("--transfer-dir")[..], &["--transfer-dir", &none]].concat(), "--transfer-dir"),
        ([&without("--telemetry-dir")[..], &["--telemetry-dir", &none]].concat(), "--telemetry-dir"),
        ([&all[..], &["--rpc-password-file", &none]].concat(), "password"),
        ([&all[..], &["--serial", "/dev/null"]].concat(), "--serial"),
        ([&all[..], &["--connections", "0", "--reinstall-file", &lists]].concat(), "2 things"),
        ([&all[..], &["--dhcp-force"]].concat(), "no effect"),
    ];
    let used = lab.path().join("used");
    drop(Server::start(archive.path(), &used, &["--no-date"]));
    // A server that was killed has left its log.
    let killed = lab.path().join("killed");
    let mut server = Server::start(archive.path(), &killed, &["--no-date"]);
    server.piman(&["reinstall", "10000000abcdef01"]);
    server.kill();
    assert!(fs::metadata(killed.join("piman.db-wal")).unwrap().len() > 0);
    let old = lab.path().join("old");
    old_state(&old);
    let absent = lab.path().join("absent/state");
    let before = snapshot(lab.path());
    for state in [&used, &killed, &old, &absent] {
        let refuse = |rootfs: &Path, more: &[&str], says: &str| {
            let (code, error) = refused(&mut Server::command(rootfs, state, more));
            assert!(code == Some(1) && error.contains(says), "{more:?}: {error}");
            assert_eq!(snapshot(lab.path()), before, "{} {more:?}", state.display());
        };
        for (more, says) in &starts {
            refuse(archive.path(), more, says);
        }
        refuse(&lab.path().join("no-such-file"), &all, "no-such-file");
        refuse(&lab.path().join("boot"), &all, "boot");
        let mut elsewhere = Command::new(piman_tests::binaries::piman());
        elsewhere.args([
            "serve",
            "--control-port",
            "0",
            "--rootfs-port",
            "0",
            "--fetch-port",
            "0",
            "--rootfs",
        ]);
        elsewhere.arg(archive.path()).args(["--netboot", &boot, "--tftp-port", "0", "--dhcp", "proxy"]);
        let elsewhere = elsewhere.args(["--dhcp-interface", "no-such-if", "--state"]).arg(state);
        let (_, error) = refused(elsewhere);
        assert!(error.contains("no-such-if"), "{error}");
        assert_eq!(snapshot(lab.path()), before, "an interface that is not there");
        let mut elsewhere = Command::new(piman_tests::binaries::piman());
        elsewhere.args(["serve", "--listen", "192.0.2.1", "--wait-for-interface=200ms", "--rootfs"]);
        let (_, error) = refused(elsewhere.arg(archive.path()).arg("--state").arg(state));
        assert!(error.contains("192.0.2.1"), "{error}");
        assert_eq!(snapshot(lab.path()), before, "an address that does not come");
    }
    // What is in the way of the operator's socket, or of the images, is known before.
    let deep = lab.path().join("x".repeat(110));
    let (_, error) = refused(&mut Server::command(archive.path(), &deep, &["--rpc-port", "0"]));
    assert!(error.contains("too long") && !deep.exists(), "{error}");
    fs::write(lab.path().join("images-file/images"), "").unwrap();
    let (_, error) = refused(&mut Server::command(archive.path(), &lab.path().join("images-file"), &[]));
    assert!(error.contains("is no folder"), "{error}");
    assert_eq!(fs::read_dir(lab.path().join("images-file")).unwrap().count(), 1);
    // And with nothing in the way all of them serve.
    for state in [&used, &killed, &old, &absent] {
        let server = Server::start(archive.path(), state, &[&all[..], &["--no-date"]].concat());
        server.wait_log("is good");
        assert_eq!(decision(&server), BOOT, "{}", state.display());
    }
    assert_ne!(snapshot(lab.path()), before);
}

#[test]
fn two_servers_on_one_state_folder_are_impossible() {
    let lab = Lab::new(1000, &["--rpc-port", "0"]);
    let state = lab.server.state().to_owned();
    let pid = lab.server.id();
    // Stopped, so that it writes nothing itself.
    let process = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    wait_until("it has said all", || lab.server.piman(&["devices"]).contains("no Pi was seen"));
    kill_process(process, Signal::STOP).unwrap();
    let before = snapshot(&state);
    for more in [&[][..], &["--rpc-port", "0"]] {
        let (code, error) = refused(&mut Server::command(&lab.archive, &state, more));
        assert!(code == Some(1) && error.contains("--state"), "{error}");
        assert!(error.contains(&format!("process {pid}, started")), "{error}");
        assert_eq!(snapshot(&state), before, "{more:?}");
    }
    kill_process(process, Signal::CONT).unwrap();
    let mut doctor = Command::new(piman_tests::binaries::piman());
    doctor.args(["doctor", "--listen", "127.0.0.1", "--rootfs"]).arg(&lab.archive).arg("--state").arg(&state);
    let said = String::from_utf8(doctor.output().unwrap().stdout).unwrap();
    assert!(said.contains(&format!("another server uses {}", state.display())), "{said}");
    // Whoever tidies up does not make room for a second one.
    fs::remove_file(state.join("piman.lock")).unwrap();
    let (_, error) = refused(&mut Server::command(&lab.archive, &state, &[]));
    assert!(error.contains("another process"), "{error}");
    // Commands go on beside it.
    lab.server.piman(&["reinstall", "127.0.0.1"]);
    assert_eq!(lab.decision(), FORMAT);
    wait_until("it is known", || lab.server.piman(&["devices"]).contains("127.0.0.1"));
    lab.server.piman(&["status"]);
    // What a server that was killed has left is no obstacle.
    let Lab { mut server, archive, _folder } = lab;
    fs::write(state.join("piman.lock"), format!("{pid} 1\n")).unwrap();
    server.kill();
    let next = Server::start(&archive, &state, &[]);
    let said = fs::read_to_string(state.join("piman.lock")).unwrap();
    assert!(said.starts_with(&format!("{} ", next.id())), "{said}");
}
