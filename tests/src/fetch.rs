//! A server of ranges with faults on cue.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use piman::images::ext4::Image;
use piman_core::hash::Hash;
use piman_core::install::ImageOffer;
use piman_core::install::fetch::{Answer, Kind, Request};
use piman_core::install::table::{Entry, Header, Next, Table};

/// What happens to one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The byte at this place comes damaged.
    Flip(usize),
    /// The connection ends after so many bytes.
    Cut(usize),
    /// It is refused.
    No,
    /// All slots are taken at first.
    Wait,
}

/// A running server; it ends when dropped.
#[derive(Debug)]
pub struct FetchServer {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<Request>>>,
    tables: Arc<Vec<Vec<u8>>>,
}

/// The table of an image's first chunks, as it is while the others are being made.
///
/// # Panics
/// If the image has no table.
#[must_use]
pub fn begun(image: &Image, chunks: u32) -> Vec<u8> {
    let table = Table::parse(image.table()).expect("a table");
    let header = Header { whole: false, chunks, ..table.header() };
    let mut bytes = header.encode().to_vec();
    bytes.extend(table.iter().take(chunks as usize).flat_map(|entry: Entry| entry.encode()));
    bytes
}

fn hash(table: &[u8]) -> Hash {
    Hash(*blake3::hash(table).as_bytes())
}

impl FetchServer {
    /// Serves an image. `fault` is asked for each request, with its number from 0.
    ///
    /// # Panics
    /// If there is no port.
    pub fn new(image: Arc<Image>, fault: impl Fn(&Request, usize) -> Fault + Send + Sync + 'static) -> Self {
        let whole = image.table().to_vec();
        Self::with_tables(image, vec![whole], fault)
    }

    /// The same, with these tables, each the next of the one before.
    ///
    /// # Panics
    /// If there is no port.
    pub fn with_tables(
        image: Arc<Image>,
        tables: Vec<Vec<u8>>,
        fault: impl Fn(&Request, usize) -> Fault + Send + Sync + 'static,
    ) -> Self {
        let tables = Arc::new(tables);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = Self {
            address: listener.local_addr().expect("an address"),
            ended: Arc::default(),
            requests: Arc::default(),
            tables: Arc::clone(&tables),
        };
        let (ended, requests) = (Arc::clone(&server.ended), Arc::clone(&server.requests));
        let (count, fault) = (Arc::new(AtomicUsize::new(0)), Arc::new(fault));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(SeqCst) {
                    return;
                }
                let (image, tables, requests) =
                    (Arc::clone(&image), Arc::clone(&tables), Arc::clone(&requests));
                let (count, fault) = (Arc::clone(&count), Arc::clone(&fault));
                // Whoever goes away in the middle is no matter.
                std::thread::spawn(move || {
                    let _ = serve(&stream, (&image, &tables), |request| {
                        requests.lock().expect("no panic").push(*request);
                        fault(request, count.fetch_add(1, SeqCst))
                    });
                });
            }
        });
        server
    }

    /// Connects to it.
    ///
    /// # Errors
    /// The socket's.
    pub fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
        Ok(stream)
    }

    /// What an agent is told of the first table.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn offer(&self, image: &Image) -> ImageOffer {
        let table = self.tables.first().expect("a table");
        ImageOffer { table: hash(table), table_bytes: table.len() as u32, ..image.offer() }
    }

    /// The requests so far.
    ///
    /// # Panics
    /// If the server did.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }
}

impl Drop for FetchServer {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    stream: &TcpStream,
    (image, tables): (&Image, &[Vec<u8>]),
    fault: impl Fn(&Request) -> Fault,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut line = Vec::new();
    let mut out = stream;
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let Some(request) = Request::parse(&line) else {
            return writeln!(out, "{}", Answer::No("request"));
        };
        let mut bytes = vec![0; usize::try_from(request.length).unwrap_or(0)];
        let known = tables.iter().position(|table| hash(table) == request.id);
        let next = known.and_then(|at| tables.get(at + 1));
        let Some(known) = known.filter(|_| request.kind != Kind::Next || next.is_some()) else {
            writeln!(out, "{}", Answer::No("such image"))?;
            continue;
        };
        match (request.kind, next) {
            (Kind::Table, _) => bytes.copy_from_slice(&tables[known]),
            (Kind::Next, Some(next)) => {
                writeln!(out, "{}", Answer::Wait(0))?;
                let next = Next { table: hash(next), table_bytes: next.len() as u32 };
                bytes.copy_from_slice(&next.encode());
            }
            _ => image.chunks().read_exact_at(&mut bytes, request.offset)?,
        }
        let mut end = bytes.len();
        match fault(&request) {
            Fault::None => {}
            Fault::Flip(at) => bytes[at % request.length as usize] ^= 0x10,
            Fault::Cut(at) => end = at % request.length as usize,
            Fault::Wait => writeln!(out, "{}\n{}", Answer::Wait(2), Answer::Wait(1))?,
            Fault::No => {
                writeln!(out, "{}", Answer::No("image any more"))?;
                continue;
            }
        }
        writeln!(out, "{}", Answer::Ok(request.length))?;
        out.write_all(&bytes[..end])?;
        if end < bytes.len() {
            return stream.shutdown(std::net::Shutdown::Both);
        }
    }
}
