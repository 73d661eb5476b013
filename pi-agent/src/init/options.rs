//! What the kernel command line tells the agent: a pure parser, total over any bytes.
//!
//! | option | meaning | without it |
//! |---|---|---|
//! | `piman.server=HOST[:PORT]` | the server and, if given, its control port; or `serial:DEVICE[:BAUD]` | the server that DHCP named |
//! | `master=HOST[:PORT]` | the same, as the old script had it | |
//! | `piman.control-port=PORT` | the control port | the server's, else 3333 |
//! | `piman.rootfs-port=PORT` | where the archive comes from | what the server offers, else 4444 |
//! | `piman.transfer-port=PORT` | where its log goes when an installation has ended, 0: nowhere | 50001 |
//! | `piman.service=PORT` | the installed system runs the agent as a service, which dials this port of the server | it does not |
//! | `piman.disk=DISK` | the disk to install on and boot from: a device's path; `by-id=NAME`, `by-path=NAME` or `serial=TEXT`; `auto`: the only one; `largest`; `type=mmc\|nvme\|usb\|sata`: the only one of these. Anything else: no disk at all | `/dev/mmcblk0` |
//! | `piman.discard=1` | tells the disk, where it can be told, that the parts that will be written hold nothing any more | it is not told |
//! | `piman.keep_data=SIZE[,LABEL]` | a partition behind the root filesystem that an installation makes once and never touches again; `none`: one that is there may be erased | there is none, and one that is there stops an installation |
//! | `piman.table=auto\|mbr\|gpt` | the kind of partition table | `auto`: GPT where MBR does not reach |
//! | `piman.path=auto\|stream\|image` | by which way to install | `auto` |
//! | `piman.key=KEY` | obeys only servers that this public key has certified, and installs only what it has signed; base64 or a file | the initramfs's `/etc/piman/key.pub`, if there is one |
//! | `piman.device-key=FILE` | the file that has what this Pi's own key is made of, 16 to 4096 bytes: its one-time programmable memory as the kernel shows it, for example; no card has the key then | the key is made at first contact, and kept on the card |
//! | `piman.erase=WHAT` | erases what the server's order does not name: `foreign`, `damaged`, `unreadable`, or several with commas | waits for an order that does |
//! | `piman.trust-unmarked=1` | a system without piman's proof counts as installed | it counts as foreign |
//! | `piman.init=FILE`, `init=FILE` | the installed system's process 1 | `/sbin/init` and its usual places |
//! | `piman.log=off\|error\|warn\|info\|debug\|trace` | how much the agent says | `info` |
//! | `ip=` | how the Pi gets its address, as the kernel has it: `dhcp`, `off`, or `ADDRESS:SERVER:ROUTER:MASK:HOST:INTERFACE:HOW:DNS:DNS` | `dhcp` |
//! | `piman.shell=1` | after a failure, `/bin/sh` on the console, if the initramfs has one | |
//!
//! The last of several counts, `piman.` before the old names. A value may be quoted with
//! `"` as for the kernel. What else begins with `piman.` is reported; everything else is
//! the kernel's or the installed system's (`root=`, `rootwait`, `rw`) and passed over.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use log::LevelFilter;
use piman_core::install::layout::TableKind;
use piman_core::install::{CONTROL_PORT, ROOTFS_PORT};
use piman_core::rpc::PORT as RPC_PORT;
use piman_core::transfer::PORT as TRANSFER_PORT;

use super::net::Addressing;
use crate::card::choose::{NoDisk, Which};
use crate::control::Server;
use crate::install::{Choice, Consent, Keep};

/// The longest command line that is read, in bytes; the kernel's own limit is 2048 on arm64.
pub const CMDLINE_MAX: usize = 64 << 10;

/// What the kernel command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where piman is; `None`: ask the kernel's DHCP answer.
    pub server: Option<Host>,
    /// The control port, if it is named by itself.
    pub control_port: Option<u16>,
    /// Where the archive comes from; `None`: what the server offers.
    pub rootfs_port: Option<u16>,
    /// Where the log goes when an installation has ended; 0: nowhere.
    pub transfer_port: u16,
    /// The server's rpc port, if the installed system is to run the agent's service.
    pub service_port: Option<u16>,
    /// The disk to install on and boot from.
    pub disk: Which,
    /// Whether the parts that will be written are discarded before.
    pub discard: bool,
    /// The partition that installations leave alone.
    pub keep: Keep,
    /// The kind of partition table.
    pub table: TableKind,
    /// By which way to install.
    pub path: Choice,
    /// The public key of those who sign images, or its file.
    pub key: Option<String>,
    /// The file that has what this Pi's own key is made of.
    pub device_key: Option<String>,
    /// What may be erased without an order that names it.
    pub erase: Consent,
    /// Whether a system without piman's proof, installed in an older way, is booted; it counts as foreign otherwise.
    pub trust_unmarked: bool,
    /// The installed system's process 1, an absolute path inside it.
    pub init: Option<PathBuf>,
    /// How much the agent says.
    pub log: LevelFilter,
    /// How the Pi gets its address.
    pub addressing: Addressing,
    /// Whether a failure gives a shell on the console.
    pub shell: bool,
    /// What begins with `piman.` and was not understood, one sentence each.
    pub complaints: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            server: None,
            control_port: None,
            rootfs_port: None,
            transfer_port: TRANSFER_PORT,
            service_port: None,
            disk: Which::Path("/dev/mmcblk0".into()),
            discard: false,
            keep: Keep::default(),
            table: TableKind::Auto,
            path: Choice::Auto,
            key: None,
            device_key: None,
            erase: Consent::default(),
            trust_unmarked: false,
            init: None,
            log: LevelFilter::Info,
            addressing: Addressing::Dhcp,
            shell: false,
            complaints: Vec::new(),
        }
    }
}

/// A host by name or address, and perhaps a port: `pi.lan`, `10.0.0.1:3333`, `[fe80::1]:3333`; or the other end
/// of a serial line, `serial:DEVICE[:BAUD]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// A name or an address, without brackets.
    pub name: String,
    /// The port, if one was given.
    pub port: Option<u16>,
}

impl Host {
    /// The device, if it is a serial line.
    #[must_use]
    pub fn line(&self) -> Option<&str> {
        self.name.strip_prefix("serial:")?.split(':').next()
    }
}

impl FromStr for Host {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = match text.strip_prefix("serial:") {
            Some("") => return Err("no device"),
            Some(_) => (text, None),
            None => split(text)?,
        };
        if host.is_empty() || host.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("no host");
        }
        let port = port.map(parse_port).transpose()?;
        Ok(Self { name: host.to_owned(), port })
    }
}

fn split(text: &str) -> Result<(&str, Option<&str>), &'static str> {
    Ok(match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or("text after the bracket")?)),
        None => match text.split_once(':') {
            // More than one colon: an IPv6 address without brackets, and so without a port.
            Some((_, rest)) if rest.contains(':') => (text, None),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    })
}

/// `host:port` as it is written on the command line, `host` alone without a port.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.name.contains(':')) {
            (None, _) => f.write_str(&self.name),
            (Some(port), false) => write!(f, "{}:{port}", self.name),
            (Some(port), true) => write!(f, "[{}]:{port}", self.name),
        }
    }
}

fn parse_port(text: &str) -> Result<u16, &'static str> {
    text.parse().ok().filter(|p| *p != 0).ok_or("not a port (1 to 65535)")
}

impl Options {
    /// Reads a kernel command line. Never fails: what is not understood is in `complaints`. Where no disk can be made
    /// out of `piman.disk=`, none is used, and the attempt reports it.
    #[must_use]
    pub fn parse(line: &[u8]) -> Self {
        let line = line.get(..CMDLINE_MAX).unwrap_or(line);
        let line = String::from_utf8_lossy(line);
        let mut options = Self::default();
        let (mut old_server, mut old_init) = (None, None);
        for word in words(&line) {
            let (key, value) = word.split_once('=').unwrap_or((&word, ""));
            let outcome = match key {
                // The kernel gives what follows to process 1 and reads it as nothing else.
                "--" => break,
                "master" => value.parse().map(|s| old_server = Some(s)),
                "init" => absolute(value).map(|p| old_init = Some(p)),
                "ip" => Addressing::parse(value).map(|a| options.addressing = a),
                _ => match key.strip_prefix("piman.") {
                    Some(name) => options.take(name, value),
                    None => Ok(()),
                },
            };
            if let Err(why) = outcome {
                options.complaints.push(format!("{key}={value}: {why}"));
            }
        }
        options.server = options.server.or(old_server);
        options.init = options.init.or(old_init);
        options
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        match name {
            "server" => self.server = Some(value.parse()?),
            "control-port" => self.control_port = Some(parse_port(value)?),
            "rootfs-port" => self.rootfs_port = Some(parse_port(value)?),
            "transfer-port" if value == "0" => self.transfer_port = 0,
            "transfer-port" => self.transfer_port = parse_port(value)?,
            "service" if value.is_empty() || value == "1" => self.service_port = Some(RPC_PORT),
            "service" if value == "0" => self.service_port = None,
            "service" => self.service_port = Some(parse_port(value)?),
            "disk" => {
                let found = disk(value);
                // Whoever names a disk means no other: the usual one must not go for a typing error.
                let none = |why| Which::No(NoDisk::Unusable(format!("piman.disk={value}: {why}")));
                self.disk = found.as_ref().map_or_else(none, Which::clone);
                found?;
            }
            "init" => self.init = Some(absolute(value)?),
            "log" => self.log = value.parse().map_err(|_| "not off, error, warn, info, debug or trace")?,
            "discard" => self.discard = switch(value)?,
            "keep_data" | "keep-data" => self.keep = value.parse()?,
            "table" => self.table = value.parse()?,
            "path" => self.path = value.parse().map_err(|_| "not auto, archive or image")?,
            // Also if it is empty: who names a key means that nothing is installed without one.
            "key" => self.key = Some(value.to_owned()),
            // Likewise: who names one does not want another on the card.
            "device-key" | "device_key" => self.device_key = Some(value.to_owned()),
            "erase" => self.erase = value.parse()?,
            "trust-unmarked" => self.trust_unmarked = switch(value)?,
            "shell" => self.shell = switch(value)?,
            _ => return Err("unknown option"),
        }
        Ok(())
    }

    /// Where piman is if it is at `host`.
    #[must_use]
    pub fn at(&self, host: Host) -> Server {
        Server {
            control_port: self.control_port.or(host.port).unwrap_or(CONTROL_PORT),
            rootfs_port: self.rootfs_port.unwrap_or(ROOTFS_PORT),
            host: host.name,
        }
    }
}

fn switch(value: &str) -> Result<bool, &'static str> {
    match value {
        "" | "1" => Ok(true),
        "0" => Ok(false),
        _ => Err("not 0 or 1"),
    }
}

fn disk(value: &str) -> Result<Which, &'static str> {
    match value.parse()? {
        Which::Path(_) => absolute(value).map(Which::Path).map_err(|_| {
            "not a path that begins with /, nor auto, largest, type=TYPE, serial=TEXT, by-id=NAME or by-path=NAME"
        }),
        which => Ok(which),
    }
}

fn absolute(value: &str) -> Result<PathBuf, &'static str> {
    if value.starts_with('/') && !value.contains('\0') {
        Ok(PathBuf::from(value))
    } else {
        Err("not an absolute path")
    }
}

/// Cuts a command line into words as the kernel does: at white space outside of `"`,
/// without the quotes around a word or around its value. There is no escape character.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => (quoted, any) = (!quoted, true),
            c if !quoted && (c.is_ascii_whitespace() || c == '\0') => {
                if std::mem::take(&mut any) {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => {
                word.push(c);
                any = true;
            }
        }
    }
    if any {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Cause;
    use piman_core::install::Stage;

    fn server(name: &str, port: Option<u16>) -> Host {
        Host { name: name.into(), port }
    }

    #[test]
    fn a_pi_as_it_boots() {
        let line = b"coherent_pool=1M 8250.nr_uarts=1 snd_bcm2835.enable_hdmi=1 smsc95xx.macaddr=DC:A6:32:00:00:01 \
            console=ttyS0,115200 root=/dev/ram0 rootwait rw ip=dhcp elevator=deadline init=/lib/systemd/systemd \
            piman.server=172.30.1.1:5333 piman.disk=/dev/sda piman.path=archive piman.rootfs-port=14444 \
            piman.service=7 piman.log=debug piman.shell=1 piman.trust-unmarked\n";
        let want = Options {
            server: Some(server("172.30.1.1", Some(5333))),
            disk: Which::Path("/dev/sda".into()),
            path: Choice::Archive,
            trust_unmarked: true,
            rootfs_port: Some(14444),
            service_port: Some(7),
            init: Some("/lib/systemd/systemd".into()),
            log: LevelFilter::Debug,
            shell: true,
            ..Options::default()
        };
        let options = Options::parse(line);
        assert_eq!(options, want);
        let at = options.at(server("a", Some(1)));
        assert_eq!((at.control_port, at.rootfs_port), (1, 14444));
        let at = Options::default().at(server("a", None));
        assert_eq!((at.control_port, at.rootfs_port), (3333, 4444));
        assert_eq!(Options::parse(b"piman.control-port=9").at(server("a", Some(1))).control_port, 9);
    }

    #[test]
    fn addresses() {
        assert_eq!(Options::parse(b"ip=dhcp"), Options::default());
        assert_eq!(Options::parse(b"ip=off").addressing, Addressing::Off);
        let fixed = Options::parse(b"ip=10.0.0.5:10.0.0.1::255.255.255.0::eth0:off").addressing;
        assert!(matches!(fixed, Addressing::Fixed(f) if f.prefix == 24));
        assert_eq!(Options::parse(b"ip=what").complaints.len(), 1);
    }

    #[test]
    fn an_empty_line_is_the_default() {
        assert_eq!(Options::parse(b""), Options::default());
        assert_eq!(Options::parse(b" \n root=/dev/mmcblk0p2 quiet rw piman server=x"), Options::default());
    }

    #[test]
    fn servers() {
        for (text, want) in [
            ("pi.lan", server("pi.lan", None)),
            ("10.0.2.2:3333", server("10.0.2.2", Some(3333))),
            ("fe80::1", server("fe80::1", None)),
            ("[fe80::1]", server("fe80::1", None)),
            ("[fe80::1]:80", server("fe80::1", Some(80))),
            ("serial:/dev/ttyAMA0", server("serial:/dev/ttyAMA0", None)),
            ("serial:/dev/ttyAMA0:115200", server("serial:/dev/ttyAMA0:115200", None)),
        ] {
            let parsed: Host = text.parse().unwrap();
            assert_eq!(parsed, want, "{text}");
            assert_eq!(parsed.to_string().parse(), Ok(want), "{text}");
        }
        for bad in ["", "serial:", ":1", "a:", "a:0", "a:65536", "a:b", "[a]b", "[]:1", "a b:1"] {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_counts_and_new_names_before_old_ones() {
        let parsed = Options::parse(b"piman.server=new master=old init=/a piman.init=/b init=/c");
        assert_eq!(parsed.server, Some(server("new", None)));
        assert_eq!(parsed.init, Some("/b".into()));
        assert_eq!(Options::parse(b"master=a master=b").server, Some(server("b", None)));
    }

    #[test]
    fn quotes_as_the_kernel_reads_them() {
        let parsed =
            Options::parse(b"piman.disk=\"/dev/with a space\" \"piman.init=/b c\" other=\"piman.shell=1\"");
        assert_eq!(parsed.disk, Which::Path("/dev/with a space".into()));
        let disk = |text: &str| Options::parse(format!("piman.disk={text}").as_bytes()).disk;
        assert_eq!(disk("type=nvme").to_string(), "type=nvme");
        assert_eq!(disk("/dev/disk/by-id/mmc-SC32G_0x1").to_string(), "by-id=mmc-SC32G_0x1");
        assert_eq!(parsed.init, Some("/b c".into()));
        assert!(!parsed.shell && parsed.complaints.is_empty());
        assert_eq!(words("a \"\" b\"c d\"e \"open end"), ["a", "", "bc de", "open end"]);
    }

    #[test]
    fn what_is_not_understood_is_said_and_changes_nothing() {
        let line = b"piman.sever=1 piman.path=both piman.server= piman.control-port=0 \
            piman.shell=yes piman.log=loud init= master=:4 piman.=x piman.erase=all";
        let parsed = Options::parse(line);
        assert_eq!(parsed.complaints.len(), 10, "{:?}", parsed.complaints);
        assert_eq!(Options { complaints: Vec::new(), ..parsed }, Options::default());
    }

    #[test]
    fn a_key_that_is_empty_is_not_no_key() {
        assert_eq!(Options::parse(b"piman.key=").key.as_deref(), Some(""));
        assert_eq!(Options::parse(b"piman.key").key.as_deref(), Some(""));
    }

    #[test]
    fn a_disk_that_is_none_is_no_other_disk() {
        for value in ["type=ssd", "type=NVMe", "type=", "sda", "mmcblk0", "serial=", "by-id=", "Auto", ""] {
            let parsed = Options::parse(format!("piman.disk=/dev/sda piman.disk={value}").as_bytes());
            let Which::No(NoDisk::Unusable(why)) = &parsed.disk else { panic!("{value}: {}", parsed.disk) };
            assert_eq!(parsed.complaints, std::slice::from_ref(why));
            assert!(why.starts_with(&format!("piman.disk={value}: no")), "{why}");
            let failure = parsed.disk.open_path().unwrap_err();
            assert_eq!((failure.stage, failure.cause), (Stage::Disk, Cause::Refused));
            assert_eq!(failure.to_string(), format!("{why}; nothing was changed"));
        }
        // The last counts.
        let parsed = Options::parse(b"piman.disk=sda piman.disk=type=nvme");
        assert_eq!((parsed.disk.to_string().as_str(), parsed.complaints.len()), ("type=nvme", 1));
    }

    #[test]
    fn what_follows_two_dashes_is_not_ours() {
        assert_eq!(Options::parse(b"quiet -- piman.shell=1 piman.x=1"), Options::default());
    }

    #[test]
    fn any_bytes_are_a_command_line() {
        let mut bytes = b"piman.disk=/\xff\x00piman.server=\"a\xfe ".repeat(4000);
        bytes.extend([b'x'; CMDLINE_MAX]);
        let parsed = Options::parse(&bytes);
        assert!(!parsed.disk.to_string().is_empty());
    }
}
