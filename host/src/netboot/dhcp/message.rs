//! What a client asks, and replies with the boot information that Pis look for.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use piman_core::dhcp::server::Request;
use piman_core::dhcp::{
    Builder, CLIENT_PORT, Full, Header, Kind, Message, Op, PIMAN, SERVER_PORT, Value, build, code,
};

use super::Who;
use crate::sys::mac::Mac;

/// The largest packet of UDP.
const REPLY_MAX: usize = 65_507;

/// Option 43 as the boot ROM wants it: no discovery by broadcast (6), a prompt that waits for
/// nobody (10), and a menu (9) whose one entry must have exactly this name.
const PI_MENU: &[u8] = b"\x06\x01\x03\x0a\x04\0PXE\x09\x14\0\0\x11Raspberry Pi Boot\xff";

/// Option 43 for other PXE clients that get their address here: the file is in this reply, no boot server has to
/// be looked for. EDK2 takes an offer that says `PXEClient` without it for one of BINL, and asks port 4011 again.
const DIRECT: &[u8] = b"\x06\x01\x08\xff";

/// A request.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The fields of a reply to it.
    reply: Header<'static>,
    /// What kind.
    pub kind: Kind,
    /// From whom.
    pub mac: Mac,
    address: Option<Ipv4Addr>,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    class: Vec<u8>,
    machine: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
    relay_information: Option<Vec<u8>>,
}

impl Ask {
    /// Reads a packet; `None` if it is no request of a client with an Ethernet address.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let request = Request::parse(packet)?;
        let bytes = |value: Value<'_>| value.bytes().collect();
        Some(Self {
            reply: request.reply(),
            kind: request.kind,
            mac: Mac(request.mac),
            address: request.address(),
            requested: request.requested(),
            server: request.server(),
            class: request.class().map(bytes).unwrap_or_default(),
            machine: request.machine_id().map(bytes),
            id: request.client_id().map(bytes),
            relay_information: request.relay_information().map(bytes),
        })
    }

    /// The address that it has and uses.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.address
    }

    /// The relay that it came through.
    #[must_use]
    pub fn relay(&self) -> Option<Ipv4Addr> {
        Some(self.reply.relay).filter(|ip| !ip.is_unspecified())
    }

    /// The address that it would like.
    #[must_use]
    pub fn requested(&self) -> Option<Ipv4Addr> {
        self.requested
    }

    /// The server whose offer it takes.
    #[must_use]
    pub fn server(&self) -> Option<Ipv4Addr> {
        self.server
    }

    /// What it says it is.
    #[must_use]
    pub fn class(&self) -> &[u8] {
        &self.class
    }

    /// Whether it boots from the network by PXE, as the boot ROM of a Pi does.
    #[must_use]
    pub fn is_pxe(&self) -> bool {
        self.class().starts_with(b"PXEClient")
    }

    /// Whether it is piman's own agent, which looks for piman.
    #[must_use]
    pub fn is_agent(&self) -> bool {
        self.class() == PIMAN
    }

    /// The machine's own number, after the byte that says its kind.
    fn guid(&self) -> Option<&[u8]> {
        self.machine.as_deref()?.get(1..)
    }

    /// Whether it is a Raspberry Pi, by its hardware address or what its boot ROM says.
    #[must_use]
    pub fn is_pi(&self) -> bool {
        self.mac.is_pi() || self.guid().is_some_and(|g| g.starts_with(b"RPi"))
    }

    /// Whether it says the serial number of a Pi.
    #[must_use]
    pub fn tells_serial(&self) -> bool {
        self.is_pi() && self.guid().is_some_and(|g| g.len() >= 4)
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
        let class: String = class.chars().filter(|c| piman_core::text::is_shown(*c)).take(40).collect();
        match (self.is_pxe(), class.is_empty()) {
            (true, _) => "the boot ROM".to_owned(),
            (false, true) => "the system".to_owned(),
            (false, false) => class,
        }
    }

    /// The beginning of a reply of this kind, from the server with this address.
    #[must_use]
    pub fn reply(&self, kind: Kind, server: Ipv4Addr) -> Reply {
        let header = Header { mac: self.mac.0, ..self.reply };
        let mut reply = Reply { kind, header, file: String::new(), options: BTreeMap::new() };
        reply.set(code::KIND, &[kind.number()]);
        reply.set(code::SERVER, &server.octets());
        if let Some(guid) = &self.machine {
            reply.set(code::MACHINE_ID, guid);
        }
        // RFC 6842: what identifies the client comes back.
        if let Some(id) = &self.id {
            reply.set(code::CLIENT_ID, id);
        }
        if let Some(information) = &self.relay_information {
            reply.set(code::RELAY_INFORMATION, information);
        }
        reply
    }

    /// Adds where to boot from: this server, this file.
    pub fn add_boot(&self, reply: &mut Reply, server: Ipv4Addr, file: &str) {
        reply.header.next_server = server;
        // Longer names do not fit; 127 bytes and their end do.
        if file.len() < 128 {
            reply.file = file.to_owned();
        }
        reply.set(code::BOOT_SERVER, server.to_string().as_bytes());
        reply.set(code::BOOT_FILE, file.as_bytes());
        if self.is_agent() {
            reply.set(code::CLASS, PIMAN);
        }
        if !self.is_pxe() {
            return;
        }
        reply.set(code::CLASS, b"PXEClient");
        if self.is_pi() {
            reply.set(code::VENDOR, PI_MENU);
        } else if !reply.header.your_address.is_unspecified() {
            reply.set(code::VENDOR, DIRECT);
        }
    }

    /// Where a reply goes: to the relay, to an address that is in use, or to everybody, since a
    /// client without address cannot be asked for it.
    #[must_use]
    pub fn destination(&self, kind: Kind) -> SocketAddrV4 {
        match (self.relay(), self.address()) {
            (Some(relay), _) => SocketAddrV4::new(relay, SERVER_PORT),
            (None, Some(address)) if kind != Kind::Nak => SocketAddrV4::new(address, CLIENT_PORT),
            (None, _) => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT),
        }
    }
}

/// A reply that is being put together.
#[derive(Debug, Clone)]
pub struct Reply {
    kind: Kind,
    /// Its fields, but for the file.
    pub header: Header<'static>,
    file: String,
    /// In the order of their numbers, in which they are sent.
    options: BTreeMap<u8, Vec<u8>>,
}

impl Reply {
    /// What kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Gives an option this value; one without a value is left out.
    pub fn set(&mut self, code: u8, value: &[u8]) {
        if !value.is_empty() {
            self.options.insert(code, value.to_vec());
        }
    }

    /// The value of an option.
    #[must_use]
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.options.get(&code).map(Vec::as_slice)
    }
}

/// A request of a machine that only wants to know which servers there are.
#[must_use]
pub fn search(mac: Mac, number: u32) -> Option<Vec<u8>> {
    // It has no address to be answered at.
    let header = Header { flags: Header::BROADCAST, ..Header::new(Op::Request, number, mac.0) };
    write(&header, [(code::KIND, &[Kind::Discover.number()][..])].into_iter()).ok()
}

/// The server that answered [`search`], if this packet is such an answer.
#[must_use]
pub fn found(packet: &[u8], number: u32) -> Option<Ipv4Addr> {
    let answer = Message::parse(packet).filter(|m| m.op() == Some(Op::Reply) && !m.is_cut())?;
    if answer.number() != number || answer.mac().is_none() || answer.kind().is_none() {
        return None;
    }
    answer.option(code::SERVER)?.fixed().map(Ipv4Addr::from_octets)
}

/// The bytes of a reply; `None` if it does not fit (a configured name is too long, say).
#[must_use]
pub fn encode(reply: &Reply) -> Option<Vec<u8>> {
    let header = Header { file: reply.file.as_bytes(), ..reply.header };
    // What a relay has added is the last of all (RFC 3046, 2.1).
    let (relay, own): (Vec<_>, Vec<_>) =
        reply.options.iter().partition(|(code, _)| **code == code::RELAY_INFORMATION);
    write(&header, own.into_iter().chain(relay).map(|(code, value)| (*code, value.as_slice()))).ok()
}

fn write<'a>(
    header: &Header<'_>,
    options: impl Iterator<Item = (u8, &'a [u8])> + Clone,
) -> Result<Vec<u8>, Full> {
    let length = build::length(options.clone().map(|(_, value)| value.len()));
    let mut bytes = vec![0; length.min(REPLY_MAX)];
    let mut builder = Builder::new(&mut bytes, header);
    for (code, value) in options {
        builder.option(code, value);
    }
    let length = builder.finish()?;
    bytes.truncate(length);
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A request with these options, from `b8:27:eb:00:00:NN`.
    pub(crate) fn ask(kind: Kind, last: u8, options: &[Opt]) -> Ask {
        ask_with(kind, last, Ipv4Addr::UNSPECIFIED, options)
    }

    /// The same from a client that has an address.
    pub(crate) fn ask_with(kind: Kind, last: u8, address: Ipv4Addr, options: &[Opt]) -> Ask {
        Ask::parse(&bytes(kind, last, address, options)).unwrap()
    }

    /// An option: its number and its value.
    pub(crate) type Opt = (u8, Vec<u8>);

    fn bytes(kind: Kind, last: u8, address: Ipv4Addr, options: &[Opt]) -> Vec<u8> {
        let mac = [0xb8, 0x27, 0xeb, 0, 0, last];
        let header = Header { client_address: address, ..Header::new(Op::Request, 7, mac) };
        let kind = [kind.number()];
        let options = options.iter().map(|(code, value)| (*code, value.as_slice()));
        write(&header, [(code::KIND, &kind[..])].into_iter().chain(options)).unwrap()
    }

    /// What a Pi's boot ROM says.
    pub(crate) fn rom() -> Vec<Opt> {
        let guid = b"\0RPi4\x11\x31\xc0\0\0\x01\x02\x03\x01\xef\xcd\xab".to_vec();
        vec![
            (code::CLASS, b"PXEClient:Arch:00000:UNDI:002001".to_vec()),
            // Its architecture.
            (93, vec![0, 0]),
            (code::MACHINE_ID, guid),
        ]
    }

    #[test]
    fn what_a_relay_adds_comes_back_last_and_as_it_was() {
        // Sub-options 1 and 2, and one of 0 bytes.
        let information = b"\x01\x06\0\x04\0\x02\x01\x05\x02\x08\0\x06\x02\0\0\0\0\x07\x98\0".to_vec();
        let asked =
            ask(Kind::Discover, 1, &[rom(), vec![(code::RELAY_INFORMATION, information.clone())]].concat());
        let bytes = encode(&asked.reply(Kind::Offer, Ipv4Addr::new(10, 0, 0, 1))).unwrap();
        let message = Message::parse(&bytes).unwrap();
        let back: Vec<u8> = message.option(code::RELAY_INFORMATION).unwrap().bytes().collect();
        assert_eq!(back, information);
        let (_, last) = message.options().last().unwrap();
        assert_eq!(last, information);
    }

    #[test]
    fn a_boot_rom() {
        let ask = ask(Kind::Discover, 1, &rom());
        assert!(ask.is_pxe() && ask.is_pi());
        assert!(ask.is(Who::Serial(0xabcd_ef01)) && !ask.is(Who::Serial(0xabcd_ef02)));
        assert!(ask.is(Who::Mac(ask.mac)));
        assert_eq!(ask.describe(), "the boot ROM");
        let me = Ipv4Addr::new(10, 0, 0, 1);
        let mut reply = ask.reply(Kind::Offer, me);
        ask.add_boot(&mut reply, me, "bootcode.bin");
        let bytes = encode(&reply).unwrap();
        assert!(bytes.len() >= 300);
        let has = |what: &[u8]| bytes.windows(what.len()).any(|w| w == what);
        assert!(has(b"\x2b\x20\x06\x01\x03\x0a\x04\0PXE\x09\x14\0\0\x11Raspberry Pi Boot\xff"));
        assert!(has(b"\x3c\x09PXEClient") && has(b"\x42\x0810.0.0.1") && has(b"\x43\x0cbootcode.bin"));
        assert!(has(b"\x61\x11\0RPi4"), "its number comes back");
        assert_eq!(bytes[20..24], [10, 0, 0, 1], "the next server");
        assert_eq!(bytes[108..120], *b"bootcode.bin");
        assert_eq!(ask.destination(Kind::Offer).to_string(), "255.255.255.255:68");
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
        let offer = encode(&asked.reply(Kind::Offer, me)).unwrap();
        assert_eq!((found(&offer, 9), found(&offer, 8)), (Some(me), None));
        assert_eq!(found(&search(Mac([2; 6]), 9).unwrap(), 9), None, "our own question");
    }

    #[test]
    fn any_bytes_are_survived() {
        let good = bytes(Kind::Discover, 1, Ipv4Addr::UNSPECIFIED, &rom());
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
                let _ = encode(&ask.reply(Kind::Ack, Ipv4Addr::LOCALHOST));
            }
        }
    }
}
