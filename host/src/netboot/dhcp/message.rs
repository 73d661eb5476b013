//! What a client asks, and replies with the boot information that Pis look for.

use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::{DhcpOption, Flags, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};

use super::{Mac, Who};

/// Clients may not take shorter replies (RFC 1542, 2.1).
const REPLY_MIN: usize = 300;
/// The port of clients, and the one of servers and relays.
const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;

/// What piman's own agent says it is; to say it back says that piman is here.
const AGENT: &[u8] = b"piman";

/// Option 43 as the boot ROM wants it: no discovery by broadcast (6), a prompt that waits for
/// nobody (10), and a menu (9) whose one entry must have exactly this name.
const PI_MENU: &[u8] = b"\x06\x01\x03\x0a\x04\0PXE\x09\x14\0\0\x11Raspberry Pi Boot\xff";

/// A request.
#[derive(Debug, Clone)]
pub struct Ask {
    message: Message,
    /// What kind.
    pub kind: MessageType,
    /// From whom.
    pub mac: Mac,
}

impl Ask {
    /// Reads a packet; `None` if it is no request of a client with an Ethernet address.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let message = Message::decode(&mut Decoder::new(&clean(packet)?)).ok()?;
        let kind = message.opts().msg_type()?;
        let mac = Mac(message.chaddr().try_into().ok()?);
        Some(Self { message, kind, mac })
    }

    fn option(&self, code: OptionCode) -> Option<&DhcpOption> {
        self.message.opts().get(code)
    }

    /// The address that it has and uses.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        Some(self.message.ciaddr()).filter(|ip| !ip.is_unspecified())
    }

    /// The relay that it came through.
    #[must_use]
    pub fn relay(&self) -> Option<Ipv4Addr> {
        Some(self.message.giaddr()).filter(|ip| !ip.is_unspecified())
    }

    /// The address that it would like.
    #[must_use]
    pub fn requested(&self) -> Option<Ipv4Addr> {
        match self.option(OptionCode::RequestedIpAddress) {
            Some(DhcpOption::RequestedIpAddress(ip)) => Some(*ip),
            _ => None,
        }
    }

    /// The server whose offer it takes.
    #[must_use]
    pub fn server(&self) -> Option<Ipv4Addr> {
        match self.option(OptionCode::ServerIdentifier) {
            Some(DhcpOption::ServerIdentifier(ip)) => Some(*ip),
            _ => None,
        }
    }

    /// What it says it is.
    #[must_use]
    pub fn class(&self) -> &[u8] {
        match self.option(OptionCode::ClassIdentifier) {
            Some(DhcpOption::ClassIdentifier(class)) => class,
            _ => &[],
        }
    }

    /// Whether it boots from the network by PXE, as the boot ROM of a Pi does.
    #[must_use]
    pub fn is_pxe(&self) -> bool {
        self.class().starts_with(b"PXEClient")
    }

    /// Whether it is piman's own agent, which looks for piman.
    #[must_use]
    pub fn is_agent(&self) -> bool {
        self.class() == AGENT
    }

    /// The machine's own number, after the byte that says its kind.
    fn guid(&self) -> Option<&[u8]> {
        match self.option(OptionCode::ClientMachineIdentifier) {
            Some(DhcpOption::ClientMachineIdentifier(guid)) => guid.get(1..),
            _ => None,
        }
    }

    /// Whether it is a Raspberry Pi, by its hardware address or what its boot ROM says.
    #[must_use]
    pub fn is_pi(&self) -> bool {
        self.mac.is_pi() || self.guid().is_some_and(|g| g.starts_with(b"RPi"))
    }

    /// Whether this is the Pi that is meant.
    #[must_use]
    pub fn is(&self, who: Who) -> bool {
        match who {
            Who::Mac(mac) => mac == self.mac,
            Who::Serial(serial) => {
                // At the end of what newer boot ROMs say, and four times in what older ones say;
                // the order of its bytes differs.
                let last = self.guid().and_then(|g| g.last_chunk::<4>());
                last.is_some_and(|b| [u32::from_le_bytes(*b), u32::from_be_bytes(*b)].contains(&serial))
            }
        }
    }

    /// In a few words, for the log and the timeline.
    #[must_use]
    pub fn describe(&self) -> String {
        let class = String::from_utf8_lossy(self.class());
        let class: String = class.chars().filter(|c| !c.is_control()).take(40).collect();
        match (self.is_pxe(), class.is_empty()) {
            (true, _) => "the boot ROM".to_owned(),
            (false, true) => "the system".to_owned(),
            (false, false) => class,
        }
    }

    /// The beginning of a reply of this kind, from the server with this address.
    #[must_use]
    pub fn reply(&self, kind: MessageType, server: Ipv4Addr) -> Message {
        let asked = &self.message;
        let mut reply = Message::default();
        reply
            .set_opcode(Opcode::BootReply)
            .set_htype(HType::Eth)
            .set_xid(asked.xid())
            .set_flags(asked.flags())
            .set_giaddr(asked.giaddr())
            .set_chaddr(&self.mac.0);
        let options = reply.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(server));
        if let Some(guid) = self.option(OptionCode::ClientMachineIdentifier) {
            options.insert(guid.clone());
        }
        // RFC 6842: what identifies the client comes back.
        if let Some(id) = self.option(OptionCode::ClientIdentifier) {
            options.insert(id.clone());
        }
        reply
    }

    /// Adds where to boot from: this server, this file.
    pub fn add_boot(&self, reply: &mut Message, server: Ipv4Addr, file: &str) {
        reply.set_siaddr(server);
        // Longer names do not fit; 127 bytes and their end do.
        if file.len() < 128 {
            reply.set_fname(file.as_bytes());
        }
        let options = reply.opts_mut();
        options.insert(DhcpOption::TFTPServerName(server.to_string().into_bytes()));
        options.insert(DhcpOption::BootfileName(file.as_bytes().to_vec()));
        if self.is_agent() {
            options.insert(DhcpOption::ClassIdentifier(AGENT.to_vec()));
        }
        if !self.is_pxe() {
            return;
        }
        options.insert(DhcpOption::ClassIdentifier(b"PXEClient".to_vec()));
        if self.is_pi() {
            options.insert(DhcpOption::VendorExtensions(PI_MENU.to_vec()));
        }
    }

    /// Where a reply goes: to the relay, to an address that is in use, or to everybody, since a
    /// client without address cannot be asked for it.
    #[must_use]
    pub fn destination(&self, kind: MessageType) -> SocketAddrV4 {
        match (self.relay(), self.address()) {
            (Some(relay), _) => SocketAddrV4::new(relay, SERVER_PORT),
            (None, Some(address)) if kind != MessageType::Nak => SocketAddrV4::new(address, CLIENT_PORT),
            (None, _) => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT),
        }
    }

    /// Whether the client wants its reply by broadcast.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.message.flags()
    }
}

/// A request of a client with an Ethernet address, with nothing in it but the options that are looked
/// at, each of a possible length. The codec trusts the lengths of hardware addresses and of some
/// options, and one that it does not understand makes it give up; a boot ROM is not to fail by that.
fn clean(packet: &[u8]) -> Option<Vec<u8>> {
    if packet.get(..3) != Some(&[1, 1, 6]) || packet.get(236..240) != Some(&[99, 130, 83, 99]) {
        return None;
    }
    let mut clean = packet.get(..240)?.to_vec();
    // Server name and file are not looked at, and may hold anything.
    clean.get_mut(44..236)?.fill(0);
    let mut rest = packet.get(240..)?;
    while let Some((&code, after)) = rest.split_first() {
        match code {
            0 => rest = after,
            255 => break,
            _ => {
                let (&length, after) = after.split_first()?;
                let data = after.get(..length.into())?;
                rest = after.get(length.into()..)?;
                let possible = match code {
                    53 => length == 1,
                    50 | 54 => length == 4,
                    60 | 61 | 97 => length >= 2,
                    _ => false,
                };
                if possible {
                    clean.extend_from_slice(&[code, length]);
                    clean.extend_from_slice(data);
                }
            }
        }
    }
    clean.push(255);
    Some(clean)
}

/// A request of a machine that only wants to know which servers there are.
#[must_use]
pub fn search(mac: Mac, number: u32) -> Option<Vec<u8>> {
    let mut message = Message::default();
    message.set_opcode(Opcode::BootRequest).set_htype(HType::Eth).set_chaddr(&mac.0).set_xid(number);
    // It has no address to be answered at.
    message.set_flags(Flags::default().set_broadcast());
    message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
    encode(&message)
}

/// The server that answered [`search`], if this packet is such an answer.
#[must_use]
pub fn found(packet: &[u8], number: u32) -> Option<Ipv4Addr> {
    let mut request = packet.to_vec();
    let opcode = request.first_mut().filter(|o| **o == 2)?;
    // Read as if it were a request: the same fields, checked in the same way.
    *opcode = 1;
    let answer = Ask::parse(&request)?;
    (answer.message.xid() == number).then(|| answer.server())?
}

/// The bytes of a reply; `None` if it does not fit (a configured name is too long, say).
#[must_use]
pub fn encode(reply: &Message) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    reply.encode(&mut Encoder::new(&mut bytes)).ok()?;
    if bytes.len() < REPLY_MIN {
        bytes.resize(REPLY_MIN, 0);
    }
    Some(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A request with these options, from `b8:27:eb:00:00:NN`.
    pub(crate) fn ask(kind: MessageType, last: u8, options: &[DhcpOption]) -> Ask {
        ask_with(kind, last, Ipv4Addr::UNSPECIFIED, options)
    }

    /// The same from a client that has an address.
    pub(crate) fn ask_with(kind: MessageType, last: u8, address: Ipv4Addr, options: &[DhcpOption]) -> Ask {
        let mut message = Message::default();
        message.set_chaddr(&[0xb8, 0x27, 0xeb, 0, 0, last]).set_xid(7).set_ciaddr(address);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            message.opts_mut().insert(option.clone());
        }
        Ask::parse(&encode(&message).unwrap()).unwrap()
    }

    /// What a Pi's boot ROM says.
    pub(crate) fn rom() -> Vec<DhcpOption> {
        let guid = b"\0RPi4\x11\x31\xc0\0\0\x01\x02\x03\x01\xef\xcd\xab".to_vec();
        vec![
            DhcpOption::ClassIdentifier(b"PXEClient:Arch:00000:UNDI:002001".to_vec()),
            DhcpOption::ClientSystemArchitecture(0.into()),
            DhcpOption::ClientMachineIdentifier(guid),
        ]
    }

    #[test]
    fn a_boot_rom() {
        let ask = ask(MessageType::Discover, 1, &rom());
        assert!(ask.is_pxe() && ask.is_pi());
        assert!(ask.is(Who::Serial(0xabcd_ef01)) && !ask.is(Who::Serial(0xabcd_ef02)));
        assert!(ask.is(Who::Mac(ask.mac)));
        assert_eq!(ask.describe(), "the boot ROM");
        let me = Ipv4Addr::new(10, 0, 0, 1);
        let mut reply = ask.reply(MessageType::Offer, me);
        ask.add_boot(&mut reply, me, "bootcode.bin");
        let bytes = encode(&reply).unwrap();
        assert!(bytes.len() >= 300);
        let has = |what: &[u8]| bytes.windows(what.len()).any(|w| w == what);
        assert!(has(b"\x2b\x20\x06\x01\x03\x0a\x04\0PXE\x09\x14\0\0\x11Raspberry Pi Boot\xff"));
        assert!(has(b"\x3c\x09PXEClient") && has(b"\x42\x0810.0.0.1") && has(b"\x43\x0cbootcode.bin"));
        assert!(has(b"\x61\x11\0RPi4"), "its number comes back");
        assert_eq!(bytes[20..24], [10, 0, 0, 1], "the next server");
        assert_eq!(bytes[108..120], *b"bootcode.bin");
        assert_eq!(ask.destination(MessageType::Offer).to_string(), "255.255.255.255:68");
    }

    #[test]
    fn what_is_no_request() {
        let good = search(Mac([2; 6]), 9).unwrap();
        assert!(Ask::parse(&good).is_some());
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            bytes
        };
        for bad in [changed(0, 2), changed(1, 6), changed(2, 16), changed(2, 255), changed(236, 0)] {
            assert!(Ask::parse(&bad).is_none());
        }
        for length in 0..240 {
            assert!(Ask::parse(&good[..length]).is_none(), "{length}");
        }
    }

    #[test]
    fn servers_are_found() {
        let me = Ipv4Addr::new(10, 0, 0, 1);
        let asked = Ask::parse(&search(Mac([2; 6]), 9).unwrap()).unwrap();
        let offer = encode(&asked.reply(MessageType::Offer, me)).unwrap();
        assert_eq!((found(&offer, 9), found(&offer, 8)), (Some(me), None));
        assert_eq!(found(&search(Mac([2; 6]), 9).unwrap(), 9), None, "our own question");
    }

    #[test]
    fn any_bytes_are_survived() {
        let good = encode(&ask(MessageType::Discover, 1, &rom()).message).unwrap();
        let mut seed = 1u32;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..4 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (seed >> 8) as usize % bytes.len();
                bytes[at] = seed as u8;
            }
            if let Some(ask) = Ask::parse(&bytes) {
                let _ = (ask.is_pi(), ask.describe(), ask.requested(), ask.is(Who::Serial(1)));
                let _ = encode(&ask.reply(MessageType::Ack, Ipv4Addr::LOCALHOST));
            }
        }
    }
}
