//! What a server reads of a request, and the beginning of its reply.

use core::net::Ipv4Addr;

use super::{Header, Kind, Message, Op, Value, code};

/// A request of a client with an Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Request<'a> {
    message: Message<'a>,
    /// Its kind.
    pub kind: Kind,
    /// From whom.
    pub mac: [u8; 6],
}

impl<'a> Request<'a> {
    /// Reads a packet; `None` if it is no request of a client with an Ethernet address, or a part of it is missing:
    /// a request means something else without its last options.
    ///
    /// Only the options that a server looks at are read, and one of an impossible length counts as missing: a boot
    /// ROM is not to fail by an option that nobody needs.
    #[must_use]
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let message = Message::parse(packet)?;
        let is_request = message.op() == Some(Op::Request) && !message.is_cut();
        let (kind, mac) = (message.kind()?, message.mac()?);
        is_request.then_some(Self { message, kind, mac })
    }

    /// The number of this exchange (`xid`).
    #[must_use]
    pub fn number(&self) -> u32 {
        self.message.number()
    }

    /// The address that the client has and uses.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.message.client_address()
    }

    /// The relay that it came through.
    #[must_use]
    pub fn relay(&self) -> Option<Ipv4Addr> {
        self.message.relay()
    }

    /// The address that the client would like.
    #[must_use]
    pub fn requested(&self) -> Option<Ipv4Addr> {
        self.message.option(code::REQUESTED_ADDRESS)?.fixed().map(Ipv4Addr::from_octets)
    }

    /// The server whose offer it takes.
    #[must_use]
    pub fn server(&self) -> Option<Ipv4Addr> {
        self.message.option(code::SERVER)?.fixed().map(Ipv4Addr::from_octets)
    }

    fn long(&self, code: u8) -> Option<Value<'a>> {
        // RFC 2132 and 4578: none of them is shorter.
        self.message.option(code).filter(|value| value.length() >= 2)
    }

    /// What the client says it is.
    #[must_use]
    pub fn class(&self) -> Option<Value<'a>> {
        self.long(code::CLASS)
    }

    /// The number of the machine, after a byte that says its kind.
    #[must_use]
    pub fn machine_id(&self) -> Option<Value<'a>> {
        self.long(code::MACHINE_ID)
    }

    /// What identifies the client.
    #[must_use]
    pub fn client_id(&self) -> Option<Value<'a>> {
        self.long(code::CLIENT_ID)
    }

    /// What the relay says of the client's place (option 82). It has to come back as it was (RFC 3046).
    #[must_use]
    pub fn relay_information(&self) -> Option<Value<'a>> {
        self.message.option(code::RELAY_INFORMATION)
    }

    /// The fields of a reply to it; all addresses but the relay's are to be filled in.
    #[must_use]
    pub fn reply(&self) -> Header<'static> {
        Header {
            flags: self.message.flags(),
            relay: self.relay().unwrap_or(Ipv4Addr::UNSPECIFIED),
            ..Header::new(Op::Reply, self.number(), self.mac)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Builder;
    use super::*;

    #[test]
    fn what_is_no_request_and_what_is_missing() {
        let write = |op, options: &[(u8, &[u8])]| {
            let mut out = [0; 400];
            let mut builder = Builder::new(&mut out, &Header::new(op, 9, [2; 6]));
            for (code, value) in options {
                builder.option(*code, value);
            }
            builder.finish().unwrap();
            out
        };
        let short: &[(u8, &[u8])] =
            &[(53, &[1]), (50, &[1, 2, 3]), (54, &[1; 5]), (60, b"x"), (61, b""), (97, &[0])];
        let bytes = write(Op::Request, short);
        let request = Request::parse(&bytes).unwrap();
        assert_eq!((request.kind, request.mac, request.number()), (Kind::Discover, [2; 6], 9));
        assert_eq!((request.requested(), request.server()), (None, None));
        assert!(request.class().is_none() && request.client_id().is_none() && request.machine_id().is_none());
        assert_eq!(Request::parse(&write(Op::Reply, short)), None);
        assert_eq!(Request::parse(&write(Op::Request, &[(60, b"PXEClient")])), None, "BOOTP");
        assert_eq!(Request::parse(&write(Op::Request, &[(53, &[1, 1])])), None);
        let mut other = bytes;
        other[2] = 16;
        assert_eq!(Request::parse(&other), None, "no Ethernet");
        assert!(Request::parse(&bytes[..243]).is_some(), "its end is not marked");
        assert_eq!(Request::parse(&bytes[..247]), None, "it is cut");
    }
}
