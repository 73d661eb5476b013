//! The transfer service over real sockets and files: clients that lie, vanish and stammer, full
//! disks, many at once.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use piman::net::listen::Gate;
use piman::net::min_rate::Limits;
use piman::transfer::{
    Deadlines, Folder, Outcome, Progress, Target, Timeouts, TransferError, Transfers, get, put, run,
};
use piman_core::transfer::Name;
use piman_tests::chance::noise;
use piman_tests::proxy::stammer;
use piman_tests::small::Small;
use piman_tests::wait::until;

mod faults;
mod old_pair;
mod old_servers;
mod refusals;
mod sizes;
mod slow;

struct Server {
    dir: tempfile::TempDir,
    address: SocketAddr,
    transfers: Arc<Transfers>,
    gate: Arc<Gate>,
    _runtime: tokio::runtime::Runtime,
}

fn serve_in(dir: tempfile::TempDir, folder: &Path, patience: Timeouts) -> Server {
    serve_at("127.0.0.1:0", dir, folder, patience)
}

fn serve_at(address: &str, dir: tempfile::TempDir, folder: &Path, patience: Timeouts) -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let transfers = Arc::new(Transfers::new(Arc::new(Folder::open(folder).unwrap()), patience));
    let gate = Gate::new("transfer", 1000, 1000);
    runtime.spawn(run(listener, gate.clone(), transfers.clone(), Duration::from_secs(3600), |_| ()));
    Server { dir, address, transfers, gate, _runtime: runtime }
}

fn serve_with(patience: Timeouts) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_owned();
    serve_in(dir, &folder, patience)
}

fn serve() -> Server {
    serve_with(Timeouts::default())
}

impl Server {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Opens with a request.
    fn ask(&self, operation: u8, name: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let mut request = vec![operation];
        request.extend_from_slice(name);
        request.resize(256, 0);
        stream.write_all(&request).unwrap();
        stream
    }

    /// What an old client gets for a name.
    fn old_get(&self, name: &[u8]) -> (u8, Vec<u8>) {
        let mut stream = self.ask(b'D', name);
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let mut bytes = Vec::new();
        if head[0] == b'T' {
            stream.write_all(b"T").unwrap();
        }
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, u64::from_be_bytes(head[1..].try_into().unwrap()));
        (head[0], bytes)
    }

    /// Begins as an old client does; the answers.
    fn old_put(&self, name: &[u8], size: u64) -> (TcpStream, Vec<u8>) {
        let mut stream = self.ask(b'U', name);
        let mut said = vec![0];
        stream.read_exact(&mut said).unwrap();
        if said == b"T" {
            stream.write_all(&size.to_be_bytes()).unwrap();
            said.push(0);
            stream.read_exact(&mut said[1..]).unwrap();
        }
        (stream, said)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn parts(&self) -> Vec<std::path::PathBuf> {
        let parts = self.transfers.folder().path().join(".piman-uploads");
        fs::read_dir(parts).unwrap().map(|e| e.unwrap().path()).collect()
    }
}

fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).unwrap()
}

fn deadlines() -> Deadlines {
    Deadlines { silence: Duration::from_secs(60), pause: Duration::from_millis(10), ..Deadlines::default() }
}

fn got(server: SocketAddr, file: &str, to: &Path) -> Result<Outcome, TransferError> {
    let mut target = Target::open(to, false).map_err(TransferError::Local)?;
    get(("127.0.0.1", server.port()), &name(file), &mut target, deadlines(), &mut |_| {})
}

fn putting(server: SocketAddr, from: &Path, file: &str) -> Result<Outcome, TransferError> {
    put(from, ("127.0.0.1", server.port()), &name(file), deadlines(), &mut |_| {})
}

/// Where our client keeps what it has so far.
fn part_beside(to: &Path) -> std::path::PathBuf {
    let hash = blake3::hash(to.file_name().unwrap().as_encoded_bytes()).to_hex();
    to.with_file_name(format!(".piman-{hash:.16}.part"))
}
