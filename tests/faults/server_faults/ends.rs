//! A server that is told to stop.

use super::*;

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
fn a_hangup_reads_the_configuration_again_and_drops_no_connection() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("piman.toml");
    fs::write(&config, "old-pis = 'ask'\n").unwrap();
    let mut lab = Lab::new(64 << 20, &["--config", config.to_str().unwrap()]);
    let (want, mut running) = (lab.bytes(), lab.server.connect("rootfs"));
    running.read_exact(&mut [0; 1000]).unwrap();
    // An old Pi without a system, which is told nothing until somebody decides.
    let mut old = lab.server.connect("control");
    old.write_all(b"IS_UNINSTALLED\n").unwrap();
    lab.server.wait_log("cannot say what is on its disk");

    fs::write(&config, "old-pis = 'install'\nslots = 3\nconnections = 99\n").unwrap();
    lab.server.hang_up();
    lab.server.wait_log("changed: old-pis, slots");
    lab.server.wait_log("only taken over by a restart: connections");
    for mut stream in [lab.server.connect("control"), old] {
        stream.write_all(b"IS_UNINSTALLED\n").unwrap();
        let mut said = [0; FORMAT.len()];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(said, FORMAT.as_bytes());
    }

    fs::write(&config, "slots = 'many'\n").unwrap();
    lab.server.hang_up();
    lab.server.wait_log("the configuration is not taken over, all stays as it was");
    let mut got = Vec::new();
    running.read_to_end(&mut got).unwrap();
    assert!(want.ends_with(&got) && got.len() == want.len() - 1000);
    drop(running);
    lab.server.terminate();
    assert!(lab.server.ended(Duration::from_secs(120)).success());
}

#[test]
fn a_hangup_takes_no_lock_off_the_state_and_no_password_off_a_port() {
    let folder = tempfile::tempdir().unwrap();
    let [config, password] = ["piman.toml", "password"].map(|name| folder.path().join(name));
    fs::write(&password, "sesame\n").unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&config, format!("rpc-password-file = '{}'\n", password.display())).unwrap();
    let mut lab = Lab::new(1000, &["--rpc-port", "0", "--config", config.to_str().unwrap()]);
    // Its log is not empty, and a command that comes and goes leaves it alone.
    lab.server.piman(&["reinstall", "10000000cafe0001"]);
    let log =
        || fs::metadata(lab.server.state().join("piman.db-wal")).map(|m| (m.ino(), m.len() > 0)).unwrap();
    let before = log();
    assert!(before.1);

    fs::write(&config, "slots = 2\n").unwrap();
    lab.server.hang_up();
    lab.server.wait_log("only taken over by a restart: rpc-password-file");
    lab.server.piman(&["reinstall", "127.0.0.1"]);
    lab.server.piman(&["reinstall", "10000000cafe0002"]);
    assert_eq!(log(), before, "a command took itself for the last that has the state open");
    assert_eq!(lab.decision(), FORMAT, "the server sees what was ordered");

    let address = format!("127.0.0.1:{}", lab.server.port("rpc"));
    let call = |more: &[&str]| {
        let mut command = Command::new(piman_tests::binaries::piman());
        command.args(["call", "--protocol", "piman", "--timeout", "20s"]).args(more);
        let output = command.args(["--server", &address, "identity"]).output().unwrap();
        String::from_utf8([&output.stdout[..], &output.stderr].concat()).unwrap()
    };
    assert!(call(&[]).contains("the server wants a password"), "{}", call(&[]));
    let with = call(&["--password-file", password.to_str().unwrap()]);
    assert!(with.contains("'version'"), "{with}");
    lab.server.terminate();
    assert!(lab.server.ended(Duration::from_secs(120)).success());
}
