//! The two old programs, as they read and write, against ours: directly, and through a proxy that stammers.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use piman_tests::proxy::{Stammer, stammer_as};
use piman_tests::running::Running;

use super::*;

/// An old server, killed when dropped.
struct OldServer {
    _child: Running,
    folder: tempfile::TempDir,
    address: SocketAddr,
    said: Arc<Mutex<Vec<String>>>,
}

impl OldServer {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = python(include_str!("old_server.py"))
            .arg(folder.path())
            .spawn()
            .map(Running)
            .expect("python3 starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = lines.next().expect("it says its port");
        let said = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&said);
        thread::spawn(move || lines.for_each(|line| to.lock().unwrap().push(line)));
        let address = SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
        Self { _child: child, folder, address, said }
    }

    fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }
}

fn python(program: &str) -> Command {
    let mut python = Command::new("python3");
    python.args(["-c", program]).stdout(Stdio::piped());
    python
}

/// The old client; whether it succeeds.
fn old_client(operation: &str, server: SocketAddr, file: &str, path: &Path) -> bool {
    let mut client = python(include_str!("old_client.py"));
    client.args([operation, &server.port().to_string(), file]).arg(path);
    client.status().unwrap().success()
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn an_old_server_is_asked_for_nothing_that_it_cannot_answer() {
    let old = OldServer::start();
    let out = tempfile::tempdir().unwrap();
    let (from, to) = (out.path().join("from"), out.path().join("to"));
    fs::write(&from, noise(100_000, 1)).unwrap();
    let began = Instant::now();
    let outcome = putting(old.address, &from, "file").unwrap();
    assert_eq!(outcome, Outcome { size: 100_000, moved: 100_000, already: false, resumed_at: 0 });
    assert!(fs::read(old.folder.path().join("file")).unwrap() == noise(100_000, 1));
    // With a part that could be resumed, if this were one of ours.
    fs::write(part_beside(&to), noise(50_000, 1)).unwrap();
    got(old.address, "file", &to).unwrap();
    assert!(fs::read(&to).unwrap() == noise(100_000, 1));
    assert!(matches!(putting(old.address, &from, "file"), Err(TransferError::Taken)));
    // It is given a minute for each answer.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    until("it has taken all requests", || old.said().len() >= 6);
    let probe = "D .piman-ranges";
    assert_eq!(old.said(), [probe, "U file", probe, "D file", probe, "U file"]);
}

const SIZES: [usize; 11] = [0, 1, 255, 256, 2047, 2048, 2049, 100_000, 1 << 20, 3 << 20, 20 << 20];

/// How long one transfer pauses altogether, about, so that the test ends within a minute. With
/// `PIMAN_STAMMER_FULL=1` it pauses as often as the original proxy, which takes hours.
const PAUSES: Duration = Duration::from_secs(3);

/// Pieces of 1 to 2,048 bytes, pauses of up to 10 ms, both ways.
fn stammering(server: SocketAddr, size: usize, seed: u64) -> SocketAddr {
    let pause = Duration::from_millis(10);
    let altogether = pause / 2 * u32::try_from(size / 1024).unwrap();
    let full = std::env::var_os("PIMAN_STAMMER_FULL").is_some();
    let one_in = if full { 1 } else { (altogether.as_millis() / PAUSES.as_millis()).max(1) as u64 };
    stammer_as(server, seed, Stammer { piece: 2048, pause, one_in })
}

#[test]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
fn all_sizes_both_ways_in_both_roles_through_the_stammering_proxy() {
    let old = OldServer::start();
    let ours = serve();
    let out = tempfile::tempdir().unwrap();
    for (seed, size) in SIZES.into_iter().enumerate() {
        let bytes = noise(size, seed as u64);
        fs::write(ours.path(&format!("down-{size}")), &bytes).unwrap();
        fs::write(old.folder.path().join(format!("down-{size}")), &bytes).unwrap();
    }
    // The long ones first.
    let cases: Vec<_> = SIZES
        .into_iter()
        .enumerate()
        .rev()
        .flat_map(|(seed, size)| (0..6).map(move |pair| (seed, size, pair)))
        .collect();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                while let Some((seed, size, pair)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let what = format!("{size} bytes, pair {pair}");
                    let server = if matches!(pair, 2 | 3) { old.address } else { ours.address };
                    let folder = if matches!(pair, 2 | 3) { old.folder.path() } else { ours.dir.path() };
                    let proxy = stammering(server, *size, (seed * 6 + pair) as u64);
                    let (down, up) = (format!("down-{size}"), format!("up-{size}-{pair}"));
                    let source = folder.join(&down);
                    let target = if matches!(pair, 0 | 2 | 4) { out.path() } else { folder }.join(&up);
                    match pair {
                        0 | 2 => drop(got(proxy, &down, &target).expect(&what)),
                        1 | 3 => drop(putting(proxy, &source, &up).expect(&what)),
                        4 => assert!(old_client("D", proxy, &down, &target), "{what}"),
                        _ => assert!(old_client("U", proxy, &up, &source), "{what}"),
                    }
                    let equal = || fs::read(&target).is_ok_and(|got| got == noise(*size, *seed as u64));
                    // An old client is content before we have seen its end; ours closes last.
                    if matches!(pair, 3 | 5) { until(&what, equal) } else { assert!(equal(), "{what}") }
                }
            });
        }
    });
    assert!(!old.said().contains(&"spins".to_owned()), "a connection was left half spoken");
}
