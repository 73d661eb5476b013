//! The network interfaces: which there are, and how they are switched on and given addresses, by
//! netlink (linux/rtnetlink.h).

use std::fmt;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Where the kernel shows them.
pub const FOLDER: &str = "/sys/class/net";

/// What `type` says of Ethernet, and of the loop in every machine.
const ETHERNET: u16 = 1;
const LOOPBACK: u16 = 772;

/// How an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It works.
    Up,
    /// It is switched off.
    Down,
    /// It is switched on, and nothing is at the other end.
    NoCarrier,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: i32,
    /// Its hardware address; `None` if the interface is not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// How it is.
    pub link: Link,
}

/// All interfaces but the loop, in order of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Links(pub Vec<Interface>);

impl Links {
    /// Reads them; `folder` is [`FOLDER`].
    #[must_use]
    pub fn read(folder: &Path) -> Self {
        let mut links = Vec::new();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let read = |file| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            let kind = read("type").trim().parse().unwrap_or(0);
            if kind == LOOPBACK {
                continue;
            }
            // Reading `carrier` fails on an interface that is not up.
            let link = match (read("operstate").trim(), read("carrier").trim()) {
                ("up", _) | ("unknown", "1") => Link::Up,
                (_, "0") => Link::NoCarrier,
                _ => Link::Down,
            };
            let mac = mac(read("address").trim()).filter(|_| kind == ETHERNET);
            links.push(Interface { name, number: read("ifindex").trim().parse().unwrap_or(0), mac, link });
        }
        links.sort_by(|a, b| a.name.cmp(&b.name));
        Self(links)
    }

    /// Whether any is up.
    #[must_use]
    pub fn any_up(&self) -> bool {
        self.0.iter().any(|i| i.link == Link::Up)
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("there is no network interface");
        }
        for (i, Interface { name, link, .. }) in self.0.iter().enumerate() {
            let words = match link {
                Link::Up => "is up",
                Link::Down => "is not up yet",
                Link::NoCarrier => "has no carrier (is the cable in?)",
            };
            write!(f, "{}{name} {words}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// Whether somebody has given an address to an interface: the kernel's own `ip=dhcp`, say.
/// `routes` is what /proc/net/route has.
#[must_use]
pub fn is_configured(routes: &str) -> bool {
    routes.lines().skip(1).any(|line| !line.starts_with("lo\t"))
}

/// Numbers of linux/rtnetlink.h and linux/netlink.h.
mod number {
    pub(super) const NEW_LINK: u16 = 16;
    pub(super) const NEW_ADDRESS: u16 = 20;
    pub(super) const DELETE_ADDRESS: u16 = 21;
    pub(super) const NEW_ROUTE: u16 = 24;
    pub(super) const REQUEST_AND_ACK: u16 = 1 | 4;
    pub(super) const CREATE_OR_REPLACE: u16 = 0x400 | 0x100;
    pub(super) const ERROR: u16 = 2;
}

const INET: u8 = 2;
const UP: u32 = 1;

/// Asks the kernel to change something about its network.
#[derive(Debug)]
pub struct Kernel(OwnedFd);

impl Kernel {
    /// # Errors
    /// The kernel's: it has no network at all.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let family = AddressFamily::NETLINK;
        // No protocol is the first of them, NETLINK_ROUTE.
        Ok(Self(rustix::net::socket_with(family, SocketType::RAW, flags, None)?))
    }

    /// Switches an interface on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn switch_on(&self, interface: i32) -> io::Result<()> {
        // Family and type are any; then the flags, and which of them are to change.
        let mut body = vec![0; 4];
        body.extend(interface.to_ne_bytes());
        body.extend(UP.to_ne_bytes());
        body.extend(UP.to_ne_bytes());
        self.ask(number::NEW_LINK, 0, &body)
    }

    /// Gives an interface an address.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_address(&self, interface: i32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let body = address_message(interface, address, prefix);
        self.ask(number::NEW_ADDRESS, number::CREATE_OR_REPLACE, &body)
    }

    /// Takes it away.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_address(&self, interface: i32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        self.ask(number::DELETE_ADDRESS, 0, &address_message(interface, address, prefix))
    }

    /// Sends by this router what is for other networks.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_router(&self, interface: i32, router: Ipv4Addr) -> io::Result<()> {
        // To anywhere; the main table, from the boot, in the universe, to one machine; and its
        // router is on this link, whatever the mask says.
        let mut body = vec![INET, 0, 0, 0, 254, 3, 0, 1];
        body.extend(4u32.to_ne_bytes());
        attribute(&mut body, 5, &router.octets());
        attribute(&mut body, 4, &interface.to_ne_bytes());
        self.ask(number::NEW_ROUTE, number::CREATE_OR_REPLACE, &body)
    }

    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend(u32::try_from(16 + body.len()).unwrap_or(0).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((number::REQUEST_AND_ACK | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        rustix::net::send(&self.0, &message, SendFlags::empty())?;
        let mut answer = [0; 1024];
        let (length, _) = rustix::net::recv(&self.0, &mut answer, RecvFlags::empty())?;
        let answer = answer.get(..length).unwrap_or_default();
        let kind = answer.get(4..6).and_then(|b| b.first_chunk()).map(|b| u16::from_ne_bytes(*b));
        let error = answer.get(16..).and_then(|b| b.first_chunk()).map(|b| i32::from_ne_bytes(*b));
        match (kind, error) {
            (Some(number::ERROR), Some(0)) => Ok(()),
            (Some(number::ERROR), Some(error)) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn address_message(interface: i32, address: Ipv4Addr, prefix: u8) -> Vec<u8> {
    let mut body = vec![INET, prefix, 0, 0];
    body.extend(interface.to_ne_bytes());
    attribute(&mut body, 2, &address.octets());
    attribute(&mut body, 1, &address.octets());
    if prefix < 31 {
        let all = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        attribute(&mut body, 4, &(address | Ipv4Addr::from_bits(all)).octets());
    }
    body
}

/// All values here have four bytes, so that nothing is to be aligned.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8; 4]) {
    body.extend(8u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_as_sysfs_has_them() {
        let dir = tempfile::tempdir().unwrap();
        for (name, kind, operstate, carrier) in [
            ("lo", "772", "unknown", Some("1")),
            ("eth0", "1", "up", Some("1")),
            ("eth1", "1", "down", Some("0")),
            ("usb0", "1", "unknown", Some("1")),
            ("tun0", "65534", "down", None),
        ] {
            let at = dir.path().join(name);
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join("type"), format!("{kind}\n")).unwrap();
            fs::write(at.join("operstate"), format!("{operstate}\n")).unwrap();
            fs::write(at.join("ifindex"), "3\n").unwrap();
            fs::write(at.join("address"), "b8:27:eb:00:00:0a\n").unwrap();
            if let Some(carrier) = carrier {
                fs::write(at.join("carrier"), format!("{carrier}\n")).unwrap();
            }
        }
        let links = Links::read(dir.path());
        let mac = Some([0xb8, 0x27, 0xeb, 0, 0, 10]);
        let want = [
            ("eth0", mac, Link::Up),
            ("eth1", mac, Link::NoCarrier),
            ("tun0", None, Link::Down),
            ("usb0", mac, Link::Up),
        ];
        let want = want.map(|(name, mac, link)| Interface { name: name.into(), number: 3, mac, link });
        assert_eq!(links, Links(want.to_vec()));
        assert!(links.any_up());
        assert!(links.to_string().contains("eth1 has no carrier"), "{links}");
        assert_eq!(Links::read(&dir.path().join("none")).to_string(), "there is no network interface");
        assert_eq!([mac_of("b8:27"), mac_of("b8:27:eb:00:00:0a:01"), mac_of("")], [None; 3]);
    }

    fn mac_of(text: &str) -> Option<[u8; 6]> {
        mac(text)
    }

    #[test]
    fn the_kernels_routes() {
        let head = "Iface\tDestination\tGateway\n";
        assert!(
            !is_configured("") && !is_configured(head) && !is_configured(&format!("{head}lo\t0000007F\n"))
        );
        assert!(is_configured(&format!("{head}eth0\t004DA8C0\t00000000\n")));
    }

    #[test]
    fn messages_to_the_kernel() {
        let body = address_message(2, [10, 0, 0, 5].into(), 24);
        assert_eq!(body.len(), 8 + 3 * 8);
        assert_eq!(body[28..], [10, 0, 0, 255]);
        assert_eq!(address_message(2, [10, 0, 0, 5].into(), 32).len(), 8 + 2 * 8, "alone it calls nobody");
        // Without permission, or for an interface that is not there, the kernel says no.
        assert!(Kernel::open().and_then(|k| k.switch_on(i32::MAX)).is_err());
    }
}
