//! TFTP's packets: requests and replies of clients parsed, ours built (RFC 1350, 2347).

/// Error codes that are sent.
pub mod code {
    /// See the text.
    pub const UNDEFINED: u16 = 0;
    /// There is no such file.
    pub const NOT_FOUND: u16 = 1;
    /// The name leads out of the folder, or writing was asked for.
    pub const ACCESS: u16 = 2;
    /// The packet makes no sense.
    pub const ILLEGAL: u16 = 4;
}

/// Names longer than this are refused.
const NAME_MAX: usize = 255;

/// How the bytes of a file are to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As they are.
    Octet,
    /// As text, with lines ended by CR LF.
    Netascii,
}

/// Options of a request that are understood and have a possible value; others are as if not there,
/// which RFC 2347 asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// Bytes in a block, 8 to 65464 (RFC 2348).
    pub blksize: Option<u16>,
    /// Whether the size of the file is to be told (RFC 2349).
    pub tsize: bool,
    /// Seconds until a retransmission, 1 to 255 (RFC 2349).
    pub timeout: Option<u8>,
    /// Blocks before an acknowledgement, at least 1 (RFC 7440).
    pub windowsize: Option<u16>,
}

impl Asked {
    fn take(&mut self, name: &str, value: &str) {
        match name.to_ascii_lowercase().as_str() {
            "blksize" if self.blksize.is_none() => {
                self.blksize = value.parse().ok().filter(|n| (8..=65464).contains(n));
            }
            "tsize" => self.tsize = value.parse::<u64>().is_ok(),
            "timeout" if self.timeout.is_none() => {
                self.timeout = value.parse().ok().filter(|n| *n >= 1);
            }
            "windowsize" if self.windowsize.is_none() => {
                self.windowsize = value.parse().ok().filter(|n| *n >= 1);
            }
            _ => {}
        }
    }
}

/// A request to read a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The name, as it was sent.
    pub name: String,
    /// How.
    pub mode: Mode,
    /// The options.
    pub asked: Asked,
}

/// Why a packet to the server's port is no request that can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// Nothing is to be answered: it is no request, or an error.
    Ignore,
    /// An error of this code and text is the answer.
    Refuse(u16, &'static str),
}

impl Request {
    /// Parses what came to the server's port.
    ///
    /// # Errors
    /// [`Bad`] says what to answer.
    pub fn parse(packet: &[u8]) -> Result<Self, Bad> {
        let (opcode, rest) = split_number(packet).ok_or(Bad::Ignore)?;
        match opcode {
            1 => {}
            2 => return Err(Bad::Refuse(code::ACCESS, "this server only sends files")),
            // Replies that came here instead of to their transfer, and errors: never answered,
            // or two servers could talk for ever.
            3..=6 => return Err(Bad::Ignore),
            _ => return Err(Bad::Refuse(code::ILLEGAL, "not a request")),
        }
        let text = rest.strip_suffix(&[0]).ok_or(Bad::Refuse(code::ILLEGAL, "a cut request"))?;
        let mut parts = text.split(|b| *b == 0).map(str::from_utf8);
        let mut next = || parts.next().transpose();
        let bad_text = Bad::Refuse(code::ILLEGAL, "names are UTF-8");
        let name = next().map_err(|_| bad_text)?.unwrap_or_default();
        let mode = next().map_err(|_| bad_text)?.unwrap_or_default();
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Bad::Refuse(code::ILLEGAL, "no name, or one that is too long"));
        }
        let mode = match mode.to_ascii_lowercase().as_str() {
            "octet" => Mode::Octet,
            "netascii" => Mode::Netascii,
            _ => return Err(Bad::Refuse(code::ILLEGAL, "the mode must be octet or netascii")),
        };
        let mut asked = Asked::default();
        while let (Ok(Some(name)), Ok(Some(value))) = (next(), next()) {
            asked.take(name, value);
        }
        Ok(Self { name: name.to_owned(), mode, asked })
    }
}

/// What a client says during a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// It has everything up to this block.
    Ack(u16),
    /// It gives up.
    Error(u16, &'a [u8]),
    /// Nothing that makes sense.
    Other,
}

impl<'a> Reply<'a> {
    /// Parses; never fails.
    #[must_use]
    pub fn parse(packet: &'a [u8]) -> Self {
        let Some((opcode, rest)) = split_number(packet) else { return Self::Other };
        match (opcode, split_number(rest)) {
            (4, Some((block, _))) => Self::Ack(block),
            (5, Some((code, text))) => Self::Error(code, text.split(|b| *b == 0).next().unwrap_or_default()),
            _ => Self::Other,
        }
    }
}

fn split_number(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*number), rest))
}

/// The head of a block; its bytes follow.
#[must_use]
pub fn data_head(block: u16) -> [u8; 4] {
    let [high, low] = block.to_be_bytes();
    [0, 3, high, low]
}

/// An acknowledgement of options: names and values.
#[must_use]
pub fn option_ack(options: &[(&str, u64)]) -> Vec<u8> {
    let mut packet = vec![0, 6];
    for (name, value) in options {
        packet.extend_from_slice(name.as_bytes());
        packet.push(0);
        packet.extend_from_slice(value.to_string().as_bytes());
        packet.push(0);
    }
    packet
}

/// An error.
#[must_use]
pub fn error(code: u16, text: &str) -> Vec<u8> {
    let [high, low] = code.to_be_bytes();
    let mut packet = vec![0, 5, high, low];
    packet.extend(text.bytes().filter(|b| *b != 0));
    packet.push(0);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let asked = b"\0\x01abcdef01/start4.elf\0OcTet\0tsize\x000\0BLKSIZE\x001468\0timeout\x003\0windowsize\x0016\0x\0y\0";
        assert_eq!(
            Request::parse(asked),
            Ok(Request {
                name: "abcdef01/start4.elf".into(),
                mode: Mode::Octet,
                asked: Asked { blksize: Some(1468), tsize: true, timeout: Some(3), windowsize: Some(16) },
            })
        );
        let impossible = b"\0\x01a\0netascii\0blksize\x007\0timeout\x00256\0windowsize\x000\0tsize\0";
        let request = Request::parse(impossible).unwrap();
        assert_eq!((request.mode, request.asked), (Mode::Netascii, Asked::default()));
    }

    #[test]
    fn what_is_no_request() {
        for ignored in [&b""[..], b"\0", b"\0\x03\0\x01x", b"\0\x04\0\x01", b"\0\x05\0\x01x\0"] {
            assert_eq!(Request::parse(ignored), Err(Bad::Ignore), "{ignored:?}");
        }
        for refused in [
            &b"\0\x01"[..],
            b"\0\x01\0octet\0",
            b"\0\x01a\0mail\0",
            b"\0\x01a\0octet",
            b"\0\x01\xff\xfe\0octet\0",
            b"\0\x09a\0octet\0",
        ] {
            let answer = Request::parse(refused);
            assert!(matches!(answer, Err(Bad::Refuse(code::ILLEGAL, _))), "{refused:?}: {answer:?}");
        }
        let write = Request::parse(b"\0\x02a\0octet\0");
        assert!(matches!(write, Err(Bad::Refuse(code::ACCESS, _))));
        let long = [b"\0\x01".as_slice(), &[b'a'; 256], b"\0octet\0"].concat();
        assert!(matches!(Request::parse(&long), Err(Bad::Refuse(code::ILLEGAL, _))));
    }

    #[test]
    fn replies_and_what_we_send() {
        assert_eq!(Reply::parse(b"\0\x04\x12\x34"), Reply::Ack(0x1234));
        assert_eq!(Reply::parse(b"\0\x05\0\x08no\0"), Reply::Error(8, b"no"));
        for other in [&b""[..], b"\0\x04\0", b"\0\x03\0\x01", b"\0\x01a\0octet\0"] {
            assert_eq!(Reply::parse(other), Reply::Other, "{other:?}");
        }
        assert_eq!(data_head(0x1234), [0, 3, 0x12, 0x34]);
        assert_eq!(option_ack(&[("blksize", 512), ("tsize", 0)]), b"\0\x06blksize\x00512\0tsize\x000\0");
        assert_eq!(error(1, "n\0o"), b"\0\x05\0\x01no\0");
    }
}
