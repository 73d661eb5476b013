//! How the Pi gets its address, as the kernel's own option `ip=` says it.

use std::net::Ipv4Addr;

use super::client::class_prefix;

/// How the Pi gets its address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Addressing {
    /// By DHCP on every wired interface, until one has an address.
    #[default]
    Dhcp,
    /// By DHCP on this interface.
    DhcpOn(String),
    /// It is given here.
    Fixed(Box<Fixed>),
    /// Somebody else sees to it.
    Off,
}

/// An address that never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    /// The address.
    pub address: Ipv4Addr,
    /// The bits of it that name the network.
    pub prefix: u8,
    /// The way out of the network.
    pub router: Option<Ipv4Addr>,
    /// Where piman is.
    pub server: Option<Ipv4Addr>,
    /// The interface; `None`: the first that works.
    pub interface: Option<String>,
    /// Where names are looked up.
    pub dns: Vec<Ipv4Addr>,
}

impl Addressing {
    /// Reads the value of `ip=`: one word, or
    /// `ADDRESS:SERVER:ROUTER:MASK:HOST:INTERFACE:HOW:DNS:DNS`, each of which may be empty.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(value: &str) -> Result<Self, &'static str> {
        let parts: Vec<&str> = value.split(':').collect();
        let part = |n: usize| parts.get(n).copied().unwrap_or("").trim();
        let (first, interface, how) = match parts.len() {
            1 => ("", "", part(0)),
            _ => (part(0), part(5), part(6)),
        };
        let interface = Some(interface).filter(|i| !i.is_empty()).map(str::to_owned);
        let address = address(first)?;
        match (how, address) {
            ("off" | "none" | "", Some(address)) => Ok(Self::Fixed(Box::new(Fixed {
                address,
                prefix: prefix(part(3))?.unwrap_or_else(|| class_prefix(address)),
                router: self::address(part(2))?,
                server: self::address(part(1))?,
                interface,
                dns: [part(7), part(8)].into_iter().filter_map(|d| self::address(d).ok()?).collect(),
            }))),
            ("off" | "none", None) => Ok(Self::Off),
            ("" | "on" | "any" | "dhcp" | "both" | "bootp", _) => {
                Ok(interface.map_or(Self::Dhcp, Self::DhcpOn))
            }
            _ => Err("neither dhcp, off, nor ADDRESS:SERVER:ROUTER:MASK:HOST:INTERFACE"),
        }
    }
}

fn address(text: &str) -> Result<Option<Ipv4Addr>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    let ip: Ipv4Addr = text.parse().map_err(|_| "not an IPv4 address")?;
    Ok(Some(ip).filter(|ip| !ip.is_unspecified()))
}

fn prefix(mask: &str) -> Result<Option<u8>, &'static str> {
    let Some(mask) = address(mask)?.map(Ipv4Addr::to_bits) else { return Ok(None) };
    let ones = mask.leading_ones();
    (mask.count_ones() == ones).then_some(Some(ones as u8)).ok_or("not a network mask")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_kernel_reads_it() {
        for dhcp in ["dhcp", "on", "any", "both", ":::::", "::::::dhcp", ":::::: dhcp", ""] {
            assert_eq!(Addressing::parse(dhcp), Ok(Addressing::Dhcp), "{dhcp}");
        }
        assert_eq!(Addressing::parse(":::::eth1:dhcp"), Ok(Addressing::DhcpOn("eth1".into())));
        assert_eq!(Addressing::parse("10.0.0.5:::::eth0:dhcp"), Ok(Addressing::DhcpOn("eth0".into())));
        for off in ["off", "none", "::::::off"] {
            assert_eq!(Addressing::parse(off), Ok(Addressing::Off), "{off}");
        }
        let full = "10.0.0.5:10.0.0.1:10.0.0.254:255.255.252.0:pi:eth0:off:10.0.0.53:8.8.8.8";
        let Ok(Addressing::Fixed(fixed)) = Addressing::parse(full) else { panic!() };
        assert_eq!((fixed.address, fixed.prefix), ([10, 0, 0, 5].into(), 22));
        assert_eq!((fixed.server, fixed.router), (Some([10, 0, 0, 1].into()), Some([10, 0, 0, 254].into())));
        assert_eq!((fixed.interface.as_deref(), fixed.dns.len()), (Some("eth0"), 2));
        let Ok(Addressing::Fixed(short)) = Addressing::parse("192.168.1.5:") else { panic!() };
        assert_eq!((short.prefix, short.router, short.interface), (24, None, None));
    }

    #[test]
    fn what_is_not_understood() {
        for bad in ["dhcpp", "10.0.0.5", "10.0.0:", "10.0.0.5:x", "10.0.0.5:::255.0.255.0", "::::::rarp"] {
            assert!(Addressing::parse(bad).is_err(), "{bad}");
        }
    }
}
