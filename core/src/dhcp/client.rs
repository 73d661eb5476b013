//! What a client sends, and what it reads of a server's answer.

use core::fmt::Write as _;
use core::net::Ipv4Addr;

use heapless::{String, Vec};

use super::{Builder, Full, Header, Kind, LENGTH_MIN, Message, Op, PIMAN, Value, code};

/// How long every question is.
pub const QUESTION: usize = LENGTH_MIN;
/// The longest name of a boot server that is taken; a name of the DNS has at most 253 bytes.
pub const NAME_MAX: usize = 255;
/// How many name servers are taken.
pub const NAME_SERVERS_MAX: usize = 4;
/// The largest message that is taken, in bytes.
const SIZE_MAX: u16 = 1472;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Asker {
    /// The hardware address.
    pub mac: [u8; 6],
    /// The last digits of the serial number, if there is one.
    pub serial: Option<u32>,
    /// The number of this exchange.
    pub number: u32,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Question {
    /// Its kind.
    pub kind: Kind,
    /// The address that the asker has and uses.
    pub has: Option<Ipv4Addr>,
    /// The address that it would like.
    pub wants: Option<Ipv4Addr>,
    /// The server whose offer it takes.
    pub server: Option<Ipv4Addr>,
    /// Seconds since it began to ask.
    pub seconds: u16,
}

impl Question {
    /// A question of this kind about no address.
    #[must_use]
    pub const fn new(kind: Kind) -> Self {
        Self { kind, has: None, wants: None, server: None, seconds: 0 }
    }

    /// Writes it; how long it is.
    ///
    /// # Errors
    /// If the buffer has fewer than [`QUESTION`] bytes.
    pub fn write(&self, who: &Asker, out: &mut [u8]) -> Result<usize, Full> {
        let header = Header {
            seconds: self.seconds,
            // Who has no address asks to be answered by broadcast: some servers would ask for its hardware
            // address first, which it cannot say yet.
            flags: if self.has.is_some() { 0 } else { Header::BROADCAST },
            client_address: self.has.unwrap_or(Ipv4Addr::UNSPECIFIED),
            ..Header::new(Op::Request, who.number, who.mac)
        };
        let mut builder = Builder::new(out, &header);
        builder.option(code::KIND, &[self.kind.number()]);
        for (code, address) in [(code::REQUESTED_ADDRESS, self.wants), (code::SERVER, self.server)] {
            if let Some(address) = address {
                builder.option(code, &address.octets());
            }
        }
        let parameters = [
            code::SUBNET_MASK,
            code::ROUTER,
            code::NAME_SERVER,
            code::BOOT_SERVER,
            code::LEASE_TIME,
            code::SERVER,
        ];
        builder.option(code::PARAMETERS, &parameters);
        builder.option(code::SIZE_MAX, &SIZE_MAX.to_be_bytes());
        builder.option(code::CLASS, PIMAN);
        if let Some(serial) = who.serial {
            // In the form of the boot ROM, so that an address fixed by serial number is the same here.
            let mut id = *b"\0RPi\0\0\0\0\0\0\0\0\0\0\0\0\0";
            if let Some(end) = id.last_chunk_mut() {
                *end = serial.to_le_bytes();
            }
            builder.option(code::MACHINE_ID, &id);
        }
        builder.finish()
    }
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Reply {
    /// Its kind.
    pub kind: Kind,
    /// The address that is given.
    pub address: Option<Ipv4Addr>,
    /// The next server to ask.
    pub next: Option<Ipv4Addr>,
    /// Who says it.
    pub server: Option<Ipv4Addr>,
    /// The mask of the network.
    pub mask: Option<Ipv4Addr>,
    /// The first router.
    pub router: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr, NAME_SERVERS_MAX>,
    /// How long the address may be used, in seconds.
    pub seconds: Option<u32>,
    /// The boot server by name.
    pub name: Option<String<NAME_MAX>>,
    /// Whether piman says it.
    pub marked: bool,
}

impl Reply {
    /// Reads a DHCP message; `None` if it is no answer to this asker.
    #[must_use]
    pub fn parse(packet: &[u8], who: &Asker) -> Option<Self> {
        let message = Message::parse(packet)?;
        let is_answer = message.op() == Some(Op::Reply) && message.number() == who.number;
        if !is_answer || message.mac() != Some(who.mac) {
            return None;
        }
        let address = |code| message.option(code)?.address();
        let mut dns = Vec::new();
        if let Some(value) = message.option(code::NAME_SERVER) {
            // Those that are too many are left out.
            dns.extend(value.addresses().take(NAME_SERVERS_MAX));
        }
        Some(Self {
            kind: message.kind()?,
            address: message.your_address(),
            next: message.next_server(),
            server: address(code::SERVER),
            mask: address(code::SUBNET_MASK),
            router: address(code::ROUTER),
            dns,
            seconds: message.option(code::LEASE_TIME).and_then(|v| v.first()).map(u32::from_be_bytes),
            name: message.option(code::BOOT_SERVER).and_then(|v| host(&v)),
            marked: message.option(code::CLASS).is_some_and(|v| v.is(PIMAN)),
        })
    }

    /// Where the client should go, as far as this reply says.
    #[must_use]
    pub fn boot_server(&self) -> Option<String<NAME_MAX>> {
        let Some(next) = self.next else { return self.name.clone() };
        let mut text = String::new();
        write!(text, "{next}").ok().map(|()| text)
    }
}

/// A name or address in a value, which some servers end with a NUL.
fn host(value: &Value<'_>) -> Option<String<NAME_MAX>> {
    let mut buffer = [0; NAME_MAX];
    let text = value.text(&mut buffer)?.trim_end_matches('\0');
    let good = |c: char| c.is_ascii_alphanumeric() || "-.:_".contains(c);
    if text.is_empty() || !text.chars().all(good) {
        return None;
    }
    String::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: Asker = Asker { mac: [0xb8, 0x27, 0xeb, 0, 0, 1], serial: Some(1), number: 7 };

    #[test]
    fn every_question_has_the_same_length() {
        let ip = Some(Ipv4Addr::BROADCAST);
        let longest = Question { kind: Kind::Request, has: ip, wants: ip, server: ip, seconds: u16::MAX };
        for question in [Question::new(Kind::Discover), longest] {
            let mut out = [0; QUESTION];
            assert_eq!(question.write(&WHO, &mut out), Ok(QUESTION));
            assert_eq!(question.write(&WHO, &mut out[1..]), Err(Full));
        }
    }

    #[test]
    fn an_answer_with_split_and_moved_options() {
        let header = Header { next_server: Ipv4Addr::UNSPECIFIED, ..Header::new(Op::Reply, 7, WHO.mac) };
        let mut out = [0; 600];
        let mut builder = Builder::new(&mut out, &header);
        // The name is split, and its second part is where a file's name would be.
        builder.option(53, &[5]).option(66, b"pi.").option(52, &[1]).option(60, PIMAN);
        let n = builder.finish().unwrap();
        out[108..116].copy_from_slice(&[66, 5, b'l', b'a', b'n', 0, 0, 255]);
        let reply = Reply::parse(&out[..n], &WHO).unwrap();
        assert_eq!(reply.name.as_deref(), Some("pi.lan"));
        assert_eq!(reply.boot_server(), reply.name);
        assert!(reply.marked && reply.kind == Kind::Ack);
        // More name servers than are taken, in two parts.
        let mut builder = Builder::new(&mut out, &header);
        builder.option(53, &[5]).option(6, &[1; 10]).option(6, &[1; 14]);
        let n = builder.finish().unwrap();
        assert_eq!(Reply::parse(&out[..n], &WHO).unwrap().dns.len(), NAME_SERVERS_MAX);
    }
}
