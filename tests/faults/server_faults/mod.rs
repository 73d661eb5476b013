//! `piman serve` with clients, files and folders that are not as they should be: a clear error
//! or none, no other Pi disturbed, memory bounded.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use piman_core::hash::Hash;
use piman_core::install::fetch::{Kind, Request};
use piman_tests::disk::is_root;
use piman_tests::server::{Server, wait_until};
use piman_tests::tar;

mod archives;
mod clients;
mod ends;
mod starts;
mod unchanged;

const BOOT: &str = "boot\nEOM\n";
const FORMAT: &str = "format\nEOM\n";

/// A server with an archive of so many bytes that is good.
struct Lab {
    server: Server,
    archive: PathBuf,
    _folder: tempfile::TempDir,
}

impl Lab {
    fn new(bytes: usize, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("rootfs.tar.zst");
        fs::copy(tar::of_bytes(bytes).path(), &archive).unwrap();
        let more = [&["--no-date"], more].concat();
        let server = Server::start(&archive, &folder.path().join("state"), &more);
        server.wait_log("is good");
        Self { server, archive, _folder: folder }
    }

    /// Its image is made, which takes memory for a moment; what it takes from now on counts.
    fn settled(self) -> Self {
        self.server.wait_log(" is ready: ");
        fs::write(format!("/proc/{}/clear_refs", self.server.id()), "5").unwrap();
        self
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.archive).unwrap()
    }

    /// What a Pi with a system is told, which shows that the server is well.
    fn decision(&self) -> String {
        decision(&self.server)
    }
}

fn decision(server: &Server) -> String {
    let mut talk = server.connect("control");
    talk.write_all(b"IS_INSTALLED\n").unwrap();
    talk.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    talk.read_to_string(&mut said).unwrap();
    said
}

fn download(server: &Server) -> std::io::Result<Vec<u8>> {
    let mut got = Vec::new();
    server.connect("rootfs").read_to_end(&mut got).map(|_| got)
}

/// Waits until the server ends the connection; by an end or a reset.
fn ended(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(e) => matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
    }
}

/// Runs a server that cannot start; returns its exit code and what it says.
fn refused(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    assert!(output.stdout.is_empty(), "a server that does not start says no ports");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}
