//! The log, which a peer must not fill.

use super::*;

#[test]
fn one_address_does_not_fill_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "secret\n").unwrap();
    let options = ["--rpc-port", "0", "--rpc-password-file", password.to_str().unwrap()];
    let server = Server::start_services(&folder.path().join("state"), &options);
    for _ in 0..2000 {
        let mut stream = from([127, 0, 6, 1], server.port("rpc"));
        // The server may end it before all of this.
        let _ = stream.write_all(b"no login").and_then(|()| stream.shutdown(Shutdown::Write));
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let mut other = from([127, 0, 6, 2], server.port("rpc"));
    other.write_all(b"no login").unwrap();
    server.wait_log("rpc: 127.0.6.2");
    server.wait_log("lines were left out");
    let lines = server.log().matches("127.0.6.1").count();
    assert!((100..400).contains(&lines), "{lines}");
}
