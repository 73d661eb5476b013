//! Messages, written into the caller's buffer.

use core::fmt;
use core::net::Ipv4Addr;

use super::{COOKIE, ETHERNET, FIXED, LENGTH_MIN, code};

/// The longest part of an option.
const PART_MAX: usize = 255;
/// The length of the field for the name of a file.
const FILE: usize = 128;

/// Who sends a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Op {
    /// A client.
    Request,
    /// A server.
    Reply,
}

/// The fields of a message to or from a client with an Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Header<'a> {
    /// Who sends it.
    pub op: Op,
    /// The number of this exchange (`xid`).
    pub number: u32,
    /// Seconds since the client began.
    pub seconds: u16,
    /// The flags; see [`Self::BROADCAST`].
    pub flags: u16,
    /// The address that the client has and uses (`ciaddr`).
    pub client_address: Ipv4Addr,
    /// The address that the client gets (`yiaddr`).
    pub your_address: Ipv4Addr,
    /// The server to boot from (`siaddr`).
    pub next_server: Ipv4Addr,
    /// The relay that it comes or goes through (`giaddr`).
    pub relay: Ipv4Addr,
    /// The client's hardware address.
    pub mac: [u8; 6],
    /// The file to boot from; at most 127 bytes.
    pub file: &'a [u8],
}

impl Header<'_> {
    /// The flag of a client that can be answered by broadcast only.
    pub const BROADCAST: u16 = 0x8000;

    /// A message about the client with this hardware address; all else is zero.
    #[must_use]
    pub const fn new(op: Op, number: u32, mac: [u8; 6]) -> Self {
        let none = Ipv4Addr::UNSPECIFIED;
        Self {
            op,
            number,
            seconds: 0,
            flags: 0,
            client_address: none,
            your_address: none,
            next_server: none,
            relay: none,
            mac,
            file: &[],
        }
    }
}

/// A message does not fit the buffer, or the name of its file does not fit its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the DHCP message does not fit: use shorter names")
    }
}

impl core::error::Error for Full {}

/// Writes a message: its fields, then its options in the order of the calls.
#[derive(Debug)]
pub struct Builder<'b> {
    out: &'b mut [u8],
    /// How much was written; more than there is room for once something did not fit.
    length: usize,
}

/// The message so far.
#[cfg(feature = "defmt")]
impl defmt::Format for Builder<'_> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "{=[u8]:02x}", self.out.get(..self.length).unwrap_or_default())
    }
}

impl<'b> Builder<'b> {
    /// Begins a message in this buffer.
    #[must_use]
    pub fn new(out: &'b mut [u8], header: &Header<'_>) -> Self {
        let op = match header.op {
            Op::Request => 1,
            Op::Reply => 2,
        };
        let mut builder = Self { out, length: 0 };
        builder.write(&[op]);
        builder.write(&ETHERNET);
        // No relay between.
        builder.write(&[0]);
        builder.write(&header.number.to_be_bytes());
        builder.write(&header.seconds.to_be_bytes());
        builder.write(&header.flags.to_be_bytes());
        for address in [header.client_address, header.your_address, header.next_server, header.relay] {
            builder.write(&address.octets());
        }
        builder.write(&header.mac);
        builder.zeros(10 + 64);
        builder.write(header.file);
        // It ends with a zero.
        match FILE.checked_sub(header.file.len()).filter(|left| *left > 0) {
            Some(left) => builder.zeros(left),
            None => builder.length = usize::MAX,
        }
        builder.write(&COOKIE);
        builder
    }

    fn write(&mut self, bytes: &[u8]) {
        let end = self.length.saturating_add(bytes.len());
        if let Some(place) = self.out.get_mut(self.length..end) {
            place.copy_from_slice(bytes);
        }
        self.length = end;
    }

    fn zeros(&mut self, count: usize) {
        let end = self.length.saturating_add(count);
        if let Some(place) = self.out.get_mut(self.length..end) {
            place.fill(0);
        }
        self.length = end;
    }

    /// Adds an option. A value of more than 255 bytes is split (RFC 3396).
    pub fn option(&mut self, code: u8, value: &[u8]) -> &mut Self {
        let mut rest = value;
        loop {
            let (part, after) = rest.split_at_checked(PART_MAX).unwrap_or((rest, &[]));
            self.write(&[code, u8::try_from(part.len()).unwrap_or(u8::MAX)]);
            self.write(part);
            rest = after;
            if rest.is_empty() {
                return self;
            }
        }
    }

    /// Ends the message and fills it up to the length that everybody takes; how long it is.
    ///
    /// # Errors
    /// If it did not fit. The buffer holds a part of it then.
    pub fn finish(mut self) -> Result<usize, Full> {
        self.write(&[code::END]);
        self.zeros(LENGTH_MIN.saturating_sub(self.length));
        if self.length <= self.out.len() { Ok(self.length) } else { Err(Full) }
    }
}

/// How long a message with options of these lengths is.
pub fn length(options: impl IntoIterator<Item = usize>) -> usize {
    let option = |length: usize| length.saturating_add(2 * length.div_ceil(PART_MAX).max(1));
    let options = options.into_iter().fold(FIXED + 1, |sum, n| sum.saturating_add(option(n)));
    options.max(LENGTH_MIN)
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::super::Message;
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let header = Header {
            seconds: 3,
            flags: Header::BROADCAST,
            client_address: Ipv4Addr::new(10, 0, 0, 5),
            your_address: Ipv4Addr::new(10, 0, 0, 6),
            next_server: Ipv4Addr::new(10, 0, 0, 7),
            relay: Ipv4Addr::new(10, 0, 0, 8),
            file: b"bootcode.bin",
            ..Header::new(Op::Reply, 0x0102_0304, [1, 2, 3, 4, 5, 6])
        };
        let long = vec![7; 600];
        let mut buffer = [0xaa; 1000];
        let mut builder = Builder::new(&mut buffer, &header);
        builder.option(53, &[2]).option(67, &long).option(80, &[]);
        let n = builder.finish().unwrap();
        assert_eq!(n, length([1, 600, 0]));
        let message = Message::parse(&buffer[..n]).unwrap();
        assert_eq!(
            (message.op(), message.number(), message.mac()),
            (Some(Op::Reply), 0x0102_0304, Some(header.mac))
        );
        assert_eq!((message.seconds(), message.flags()), (3, 0x8000));
        assert_eq!(message.client_address(), Some(header.client_address));
        assert_eq!(message.your_address(), Some(header.your_address));
        assert_eq!(message.next_server(), Some(header.next_server));
        assert_eq!(message.relay(), Some(header.relay));
        assert_eq!(&buffer[108..121], b"bootcode.bin\0");
        let lengths: vec::Vec<_> = message.options().map(|(code, value)| (code, value.len())).collect();
        assert_eq!(lengths, [(53, 1), (67, 255), (67, 255), (67, 90), (80, 0)]);
        assert!(message.option(67).unwrap().is(&long));
    }

    #[test]
    fn a_message_that_does_not_fit() {
        let write = |room: usize, file: &[u8]| {
            let mut buffer = [0xaa; 400];
            let mut builder =
                Builder::new(&mut buffer[..room], &Header { file, ..Header::new(Op::Request, 1, [0; 6]) });
            builder.option(60, &[1; 80]);
            builder.finish()
        };
        assert_eq!(write(400, b""), Ok(323));
        assert_eq!(write(323, b""), Ok(323));
        for room in 0..323 {
            assert_eq!(write(room, b""), Err(Full), "{room}");
        }
        assert_eq!(write(400, &[b'a'; 127]), Ok(323));
        for too_long in [128, 129, 300] {
            assert_eq!(write(400, &[b'a'; 300][..too_long]), Err(Full), "{too_long}");
        }
    }
}
