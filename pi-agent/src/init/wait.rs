//! Waiting for the card and the network, each with a deadline, saying what is missing.

use std::fs;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::net::{self, link, link::Links};
use super::options::{Host, Options};
use crate::card::choose::{self, NoDisk, Which};
use crate::control::Server;

/// How often it is looked whether what is waited for is there.
const EVERY: Duration = Duration::from_millis(100);

/// How often it is said again what is missing.
const REMIND: Duration = Duration::from_secs(10);

/// Waits until `look` finds what it looks for. What it lacks, `look` says in words; they
/// are logged when the waiting begins, when they change, and every ten seconds.
///
/// # Errors
/// The last words of `look` when the deadline has passed.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let start = Instant::now();
    let mut said = None::<(String, Instant)>;
    loop {
        let lacking = match look() {
            Ok(found) => return Ok(found),
            Err(lacking) => lacking,
        };
        let waited = start.elapsed();
        if waited >= deadline {
            return Err(format!("{what}: {lacking} (waited {} s)", deadline.as_secs()));
        }
        if said.as_ref().is_none_or(|(words, at)| *words != lacking || at.elapsed() >= REMIND) {
            let left = deadline.saturating_sub(waited).as_secs();
            log::info!("waiting for {what}, {left} s at most: {lacking}");
            said = Some((lacking, Instant::now()));
        }
        thread::sleep(EVERY.min(deadline.saturating_sub(waited)));
    }
}

/// The size of the disk in bytes, if its node is there and a medium is in it.
///
/// # Errors
/// What is missing, in words.
pub fn disk(path: &Path) -> Result<u64, String> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("there is no {} yet (is a card in the slot?)", path.display()));
        }
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    if !metadata.file_type().is_block_device() {
        return Err(format!("{} is no disk: check piman.disk=", path.display()));
    }
    let name = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = name.file_name().unwrap_or_default();
    let sectors = fs::read_to_string(Path::new("/sys/class/block").join(name).join("size"));
    match sectors.ok().and_then(|s| s.trim().parse::<u64>().ok()) {
        Some(0) => Err(format!("{} holds no medium", path.display())),
        Some(sectors) => Ok(sectors.saturating_mul(512)),
        // Without /sys the size is found out when the disk is opened.
        None => Ok(0),
    }
}

/// How long the disks must stay as they are before a rule chooses among them: one on USB comes seconds after the others.
const SETTLE: Duration = Duration::from_secs(5);

/// When the disks that are there changed last.
#[derive(Debug, Default)]
pub struct Settling(Option<(Vec<(PathBuf, u64)>, Instant)>);

impl Settling {
    fn is_settled(&mut self, present: Vec<(PathBuf, u64)>, now: Instant) -> bool {
        match &self.0 {
            Some((before, since)) if *before == present => now.duration_since(*since) >= SETTLE,
            _ => {
                self.0 = Some((present, now));
                false
            }
        }
    }
}

/// What is looked for from now on, once the disk that is meant is there with a medium in it; an error inside says what
/// waiting does not change.
///
/// # Errors
/// What is missing, in words.
pub fn chosen(which: &Which, settling: &mut Settling) -> Result<Result<Which, NoDisk>, String> {
    if which.is_rule() && !settling.is_settled(choose::those_present(), Instant::now()) {
        return Err(format!("looking which disks there are, to take the one that is {which}"));
    }
    match which.settled().and_then(|which| Ok((which.find()?, which))) {
        Ok((path, which)) => disk(&path).map(|_| Ok(which)),
        Err(NoDisk::None(words)) => Err(words),
        Err(why) => Ok(Err(why)),
    }
}

/// Where piman is, once an interface is up that leads there, or the serial line is there.
///
/// # Errors
/// What is missing, in words.
pub fn network(options: &Options) -> Result<Server, String> {
    if let Some(server) = &options.server
        && let Some(device) = server.line()
    {
        let there = fs::metadata(device).map(|_| options.at(server.clone()));
        return there.map_err(|e| format!("the serial line {device}: {e}"));
    }
    let links = Links::read(Path::new(link::FOLDER));
    let (file, known) = net::known();
    let Some(server) = options.server.clone().or_else(|| boot_server(&known)) else {
        return Err(format!(
            "no server is known (give piman.server=ADDRESS on the kernel command line); {links}"
        ));
    };
    use_name_servers(file, &known);
    let server = options.at(server);
    let address = resolve(&server).map_err(|e| format!("{e}; {links}"))?;
    match source(address) {
        Err(e) => Err(format!("no way to {} ({e}); {links}", address.ip())),
        Ok(ours) if ours.is_loopback() || links.any_up() => Ok(server),
        Ok(ours) => Err(format!("the address is {ours}, but no link is up; {links}")),
    }
}

fn resolve(server: &Server) -> Result<SocketAddr, String> {
    let found = (server.host.as_str(), server.control_port).to_socket_addrs();
    let mut found = found.map_err(|e| format!("the name {} cannot be looked up: {e}", server.host))?;
    found.next().ok_or_else(|| format!("the name {} has no address", server.host))
}

/// Our address towards `to`. Asks the kernel's routes; nothing is sent.
fn source(to: SocketAddr) -> std::io::Result<IpAddr> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

/// The server that DHCP named, out of what is known of the network: our own notes, or
/// /proc/net/pnp, which the kernel's own DHCP (`ip=dhcp`) writes.
#[must_use]
pub fn boot_server(known: &str) -> Option<Host> {
    let host = known.lines().find_map(|l| l.strip_prefix("bootserver "))?.trim();
    let none = host.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified());
    (!none && !host.is_empty()).then(|| Host { name: host.to_owned(), port: None })
}

/// Lets names be looked up at the name servers that DHCP named: the file has the form of
/// /etc/resolv.conf.
fn use_name_servers(file: &str, known: &str) {
    if known.lines().any(|l| l.starts_with("nameserver ")) && !Path::new("/etc/resolv.conf").exists() {
        // Without it only addresses work, and looking up a name says so.
        let _ = fs::create_dir_all("/etc").and_then(|()| symlink(file, "/etc/resolv.conf"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn what_is_there_is_not_waited_for() {
        assert_eq!(wait_for("nothing", Duration::ZERO, || Ok(7)), Ok(7));
    }

    #[test]
    fn it_looks_until_it_finds() {
        let mut looks = 0;
        let found = wait_for("the third look", Duration::from_secs(60), || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(format!("look {looks}")) }
        });
        assert_eq!(found, Ok(3));
    }

    #[test]
    fn after_the_deadline_it_says_what_is_missing() {
        let e = wait_for("a card", Duration::from_millis(1), || Err::<(), _>("no slot".into()));
        assert_eq!(e, Err("a card: no slot (waited 0 s)".into()));
    }

    #[test]
    fn disks() {
        let file = std::env::temp_dir().join(format!("piman-wait-{}", std::process::id()));
        fs::write(&file, [0; 1000]).unwrap();
        assert_eq!(disk(&file), Ok(1000));
        fs::remove_file(&file).unwrap();
        assert!(disk(&file).unwrap_err().contains("is a card in the slot?"));
        assert!(disk(Path::new("/dev/null")).unwrap_err().contains("piman.disk="));
        assert!(disk(Path::new("/proc/self/status/x")).is_err());
    }

    #[test]
    fn a_rule_waits_until_no_more_disks_appear() {
        let mut settling = Settling::default();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let (card, stick) = (("/dev/mmcblk0".into(), 32), ("/dev/sda".into(), 64));
        assert!(!settling.is_settled(vec![], at(0)));
        assert!(!settling.is_settled(vec![card.clone()], at(4)));
        assert!(!settling.is_settled(vec![card.clone()], at(8)));
        assert!(!settling.is_settled(vec![card.clone(), stick.clone()], at(9)));
        assert!(settling.is_settled(vec![card, stick], at(14)));
        // A path is not waited for like that.
        let file = tempfile::NamedTempFile::new().unwrap();
        let which = Which::Path(file.path().into());
        assert_eq!(chosen(&which, &mut Settling::default()), Ok(Ok(which)));
    }

    #[test]
    fn the_kernels_dhcp_answer() {
        let pnp = "#PROTO: DHCP\ndomain lan\nnameserver 10.0.2.3\nbootserver 10.0.2.2\n";
        assert_eq!(boot_server(pnp), Some(Host { name: "10.0.2.2".into(), port: None }));
        assert_eq!(boot_server("bootserver pi.lan\n"), Some(Host { name: "pi.lan".into(), port: None }));
        for none in ["", "#MANUAL\nbootserver 0.0.0.0\n", "bootserver \n", "nameserver 1.1.1.1\n"] {
            assert_eq!(boot_server(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_server_on_this_machine_is_reached_without_a_link() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let options = Options::parse(format!("piman.server={address}").as_bytes());
        let want = Server { host: "127.0.0.1".into(), control_port: address.port(), rootfs_port: 4444 };
        assert_eq!(network(&options), Ok(want));
    }

    #[test]
    fn a_name_that_is_none_is_said() {
        let e = resolve(&Server { host: "no.such.name.invalid".into(), control_port: 1, rootfs_port: 1 })
            .unwrap_err();
        assert!(e.contains("no.such.name.invalid"), "{e}");
    }
}
