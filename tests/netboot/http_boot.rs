//! `piman serve --http-boot-port`: `boot.sig` and `boot.img` by HTTP, as a Pi's boot loader fetches them; with curl, with
//! many clients, while the folder is built anew, and with clients that mean no good.

use std::fs;
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use piman_tests::binaries::piman;
use piman_tests::disk::run;
use piman_tests::http::{Client, is_signed, signed, signed_folder};
use piman_tests::netns::{printed, said};
use piman_tests::server::Server;
use piman_tests::wait::until;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A server of a signed folder.
struct Boot {
    dir: TempDir,
    server: Server,
}

impl Boot {
    fn start(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        signed_folder(dir.path());
        Self::serve(dir, more)
    }

    fn serve(dir: TempDir, more: &[&str]) -> Self {
        let boot = dir.path().join("boot");
        let all = ["--netboot", boot.to_str().unwrap(), "--tftp-port", "0", "--http-boot-port", "0"];
        let server = Server::start_services(&dir.path().join("state"), &[&all[..], more].concat());
        Self { dir, server }
    }

    fn port(&self) -> u16 {
        self.server.port("http-boot")
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str) -> Vec<u8> {
        fs::read(self.path("boot").join(name)).unwrap()
    }

    fn client(&self, n: u8) -> Client {
        Client::from([127, 0, 0, n], self.port())
    }

    /// Other files, another image.
    fn build_anew(&self, n: usize) {
        run(&mut signed(self.dir.path(), "boot", &["--cmdline", &format!("build={n}")]));
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Whether these are of one build.
fn is_pair(sig: &[u8], image: &[u8]) -> bool {
    sig.starts_with(digits(&Sha256::digest(image)).as_bytes())
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
#[cfg_attr(lacks = "curl", ignore = "needs curl")]
fn curl_gets_files_and_parts_of_them() {
    let boot = Boot::start(&[]);
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", boot.port());
    let curl = |args: &[&str], path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "60", "--path-as-is", "-o"]).arg(boot.path("got")).args(args);
        let status = printed(curl.args(["-w", "%{http_code}"]).arg(url(path)));
        (status.parse::<u16>().unwrap(), fs::read(boot.path("got")).unwrap_or_default())
    };
    let image = boot.file("boot.img");
    for path in ["/boot.img", "/net_install/boot.img", "/abcdef01/boot.img", "//./boot.img?x", "/b%6fot.img"]
    {
        assert!(curl(&[], path) == (200, image.clone()), "{path}");
    }
    assert_eq!(curl(&[], "/boot.sig"), (200, boot.file("boot.sig")));
    assert_eq!(curl(&["-0"], "/overlays/disable-bt.dtbo"), (200, boot.file("overlays/disable-bt.dtbo")));
    assert!(is_signed(&boot.path("boot/boot.img"), &boot.file("boot.sig"), &boot.path("key.pem.pub")));
    for (range, part) in
        [("0-0", &image[..1]), ("1000-1999", &image[1000..2000]), ("-7", &image[image.len() - 7..])]
    {
        assert!(curl(&["-r", range], "/boot.img") == (206, part.to_vec()), "{range}");
    }
    // Going on where it was.
    fs::write(boot.path("got"), &image[..12_345]).unwrap();
    assert!(curl(&["-C", "-"], "/boot.img") == (206, image.clone()));
    assert_eq!(curl(&["-r", &format!("{}-", image.len())], "/boot.img").0, 416);
    assert_eq!(curl(&["-r", "0-1,4-5"], "/boot.img").0, 200, "several at once need not be understood");
    assert_eq!(curl(&["-X", "POST"], "/boot.img").0, 405);
    assert_eq!(curl(&["-X", "DELETE"], "/boot.img").0, 405);
    assert_eq!(curl(&["-d", "x"], "/boot.img").0, 405);
    for path in ["/none", "/", "/overlays", "/boot.img/", "/boot.img/x", "/net_install/none"] {
        let status = curl(&[], path).0;
        assert!(status == 404 || path == "/boot.img/" && status == 200, "{path}: {status}");
    }
    // The head says the same as with the file.
    let head = printed(Command::new("curl").args(["-sS", "-I", "--max-time", "60"]).arg(url("/boot.img")));
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", image.len())), "{head}");
    // One connection for all.
    let mut several = Command::new("curl");
    several.args(["-sS", "--max-time", "60", "-w", "%{num_connects}\n"]);
    for path in ["/boot.sig", "/none", "/boot.img"] {
        several.args(["-o", "/dev/null"]).arg(url(path));
    }
    let connects = printed(&mut several);
    assert_eq!(connects.lines().collect::<Vec<_>>(), ["1", "0", "0"]);

    // What each Pi was sent is an event of its own.
    until("the device is known", || boot.server.piman(&["devices"]).contains("127.0.0.1"));
    let sent = format!("boot.img: {} bytes", image.len());
    until("the file is noted", || boot.server.piman(&["device", "127.0.0.1"]).contains(&sent));
    boot.server.wait_log("http: there is no none (said once)");
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
fn there_is_no_way_out_of_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    signed_folder(dir.path());
    fs::write(dir.path().join("secret"), "secret").unwrap();
    symlink("../secret", dir.path().join("boot/out")).unwrap();
    symlink("/etc/passwd", dir.path().join("boot/absolute")).unwrap();
    symlink("..", dir.path().join("boot/up")).unwrap();
    symlink("kernel8.img", dir.path().join("boot/inside")).unwrap();
    let boot = Boot::serve(dir, &[]);
    let mut client = boot.client(1);
    for path in [
        "/../secret",
        "/%2e%2e/secret",
        "/%2E%2e%2fsecret",
        "/..%2fsecret",
        "/overlays/../../secret",
        "/abcdef01/%2e%2e/%2e%2e/secret",
        "/net_install/../../secret",
        "/..%5csecret",
        "/out",
        "/absolute",
        "/up/secret",
        "/abcdef01/up/secret",
        "/boot.img%00",
        "/a%0ab",
        "/../boot.img",
    ] {
        let answer = client.get(path, "");
        assert_eq!(answer.status, 403, "{path}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("root:"), "{path}");
    }
    for path in ["/secret", "/etc/passwd", "//etc/passwd", "/%252e%252e/secret"] {
        assert_eq!(client.get(path, "").status, 404, "{path}");
    }
    assert_eq!(client.get("/inside", "").body, boot.file("kernel8.img"));
    // What is no path ends the connection.
    for path in ["secret", "*", "/%", "/%2", "/%ff"] {
        let mut client = boot.client(1);
        assert_eq!(client.get(path, "").status, 400, "{path}");
        assert_eq!(client.rest(), 0);
    }
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
fn many_clients_at_once() {
    let boot = Boot::start(&[]);
    let image = boot.file("boot.img");
    thread::scope(|scope| {
        for n in 1..=64 {
            let (boot, image) = (&boot, &image);
            scope.spawn(move || {
                let sig = boot.client(n).get("/boot.sig", "").body;
                let mut client = boot.client(n);
                // All of it, and the same in parts.
                let whole = client.get("/boot.img", "");
                assert!(whole.status == 200 && whole.body == *image && is_pair(&sig, image));
                let tag = whole.field("etag").unwrap();
                let mut parts = Vec::new();
                while parts.len() < image.len() {
                    let (from, to) = (parts.len(), parts.len() + 1_000_000 - 1);
                    let part =
                        client.get("/boot.img", &format!("Range: bytes={from}-{to}\r\nIf-Range: {tag}\r\n"));
                    assert_eq!(part.status, 206);
                    parts.extend(part.body);
                }
                assert!(parts == *image);
            });
        }
    });
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
fn a_pi_gets_the_image_of_the_signature_that_it_has() {
    let boot = Boot::start(&[]);
    let first = (boot.file("boot.sig"), boot.file("boot.img"));
    let sig = boot.client(1).get("/boot.sig", "");
    assert!(sig.body == first.0);
    let mut began = boot.client(2);
    assert_eq!(began.get("/boot.sig", "").body, first.0);
    began.ask("/boot.img", "");
    boot.build_anew(1);
    let second = (boot.file("boot.sig"), boot.file("boot.img"));
    assert!(first.1 != second.1);
    // One that has asked already, one that asks only now, and again, in parts; and one that begins now.
    assert!(began.answer().unwrap().body == first.1);
    let late = boot.client(1).get("/boot.img", "");
    assert!(late.body == first.1);
    let tag = late.field("etag").unwrap();
    let part = boot.client(1).get("/boot.img", &format!("Range: bytes=100-199\r\nIf-Range: {tag}\r\n"));
    assert!((part.status, &part.body[..]) == (206, &first.1[100..200]));
    let new = boot.client(3).get("/boot.sig", "");
    assert!(new.body == second.0 && boot.client(3).get("/boot.img", "").body == second.1);
    // A part of what is not there any more is not mixed with what is.
    let other = boot.client(3).get("/boot.img", &format!("Range: bytes=100-199\r\nIf-Range: {tag}\r\n"));
    assert!((other.status, other.body) == (200, second.1.clone()));
    // It begins anew.
    assert!(boot.client(1).get("/boot.sig", "").body == second.0);
    assert!(boot.client(1).get("/boot.img", "").body == second.1);
    // Half of a build.
    fs::write(boot.path("half"), &first.1).unwrap();
    fs::rename(boot.path("half"), boot.path("boot/boot.img")).unwrap();
    assert!(boot.client(4).get("/boot.sig", "").body == second.0);
    assert!(boot.client(4).get("/boot.img", "").body == second.1);
    boot.server.wait_log("boot.sig is not the one of boot.img");
    // A server that never saw a pair has none to give.
    let Boot { dir, server } = boot;
    drop(server);
    let boot = Boot::serve(dir, &[]);
    let none = boot.client(5).get("/boot.sig", "");
    assert_eq!((none.status, none.field("retry-after")), (503, Some("1")));
    assert_eq!(boot.client(5).get("/boot.img", "").status, 503);
    boot.build_anew(2);
    assert_eq!(boot.client(5).get("/boot.sig", "").status, 200);
    assert!(is_pair(&boot.file("boot.sig"), &boot.client(5).get("/boot.img", "").body));
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
fn pairs_hold_while_the_folder_is_built_again_and_again() {
    let boot = Boot::start(&[]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for n in 1..=8 {
            let (boot, done) = (&boot, &done);
            scope.spawn(move || {
                let mut signatures = std::collections::BTreeSet::new();
                while !done.load(Ordering::Relaxed) {
                    let sig = boot.client(n).get("/boot.sig", "");
                    let image = boot.client(n).get("/boot.img", "");
                    assert_eq!((sig.status, image.status), (200, 200));
                    assert!(is_pair(&sig.body, &image.body), "of two builds");
                    signatures.insert(sig.body);
                }
                assert!(signatures.len() > 1, "it was built anew meanwhile");
            });
        }
        for n in 0..12 {
            boot.build_anew(n);
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
fn slow_and_silent_clients() {
    let boot = Boot::start(&[]);
    let image = boot.file("boot.img");
    let began = Instant::now();
    // One says nothing, one says a byte now and then, one asks and reads nothing.
    let mut silent = boot.client(2);
    let mut slow = boot.client(2);
    let mut deaf = boot.client(2);
    deaf.ask("/boot.img", "");
    let mut half = boot.client(2);
    half.send("GET /boot.img HTTP/1.1\r\nHost:");
    thread::scope(|scope| {
        let silent = scope.spawn(move || silent.rest());
        let half = scope.spawn(move || (half.answer().map(|a| a.status), half.rest()));
        let slow = scope.spawn(move || {
            let mut sent = 0;
            // A head that would take a quarter of an hour.
            while began.elapsed() < Duration::from_secs(60) {
                slow.send("a");
                sent += 1;
                slow.0.set_read_timeout(Some(Duration::from_millis(250))).unwrap();
                if slow.0.peek(&mut [0]).is_ok() {
                    break;
                }
            }
            assert!(sent > 10);
            slow.answer().map(|a| a.status)
        });
        assert_eq!(silent.join().unwrap(), 0);
        assert_eq!(half.join().unwrap(), (Some(408), 0));
        assert_eq!(slow.join().unwrap(), Some(408));
    });
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    // Others are served meanwhile, and a slow reader is not cut as long as it reads.
    assert!(boot.client(1).get("/boot.img", "").body == image);
    assert!(deaf.answer().unwrap().body == image);
    // A client that has ended its direction after its request gets its answer.
    let mut ended = boot.client(1);
    ended.ask("/boot.img", "");
    ended.0.shutdown(Shutdown::Write).unwrap();
    assert!(ended.answer().unwrap().body == image);
    assert_eq!(ended.rest(), 0);
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
fn hostile_clients() {
    let boot = Boot::start(&[]);
    let status = |bytes: &[u8]| {
        let mut client = boot.client(2);
        client.send(bytes);
        let status = client.answer().map(|answer| answer.status);
        assert_eq!(client.rest(), 0, "it is closed");
        status
    };
    let long = |head: &str, bytes: usize| [head.as_bytes(), &vec![b'a'; bytes]].concat();
    for (bytes, expected) in [
        (long("GET /", 1 << 20), 414),
        (long("GET / HTTP/1.1\r\nX: ", 1 << 20), 431),
        (format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000)).into_bytes(), 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 505),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), 400),
        (b"GET /\r\n".to_vec(), 400),
        (vec![0xff; 100], 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01".to_vec(), 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n".to_vec(), 413),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(), 413),
        (b"PUT /boot.img HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n123456789".to_vec(), 405),
    ] {
        assert_eq!(
            status(&bytes),
            Some(expected),
            "{:?}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(60)])
        );
    }
    // Several requests at once are answered in their order.
    let mut client = boot.client(1);
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    client.send([request("/boot.sig"), request("/none"), request("/boot.img")].concat());
    let answers = [(); 3].map(|()| client.answer().unwrap());
    assert_eq!([answers[0].status, answers[1].status, answers[2].status], [200, 404, 200]);
    assert!(answers[0].body == boot.file("boot.sig") && answers[2].body == boot.file("boot.img"));
    // The head alone, and what follows is not taken for it.
    client.send("HEAD /boot.img HTTP/1.1\r\nHost: a\r\n\r\n");
    client.send(request("/boot.sig"));
    let mut head = [0; 12];
    std::io::Read::read_exact(&mut client.0, &mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    // A thousand that go away in the middle.
    for n in 0..1000 {
        let mut gone = boot.client(3);
        gone.ask("/boot.img", "");
        if n % 2 == 0 {
            let _ = std::io::Read::read(&mut gone.0, &mut [0; 10]);
        }
    }
    assert!(boot.client(1).get("/boot.img", "").body == boot.file("boot.img"));
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
fn only_listed_pis_and_folders_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    signed_folder(dir.path());
    run(&mut signed(dir.path(), "boot/abcdef01", &["--cmdline", "own=1"]));
    let add = ["devices", "--state", "state", "add", "10000000abcdef01"];
    run(Command::new(piman()).args(add).current_dir(dir.path()));
    let boot = Boot::serve(dir, &["--only-known"]);
    let get = |path: &str| boot.client(9).get(path, "");
    assert!(get("/abcdef01/boot.sig").body == boot.file("abcdef01/boot.sig"));
    assert!(get("/abcdef01/boot.img").body == boot.file("abcdef01/boot.img"));
    assert_eq!(boot.client(8).get("/abcdef09/boot.img", "").status, 403);
    boot.server.wait_log("abcdef09 is not in the device list");
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
fn a_stop_waits_for_a_download() {
    let mut boot = Boot::start(&[]);
    // More than the sockets' buffers hold.
    let large: Vec<u8> = (0..40_u32 << 20).map(|n| (n ^ (n >> 10)) as u8).collect();
    fs::write(boot.path("boot/large"), &large).unwrap();
    let mut client = boot.client(1);
    client.ask("/large", "Connection: close\r\n");
    let mut all = vec![0; 1];
    std::io::Read::read_exact(&mut client.0, &mut all).unwrap();
    boot.server.terminate();
    boot.server.wait_log("1 transfers");
    std::io::Read::read_to_end(&mut client.0, &mut all).unwrap();
    assert!(all.ends_with(&large), "it was cut after {} bytes", all.len());
    drop(client);
    assert!(boot.server.ended(Duration::from_secs(60)).success());
}

fn doctor(dir: &Path, port: u16) -> String {
    let mut doctor = Command::new(piman());
    doctor.current_dir(dir).args([
        "doctor",
        "--listen",
        "127.0.0.1",
        "--state",
        "other",
        "--netboot",
        "boot",
    ]);
    doctor.args(["--tftp-port", "0", "--http-boot-port", &port.to_string()]);
    said(doctor)
}

#[test]
#[cfg_attr(lacks = "openssl", ignore = "needs openssl")]
fn doctor_asks_the_port_and_looks_at_the_pair() {
    let boot = Boot::start(&[]);
    let found = doctor(boot.dir.path(), boot.port());
    let answers = format!("TCP {} answers with the boot.sig of the folder", boot.port());
    assert!(found.contains(&answers), "{found}");
    assert!(found.contains("MiB, signed, boot.sig of 20"), "{found}");
    assert!(doctor(boot.dir.path(), 0).contains("TCP 0 is free (--http-boot-port)"));
    fs::write(boot.path("boot/boot.img"), "other").unwrap();
    let found = doctor(boot.dir.path(), boot.port());
    assert!(found.contains("boot.sig is not the one of this boot.img"), "{found}");
    fs::remove_file(boot.path("boot/boot.img")).unwrap();
    let found = doctor(boot.dir.path(), boot.port());
    assert!(found.contains("there is boot.sig and no boot.img"), "{found}");
    fs::remove_file(boot.path("boot/boot.sig")).unwrap();
    let found = doctor(boot.dir.path(), boot.port());
    assert!(found.contains("there is no boot.img, so HTTP boots no Pi"), "{found}");
    let other = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = other.local_addr().unwrap().port();
    let found = doctor(boot.dir.path(), port);
    assert!(found.contains("another program has port") && found.contains("no answer by HTTP"), "{found}");
    let alone = ["serve", "--listen", "127.0.0.1", "--state", "other", "--http-boot-port", "0"];
    let mut serve = Command::new(piman());
    serve.args(alone).current_dir(boot.dir.path());
    let text = said(serve);
    assert!(text.contains("--http-boot-port has no effect without --netboot DIR"), "{text}");
}
