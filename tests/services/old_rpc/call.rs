//! `piman call --server`, which calls one server from a desk.

use std::process::{Command, Output};
use std::sync::Arc;

use piman::rpc::ConnectedPis;
use piman_tests::binaries;
use piman_tests::server::wait_until;

use super::{Old, passwords, start_with};

fn piman_call(more: &[&str]) -> (Output, String) {
    let output = Command::new(binaries::piman()).arg("call").args(more).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output, text)
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn piman_call_calls_an_old_server_from_a_desk() {
    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = passwords(folder.path());
    let (right, wrong) = (right.to_str().unwrap(), wrong.to_str().unwrap());
    for (role, password, more) in [
        ("one", "null", &[][..]),
        ("many", "null", &[][..]),
        ("one", "\"secret\"", &["--protocol", "pickle", "--password-file", right][..]),
        ("many", "\"secret\"", &["--protocol", "auto", "--password-file", right][..]),
        ("many", "null", &["--protocol", "auto", "--password-file", right][..]),
    ] {
        let options = format!(r#"{{"role": "{role}", "password": {password}, "protocol": 4}}"#);
        let old = Old::start(&options);
        let server = format!("127.0.0.1:{}", old.port());
        let all = [&["--json", "--server", &server][..], more, &["1", "[1,\"x\"]", "-7", "text"]].concat();
        let (output, text) = piman_call(&all);
        assert!(output.status.success(), "{text}");
        let result: String = String::from_utf8_lossy(&output.stdout).lines().map(str::trim).collect();
        let want = format!("[{{\"device\": \"{server}\",\"result\": [[1,\"x\"],-7,\"text\"]}}]");
        assert_eq!(result, want);
        let id = old.says("in");
        assert_eq!(id.len(), if role == "many" { 6 } else { 0 }, "{id}");
        old.says("end");
    }
    // Without the password, with a wrong one, and then right; the function fails.
    let options = r#"{"role": "one", "password": "secret", "protocol": 4}"#;
    let old = Old::start(options);
    let server = format!("127.0.0.1:{}", old.port());
    let (output, text) = piman_call(&["--server", &server, "1"]);
    assert!(!output.status.success() && text.contains("give it with --password-file"), "{text}");
    let again = |more: &[&str]| {
        let all = [&["--server", &server][..], more].concat();
        let mut last = piman_call(&all);
        // The old server opens its port again in a moment.
        wait_until("the port is open again", || {
            let closed = last.1.contains("refused (os error");
            if closed {
                last = piman_call(&all);
            }
            !closed
        });
        last
    };
    let (output, text) = again(&["--protocol", "pickle", "--password-file", wrong, "1"]);
    assert!(!output.status.success() && text.contains("the password is wrong"), "{text}");
    let (output, text) = again(&["--protocol", "pickle", "--password-file", right, "3", "5"]);
    assert!(!output.status.success() && text.contains("ValueError: no 5"), "{text}");
    assert!(text.contains("the password crosses the network in clear"), "{text}");
    // The password is not given away unasked.
    let old = Old::start(options);
    let server = format!("127.0.0.1:{}", old.port());
    let (output, text) = piman_call(&["--server", &server, "--password-file", right, "1"]);
    assert!(!output.status.success() && text.contains("--protocol pickle"), "{text}");
    // Wrong use.
    for (more, what) in [
        (&["--protocol", "pickle", "all", "status"][..], "--server"),
        (&["--server", "lab", "--protocol", "telnet", "1"][..], "auto, pickle or piman"),
        (&["--server", "lab:x", "1"][..], "x is not a port"),
        (&["all"][..], "FUNCTION"),
        (&["--server", "127.0.0.1:1", "1"][..], "127.0.0.1 port 1"),
    ] {
        let (output, text) = piman_call(more);
        assert!(!output.status.success() && text.contains(what), "{more:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn piman_call_calls_our_own_server_from_a_desk() {
    let folder = tempfile::tempdir().unwrap();
    let (right, _) = passwords(folder.path());
    let right = right.to_str().unwrap().to_owned();
    let connected = ConnectedPis::default();
    let server = start_with(Some("secret"), connected.clone(), Arc::new(connected));
    let name = format!("127.0.0.1:{}", server.address().port());
    tokio::task::spawn_blocking(move || {
        for protocol in ["piman", "pickle", "auto"] {
            let more = ["--server", &name, "--protocol", protocol, "--password-file", &right];
            let (output, text) = piman_call(&[&more[..], &["--json", "identity"]].concat());
            assert!(output.status.success() && text.contains("\"server\": \"piman\""), "{protocol}: {text}");
        }
        let (output, text) = piman_call(&["--server", &name, "identity"]);
        assert!(!output.status.success() && text.contains("wants a password"), "{text}");
    })
    .await
    .unwrap();
}
