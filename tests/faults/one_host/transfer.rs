//! The transfer service: what a client asks the server to hash, to keep and to give up.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::*;

struct Service {
    server: Server,
    files: PathBuf,
    _folder: tempfile::TempDir,
}

impl Service {
    fn new(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = folder.path().join("files");
        fs::create_dir(&files).unwrap();
        let options = [&["--transfer-dir", files.to_str().unwrap(), "--transfer-port", "0"], more].concat();
        let server = Server::start_services(&folder.path().join("state"), &options);
        Self { server, files, _folder: folder }
    }

    fn ask(&self, address: [u8; 4], operation: u8, name: &str) -> TcpStream {
        let mut stream = from(address, self.server.port("transfer"));
        let mut request = vec![operation];
        request.extend_from_slice(name.as_bytes());
        request.resize(256, 0);
        stream.write_all(&request).unwrap();
        stream
    }

    /// Says that it has so many bytes of a file, and what their hash would be.
    fn compare(&self, address: [u8; 4], name: &str, bytes: u64) -> TcpStream {
        let mut stream = self.ask(address, b'R', name);
        stream.write_all(&[b"D", bytes.to_be_bytes().as_slice(), &[1; 32]].concat()).unwrap();
        stream
    }

    /// Announces an upload as old clients do; the answers.
    fn announce(&self, address: [u8; 4], name: &str, size: u64) -> (TcpStream, Vec<u8>) {
        let mut stream = self.ask(address, b'U', name);
        let mut said = vec![0];
        stream.read_exact(&mut said).unwrap();
        if said == b"T" {
            stream.write_all(&size.to_be_bytes()).unwrap();
            said.push(0);
            stream.read_exact(&mut said[1..]).unwrap();
        }
        (stream, said)
    }

    /// Bytes in all parts of uploads.
    fn parts(&self) -> u64 {
        let parts = fs::read_dir(self.files.join(".piman-uploads")).unwrap();
        parts.map(|entry| entry.unwrap().metadata().unwrap().size()).sum()
    }
}

/// The processor time of a process so far, in seconds.
fn processor(server: &Server) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

#[test]
fn requests_to_hash_cost_little_and_keep_nobody_waiting() {
    let service = Service::new(&[]);
    let large: u64 = 2 << 30;
    for (name, bytes) in [("large", large), ("small", 32 << 20)] {
        fs::File::create(service.files.join(name)).unwrap().set_len(bytes).unwrap();
    }
    let mut answer = [0; 18];
    let before = processor(&service.server);
    // As many requests as cost 109 seconds: 29.7 kB of them.
    let asked: Vec<_> =
        (0..100).map(|n| service.compare([127, 0, 4, 1], "large", large - n * 4096)).collect();
    let began = Instant::now();
    let mut other = service.compare([127, 0, 4, 2], "small", 32 << 20);
    other.read_exact(&mut answer).unwrap();
    let waited = began.elapsed();
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    for mut stream in asked {
        stream.read_exact(&mut answer).unwrap();
    }
    let cost = processor(&service.server) - before;
    assert!(cost < 15.0, "{cost} s of processor time");
}

#[test]
fn whoever_only_announces_deletes_nothing() {
    let service = Service::new(&[]);
    let (mut stream, said) = service.announce([127, 0, 4, 1], "mine", 3 << 20);
    assert_eq!(said, b"TT");
    stream.write_all(&vec![7; 2 << 20]).unwrap();
    wait_until("they are there", || service.parts() == 2 << 20);
    drop(stream);
    let free = rustix::fs::statvfs(&service.files).unwrap();
    let free = free.f_bavail * free.f_frsize;
    // All that is free, or nearly so, under another name; and the same name.
    for size in [free, free - (1 << 20), free / 4] {
        drop(service.announce([127, 0, 4, 2], "other", size));
        assert_eq!(service.parts(), 2 << 20);
    }
    let mut taken = Vec::new();
    wait_until("the name is free", || {
        taken = service.announce([127, 0, 4, 1], "mine", 3 << 20).1;
        taken == b"TT"
    });
    assert_eq!(service.parts(), 2 << 20, "it has sent nothing");
    wait_until("the name is free", || {
        taken = service.announce([127, 0, 4, 2], "mine", 3 << 20).1;
        taken.starts_with(b"T")
    });
    assert_eq!(taken, b"TF", "another's is left alone");
    assert_eq!(service.parts(), 2 << 20);
}

#[test]
fn addresses_have_a_quota_and_the_state_a_reserve() {
    let quotas = ["--transfer-peer-quota-mib", "3", "--transfer-quota-mib", "5"];
    let service = Service::new(&quotas);
    let put = |address, name, size: u64| {
        let (mut stream, said) = service.announce(address, name, size);
        if said == b"TT" {
            stream.write_all(&vec![1; usize::try_from(size).unwrap()]).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
        said
    };
    let [one, other, third] = [1, 2, 3].map(|n| [127, 0, 4, n]);
    assert_eq!(put(one, "a", 2 << 20), b"TT");
    assert_eq!(put(one, "b", 2 << 20), b"TF");
    service.server.wait_log("--transfer-peer-quota-mib");
    assert_eq!(put(other, "c", 2 << 20), b"TT");
    // What was announced and not brought does not count.
    for n in 0..10 {
        drop(service.announce(third, &format!("never {n}"), 1 << 20));
    }
    wait_until("one more", || put(third, "d", 1 << 19) == b"TT");
    assert_eq!(put(third, "e", 1 << 20), b"TF", "that is more than all may bring");
    assert!(service.files.join("a").exists() && !Path::new(&service.files.join("e")).exists());

    let service = Service::new(&["--reserve-mib", "100000000"]);
    assert_eq!(service.announce(one, "a", 1).1, b"TF");
    service.server.wait_log("--reserve-mib");
}
