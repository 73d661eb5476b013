//! The protected login and its records: bytes of anybody give no login and no content.
#![no_main]

use libfuzzer_sys::fuzz_target;
use piman_core::rpc::secure::{
    Client, HELLO_MAX, Hello, Inbox, OVERHEAD, Opened, Outbox, RANDOM_LENGTH, Server, Terms, hello_length,
};

const RANDOM: [u8; RANDOM_LENGTH] = [3; RANDOM_LENGTH];

fn terms<'a>(random: &'a [u8; RANDOM_LENGTH]) -> Terms<'a> {
    Terms { password: Some("a password"), name: "name", record_max: 64, asked: false, random }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 3 {
        0 => hello(data),
        1 => login(data),
        _ => records(data),
    }
});

fn hello(data: &[u8]) {
    if let Ok(Some(length)) = hello_length(data) {
        assert!(length <= HELLO_MAX);
        if let Some(Ok(hello)) = data.get(..length).map(Hello::parse) {
            assert!(hello.name.len() <= 64 && hello.name.bytes().all(|b| (b' '..=b'~').contains(&b)));
        }
    }
}

/// As the client, and as the server.
fn login(data: &[u8]) {
    let (first, rest) = data.split_at(data.len().min(HELLO_MAX));
    if let Ok(server) = Server::new(&terms(&RANDOM), first) {
        let proof = std::array::from_fn(|i| rest.get(i).copied().unwrap_or(0));
        assert!(!server.verify(&proof));
    }
    let mut client = Client::new(&terms(&RANDOM));
    if client.proceed(first).is_ok() {
        let end = std::array::from_fn(|i| rest.get(i).copied().unwrap_or(0));
        assert!(client.finish(&end).is_err());
    }
}

/// Records that are right, with bytes of anybody in between, in pieces of any size.
fn records(data: &[u8]) {
    let other = [4; RANDOM_LENGTH];
    let mut client = Client::new(&terms(&RANDOM));
    let Ok(server) = Server::new(&terms(&other), client.hello()) else { return };
    if client.proceed(server.hello()).is_err() {
        return;
    }
    let keys = server.keys();
    let mut outbox = Outbox::new(&keys, [0; 64 + OVERHEAD]);
    let Ok(theirs) = client.finish(&server.end(piman_core::rpc::secure::Status::Welcome, true)) else { return };
    let mut inbox = Inbox::new(&theirs, [0; 64 + OVERHEAD]);
    let mut sent = 0;
    for step in data.chunks(8) {
        let piece = if step[0] % 2 == 0 {
            sent += outbox.push(step);
            outbox.seal().expect("there are numbers left");
            let piece = outbox.pending().to_vec();
            outbox.sent(piece.len());
            piece
        } else {
            step.to_vec()
        };
        let mut piece = &piece[..];
        loop {
            match inbox.open() {
                Ok(Opened::Content) => {
                    let n = inbox.take(&mut [0; 5]);
                    assert!(n > 0 && n <= sent);
                    sent -= n;
                }
                Ok(Opened::More) if !piece.is_empty() => {
                    let spare = inbox.spare();
                    let n = spare.len().min(piece.len());
                    spare[..n].copy_from_slice(&piece[..n]);
                    inbox.filled(n);
                    piece = &piece[n..];
                }
                Ok(Opened::More) => break,
                Ok(Opened::End) => panic!("nobody has sent the end"),
                Err(_) => return,
            }
        }
    }
}
