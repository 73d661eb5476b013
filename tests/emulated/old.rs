//! An old server, as our agent meets it: a control connection that commands `format` or
//! `boot`, and a port that sends the whole archive to whoever connects.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

/// What the old server was told, line by line.
pub(crate) type Said = Arc<Mutex<Vec<String>>>;

/// Starts one on free ports of loopback, which serves until this program ends. Returns its
/// control port, its rootfs port and what it will be told.
pub(crate) fn serve(archive: &Path) -> (u16, u16, Said) {
    let said = Said::default();
    let control = TcpListener::bind("127.0.0.1:0").unwrap();
    let rootfs = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = (control.local_addr().unwrap().port(), rootfs.local_addr().unwrap().port());
    let (heard, archive) = (Arc::clone(&said), std::fs::read(archive).unwrap());
    thread::spawn(move || {
        for stream in control.incoming() {
            let (stream, heard) = (stream.unwrap(), Arc::clone(&heard));
            thread::spawn(move || talk(&stream, &heard));
        }
    });
    thread::spawn(move || {
        for stream in rootfs.incoming() {
            // A Pi that goes away early is its own business.
            let _ = stream.unwrap().write_all(&archive);
        }
    });
    (ports.0, ports.1, said)
}

fn talk(mut stream: &TcpStream, said: &Said) {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let _ = stream.write_all(b"busybox date -s 202711201234.56\nEOM\n");
    for line in lines.map_while(Result::ok) {
        let command: &[u8] = match line.trim() {
            "IS_UNINSTALLED" => b"format\nEOM\n",
            "IS_INSTALLED" => b"boot\nEOM\n",
            _ => b"",
        };
        let last = line.trim() == "IS_FORMATTED";
        said.lock().unwrap().push(line);
        if last || stream.write_all(command).is_err() {
            return;
        }
    }
}
