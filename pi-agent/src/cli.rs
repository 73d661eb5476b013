//! The command line of the agent.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use lexopt::{Arg, Parser, ValueExt};
use piman_core::install::layout::Layout;
use piman_core::install::{CONTROL_PORT, ROOTFS_PORT};
use piman_core::rpc;
use piman_core::telemetry::PORT as STREAM_PORT;
use piman_core::transfer::PORT as TRANSFER_PORT;

use crate::card::choose::Which;
use crate::card::disk::parse_layout;
use crate::control::Server;
use crate::identity::Identity;
use crate::install::{Choice, Consent, Keep, Plan, TELL_TIME};
use crate::rpc::Service;
use crate::rpc::unit::Enrol;
use crate::telemetry::machine::decimal;
use crate::trust::{Device, Key};
use piman_core::hosted::size;

/// What `--help` prints.
pub const HELP: &str = "\
pi-agent: installs this Pi from a piman server

  pi-agent install --server HOST --disk DISK [options]
      asks the server what to do, and installs if it says so
      --disk DISK        a device or a file by its path; by-id=NAME, by-path=NAME
                         or serial=TEXT; auto: the only disk that nobody uses;
                         largest; type=mmc, nvme, usb or sata: the only one
      --control-port N   the server's control port           [3333]
      --rootfs-port N    its rootfs port, if it names none   [4444]
      --transfer-port N  where its log goes at the end, 0: nowhere   [50001]
      --size SIZE        makes DISK a sparse file of this size (8G, 512M, bytes)
      --layout FILE      partitions as `sfdisk --dump` writes them
      --table KIND       auto, mbr or gpt; auto: gpt where mbr does not reach [auto]
      --keep-data SIZE[,LABEL]  makes a partition behind the root filesystem once,
                         and leaves it alone ever after; none: one may be erased
      --discard          tells the disk that the parts to be written hold nothing
      --path PATH        auto, archive (any server; needs root) or image [auto]
      --retries N        retry up to N times after losing the server     [10]
      --tell SECONDS     so long it tries to tell a server that went away how it
                         ended; what --service installs tells it later      [240]
      --serial S         the identity to report in place of this machine's
      --public-key KEY   obeys only servers that this key has certified, and
                         installs only what it has signed; a file or base64, as
                         minisign has it
      --device-key FILE  makes this Pi's own key of what is in FILE (16 to 4096
                         bytes), as its one-time programmable memory; no card has
                         the key then    [made at first contact, kept on the card]
      --reinstall        installs again what is installed already
      --trust-unmarked   a system without piman's proof counts as installed
      --erase WHAT       erases what the server's order does not name: foreign,
                         damaged, unreadable, or several with commas
      --yes              erases a device that holds anything
      --service PORT     the installed system runs the agent (`pi-agent run`), which
                         dials this port of the server; needs root
      --password-file F  the password for that, in the first line
  pi-agent metrics --server HOST [options]
      sends CPU, memory, disk, temperature and processes to the server
      --telemetry-port N the server's telemetry port             [5003]
      --interval N       seconds between two records             [10]
      --count N          stops after N records                   [never]
  pi-agent check --disk DISK
      says what is installed: exit code 0 if a whole image is, 1 if not
  pi-agent run --server HOST [options]
      the service on an installed Pi: does what `piman call` asks, for ever
      --port N           the server's rpc port                   [25565]
      --password-file F  the password that the server wants, in the first line
      --protocol P       piman; pickle for an old TCPTalks server; auto for either
                         [auto; with a password piman, since the other two give
                         the password to the server in clear. An old server that
                         takes one client only may end when it is asked in piman:
                         say pickle for it]
      --hooks DIR        programs that may be run by name        [/etc/piman/hooks]
      --reboot PROGRAM   what starts the Pi again                [/sbin/reboot]
      --serial S         the identity in place of this machine's
      --messages H[:P]   joins the message channel on this server and port [9123];
                         repeat; --server is not needed then. Messages are logged
      --on-message HOOK  runs this program of --hooks for each message instead: it
                         reads the message and what it prints, if anything, is sent:
                         64 answers at once and 5 a second, so that two such hooks do
                         not answer each other for ever
  pi-agent init
      what it does as process 1 of an initramfs
  pi-agent --version | --help

Exit codes: 0 done, 1 failed or not installed, 2 wrong use, 3 what is to be installed
will never have room on this disk.
";

/// What was asked for.
#[derive(Debug)]
pub enum Order {
    /// `--help`
    Help,
    /// `--version`
    Version,
    /// Install, with so many tries after the first; then the log goes to this port, if it is not 0.
    Install(Box<Plan>, u32, u16),
    /// Send the metrics of this machine.
    Metrics {
        /// To this server.
        host: String,
        /// On this port.
        port: u16,
        /// So often.
        interval: Duration,
        /// So many times; `None`: for ever.
        count: Option<u64>,
    },
    /// Check this disk.
    Check(Which),
    /// Serve calls.
    Run(Arc<Service>),
    /// Be process 1; what follows is for it.
    Init,
}

/// Reads the arguments, without the program's name.
///
/// # Errors
/// Says what is wrong with them.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<Order> {
    let mut parser = Parser::from_args(args);
    match parser.next()? {
        None => bail!("a command is missing: see pi-agent --help"),
        Some(Arg::Long("help") | Arg::Short('h')) => Ok(Order::Help),
        Some(Arg::Long("version") | Arg::Short('V')) => Ok(Order::Version),
        Some(Arg::Value(command)) => match command.to_str() {
            Some("install") => install(&mut parser),
            Some("check") => check(&mut parser),
            Some("run") => run(&mut parser),
            Some("metrics") => metrics(&mut parser),
            Some("init") => Ok(Order::Init),
            Some("help") => Ok(Order::Help),
            _ => bail!("there is no command {}: see pi-agent --help", command.display()),
        },
        Some(other) => Err(other.unexpected().into()),
    }
}

fn install(parser: &mut Parser) -> anyhow::Result<Order> {
    let (mut host, mut disk) = (None, None);
    let (mut control_port, mut rootfs_port, mut retries) = (CONTROL_PORT, ROOTFS_PORT, 10);
    let mut transfer_port = TRANSFER_PORT;
    let mut plan = Plan {
        server: Server { host: String::new(), control_port, rootfs_port },
        disk: Which::Auto,
        size: None,
        layout: Layout::default(),
        discard: false,
        keep: Keep::default(),
        choice: Choice::Auto,
        yes: false,
        erase: Consent::default(),
        trust_unmarked: false,
        reinstall: false,
        identity: Identity::of_this_machine(),
        key: None,
        device: None,
        boot_from: None,
        service: None,
        tell_time: TELL_TIME,
    };
    let (mut service_port, mut password_file) = (None, None);
    let (mut public_key, mut table) = (None, None);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("server") => host = Some(parser.value()?.string()?),
            Arg::Long("disk") => disk = Some(which(parser.value()?)?),
            Arg::Long("control-port") => control_port = parser.value()?.parse()?,
            Arg::Long("rootfs-port") => rootfs_port = parser.value()?.parse()?,
            Arg::Long("transfer-port") => transfer_port = parser.value()?.parse()?,
            Arg::Long("size") => plan.size = Some(parse_size(&parser.value()?.string()?)?),
            Arg::Long("layout") => plan.layout = read_layout(parser.value()?)?,
            Arg::Long("table") => {
                table =
                    Some(parser.value()?.string()?.parse().map_err(anyhow::Error::msg).context("--table")?);
            }
            Arg::Long("discard") => plan.discard = true,
            Arg::Long("keep-data") => {
                plan.keep =
                    parser.value()?.string()?.parse().map_err(anyhow::Error::msg).context("--keep-data")?;
            }
            Arg::Long("path") => plan.choice = parser.value()?.parse()?,
            Arg::Long("retries") => retries = parser.value()?.parse()?,
            Arg::Long("serial") => {
                plan.identity = Identity { serial: Some(parser.value()?.string()?), ..Identity::default() }
            }
            Arg::Long("tell") => plan.tell_time = Duration::from_secs(parser.value()?.parse::<u32>()?.into()),
            Arg::Long("service") => service_port = Some(parser.value()?.parse()?),
            Arg::Long("password-file") => password_file = Some(parser.value()?.into()),
            Arg::Long("public-key") => public_key = Some(parser.value()?.string()?),
            Arg::Long("device-key") => {
                plan.device =
                    Some(Device::elsewhere(&PathBuf::from(parser.value()?)).context("--device-key")?);
            }
            Arg::Long("reinstall") => plan.reinstall = true,
            Arg::Long("trust-unmarked") => plan.trust_unmarked = true,
            Arg::Long("erase") => {
                plan.erase =
                    parser.value()?.string()?.parse().map_err(anyhow::Error::msg).context("--erase")?;
            }
            Arg::Long("yes") => plan.yes = true,
            Arg::Long("help") | Arg::Short('h') => return Ok(Order::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    plan.server = Server { host: host.context("--server is missing")?, control_port, rootfs_port };
    plan.disk = disk.context("--disk is missing")?;
    ensure!(
        plan.size.is_none() || matches!(plan.disk, Which::Path(_)),
        "--size makes a file, and --disk {} is not one: give the path of a file",
        plan.disk
    );
    plan.layout.table = table.unwrap_or(plan.layout.table);
    plan.layout.data_sectors = plan.keep.sectors();
    plan.key = Key::find(public_key.as_deref()).context("--public-key")?;
    ensure!(service_port.is_some() || password_file.is_none(), "--password-file is for --service");
    let host = plan.server.host.clone();
    plan.service = service_port.map(|port| Enrol { host, port, password_file });
    Ok(Order::Install(Box::new(plan), retries, transfer_port))
}

fn metrics(parser: &mut Parser) -> anyhow::Result<Order> {
    let (mut host, mut port, mut interval, mut count) = (None, STREAM_PORT, Duration::from_secs(10), None);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("server") => host = Some(parser.value()?.string()?),
            Arg::Long("telemetry-port") => port = parser.value()?.parse()?,
            Arg::Long("interval") => {
                let text = parser.value()?.string()?;
                interval = seconds(&text).context("--interval takes seconds, from 0.01 to 1000000")?;
            }
            Arg::Long("count") => count = Some(parser.value()?.parse()?),
            Arg::Long("help") | Arg::Short('h') => return Ok(Order::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Order::Metrics { host: host.context("--server is missing")?, port, interval, count })
}

/// Reads seconds, perhaps with a fraction.
fn seconds(text: &str) -> Option<Duration> {
    let (whole, nanos) = decimal(text)?;
    let time = Duration::new(whole, nanos);
    (Duration::from_millis(10)..=Duration::from_secs(1_000_000)).contains(&time).then_some(time)
}

fn check(parser: &mut Parser) -> anyhow::Result<Order> {
    let mut disk = None;
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("disk") => disk = Some(which(parser.value()?)?),
            Arg::Long("help") | Arg::Short('h') => return Ok(Order::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Order::Check(disk.context("--disk is missing")?))
}

fn run(parser: &mut Parser) -> anyhow::Result<Order> {
    let mut service = Service {
        host: String::new(),
        port: rpc::PORT,
        password_file: None,
        protocol: None,
        hooks: "/etc/piman/hooks".into(),
        reboot: "/sbin/reboot".into(),
        root: "/".into(),
        identity: Identity::of_this_machine(),
        messages: Vec::new(),
        on_message: None,
    };
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("messages") => {
                let address = parser.value()?.string()?.parse().map_err(anyhow::Error::msg);
                service.messages.push(address.context("--messages")?);
            }
            Arg::Long("on-message") => service.on_message = Some(parser.value()?.string()?),
            Arg::Long("server") => service.host = parser.value()?.string()?,
            Arg::Long("port") => service.port = parser.value()?.parse()?,
            Arg::Long("password-file") => service.password_file = Some(parser.value()?.into()),
            Arg::Long("protocol") => service.protocol = Some(parser.value()?.parse()?),
            // A hook runs in another folder.
            Arg::Long("hooks") => {
                service.hooks = std::path::absolute(PathBuf::from(parser.value()?)).context("--hooks")?;
            }
            Arg::Long("reboot") => service.reboot = parser.value()?.into(),
            Arg::Long("serial") => {
                service.identity = Identity { serial: Some(parser.value()?.string()?), ..Identity::default() }
            }
            Arg::Long("help") | Arg::Short('h') => return Ok(Order::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!(!service.host.is_empty() || !service.messages.is_empty(), "--server or --messages is missing");
    ensure!(service.on_message.is_none() || !service.messages.is_empty(), "--on-message is for --messages");
    Ok(Order::Run(Arc::new(service)))
}

/// Which disk; the name of a file need not be text.
fn which(text: OsString) -> anyhow::Result<Which> {
    match text.to_str() {
        Some(text) => text.parse().map_err(|e| anyhow!("--disk {text}: {e}")),
        None => Ok(Which::Path(text.into())),
    }
}

fn read_layout(path: OsString) -> anyhow::Result<Layout> {
    let path = PathBuf::from(path);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("reading the layout {}", path.display()))?;
    parse_layout(&text)
}

/// Reads `8G`, `512M`, `64K` (powers of 1024) or bytes.
///
/// # Errors
/// Anything else, and sizes of 16 EiB and more.
pub fn parse_size(text: &str) -> anyhow::Result<u64> {
    let bad = || format!("{text} is no size: say 8G, 512M, 64K or a number of bytes");
    size::parse_size(text).with_context(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> anyhow::Result<Order> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64K", 65536),
            ("512m", 512 << 20),
            ("8GiB", 8 << 30),
            ("2TB", 2 << 40),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "G", "-1", "8X", "1.5G", "99999999T", "é"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        for (text, millis) in [("10", 10_000), ("0.01", 10), ("0.25", 250), ("1.5000000009", 1500)] {
            assert_eq!(seconds(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in
            ["", ".", "1.", ".5", "0", "0.009", "1e3", "-1", "+1", "1000001", "99999999999999999999", "1.x"]
        {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_installation() {
        let order = args(
            "install --server pi.lab --disk card.img --size 2G --path image --retries 3 --serial abc --yes",
        );
        let Order::Install(plan, 3, TRANSFER_PORT) = order.unwrap() else { panic!("no installation") };
        assert_eq!(plan.server, Server { host: "pi.lab".into(), control_port: 3333, rootfs_port: 4444 });
        assert_eq!((plan.size, plan.choice, plan.yes), (Some(2 << 30), Choice::Image, true));
        assert_eq!(plan.identity.serial.as_deref(), Some("abc"));
    }

    #[test]
    fn wrong_use_says_what() {
        for (line, word) in [
            ("", "command"),
            ("dance", "dance"),
            ("install --disk x", "--server"),
            ("install --server x", "--disk"),
            ("install --server x --disk y --path sideways", "sideways"),
            ("install --server x --disk y --colour red", "colour"),
            ("install --server x --disk y --erase all", "foreign, damaged or unreadable"),
            ("install --server x --disk y --control-port 70000", "70000"),
            ("install --server x --disk type=tape", "mmc, nvme, usb or sata"),
            ("install --server x --disk largest --size 1G", "--size"),
            ("install --server x --disk serial=", "name"),
            ("install --server x --disk y --table sun", "auto, mbr or gpt"),
            ("install --server x --disk y --keep-data 1X", "--keep-data"),
            ("check", "--disk"),
            ("run", "--server"),
            ("run --server x --port y", "y"),
            ("run --server x --protocol telnet", "auto, pickle or piman"),
            ("run --messages x:y", "x:y"),
            ("run --server x --on-message y", "--messages"),
            ("install --server x --disk y --layout /nowhere", "/nowhere"),
            ("install --server x --disk y --password-file z", "--service"),
        ] {
            let error = format!("{:#}", args(line).unwrap_err());
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
