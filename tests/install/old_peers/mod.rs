//! Old Pis against `piman serve`, byte by byte as they speak.

mod orders;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use piman_tests::server::{Server, connect_from, wait_until};
use piman_tests::tar::{self, Tar};

const BOOT: &str = "boot\nEOM\n";
const FORMAT: &str = "format\nEOM\n";

/// A server with a good archive, in a folder that goes with the test.
struct Lab {
    server: Server,
    archive: tempfile::NamedTempFile,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new(more: &[&str]) -> Self {
        Self::with(tar::of_bytes(300_000), more)
    }

    fn with(archive: tempfile::NamedTempFile, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(archive.path(), folder.path(), more);
        server.wait_log("is good");
        Self { server, archive, folder }
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.archive.path()).unwrap()
    }

    fn restart(&mut self) {
        self.server.terminate();
        assert!(self.server.ended(Duration::from_secs(120)).success());
        self.server = Server::start(self.archive.path(), self.folder.path(), &["--no-date"]);
        self.server.wait_log("is good");
    }

    /// A connection from this address of loopback.
    fn connect(&self, name: &str, from: [u8; 4]) -> TcpStream {
        let stream = connect_from(from, self.server.port(name));
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    fn talk(&self, from: [u8; 4]) -> ControlConnection {
        ControlConnection(self.connect("control", from))
    }

    /// What a Pi with a system on its card is told.
    fn decision(&self, from: [u8; 4]) -> String {
        let mut talk = self.talk(from);
        talk.write_line("IS_INSTALLED\n");
        talk.block()
    }

    fn download(&self, from: [u8; 4]) -> Vec<u8> {
        let mut got = Vec::new();
        self.connect("rootfs", from).read_to_end(&mut got).unwrap();
        got
    }

    fn orders(&self) -> String {
        self.server.piman(&["reinstall", "--list"])
    }
}

const PI: [u8; 4] = [127, 0, 0, 1];

/// A control connection as an old Pi has it.
struct ControlConnection(TcpStream);

impl ControlConnection {
    fn write_line(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    /// The next command, to its `EOM`.
    fn block(&mut self) -> String {
        let mut block = String::new();
        while !block.ends_with("EOM\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap_or_else(|e| panic!("{e} after {block:?}"));
            block.push(char::from(byte[0]));
        }
        block
    }

    /// Ends this side, as a Pi that is done, and waits until piman closes.
    fn closed(mut self) {
        match self.0.shutdown(Shutdown::Write) {
            // Both sides are closed already.
            Err(e) if e.kind() == std::io::ErrorKind::NotConnected => {}
            done => done.unwrap(),
        }
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"");
    }
}

/// What a shell that is traced with `set -x` sends before and between what it means.
const TRACE: &str = "+ exec\n+ mount -t proc proc /proc\nmount: mounting proc on /proc failed: Device or resource busy\n\
    + send IS_INSTALLED\n+ echo IS_INSTALLED\n+ IS_INSTALLED now\n\x08\x08 12/400\r 13/400\r\n\n";

#[test]
fn reports_are_understood_however_they_come() {
    let lab = Lab::new(&["--no-date"]);
    for (said, want) in [
        ("IS_UNINSTALLED\n".to_owned(), FORMAT),
        ("IS_INSTALLED\n".into(), BOOT),
        ("IS_INSTALLED\r\n".into(), BOOT),
        ("  IS_INSTALLED \t\r\n".into(), BOOT),
        (format!("{TRACE}IS_UNINSTALLED\n"), FORMAT),
        (format!("{TRACE}IS_INSTALLED\r\n"), BOOT),
        (format!("{}\nIS_INSTALLED\n", "x".repeat(5000)), BOOT),
    ] {
        let mut talk = lab.talk(PI);
        talk.write_line(&said);
        assert_eq!(talk.block(), want, "at once: {said:?}");
        let mut talk = lab.talk(PI);
        talk.0.set_nodelay(true).unwrap();
        for byte in said.bytes().skip(said.len().saturating_sub(300)) {
            talk.0.write_all(&[byte]).unwrap();
        }
        assert_eq!(talk.block(), want, "byte by byte: {said:?}");
    }
    // The last line has no end, but the stream has.
    let mut talk = lab.talk(PI);
    talk.write_line("+ send IS_INSTALLED\nIS_UNINSTALLED");
    talk.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(talk.block(), FORMAT);
    talk.closed();
}

#[test]
fn the_zone_is_the_one_of_the_server() {
    for (zone, behind) in
        [("UTC0", 0), ("EST5", 5 * 3600), ("Etc/GMT+7", 7 * 3600), ("Asia/Tokyo", -9 * 3600)]
    {
        let (archive, folder) = (tar::of_bytes(300_000), tempfile::tempdir().unwrap());
        let mut command = Server::command(archive.path(), folder.path(), &[]);
        let server = Server::start_by(command.env("TZ", zone), folder.path());
        let mut talk = ControlConnection(server.connect("control"));
        let block = talk.block();
        let date = piman_core::install::Date::parse(block.lines().next().unwrap().as_bytes()).expect(&block);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let shown = date.seconds_since_1970().saturating_add_signed(behind);
        assert!(now.abs_diff(shown) < 60, "{zone}: {block}");
        // One of ours gets the time itself, whatever the zone.
        talk.write_line(
            "PIMAN/1 hello serial=- mac=- model=- agent=- disk=0 root=0 card=- paths=- can=answer\n",
        );
        let block = talk.block();
        let field = |name: &str| -> u64 {
            let value = block.split_whitespace().find_map(|f| f.strip_prefix(name)).expect(&block);
            value.parse().unwrap()
        };
        assert!(field("seconds=").abs_diff(now) < 60 && field("nanos=") < 1_000_000_000, "{zone}: {block}");
    }
}

#[test]
fn the_time_comes_first_unless_it_is_not_wanted() {
    let lab = Lab::new(&[]);
    let mut talk = lab.talk(PI);
    let block = talk.block();
    let stamp = block.strip_prefix("busybox date -s ").and_then(|b| b.strip_suffix("\nEOM\n")).expect(&block);
    assert_eq!(stamp.len(), "YYYYMMDDhhmm.ss".len());
    let now = Command::new("date").args(["+%Y%m%d%H%M.%S"]).output().unwrap().stdout;
    let seconds = |stamp: &str| {
        let line = format!("busybox date -s {stamp}");
        piman_core::install::Date::parse(line.as_bytes()).unwrap().seconds_since_1970()
    };
    let now = seconds(String::from_utf8(now).unwrap().trim());
    assert!(now.abs_diff(seconds(stamp)) < 60, "local time, and not {stamp}");
    talk.write_line("busybox date -s 202601010000.00\nRECEIVED_DATE\nSET_DATE\nIS_INSTALLED\n");
    assert_eq!(talk.block(), BOOT);
    let lab = Lab::new(&["--no-date"]);
    let mut quiet = lab.talk(PI);
    quiet.write_line("IS_INSTALLED\n");
    assert_eq!(quiet.block(), BOOT);
}

#[test]
fn the_shell_script_reports_the_end_last() {
    let lab = Lab::new(&["--no-date"]);
    let mut talk = lab.talk(PI);
    talk.write_line(TRACE);
    talk.write_line("IS_UNINSTALLED\n");
    assert_eq!(talk.block(), FORMAT);
    // It echoes the command, and formats with a lot of output.
    talk.write_line("format\nRECEIVED_FORMAT\n+ sfdisk /dev/mmcblk0\n");
    talk.write_line("Writing inode tables:   0/119\x08\x08\x08\x08\x08\x08\x08  1/119\ndone\n");
    assert_eq!(lab.download(PI), lab.bytes());
    talk.write_line("+ mount /dev/mmcblk0p2 /new_root\nMOUNTING\nFINISHED_MOUNTING\nIS_FORMATTED\n");
    talk.closed();
    wait_until("it is installed", || lab.server.piman(&["devices"]).contains("installed"));
    let events = || lab.server.piman(&["device", "127.0.0.1"]);
    for part in ["told to format", "received format", "got the whole archive", "reports the end", "installed"]
    {
        wait_until(part, || events().contains(part));
    }
    let events = events();
    assert!(!events.contains("sfdisk"), "noise is not kept: {events}");
}

#[test]
fn the_test_client_reports_the_end_first() {
    let lab = Lab::new(&["--no-date"]);
    lab.server.piman(&["reinstall", "127.0.0.1"]);
    let mut talk = lab.talk(PI);
    talk.write_line("IS_INSTALLED\n");
    assert_eq!(talk.block(), FORMAT);
    talk.write_line("RECEIVED_FORMAT\nIS_FORMATTED\n");
    talk.closed();
    wait_until("the order has begun", || lab.orders().contains("begun"));
    assert_eq!(lab.download(PI), lab.bytes());
    wait_until("the order is completed", || lab.orders().contains("completed"));
    assert_eq!(lab.decision(PI), BOOT);
}

#[test]
fn whoever_sends_something_on_4444_gets_everything_nevertheless() {
    let lab = Lab::with(tar::of_bytes(20 << 20), &["--no-date"]);
    let bytes = lab.bytes();
    for part in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0; 100_000]] {
        let mut stream = lab.connect("rootfs", PI);
        stream.write_all(part).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
    }
    // One that ends its own direction at once, as `nc < /dev/null` does.
    let mut stream = lab.connect("rootfs", PI);
    stream.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert!(got == bytes);
    wait_until("all were whole", || lab.server.log().matches("got the whole archive").count() == 3);
}

#[test]
fn several_members_and_any_path_of_the_talk() {
    // An archive of two gzip members, without any order of the two connections.
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("rootfs.tar");
    fs::write(&tar, Tar::new().push(b"etc/hostname", b'0', b"", b"pi\n").end()).unwrap();
    let archive = tempfile::NamedTempFile::new().unwrap();
    let script = format!(
        "(head -c 700 {0} | gzip; tail -c +701 {0} | gzip) > {1}",
        tar.display(),
        archive.path().display()
    );
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    let lab = Lab::with(archive, &["--no-date"]);
    assert_eq!(lab.download([127, 0, 0, 77]), lab.bytes(), "port 4444 needs no talk before");
    let mut talk = lab.talk(PI);
    talk.write_line("IS_UNINSTALLED\nIS_UNINSTALLED\n");
    assert_eq!((talk.block(), talk.block()), (FORMAT.into(), FORMAT.into()));
    talk.write_line("RECEIVED_REINSTALL\nUNMOUNTING\nFINISHED_UNMOUNTING\nIS_INSTALLED\n");
    assert_eq!(talk.block(), BOOT);
    talk.write_line("RECEIVED_BOOT\nMOUNTING\nFINISHED_MOUNTING\n");
    talk.closed();
    let mut talk = lab.talk(PI);
    talk.write_line("IS_FORMATTED\nIS_UNINSTALLED\n");
    talk.closed();
}

/// A shell on a Pi, its trace on the socket as `exec 2>&3` and `set -x` put it there: it reports the end first and
/// installs then. What it writes to a connection that is closed kills it.
const TRACED: &str = r#"
exec 3<>/dev/tcp/127.0.0.1/$1 2>&3
set -x
recv() { while read -r line <&3 && [ "$line" != EOM ]; do command=$line; done; }
echo IS_UNINSTALLED >&3
recv
[ "$command" = format ] || exit 2
echo RECEIVED_FORMAT >&3
echo IS_FORMATTED >&3
until [ -e "$3/go" ]; do sleep 0.02; done
for i in 1 2 3 4 5 6 7 8 9 10; do : sfdisk and mkfs, step $i; sleep 0.01; done
exec 4<>/dev/tcp/127.0.0.1/$2
cat <&4 >"$3/got"
: extracted
echo UNMOUNTING >&3
"#;

#[test]
fn a_traced_shell_that_reports_the_end_first_lives_to_install() {
    let lab = Lab::new(&["--no-date"]);
    let place = tempfile::tempdir().unwrap();
    let port = |name| lab.server.port(name).to_string();
    let mut bash = Command::new("bash");
    bash.args(["-c", TRACED, "bash", &port("control"), &port("rootfs")]).arg(place.path());
    let mut pi = bash.spawn().unwrap();
    lab.server.wait_log("reports the end");
    fs::write(place.path().join("go"), "").unwrap();
    let status = pi.wait().unwrap();
    assert!(status.success(), "it was killed: {status}");
    assert!(fs::read(place.path().join("got")).unwrap() == lab.bytes());
    wait_until("it is installed", || lab.server.piman(&["devices"]).contains("installed"));
}

#[test]
fn a_pi_that_ended_is_heard_for_the_time_of_one_pause_and_no_longer() {
    let lab = Lab::new(&["--no-date", "--idle-timeout", "2s"]);
    let mut talk = lab.talk(PI);
    talk.write_line("IS_FORMATTED\n");
    let began = Instant::now();
    // It is never silent for as long, and is closed nevertheless.
    while talk.0.write_all(b"+ and so on\n").is_ok() {
        assert!(began.elapsed() < Duration::from_secs(60), "it is heard for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(began.elapsed() >= Duration::from_millis(1900), "{:?}", began.elapsed());
}

#[test]
fn an_old_pi_that_mounted_and_hung_up_has_booted() {
    let lab = Lab::new(&[]);
    let stage = || lab.server.piman(&["devices"]);
    let mut talk = lab.talk(PI);
    assert!(talk.block().starts_with("busybox date"));
    talk.write_line("RECEIVED_DATE\nIS_INSTALLED\n");
    assert_eq!(talk.block(), BOOT);
    talk.write_line("RECEIVED_BOOT\nMOUNTING\nFINISHED_MOUNTING\n");
    wait_until("it has mounted", || stage().contains("finished mounting"));
    assert!(!lab.server.log().contains("set its clock"), "it did not say so: {}", lab.server.log());
    talk.closed();
    wait_until("it has booted", || stage().contains("booted") && !stage().contains("mounting"));
    // Only mounted, or only told: not booted.
    let mut talk = lab.talk([127, 0, 0, 2]);
    talk.block();
    talk.write_line("RECEIVED_DATE\nSET_DATE\nIS_INSTALLED\n");
    talk.block();
    talk.write_line("RECEIVED_BOOT\n");
    talk.closed();
    let mut talk = lab.talk([127, 0, 0, 3]);
    talk.block();
    talk.write_line("MOUNTING\nFINISHED_MOUNTING\n");
    talk.closed();
    wait_until("all is noted", || stage().contains("received boot") && stage().contains("finished mounting"));
    assert_eq!(stage().matches("booted").count(), 1, "{}", stage());
    assert_eq!(lab.server.log().matches("has set its clock").count(), 1, "{}", lab.server.log());
}
