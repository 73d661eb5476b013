//! A system that gives no thread: what is under way ends by an error that says so, or does without.

use std::fs::{self, File};
use std::process::{Command, Output};

use piman_tests::binaries;
use piman_tests::disk::run;
use piman_tests::running::Running;
use piman_tests::server::{Server, wait_until};

/// A variable of the standard library's: no thread can have a stack of this size.
const NO_THREADS: (&str, &str) = ("RUST_MIN_STACK", "4611686018427387904");

fn output(command: &mut Command) -> (Output, String) {
    let output = command.env(NO_THREADS.0, NO_THREADS.1).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    (output, text)
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_pi_says_so_and_installs_when_there_are_some_again() {
    let folder = tempfile::tempdir().unwrap();
    let script = "mkdir r && head -c 3000000 /dev/urandom > r/data && tar -C r -czf r.tgz .";
    run(Command::new("sh").args(["-ec", script]).current_dir(folder.path()));
    let server = Server::start(&folder.path().join("r.tgz"), &folder.path().join("state"), &[]);
    for (path, serial) in [("archive", "10000000bbbbbbb1"), ("image", "10000000bbbbbbb2")] {
        let disk = folder.path().join(path);
        let install = || {
            let mut agent = server.agent(&disk, serial);
            agent.args(["--size", "300M", "--path", path, "--transfer-port"]);
            agent.arg(server.port("fetch").to_string());
            agent
        };
        let (ended, text) = output(&mut install());
        assert_eq!(ended.status.code(), Some(1), "{text}");
        assert!(text.contains("transfer: starting a thread"), "{path}: {text}");
        wait_until("the server knows why", || server.piman(&["devices"]).contains("starting a thread"));
        run(&mut install());
        run(Command::new(binaries::pi_agent()).args(["check", "--disk"]).arg(&disk));
        wait_until("it is installed", || !server.piman(&["devices"]).contains("starting a thread"));
    }
}

#[test]
fn a_call_is_answered_by_it_and_the_connection_stays() {
    let folder = tempfile::tempdir().unwrap();
    let script = "mkdir r && echo x > r/x && tar -C r -czf r.tgz . && echo secret > password";
    run(Command::new("sh").args(["-ec", script]).current_dir(folder.path()));
    let (state, password) = (folder.path().join("state"), folder.path().join("password"));
    let more = ["--rpc-port", "0", "--rpc-password-file", password.to_str().unwrap()];
    let server = Server::start(&folder.path().join("r.tgz"), &state, &more);
    let (serial, log) = ("10000000bbbbbbb3", folder.path().join("log"));
    let mut pi = Command::new(binaries::pi_agent());
    pi.args(["run", "--server", "127.0.0.1", "--port", &server.port("rpc").to_string(), "--serial", serial]);
    pi.arg("--password-file").arg(&password).env(NO_THREADS.0, NO_THREADS.1);
    let _pi = Running(pi.stderr(File::create(&log).unwrap()).spawn().unwrap());
    let call = || {
        let mut call = Command::new(binaries::piman());
        call.arg("call").arg("--state").arg(&state).args(["all", "status"]);
        let Output { stdout, stderr, .. } = call.output().unwrap();
        String::from_utf8([stdout, stderr].concat()).unwrap()
    };
    wait_until("the Pi answers", || call().contains("starting a thread for the call"));
    // More than may be under way at a time.
    for _ in 0..10 {
        let said = call();
        assert!(said.contains("starting a thread for the call"), "{said}");
    }
    let log = fs::read_to_string(&log).unwrap();
    assert_eq!(log.matches("connected to").count(), 1, "{log}");
}

#[test]
fn an_image_is_made_without_others() {
    let folder = tempfile::tempdir().unwrap();
    let script = "mkdir r && head -c 9000000 /dev/urandom > r/data && tar -C r -czf r.tgz .";
    run(Command::new("sh").args(["-ec", script]).current_dir(folder.path()));
    fs::create_dir(folder.path().join("state")).unwrap();
    let build = || {
        let mut build = Command::new(binaries::piman());
        build.args(["image", "build", "--rootfs", "r.tgz", "--state", "state"]);
        build.current_dir(folder.path());
        build
    };
    let (ended, text) = output(&mut build());
    assert!(ended.status.success(), "{text}");
    assert!(text.contains("compressing with fewer threads"), "{text}");
}
