//! `piman serve --serial` and its clients at the two ends of a bad cable: everything gets through whole, and what
//! does not get through is an error.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use piman_tests::binaries;
use piman_tests::cable::{Cable, Faults};
use piman_tests::chance::noise;
use piman_tests::running::Running;
use piman_tests::server::{Server, wait_until};

struct Lab {
    dir: tempfile::TempDir,
    cable: Cable,
}

impl Lab {
    fn new(faults: Faults) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["files", "records"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let make = "mkdir -p r/bin r/etc && (head -c 4096 /proc/self/exe; head -c 60000 /dev/urandom) > r/bin/sh && echo pi > r/etc/hostname && \
                    mkdir r/sbin && printf '#!/bin/sh\n' > r/sbin/init && chmod 755 r/sbin/init r/bin/sh && \
                    tar -C r -czf rootfs.tar.gz .";
        assert!(Command::new("sh").args(["-c", make]).current_dir(dir.path()).status().unwrap().success());
        Self { dir, cable: Cable::new(faults) }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn serve(&self) -> Server {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let (files, records) = (text(&self.path("files")), text(&self.path("records")));
        let line = text(&self.cable.ends[0]);
        let more = ["--transfer-dir", &files, "--transfer-port", "0", "--telemetry-dir", &records];
        let more = [&more[..], &["--telemetry-port", "0", "--rpc-port", "0", "--no-date", "--serial", &line]]
            .concat();
        Server::start(&self.path("rootfs.tar.gz"), &self.path("state"), &more)
    }

    /// What a client calls the server.
    fn host(&self) -> String {
        format!("serial:{}:460800", self.cable.ends[1].display())
    }

    fn piman(&self, arguments: &[&str]) -> Output {
        Command::new(binaries::piman()).args(arguments).current_dir(self.dir.path()).output().unwrap()
    }
}

const BAD: Faults = Faults { lost: 3000, flipped: 3000 };

#[test]
fn a_card_is_installed_by_image_over_a_bad_line() {
    install_over_a_bad_line(&["image"]);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_card_is_installed_by_stream_over_a_bad_line() {
    install_over_a_bad_line(&["archive"]);
}

fn install_over_a_bad_line(paths: &[&str]) {
    let lab = Lab::new(BAD);
    let server = lab.serve();
    for path in paths {
        let disk = lab.path(path);
        let mut agent = Command::new(binaries::pi_agent());
        agent.args(["install", "--server", &lab.host(), "--serial", "cafe0001", "--size", "128M"]);
        agent.args(["--path", path, "--disk"]).arg(&disk);
        let output = piman_tests::disk::run(&mut agent);
        assert!(String::from_utf8_lossy(&output.stdout).contains("installed image"), "{output:?}");
        let offset = 98304 * 512;
        piman_tests::disk::e2fsck(&disk, offset, (128 << 20) - offset);
        let check = Command::new(binaries::pi_agent()).args(["check", "--disk"]).arg(&disk).status().unwrap();
        assert!(check.success());
        // Its log came the same way.
        let log = fs::read_dir(lab.path("files")).unwrap().flatten().any(|e| {
            e.file_name().to_str().is_some_and(|n| n.starts_with("cafe0001-") && n.ends_with(".log"))
        });
        assert!(log, "no log came up");
    }
    wait_until("it is listed", || server.piman(&["devices"]).contains("cafe0001"));
}

/// The attempt of process 1, in a name space without any network but loopback: until the installed system is
/// mounted and can be booted.
#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn a_pi_that_boots_installs_over_a_line() {
    let lab = Lab::new(BAD);
    let server = lab.serve();
    let disk = lab.path("card");
    fs::File::create(&disk).unwrap().set_len(128 << 20).unwrap();
    let cmdline = format!("quiet piman.server={} piman.disk={} piman.path=image", lab.host(), disk.display());
    fs::write(lab.path("cmdline"), cmdline).unwrap();
    let step = format!(
        "mount -t tmpfs none /run && mount -t tmpfs none /etc && ip link set lo up && exec {} init-step --cmdline {}",
        binaries::pi_agent().display(),
        lab.path("cmdline").display()
    );
    let mut alone = Command::new("unshare");
    alone.args(["--mount", "--propagation", "private", "--net", "sh", "-c", &step]).stdin(Stdio::null());
    let place = Path::new(pi_agent::init::NEW_ROOT);
    let was_there = place.exists();
    let output = alone.output().unwrap();
    if !was_there {
        let _ = fs::remove_dir(place);
    }
    // Its exit code is that of a system that is ready.
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("installed image"), "{output:?}");
    let check = Command::new(binaries::pi_agent()).args(["check", "--disk"]).arg(&disk).status().unwrap();
    assert!(check.success());
    server.wait_log("is on its card");
}

#[test]
fn files_records_and_calls_over_a_bad_line() {
    let lab = Lab::new(BAD);
    let server = lab.serve();
    let bytes = noise(200_000, 1);
    fs::write(lab.path("up"), &bytes).unwrap();
    let output = lab.piman(&["put", "up", &format!("[{}]:there", lab.host())]);
    assert!(output.status.success(), "{output:?}");
    assert!(fs::read(lab.path("files/there")).unwrap() == bytes);
    let output = lab.piman(&["get", &format!("[{}]:there", lab.host()), "down"]);
    assert!(output.status.success(), "{output:?}");
    assert!(fs::read(lab.path("down")).unwrap() == bytes);
    let output = lab.piman(&["get", &format!("[{}]:missing", lab.host()), "none"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");

    let records: String = (0..200).map(|i| format!("{i},21.5,{}\n", i * i)).collect();
    fs::write(lab.path("f.csv"), &records).unwrap();
    let output = lab.piman(&["telemetry", "f.csv", &lab.host(), "--no-follow"]);
    assert!(output.status.success(), "{output:?}");
    let mut agent = Command::new(binaries::pi_agent());
    agent.args(["metrics", "--server", &lab.host(), "--interval", "0.05", "--count", "3"]);
    assert!(agent.status().unwrap().success());
    // The first line of its own has the address 127.83.0.1.
    let kept = fs::read_to_string(lab.path("records/127.83.0.1.csv")).unwrap();
    assert!(kept.starts_with(&records) && kept.lines().count() == 204, "{kept}");

    let mut pi = Command::new(binaries::pi_agent());
    pi.args(["run", "--server", &lab.host(), "--serial", "10000000aaaaaaa1"]).stdout(Stdio::null());
    let _pi = Running(pi.spawn().unwrap());
    let state = lab.path("state");
    let piman = |arguments: &[&str]| {
        let output = Command::new(binaries::piman())
            .arg(arguments[0])
            .arg("--state")
            .arg(&state)
            .args(&arguments[1..])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    wait_until("the Pi is connected", || piman(&["status"]).contains("10000000aaaaaaa1"));
    let text = piman(&["call", "--json", "10000000aaaaaaa1", "identity"]);
    assert!(text.contains("\"serial\": \"10000000aaaaaaa1\""), "{text}");
    assert!(lab.cable.carried() > 400_000);
    drop(server);
}

#[test]
fn dials_that_nobody_answers_leave_nothing_behind() {
    use piman_core::hosted::dial::{connect, serial};
    let cable = Cable::new(Faults::default());
    let host = format!("serial:{}:460800", cable.ends[1].display());
    for _ in 0..5 {
        let error = connect(&host, 7, Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("nobody answers"), "{error}");
    }
    // Who listens at last hears of the one that is wanted now, and of no other.
    let opened = Arc::new(AtomicUsize::new(0));
    let (line, count) = (cable.ends[0].display().to_string(), Arc::clone(&opened));
    let services = Box::new(move |port| {
        assert_eq!(port, 8);
        count.fetch_add(1, Ordering::Relaxed);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        listener.accept()?.0.write_all(b"hello")?;
        Ok(stream)
    });
    let listening = serial::listen(&line.parse().unwrap(), services).unwrap();
    let mut stream = connect(&host, 8, Duration::from_secs(30)).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!((&*said, opened.load(Ordering::Relaxed)), ("hello", 1));
    drop(listening);
    // This program keeps the line that it has dialled: no other test may get a cable of the same name.
    std::mem::forget(cable);
}

#[test]
fn a_cable_that_is_pulled_is_an_error_and_plugged_in_again_it_goes_on() {
    let lab = Lab::new(Faults::default());
    let _server = lab.serve();
    fs::write(lab.path("files/big"), noise(3_000_000, 2)).unwrap();
    let mut get = Command::new(binaries::piman());
    get.args(["get", &format!("[{}]:big", lab.host()), "big", "--timeout", "2s", "--json"]);
    let said = lab.path("get.log");
    get.current_dir(lab.dir.path()).stdout(Stdio::piped()).stderr(fs::File::create(&said).unwrap());
    let mut running = Running(get.spawn().unwrap());
    wait_until("it is in the middle", || lab.cable.carried() > 300_000);
    lab.cable.pull(true);
    let pulled = Instant::now();
    while pulled.elapsed() < Duration::from_secs(4) {
        assert!(running.0.try_wait().unwrap().is_none(), "it goes on trying");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!lab.path("big").exists(), "half a file under its name");
    lab.cable.pull(false);
    wait_until("it ends", || running.0.try_wait().unwrap().is_some());
    let end = running.0.wait().unwrap();
    assert!(end.success(), "{end}: {}", fs::read_to_string(&said).unwrap());
    assert!(fs::read(lab.path("big")).unwrap() == noise(3_000_000, 2));
    // Nobody at the other end, and no line at all.
    lab.cable.pull(true);
    let to = format!("[{}]:big", lab.host());
    let output = lab.piman(&["get", &to, "none", "--tries", "1", "--timeout", "1s"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(5) && text.contains("nobody answers on the serial line"), "{text}");
    let output = lab.piman(&["get", "[serial:/dev/no-such-line]:big", "none", "--tries", "1"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(5) && text.contains("/dev/no-such-line"), "{text}");
    let mut command =
        Server::command(&lab.path("rootfs.tar.gz"), &lab.path("other"), &["--serial", "/dev/null"]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("--serial"), "{text}");
}
