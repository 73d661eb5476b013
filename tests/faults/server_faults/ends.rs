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
