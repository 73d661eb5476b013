//! DHCP messages (RFC 2131, 2132): one codec for the client on the Pi and for the server.
//!
//! | module | what lives there |
//! |---|---|
//! | this one | a message as a view of its bytes, its options |
//! | [`build`] | messages written into the caller's buffer |
//! | [`client`] | what a client sends, and what it reads of a reply |
//! | [`server`] | what a server reads of a request, and the beginning of its reply |
//!
//! Nothing is allocated, and any bytes can be read. A message that was cut ends where it was cut; what came before
//! holds. Options that were moved into the fields `file` and `sname` are found there (option 52), and an option
//! that was split into parts is read as one value (RFC 3396).

pub mod build;
pub mod client;
pub mod server;

use core::net::Ipv4Addr;

pub use build::{Builder, Full, Header, Op};

/// The port of servers and relays.
pub const SERVER_PORT: u16 = 67;
/// The port of clients.
pub const CLIENT_PORT: u16 = 68;
/// How long a message is without its options.
pub const FIXED: usize = 240;
/// Old clients, servers and relays take nothing shorter (RFC 1542, 2.1).
pub const LENGTH_MIN: usize = 300;

/// What piman's agent says it is, in option 60. A server that says the same back is piman, and where it is is
/// where the agent should go, whoever gave the address.
pub const PIMAN: &[u8] = b"piman";

const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Hardware type and address length of Ethernet.
const ETHERNET: [u8; 2] = [1, 6];

/// The numbers of options.
pub mod code {
    #![expect(missing_docs, reason = "the names of RFC 2132, 3046 and 4578")]
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const NAME_SERVER: u8 = 6;
    pub const BROADCAST: u8 = 28;
    pub const VENDOR: u8 = 43;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const KIND: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const PARAMETERS: u8 = 55;
    pub const SIZE_MAX: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const CLASS: u8 = 60;
    pub const CLIENT_ID: u8 = 61;
    pub const BOOT_SERVER: u8 = 66;
    pub const BOOT_FILE: u8 = 67;
    pub const RELAY_INFORMATION: u8 = 82;
    pub const MACHINE_ID: u8 = 97;
    pub const END: u8 = 255;
}

/// The kind of a message, as option 53 has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Kind {
    /// A client looks for servers.
    Discover,
    /// A server offers an address.
    Offer,
    /// A client takes an offer, or wants to go on using its address.
    Request,
    /// A client found that its address is in use.
    Decline,
    /// A server confirms.
    Ack,
    /// A server refuses.
    Nak,
    /// A client gives its address back.
    Release,
    /// A client has an address and asks for the rest.
    Inform,
    /// Something else.
    Other(u8),
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            other => Self::Other(other),
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Decline => 4,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Release => 7,
            Self::Inform => 8,
            Self::Other(other) => other,
        }
    }
}

/// A message, as a view of its bytes. Every byte of its fields may be anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Message<'a> {
    fixed: &'a [u8; FIXED],
    options: &'a [u8],
}

impl<'a> Message<'a> {
    /// A view of a packet; `None` if it is shorter than the fields of a message, or no DHCP.
    #[must_use]
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let (fixed, options) = packet.split_first_chunk()?;
        let message = Self { fixed, options };
        (message.take(236) == COOKIE).then_some(message)
    }

    /// Bytes of the fields; all places that are asked for lie inside.
    fn take<const N: usize>(&self, at: usize) -> [u8; N] {
        self.fixed.get(at..).and_then(|field| field.first_chunk()).copied().unwrap_or([0; N])
    }

    fn field(&self, from: usize, to: usize) -> &'a [u8] {
        self.fixed.get(from..to).unwrap_or_default()
    }

    /// Whether it says that it is from a client or from a server; `None` if neither.
    #[must_use]
    pub fn op(&self) -> Option<Op> {
        match self.take(0) {
            [1] => Some(Op::Request),
            [2] => Some(Op::Reply),
            _ => None,
        }
    }

    /// The client's hardware address, if it is one of Ethernet.
    #[must_use]
    pub fn mac(&self) -> Option<[u8; 6]> {
        (self.take(1) == ETHERNET).then(|| self.take(28))
    }

    /// The number of this exchange (`xid`).
    #[must_use]
    pub fn number(&self) -> u32 {
        u32::from_be_bytes(self.take(4))
    }

    /// Seconds since the client began.
    #[must_use]
    pub fn seconds(&self) -> u16 {
        u16::from_be_bytes(self.take(8))
    }

    /// The flags; the highest bit asks for replies by broadcast.
    #[must_use]
    pub fn flags(&self) -> u16 {
        u16::from_be_bytes(self.take(10))
    }

    fn address(&self, at: usize) -> Option<Ipv4Addr> {
        known(self.take(at))
    }

    /// The address that the client has and uses (`ciaddr`).
    #[must_use]
    pub fn client_address(&self) -> Option<Ipv4Addr> {
        self.address(12)
    }

    /// The address that the client gets (`yiaddr`).
    #[must_use]
    pub fn your_address(&self) -> Option<Ipv4Addr> {
        self.address(16)
    }

    /// The server to boot from (`siaddr`).
    #[must_use]
    pub fn next_server(&self) -> Option<Ipv4Addr> {
        self.address(20)
    }

    /// The relay that it came through (`giaddr`).
    #[must_use]
    pub fn relay(&self) -> Option<Ipv4Addr> {
        self.address(24)
    }

    /// All options in their order: those of the options field, then those in `file` and `sname`, if option 52 says
    /// that there are some.
    #[must_use]
    pub fn options(&self) -> Options<'a> {
        let only = Options { rest: self.options, file: &[], sname: &[] };
        // The last one counts, as it does for whoever keeps options by number.
        let overload = only.clone().filter(|(code, _)| *code == code::OVERLOAD).last();
        let overload = overload.and_then(|(_, value)| value.first()).copied().unwrap_or(0);
        let used = |bit: u8, field| if overload & bit != 0 { field } else { &[][..] };
        Options { file: used(1, self.field(108, 236)), sname: used(2, self.field(44, 108)), ..only }
    }

    /// Whether the message ends within an option: a part of it is missing.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        let mut rest = self.options;
        while let Some((_, _, after)) = split(rest) {
            rest = after;
        }
        // All is read, or there is the mark of the end. Some senders forget it.
        !matches!(rest.first(), None | Some(&code::END))
    }

    /// The value of an option; `None` if the message has none with this number.
    #[must_use]
    pub fn option(&self, code: u8) -> Option<Value<'a>> {
        let value = Value { options: self.options(), code };
        value.parts().next().is_some().then_some(value)
    }

    /// Its kind; `None` if it does not say it, as messages of BOOTP, the protocol before DHCP.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        let [number] = self.option(code::KIND)?.fixed()?;
        (number != 0).then(|| Kind::from_number(number))
    }
}

/// The address in four bytes; all zeros are none.
fn known(bytes: [u8; 4]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(bytes)).filter(|address| !address.is_unspecified())
}

/// The options of a message one after the other, as number and bytes. Parts of a split option come one by one;
/// [`Message::option`] has them as one value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Options<'a> {
    rest: &'a [u8],
    /// Fields that hold options as well and come next; empty if they hold none.
    file: &'a [u8],
    sname: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match split(self.rest) {
                Some((code::PAD, _, rest)) => self.rest = rest,
                Some((code, value, rest)) => {
                    self.rest = rest;
                    return Some((code, value));
                }
                // The end of a field, by its mark or because the message was cut.
                None if self.file.is_empty() && self.sname.is_empty() => {
                    self.rest = &[];
                    return None;
                }
                None if self.file.is_empty() => self.rest = core::mem::take(&mut self.sname),
                None => self.rest = core::mem::take(&mut self.file),
            }
        }
    }
}

impl core::iter::FusedIterator for Options<'_> {}

/// The first option, its value, and what follows.
fn split(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&code, rest) = bytes.split_first()?;
    match code {
        code::PAD => Some((code, &[], rest)),
        code::END => None,
        _ => {
            let (&length, rest) = rest.split_first()?;
            let (value, rest) = rest.split_at_checked(length.into())?;
            Some((code, value, rest))
        }
    }
}

/// The value of an option. Its parts, if it was split, count as one (RFC 3396).
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Value<'a> {
    options: Options<'a>,
    code: u8,
}

impl<'a> Value<'a> {
    fn parts(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        let code = self.code;
        self.options.clone().filter(move |(other, _)| *other == code).map(|(_, part)| part)
    }

    /// Its bytes.
    pub fn bytes(&self) -> impl Iterator<Item = u8> + Clone + use<'a> {
        self.parts().flatten().copied()
    }

    /// How many they are.
    #[must_use]
    pub fn length(&self) -> usize {
        self.parts().map(<[u8]>::len).sum()
    }

    /// Whether these are its bytes.
    #[must_use]
    pub fn is(&self, bytes: &[u8]) -> bool {
        self.bytes().eq(bytes.iter().copied())
    }

    /// The first N bytes; `None` if there are fewer.
    #[must_use]
    pub fn first<const N: usize>(&self) -> Option<[u8; N]> {
        let mut out = [0; N];
        let mut bytes = self.bytes();
        for place in &mut out {
            *place = bytes.next()?;
        }
        Some(out)
    }

    /// The value of an option that has N bytes. Who says such an option more than once has not split it: the last
    /// one counts then.
    #[must_use]
    pub fn fixed<const N: usize>(&self) -> Option<[u8; N]> {
        if self.length() == N {
            return self.first();
        }
        self.parts().filter_map(|part| <[u8; N]>::try_from(part).ok()).last()
    }

    /// The address that it is.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        known(self.first()?)
    }

    /// The addresses that it lists, without those that are all zeros.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> + use<'a> {
        let mut bytes = self.bytes();
        core::iter::from_fn(move || Some([bytes.next()?, bytes.next()?, bytes.next()?, bytes.next()?]))
            .filter_map(known)
    }

    /// The text that it is, in the caller's buffer; `None` if it is longer or no UTF-8.
    #[must_use]
    pub fn text<'b>(&self, buffer: &'b mut [u8]) -> Option<&'b str> {
        let mut length = 0;
        for byte in self.bytes() {
            *buffer.get_mut(length)? = byte;
            length += 1;
        }
        core::str::from_utf8(buffer.get(..length)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn message(options: &[u8]) -> [u8; 600] {
        let mut bytes = [0; 600];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[236..240].copy_from_slice(&COOKIE);
        bytes[240..240 + options.len()].copy_from_slice(options);
        bytes
    }

    #[test]
    fn options_in_their_order() {
        let bytes = message(&[53, 1, 1, 0, 0, 60, 2, 7, 8, 55, 0, 255, 1, 4, 1, 1, 1, 1]);
        let message = Message::parse(&bytes).unwrap();
        let all: Vec<_> = message.options().collect();
        assert_eq!(all, [(53, &[1][..]), (60, &[7, 8]), (55, &[])]);
        assert_eq!(message.kind(), Some(Kind::Discover));
        assert!(message.option(55).is_some_and(|v| v.length() == 0) && message.option(1).is_none());
        assert_eq!(Message::parse(&bytes[..239]), None);
    }

    #[test]
    fn a_cut_message_ends_where_it_is_cut() {
        let bytes = message(&[53, 1, 2, 54, 4, 10, 0, 0, 1]);
        for (length, options, cut) in [
            (240, 0, false),
            (241, 0, true),
            (242, 0, true),
            (243, 1, false),
            (248, 1, true),
            (249, 2, false),
        ] {
            let message = Message::parse(&bytes[..length]).unwrap();
            assert_eq!((message.options().count(), message.is_cut()), (options, cut), "{length}");
        }
        assert!(!Message::parse(&message(&[53, 1, 2, 0, 255, 54])).unwrap().is_cut());
    }

    #[test]
    fn options_in_other_fields() {
        // RFC 2131, 4.1: first the options field, then `file`, then `sname`.
        for (overload, want) in [(0, &[1, 2][..]), (1, &[1, 2, 3, 4]), (2, &[1, 2, 5]), (3, &[1, 2, 3, 4, 5])]
        {
            let mut bytes = message(&[60, 1, 1, 52, 1, overload, 60, 1, 2, 255, 60, 1, 9]);
            bytes[108..116].copy_from_slice(&[60, 1, 3, 0, 60, 1, 4, 255]);
            bytes[44..47].copy_from_slice(&[60, 1, 5]);
            // It counts in the options field only.
            bytes[47..50].copy_from_slice(&[52, 1, 3]);
            let value = Message::parse(&bytes).unwrap().option(60).unwrap();
            assert!(value.is(want), "{overload}");
        }
        // A field that is full without a mark at its end.
        let mut bytes = message(&[52, 1, 3, 255]);
        bytes[108..110].copy_from_slice(&[60, 126]);
        bytes[44..46].copy_from_slice(&[60, 62]);
        assert_eq!(Message::parse(&bytes).unwrap().option(60).unwrap().length(), 126 + 62);
    }

    #[test]
    fn a_split_option_is_one_value() {
        let bytes = message(&[6, 3, 10, 0, 0, 53, 1, 5, 6, 5, 1, 10, 0, 0, 2, 6, 4, 0, 0, 0, 0, 255]);
        let value = Message::parse(&bytes).unwrap().option(6).unwrap();
        assert_eq!(value.length(), 12);
        let addresses: Vec<_> = value.addresses().collect();
        assert_eq!(addresses, [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]);
        assert_eq!((value.first::<13>(), value.address()), (None, Some(addresses[0])));
        let mut buffer = [0; 12];
        assert_eq!(value.text(&mut buffer).map(str::len), Some(12));
        assert_eq!(value.text(&mut buffer[..11]), None);
    }

    #[test]
    fn an_option_of_fixed_length_that_is_repeated() {
        for (options, want) in [
            (&[54, 4, 1, 1, 1, 1, 54, 4, 2, 2, 2, 2][..], Some([2; 4])),
            (&[54, 2, 1, 1, 54, 2, 1, 1], Some([1; 4])),
            (&[54, 4, 1, 1, 1, 1, 54, 1, 9], Some([1; 4])),
            (&[54, 5, 1, 1, 1, 1, 1], None),
        ] {
            let bytes = message(options);
            assert_eq!(Message::parse(&bytes).unwrap().option(54).unwrap().fixed(), want);
        }
    }

    #[test]
    fn kinds_and_their_numbers() {
        for number in 0..=255 {
            assert_eq!(Kind::from_number(number).number(), number);
        }
    }
}
