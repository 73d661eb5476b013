//! The IP and UDP around the messages of DHCP: a client without an address has no socket that would do that. The
//! messages themselves are in [`piman_core::dhcp`].

pub use piman_core::dhcp::client::{Asker, Question, Reply};
pub use piman_core::dhcp::{CLIENT_PORT, Kind, SERVER_PORT};

/// Headers of IP and UDP.
const HEADERS: usize = 28;

/// The bytes of a question.
#[must_use]
pub fn ask(who: &Asker, question: &Question) -> Vec<u8> {
    let mut out = vec![0; piman_core::dhcp::client::QUESTION];
    // It has room for every question.
    let length = question.write(who, &mut out).unwrap_or(0);
    out.truncate(length);
    out
}

/// Puts a message into UDP and IP, to everybody.
#[must_use]
pub fn wrap(message: &[u8]) -> Vec<u8> {
    let length = |more: usize| u16::try_from(message.len() + more).unwrap_or(u16::MAX).to_be_bytes();
    let mut out = Vec::with_capacity(message.len() + HEADERS);
    out.extend([0x45, 0]);
    out.extend(length(HEADERS));
    // Number and fragment, 64 hops, UDP, the checksum's place.
    out.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    out.extend([0; 4]);
    out.extend([255; 4]);
    let checksum = checksum(&out);
    if let Some(place) = out.get_mut(10..12) {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
    out.extend(CLIENT_PORT.to_be_bytes());
    out.extend(SERVER_PORT.to_be_bytes());
    out.extend(length(8));
    // 0: none, as RFC 768 permits; Ethernet has its own.
    out.extend([0, 0]);
    out.extend(message);
    out
}

fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.as_chunks().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// The number of two bytes at `at`.
fn number(packet: &[u8], at: usize) -> Option<u16> {
    packet.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// The message in an IP packet, if it is one to the port of clients.
#[must_use]
pub fn unwrap(packet: &[u8]) -> Option<&[u8]> {
    let (&first, length) = (packet.first()?, number(packet, 2)?);
    let header = usize::from(first & 15) * 4;
    let is_udp = first >> 4 == 4 && header >= 20 && packet.get(9) == Some(&17);
    // A fragment is not put together: no server needs that for a client of Ethernet.
    let whole = number(packet, 6)? & 0x3fff == 0;
    let packet = packet.get(..usize::from(length))?;
    let (udp, message) = packet.get(header..)?.split_at_checked(8)?;
    (is_udp && whole && number(udp, 2)? == CLIENT_PORT).then_some(message)
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use piman_core::dhcp::LENGTH_MIN;

    use super::*;

    pub(crate) const WHO: Asker =
        Asker { mac: [0xb8, 0x27, 0xeb, 0, 0, 1], serial: Some(0xabcd_ef01), number: 7 };

    /// A server's answer with these options.
    pub(crate) fn answer(address: [u8; 4], next: [u8; 4], options: &[u8]) -> Vec<u8> {
        let mut bytes = ask(&WHO, &Question::new(Kind::Discover));
        bytes[0] = 2;
        bytes[16..20].copy_from_slice(&address);
        bytes[20..24].copy_from_slice(&next);
        bytes.truncate(240);
        bytes.extend(options);
        bytes
    }

    #[test]
    fn a_question() {
        let wants = Some(Ipv4Addr::new(10, 0, 0, 5));
        let bytes = ask(&WHO, &Question { wants, seconds: 3, ..Question::new(Kind::Request) });
        assert!(bytes.len() >= LENGTH_MIN);
        assert_eq!(bytes[..16], [1, 1, 6, 0, 0, 0, 0, 7, 0, 3, 0x80, 0, 0, 0, 0, 0]);
        assert_eq!((&bytes[28..34], &bytes[236..243]), (&WHO.mac[..], &[99, 130, 83, 99, 53, 1, 3][..]));
        let has = |what: &[u8]| bytes.windows(what.len()).any(|w| w == what);
        assert!(has(&[50, 4, 10, 0, 0, 5]) && has(b"\x3c\x05piman") && has(b"\x61\x11\0RPi"));
        assert!(has(&[0x01, 0xef, 0xcd, 0xab, 255]) && !has(&[54, 4]));
    }

    #[test]
    fn every_question_is_what_it_was() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let ip = |last| Some(Ipv4Addr::new(10, 0, 0, last));
        let question = |kind, has, wants, server, seconds| Question { kind, has, wants, server, seconds };
        let plain = Asker { serial: None, ..WHO };
        for (who, question, head, options) in [
            (
                &WHO,
                question(Kind::Discover, None, None, None, 0),
                "0101060000000007000080000000000000000000",
                "638253633501013706010306423336390205c03c0570696d616e61110052506900000000000000000001efcdabff000000000000000000000000000000000000",
            ),
            (
                &plain,
                question(Kind::Request, None, ip(5), ip(1), 258),
                "0101060000000007010280000000000000000000",
                "6382536335010332040a00000536040a0000013706010306423336390205c03c0570696d616eff00000000000000000000000000000000000000000000000000",
            ),
            (
                &WHO,
                question(Kind::Request, ip(5), None, None, u16::MAX),
                "0101060000000007ffff00000a00000500000000",
                "638253633501033706010306423336390205c03c0570696d616e61110052506900000000000000000001efcdabff000000000000000000000000000000000000",
            ),
        ] {
            let bytes = ask(who, &question);
            assert_eq!(hex(&bytes[..20]), head);
            assert_eq!(hex(&bytes[20..44]), format!("0000000000000000b827eb000001{}", "00".repeat(10)));
            assert!(bytes[44..236].iter().all(|b| *b == 0));
            assert_eq!(hex(&bytes[236..]), options);
        }
    }

    #[test]
    fn an_answer() {
        let options =
            b"\x35\x01\x02\x36\x04\x0a\0\0\x01\x00\x01\x04\xff\xff\xff\0\x03\x08\x0a\0\0\xfe\x0a\0\0\xfd\
            \x06\x08\x0a\0\0\x35\x08\x08\x08\x08\x33\x04\0\0\x0e\x10\x42\x08pi.lan\0\0\x3c\x05piman\xff";
        let reply = Reply::parse(&answer([10, 0, 0, 5], [0; 4], options), &WHO).unwrap();
        let want = Reply {
            kind: Kind::Offer,
            address: Some([10, 0, 0, 5].into()),
            next: None,
            server: Some([10, 0, 0, 1].into()),
            mask: Some([255, 255, 255, 0].into()),
            router: Some([10, 0, 0, 254].into()),
            dns: [[10, 0, 0, 53], [8, 8, 8, 8]].map(Ipv4Addr::from).into_iter().collect(),
            seconds: Some(3600),
            name: Some("pi.lan".try_into().unwrap()),
            marked: true,
        };
        assert_eq!(reply, want);
        assert_eq!(reply.boot_server().as_deref(), Some("pi.lan"));
        let next = Reply::parse(&answer([10, 0, 0, 5], [10, 0, 0, 9], options), &WHO).unwrap();
        assert_eq!(next.boot_server().as_deref(), Some("10.0.0.9"));
        for other in [Asker { number: 8, ..WHO }, Asker { mac: [0; 6], ..WHO }] {
            assert_eq!(Reply::parse(&answer([10, 0, 0, 5], [0; 4], options), &other), None);
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        let good = wrap(&answer([10, 0, 0, 5], [0; 4], b"\x35\x01\x02\x06\x03\x0a\0\0\x36\xff\x01"));
        for length in 0..=good.len() {
            let _ = unwrap(&good[..length]).and_then(|m| Reply::parse(m, &WHO));
            let _ = Reply::parse(&good[..length], &WHO);
        }
        let mut seed = 1u32;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..3 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (seed >> 8) as usize % bytes.len();
                bytes[at] = seed as u8;
            }
            let _ = unwrap(&bytes).and_then(|m| Reply::parse(m, &WHO));
        }
    }

    #[test]
    fn packets() {
        let message = ask(&WHO, &Question::new(Kind::Discover));
        let mut packet = wrap(&message);
        assert_eq!(checksum(&packet[..20]), 0, "with its checksum it adds up to nothing");
        assert_eq!(unwrap(&packet), None, "it is to the port of servers");
        packet[22..24].copy_from_slice(&CLIENT_PORT.to_be_bytes());
        // Ethernet fills short packets up.
        packet.extend([0; 7]);
        assert_eq!(unwrap(&packet), Some(&message[..]));
        packet[6] = 0x20;
        assert_eq!(unwrap(&packet), None, "a fragment");
    }
}
