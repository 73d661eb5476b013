//! A client of HTTP whose every byte the test decides, and a signed boot folder to be served.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::disk::run;
use crate::netns::{build, ingredients};
use crate::server::connect_from;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// The lines of its head.
    pub head: Vec<String>,
    /// Its content.
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        let of =
            |line: &'_ str| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).is_some();
        self.head.iter().find(|line| of(line)).and_then(|line| line.split_once(": ")).map(|(_, value)| value)
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client(pub TcpStream);

impl Client {
    /// From this address of loopback; it fails a test instead of hanging it.
    ///
    /// # Panics
    /// If nobody accepts.
    #[must_use]
    pub fn from(address: [u8; 4], port: u16) -> Self {
        let stream = connect_from(address, port);
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        stream.set_write_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        Self(stream)
    }

    /// Sends these bytes. A server that has closed the connection is no failure of this.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // What it has answered is to be read all the same.
        let _ = self.0.write_all(bytes.as_ref());
    }

    /// Asks for a path, with these header fields.
    pub fn ask(&mut self, path: &str, fields: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n"));
    }

    /// Reads one answer; `None`: the connection ended before it.
    ///
    /// # Panics
    /// If it is none, or not whole.
    pub fn answer(&mut self) -> Option<Answer> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match self.0.read(&mut byte) {
                Ok(0) if head.is_empty() => return None,
                Ok(1) => head.extend(byte),
                Err(e) if head.is_empty() && e.kind() == ErrorKind::ConnectionReset => return None,
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&head)),
            }
        }
        let head = String::from_utf8(head).expect("text");
        let mut lines = head.trim_end().lines().map(str::to_owned);
        let status = lines.next().expect("a line");
        let status =
            status.strip_prefix("HTTP/1.1 ").and_then(|s| s.get(..3)?.parse().ok()).expect("a status");
        let mut answer = Answer { status, head: lines.collect(), body: Vec::new() };
        let length = answer.field("content-length").and_then(|n| n.parse().ok()).expect("a length");
        answer.body = vec![0; length];
        self.0.read_exact(&mut answer.body).expect("the whole content");
        Some(answer)
    }

    /// Asks, and reads the answer.
    ///
    /// # Panics
    /// If there is none.
    pub fn get(&mut self, path: &str, fields: &str) -> Answer {
        self.ask(path, fields);
        self.answer().unwrap_or_else(|| panic!("no answer for {path}"))
    }

    /// Reads until the server ends the connection; how many bytes that were.
    ///
    /// # Panics
    /// If it does not within a minute.
    pub fn rest(&mut self) -> usize {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => rest.len(),
            Err(e) => panic!("{e}"),
        }
    }
}

/// A key for `boot.img`, made by OpenSSL, beside its public part `NAME.pub`.
///
/// # Panics
/// If OpenSSL cannot make it.
pub fn key(dir: &Path, name: &str) {
    let public = format!("{name}.pub");
    run(Command::new("openssl").args(["genrsa", "-out", name, "2048"]).current_dir(dir));
    run(Command::new("openssl").args(["rsa", "-in", name, "-pubout", "-out", &public]).current_dir(dir));
}

/// A folder `boot` below `dir` with a signed image, and the file `key.pem` that has signed it.
///
/// # Panics
/// If it cannot be made.
pub fn signed_folder(dir: &Path) {
    if !dir.join("agent").exists() {
        ingredients(dir);
        key(dir, "key.pem");
    }
    run(&mut signed(dir, "boot", &[]));
}

/// The command that makes such a folder.
#[must_use]
pub fn signed(dir: &Path, out: &str, more: &[&str]) -> Command {
    let all = ["--firmware", "firmware", "--kernel", "kernel", "--boot-image", "--boot-key", "key.pem"];
    build(dir, out, &[&all[..], more].concat())
}

/// Whether OpenSSL finds that this signature is the key's, of this image.
///
/// # Panics
/// If OpenSSL cannot be started, or `boot.sig` has no signature.
#[must_use]
pub fn is_signed(image: &Path, sig: &[u8], public: &Path) -> bool {
    let text = String::from_utf8(sig.to_vec()).expect("text");
    let digits = text.lines().find_map(|line| line.strip_prefix("rsa2048: ")).expect("a signature");
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal digits");
    let signature = image.with_extension("signature");
    fs::write(&signature, (0..digits.len()).step_by(2).map(byte).collect::<Vec<_>>()).expect("a file");
    let mut verify = Command::new("openssl");
    verify.args(["dgst", "-sha256", "-verify"]).arg(public).arg("-signature").arg(&signature).arg(image);
    let verified = verify.output().expect("openssl runs").status.success();
    fs::remove_file(signature).expect("it was made");
    verified
}
