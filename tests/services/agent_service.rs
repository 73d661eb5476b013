//! The three programs together: `piman serve`, `pi-agent run` on two Pis, `piman call`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use piman_tests::binaries;
use piman_tests::running::Running;
use piman_tests::server::{Server, wait_until};

/// A Pi's service.
fn pi(serial: &str, port: u16, folder: &Path, password: &Path) -> Running {
    let mut command = Command::new(binaries::pi_agent());
    command.args(["run", "--server", "127.0.0.1", "--port", &port.to_string(), "--serial", serial]);
    command.arg("--password-file").arg(password).arg("--hooks").arg(folder.join("hooks"));
    command.arg("--reboot").arg(folder.join("reboot")).stdout(Stdio::null());
    Running(command.spawn().unwrap())
}

fn program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn piman(state: &Path, args: &[&str]) -> (Output, String) {
    let output = Command::new(binaries::piman())
        .arg(args[0])
        .arg("--state")
        .arg(state)
        .args(&args[1..])
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output, text)
}

#[test]
fn the_operator_calls_running_pis() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, state) = (folder.path(), folder.path().join("state"));
    let (archive, password) = (folder.join("rootfs.tar.gz"), folder.join("password"));
    let tar =
        Command::new("tar").args(["-czf"]).arg(&archive).args(["-C", "/etc", "hostname"]).status().unwrap();
    assert!(tar.success());
    fs::write(&password, "open sesame\n").unwrap();
    fs::create_dir(folder.join("hooks")).unwrap();
    program(&folder.join("hooks/greet"), "#!/bin/sh\necho \"hello $1\"\n");
    program(&folder.join("reboot"), &format!("#!/bin/sh\necho again >> {}/rebooted\n", folder.display()));

    let password_file = password.to_str().unwrap();
    let more = ["--rpc-port", "0", "--rpc-password-file", password_file];
    let server = Server::start(&archive, &state, &more);
    let port = server.port("rpc");
    let (one, two) = ("10000000aaaaaaa1", "10000000aaaaaaa2");
    let _pis = [pi(one, port, folder, &password), pi(two, port, folder, &password)];
    let wrong = folder.join("wrong");
    fs::write(&wrong, "open says me\n").unwrap();
    let _stranger = pi("10000000bbbbbbb3", port, folder, &wrong);

    wait_until("both Pis are connected", || {
        let (output, text) = piman(&state, &["status"]);
        output.status.success() && text.contains(one) && text.contains(two)
    });
    let (_, text) = piman(&state, &["status"]);
    assert!(!text.contains("bbbbbbb3"), "a Pi with another password is connected:\n{text}");

    let (output, text) = piman(&state, &["call", "all", "run", "greet", "$(id) you"]);
    assert!(output.status.success() && text.matches("hello $(id) you").count() == 2, "{text}");
    let (output, text) = piman(&state, &["call", "--json", "10000000aaaaaaa2", "identity"]);
    assert!(output.status.success() && text.contains("\"serial\": \"10000000aaaaaaa2\""), "{text}");
    let (output, text) = piman(&state, &["call", one, "run", "../reboot"]);
    assert!(!output.status.success() && text.contains("is no name of a hook"), "{text}");
    let (output, text) = piman(&state, &["call", "20000000", "identity"]);
    assert!(!output.status.success() && text.contains("not connected"), "{text}");

    let (output, text) = piman(&state, &["call", one, "reinstall"]);
    assert!(output.status.success(), "{text}");
    wait_until("the Pi starts again", || folder.join("rebooted").exists());
    let (_, text) = piman(&state, &["reinstall", "--list"]);
    assert!(text.contains(one) && !text.contains(two), "{text}");
}

#[test]
fn a_pi_comes_back_to_a_server_that_was_away() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, state) = (folder.path(), folder.path().join("state"));
    let archive = folder.join("rootfs.tar.gz");
    let tar =
        Command::new("tar").args(["-czf"]).arg(&archive).args(["-C", "/etc", "hostname"]).status().unwrap();
    assert!(tar.success());
    let more = |port: &str| ["--rpc-port".to_owned(), port.to_owned()];
    let port = piman_tests::port::steady();
    let first = more(&port.to_string());
    let server = Server::start(&archive, &state, &[&first[0], &first[1]]);
    let mut command = Command::new(binaries::pi_agent());
    command.args([
        "run",
        "--server",
        "127.0.0.1",
        "--port",
        &port.to_string(),
        "--serial",
        "10000000aaaaaaa1",
    ]);
    let _pi = Running(command.spawn().unwrap());
    let connected = || piman(&state, &["status"]).1.contains("10000000aaaaaaa1");
    wait_until("it is connected", connected);
    drop(server);
    let again = more(&port.to_string());
    let _server = Server::start(&archive, &state, &[&again[0], &again[1]]);
    wait_until("it is connected again", connected);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn an_installed_system_runs_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, state) = (folder.path(), folder.path().join("state"));
    let (archive, password) = (folder.join("rootfs.tar.gz"), folder.join("password"));
    fs::write(&password, "open sesame\n").unwrap();
    // As much of a system as systemctl wants to see; its /lib is a link, as everywhere today.
    let make = "mkdir -p r/usr/lib/systemd r/etc/systemd/system r/usr/local && touch r/usr/lib/systemd/systemd && \
                ln -s usr/lib r/lib && tar -C r -czf rootfs.tar.gz .";
    assert!(Command::new("sh").args(["-c", make]).current_dir(folder).status().unwrap().success());
    let secret = password.to_str().unwrap();
    let server = Server::start(&archive, &state, &["--rpc-port", "0", "--rpc-password-file", secret]);
    let port = server.port("rpc").to_string();
    for (path, serial) in [("archive", "10000000aaaaaaa1"), ("image", "10000000aaaaaaa2")] {
        let disk = folder.join(path);
        let size: u64 = 700 << 20;
        let mut agent = server.agent(&disk, serial);
        agent.args(["--size", "700M", "--path", path, "--transfer-port", "0"]);
        agent.args(["--service", &port, "--password-file", secret]);
        piman_tests::disk::run(&mut agent);
        let offset = 98304 * 512;
        piman_tests::disk::e2fsck(&disk, offset, size - offset);
        let mounted = piman_tests::disk::Mounted::new(&disk, offset, size - offset, "ro");
        let root = mounted.path();
        let systemctl =
            Command::new("systemctl").arg("--root").arg(root).args(["is-enabled", "piman-agent"]).output();
        match systemctl {
            Ok(output) => assert_eq!(output.stdout, b"enabled\n", "{output:?}"),
            Err(_) => println!("systemctl is not installed: only the link is looked at"),
        }
        let wants = root.join("etc/systemd/system/multi-user.target.wants/piman-agent.service");
        assert_eq!(fs::read_link(wants).unwrap(), Path::new("/etc/systemd/system/piman-agent.service"));
        // What systemd would start, started here.
        let unit = fs::read_to_string(root.join("etc/systemd/system/piman-agent.service")).unwrap();
        let start = unit.lines().find_map(|l| l.strip_prefix("ExecStart=")).unwrap();
        let mut words = start.split(' ').map(|w| match w.strip_prefix('/') {
            Some(inside) => root.join(inside),
            None => w.into(),
        });
        let program = words.next().unwrap();
        let mut service = Command::new(program);
        let _pi =
            Running(service.args(words).args(["--serial", serial]).stdout(Stdio::null()).spawn().unwrap());
        wait_until("the installed service is connected", || piman(&state, &["status"]).1.contains(serial));
    }
    // It is installed all the same, and a system that cannot run it is an error that says so.
    let check =
        Command::new(binaries::pi_agent()).args(["check", "--disk"]).arg(folder.join("image")).status();
    assert!(check.unwrap().success());
    let bare = folder.join("bare.tar.gz");
    let tar = Command::new("tar").arg("-czf").arg(&bare).args(["-C", "/etc", "hostname"]).status().unwrap();
    assert!(tar.success());
    let server = Server::start(&bare, &folder.join("other"), &["--no-images"]);
    let mut agent = server.agent(folder.join("disk"), "10000000aaaaaaa3");
    let output = agent.args(["--size", "300M", "--transfer-port", "0", "--service", "1"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("no systemd"), "{text}");
    let devices = || server.piman(&["devices"]);
    wait_until("the server knows it as installed", || devices().contains(" installed "));
    assert!(!devices().contains("systemd"), "{}", devices());
    // A password that is not there is missed before anything is erased.
    let before = blake3::hash(&fs::read(folder.join("disk")).unwrap());
    server.piman(&["reinstall", "10000000aaaaaaa3"]);
    let mut agent = server.agent(folder.join("disk"), "10000000aaaaaaa3");
    agent.args(["--transfer-port", "0", "--service", "1", "--password-file", "/no/such/password"]);
    let output = agent.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("reading /no/such/password") && text.contains("nothing was changed"), "{text}");
    assert_eq!(blake3::hash(&fs::read(folder.join("disk")).unwrap()), before);
    wait_until("the server knows why", || devices().contains("/no/such/password"));
}
