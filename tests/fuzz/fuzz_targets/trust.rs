//! What anybody says to a Pi with a public key, and to a server with a key: nothing is decided that is not signed, and
//! nobody is taken for a Pi with a key.
#![no_main]

use std::convert::Infallible;
use std::fmt;

use embedded_io::{ErrorType, Read, Write};
use libfuzzer_sys::fuzz_target;
use piman_core::blocking::{Blocking, run};
use piman_core::install::drive::{self, Pi};
use piman_core::install::trust::{
    Certificate, DeviceKey, Floor, Nonce, PiTrust, PublicKey, Root, Said, ServerKey, ServerTrust,
};
use piman_core::install::{Clock, Command, Date, Hello, Start};

/// A server that says these bytes.
struct Peer<'a>(&'a [u8]);

impl ErrorType for Peer<'_> {
    type Error = Infallible;
}

impl Read for Peer<'_> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Infallible> {
        let n = self.0.len().min(buf.len());
        let (piece, rest) = self.0.split_at(n);
        buf[..n].copy_from_slice(piece);
        self.0 = rest;
        Ok(n)
    }
}

impl Write for Peer<'_> {
    fn write(&mut self, buf: &[u8]) -> Result<usize, Infallible> {
        Ok(buf.len())
    }
    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// A Pi on which nothing may happen.
struct Untouched;

impl Pi for Untouched {
    async fn set_date(&mut self, _: Date) -> bool {
        panic!("its clock is set");
    }
    async fn set_clock(&mut self, _: Clock) -> bool {
        panic!("its clock is set");
    }
    fn addresses(&mut self, _: &mut impl fmt::Write) {
        panic!("it says where it is");
    }
    async fn wipe(&mut self) -> bool {
        panic!("it is wiped");
    }
}

fuzz_target!(|data: &[u8]| {
    // No input is signed by this key, or not by chance.
    let mut base = [0x66; 32];
    base[0] = 0x58;
    let root = Root::new(PublicKey(base));
    let key = DeviceKey::new([4; 32]).expect("a key");
    let mut trust = PiTrust::new(Nonce([4; 16]), Some((key, true)), Some(root), Floor::default());
    let start = Start { hello: Some(Hello::default()), disk: None, installed: true };
    let mut buf = [0; 1024];
    let mut io = Blocking(Peer(data));
    let done = run(drive::run_trusted(&mut io, &mut buf, &start, &mut Untouched, &mut trust));
    assert!(done.is_err(), "decided: {done:?}");

    let server = ServerKey::new([9; 32], None).expect("a key");
    let mut lines = data.split(|b| *b == b'\n');
    if let Some(mut trust) = lines.next().and_then(|line| ServerTrust::begin(line, || Nonce([7; 16]))) {
        for line in lines {
            assert_ne!(trust.hear(line, &server), Said::Vouched);
            let head = trust.head(&Command::Boot, Clock { seconds: 1, nanos: 1 }, &server);
            assert!(head.is_empty(), "signed without a certificate");
        }
        assert!(!trust.is_proven());
    }
    if let Some(certificate) = Certificate::parse(data) {
        assert!(!certificate.is_of(&root));
        assert_eq!(Certificate::parse(certificate.to_string().as_bytes()), Some(certificate));
    }
});
