//! Linux without the kernel's TCP: all services over smoltcp on a TAP device, in a network name space,
//! against the real server, in bad weather. Needs root.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant as Moment};

use piman::messages::transport::{Hooks, Peer, Plan, Server as Frames, Settings};
use piman_tests::binaries;
use piman_tests::chance::noise;
use piman_tests::disk::run;
use piman_tests::link::Weather;
use piman_tests::server::Server;
use piman_tests::stack::{self, KERNEL};
use piman_tests::wait::until;
use services::SERIAL;
use smoltcp::wire::IpEndpoint;

/// What the services said.
static SAID: Mutex<String> = Mutex::new(String::new());

/// As in the firmware, but kept.
macro_rules! keep {
    ($($arg:tt)*) => {{
        let line = format!($($arg)*);
        println!("pi: {line}");
        *$crate::tap::SAID.lock().unwrap() += &(line + "\n");
    }};
}
pub(crate) use keep as say;

#[path = "../firmware/src/services.rs"]
#[expect(unreachable_pub, reason = "it is public in the firmware")]
mod services;

struct Echo;

impl Hooks for Echo {
    fn message(&mut self, peer: &Peer, message: Vec<u8>) {
        let peer = peer.clone();
        tokio::spawn(async move { peer.send(message).await });
    }
}

/// Calls `status` of the Pi as soon as it is connected.
fn caller(state: &Path) {
    let deadline = Moment::now() + Duration::from_secs(60);
    loop {
        let mut piman = Command::new(binaries::piman());
        let output = piman.arg("call").arg("--state").arg(state).args([SERIAL, "status"]).output().unwrap();
        if output.status.success() {
            break;
        }
        assert!(Moment::now() < deadline, "{output:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// All services, in this weather.
fn in_weather(folder: &Path, weather: Weather, injected: u8) {
    let state = folder.join("state");
    for name in ["root", "files", "records"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    fs::write(folder.join("root/noise"), noise(400_000, 1)).unwrap();
    fs::write(folder.join("files/file.bin"), noise(100_001, 2)).unwrap();
    fs::write(folder.join("password"), "open sesame\n").unwrap();
    run(Command::new("tar").args(["-czf", "rootfs.tgz", "root"]).current_dir(folder));
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();

    let (net, sockets, happened) = stack::tap(weather, injected);
    let server = Ipv4Addr::from(KERNEL).to_string();

    let mut command = Command::new(binaries::piman());
    command.args(["serve", "--listen", &server, "--allow-unfit", "--rootfs"]).arg(folder.join("rootfs.tgz"));
    command.arg("--state").arg(&state);
    for port in ["control", "rootfs", "fetch", "transfer", "telemetry", "rpc"] {
        command.args([&format!("--{port}-port"), "0"]);
    }
    command.args(["--transfer-dir", &path("files"), "--telemetry-dir", &path("records")]);
    command.args(["--rpc-password-file", &path("password")]);
    let server = Server::start_by(&mut command, &state);
    server.wait_log("is good");
    // Its threads are made here, and so belong to this name space.
    let tokio = tokio::runtime::Runtime::new().unwrap();
    let settings = Settings { limit: 1 << 20, ..Settings::default() };
    let addresses = vec![(KERNEL, 0).into()];
    let plan = Plan { addresses, connections: 2, settings, plugins: None, hooks: || Echo };
    let frames = tokio.block_on(async { Frames::start(plan) }).unwrap();

    let to = |port: u16| IpEndpoint::new(Ipv4Addr::from(KERNEL).into(), port);
    let at = |name: &str| to(server.port(name));
    let echo = to(frames.addresses()[0].port());

    let calling = std::thread::spawn({
        let state = state.clone();
        move || caller(&state)
    });
    net.run(async {
        services::install(&net, sockets, at("control"), at("rootfs")).await?;
        services::transfer(&net, sockets[0], at("transfer"), "file.bin").await?;
        services::frames(&net, sockets[0], echo).await?;
        services::talks(&net, sockets[0], at("rpc"), "open sesame").await?;
        services::records(&net, sockets[0], at("telemetry"), 50).await
    })
    .unwrap();
    calling.join().unwrap();

    let happened = *happened.borrow();
    println!("weather: {happened:?}");
    assert!(happened.passed > 300);
    assert_eq!(happened.disturbed > 10, weather.lost + weather.twice + weather.damaged + weather.late > 0);
    let said = std::mem::take(&mut *SAID.lock().unwrap());
    let archive = fs::read(folder.join("rootfs.tgz")).unwrap();
    let id = blake3::hash(&archive).to_hex();
    assert!(said.contains(&format!("rootfs {id} {} bytes", archive.len())), "{said}");
    let devices = || server.piman(&["devices", "--json"]);
    until("it is listed", || devices().contains(SERIAL) && devices().contains(id.as_str()));
    let file = blake3::hash(&fs::read(folder.join("files/file.bin")).unwrap()).to_hex();
    assert!(said.contains(&format!("file {file} 100001\n")), "{said}");
    let kept = fs::read_to_string(folder.join(format!("records/{SERIAL}.csv"))).or_else(|_| {
        let entry = fs::read_dir(folder.join("records"))?.next().expect("a file of records")?;
        fs::read_to_string(entry.path())
    });
    let want: String = (0..50_u32).map(|i| format!("{i},{},{SERIAL}\n", i * i)).collect();
    assert_eq!(kept.unwrap(), want);
    tokio.block_on(frames.stop(Duration::from_secs(10)));
}

/// What is said is kept in one place: one test at a time.
fn one_at_a_time(weather: Weather, injected: u8) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    stack::alone(move || in_weather(tempfile::tempdir().unwrap().path(), weather, injected));
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn all_services_in_good_weather() {
    one_at_a_time(Weather::default(), 0);
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn all_services_in_bad_weather() {
    let weather = Weather { lost: 3, twice: 5, damaged: 2, late: 5, delay_ms: 2 };
    one_at_a_time(weather, 3);
}
