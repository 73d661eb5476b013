//! The messages service: `piman serve` with channels, `piman messages`, `pi-agent run --messages`, and the
//! programs made with the old library, which know nothing of all that.

mod commands;
mod hub;
mod limits;
mod old;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use piman_tests::binaries;
use piman_tests::server::Server;
use piman_tests::terminal::Terminal;

const DEADLINE: Duration = Duration::from_secs(120);
const GO: u8 = 0xFF;

/// A server with only this service, and its state folder.
fn hub(more: &[&str]) -> (Server, tempfile::TempDir) {
    let state = tempfile::tempdir().unwrap();
    (Server::start_services(state.path(), more), state)
}

fn at(server: &Server, name: &str) -> String {
    format!("127.0.0.1:{}", server.port(name))
}

/// `piman messages ...`
fn messages(arguments: &[&str]) -> Command {
    let mut command = Command::new(binaries::piman());
    command.arg("messages").args(arguments);
    command
}

fn start(arguments: &[&str]) -> Terminal {
    Terminal::start(&mut messages(arguments))
}

/// A connection to a channel that does each step by hand.
struct Raw(TcpStream);

impl Raw {
    fn join(stream: TcpStream) -> Self {
        let mut raw = Self::silent(stream);
        assert_eq!(raw.byte(), GO);
        raw
    }

    /// It has greeted, and reads nothing.
    fn silent(mut stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&[GO]).unwrap();
        Self(stream)
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.0.read_exact(&mut byte).unwrap();
        byte[0]
    }

    /// Sends a message, or only its size if that is not welcome; returns the answer.
    fn send(&mut self, message: &[u8]) -> u8 {
        self.0.write_all(&u32::try_from(message.len()).unwrap().to_be_bytes()).unwrap();
        let answer = self.byte();
        if answer == GO {
            self.0.write_all(message).unwrap();
        }
        answer
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut size = [0; 4];
        self.0.read_exact(&mut size).unwrap();
        self.0.write_all(&[GO]).unwrap();
        let mut message = vec![0; u32::from_be_bytes(size) as usize];
        self.0.read_exact(&mut message).unwrap();
        message
    }

    fn text(&mut self) -> String {
        String::from_utf8(self.receive()).unwrap()
    }
}
