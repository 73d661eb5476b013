//! A server that says whatever it is told to say.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use piman_core::install::fetch::{Answer, Request};
use piman_core::install::trust::{Nonce, ServerKey, ServerTrust};
use piman_core::install::{Clock, Command};

/// What a rogue server does.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// What it answers to a report, of those that ask for a decision: `{rootfs}` and `{fetch}` stand for its ports.
    pub order: String,
    /// What it sends to whoever connects to its rootfs port.
    pub rootfs: Vec<u8>,
    /// Whether it then keeps that connection open.
    pub stalls: bool,
    /// What it sends for every range that is asked for, whatever it is.
    pub fetch: Vec<u8>,
    /// By which it signs its orders; with a certificate it is a server that may order.
    pub key: Option<Arc<ServerKey>>,
}

/// A running rogue server; it ends when dropped.
#[derive(Debug)]
pub struct Rogue {
    addresses: [SocketAddr; 3],
    ended: Arc<AtomicBool>,
    script: Arc<Mutex<Script>>,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Rogue {
    /// Starts it.
    ///
    /// # Panics
    /// If there is no port.
    #[must_use]
    pub fn start(script: Script) -> Self {
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let addresses = listeners.each_ref().map(|l| l.local_addr().expect("an address"));
        let rogue = Self {
            addresses,
            ended: Arc::default(),
            script: Arc::new(Mutex::new(script)),
            heard: Arc::default(),
        };
        for (service, listener) in [control, rootfs, fetch].into_iter().zip(listeners) {
            let (ended, script) = (Arc::clone(&rogue.ended), Arc::clone(&rogue.script));
            let heard = Arc::clone(&rogue.heard);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    if ended.load(SeqCst) {
                        return;
                    }
                    let (script, heard) = (script.lock().expect("no panic").clone(), Arc::clone(&heard));
                    // Whoever goes away in the middle is no matter.
                    thread::spawn(move || drop(service(&stream, script, addresses, &heard)));
                }
            });
        }
        rogue
    }

    /// Says something else from now on.
    ///
    /// # Panics
    /// If one of its threads has.
    pub fn write_line(&self, order: &str) {
        self.script.lock().expect("no panic").order = order.into();
    }

    /// The port where it gives orders, and the one where it sends archives.
    #[must_use]
    pub fn ports(&self) -> (u16, u16) {
        let [control, rootfs, _] = self.addresses;
        (control.port(), rootfs.port())
    }

    /// The lines that Pis have sent so far.
    ///
    /// # Panics
    /// If one of its threads has.
    #[must_use]
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("no panic").clone()
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        for address in self.addresses {
            // Wakes the listener.
            let _ = TcpStream::connect(address);
        }
    }
}

/// Random bytes.
fn nonce() -> Nonce {
    let mut bytes = [0; 16];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.expect("random bytes");
    Nonce(bytes)
}

/// The time, in seconds since 1970.
fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs())
}

type Ports = [SocketAddr; 3];

fn control(
    stream: &TcpStream,
    script: Script,
    ports: Ports,
    heard: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let [_, rootfs, fetch] = ports.map(|address| address.port().to_string());
    let mut trust = None::<ServerTrust>;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if let Some(key) = &script.key {
            match &mut trust {
                Some(trust) => _ = trust.hear(line.as_bytes(), key),
                None => trust = ServerTrust::begin(line.as_bytes(), nonce),
            }
        }
        let signed = trust.as_ref().zip(script.key.as_deref());
        let clock = Clock { seconds: now(), nanos: 0 };
        if let (Some((trust, key)), true) = (signed, line.starts_with("PIMAN/1 hello")) {
            let answer = Command::Hello { clock: None };
            let text = format!("{}{answer}", trust.head(&answer, clock, key));
            (&mut &*stream).write_all(text.as_bytes())?;
        }
        if line == "IS_UNINSTALLED" || line == "IS_INSTALLED" {
            let order = script.order.replace("{rootfs}", &rootfs).replace("{fetch}", &fetch);
            let head = signed.map_or_else(String::new, |(trust, key)| trust.sign(&order, clock, key));
            (&mut &*stream).write_all((head + &order).as_bytes())?;
        }
        heard.lock().expect("no panic").push(line);
    }
    Ok(())
}

fn rootfs(mut stream: &TcpStream, script: Script, _: Ports, _: &Mutex<Vec<String>>) -> std::io::Result<()> {
    stream.write_all(&script.rootfs)?;
    if script.stalls {
        std::io::copy(&mut stream, &mut std::io::sink())?;
    }
    stream.shutdown(Shutdown::Write)
}

fn fetch(mut stream: &TcpStream, script: Script, _: Ports, _: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        let Some(request) = Request::parse(&line) else { return Ok(()) };
        line.clear();
        let length = usize::try_from(request.length).unwrap_or(0);
        let bytes: Vec<u8> = script.fetch.iter().copied().cycle().take(length).collect();
        writeln!(stream, "{}", Answer::Ok(request.length))?;
        stream.write_all(&bytes)?;
    }
    Ok(())
}
