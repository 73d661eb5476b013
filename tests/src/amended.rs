//! A server with more in its answers: between it and the agent stands one that adds to an offer, or to the order to boot,
//! what makes the card one Pi's own, and has the bundle.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use pi_agent::control;
use piman_core::hash::Hash;
use piman_core::install::fetch::{Answer, Kind, Request};

use crate::server::{Server, wait_until};

/// What is added.
#[derive(Debug, Clone, Default)]
pub struct More {
    /// The bundle, as bytes.
    pub bundle: Vec<u8>,
    /// The size of the boot partition, in bytes; 0: nothing is said.
    pub boot_bytes: u64,
    /// Whether the order to boot has the bundle.
    pub with_boot: bool,
    /// Whether it comes damaged.
    pub damaged: bool,
}

impl More {
    /// What names the bundle.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash(*blake3::hash(&self.bundle).as_bytes())
    }

    fn fields(&self) -> String {
        let bundle = (!self.bundle.is_empty())
            .then(|| format!(" personal={} personal-bytes={}", self.hash(), self.bundle.len()));
        let boot = (self.boot_bytes > 0).then(|| format!(" boot-bytes={}", self.boot_bytes));
        [bundle, boot].into_iter().flatten().collect()
    }
}

/// It runs as long as the test.
#[derive(Debug, Clone)]
pub struct Amended {
    control: u16,
    rootfs: u16,
    more: Arc<Mutex<More>>,
    heard: Arc<Mutex<Vec<String>>>,
    talks: Arc<AtomicUsize>,
}

impl Amended {
    /// Before this server.
    ///
    /// # Panics
    /// If there is no port.
    #[must_use]
    pub fn new(server: &Server, more: More) -> Self {
        let [control, fetch] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
        let fetch_port = port(&fetch);
        let it = Self {
            control: port(&control),
            rootfs: server.port("rootfs"),
            more: Arc::new(Mutex::new(more)),
            heard: Arc::default(),
            talks: Arc::default(),
        };
        let (to, here) = (server.port("control"), it.clone());
        listen(control, move |agent| here.talk(agent, to, fetch_port));
        let (to, here) = (server.port("fetch"), it.clone());
        listen(fetch, move |agent| here.fetch(agent, to));
        it
    }

    /// Where an agent finds it.
    #[must_use]
    pub fn server(&self) -> control::Server {
        control::Server { host: "127.0.0.1".into(), control_port: self.control, rootfs_port: self.rootfs }
    }

    /// From now on it adds this.
    ///
    /// # Panics
    /// If it did.
    pub fn set(&self, more: More) {
        *self.more.lock().expect("no panic") = more;
    }

    /// The lines that agents said on the control connection since this was asked last, when they have closed it.
    ///
    /// # Panics
    /// If it did.
    #[must_use]
    pub fn take_heard(&self) -> Vec<String> {
        wait_until("the end of a talk", || self.talks.load(SeqCst) == 0);
        std::mem::take(&mut self.heard.lock().expect("no panic"))
    }

    fn more(&self) -> More {
        self.more.lock().expect("no panic").clone()
    }

    fn talk(&self, agent: TcpStream, to: u16, fetch_port: u16) -> io::Result<()> {
        let server = TcpStream::connect(("127.0.0.1", to))?;
        let (from, heard, talks) = (agent.try_clone()?, Arc::clone(&self.heard), Arc::clone(&self.talks));
        talks.fetch_add(1, SeqCst);
        let mut forward = server.try_clone()?;
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                heard.lock().expect("no panic").push(line.clone());
                if forward.write_all(format!("{line}\n").as_bytes()).is_err() {
                    break;
                }
            }
            let _ = forward.shutdown(Shutdown::Write);
            talks.fetch_sub(1, SeqCst);
        });
        let mut agent = agent;
        for line in BufReader::new(server).lines() {
            let (line, more) = (line?, self.more());
            let said = if line.starts_with("PIMAN/1 offer ") {
                // In place of what the server itself wants of the card.
                let own = ["personal=", "personal-bytes=", "boot-bytes="];
                let words = line.split(' ').filter(|word| !own.iter().any(|own| word.starts_with(own)));
                let words = words.map(|word| match word.strip_prefix("fetch=") {
                    Some(_) => format!("fetch={fetch_port}"),
                    None => word.to_owned(),
                });
                format!("{}{}\n", words.collect::<Vec<_>>().join(" "), more.fields())
            } else if line == "boot" && more.with_boot {
                format!(
                    "boot\nPIMAN/1 personal{} fetch={fetch_port} installation=00000000000000ff\n",
                    more.fields()
                )
            } else {
                format!("{line}\n")
            };
            agent.write_all(said.as_bytes())?;
        }
        agent.shutdown(Shutdown::Both)
    }

    fn fetch(&self, agent: TcpStream, to: u16) -> io::Result<()> {
        let mut lines = BufReader::new(agent.try_clone()?);
        let mut line = Vec::new();
        lines.read_until(b'\n', &mut line)?;
        let request = Request::parse(&line).filter(|request| request.kind == Kind::Personal);
        if let Some(request) = request {
            let (more, mut agent) = (self.more(), agent);
            if request.id != more.hash() {
                return writeln!(agent, "{}", Answer::No("such bundle"));
            }
            let mut bytes = more.bundle;
            if more.damaged {
                bytes[0] ^= 1;
            }
            writeln!(agent, "{}", Answer::Ok(request.length))?;
            return agent.write_all(&bytes);
        }
        let mut server = TcpStream::connect(("127.0.0.1", to))?;
        server.write_all(&line)?;
        let (mut back, mut to_agent) = (server.try_clone()?, agent);
        thread::spawn(move || {
            let _ = io::copy(&mut back, &mut to_agent);
            to_agent.shutdown(Shutdown::Both)
        });
        io::copy(&mut lines, &mut server)?;
        server.shutdown(Shutdown::Both)
    }
}

fn listen(listener: TcpListener, serve: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            // Whoever goes away in the middle is no matter.
            thread::spawn(move || serve(stream));
        }
    });
}
