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
