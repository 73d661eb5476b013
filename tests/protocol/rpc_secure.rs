//! The protected login and its records in memory: golden bytes, both sides right, wrong passwords, and somebody in the
//! middle who changes what he likes.

use piman_core::rpc::secure::{
    Client, FLAG_PASSWORD, HELLO_MAX, Hello, Inbox, Keys, LoginFault, OVERHEAD, Opened, Outbox, PROOF_LENGTH,
    RANDOM_LENGTH, RECORD_MAX, RECORD_MIN, RecordError, Server, Status, Terms, hello_length,
};
use piman_tests::chance::Random;

const RANDOM: [u8; RANDOM_LENGTH] = [7; RANDOM_LENGTH];

fn terms<'a>(password: Option<&'a str>, name: &'a str, random: &'a [u8; RANDOM_LENGTH]) -> Terms<'a> {
    Terms { password, name, record_max: 512, asked: false, random }
}

/// Random bytes from a number.
fn random(n: u8) -> [u8; RANDOM_LENGTH] {
    std::array::from_fn(|i| (i as u8).wrapping_mul(13).wrapping_add(n))
}

/// What happened in a login.
#[derive(Debug)]
struct Login {
    sent: [Vec<u8>; 4],
    verified: bool,
    client: Result<Keys, LoginFault>,
    server: Keys,
}

/// A login in which `between` may change each of the four messages.
fn login(
    client: Option<&str>,
    server: Option<&str>,
    mut between: impl FnMut(usize, &mut Vec<u8>),
) -> Result<Login, LoginFault> {
    let mut pass = |n: usize, bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        between(n, &mut bytes);
        bytes
    };
    let (client_random, server_random) = (random(1), random(2));
    let mut client = Client::new(&terms(client, "10000000cafe", &client_random));
    let hello = pass(0, client.hello());
    let server = Server::new(&terms(server, "piman", &server_random), &hello)?;
    let answer = pass(1, server.hello());
    let proof = pass(2, &client.proceed(&answer)?);
    let verified = server.verify(proof.as_slice().try_into().unwrap());
    let status = if verified { Status::Welcome } else { Status::WrongPassword };
    let end = pass(3, &server.end(status, verified));
    let client = client.finish(end.as_slice().try_into().unwrap());
    Ok(Login { sent: [hello, answer, proof, end], verified, client, server: server.keys() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Sealed records of this content, and the last one if `end`.
fn sealed(outbox: &mut Outbox<Vec<u8>>, mut content: &[u8], end: bool) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    loop {
        let n = outbox.push(content);
        content = &content[n..];
        outbox.seal().unwrap();
        if outbox.is_idle() && end {
            outbox.end().unwrap();
        }
        if outbox.is_idle() {
            return records;
        }
        records.push(outbox.pending().to_vec());
        outbox.sent(usize::MAX);
        if content.is_empty() && records.last().is_some_and(|r| r[0] & 0x80 != 0) {
            return records;
        }
    }
}

/// What an inbox makes of these bytes, in pieces of any size, before the stream ends.
fn opened(
    inbox: &mut Inbox<Vec<u8>>,
    mut bytes: &[u8],
    mut piece: impl FnMut() -> usize,
) -> (Vec<u8>, Result<(), RecordError>) {
    let mut got = Vec::new();
    loop {
        match inbox.open() {
            Ok(Opened::Content) => {
                let mut some = vec![0; piece().max(1)];
                let n = inbox.take(&mut some);
                got.extend_from_slice(&some[..n]);
            }
            Ok(Opened::End) => return (got, Ok(())),
            Err(e) => {
                assert_eq!(inbox.open(), Err(e), "an error stays");
                return (got, Err(e));
            }
            Ok(Opened::More) => {
                let spare = inbox.spare();
                assert!(!spare.is_empty());
                let n = piece().clamp(1, spare.len()).min(bytes.len());
                spare[..n].copy_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                inbox.filled(n);
            }
        }
    }
}

fn boxes(keys: &Keys) -> (Inbox<Vec<u8>>, Outbox<Vec<u8>>) {
    (Inbox::new(keys, vec![0; 512 + OVERHEAD]), Outbox::new(keys, vec![0; 4096]))
}

#[test]
fn golden_bytes() {
    let done = login(Some("open sesame"), Some("open sesame"), |_, _| {}).unwrap();
    let [hello, answer, proof, end] = &done.sent;
    assert_eq!((hello.len(), answer.len(), proof.len(), end.len()), (55 + 12, 55 + 5, 32, 33));
    let head = "fb0101010200";
    assert!(hex(hello).starts_with(head) && hex(answer).starts_with(head));
    assert!(hello.ends_with(b"\x0c10000000cafe") && answer.ends_with(b"\x05piman"));
    let (_, mut out) = boxes(done.client.as_ref().unwrap());
    let records = sealed(&mut out, b"hello", true);
    let golden =
        [hex(&hello[22..54]), hex(&answer[22..54]), hex(proof), hex(end), hex(&records[0]), hex(&records[1])];
    assert_eq!(golden, GOLDEN, "the wire has changed: a new version is needed");
}

/// Both shares, both proofs (the second with its status), a record and the last one.
const GOLDEN: [&str; 6] = [
    "4e704ba4def9f56777a8d723b1ce60c15182818b2c8be858aa89a530b2218967",
    "007b99d7d60e1143b4956ea11f10d3ec1e73666ff3f86097dceda18b7410813b",
    "114ccff09fdd2ef3e5a9e574faeca29f0d1439464c6d7fd0268fe464522adcdd",
    "00a659e20512649be50af604b36dd06d4e6958d06e5b57a91465b52f0e0eceab86",
    "0005889ed2d95a9617b58c9fc28ca8dc2f60f614232e60",
    "800008121565461e25e25dcf89cb1c14624a",
];

#[test]
fn both_sides_have_the_same_keys_and_each_direction_its_own() {
    for password in [None, Some(""), Some("x"), Some(&*"long ".repeat(100))] {
        let done = login(password, password, |_, _| {}).unwrap();
        assert!(done.verified);
        let keys = done.client.unwrap();
        let ((mut client_in, mut client_out), (mut server_in, mut server_out)) =
            (boxes(&keys), boxes(&done.server));
        let content: Vec<u8> = (0..10_000_u32).map(|i| i as u8).collect();
        let to_server = sealed(&mut client_out, &content, true);
        let to_client = sealed(&mut server_out, &content, true);
        assert_ne!(to_server[0], to_client[0]);
        assert!(to_server.iter().all(|r| r.len() <= 512 + OVERHEAD), "no longer than the other side takes");
        let mut chance = Random::new(3);
        let piece = || chance.below(700) as usize;
        assert_eq!(opened(&mut server_in, &to_server.concat(), piece), (content.clone(), Ok(())));
        assert_eq!(opened(&mut client_in, &to_client.concat(), || 1), (content, Ok(())));
        assert_eq!(
            (client_out.push(b"more"), client_out.is_idle()),
            (0, true),
            "nothing follows the last record"
        );
    }
}

#[test]
fn a_wrong_password_is_the_same_error_whoever_has_it() {
    for (client, server) in [("right", "wrong"), ("wrong", "right"), ("right", "right "), ("", "right")] {
        let done = login(Some(client), Some(server), |_, _| {}).unwrap();
        assert!(!done.verified);
        assert_eq!(done.client.unwrap_err(), LoginFault::WrongPassword);
        // The server proves nothing to one without the password.
        assert_eq!(done.sent[3][1..], [0; PROOF_LENGTH]);
        // A rogue server that says welcome all the same.
        let done = login(Some(client), Some(server), |n, bytes| {
            if n == 3 {
                bytes[0] = 0
            }
        })
        .unwrap();
        assert_eq!(done.client.unwrap_err(), LoginFault::WrongPassword);
    }
    assert_eq!(login(None, Some("x"), |_, _| {}).unwrap_err(), LoginFault::PasswordWanted);
    assert_eq!(login(Some("x"), None, |_, _| {}).unwrap_err(), LoginFault::NoPasswordThere);
}

#[test]
fn no_bit_of_a_login_can_be_changed() {
    let lengths = login(Some("x"), Some("x"), |_, _| {}).unwrap().sent.map(|m| m.len());
    for (which, length) in lengths.into_iter().enumerate() {
        for bit in 0..length * 8 {
            let changed = login(Some("x"), Some("x"), |n, bytes| {
                if n == which {
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            });
            match changed {
                Ok(done) => {
                    assert!(done.client.is_err(), "message {which}, bit {bit}");
                    assert!(!done.verified || which == 3, "message {which}, bit {bit}");
                }
                Err(e) => assert!(which < 2, "message {which}, bit {bit}: {e}"),
            }
        }
    }
    // What somebody in the middle would like to change: the version, the password flag, the name.
    for change in
        [|h: &mut Vec<u8>| h[1] = 2, |h: &mut Vec<u8>| h[3] ^= FLAG_PASSWORD, |h: &mut Vec<u8>| h[60] = b'9']
    {
        let done = login(Some("x"), Some("x"), |n, bytes| {
            if n == 0 {
                change(bytes)
            }
        });
        assert!(done.is_err() || done.is_ok_and(|done| !done.verified && done.client.is_err()));
    }
}

#[test]
fn the_server_can_refuse_a_client_with_the_password_and_only_it_can_say_why() {
    let (a, b) = (random(1), random(2));
    let mut client = Client::new(&terms(Some("x"), "name", &a));
    let server = Server::new(&terms(Some("x"), "", &b), client.hello()).unwrap();
    assert!(server.verify(&client.proceed(server.hello()).unwrap()));
    let taken = server.end(Status::NameTaken, true);
    assert_eq!(client.finish(&taken).unwrap_err(), LoginFault::Refused(Status::NameTaken));
    let mut welcome = taken;
    welcome[0] = 0;
    assert_eq!(client.finish(&welcome).unwrap_err(), LoginFault::WrongPassword);
    let forged = server.end(Status::NameTaken, false);
    assert_eq!(client.finish(&forged).unwrap_err(), LoginFault::WrongPassword);
    let mut client = Client::new(&terms(Some("x"), "name", &a));
    let refused = client.proceed(&Status::TooManyAttempts.refusal()).unwrap_err();
    assert_eq!(refused, LoginFault::Refused(Status::TooManyAttempts));
}

#[test]
fn a_record_that_is_changed_left_out_repeated_moved_or_reflected_is_noticed_at_once() {
    let done = login(Some("x"), Some("x"), |_, _| {}).unwrap();
    let keys = done.client.unwrap();
    let records = sealed(&mut boxes(&keys).1, &[5; 2000], true);
    let content_before = |n: usize| records[..n].iter().map(|r| r.len() - OVERHEAD).sum::<usize>();
    let check = |what: &str, sent: &[Vec<u8>], whole: usize, want: RecordError| {
        let (got, end) = opened(&mut boxes(&done.server).0, &sent.concat(), || 300);
        assert_eq!((got.len(), end), (content_before(whole), Err(want)), "{what}");
        assert!(got.iter().all(|b| *b == 5), "{what}");
    };
    for n in 0..records.len() {
        for bit in (0..records[n].len() * 8).filter(|bit| *bit >= 16 || bit % 8 < 2) {
            let mut sent = records.clone();
            sent[n][bit / 8] ^= 1 << (bit % 8);
            let (got, end) = opened(&mut boxes(&done.server).0, &sent.concat(), || 900);
            assert!(end.is_err() && got.len() <= content_before(n), "record {n}, bit {bit}");
        }
        let mut without = records.clone();
        without.remove(n);
        check(
            "left out",
            &without,
            n,
            if n + 1 == records.len() { RecordError::Truncated } else { RecordError::Forged },
        );
        let mut twice = records.clone();
        twice.insert(n, records[n].clone());
        if n + 1 < records.len() {
            check("repeated", &twice, n + 1, RecordError::Forged);
            let mut moved = records.clone();
            moved.swap(n, n + 1);
            let (got, end) = opened(&mut boxes(&done.server).0, &moved.concat(), || 900);
            assert_eq!((got.len(), end), (content_before(n), Err(RecordError::Forged)), "moved");
        }
        for cut in 0..records[n].len() {
            let mut sent = records[..=n].to_vec();
            sent[n].truncate(cut);
            check("cut", &sent, n, RecordError::Truncated);
        }
    }
    // What the client has sent comes back to it.
    let (got, end) = opened(&mut boxes(&keys).0, &records.concat(), || 900);
    assert_eq!((got.len(), end), (0, Err(RecordError::Forged)));
    // A record of another connection with the same password.
    let other = random(9);
    let mut client = Client::new(&terms(Some("x"), "", &other));
    let server = Server::new(&terms(Some("x"), "", &RANDOM), client.hello()).unwrap();
    client.proceed(server.hello()).unwrap();
    let (got, end) = opened(&mut boxes(&server.keys()).0, &records.concat(), || 900);
    assert_eq!((got.len(), end), (0, Err(RecordError::Forged)));
}

#[test]
fn records_longer_than_the_buffer_or_empty_are_refused_before_they_are_read() {
    let keys = login(None, None, |_, _| {}).unwrap().server;
    for header in [0_u16, 513, 0x7FFF, 0x8001, 0xFFFF] {
        let (_, end) = opened(&mut boxes(&keys).0, &header.to_be_bytes(), || 2);
        assert_eq!(end, Err(RecordError::Length), "{header:#x}");
    }
}

#[test]
fn ten_thousand_hostile_streams_get_no_login() {
    let mut chance = Random::new(11);
    let seconds = random(2);
    for n in 0..10_000 {
        let mut bytes: Vec<u8> = (0..chance.below(200)).map(|_| chance.below(256) as u8).collect();
        // Most begin as a hello does, so that more than the first byte is looked at.
        if n % 4 > 0 {
            let hello = Client::new(&terms(Some("guess"), "", &random(n as u8))).hello().to_vec();
            let keep = chance.below(hello.len() as u64 + 1) as usize;
            bytes.splice(..keep.min(bytes.len()), hello[..keep].iter().copied());
        }
        let hello = match hello_length(&bytes) {
            Ok(Some(length)) if bytes.len() >= length => &bytes[..length],
            Ok(_) | Err(_) => &bytes[..bytes.len().min(HELLO_MAX)],
        };
        if let Ok(server) = Server::new(&terms(Some("secret"), "piman", &seconds), hello) {
            let proof = std::array::from_fn(|i| bytes.get(hello.len() + i).copied().unwrap_or(0));
            assert!(!server.verify(&proof));
            let records = boxes(&server.keys()).0;
            let (got, _) = opened(&mut { records }, &bytes, || 64);
            assert!(got.is_empty());
        }
        let mut client = Client::new(&terms(Some("secret"), "", &seconds));
        if client.proceed(hello).is_ok() {
            let end = std::array::from_fn(|i| bytes.get(hello.len() + i).copied().unwrap_or(0));
            assert!(client.finish(&end).is_err());
        }
    }
}

#[test]
fn hellos_are_read_as_they_were_written_and_nothing_else_is() {
    let random = random(5);
    for name in ["", "x", "10000000cafe", &"n".repeat(64)] {
        for record_max in [RECORD_MIN as u16, 4096, RECORD_MAX as u16] {
            let client = Client::new(&Terms { record_max, asked: true, ..terms(None, name, &random) });
            let hello = Hello::parse(client.hello()).unwrap();
            assert_eq!((hello.name, hello.record_max, hello.version), (name, record_max, 1));
            assert_eq!(hello_length(client.hello()), Ok(Some(client.hello().len())));
            for cut in 0..client.hello().len() {
                assert!(Hello::parse(&client.hello()[..cut]).is_err());
            }
            let longer = [client.hello(), b"x"].concat();
            assert!(Hello::parse(&longer).is_err());
        }
    }
    // Names that are not printable, or have spaces around them, are not sent.
    for name in ["a\nb", " a", "a ", "ü", &"n".repeat(65)] {
        let client = Client::new(&terms(None, name, &random));
        assert_eq!(Hello::parse(client.hello()).unwrap().name, "", "{name}");
    }
}

/// What the firmware whose size is measured gets from its server (`tests/firmware/src/sizes/protected.rs`).
#[test]
fn the_script_of_the_firmware_is_what_a_server_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/firmware/src/sizes/protected.bin");
    let terms = |random| Terms { record_max: 238, ..terms(Some("secret"), "10000000cafe", random) };
    let mut client = Client::new(&terms(&[9; RANDOM_LENGTH]));
    let server = Server::new(&Terms { name: "piman", ..terms(&RANDOM) }, client.hello()).unwrap();
    assert!(server.verify(&client.proceed(server.hello()).unwrap()));
    let mut says = [server.hello(), &server.end(Status::Welcome, true)].concat();
    let mut outbox = boxes(&server.keys()).1;
    let parts: [&[u8]; 5] = [
        b"\xff",
        b"\xff",
        b"\0\0\0\x0f\x06\x05\x04\x01R\x02\x04\x02\x0e\x06\x01\x02\x06\x09\0",
        b"\xff",
        b"\0\0\0\x0d\x06\x03\x04\x01A\x02\x80\x80\x08\x06\x01\x02\x12",
    ];
    for (n, part) in parts.iter().enumerate() {
        says.extend(sealed(&mut outbox, part, n + 1 == parts.len()).concat());
    }
    if std::env::var_os("PIMAN_RECORD").is_some() {
        std::fs::write(path, &says).unwrap();
    }
    assert_eq!(says, std::fs::read(path).unwrap(), "PIMAN_RECORD=1 writes it anew");
}
